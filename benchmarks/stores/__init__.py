"""The stores that are compared: the same tables, keys and indexes, and all durable when a call returns."""

from benchmarks.stores.duckdb_alone import DuckDB, compact_copy_bytes
from benchmarks.stores.ours import Fiberstore, FiberstorePostgreSQL
from benchmarks.stores.postgresql import PostgreSQL, PostgreSQLOfOurs
from benchmarks.stores.sqlite import SQLite, SQLiteOfBytes
from benchmarks.stores.store import LOGS, PAGE_ROWS, Store

STORES: tuple[type[Store], ...] = (Fiberstore, DuckDB, SQLite, PostgreSQL, FiberstorePostgreSQL)

__all__ = [
    "LOGS",
    "PAGE_ROWS",
    "STORES",
    "DuckDB",
    "Fiberstore",
    "FiberstorePostgreSQL",
    "PostgreSQL",
    "PostgreSQLOfOurs",
    "SQLite",
    "SQLiteOfBytes",
    "Store",
    "compact_copy_bytes",
]
