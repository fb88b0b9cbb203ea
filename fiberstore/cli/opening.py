"""How commands open a store that they only read."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from fiberstore.duckdb import DuckDBStorage
from fiberstore.errors import DatabaseError, translate_errors
from fiberstore.models import RawLog


@contextmanager
def open_read_only(db: str, lock_timeout_s: float = 0.0) -> Iterator[DuckDBStorage]:
    """Open a store, whatever it holds, without access to anything else."""
    with DuckDBStorage(db, read_only=True, lock_timeout_s=lock_timeout_s) as storage:
        with translate_errors(), storage.session() as session:
            session.execute(sa.text("SET enable_external_access = false"))  # of no use here
        yield storage


@contextmanager
def open_to_read(db: str, lock_timeout_s: float = 0.0) -> Iterator[DuckDBStorage]:
    """Open a store, and raise ``DatabaseError`` unless it has the tables."""
    with open_read_only(db, lock_timeout_s) as storage:
        check_tables(storage)
        yield storage


def check_tables(storage: DuckDBStorage) -> None:
    """Raise ``DatabaseError`` unless the store has the tables."""
    if not has_tables(storage):
        raise DatabaseError(
            f"{storage.engine.url.database} has no tables of fiberstore; fiberstore ingest fills it, "
            "fiberstore db upgrade only makes them"
        )


def has_tables(storage: DuckDBStorage) -> bool:
    """Tell whether the store has the tables, of whatever release."""
    with translate_errors():
        return sa.inspect(storage.engine).has_table(RawLog.__tablename__)
