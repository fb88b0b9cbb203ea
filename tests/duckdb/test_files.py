"""Files, processes and settings: what may be opened, by whom, and what survives."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from fiberstore import (
    ConflictError,
    DamagedFileError,
    DatabaseError,
    DuckDBStorage,
    FiberMembership,
    SerializationError,
    StorageLockedError,
    create_engine,
)
from fiberstore.sql.translate import translate_errors
from tests.support.factories import NOON, a_fiber, some_logs


def in_another_process(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


OPEN = "import sys, fiberstore; fiberstore.DuckDBStorage(sys.argv[1], read_only=sys.argv[2] == 'True')"


@pytest.mark.slow
@pytest.mark.parametrize("read_only", [False, True])
def test_a_second_process_is_told_who_holds_the_file(
    storage: DuckDBStorage, db_file: Path, read_only: bool
) -> None:
    answer = in_another_process(OPEN, db_file, read_only)
    assert "StorageLockedError" in answer.stderr
    assert f"{db_file} is held by process {os.getpid()}" in answer.stderr


def test_the_lock_error_names_file_and_owner(db_file: Path) -> None:
    program = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('open', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(db_file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(StorageLockedError) as caught:
        DuckDBStorage(db_file)
    assert (caught.value.path, caught.value.owner_pid) == (str(db_file), holder.pid)
    holder.communicate("\n")
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()


WRITE_AND_DIE = """
import os, signal, sys
from datetime import UTC, datetime
from uuid import UUID
from fiberstore import *
storage = DuckDBStorage(sys.argv[1])
storage.init_schema()
noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
fiber = FiberRecord(
    fiber_id=UUID(int=1), fiber_type="a", config_version=1, first_activity=noon, last_activity=noon
)
storage.write_fiber(fiber)
logs = [LogRecord(timestamp=noon, source_id="a", raw_text=str(n)) for n in range(1000)]
storage.write_logs(logs)
storage.write_memberships(
    FiberMembership(log_id=log.log_id, fiber_id=UUID(int=1), config_version=1) for log in logs
)
storage.update_fiber(fiber.model_copy(update={"closed": True}))
session = storage.session()
LogRepository(session).write_logs([LogRecord(timestamp=noon, source_id="a", raw_text="not committed")])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9_and_nothing_else_does(db_file: Path) -> None:
    assert in_another_process(WRITE_AND_DIE, db_file).returncode == -signal.SIGKILL
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        fiber = storage.get_fiber(UUID(int=1))
        assert fiber is not None
        assert fiber.closed
        assert len(storage.get_fiber_logs(UUID(int=1))) == 1000
        assert len(storage.query_logs_by_time(NOON, NOON, limit=2000)) == 1000


@pytest.mark.slow
def test_several_processes_may_read_one_file(store_file: Path) -> None:
    with DuckDBStorage(store_file, read_only=True) as storage:
        assert in_another_process(OPEN, store_file, True).returncode == 0
        assert storage.query_logs_by_time(NOON, NOON) == []


def test_a_read_only_store_reads_and_refuses_to_write(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        storage.write_logs(some_logs(3))
    before = db_file.read_bytes()
    with DuckDBStorage(db_file, read_only=True) as storage:
        storage.init_schema()
        with pytest.raises(DatabaseError, match="read-only"):
            storage.write_logs(some_logs(1))
        with pytest.raises(DatabaseError, match="read-only"):
            storage.write_fiber(a_fiber())
        assert len(storage.query_logs_by_time(NOON, NOON + timedelta(days=1))) == 3
    assert db_file.read_bytes() == before


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("missing/store.duckdb", "does not exist; create it"),
        (".", "is a folder"),
        ("text.log", "not a DuckDB database"),
        ("short", "not a DuckDB database"),
        ("other.sqlite", "not a DuckDB database"),
    ],
)
def test_what_is_no_database_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.log").write_text("a log, no database\n" * 100)
    Path("short").write_bytes(b"x")
    Path("other.sqlite").write_bytes(b"SQLite format 3\0" + bytes(4096))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DatabaseError, match=complaint):
        DuckDBStorage(target)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with DuckDBStorage("store.duckdb") as storage:
        storage.init_schema()
        monkeypatch.chdir(tmp_path / "elsewhere")
        with storage.session() as session:
            session.connection()
            assert storage.write_logs(some_logs(1)) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "target",
    ["", "postgresql://host/db", "sqlite:///x.db", "://", "duckdb://store.duckdb", "duckdb://u:p@h/x"],
)
def test_a_target_that_is_no_duckdb_database_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"target|supported|URL|host"):
        DuckDBStorage(target)


