"""PgBouncer before the server: what pools sessions works, what shares them is refused."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy.engine import URL, make_url

from fiberstore import DatabaseError, open_storage
from fiberstore.testing.examples import log

pytestmark = pytest.mark.slow

PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
SETTINGS = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
auth_file = {folder}/users
pool_mode = {mode}
ignore_startup_parameters = options, extra_float_digits
logfile = {folder}/log
"""

Pooled = Callable[[str], str]


@pytest.fixture
def pooled(postgres_url: str) -> Iterator[Pooled]:
    """The URL of a database behind PgBouncer, by the mode of its pool."""
    if not Path(PROGRAM).exists():
        if "CI" in os.environ:
            pytest.fail("needs PgBouncer: apt-get install pgbouncer")
        pytest.skip("needs PgBouncer: apt-get install pgbouncer")
    stopping: list[Callable[[], object]] = []

    def start(mode: str) -> str:
        running = pooler(make_url(postgres_url), mode)
        stopping.append(lambda: running.__exit__(None, None, None))
        return running.__enter__()

    yield start
    for stop in stopping:
        stop()


@contextmanager
def pooler(url: URL, mode: str) -> Iterator[str]:
    host = str(url.host or url.query["host"])
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken.close()
        owner = Path(host).owner() if host.startswith("/") else "nobody"
        settings = Path(folder, "pgbouncer.ini")
        settings.write_text(
            SETTINGS.format(
                host=host,
                port=url.port or 5432,
                user=url.username,
                listen_port=port,
                folder=folder,
                mode=mode,
            )
        )
        Path(folder, "users").write_text("")
        if os.getuid() == 0:  # as whom it does not run
            for path in (Path(folder), *Path(folder).iterdir()):
                shutil.chown(path, owner)
        process = subprocess.Popen([PROGRAM, "-u", owner, settings], stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                except ConnectionRefusedError:
                    continue
                break
            yield f"postgresql://{url.username}@127.0.0.1:{port}/{url.database}"
        finally:
            process.terminate()
            process.wait()


def test_a_pooler_of_sessions_is_as_the_server(pooled: Pooled) -> None:
    with open_storage(pooled("session"), pool_size=2) as storage:
        storage.init_schema()
        assert storage.write_logs([log(number) for number in range(300)]) == 300
        with storage.transaction() as transaction:
            assert transaction.logs.delete().logs == 300


def test_a_pooler_that_shares_sessions_is_refused(pooled: Pooled) -> None:
    with pytest.raises(DatabaseError, match="shares its sessions"):
        open_storage(pooled("transaction"))


def test_a_pooler_that_lets_a_reader_write_is_refused(pooled: Pooled) -> None:
    with pytest.raises(DatabaseError, match="ignored the parameter options"):
        open_storage(pooled("session"), read_only=True)
