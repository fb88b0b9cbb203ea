"""Units of work are stored whole or not at all, through the storage or through repositories on a session."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import ObjectDeletedError

from fiberstore import (
    CheckpointRepository,
    ConflictError,
    DatabaseError,
    DuckDBStorage,
    DuplicateError,
    Fiber,
    FiberMembership,
    FiberRepository,
    Fibers,
    LogRepository,
    Logs,
    MembershipRepository,
    NotFoundError,
    RawLog,
    open_storage,
)
from fiberstore.checks import MAX_CONFIG_VERSION as MAX
from fiberstore.contract.lifecycle import BatchStorage, FiberBatchStorage
from fiberstore.contract.results import Upserted
from fiberstore.contract.storage import FiberStorage, LogStorage, MembershipStorage
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage, Transaction
from fiberstore.testing.examples import fiber, log, member, uid
from tests.support.factories import NOON, a_fiber, some_logs


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


def test_a_transaction_is_stored_whole(storage: SqlStorage) -> None:
    logs, fiber = some_logs(3), a_fiber()
    with storage.transaction() as transaction:
        assert transaction.logs.write_logs(logs) == 3
        transaction.fibers.write_fiber(fiber)
        transaction.memberships.write_memberships(
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in logs
        )
    assert [log.log_id for log in storage.get_fiber_logs(fiber.fiber_id)] == [log.log_id for log in logs]


def test_a_transaction_that_raises_stores_nothing(storage: SqlStorage) -> None:
    fiber = a_fiber()
    with pytest.raises(KeyError), storage.transaction() as transaction:
        transaction.logs.write_logs(some_logs(3))
        transaction.fibers.write_fiber(fiber)
        raise KeyError
    assert storage.query_logs_by_time(NOON, NOON + timedelta(days=1)) == []
    assert storage.get_fiber(fiber.fiber_id) is None


def test_a_duplicate_leaves_the_transaction_usable(storage: SqlStorage) -> None:
    fiber, other = a_fiber(), a_fiber()
    storage.write_fiber(fiber)
    with storage.transaction() as transaction:
        with pytest.raises(DuplicateError):
            transaction.fibers.write_fiber(fiber)
        with pytest.raises(NotFoundError):
            transaction.fibers.update_fiber(other)
        transaction.fibers.write_fiber(other)
    assert storage.get_fiber(other.fiber_id) == other


def test_a_failed_statement_spoils_the_transaction_and_the_next_works(storage: SqlStorage) -> None:
    (log,) = some_logs(1)
    with (
        pytest.raises(DatabaseError, match="nothing of it can be kept"),
        storage.transaction() as transaction,
    ):
        transaction.logs.write_logs([log])
        rows = (
            "SELECT CASE WHEN i = 299999 THEN 'x' ELSE '1' END AS number FROM generate_series(0, 299999) t(i)"
        )
        with pytest.raises(DBAPIError):
            transaction.session.execute(sa.text(f"SELECT CAST(number AS INTEGER) FROM ({rows}) AS t")).all()
    assert storage.get_log(log.log_id) is None
    assert storage.write_logs([log]) == 1


def test_a_transaction_is_of_no_use_after_its_block(storage: SqlStorage) -> None:
    with storage.transaction() as transaction:
        pass
    with pytest.raises(DatabaseError, match="closed"):
        transaction.logs.write_logs(some_logs(1))
    storage.write_fiber(a_fiber())


def test_errors_of_the_application_pass_through_a_transaction(storage: SqlStorage) -> None:
    with pytest.raises(NoResultFound), storage.transaction() as transaction:
        transaction.session.execute(sa.select(Fiber.fiber_id)).scalar_one()


def test_tables_of_the_application_do_not_stand_in_the_way(storage: SqlStorage) -> None:
    with storage.engine.begin() as connection:
        for name in ("batch", "columns", "rows", "logs", "fiber", "records"):
            connection.execute(sa.text(f"CREATE TABLE {name} AS SELECT * FROM raw_logs"))
    assert storage.write_logs(some_logs(3)) == 3


def test_the_time_zone_of_a_session_changes_nothing(storage: SqlStorage) -> None:
    (log,) = some_logs(1)
    storage.write_logs([log])
    with storage.session() as session:
        session.execute(sa.text("SET TimeZone = 'America/New_York'"))
        found = LogRepository(session).get_log(log.log_id)
    assert found is not None
    assert (found.timestamp, found.timestamp.tzinfo) == (NOON, UTC)


def test_two_transactions_that_write_one_new_fiber_conflict(duckdb_storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    with pytest.raises(ConflictError), duckdb_storage.transaction() as transaction:
        transaction.fibers.write_fiber(fiber)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(duckdb_storage.write_fiber, fiber).result()
    assert duckdb_storage.get_fiber(fiber.fiber_id) == fiber


def test_on_postgresql_who_writes_the_same_new_fiber_waits(postgresql_storage: PostgresStorage) -> None:
    fiber = a_fiber()
    with ThreadPoolExecutor(1) as thread:
        with postgresql_storage.transaction() as transaction:
            transaction.fibers.write_fiber(fiber)
            second = thread.submit(postgresql_storage.write_fiber, fiber.model_copy(update={"closed": True}))
            assert not wait([second], timeout=0.1).done
        with pytest.raises(DuplicateError):
            second.result(60)
    assert postgresql_storage.get_fiber(fiber.fiber_id) == fiber


def test_a_log_committed_after_the_snapshot_is_a_conflict_to_run_again(storage: SqlStorage) -> None:
    (log,) = some_logs(1)
    with storage.session() as session:
        repository = LogRepository(session)
        assert repository.get_log(log.log_id) is None
        assert storage.write_logs([log]) == 1
        with pytest.raises(ConflictError):
            repository.write_logs([log])
        session.rollback()
        assert repository.write_logs([log]) == 0


def test_a_repository_on_a_session_stamps_the_version_of_the_storage(any_storage: SqlStorage) -> None:
    with open_storage(any_storage.engine.url.render_as_string(False), config_version=MAX) as storage:
        with storage.session() as session:
            assert LogRepository(session).write_logs([log(1)]) == 1
            assert LogRepository(session, config_version=5).write_logs([log(2)]) == 1
            session.commit()
        with storage.engine.connect() as connection, Session(connection) as session:
            assert LogRepository(session).write_logs([log(3)]) == 1
            session.commit()
        stamps = {row.log_id.int: row.config_version for row in storage.logs.iter_records()}
        assert stamps == {1: MAX, 2: 5, 3: MAX}


def test_repositories_and_units_of_work_are_the_parts_of_the_trait(storage: SqlStorage) -> None:
    with storage.session() as session, storage.transaction() as unit:
        for one, part in (
            (LogRepository(session), LogStorage),
            (FiberRepository(session), FiberBatchStorage),
            (MembershipRepository(session), MembershipStorage),
        ):
            assert isinstance(one, part)
        for whole in (storage, unit):
            assert isinstance(whole, LogStorage)
            assert isinstance(whole, FiberStorage)
            assert isinstance(whole, MembershipStorage)
            assert isinstance(whole, BatchStorage)
            assert type(whole.logs) is LogRepository
            assert type(whole.fibers) is FiberRepository
            assert type(whole.memberships) is MembershipRepository


def test_a_repository_takes_a_session_and_nothing_else(storage: SqlStorage) -> None:
    with storage.engine.connect() as connection, pytest.raises(TypeError, match="Session, got Connection"):
        LogRepository(connection)  # type: ignore[arg-type]
    elsewhere = sa.create_engine("sqlite://")
    with Session(elsewhere) as session, pytest.raises(TypeError, match="create_engine"):
        LogRepository(session).get_log(uid(1))
    elsewhere.dispose()


def test_autocommit_is_a_level_for_sessions_of_the_application(duckdb_storage: DuckDBStorage) -> None:
    engine = duckdb_storage.engine
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        assert LogRepository(session).write_logs([log(1)]) == 1
        assert session.connection().get_isolation_level() == "AUTOCOMMIT"
        session.rollback()
    with duckdb_storage.session() as session:  # on the same connection
        assert session.connection().get_isolation_level() == "REPEATABLE READ"
        assert LogRepository(session).write_logs([log(2)]) == 1
        session.rollback()
    assert [row.log_id for row in duckdb_storage.logs.iter_records()] == [uid(1)]


def test_fibers_are_pinned_in_autocommit_though_one_of_them_is_pinned(duckdb_storage: DuckDBStorage) -> None:
    duckdb_storage.write_fibers([fiber(1), fiber(2)])
    duckdb_storage.fibers.where(Fibers.c.fiber_id == uid(1)).pin()
    with Session(duckdb_storage.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        assert FiberRepository(session).pin() == 1
    assert duckdb_storage.fibers.where(Fibers.c.pinned).count() == 2


def test_of_two_sessions_that_make_one_checkpoint_the_second_waits(
    duckdb_storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiberstore.duckdb.change_lock.LOCK_TIMEOUT_S", 0.05)
    with duckdb_storage.session() as first, duckdb_storage.session() as second:
        CheckpointRepository(first).compare_and_set("file", None, "line 1")
        with pytest.raises(ConflictError, match="has been changing rows"):
            CheckpointRepository(second).compare_and_set("file", None, "line 2")
        first.commit()


def test_repositories_work_on_a_session_of_the_application(storage: SqlStorage) -> None:
    with Session(storage.engine) as session:
        LogRepository(session, config_version=9).write_logs(some_logs(2))
        session.add(RawLog(log_id=uuid4(), timestamp=NOON, source_id="orm", raw_text="x", config_version=0))
        session.rollback()
        assert LogRepository(session, config_version=9).write_logs(some_logs(2)) == 2
        session.commit()
    assert {log.config_version for log in storage.query_logs_by_time(NOON, NOON + timedelta(days=1))} == {9}


def test_fibers_in_bulk(storage: SqlStorage) -> None:
    known, new = a_fiber(), a_fiber(attributes=None)
    storage.write_fiber(known)
    changed = known.model_copy(update={"closed": True, "attributes": [1, "ä", None]})
    with storage.transaction() as transaction:
        assert transaction.fibers.write_fibers([changed, new]) == 1
        assert transaction.fibers.get_fiber(known.fiber_id) == known
        assert transaction.fibers.upsert_fibers([changed]) == Upserted(0, 1)
    assert storage.get_fiber(known.fiber_id) == changed
    assert storage.get_fiber(new.fiber_id) == new
    with storage.transaction() as transaction, pytest.raises(ValueError, match="given twice"):
        transaction.fibers.upsert_fibers([known, changed])


def test_merged_fibers_give_their_logs_to_the_survivor(storage: SqlStorage) -> None:
    logs = some_logs(3)
    survivor, loser, bystander = a_fiber(), a_fiber(), a_fiber()
    with storage.transaction() as transaction:
        transaction.logs.write_logs(logs)
        transaction.fibers.write_fibers([survivor, loser, bystander])
        transaction.memberships.write_memberships(
            FiberMembership(log_id=logs[number].log_id, fiber_id=fiber.fiber_id, config_version=5)
            for number, fiber in [(0, survivor), (1, loser), (0, loser), (2, bystander)]
        )
    with storage.transaction() as transaction:
        transaction.fibers.merge_fibers({loser.fiber_id: survivor.fiber_id})
    assert storage.get_fiber(loser.fiber_id) is None
    assert storage.get_fiber_logs(loser.fiber_id) == []
    assert [log.log_id for log in storage.get_fiber_logs(survivor.fiber_id)] == [
        log.log_id for log in logs[:2]
    ]
    assert storage.get_log_fibers(logs[2].log_id) == [bystander.fiber_id]
    with storage.transaction() as transaction, pytest.raises(ValueError, match="ends itself"):
        transaction.fibers.merge_fibers(
            {survivor.fiber_id: bystander.fiber_id, bystander.fiber_id: loser.fiber_id}
        )


WRITES: dict[str, Callable[[Transaction], object]] = {
    "logs.write_logs": lambda to: to.logs.write_logs([log(9)]),
    "logs.delete": lambda to: to.logs.where(Logs.c.log_id == uid(3)).delete(),
    "logs.redact": lambda to: to.logs.where(Logs.c.log_id == uid(3)).redact("GET", "PUT"),
    "logs.pin": lambda to: to.logs.where(Logs.c.log_id == uid(3)).pin(),
    "logs.unpin": lambda to: to.logs.where(Logs.c.log_id == uid(4)).unpin(),
    "fibers.write_fiber": lambda to: to.fibers.write_fiber(fiber(9)),
    "fibers.write_fibers": lambda to: to.fibers.write_fibers([fiber(9)]),
    "fibers.update_fiber": lambda to: to.fibers.update_fiber(fiber(3, "job")),
    "fibers.upsert_fibers": lambda to: to.fibers.upsert_fibers([fiber(3, "job"), fiber(9)]),
    "fibers.merge_fibers": lambda to: to.fibers.merge_fibers({uid(3): uid(4)}),
    "fibers.close": lambda to: to.fibers.where(Fibers.c.fiber_id == uid(3)).close(),
    "fibers.reopen": lambda to: to.fibers.where(Fibers.c.fiber_id == uid(4)).reopen(),
    "fibers.pin": lambda to: to.fibers.where(Fibers.c.fiber_id == uid(3)).pin(),
    "fibers.unpin": lambda to: to.fibers.where(Fibers.c.fiber_id == uid(4)).unpin(),
    "fibers.delete": lambda to: to.fibers.where(Fibers.c.fiber_id == uid(3)).delete(),
    "memberships.write_memberships": lambda to: to.memberships.write_memberships([member(4, 4)]),
    "memberships.delete": lambda to: to.memberships.delete(),
    "checkpoints.set": lambda to: to.checkpoints.set("a", "1"),
    "checkpoints.compare_and_set": lambda to: to.checkpoints.compare_and_set("a", None, "1"),
    "checkpoints.delete": lambda to: to.checkpoints.delete("b"),
    "versions.register": lambda to: to.versions.register("rules"),
    "versions.activate": lambda to: to.versions.activate(8),
    "versions.drop": lambda to: to.versions.drop(8),
}


def test_no_method_discards_what_the_session_holds_unflushed(storage: SqlStorage) -> None:
    storage.write_batch(
        logs=[log(number) for number in (1, 2, 3, 4)],
        fibers=[*(fiber(number, closed=number == 4) for number in (1, 2, 3, 4)), fiber(8, config_version=8)],
        memberships=[member(3, 3)],
    )
    storage.logs.where(Logs.c.log_id == uid(4)).pin()
    storage.fibers.where(Fibers.c.fiber_id == uid(4)).pin()
    storage.checkpoints.set("b", "1")
    for name, write in WRITES.items():
        with Session(storage.engine, autoflush=False) as session:
            changed, deleted = session.get_one(Fiber, uid(1)), session.get_one(Fiber, uid(2))
            other, text = session.get_one(Fiber, uid(3)), session.get_one(RawLog, uid(1))
            changed.closed, text.raw_text = True, "changed"
            session.delete(deleted)
            session.add(Fiber(**dict(fiber(5))))
            write(Transaction(session, 3))
            assert changed in session.dirty, name
            if name == "fibers.update_fiber":
                assert other.fiber_type == "job"  # a clean object is loaded again
            session.flush()
            rows = session.execute(sa.select(Fiber.fiber_id, Fiber.closed))
            stored = {row.fiber_id: row.closed for row in rows}
            assert stored[uid(1)] is True, name
            assert uid(2) not in stored, name
            assert uid(5) in stored, name
            assert session.scalar(sa.select(RawLog.raw_text).filter_by(log_id=uid(1))) == "changed", name
            session.rollback()


def test_an_unflushed_change_of_a_row_that_a_repository_changes_is_kept(storage: SqlStorage) -> None:
    storage.write_fiber(fiber(1, "login"))
    with Session(storage.engine) as session, session.no_autoflush:
        held = session.get_one(Fiber, uid(1))
        held.fiber_type = "mine"
        FiberRepository(session).update_fiber(fiber(1, "job", closed=True))
        assert (held.fiber_type, held.closed) == ("mine", True)
        session.commit()
    assert storage.get_fiber(uid(1)) == fiber(1, "mine", closed=True)
    with Session(storage.engine, autoflush=False) as session:
        session.get_one(Fiber, uid(1)).closed = False
        FiberRepository(session).where(Fibers.c.fiber_id == uid(1)).delete()
        with pytest.raises(ObjectDeletedError):  # rather than to lose the change without a word
            session.commit()