@pytest.mark.parametrize("config_version", [-1, 2**64, True, 1.5, "7"])
def test_config_version_is_checked(config_version: int) -> None:
    with pytest.raises(ValueError, match="config_version"):
        DuckDBStorage(":memory:", config_version=config_version)


def test_engine_arguments_are_checked(db_file: Path) -> None:
    for arguments in (
        {"pool_size": 0},
        {"threads": 0},
        {"memory_limit_bytes": -1},
        {"checkpoint_threshold_bytes": -1},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at least"):
            create_engine(db_file, **arguments)  # type: ignore[arg-type]
    assert not db_file.exists()


def test_settings_reach_duckdb(db_file: Path) -> None:
    engine = create_engine(
        f"duckdb:///{db_file}?preserve_insertion_order=false",
        threads=1, memory_limit_bytes=500_000_000, checkpoint_threshold_bytes=100_000_000,
    )  # fmt: skip
    with engine.connect() as connection:
        names = ("threads", "memory_limit", "checkpoint_threshold", "preserve_insertion_order")
        settings = [str(connection.scalar(sa.text(f"SELECT current_setting('{name}')"))) for name in names]
    engine.dispose()
    assert settings[0] == "1"
    assert settings[1:3] == ["476.8 MiB", "95.3 MiB"]
    assert settings[3].lower() == "false"


def test_a_store_is_checkpointed_every_128_mib_and_pages_look_up_wide_columns_late(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage, storage.engine.connect() as connection:
        names = ("checkpoint_threshold", "late_materialization_max_rows")
        settings = [str(connection.scalar(sa.text(f"SELECT current_setting('{name}')"))) for name in names]
    assert settings == ["128.0 MiB", "10000"]


def test_a_database_in_memory_is_not_read_only() -> None:
    with pytest.raises(ValueError, match="read_only"):
        DuckDBStorage(":memory:", read_only=True)


def test_an_unknown_setting_is_refused(db_file: Path) -> None:
    with pytest.raises(DatabaseError, match="no_such_setting"):
        DuckDBStorage(f"duckdb:///{db_file}?no_such_setting=1")


def test_in_memory_stores_are_apart_and_shared_by_their_threads() -> None:
    with DuckDBStorage(":memory:") as one, DuckDBStorage(":memory:") as other:
        one.init_schema()
        other.init_schema()
        with ThreadPoolExecutor(4) as threads:
            assert sum(threads.map(lambda log: one.write_logs([log]), some_logs(20))) == 20
        assert len(one.query_logs_by_time(NOON, NOON + timedelta(days=1))) == 20
        assert other.query_logs_by_time(NOON, NOON + timedelta(days=1)) == []


@pytest.mark.parametrize("target", [":memory:", "store.duckdb"])
def test_a_closed_storage_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    storage = DuckDBStorage(target)
    storage.init_schema()
    storage.close()
    with pytest.raises(DatabaseError, match="closed"):
        storage.get_log(uuid4())
    storage.close()


def test_everything_but_backups_works_without_access_to_the_outside(db_file: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    logs, gone, kept = some_logs(100), a_fiber(), a_fiber()
    with DuckDBStorage(f"duckdb:///{db_file}?enable_external_access=false") as storage:
        storage.init_schema()
        assert [storage.write_logs(logs), storage.write_logs(logs)] == [100, 0]
        with storage.transaction() as transaction:
            assert transaction.fibers.write_fibers([gone, kept]) == 2
            transaction.memberships.write_memberships(
                FiberMembership(log_id=log.log_id, fiber_id=gone.fiber_id, config_version=1) for log in logs
            )
            transaction.fibers.merge_fibers({gone.fiber_id: kept.fiber_id})
        assert len(storage.get_fiber_logs(kept.fiber_id)) == 100
        assert storage.stats().rows_written >= 100 + 2 + 100
        with storage.session() as session, pytest.raises(DBAPIError, match="Permission Error"):
            session.execute(sa.text(f"SELECT * FROM read_csv('{tmp_path}/secret.csv')"))
        with pytest.raises(DatabaseError, match="disabled"):
            storage.backup(tmp_path / "copy.duckdb")
        assert storage.write_logs(some_logs(1)) == 1
    assert [path.name for path in tmp_path.glob("*copy*")] == []


def test_nothing_is_downloaded_by_itself(storage: DuckDBStorage) -> None:
    with storage.engine.connect() as connection:
        setting = connection.scalar(sa.text("SELECT current_setting('autoinstall_known_extensions')"))
    assert setting is False


LINKED = """
import os, sys, fiberstore
from datetime import UTC, datetime
storage = fiberstore.DuckDBStorage(sys.argv[1])
storage.init_schema()
storage.write_logs([fiberstore.LogRecord(timestamp=datetime.now(UTC), source_id="a", raw_text="b")])
os._exit(9)
"""


@pytest.mark.slow
def test_a_link_to_a_store_is_that_store(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link, real = tmp_path / "store.duckdb", tmp_path / "data" / "store.duckdb"
    link.symlink_to(real)
    assert in_another_process(LINKED, link).returncode == 9
    assert [path.name for path in tmp_path.iterdir() if "wal" in path.name] == []
    for path in (link, real):
        with DuckDBStorage(path) as storage, storage.session() as session:
            assert session.scalar(sa.text("SELECT count(*) FROM raw_logs")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "write: No space left on device",
        "Corrupt database file",
        'Could not set lock on file "x" (PID 1)',
    ],
)
def test_data_that_reads_like_an_error_is_not_taken_for_one(storage: DuckDBStorage, text: str) -> None:
    with storage.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE seen (message VARCHAR PRIMARY KEY)"))
    insert = sa.text("INSERT INTO seen VALUES (:text)").bindparams(text=text)
    with pytest.raises(ConflictError), storage.transaction() as transaction:
        transaction.session.execute(insert)
        with storage.engine.begin() as connection:
            connection.execute(insert)
    cast = sa.text("SELECT CAST(:text AS INTEGER)").bindparams(text=text)
    with pytest.raises(SerializationError), translate_errors(), storage.session() as session:
        session.execute(cast)
    with pytest.raises(DatabaseError) as caught, translate_errors(), storage.engine.begin() as connection:
        connection.execute(insert)
    assert type(caught.value) is DatabaseError
    assert "free some space" not in str(caught.value)


@pytest.mark.slow
def test_a_store_in_a_folder_of_any_name_is_found_locked(tmp_path: Path) -> None:
    for name in ("two\nlines", "No space left on device", "Corrupt database file"):
        (tmp_path / name).mkdir()
        with DuckDBStorage(tmp_path / name / "s.duckdb") as storage:
            storage.init_schema()
            answer = in_another_process(OPEN, tmp_path / name / "s.duckdb", False)
            assert "fiberstore.errors.StorageLockedError" in answer.stderr


def test_damage_in_a_folder_of_any_name_is_damage(tmp_path: Path) -> None:
    (tmp_path / "No space left on device").mkdir()
    path = tmp_path / "No space left on device" / "s.duckdb"
    with DuckDBStorage(path) as storage:
        storage.init_schema()
    os.truncate(path, 20_000)
    with pytest.raises(DamagedFileError, match="No space left on device"):
        DuckDBStorage(path)


def modes_beside(path: Path) -> dict[str, int]:
    return {
        found.name.removeprefix(path.name): found.stat().st_mode & 0o777
        for found in path.parent.iterdir()
        if found != path
    }


def test_who_may_not_read_a_store_may_not_read_what_lies_beside_it(store_file: Path) -> None:
    store_file.chmod(0o600)
    with DuckDBStorage(store_file) as storage:
        for logs in (some_logs(1), some_logs(1)):
            storage.write_logs(logs)
            assert modes_beside(store_file) == {".wal": 0o600, ".tmp": 0o700}
            with storage.engine.connect() as connection:
                connection.exec_driver_sql("CHECKPOINT")
        with storage.transaction() as transaction:
            transaction.fibers.write_fiber(a_fiber())
        assert modes_beside(store_file) == {".wal": 0o600, ".tmp": 0o700}
    assert modes_beside(store_file) == {}


def test_a_log_that_others_may_read_is_closed_to_them_by_the_next_write(store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(some_logs(1))
        store_file.chmod(0o640)
        storage.write_logs(some_logs(1))
        assert modes_beside(store_file)[".wal"] == 0o640
