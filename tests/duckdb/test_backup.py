"""Backups are whole snapshots, taken while others write; or there is none."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID

import duckdb
import pytest
import sqlalchemy as sa

from fiberstore import AsyncDuckDBStorage, DatabaseError, DuckDBStorage, FiberMembership, doctor
from fiberstore.duckdb import backup
from fiberstore.testing.concurrency import together
from tests.support.factories import NOON, a_fiber, some_logs
from tests.support.parameters import parametrize_mostly_slow

if TYPE_CHECKING:
    from fiberstore.duckdb.connection import DuckDBConnection

DAY = (NOON, NOON + timedelta(days=1))


def test_a_backup_holds_everything_and_is_a_store_like_any_other(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    logs, fiber = some_logs(50), a_fiber(last_activity=NOON + timedelta(minutes=1))
    with storage.transaction() as unit:
        unit.logs.write_logs(logs)
        unit.fibers.write_fiber(fiber)
        unit.memberships.write_memberships(
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in logs
        )
    with storage.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE mine (a INTEGER PRIMARY KEY)"))
        connection.execute(sa.text("INSERT INTO mine VALUES (7)"))
    storage.backup(tmp_path / 'it\'s a "copy".duckdb')
    with DuckDBStorage(tmp_path / 'it\'s a "copy".duckdb') as copy:
        copy.init_schema()
        assert copy.query_logs_by_time(*DAY) == storage.query_logs_by_time(*DAY)
        assert copy.get_fiber(fiber.fiber_id) == fiber
        assert len(copy.get_fiber_logs(fiber.fiber_id)) == 50
        assert doctor.examine(copy) == []
        assert copy.write_logs(logs) == 0
        with copy.session() as session:
            assert session.scalar(sa.text("SELECT a FROM mine")) == 7
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", [":memory:", "store.duckdb"])
def test_backups_taken_while_others_write_hold_whole_transactions(tmp_path: Path, target: str) -> None:
    """Each transaction writes 20 logs, a fiber and 20 memberships; a backup holds all of it or nothing."""
    done, written = threading.Event(), threading.Event()
    with DuckDBStorage(target if target == ":memory:" else tmp_path / target) as storage:
        storage.init_schema()

        def write() -> None:
            while not done.is_set():
                logs, fiber = some_logs(20), a_fiber()
                with storage.transaction() as unit:
                    unit.logs.write_logs(logs)
                    unit.fibers.write_fiber(fiber)
                    unit.memberships.write_memberships(
                        FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1)
                        for log in logs
                    )
                written.set()

        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        try:
            for number in range(5):
                storage.backup(tmp_path / f"{number}.duckdb")
                written.clear()
                assert written.wait(60)
        finally:
            done.set()
            for writer in writers:
                writer.join()
    counts = []
    for number in range(5):
        with DuckDBStorage(tmp_path / f"{number}.duckdb", read_only=True) as copy, copy.session() as session:
            tables = ("fibers", "raw_logs", "fiber_memberships")
            counts.append([session.scalar(sa.text(f"SELECT count(*) FROM {table}")) for table in tables])
    assert all(logs == memberships == 20 * fibers for fibers, logs, memberships in counts)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


CATALOG = (
    "SELECT * FROM duckdb_tables()",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM raw_log",  # DuckDB looks for tables of similar names, in every database
)


@pytest.mark.slow
@parametrize_mostly_slow("question", CATALOG, quick=1)
def test_a_backup_is_whole_if_a_session_looks_at_the_catalog_meanwhile(
    storage: DuckDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    storage.write_logs(some_logs(50))
    with storage.session() as session:

        def chmod(path: Path, mode: int) -> None:
            os.chmod(path, mode)  # noqa: PTH101  # the copy is attached by now, and empty
            with suppress(sa.exc.DBAPIError):
                session.execute(sa.text(question))

        monkeypatch.setattr(Path, "chmod", chmod)
        storage.backup(tmp_path / "copy.duckdb")
        assert_whole(tmp_path / "copy.duckdb", 50)  # before DuckDB could mend it at the session's end


@pytest.mark.slow
def test_a_copy_that_stays_in_use_gets_no_name(
    storage: DuckDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs(some_logs(50))
    monkeypatch.setattr(backup, "_CHECKPOINT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(backup, "uuid4", lambda: UUID(int=7))
    pooled = storage.engine.raw_connection()
    others = [cast("DuckDBConnection", pooled.dbapi_connection).sibling() for _ in range(2)]

    def chmod(path: Path, mode: int) -> None:
        os.chmod(path, mode)  # noqa: PTH101
        other = others.pop()
        other.begin().execute(f"USE backup_{UUID(int=7).hex}")
        in_use.append(other)

    in_use: list[duckdb.DuckDBPyConnection] = []
    with monkeypatch.context() as patched:
        patched.setattr(Path, "chmod", chmod)
        with pytest.raises(DatabaseError, match="uses the unfinished copy"):
            storage.backup(tmp_path / "copy.duckdb")
        patched.setattr(backup.Copy, "checkpoint", lambda *_: None)
        with pytest.raises(DatabaseError, match="raw_logs"):
            storage.backup(tmp_path / "other.duckdb")
    for other in in_use:
        with suppress(duckdb.Error):  # DuckDB looks for the file that is gone
            other.rollback()
        other.close()
    pooled.close()
    assert {path.name for path in tmp_path.iterdir()} <= {"store.duckdb", "store.duckdb.wal"}
    storage.backup(tmp_path / "copy.duckdb")
    assert_whole(tmp_path / "copy.duckdb", 50)


def test_after_ctrl_c_there_is_no_backup_and_the_store_goes_on(
    storage: DuckDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs(some_logs(50))
    chmod = Path.chmod

    def interrupted(path: Path, mode: int) -> None:
        chmod(path, mode)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "chmod", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.backup(tmp_path / "copy.duckdb")
    assert not [*tmp_path.glob(".*")]
    (tmp_path / "copy.duckdb").unlink(missing_ok=True)  # the signal may come when all is done
    storage.backup(tmp_path / "copy.duckdb")
    assert_whole(tmp_path / "copy.duckdb", 50)


def assert_whole(path: Path, logs: int) -> None:
    with DuckDBStorage(path, read_only=True) as copy:
        assert copy.logs.count() == logs
        assert doctor.examine(copy) == []


def test_a_store_opened_for_reading_can_be_backed_up_and_stays_as_it_is(
    store_file: Path, tmp_path: Path
) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(some_logs(5))
    before = store_file.read_bytes()
    with DuckDBStorage(store_file, read_only=True) as storage:
        storage.backup(tmp_path / "copy.duckdb")
    assert store_file.read_bytes() == before
    with DuckDBStorage(tmp_path / "copy.duckdb") as copy:
        assert len(copy.query_logs_by_time(*DAY)) == 5


def test_a_backup_overwrites_nothing_and_needs_its_folder(storage: DuckDBStorage, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for target, complaint in (
        (taken, "exists already"),
        (tmp_path / "no" / "copy", "does not exist; create"),
    ):
        with pytest.raises(DatabaseError, match=complaint):
            storage.backup(target)
    assert taken.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} - {"store.duckdb.wal"} == {"store.duckdb", "taken"}
    assert storage.write_logs(some_logs(1)) == 1


def test_of_backups_to_one_path_one_gets_the_name(storage: DuckDBStorage, tmp_path: Path) -> None:
    def back_up() -> bool:
        try:
            storage.backup(tmp_path / "copy.duckdb")
        except DatabaseError:
            return False
        return True

    assert sum(together([back_up] * 4)) == 1


def test_what_lies_beside_the_path_is_not_made_part_of_the_copy(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    (tmp_path / "copy.duckdb.wal").write_bytes(b"of another file")
    (tmp_path / "link.duckdb").symlink_to(tmp_path / "nothing")
    for name in ("copy.duckdb", "link.duckdb"):
        with pytest.raises(DatabaseError, match="exists already"):
            storage.backup(tmp_path / name)
    assert (tmp_path / "copy.duckdb.wal").read_bytes() == b"of another file"


def test_who_may_not_read_the_store_may_not_read_its_copy(storage: DuckDBStorage, db_file: Path) -> None:
    db_file.chmod(0o600)
    storage.backup(db_file.with_name("copy.duckdb"))
    assert db_file.with_name("copy.duckdb").stat().st_mode & 0o777 == 0o600


def test_a_long_name_is_a_name(storage: DuckDBStorage, tmp_path: Path) -> None:
    storage.backup(tmp_path / ("a" * 240))
    with pytest.raises(DatabaseError, match="too long"):
        storage.backup(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    ("target", "error"),
    [(None, TypeError), (b"copy", TypeError), ("a\0b", ValueError), ("\udcff", ValueError)],
)
def test_a_backup_needs_a_path(storage: DuckDBStorage, target: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        storage.backup(target)
    assert storage.write_logs(some_logs(1)) == 1


def test_the_async_face_takes_backups_too(db_file: Path, tmp_path: Path) -> None:
    async def body() -> None:
        async with AsyncDuckDBStorage(db_file) as storage:
            await storage.init_schema()
            await asyncio.gather(storage.write_logs(some_logs(1)), storage.backup(tmp_path / "copy.duckdb"))

    asyncio.run(body())
    with DuckDBStorage(tmp_path / "copy.duckdb") as copy:
        copy.init_schema()


BACK_UP_WITHOUT_ROOM = """
import resource, sys, fiberstore
from datetime import UTC, datetime
log = fiberstore.LogRecord(timestamp=datetime.now(UTC), source_id="a", raw_text="b")
storage = fiberstore.DuckDBStorage(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    storage.backup(sys.argv[2])
except fiberstore.DatabaseError as error:
    print("refused")
    print(storage.write_logs([log]))
"""


@pytest.mark.slow
def test_without_room_there_is_no_backup_and_the_store_goes_on(store_file: Path, tmp_path: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(
            log.model_copy(update={"raw_text": os.urandom(400).hex()}) for log in some_logs(5_000)
        )
    answer = subprocess.run(
        [sys.executable, "-c", BACK_UP_WITHOUT_ROOM, str(store_file), str(tmp_path / "copy.duckdb")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.stdout == "refused\n1\n", answer.stderr
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("store.duckdb")] == []
    with DuckDBStorage(store_file) as storage:
        assert len(storage.query_logs_by_time(*DAY, limit=10_000)) == 5_000


BACK_UP_FOR_EVER = """
import itertools, sys, fiberstore
storage = fiberstore.DuckDBStorage(sys.argv[1], read_only=True)
for number in itertools.count():
    storage.backup(f"{sys.argv[2]}/{number}.duckdb")
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_backup_that_is_killed_has_no_name(store_file: Path, tmp_path: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(some_logs(20_000))
    copies = tmp_path / "copies"
    for round_ in range(3):
        (copies / str(round_)).mkdir(parents=True)
        process = subprocess.Popen(
            [sys.executable, "-c", BACK_UP_FOR_EVER, str(store_file), str(copies / str(round_))],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(round_ + 1):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        whole = list((copies / str(round_)).glob("*.duckdb"))
        assert len(whole) > round_
        for path in whole:
            with DuckDBStorage(path, read_only=True) as copy:
                assert len(copy.query_logs_by_time(*DAY, limit=30_000)) == 20_000
