"""Opening of stores by the commands that only read them, and the names of stores in messages."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ProgrammingError

from fiberstore.duckdb.storage import DuckDBStorage
from fiberstore.errors import DatabaseError
from fiberstore.opening import open_storage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.engine import is_postgresql
from fiberstore.sql.models import Base, RawLog
from fiberstore.sql.translate import translate_errors

_SECRETS = ("password", "sslpassword")


@contextmanager
def open_read_only(db: str, lock_timeout_s: float = 0.0) -> Iterator[SqlStorage]:
    """Open a store, whatever it holds, without access to anything else.

    Args:
        db: What ``--db`` has named.
        lock_timeout_s: Seconds to wait while another process holds the file; a server has no such lock.
    """
    if is_postgresql(db):
        with open_storage(db, read_only=True) as storage:
            yield storage
        return
    with DuckDBStorage(db, read_only=True, lock_timeout_s=lock_timeout_s) as storage:
        with translate_errors(), storage.session() as session:
            session.execute(sa.text("SET enable_external_access = false"))  # of no use here
        yield storage


@contextmanager
def open_to_read(db: str, lock_timeout_s: float = 0.0) -> Iterator[SqlStorage]:
    """Open a store, and raise ``DatabaseError`` unless it has the tables."""
    with open_read_only(db, lock_timeout_s) as storage:
        check_tables(storage)
        yield storage


def check_tables(storage: SqlStorage) -> None:
    """Raise ``DatabaseError`` unless the store has the tables."""
    if not has_tables(storage):
        raise DatabaseError(
            f"{store_name(storage)} has no tables of fiberstore; fiberstore ingest fills it, "
            "fiberstore db upgrade only makes them"
        )


def has_tables(storage: SqlStorage) -> bool:
    """Return whether the store has the tables, of whatever release."""
    return has_table(storage, RawLog)


def has_table(storage: SqlStorage, model: type[Base]) -> bool:
    """Return whether the store has a table: one that is only read is not upgraded."""
    with translate_errors():
        try:
            with storage.engine.connect() as connection:
                connection.execute(sa.select(sa.literal_column("1")).select_from(model).limit(0))
        except ProgrammingError:  # only the catalog says why, but DuckDB's takes ten times as long
            return sa.inspect(storage.engine).has_table(model.__tablename__)
        return True


def refuse_server(db: str, why: str) -> None:
    """Raise ``DatabaseError`` with the reason, if a store is a server's: the command is for files."""
    if is_postgresql(db):
        raise DatabaseError(why)


def store_name(storage: SqlStorage) -> str:
    """Return the path of the file of a store, or the URL of its database on a server, without a password."""
    url = storage.engine.url
    if url.get_backend_name() == "postgresql":
        return _without_password(url.set(drivername="postgresql+psycopg"))
    return url.database or ""


def shown_target(db: str) -> str:
    """Return the argument of ``--db`` without a password, to be shown and given again."""
    return _without_password(make_url(db)) if is_postgresql(db) else db


def _without_password(url: URL) -> str:
    # `set` takes no password of None
    bare = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)
    return bare.difference_update_query(_SECRETS).render_as_string()
