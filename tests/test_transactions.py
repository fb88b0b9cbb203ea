"""Units of work are stored whole or not at all, through the storage or through repositories on a session."""

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from samples import NOON, a_fiber, some_logs
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.orm import Session

from fiberstore import (
    ConflictError,
    DatabaseError,
    DuckDBStorage,
    DuplicateError,
    Fiber,
    FiberMembership,
    LogRepository,
    NotFoundError,
    RawLog,
)
from fiberstore.postgresql import PostgresStorage
from fiberstore.storages import SqlStorage


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


def test_a_transaction_is_stored_whole(storage: SqlStorage) -> None:
    logs, fiber = some_logs(3), a_fiber()
    with storage.transaction() as transaction:
        assert transaction.logs.write(logs) == 3
        transaction.fibers.write(fiber)
        transaction.memberships.write(
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in logs
        )
    assert [log.log_id for log in storage.get_fiber_logs(fiber.fiber_id)] == [log.log_id for log in logs]


def test_a_transaction_that_raises_stores_nothing(storage: SqlStorage) -> None:
    fiber = a_fiber()
    with pytest.raises(KeyError), storage.transaction() as transaction:
        transaction.logs.write(some_logs(3))
        transaction.fibers.write(fiber)
        raise KeyError
    assert storage.query_logs_by_time(NOON, NOON + timedelta(days=1)) == []
    assert storage.get_fiber(fiber.fiber_id) is None


def test_a_duplicate_leaves_the_transaction_usable(storage: SqlStorage) -> None:
    fiber, other = a_fiber(), a_fiber()
    storage.write_fiber(fiber)
    with storage.transaction() as transaction:
        with pytest.raises(DuplicateError):
            transaction.fibers.write(fiber)
        with pytest.raises(NotFoundError):
            transaction.fibers.update(other)
        transaction.fibers.write(other)
    assert storage.get_fiber(other.fiber_id) == other


def test_a_failed_statement_spoils_the_transaction_and_the_next_works(storage: SqlStorage) -> None:
    (log,) = some_logs(1)
    with (
        pytest.raises(DatabaseError, match="nothing of it can be kept"),
        storage.transaction() as transaction,
    ):
        transaction.logs.write([log])
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
        transaction.logs.write(some_logs(1))
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
        found = LogRepository(session).get(log.log_id)
    assert found is not None
    assert (found.timestamp, found.timestamp.tzinfo) == (NOON, UTC)


def test_two_transactions_that_write_one_new_fiber_conflict(duckdb_storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    with pytest.raises(ConflictError), duckdb_storage.transaction() as transaction:
        transaction.fibers.write(fiber)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(duckdb_storage.write_fiber, fiber).result()
    assert duckdb_storage.get_fiber(fiber.fiber_id) == fiber


def test_on_postgresql_who_writes_the_same_new_fiber_waits(postgresql_storage: PostgresStorage) -> None:
    fiber = a_fiber()
    with ThreadPoolExecutor(1) as thread:
        with postgresql_storage.transaction() as transaction:
            transaction.fibers.write(fiber)
            second = thread.submit(postgresql_storage.write_fiber, fiber.model_copy(update={"closed": True}))
            assert not wait([second], timeout=0.1).done
        with pytest.raises(DuplicateError):
            second.result(60)
    assert postgresql_storage.get_fiber(fiber.fiber_id) == fiber


def test_a_log_committed_after_the_snapshot_is_a_conflict_to_run_again(storage: SqlStorage) -> None:
    (log,) = some_logs(1)
    with storage.session() as session:
        repository = LogRepository(session)
        assert repository.get(log.log_id) is None
        assert storage.write_logs([log]) == 1
        with pytest.raises(ConflictError):
            repository.write([log])
        session.rollback()
        assert repository.write([log]) == 0


def test_repositories_work_on_a_session_of_the_application(storage: SqlStorage) -> None:
    with Session(storage.engine) as session:
        LogRepository(session, config_version=9).write(some_logs(2))
        session.add(RawLog(log_id=uuid4(), timestamp=NOON, source_id="orm", raw_text="x", config_version=0))
        session.rollback()
        assert LogRepository(session, config_version=9).write(some_logs(2)) == 2
        session.commit()
    assert {log.config_version for log in storage.query_logs_by_time(NOON, NOON + timedelta(days=1))} == {9}


def test_fibers_in_bulk(storage: SqlStorage) -> None:
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


def test_merged_fibers_give_their_logs_to_the_survivor(storage: SqlStorage) -> None:
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
