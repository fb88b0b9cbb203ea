"""Rows into new stores with all their indexes, and many small transactions."""

import statistics
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from benchmarks.clock import cpu_seconds, medians_s, seconds
from benchmarks.data import Batch, Generator, Row
from benchmarks.stores import (
    LOGS,
    STORES,
    DuckDB,
    Fiberstore,
    FiberstorePostgreSQL,
    PostgreSQL,
    PostgreSQLOfOurs,
    SQLiteOfBytes,
    Store,
)
from fiberstore import RawLog

SMALL_BATCH_ROWS = 100
_ITERATOR_BATCH_ROWS = 100_000  # of which `write_logs` makes a statement each
# What goes row by row gets a part of the rows, which flatters it: it slows down as it grows.
_SLOW_PART, _SLOWEST_PART = 10, 100


class Appender(DuckDB):
    """DuckDB's appender, from tuples."""

    name = "DuckDB's appender"

    def write_logs(self, batch: Batch) -> None:
        self.connection.begin()
        with self.connection.appender("raw_logs") as appender:
            appender.append_rows(batch.log_rows)
        self.connection.commit()


class Unnest(DuckDB):
    """One statement with a list for each column."""

    name = "one INSERT of lists"

    def write_logs(self, batch: Batch) -> None:
        types = ("UUID", "TIMESTAMPTZ", "VARCHAR", "VARCHAR", "TIMESTAMPTZ", "UBIGINT")
        lists = ", ".join(f"unnest(?::{name}[])" for name in types)
        columns = [list(column) for column in zip(*batch.log_rows, strict=True)]
        self.connection.execute(f"INSERT OR IGNORE INTO raw_logs ({LOGS}) SELECT {lists}", columns)


class Stack(DuckDB):
    """SQLAlchemy over duckdb-engine, without fiberstore."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.connection.close()
        self.engine = sa.create_engine(f"duckdb:///{self.path}")

    def counts(self) -> tuple[int, int]:
        self.engine.dispose()
        self.connection = duckdb.connect(self.path)
        return super().counts()


class AddAll(Stack):
    """The ORM's ``add_all``."""

    name = "ORM add_all"

    def write_logs(self, batch: Batch) -> None:
        names = LOGS.split(", ")
        with Session(self.engine) as session:
            session.add_all(RawLog(**dict(zip(names, row, strict=True))) for row in batch.log_rows)
            session.commit()


class ExecuteMany(Stack):
    """Core's ``executemany``; a duplicate is an error."""

    name = "Core executemany"

    def write_logs(self, batch: Batch) -> None:
        self._execute(sa.insert(RawLog), batch.log_rows)

    def _execute(self, statement: sa.Insert, log_rows: list[Row]) -> None:
        names = LOGS.split(", ")
        rows = [dict(zip(names, row, strict=True)) for row in log_rows]
        with self.engine.begin() as connection:
            connection.execute(statement, rows)


class ExecuteManyOnConflict(ExecuteMany):
    """The same, passing over duplicates as SQLAlchemy does it and as ``write_logs`` does."""

    name = "Core executemany, on conflict"

    def write_logs(self, batch: Batch) -> None:
        self._execute(insert(RawLog).on_conflict_do_nothing(), batch.log_rows)


