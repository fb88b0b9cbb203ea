"""Several processes: who may have a file, and what a forked child may do with its parent's."""

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import pytest

from fiberstore import (
    AsyncDuckDBStorage,
    DatabaseError,
    DuckDBStorage,
    LogRecord,
    StorageLockedError,
    create_engine,
)
from fiberstore.duckdb import fork_guard
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.testing.concurrency import together
from tests.support.factories import NOON, a_fiber, some_logs

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
# From 3.12 on Python warns of a fork beside threads, which is what these tests are about.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


OPEN = "import sys, fiberstore; fiberstore.DuckDBStorage(sys.argv[1]).init_schema()"


def open_in_another_process(db_file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", OPEN, str(db_file)], capture_output=True, text=True, check=False
    )


def a_holder(db_file: Path) -> subprocess.Popen[str]:
    """Start a process that has the file open until it is told to continue."""
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{OPEN}; print('open', flush=True); input()", str(db_file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    return holder


def in_a_child(work: object) -> int:
    """Run the work in a forked child; return its exit code, negative if a signal ended it."""
    assert callable(work)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        except BaseException:  # noqa: BLE001  # the parent sees the code only
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------- who holds the file


@pytest.mark.slow
def test_the_file_stays_locked_when_a_second_storage_of_the_process_opens_and_closes(
    storage: DuckDBStorage, db_file: Path
) -> None:
    logs = some_logs(1)
    with DuckDBStorage(db_file) as second:
        assert second.write_logs(logs) == 1
    assert "StorageLockedError" in open_in_another_process(db_file).stderr
    assert storage.write_logs(logs) == 0


@pytest.mark.slow
@pytest.mark.parametrize("look", [lambda path: path.read_bytes(), lambda path: path.open("rb").close()])
def test_who_opens_the_file_beside_duckdb_loses_its_lock(
    storage: DuckDBStorage, db_file: Path, look: object
) -> None:
    """Why ``fork_guard.is_open`` is asked first. When this fails, DuckDB has changed its locks."""
    assert callable(look)
    look(db_file)
    assert open_in_another_process(db_file).returncode == 0


@pytest.mark.slow
def test_a_file_that_is_open_is_opened_by_no_other_name(
    storage: DuckDBStorage, db_file: Path, tmp_path: Path
) -> None:
    """Two threads that open one file by two names at once are one thread too many, too."""
    link, number = tmp_path / "other.duckdb", 5
    os.link(db_file, link)
    assert storage.write_logs(some_logs(number)) == number
    for read_only in (False, True):
        with pytest.raises(
            DatabaseError, match=f"{link} is the file .* open as {db_file}; .* Open it by that name"
        ):
            DuckDBStorage(link, read_only=read_only)
    assert "StorageLockedError" in open_in_another_process(db_file).stderr
    assert storage.logs.count() == number
    storage.close()

    both_tried = threading.Barrier(2)

    def open_by(name: Path) -> int | None:
        opened = None
        with suppress(DatabaseError):
            opened = DuckDBStorage(name)
        both_tried.wait()
        if opened is None:
            return None
        with opened:
            return opened.logs.count()

    counts = together([lambda: open_by(db_file), lambda: open_by(link)])
    assert sorted(counts, key=str) == [number, None]


