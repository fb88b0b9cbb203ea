"""A process is killed in a checkpoint, after a commit that ran beside it, and so leaves two logs."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from fiberstore import DamagedFileError, DatabaseError, DuckDBStorage
from fiberstore.cli import main
from fiberstore.doctor import examine
from fiberstore.duckdb.rescue import rescue
from tests.support.factories import a_fiber, some_logs

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_store_with_two_logs_takes_writes_at_once(killed_file: Path) -> None:
    with DuckDBStorage(killed_file) as storage:
        storage.update_fiber(FIBER)
        assert storage.query_fibers_by_type("new") == []
        assert [fiber.fiber_id for fiber in storage.query_fibers_by_type("old")] == [FIBER.fiber_id]


@pytest.mark.slow
def test_a_store_with_two_logs_is_read_as_it_is_by_who_may_only_read(killed_file: Path) -> None:
    before = [path.read_bytes() for path in logs(killed_file)]
    with DuckDBStorage(killed_file, read_only=True) as storage:
        check(storage)
    assert [path.read_bytes() for path in logs(killed_file)] == before


@pytest.mark.slow
def test_a_store_whose_second_log_is_still_empty_opens_too(killed_file: Path) -> None:
    logs(killed_file)[1].write_bytes(b"")
    with DuckDBStorage(killed_file) as storage:
        assert [fiber.fiber_id for fiber in storage.query_fibers_by_type("new")] == [FIBER.fiber_id]
        assert storage.get_log_fibers(LOG.log_id) == []
        assert examine(storage) == []


# ---------------------------------------------------------------- a block that is half written


BLOCK = slice(3 * 4096, 3 * 4096 + 262_144)
PART_BYTES = 4088


def tear(file: Path) -> None:
    """Write into a free part of the block that the headers point to, as a killed checkpoint does."""
    content = bytearray(file.read_bytes())
    free = content.rindex(bytes(PART_BYTES), BLOCK.start, BLOCK.stop)
    content[free : free + PART_BYTES] = b"new" * 1362 + b"ne"
    file.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_store_with_a_torn_block_is_rescued_into_a_copy(killed_file: Path, tmp_path: Path) -> None:
    tear(killed_file)
    before = contents(tmp_path)
    with pytest.raises(DamagedFileError, match="fiberstore db rescue"):
        DuckDBStorage(killed_file)
    assert rescue(killed_file, tmp_path / "rescued.duckdb") == []
    assert contents(tmp_path) == before | {"rescued.duckdb": (tmp_path / "rescued.duckdb").read_bytes()}
    with DuckDBStorage(tmp_path / "rescued.duckdb") as storage:
        check(storage)
        assert storage.write_logs(some_logs(1)) == 1


@pytest.mark.slow
def test_the_command_rescues_too(
    killed_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tear(killed_file)
    with pytest.raises(SystemExit) as caught:
        main(["db", "rescue", "--db", str(killed_file), str(tmp_path / "rescued.duckdb")])
    assert (caught.value.code, capsys.readouterr().out) == (
        0, f"repaired: {tmp_path / 'rescued.duckdb'} is a copy that opens\n"
    )  # fmt: skip


@pytest.mark.slow
def test_other_damage_is_not_covered_up(killed_file: Path, tmp_path: Path) -> None:
    with DuckDBStorage(killed_file):
        pass  # no checkpoint is running any more
    tear(killed_file)
    with pytest.raises(DamagedFileError):
        rescue(killed_file, tmp_path / "rescued.duckdb")
    assert not (tmp_path / "rescued.duckdb").exists()


@pytest.mark.slow
def test_damage_beside_the_torn_block_is_not_covered_up(killed_file: Path, tmp_path: Path) -> None:
    tear(killed_file)
    content = bytearray(killed_file.read_bytes())
    for block in range(1, (len(content) - BLOCK.start) // (BLOCK.stop - BLOCK.start)):
        content[BLOCK.start + block * 262_144 + 5_000] ^= 0xFF
    killed_file.write_bytes(content)
    with pytest.raises(DatabaseError):
        rescue(killed_file, tmp_path / "rescued.duckdb")
    assert not (tmp_path / "rescued.duckdb").exists()


@pytest.mark.slow
def test_a_store_that_opens_needs_no_rescue(killed_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="opens as it is; `fiberstore db backup` copies it"):
        rescue(killed_file, tmp_path / "rescued.duckdb")
    tear(killed_file)
    (tmp_path / "taken").touch()
    with pytest.raises(DatabaseError, match="exists already"):
        rescue(killed_file, tmp_path / "taken")