def bulk(rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """Write one batch into a new store in every way, in turn; return rows per second."""
    rates: dict[str, dict[str, float]] = {}
    whole = Generator("v7").batch(rows)
    part = Generator("v7").batch(rows // _SLOW_PART)
    least = Generator("v7").batch(max(20, rows // _SLOWEST_PART // 20 * 20))
    for batch in (whole, part, least):  # what is made of the records for other stores is made before
        _ = batch.log_rows, batch.log_table, batch.membership_rows, batch.membership_table
    fast: tuple[type[Store], ...] = (*STORES, PostgreSQLOfOurs, SQLiteOfBytes, Appender, Unnest)
    slow: tuple[type[Store], ...] = (AddAll, ExecuteMany)
    ways = [*((kind, whole) for kind in fast), *((kind, part) for kind in slow)]
    ways.append((ExecuteManyOnConflict, least))
    rates["write_logs"] = _rates(ways, rounds, lambda store, batch: store.write_logs(batch), 0)
    rates["write_memberships"] = _rates(
        [(store, whole) for store in STORES], rounds, lambda store, batch: store.write_memberships(batch), 1
    )
    return rates


def small_batches(transactions: int) -> dict[str, float]:
    """Write many small transactions into every store, in turn; return the median milliseconds of one."""
    return _batches((*STORES, Appender), {SMALL_BATCH_ROWS: transactions})[str(SMALL_BATCH_ROWS)]


def iterator(rows: int) -> dict[str, float]:
    """Write logs that an iterator makes, in one call; return its CPU seconds, and those of two of its parts.

    What is left of them is to check and to convert the records, and to look for known keys.
    """
    generator, in_all = Generator("v7"), range(0, rows, _ITERATOR_BATCH_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        store = Fiberstore(Path(folder))
        found_s = {"call": cpu_seconds(lambda: store.storage.write_logs(generator.logs(rows)))}
        assert store.counts()[0] == rows, "the iterator has lost rows"
        store.close()
    found_s["making the records"] = cpu_seconds(lambda: deque(Generator("v7").logs(rows), maxlen=0))
    with tempfile.TemporaryDirectory() as folder:
        alone, generator, inserting_s = DuckDB(Path(folder)), Generator("v7"), 0.0
        alone.connection.begin()
        for _ in in_all:
            batch = Batch(list(generator.logs(min(rows, _ITERATOR_BATCH_ROWS))), [], [])
            _ = batch.log_table
            inserting_s += cpu_seconds(partial(alone.write_logs, batch))
        found_s["inserting by DuckDB alone"] = inserting_s + cpu_seconds(alone.connection.commit)
        alone.close()
    return found_s


def postgresql_batches(sizes: dict[int, int]) -> dict[str, dict[str, float]]:
    """Do the same on PostgreSQL alone, with transactions of one size after those of the other.

    Args:
        sizes: For each size the number of transactions.
    """
    return _batches((FiberstorePostgreSQL, PostgreSQLOfOurs, PostgreSQL), sizes)


def _batches(kinds: tuple[type[Store], ...], sizes: dict[int, int]) -> dict[str, dict[str, float]]:
    generator = Generator("v7")
    rows = sum(size * transactions for size, transactions in sizes.items())
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stores: list[Store] = []
        for kind in kinds:
            (Path(folder) / kind.name).mkdir()
            stores.append(kind(Path(folder) / kind.name))
        for size, transactions in sizes.items():
            batches = [Batch(list(generator.logs(size)), [], []) for _ in range(transactions)]
            for batch in batches:
                _ = batch.log_rows, batch.log_table
            ways = {store.name: partial(_write_one, store, batches) for store in stores}
            times_s = medians_s(ways, transactions)
            found[str(size)] = {name: 1e3 * time_s for name, time_s in times_s.items()}
        for store in stores:
            assert store.counts() == (rows, 0), f"{store.name} has lost rows"
            store.close()
    return found


def _write_one(store: Store, batches: list[Batch], number: int) -> None:
    store.write_logs(batches[number])


def _rates(
    ways: list[tuple[type[Store], Batch]], rounds: int, write: Callable[[Store, Batch], None], counted: int
) -> dict[str, float]:
    found_s: dict[str, list[float]] = {kind.name: [] for kind, _ in ways}
    for _ in range(rounds):
        for kind, batch in ways:
            with tempfile.TemporaryDirectory() as folder:
                store = kind(Path(folder))
                found_s[kind.name].append(seconds(partial(write, store, batch)))
                assert store.counts()[counted] == len(batch.logs), f"{kind.name} has lost rows"
                store.close()
    return {kind.name: len(batch.logs) / statistics.median(found_s[kind.name]) for kind, batch in ways}
