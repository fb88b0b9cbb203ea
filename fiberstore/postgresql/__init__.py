"""The storage trait on PostgreSQL; install ``fiberstore[postgresql]`` for its driver, psycopg."""

from fiberstore.postgresql.engine import create_engine
from fiberstore.postgresql.storage import AsyncPostgresStorage, PostgresStorage

__all__ = ["AsyncPostgresStorage", "PostgresStorage", "create_engine"]
