"""What holds for ``DuckDBStorage`` in particular: lost updates, processes, files, bad input, transactions."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import duckdb
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoResultFound, OperationalError
from sqlalchemy.orm import Session

import fiberstore.dbapi
from fiberstore import (
    ConflictError,
    DatabaseError,
    DuckDBStorage,
    DuplicateError,
    Fiber,
    FiberMembership,
    FiberRecord,
    LogRecord,
    LogRepository,
    NotFoundError,
    RawLog,
    SerializationError,
    StorageLockedError,
    StoredLog,
    create_engine,
)
from fiberstore.dbapi import Connection

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def a_fiber(**fields: object) -> FiberRecord:
    values = {
        "fiber_id": uuid4(), "fiber_type": "request", "config_version": 1, "attributes": {"n": 0},
        "first_activity": NOON, "last_activity": NOON,
    }  # fmt: skip
    return FiberRecord.model_validate(values | fields)


def some_logs(count: int, source_id: str = "api") -> list[LogRecord]:
    return [
        LogRecord(timestamp=NOON + timedelta(seconds=number), source_id=source_id, raw_text=f"line {number}")
        for number in range(count)
    ]


@pytest.fixture
def storage(db_file: Path) -> Iterator[DuckDBStorage]:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        yield storage


# Lost updates


def change_both_ways(storage: DuckDBStorage, fiber_id: UUID) -> None:
    """Let two ORM sessions read a fiber, then change a plain column in one, an indexed one in the other."""
    with storage.session() as one, storage.session() as other:
        first, second = one.get_one(Fiber, fiber_id), other.get_one(Fiber, fiber_id)
        first.closed = True
        second.fiber_type = "retyped"
        one.flush()
        one.commit()
        other.flush()
        other.commit()


def test_two_orm_sessions_cannot_lose_an_update(storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with pytest.raises(OperationalError, match="changed by another transaction"):
        change_both_ways(storage, fiber.fiber_id)
    stored = storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert (stored.closed, stored.fiber_type) == (True, "request")


def interleave(storage: DuckDBStorage, fiber_id: UUID) -> None:
    """Let two open transactions change one fiber, one an indexed column and one a plain one."""
    with storage.engine.connect() as one, storage.engine.connect() as other:
        one.execute(sa.select(Fiber.closed))
        other.execute(sa.select(Fiber.closed))
        one.execute(sa.update(Fiber).where(Fiber.fiber_id == fiber_id).values(closed=True))
        other.execute(sa.update(Fiber).where(Fiber.fiber_id == fiber_id).values(fiber_type="retyped"))
        one.commit()
        other.commit()


def test_without_the_lock_duckdb_loses_an_update(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, DuckDB has mended it, and ``ChangeLock`` can go."""
    fiber = a_fiber()
    storage.write_fiber(fiber)
    monkeypatch.setattr(Connection, "lock_changes", lambda _self: None)
    interleave(storage, fiber.fiber_id)
    stored = storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert (stored.closed, stored.fiber_type) != (True, "retyped")


def test_with_the_lock_the_second_transaction_is_refused(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fiberstore.dbapi, "LOCK_TIMEOUT_S", 0.05)
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with pytest.raises(OperationalError, match="another open transaction"):
        interleave(storage, fiber.fiber_id)
    stored = storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert not stored.closed


def test_counting_by_every_face_at_once_loses_nothing(storage: DuckDBStorage) -> None:
    """Threads raise a counter by ``transaction()`` and by ORM sessions, others retype and close the fiber."""
    fiber = a_fiber()
    storage.write_fiber(fiber)

    def by_transaction(_: int) -> None:
        with storage.transaction() as transaction:
            found = transaction.fibers.get(fiber.fiber_id)
            assert found is not None
            assert isinstance(found.attributes, dict)
            assert isinstance(found.attributes["n"], int)
            raised = found.model_copy(update={"attributes": {"n": found.attributes["n"] + 1}})
            transaction.fibers.update(raised)

    def by_orm(_: int) -> None:
        while True:
            try:
                with storage.session() as session, session.begin():
                    row = session.get_one(Fiber, fiber.fiber_id)
                    assert isinstance(row.attributes, dict)
                    assert isinstance(row.attributes["n"], int)
                    row.attributes = {"n": row.attributes["n"] + 1}
                return
            except OperationalError:
                continue

    def retype(number: int) -> None:
        with storage.session() as session, session.begin():
            session.execute(sa.update(Fiber).values(fiber_type=f"type {number}", closed=number % 2 == 0))

    with ThreadPoolExecutor(6) as threads:
        work = [threads.submit(f, number) for number in range(20) for f in (by_transaction, by_orm, retype)]
        for one in work:
            one.result()
    stored = storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert stored.attributes == {"n": 40}


