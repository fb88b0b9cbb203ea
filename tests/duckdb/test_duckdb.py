"""Bad records, rows of other clients, and the cost of a read."""

import copy
import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import duckdb
import pytest
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from fiberstore import (
    Base,
    DuckDBStorage,
    Fiber,
    FiberMembership,
    FiberRecord,
    FiberRepository,
    LogRecord,
    LogRepository,
    Membership,
    RawLog,
    SerializationError,
    StoredLog,
    create_engine,
)
from fiberstore.contract.results import Upserted
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.cursor import Cursor
from fiberstore.sql.pool import StorePool
from tests.support.factories import NOON, a_fiber, some_logs
from tests.support.parameters import parametrize_mostly_slow


def test_a_batch_with_a_bad_record_stores_nothing(storage: DuckDBStorage) -> None:
    logs: list[LogRecord] = some_logs(6000)
    logs[4999] = "not a record"  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="item 4999 must be a LogRecord, got 'not a record'"):
        storage.write_logs(logs)
    assert storage.query_logs_by_time(NOON, NOON + timedelta(days=1)) == []
    assert storage.write_logs(logs[:4999]) == 4999


@parametrize_mostly_slow(
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
    quick=5,
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
            transaction.fibers.upsert_fibers([a_fiber(), bad])
        with pytest.raises(error):
            transaction.fibers.write_fibers([a_fiber(), bad])
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


def test_rows_of_other_clients_that_are_no_records_are_named(store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(some_logs(1))
    with duckdb.connect(store_file) as other:
        other.execute("SET TimeZone = 'UTC'")
        other.execute(
            "INSERT INTO fibers VALUES ('00000000-0000-0000-0000-000000000001', 'nan', 0, '{\"a\": NaN}', "
            "now(), now(), false)"
        )
        other.execute("INSERT INTO raw_logs VALUES (uuid(), 'infinity', 's', 't', now(), 0)")
        other.execute(
            "INSERT INTO raw_logs "
            "VALUES ('00000000-0000-0000-0000-000000000003', '2024-05-01 11:00Z', 's', 't', 'infinity', 0)"
        )
        other.execute("INSERT INTO fiber_memberships SELECT log_id, uuid(), 0 FROM raw_logs")
        other.execute("INSERT INTO fibers VALUES (uuid(), 'endless', 0, NULL, now(), 'infinity', false)")
        other.execute(
            "INSERT INTO raw_logs "
            "VALUES ('00000000-0000-0000-0000-000000000002', '12000-01-01', 's', 't', now(), 0)"
        )
    with DuckDBStorage(store_file) as storage:
        with pytest.raises(SerializationError, match="NaN"):
            storage.get_fiber(UUID(int=1))
        with pytest.raises(SerializationError, match="years 1 to 9999"):
            storage.get_log(UUID(int=2))
        with pytest.raises(SerializationError, match=r"ingestion_time|infinity|years 1 to 9999"):
            storage.query_logs_by_time(NOON - timedelta(hours=2), NOON)
        with pytest.raises(SerializationError, match="infinity"):
            storage.query_fibers_by_type("endless")
        with storage.session() as session:
            fibers = session.execute(
                sa.select(Membership.fiber_id, RawLog.timestamp.cast(sa.String))
                .join(RawLog, RawLog.log_id == Membership.log_id)
                .where(RawLog.timestamp.cast(sa.String) == "infinity")
            ).all()
        for fiber_id, _ in fibers:
            with pytest.raises(SerializationError, match="infinity"):
                storage.get_fiber_logs(fiber_id)
        assert len(fibers) == 1
        assert len(storage.query_logs_by_time(NOON, NOON)) == 1


@pytest.mark.parametrize("rows", [1, 500])
def test_each_read_is_one_statement_whatever_the_row_count(
    storage: DuckDBStorage, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, fiber = some_logs(rows), a_fiber()
    storage.write_logs(logs)
    storage.write_fiber(fiber)
    storage.write_memberships(
        FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in logs
    )
    statements: list[str] = []
    fetch_rows = DuckDBConnection.fetch_rows

    def count(self: DuckDBConnection, sql: str, parameters: Sequence[object]) -> Iterator[tuple[object, ...]]:
        statements.append(sql)
        return fetch_rows(self, sql, parameters)

    monkeypatch.setattr(DuckDBConnection, "fetch_rows", count)
    monkeypatch.setattr(Cursor, "execute", lambda _self, sql, _values=None: pytest.fail(f"also ran {sql}"))
    for read in (
        lambda: storage.get_log(logs[0].log_id),
        lambda: storage.query_logs_by_time(NOON, NOON + timedelta(days=1)),
        lambda: storage.query_logs_by_time(NOON, NOON + timedelta(days=1), after=(NOON, UUID(int=0))),
        lambda: storage.get_fiber(fiber.fiber_id),
        lambda: storage.query_fibers_by_type("request"),
        lambda: storage.get_log_fibers(logs[0].log_id),
        lambda: storage.get_fiber_logs(fiber.fiber_id),
    ):
        statements.clear()
        assert read()
        assert len(statements) == 1


def test_records_from_the_store_are_as_if_validated(storage: DuckDBStorage) -> None:
    """Their validation is skipped; nothing may tell them from others."""
    fiber, (log,) = a_fiber(attributes={"a": [1, None, {"b": "\u00e9"}]}), some_logs(1)
    storage.write_logs([log])
    storage.write_fiber(fiber)
    found: list[StoredLog | FiberRecord | None] = [
        storage.get_log(log.log_id),
        *storage.query_logs_by_time(NOON, NOON),
        storage.get_fiber(fiber.fiber_id),
        *storage.query_fibers_by_type("request"),
    ]
    for record in found:
        assert record is not None
        validated = type(record).model_validate(dict(record))
        assert record == validated
        assert repr(record) == repr(validated)
        assert [(name, type(value)) for name, value in record] == [
            (name, type(value)) for name, value in validated
        ]
        assert record.model_fields_set == validated.model_fields_set
        assert record.model_dump_json() == validated.model_dump_json()
        assert record.model_copy(update={"config_version": 9}).config_version == 9
        assert copy.deepcopy(record) == pickle.loads(pickle.dumps(record)) == validated  # noqa: S301
        with pytest.raises(ValidationError, match="frozen"):
            record.config_version = 9  # type: ignore[misc]


def test_records_from_the_store_share_nothing(storage: DuckDBStorage) -> None:
    storage.write_logs(some_logs(2))
    one, other = storage.query_logs_by_time(NOON, NOON + timedelta(days=1))
    one.model_fields_set.clear()
    assert other.model_fields_set == set(StoredLog.model_fields)


def test_a_retyped_fiber_is_found_by_its_new_type_only(storage: DuckDBStorage) -> None:
    fibers = [a_fiber(attributes={"n": number}) for number in range(4)]
    storage.write_fiber(fibers[0])
    with storage.transaction() as transaction:
        transaction.fibers.write_fibers(fibers[1:])
    changed = [
        fiber.model_copy(update={"fiber_type": kind, "closed": True})
        for fiber, kind in zip(fibers, ("login", "request", "login", "request"), strict=True)
    ]
    storage.update_fiber(changed[0])
    with storage.transaction() as transaction:
        assert transaction.fibers.upsert_fibers(changed[1:]) == Upserted(0, 3)
    for kind in ("login", "request"):
        expected = sorted(
            (fiber for fiber in changed if fiber.fiber_type == kind), key=lambda fiber: fiber.fiber_id
        )
        assert storage.query_fibers_by_type(kind) == expected


def test_a_page_that_fails_leaves_no_open_result_on_its_connection(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_logs(some_logs(3000))

    def fail(_time: int) -> datetime:
        raise SerializationError("as if a row were bad")

    monkeypatch.setattr(DuckDBConnection, "support", replace(DuckDBConnection.support, to_time=fail))
    with pytest.raises(SerializationError, match="as if"):
        storage.query_logs_by_time(NOON, NOON + timedelta(days=1), 3000)
    with storage.engine.connect() as connection:
        driver: object = connection.connection.dbapi_connection
        assert isinstance(driver, DuckDBConnection)
        assert driver.fetch(None) == []


def test_a_session_with_an_engine_for_each_class_is_served(storage: DuckDBStorage) -> None:
    fiber, logs = a_fiber(), some_logs(2)
    with Session(binds={Base: storage.engine}) as session:
        assert LogRepository(session).write_logs(logs) == 2
        FiberRepository(session).write_fiber(fiber)
        assert FiberRepository(session).get_fiber(fiber.fiber_id) == fiber
        session.commit()
    assert storage.get_fiber(fiber.fiber_id) == fiber


def test_a_read_flushes_what_the_session_holds_back_unless_told_not_to(storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    with storage.session() as session:
        session.add(Fiber(**dict(fiber)))
        with session.no_autoflush:
            assert FiberRepository(session).get_fiber(fiber.fiber_id) is None
        assert FiberRepository(session).get_fiber(fiber.fiber_id) == fiber


def test_a_statement_is_parsed_once_and_sees_a_schema_that_has_changed(storage: DuckDBStorage) -> None:
    with storage.engine.connect() as connection:
        for statement in (
            "CREATE TABLE t AS SELECT 1 AS a",
            "DROP TABLE t",
            "CREATE TABLE t AS SELECT 2 AS b",
        ):
            connection.exec_driver_sql(statement)
            if statement.startswith("CREATE"):
                (row,) = connection.exec_driver_sql("SELECT * FROM t")
        assert row._mapping == {"b": 2}
        driver: object = connection.connection.dbapi_connection
        assert isinstance(driver, DuckDBConnection)
        parsed = driver._parsed.get(driver._raw, "SELECT * FROM t")
        assert not isinstance(parsed, str)
        assert driver._parsed.get(driver._raw, "SELECT * FROM t") is parsed
        connection.exec_driver_sql(
            "CREATE TABLE u (a INTEGER); INSERT INTO u VALUES (1); INSERT INTO t VALUES (3)"
        )
        assert connection.exec_driver_sql("SELECT * FROM t, u ORDER BY b").all() == [(2, 1), (3, 1)]


def test_a_snapshot_stays_as_it_is_beside_large_commits(db_file: Path) -> None:
    """DuckDB before 2.0.1 shows rows of a commit that is on its way, of statements of a row group or more."""
    rows, commits = 150_000, 20
    # It writes nothing ahead of the commit, which makes that longer.
    engine = create_engine(f"duckdb:///{db_file}?enable_optimistic_write=false", threads=4)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE source AS SELECT row FROM range({rows}) rows(row)")
        connection.exec_driver_sql("CREATE TABLE target (row BIGINT)")
    has_ended = threading.Event()

    def read() -> list[set[int]]:
        snapshots = []
        with engine.connect() as connection:
            while not has_ended.is_set():
                count = sa.text("SELECT count(*) FROM target WHERE row >= 0")
                snapshots.append({connection.execute(count).scalar_one() for _ in range(20)})
                connection.rollback()
        return snapshots

    with ThreadPoolExecutor(1) as thread:
        snapshots = thread.submit(read)
        try:
            for _ in range(commits):
                with engine.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO target SELECT row FROM source")
        finally:
            has_ended.set()
    assert [counts for counts in snapshots.result() if len(counts) > 1] == []
    assert {count % rows for counts in snapshots.result() for count in counts} == {0}
    engine.dispose()


def test_a_connection_that_is_taken_while_it_is_given_back_stays_counted(db_file: Path) -> None:
    taken: list[PoolProxiedConnection] = []

    class TakenAtOnce(list[ConnectionPoolEntry]):
        def append(self, record: ConnectionPoolEntry) -> None:
            super().append(record)
            if not taken:  # another thread is that fast
                taken.append(pool.connect())

    with DuckDBStorage(db_file, pool_size=2) as storage:
        pool = storage.engine.pool
        assert isinstance(pool, StorePool)
        pool._idle = TakenAtOnce(pool._idle)
        pool.connect().close()
        assert pool.checkedout() == 1
        taken[0].close()
        assert pool.checkedout() == 0
