"""A process is killed in a checkpoint, after a commit that ran beside it, and so leaves two logs."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from samples import a_fiber, some_logs

from fiberstore import DuckDBStorage
from fiberstore.doctor import examine

(LOG,) = some_logs(1)
FIBER = a_fiber(fiber_type="old")
NEW_FIBER_IDS_SQL = "SELECT fiber_id FROM fibers WHERE fiber_type = 'new'"
# The checkpoint sleeps once it has written the rows of a table that has new ones.
VICTIM = """
import os, pathlib, signal, sys, threading
import duckdb

file, log_id, fiber_id = sys.argv[1:]
log = pathlib.Path(file + ".wal")
first = duckdb.connect(file)
first.execute("UPDATE fibers SET fiber_type = 'new'")
first.execute("INSERT INTO fibers SELECT * REPLACE (uuid() AS fiber_id, 'other' AS fiber_type) FROM fibers")
second = first.cursor()
second.execute("BEGIN")
second.execute("INSERT INTO fiber_memberships VALUES (?, ?, 1)", [log_id, fiber_id])
first.execute("SET debug_checkpoint_scan_sleep_ms = 100000")
before = log.stat().st_size
threading.Thread(target=first.cursor().execute, args=("CHECKPOINT",), daemon=True).start()
while log.stat().st_size == before:
    pass  # the checkpoint has not begun: it will say so in the log
second.execute("COMMIT")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed_file(db_file: Path) -> Path:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        storage.write_logs([LOG])
        storage.write_fiber(FIBER)
    command = [sys.executable, "-c", VICTIM, str(db_file), str(LOG.log_id), str(FIBER.fiber_id)]
    subprocess.run(command, timeout=60, check=False)
    assert [path.stat().st_size > 0 for path in logs(db_file)] == [True, True]
    return db_file


def logs(file: Path) -> list[Path]:
    return [file.with_name(file.name + suffix) for suffix in (".wal", ".wal.checkpoint")]


def check(storage: DuckDBStorage) -> None:
    (fiber,) = storage.query_fibers_by_type("new")
    assert fiber.fiber_id == FIBER.fiber_id
    assert storage.query_fibers_by_type("old") == []
    assert storage.get_log_fibers(LOG.log_id) == [FIBER.fiber_id]
    assert [log.log_id for log in storage.get_fiber_logs(FIBER.fiber_id)] == [LOG.log_id]
    assert len(storage.query_fibers_by_type("other")) == 1


def test_when_this_fails_duckdb_is_mended_and_need_not_be_opened_twice(killed_file: Path) -> None:
    with (
        duckdb.connect(killed_file) as connection,
        pytest.raises(duckdb.InternalException, match="shared_ptr that is NULL"),
    ):
        connection.execute(NEW_FIBER_IDS_SQL)
    with duckdb.connect(killed_file) as connection:
        assert connection.execute(NEW_FIBER_IDS_SQL).fetchall() == [(FIBER.fiber_id,)]


def test_a_store_with_two_logs_opens_and_holds_what_was_committed(killed_file: Path) -> None:
    with DuckDBStorage(killed_file) as storage:
        check(storage)
        assert examine(storage) == []
    with DuckDBStorage(killed_file) as storage:
        check(storage)


def test_a_store_with_two_logs_takes_writes_at_once(killed_file: Path) -> None:
    with DuckDBStorage(killed_file) as storage:
        storage.update_fiber(FIBER)
        assert storage.query_fibers_by_type("new") == []
        assert [fiber.fiber_id for fiber in storage.query_fibers_by_type("old")] == [FIBER.fiber_id]


def test_a_store_with_two_logs_is_read_as_it_is_by_who_may_only_read(killed_file: Path) -> None:
    before = [path.read_bytes() for path in logs(killed_file)]
    with DuckDBStorage(killed_file, read_only=True) as storage:
        check(storage)
    assert [path.read_bytes() for path in logs(killed_file)] == before


def test_a_store_whose_second_log_is_still_empty_opens_too(killed_file: Path) -> None:
    logs(killed_file)[1].write_bytes(b"")
    with DuckDBStorage(killed_file) as storage:
        assert [fiber.fiber_id for fiber in storage.query_fibers_by_type("new")] == [FIBER.fiber_id]
        assert storage.get_log_fibers(LOG.log_id) == []
        assert examine(storage) == []
