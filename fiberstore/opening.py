"""``open_storage()``: the storage of whatever database a target names."""

import os
import re
from importlib import import_module

import sqlalchemy as sa

from fiberstore.aio.storage import AsyncSqlStorage
from fiberstore.duckdb import engine
from fiberstore.duckdb.storage import AsyncDuckDBStorage, DuckDBStorage
from fiberstore.errors import DatabaseError
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.engine import DEFAULT_POOL_SIZE

# Also with mistakes in it: what is taken for a file is shown in errors, and its password would be.
_MEANT_AS_URL = re.compile(r"postgres(ql)?(\+\w*)?(:|//)|(?!.*://).*\b(dbname|password) *=", re.IGNORECASE)


def is_postgresql(target: str | os.PathLike[str]) -> bool:
    """Tell whether a target is meant as the URL of a PostgreSQL database, not as a DuckDB file or its URL."""
    return _MEANT_AS_URL.match(os.fsdecode(target)) is not None


def open_storage(
    target: str | os.PathLike[str],
    *,
    config_version: int = 0,
    read_only: bool = False,
    pool_size: int = DEFAULT_POOL_SIZE,
) -> SqlStorage:
    """Open the storage that a target names.

    Args:
        target: A path, a ``duckdb:///`` URL or ``":memory:"`` for a ``DuckDBStorage``;
            ``postgresql+psycopg://user:password@host:port/database`` for a ``PostgresStorage``.
        config_version: What a ``LogRecord`` is stamped with, 0 to 2**64 - 1.
        read_only: For reading only.
        pool_size: Connections at most, >= 1; as many calls run side by side. On PostgreSQL, up to four times
            as many: ``PostgresStorage`` says for what.

    Raises:
        DatabaseError: The database cannot be opened or reached, or the driver of PostgreSQL is not installed.
        ValueError: An argument is out of bounds.
    """
    if is_postgresql(target):
        _check_driver()
        from fiberstore.postgresql import PostgresStorage

        return PostgresStorage(
            os.fspath(target), config_version=config_version, read_only=read_only, pool_size=pool_size
        )
    return DuckDBStorage(target, config_version=config_version, read_only=read_only, pool_size=pool_size)


def open_async_storage(
    target: str | os.PathLike[str],
    *,
    config_version: int = 0,
    read_only: bool = False,
    pool_size: int = DEFAULT_POOL_SIZE,
) -> AsyncSqlStorage:
    """Open the storage that a target names, in coroutines; see ``open_storage``."""
    if is_postgresql(target):
        _check_driver()
        from fiberstore.postgresql import AsyncPostgresStorage

        return AsyncPostgresStorage(
            os.fspath(target), config_version=config_version, read_only=read_only, pool_size=pool_size
        )
    return AsyncDuckDBStorage(target, config_version=config_version, read_only=read_only, pool_size=pool_size)


def create_engine(target: str | os.PathLike[str]) -> sa.Engine:
    """Return a SQLAlchemy engine on the database that a target names, see ``open_storage``."""
    if is_postgresql(target):
        _check_driver()
        from fiberstore import postgresql

        return postgresql.create_engine(os.fspath(target))
    return engine.create_engine(target)


def _check_driver() -> None:
    try:
        import_module("psycopg")
    except ImportError as error:  # also without libpq, which psycopg[binary] brings
        raise DatabaseError(
            f"PostgreSQL needs its driver, psycopg: pip install 'fiberstore[postgresql]' ({error})"
        ) from error
