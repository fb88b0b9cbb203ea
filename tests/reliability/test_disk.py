"""Disk trouble: full disks, folders without permission, damaged and lost files.

Each ends in a named error and leaves the files; what was acknowledged is there, or it is said that it is not.
"""

import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import sqlalchemy as sa

from fiberstore import DamagedFileError, DatabaseError, DuckDBStorage, StorageError
from fiberstore.duckdb import wal as database_files
from tests.support import disk_programs
from tests.support.factories import NOON, some_logs
from tests.support.parameters import parametrize_mostly_slow

ENTRY_HEAD_BYTES = 16
HEADERS_BYTES = 3 * 4096
LONG_TIME = timedelta(days=30)


def run(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", disk_programs.__name__, program, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip


def answer_of(program: str, *arguments: object, returncode: int = 0) -> Any:  # noqa: ANN401  # JSON
    finished = run(program, *arguments)
    assert finished.returncode == returncode, finished.stderr
    return json.loads(finished.stdout)


class Files:
    """The bytes of a database of two checkpoints, and of the log that goes with it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "source.duckdb"
        assert run("fill", self.path).returncode == -signal.SIGKILL
        self.database = self.path.read_bytes()
        self.log = self.path.with_name("source.duckdb.wal").read_bytes()
        self.entries = list(entries_of(self.log))

    def put(self, path: Path, database: bytes | None = None, log: bytes | None = None) -> None:
        for name, content in (("", database or self.database), (".wal", self.log if log is None else log)):
            path.with_name(path.name + name).write_bytes(content)


def entries_of(log: bytes) -> Iterator[int]:
    position = log.index(b"\xff\xff") + 2
    while position < len(log):
        yield position
        position += ENTRY_HEAD_BYTES + struct.unpack_from("<Q", log, position)[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("source"))


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def log_of(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def batches_in(path: Path) -> Counter[int]:
    with DuckDBStorage(path) as storage:
        found = storage.query_logs_by_time(NOON, NOON + LONG_TIME, limit=1_000_000)
    return Counter(log.log_id.int // 1_000_000 for log in found)


def refused(path: Path) -> DamagedFileError:
    """Open it, expect it to be refused, and to be left as it is."""
    before = content_of(path.parent)
    with pytest.raises(DamagedFileError) as caught:
        DuckDBStorage(path)
    assert content_of(path.parent) == before
    return caught.value


# Write-ahead logs


@pytest.mark.slow
def test_a_log_cut_at_any_byte_is_a_torn_one(files: Files, db_file: Path) -> None:
    files.put(db_file)
    log = log_of(db_file)
    for size_bytes in range(len(files.log), -1, -1):
        os.truncate(log, size_bytes)
        database_files.check_files(db_file)


def test_a_torn_log_opens_with_what_it_holds(files: Files, db_file: Path) -> None:
    for cut in (0, 1, 5, 20, files.entries[0], files.entries[0] + 3, files.entries[-1], len(files.log) - 1):
        files.put(db_file, log=files.log[:cut])
        found = batches_in(db_file)
        assert (found[0], found[1]) == (100, 100)
        assert found[2] == (100 if cut >= files.entries[-1] else 0)


@pytest.mark.slow
def test_damage_to_the_length_of_any_entry_is_refused(files: Files, db_file: Path) -> None:
    files.put(db_file)
    log = log_of(db_file)
    for number, position in enumerate(files.entries):
        damaged = bytearray(files.log)
        damaged[position + 1 + number % 7] ^= 0xFF
        log.write_bytes(damaged)
        error = refused(db_file)
        assert error.path == str(log)
        assert f"the entry at byte {position} is damaged, and commits follow it" in str(error)
        for advice in ("Keep copies", "backup", "last WAL checkpoint", "move"):
            assert advice in str(error)


def test_zeros_in_the_place_of_an_entry_are_refused(files: Files, db_file: Path) -> None:
    first, second = files.entries[2:4]
    length = (second - first) // ENTRY_HEAD_BYTES * ENTRY_HEAD_BYTES  # as many whole entries of length zero
    files.put(db_file, log=files.log[:first] + bytes(length) + files.log[second:])
    assert "commits follow it" in str(refused(db_file))


def test_a_damaged_header_is_refused_or_does_no_harm(files: Files, db_file: Path) -> None:
    for position in range(files.entries[0]):
        damaged = bytearray(files.log)
        damaged[position] ^= 4
        files.put(db_file, log=bytes(damaged))
        assert refused(db_file).path == str(log_of(db_file))


@parametrize_mostly_slow(
    "garbage", [b"garbage", bytes(3), bytes(5000), b"x" * 5000, b"d\0be\0\2" + b"y" * 99]
)
def test_what_is_no_log_is_refused(files: Files, db_file: Path, garbage: bytes) -> None:
    files.put(db_file, log=garbage)
    assert "does not begin with the header of a log" in str(refused(db_file))


@pytest.mark.slow
def test_a_log_of_another_file_is_refused(files: Files, db_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    shutil.rmtree(tmp_path / "other")
    files.put(db_file, log=other.log)
    error = refused(db_file)
    assert error.path == str(log_of(db_file))
    assert "does not match" in str(error)


def test_a_log_of_another_time_is_refused(files: Files, db_file: Path) -> None:
    files.put(db_file)
    with DuckDBStorage(db_file) as storage:
        for _ in range(2):
            storage.write_logs(some_logs(1))
            with storage.engine.connect() as connection:
                connection.execute(sa.text("CHECKPOINT"))
    newer = db_file.read_bytes()
    files.put(db_file, database=newer)
    assert "WAL checkpoint iteration does not match" in str(refused(db_file))


@pytest.mark.parametrize("database", [None, b""])
def test_a_log_without_its_file_is_kept(files: Files, db_file: Path, database: bytes | None) -> None:
    if database is not None:
        db_file.write_bytes(database)
    log_of(db_file).write_bytes(files.log)
    assert refused(db_file).path == str(db_file)


def test_the_log_of_a_checkpoint_without_the_one_it_continues_is_kept(files: Files, db_file: Path) -> None:
    db_file.write_bytes(files.database)
    db_file.with_name(db_file.name + ".wal.checkpoint").write_bytes(files.log)
    assert refused(db_file).path == str(log_of(db_file))
    log_of(db_file).touch()
    assert refused(db_file).path == str(log_of(db_file))


def test_the_log_of_a_checkpoint_is_looked_at_too(files: Files, db_file: Path) -> None:
    files.put(db_file)
    beside = db_file.with_name(db_file.name + ".wal.checkpoint")
    beside.write_bytes(b"garbage" * 10)
    assert refused(db_file).path == str(beside)


@pytest.mark.parametrize("log", [None, b""])
def test_limit_a_log_that_is_gone_cannot_be_missed(files: Files, db_file: Path, log: bytes | None) -> None:
    db_file.write_bytes(files.database)
    if log is not None:
        log_of(db_file).write_bytes(log)
    assert batches_in(db_file) == {0: 100, 1: 100}


def test_a_log_that_is_written_meanwhile_is_not_refused(
    files: Files, db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(files.log)
    damaged[files.entries[1] + 6] ^= 0xFF
    files.put(db_file, log=bytes(damaged))
    look = database_files._damage

    def look_while_it_is_written(file: BinaryIO, size_bytes: int) -> str | None:
        with log_of(db_file).open("ab") as log:
            log.write(b"more")
        return look(file, size_bytes)

    refused(db_file)
    monkeypatch.setattr(database_files, "_damage", look_while_it_is_written)
    database_files.check_files(db_file)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DamagedFileError("a.wal", "torn")))  # noqa: S301
    assert (error.path, error.damage, str(error)) == ("a.wal", "torn", str(DamagedFileError("a.wal", "torn")))


# The lock


# Database files


@pytest.mark.parametrize("size_bytes", [12, 4096, HEADERS_BYTES - 1])
def test_a_file_that_ends_within_its_header_is_refused(files: Files, db_file: Path, size_bytes: int) -> None:
    db_file.write_bytes(files.database[:size_bytes])
    error = refused(db_file)
    assert error.path == str(db_file)
    assert "remove it" in str(error)


def test_a_file_that_was_cut_is_refused(files: Files, db_file: Path) -> None:
    files.put(db_file, database=files.database[:HEADERS_BYTES])
    assert refused(db_file).path == str(db_file)


@pytest.mark.slow
def test_damage_in_a_block_is_not_taken_for_a_conflict(files: Files, db_file: Path) -> None:
    classes = set()
    for position in range(HEADERS_BYTES + 4000, len(files.database), 2**18):
        damaged = bytearray(files.database)
        damaged[position] ^= 1
        files.put(db_file, database=bytes(damaged))
        try:
            with DuckDBStorage(db_file) as storage:
                disk_programs.read_all(storage)
        except StorageError as error:
            classes.add(type(error))
    assert classes == {DamagedFileError}


class Trials:
    """A process that reads databases, each in a child of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", disk_programs.__name__, "trials"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read(self, path: Path) -> dict[str, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer: dict[str, str] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def trials() -> Iterator[Trials]:
    trials = Trials()
    yield trials
    trials.close()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("area", ["header", "data", "log", "cut"])
def test_random_damage_changes_nothing_or_is_named(
    files: Files, db_file: Path, trials: Trials, long_form: bool, area: str
) -> None:
    files.put(db_file)
    whole = trials.read(db_file)
    assert whole["stage"] == "done"
    seed = random.randrange(2**32)
    choose = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for trial in range(1000 if long_form else 40):
        if trial >= 10 and not long_form and outcomes["open"] + outcomes["read"]:
            break
        database, log = bytearray(files.database), bytearray(files.log)
        first, last, target = {
            "header": (0, HEADERS_BYTES, database),
            "data": (HEADERS_BYTES, len(database), database),
            "log": (0, len(log), log),
            "cut": (1, len(database), database),
        }[area]
        position = choose.randrange(first, last)
        if area == "log" and choose.random() < 0.5:  # lengths are few among the bytes
            position = choose.choice(files.entries) + choose.randrange(8)
        if area == "cut":
            del target[position:]
        else:
            target[position] ^= 1 << choose.randrange(8)
        files.put(db_file, database=bytes(database), log=bytes(log))
        outcome = trials.read(db_file)
        where = f"{area} {position}, seed {seed}: {outcome}"
        if outcome["stage"] == "done":
            assert outcome == whole, where
        else:
            assert outcome["error"] == "DamagedFileError", where
            assert db_file.exists(), where
            assert log_of(db_file).exists() or outcome["stage"] == "read", where
            if outcome["stage"] == "open":
                assert (db_file.read_bytes(), log_of(db_file).read_bytes()) == (
                    bytes(database),
                    bytes(log),
                ), where
        outcomes[outcome["stage"]] += 1
    assert outcomes["open"] + outcomes["read"] > 0, outcomes


# Full disks


@pytest.mark.slow
@pytest.mark.parametrize("size_bytes", [0, 100, 5000])
def test_a_storage_that_finds_no_space_to_begin_says_so(db_file: Path, size_bytes: int) -> None:
    name, text = answer_of("create_in", db_file, size_bytes)
    assert name == "DatabaseError"
    assert "free some space" in text
    with pytest.raises(DatabaseError, match=r"remove it|give another path"):
        DuckDBStorage(db_file)


def check_full_disk(answer: dict[str, Any], path: Path) -> None:
    """Acknowledged rows are there, whole; those of failed calls are not; the errors say what to do."""
    assert answer["acknowledged"]
    assert answer["raised"]
    expected = set(answer["acknowledged"])
    for batch, (name, text) in answer["raised"].items():
        assert name == "DatabaseError"
        assert re.search(r"was stored; free some space|close the storage and open it again", text)
        if "What was written was stored" in text:
            expected.add(int(batch))
    assert any("free some space" in text for _, text in answer["raised"].values())
    found = batches_in(path)
    found.pop(999_999, None)
    assert found == dict.fromkeys(expected, 50)


FULL = [("kill", 1), ("kill", 4), ("close", 4), ("reopen", 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("end", "threads"), FULL)
def test_a_disk_that_is_full_at_a_commit(db_file: Path, end: str, threads: int) -> None:
    returncode = -signal.SIGKILL if end == "kill" else 0
    answer = answer_of("write_until_full", db_file, 2_000_000, "1GB", threads, end, returncode=returncode)
    assert answer["read"] == 50 * len(answer["acknowledged"])  # reads go on
    check_full_disk(answer, db_file)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "threads"), FULL)
