"""Sizes of the database file."""

import shutil
from contextlib import suppress
from pathlib import Path

import duckdb
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.duckdb.session_connection import duckdb_connection
from fiberstore.errors import DatabaseError
from fiberstore.repositories.query import select_rows
from fiberstore.sql.engine import IN_MEMORY
from fiberstore.sql.prepared import connection_of
from fiberstore.sql.support import StoreSize

_SIZES = sa.func.pragma_database_size().table_valued(
    *(sa.column(name) for name in ("database_name", "block_size", "total_blocks", "free_blocks"))
)
_TABLES = sa.func.duckdb_tables().table_valued(
    *(sa.column(name) for name in ("database_name", "schema_name", "table_name", "estimated_size"))
)


def size_of(session: Session) -> StoreSize:
    """Return the size of the store, as of the last WAL checkpoint."""
    path = duckdb_connection(session).database_key
    if path.startswith(IN_MEMORY):
        return StoreSize(0, 0, 0, 0)
    statement = sa.select(_SIZES.c.block_size, _SIZES.c.total_blocks, _SIZES.c.free_blocks).where(
        _SIZES.c.database_name == sa.func.current_database()
    )
    ((block_bytes, total, free),) = select_rows(session, statement)
    used, free = (total - free) * block_bytes, free * block_bytes
    return StoreSize(file_bytes(path), used, free, block_bytes)


def file_bytes(database: str) -> int:
    """Return the size of a database's file.

    Raises:
        DatabaseError: It cannot be found, though DuckDB has it open.
    """
    try:
        return Path(database).stat().st_size
    except OSError as error:
        raise DatabaseError(
            f"{database} is open, but cannot be found ({error.strerror}); export the store before it is "
            "closed"
        ) from error


def has_room(database: str) -> bool:
    """Tell whether the disk has room for a database's file and its write-ahead log once more."""
    log, size_bytes = Path(f"{database}.wal"), file_bytes(database)
    with suppress(FileNotFoundError):  # it comes and goes
        size_bytes += log.stat().st_size
    return shutil.disk_usage(log.parent).free > size_bytes


def settle(session: Session) -> None:
    """Run a WAL checkpoint, which frees what was deleted."""
    with suppress(duckdb.TransactionException):  # other transactions are in its way; the next one will do it
        connection_of(session).write("CHECKPOINT")


def kept_rows(session: Session) -> dict[str, int]:
    """Return the rows in the file.

    DuckDB keeps deleted rows in it as long as those around them, until two groups of 122,880 rows fit in one.
    """
    statement = sa.select(_TABLES.c.table_name, _TABLES.c.estimated_size).where(
        _TABLES.c.database_name == sa.func.current_database(), _TABLES.c.schema_name == "main"
    )
    return dict(select_rows(session, statement))