@pytest.mark.slow
def test_the_name_of_a_compacted_file_leads_to_the_new_one(
    storage: DuckDBStorage, db_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.duckdb"
    os.link(db_file, other)
    with pytest.raises(DatabaseError, match="hard link"):
        storage.compact()
    assert storage.write_logs(some_logs(2)) == 2
    other.unlink()
    storage.compact()
    os.link(db_file, other)
    with DuckDBStorage(db_file) as second:
        assert second.logs.count() == 2
    with pytest.raises(DatabaseError, match="open as"):
        DuckDBStorage(other)


WAIT = """
import sys, fiberstore
print("waiting", flush=True)
fiberstore.DuckDBStorage(sys.argv[1], lock_timeout_s=60).init_schema()
"""


TRY_TO_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    for _ in sys.stdin:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("held", flush=True)
        else:
            fcntl.lockf(file, fcntl.LOCK_UN)
            print("free", flush=True)
"""


@pytest.mark.slow
def test_the_file_stays_locked_while_threads_open_and_close_it(db_file: Path) -> None:
    DuckDBStorage(db_file).close()
    other = subprocess.Popen(
        [sys.executable, "-c", TRY_TO_LOCK, str(db_file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    one_at_a_time = threading.Lock()

    def look() -> str:
        with one_at_a_time:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write("look\n")
            other.stdin.flush()
            return other.stdout.readline()

    def open_and_look() -> set[str]:
        found = set()
        for _ in range(60):
            with DuckDBStorage(db_file):
                found.add(look())
        return found

    assert set().union(*together([open_and_look] * 3)) == {"held\n"}
    assert look() == "free\n"
    other.communicate()


@needs_fork
@forks
def test_a_child_leaves_a_database_in_memory_that_is_idle_to_its_parent() -> None:
    engine = create_engine(":memory:")
    assert in_a_child(lambda: True) == 0
    engine.dispose()


@pytest.mark.slow
@needs_fork
@forks
def test_a_fork_while_a_thread_opens_and_closes_the_file_ends(db_file: Path) -> None:
    done = threading.Event()

    def open_and_close() -> None:
        while not done.is_set():
            with suppress(StorageLockedError):  # a child has it open
                DuckDBStorage(db_file).close()

    def work() -> bool:
        signal.alarm(30)  # ends a child that waits for ever
        with suppress(DatabaseError):  # the parent has it open, now or at the fork
            DuckDBStorage(db_file).close()
        return True

    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
    thread = threading.Thread(target=open_and_close)
    thread.start()
    try:
        ends = [in_a_child(work) for _ in range(20)]
    finally:
        done.set()
        thread.join()
    assert -signal.SIGALRM not in ends  # DuckDB may crash in such a child (docs/limits.md), but nothing waits


@pytest.mark.slow
def test_a_process_waits_for_the_file_as_long_as_it_is_told(db_file: Path) -> None:
    holder = a_holder(db_file)
    begin_s = time.monotonic()
    with pytest.raises(StorageLockedError):
        DuckDBStorage(db_file, lock_timeout_s=0.3)
    assert time.monotonic() - begin_s >= 0.3
    waiter = subprocess.Popen([sys.executable, "-c", WAIT, str(db_file)], stdout=subprocess.PIPE, text=True)
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == "waiting\n"
    assert waiter.poll() is None
    holder.communicate("\n")
    assert waiter.wait() == 0
    waiter.stdout.close()


@pytest.mark.slow
def test_after_kill_9_of_the_owner_the_next_open_works_at_once(db_file: Path) -> None:
    holder = a_holder(db_file)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with DuckDBStorage(db_file) as storage:
        assert storage.write_logs(some_logs(1)) == 1


@pytest.mark.parametrize("timeout_s", [-1, float("nan")])
def test_a_timeout_is_no_less_than_nothing(db_file: Path, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="lock_timeout_s"):
        DuckDBStorage(db_file, lock_timeout_s=timeout_s)
    assert not db_file.exists()


WRITE_AND_DIE = """
import os, sys, fiberstore
from datetime import UTC, datetime
storage = fiberstore.DuckDBStorage(sys.argv[1])
storage.init_schema()
storage.write_logs([fiberstore.LogRecord(timestamp=datetime.now(UTC), source_id="a", raw_text="b")])
os._exit(9)
"""
READ = """
import sys, fiberstore
with fiberstore.DuckDBStorage(sys.argv[1], read_only=True) as storage, storage.session() as session:
    print(len(session.query(fiberstore.RawLog).all()), flush=True)
    input()
"""


@pytest.mark.slow
def test_readers_share_a_file_with_a_write_ahead_log_and_leave_both_as_they_are(db_file: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(db_file)], check=False)
    wal = db_file.with_name(f"{db_file.name}.wal")
    before = db_file.read_bytes(), wal.read_bytes()
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READ, str(db_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [reader.stdout.readline() for reader in readers if reader.stdout] == ["1\n"] * 2
    assert "StorageLockedError" in open_in_another_process(db_file).stderr  # no writer beside readers
    for reader in readers:
        reader.communicate("\n")
    assert (db_file.read_bytes(), wal.read_bytes()) == before


# ---------------------------------------------------------------- fork and spawn


def refuses(call: object) -> bool:
    assert callable(call)
    try:
        call()
    except DatabaseError as error:
        return "before this process was forked" in str(error)
    return False


@needs_fork
@forks
def test_every_call_of_a_forked_child_is_refused_and_the_parent_goes_on(
    storage: DuckDBStorage, db_file: Path
) -> None:
    log, other = some_logs(2)
    session = storage.session()
    unit = storage.transaction()

    def work() -> bool:
        return all(
            (
                refuses(lambda: storage.get_log(log.log_id)),
                refuses(lambda: storage.write_logs([other])),
                refuses(storage.transaction().__enter__),
                refuses(storage.init_schema),
                refuses(lambda: DuckDBStorage(db_file)),
                refuses(lambda: DuckDBStorage(db_file, read_only=True)),
            )
        )

    with unit as transaction:
        transaction.logs.write_logs([log])
        session.connection()
        assert in_a_child(work) == 0
    session.close()
    assert storage.write_logs([other]) == 1
    storage.close()
    with DuckDBStorage(db_file) as again:
        assert len(again.query_logs_by_time(NOON, NOON.replace(hour=23))) == 2


@needs_fork
@forks
def test_a_forked_child_does_not_wait_for_a_connection_that_its_parent_uses(db_file: Path) -> None:
    with DuckDBStorage(db_file, pool_size=1) as storage, storage.session() as session:
        session.connection()
        assert in_a_child(lambda: refuses(lambda: storage.get_log(some_logs(1)[0].log_id))) == 0


@needs_fork
@forks
def test_what_was_begun_before_a_fork_cannot_be_committed_in_the_child(storage: DuckDBStorage) -> None:
    (log,) = some_logs(1)
    unit = storage.transaction()
    unit.__enter__().logs.write_logs([log])
    assert in_a_child(lambda: refuses(lambda: unit.__exit__(None, None, None))) == 0
    unit.__exit__(None, None, None)
    assert storage.get_log(log.log_id) is not None


FORK_AND_EXIT = """
import os, sys, fiberstore
storage = fiberstore.DuckDBStorage(sys.argv[1])
storage.init_schema()
size = os.path.getsize(sys.argv[1] + ".wal")
if os.fork() == 0:
    sys.exit(7)  # by all destructors, unlike os._exit()
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
assert os.path.getsize(sys.argv[1] + ".wal") == size
storage.init_schema()
print("done")
"""


@pytest.mark.slow
@needs_fork
def test_a_child_that_ends_with_all_destructors_neither_crashes_nor_writes(db_file: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", FORK_AND_EXIT, str(db_file)], capture_output=True, text=True, check=False
    )
    assert answer.stdout == "done\n", answer.stderr


CLOSE_AND_FORK = """
import os, sys, fiberstore
from datetime import UTC, datetime
log = fiberstore.LogRecord(timestamp=datetime.now(UTC), source_id="a", raw_text="b")
with fiberstore.DuckDBStorage(sys.argv[1]) as storage:
    storage.init_schema()
if os.fork() == 0:
    for path in sys.argv[1:]:
        with fiberstore.DuckDBStorage(path) as storage:
            storage.init_schema()
            storage.write_logs([log])
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
with fiberstore.DuckDBStorage(sys.argv[1]) as storage:
    assert storage.write_logs([log]) == 0
print("done")
"""


@pytest.mark.slow
@needs_fork
def test_a_child_of_a_process_that_has_closed_its_stores_may_open_any(db_file: Path, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", CLOSE_AND_FORK, str(db_file), str(tmp_path / "new.duckdb")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.stdout == "done\n", answer.stderr


@needs_fork
@forks
def test_the_async_face_is_refused_too(db_file: Path) -> None:
    import asyncio

    async def body() -> int:
        async with AsyncDuckDBStorage(db_file) as storage:
            await storage.init_schema()

            async def call() -> None:
                await storage.get_log(some_logs(1)[0].log_id)

            return in_a_child(lambda: refuses(lambda: call().send(None)))

    assert asyncio.run(body()) == 0


def write_in_a_child(db_file: Path, logs: list[LogRecord]) -> int:
    with DuckDBStorage(db_file, lock_timeout_s=60) as storage:
        storage.init_schema()
        return storage.write_logs(logs)


@pytest.mark.slow
def test_spawned_processes_take_turns_with_a_file(db_file: Path) -> None:
    work = [(db_file, some_logs(5))] * 3
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert sorted(pool.starmap(write_in_a_child, work, chunksize=1)) == [0, 0, 5]


def test_a_storage_is_not_sent_to_another_process(storage: DuckDBStorage) -> None:
    with pytest.raises(TypeError, match="open it there"):
        pickle.dumps(storage)


@needs_fork
@forks
def test_a_forked_child_closes_no_connection_of_its_parent(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB would write a checkpoint into the parent's file, of which the child has no lock."""
    storage.write_fiber(a_fiber())
    with storage.transaction() as transaction:
        transaction.fibers.close()
    gc.collect()  # what earlier tests have left is closed here and now
    closed_by: list[int] = []
    monkeypatch.setattr(DuckDBConnection, "close", lambda _: closed_by.append(os.getpid()))
    child = os.fork()
    if not child:
        os._exit(closed_by.count(os.getpid()))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_garbage_collector_may_close_a_connection_while_connections_are_looked_up(
    storage: DuckDBStorage,
) -> None:
    pooled = storage.engine.raw_connection()
    pooled.detach()
    connection = pooled.dbapi_connection
    assert connection is not None

    def close_in_the_middle() -> None:
        with fork_guard._lock:
            connection.close()

    thread = threading.Thread(target=close_in_the_middle, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive()