def test_a_disk_that_is_full_at_a_checkpoint(db_file: Path, end: str, threads: int) -> None:
    returncode = -signal.SIGKILL if end == "kill" else 0
    answer = answer_of("write_until_full", db_file, 2_000_000, "300KB", threads, end, returncode=returncode)
    assert "close the storage and open it again" in answer["read"]
    assert answer.get("written after") == (1 if end == "reopen" else None)
    check_full_disk(answer, db_file)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", ["1GB", "300KB"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_small_disk_that_runs_full(small_disk: Path, threshold: str, threads: int) -> None:
    path = small_disk / "store.duckdb"
    answer = answer_of(
        "write_until_full", path, 10**9, threshold, threads, "kill", returncode=-signal.SIGKILL
    )
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    check_full_disk(answer, path)


# Folders without permission


@pytest.mark.slow
def test_a_folder_that_may_not_be_written(files: Files) -> None:
    folder = Path(tempfile.mkdtemp())  # tmp_path is in a folder that nobody else may enter
    try:
        path = folder / "store.duckdb"
        files.put(path)
        before = content_of(folder)
        path.chmod(0o666)
        log_of(path).chmod(0o444)
        folder.chmod(0o555)
        answer = answer_of("as_nobody", path)
        assert content_of(folder) == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert answer["create"][0] == answer["write"][0] == "DatabaseError"
    assert "Permission denied" in answer["create"][1]
    assert "Permission denied" in answer["write"][1]
    assert answer["read only"] is None
    assert answer["rows"] == 300


# Kills


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_log_that_kill_9_leaves_is_refused(db_file: Path, long_form: bool) -> None:
    acknowledged: set[int] = set()
    sizes = Counter[str]()
    for kill in range(300 if long_form else 6):
        process = subprocess.Popen(
            [
                sys.executable, "-m", disk_programs.__name__,
                "write_and_checkpoint", db_file, str(kill * 10_000),
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(random.randrange(0 if acknowledged else 1, 60)):  # the first waits for the tables
            acknowledged.add(int(process.stdout.readline()))
        process.kill()
        acknowledged |= {int(line) for line in process.communicate()[0].splitlines()}
        sizes.update(path.name for path in db_file.parent.iterdir() if path.stat().st_size)
        found = batches_in(db_file)
        assert set(found.values()) <= {7}
        assert acknowledged <= set(found)
    assert sizes[log_of(db_file).name], sizes