def test_an_update_inside_a_cte_waits_for_its_turn(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fiberstore.dbapi, "LOCK_TIMEOUT_S", 0.05)
    fiber = a_fiber()
    storage.write_fiber(fiber)
    change = sa.update(Fiber).values(fiber_type="by cte").returning(Fiber.fiber_id).cte()
    with storage.transaction() as transaction:
        transaction.fibers.update(fiber)
        with storage.session() as session, pytest.raises(OperationalError, match="another open transaction"):
            session.execute(sa.select(change))


def test_a_connection_that_is_forgotten_frees_the_lock(storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    storage.write_fiber(fiber)
    connection = storage.engine.raw_connection()
    connection.detach()
    cursor = connection.cursor()
    cursor.execute("UPDATE fibers SET closed = true")
    del cursor, connection
    gc.collect()
    storage.update_fiber(fiber)


def test_readers_are_served_while_writers_wait(db_file: Path) -> None:
    """More writers wait for their turn than the pool has connections."""
    with DuckDBStorage(db_file, pool_size=2) as storage, ThreadPoolExecutor(4) as threads:
        storage.init_schema()
        fiber = a_fiber()
        storage.write_fiber(fiber)
        with storage.transaction():
            waiting = [threads.submit(storage.update_fiber, fiber) for _ in range(4)]
            assert storage.get_fiber(fiber.fiber_id) == fiber
        for update in waiting:
            update.result()


def test_waiting_for_another_transaction_ends(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fiberstore.dbapi, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr("fiberstore.duckdb.RETRY_TIMEOUT_S", 0.0)
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with storage.transaction(), ThreadPoolExecutor(1) as thread:
        late = thread.submit(storage.update_fiber, fiber)
        with pytest.raises(ConflictError, match="another open transaction"):
            late.result()
    storage.update_fiber(fiber)


def test_appends_need_no_lock(storage: DuckDBStorage) -> None:
    with storage.transaction(), ThreadPoolExecutor(1) as thread:
        assert thread.submit(storage.write_logs, some_logs(3)).result() == 3
        thread.submit(storage.write_fiber, a_fiber()).result()


# Units of work


def test_a_transaction_is_stored_whole(storage: DuckDBStorage) -> None:
    logs, fiber = some_logs(3), a_fiber()
    with storage.transaction() as transaction:
        assert transaction.logs.write(logs) == 3
        transaction.fibers.write(fiber)
        transaction.memberships.write(
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in logs
        )
    assert [log.log_id for log in storage.get_fiber_logs(fiber.fiber_id)] == [log.log_id for log in logs]


def test_a_transaction_that_raises_stores_nothing(storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    with pytest.raises(KeyError), storage.transaction() as transaction:
        transaction.logs.write(some_logs(3))
        transaction.fibers.write(fiber)
        raise KeyError
    assert storage.query_logs_by_time(NOON, NOON + timedelta(days=1)) == []
    assert storage.get_fiber(fiber.fiber_id) is None


def test_a_duplicate_leaves_the_transaction_usable(storage: DuckDBStorage) -> None:
    fiber, other = a_fiber(), a_fiber()
    storage.write_fiber(fiber)
    with storage.transaction() as transaction:
        with pytest.raises(DuplicateError):
            transaction.fibers.write(fiber)
        with pytest.raises(NotFoundError):
            transaction.fibers.update(other)
        transaction.fibers.write(other)
    assert storage.get_fiber(other.fiber_id) == other


def test_a_failed_statement_spoils_the_transaction_and_the_next_works(storage: DuckDBStorage) -> None:
    (log,) = some_logs(1)
    with (
        pytest.raises(DatabaseError, match="nothing of it can be kept"),
        storage.transaction() as transaction,
    ):
        transaction.logs.write([log])
        result = transaction.session.execute(
            sa.text(
                "SELECT CAST(CASE WHEN i = 299999 THEN 'x' ELSE '1' END AS INTEGER) FROM range(300000) t(i)"
            )
        )
        with pytest.raises(DBAPIError):
            result.all()
    assert storage.get_log(log.log_id) is None
    assert storage.write_logs([log]) == 1


def test_a_transaction_is_of_no_use_after_its_block(storage: DuckDBStorage) -> None:
    with storage.transaction() as transaction:
        pass
    with pytest.raises(DatabaseError, match="closed"):
        transaction.logs.write(some_logs(1))
    storage.write_fiber(a_fiber())


def test_errors_of_the_application_pass_through_a_transaction(storage: DuckDBStorage) -> None:
    with pytest.raises(NoResultFound), storage.transaction() as transaction:
        transaction.session.execute(sa.select(Fiber.fiber_id)).scalar_one()


def test_tables_of_the_application_do_not_stand_in_the_way(storage: DuckDBStorage) -> None:
    with storage.engine.begin() as connection:
        for name in ("batch", "columns", "rows", "logs", "fiber", "records"):
            connection.execute(sa.text(f"CREATE TABLE {name} AS SELECT * FROM raw_logs"))
    assert storage.write_logs(some_logs(3)) == 3


def test_the_time_zone_of_a_session_changes_nothing(storage: DuckDBStorage) -> None:
    (log,) = some_logs(1)
    storage.write_logs([log])
    with storage.session() as session:
        session.execute(sa.text("SET TimeZone = 'America/New_York'"))
        found = LogRepository(session).get(log.log_id)
    assert found is not None
    assert (found.timestamp, found.timestamp.tzinfo) == (NOON, UTC)


def test_two_transactions_that_write_one_new_fiber_conflict(storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    with pytest.raises(ConflictError), storage.transaction() as transaction:
        transaction.fibers.write(fiber)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(storage.write_fiber, fiber).result()
    assert storage.get_fiber(fiber.fiber_id) == fiber


def test_a_log_committed_after_the_snapshot_is_a_conflict_to_run_again(storage: DuckDBStorage) -> None:
    (log,) = some_logs(1)
    with storage.session() as session:
        repository = LogRepository(session)
        assert repository.get(log.log_id) is None
        assert storage.write_logs([log]) == 1
        with pytest.raises(ConflictError):
            repository.write([log])
        session.rollback()
        assert repository.write([log]) == 0


def test_repositories_work_on_a_session_of_the_application(storage: DuckDBStorage) -> None:
    with Session(storage.engine) as session:
        LogRepository(session, config_version=9).write(some_logs(2))
        session.add(RawLog(log_id=uuid4(), timestamp=NOON, source_id="orm", raw_text="x", config_version=0))
        session.rollback()
        assert LogRepository(session, config_version=9).write(some_logs(2)) == 2
        session.commit()
    assert {log.config_version for log in storage.query_logs_by_time(NOON, NOON + timedelta(days=1))} == {9}


def test_fibers_in_bulk(storage: DuckDBStorage) -> None:
    known, new, other = a_fiber(), a_fiber(attributes=None), a_fiber()
    storage.write_fiber(known)
    changed = known.model_copy(update={"closed": True, "attributes": [1, "ä", None]})
    with storage.transaction() as transaction:
        assert transaction.fibers.write_many([changed, new]) == 1
        assert transaction.fibers.get(known.fiber_id) == known
        assert transaction.fibers.update_many([changed, other]) == 1
    assert storage.get_fiber(known.fiber_id) == changed
    assert storage.get_fiber(new.fiber_id) == new
    assert storage.get_fiber(other.fiber_id) is None
    with storage.transaction() as transaction, pytest.raises(ValueError, match="given twice"):
        transaction.fibers.update_many([known, changed])


def test_merged_fibers_give_their_logs_to_the_survivor(storage: DuckDBStorage) -> None:
    logs = some_logs(3)
    survivor, loser, bystander = a_fiber(), a_fiber(), a_fiber()
    with storage.transaction() as transaction:
        transaction.logs.write(logs)
        transaction.fibers.write_many([survivor, loser, bystander])
        transaction.memberships.write(
            FiberMembership(log_id=logs[number].log_id, fiber_id=fiber.fiber_id, config_version=5)
            for number, fiber in [(0, survivor), (1, loser), (0, loser), (2, bystander)]
        )
    with storage.transaction() as transaction:
        transaction.fibers.merge({loser.fiber_id: survivor.fiber_id})
    assert storage.get_fiber(loser.fiber_id) is None
    assert storage.get_fiber_logs(loser.fiber_id) == []
    assert [log.log_id for log in storage.get_fiber_logs(survivor.fiber_id)] == [
        log.log_id for log in logs[:2]
    ]
    assert storage.get_log_fibers(logs[2].log_id) == [bystander.fiber_id]
    with storage.transaction() as transaction, pytest.raises(ValueError, match="ends itself"):
        transaction.fibers.merge({survivor.fiber_id: bystander.fiber_id, bystander.fiber_id: loser.fiber_id})


# Files and processes


def in_another_process(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


OPEN = "import sys, fiberstore; fiberstore.DuckDBStorage(sys.argv[1], read_only=sys.argv[2] == 'True')"


@pytest.mark.parametrize("read_only", [False, True])
def test_a_second_process_is_told_who_holds_the_file(
    storage: DuckDBStorage, db_file: Path, read_only: bool
) -> None:
    answer = in_another_process(OPEN, db_file, read_only)
    assert "StorageLockedError" in answer.stderr
    assert f"{db_file} is held by process {os.getpid()}" in answer.stderr


def test_the_lock_error_names_file_and_owner(db_file: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{OPEN}; print('open', flush=True); input()", str(db_file), "False"],
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
LogRepository(session).write([LogRecord(timestamp=noon, source_id="a", raw_text="not committed")])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_acknowledged_survives_kill_9_and_nothing_else_does(db_file: Path) -> None:
    assert in_another_process(WRITE_AND_DIE, db_file).returncode == -signal.SIGKILL
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        fiber = storage.get_fiber(UUID(int=1))
        assert fiber is not None
        assert fiber.closed
        assert len(storage.get_fiber_logs(UUID(int=1))) == 1000
        assert len(storage.query_logs_by_time(NOON, NOON, limit=2000)) == 1000


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
        with pytest.raises(ValueError, match="must be at least"):
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


def test_a_batch_with_a_bad_record_stores_nothing(storage: DuckDBStorage) -> None:
    logs: list[LogRecord] = some_logs(6000)
    logs[4999] = "not a record"  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="item 4999 must be a LogRecord, got 'not a record'"):
        storage.write_logs(logs)
    assert storage.query_logs_by_time(NOON, NOON + timedelta(days=1)) == []
    assert storage.write_logs(logs[:4999]) == 4999


@pytest.mark.parametrize(
    ("fields", "error", "complaint"),
    [
        ({"timestamp": NOON.replace(tzinfo=None)}, ValueError, "naive"),
        ({"timestamp": "2024-05-01"}, TypeError, "2024-05-01"),
        ({"raw_text": None}, TypeError, "None"),
        ({"raw_text": "a\0b"}, ValueError, "NUL"),
        ({"source_id": "\ud800"}, ValueError, "surrogate"),
        ({"source_id": 7}, TypeError, "7"),
        ({"log_id": "7"}, TypeError, "UUID"),
        ({"config_version": 1.5}, ValueError, "1.5"),
        ({"config_version": -1}, ValueError, "-1"),
        ({"config_version": 2**64}, ValueError, "18446744073709551616"),
        ({"ingestion_time": None}, TypeError, "None"),
    ],
)
def test_logs_that_skipped_their_validation_are_refused(
    storage: DuckDBStorage, fields: dict[str, object], error: type[Exception], complaint: str
) -> None:
    (log,) = some_logs(1)
    good = StoredLog(**dict(log), ingestion_time=NOON, config_version=0)
    with pytest.raises(error, match=complaint):
        storage.write_logs([*some_logs(3), good.model_copy(update=fields)])
    assert storage.query_logs_by_time(NOON, NOON + timedelta(days=1)) == []
    assert storage.write_logs([good]) == 1


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"closed": None}, ValueError),
        ({"fiber_type": None}, ValueError),
        ({"first_activity": NOON.replace(tzinfo=None)}, ValueError),
        ({"attributes": {1: "key"}}, SerializationError),
        ({"attributes": ("a", "tuple")}, SerializationError),
        ({"config_version": 2**64}, ValueError),
    ],
)
def test_fibers_that_skipped_their_validation_are_refused(
    storage: DuckDBStorage, fields: dict[str, object], error: type[Exception]
) -> None:
    fiber = a_fiber()
    storage.write_fiber(fiber)
    bad = fiber.model_copy(update=fields)
    for write in (storage.update_fiber, storage.write_fiber):
        with pytest.raises(error):
            write(bad)
    with storage.transaction() as transaction:
        with pytest.raises(error):
            transaction.fibers.update_many([a_fiber(), bad])
        with pytest.raises(error):
            transaction.fibers.write_many([a_fiber(), bad])
    assert storage.query_fibers_by_type("request") == [fiber]


def test_attributes_changed_into_no_json_are_refused_before_anything_is_written(
    storage: DuckDBStorage,
) -> None:
    fiber = a_fiber(attributes={"n": 1})
    assert isinstance(fiber.attributes, dict)
    fiber.attributes["n"] = float("nan")
    with pytest.raises(SerializationError):
        storage.write_fiber(fiber)
    assert storage.get_fiber(fiber.fiber_id) is None


def test_rows_of_other_clients_that_are_no_records_are_named(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        storage.write_logs(some_logs(1))
    with duckdb.connect(db_file) as other:
        other.execute("SET TimeZone = 'UTC'")
        other.execute(
            "INSERT INTO fibers VALUES ('00000000-0000-0000-0000-000000000001', 'nan', 0, '{\"a\": NaN}', "
            "now(), now(), false)"
        )
        other.execute("INSERT INTO raw_logs VALUES (uuid(), 'infinity', 's', 't', now(), 0)")
        other.execute(
            "INSERT INTO raw_logs "
            "VALUES ('00000000-0000-0000-0000-000000000002', '12000-01-01', 's', 't', now(), 0)"
        )
    with DuckDBStorage(db_file) as storage:
        with pytest.raises(SerializationError, match="NaN"):
            storage.get_fiber(UUID(int=1))
        with pytest.raises(SerializationError, match="years 1 to 9999"):
            storage.get_log(UUID(int=2))
        assert len(storage.query_logs_by_time(NOON, NOON)) == 1


# Cost


@pytest.mark.parametrize("rows", [1, 500])
def test_each_read_is_one_statement_whatever_the_row_count(storage: DuckDBStorage, rows: int) -> None:
    logs, fiber = some_logs(rows), a_fiber()
    storage.write_logs(logs)
    storage.write_fiber(fiber)
    storage.write_memberships(
        FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in logs
    )
    statements: list[str] = []
    sa.event.listen(
        storage.engine, "before_cursor_execute", lambda _c, _cursor, sql, *_rest: statements.append(sql)
    )
    for read in (
        lambda: storage.get_log(logs[0].log_id),
        lambda: storage.query_logs_by_time(NOON, NOON + timedelta(days=1)),
        lambda: storage.get_fiber(fiber.fiber_id),
        lambda: storage.query_fibers_by_type("request"),
        lambda: storage.get_log_fibers(logs[0].log_id),
        lambda: storage.get_fiber_logs(fiber.fiber_id),
    ):
        statements.clear()
        assert read()
        assert len(statements) == 1
