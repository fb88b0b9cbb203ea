"""Conflicts are retried for a while and end as ``ConflictError``; errors and cancelled tasks hold nothing."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import duckdb
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import fiberstore.duckdb.change_lock
import fiberstore.repositories.access
import fiberstore.repositories.batches
from fiberstore import (
    AsyncDuckDBStorage,
    CheckpointError,
    CheckpointMove,
    ConflictError,
    DuckDBStorage,
    Fiber,
    FiberMembership,
    FiberRecord,
    Fibers,
    LogRecord,
    Logs,
    PostgresStorage,
)
from fiberstore.contract.results import BatchCounts, Deleted, Merged, Upserted
from fiberstore.duckdb.change_lock import ChangeLock, LockHold
from fiberstore.postgresql.connection import PostgresConnection
from fiberstore.postgresql.support import SUPPORT
from fiberstore.repositories import query
from fiberstore.sql import bulk
from fiberstore.sql.arrow import Columns, insert_new
from fiberstore.telemetry import Call
from tests.support.factories import NOON, a_fiber, some_logs

RETRY_TIMEOUT_S = 0.3


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the lock be refused after 10 ms, and note when it was."""
    refused: list[float] = []
    acquire = ChangeLock.acquire

    def noting(lock: ChangeLock) -> LockHold:
        try:
            return acquire(lock)
        except duckdb.TransactionException:
            refused.append(time.monotonic())
            raise

    monkeypatch.setattr(ChangeLock, "acquire", noting)
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.01)
    return refused


def test_a_conflict_that_ends_is_not_seen(storage: DuckDBStorage, refusals: list[float]) -> None:
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with ThreadPoolExecutor(1) as thread:
        with storage.transaction():
            update = thread.submit(storage.update_fiber, fiber.model_copy(update={"closed": True}))
            while len(refusals) < 5 and not update.done():
                wait([update], timeout=0.01)
        update.result()
    stored = storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert stored.closed


def update(storage: DuckDBStorage, fiber: FiberRecord) -> None:
    storage.update_fiber(fiber)


def update_by_task(storage: DuckDBStorage, fiber: FiberRecord) -> None:
    async def body() -> None:
        async with AsyncDuckDBStorage(storage.engine.url.database or "", pool_size=1) as same:
            await same.update_fiber(fiber)

    asyncio.run(body())


@pytest.mark.parametrize("call", [update, update_by_task])
def test_a_conflict_that_lasts_is_raised_in_the_end(
    storage: DuckDBStorage,
    refusals: list[float],
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[DuckDBStorage, FiberRecord], None],
) -> None:
    monkeypatch.setattr(fiberstore.repositories.access, "RETRY_TIMEOUT_S", RETRY_TIMEOUT_S)
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with storage.transaction(), ThreadPoolExecutor(1) as thread:
        late = thread.submit(call, storage, fiber)
        with pytest.raises(ConflictError, match="another open transaction"):
            late.result(timeout=60)
    assert refusals[-1] - refusals[0] >= RETRY_TIMEOUT_S / 2
    pauses_s = [after - before for before, after in itertools.pairwise(refusals)]
    assert len(pauses_s) >= 2
    assert len(set(pauses_s)) == len(pauses_s)
    storage.update_fiber(fiber)


def test_a_unit_of_work_is_told_of_a_conflict_at_once(storage: DuckDBStorage, refusals: list[float]) -> None:
    """It cannot be run again for its caller."""

    def begin() -> None:
        with storage.transaction():
            raise AssertionError

    with storage.transaction(), ThreadPoolExecutor(1) as thread, pytest.raises(ConflictError):
        thread.submit(begin).result(timeout=60)
    assert len(refusals) == 1


@pytest.mark.parametrize("conflicts", [0, 1])
def test_an_upsert_changes_fibers_beside_others_and_after_a_conflict_keeps_them_out(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch, conflicts: int
) -> None:
    fiber, real = a_fiber(), bulk.upsert_fibers
    postgresql_storage.write_fiber(fiber)
    others: list[Future[Upserted]] = []
    are_done: list[bool] = []

    def upsert(session: Session, fibers: Columns, *, widen: bool) -> Upserted:
        if threading.current_thread() is threading.main_thread():
            session.execute(sa.text("SELECT 1 FROM fibers"))  # which takes a snapshot
            others.append(thread.submit(postgresql_storage.upsert_fibers, [fiber]))
            wait(others, timeout=0.5)  # as long as it takes, if it is not kept out
            are_done.append(others[-1].done())
            if len(others) <= conflicts:
                raise ConflictError
        return real(session, fibers, widen=widen)

    monkeypatch.setattr(bulk, "upsert_fibers", upsert)
    with ThreadPoolExecutor(1) as thread:
        assert postgresql_storage.upsert_fibers([fiber]) == Upserted(0, 1)
        assert {other.result() for other in others} == {Upserted(0, 1)}
    assert are_done == [True, False][: conflicts + 1]
    assert postgresql_storage.stats().retries == conflicts


def test_of_two_batches_that_move_one_checkpoint_the_second_is_refused(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, real, others = postgresql_storage, insert_new, list[Future[BatchCounts]]()
    move = CheckpointMove("file", expected=None, value="line 1")

    def insert(session: Session, table: str, columns: Columns) -> int:
        if threading.current_thread() is threading.main_thread():
            others.append(thread.submit(storage.write_batch, logs=some_logs(1), checkpoint=move))
            wait(others, timeout=0.5)  # until it waits for this one
        return real(session, table, columns)

    monkeypatch.setattr(fiberstore.repositories.batches, "insert_new", insert)
    with ThreadPoolExecutor(1) as thread:
        storage.write_batch(logs=some_logs(1), checkpoint=move)
        with pytest.raises(CheckpointError):
            others[0].result(timeout=60)


def test_a_deletion_of_logs_lets_others_change_other_rows(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, (going, staying) = postgresql_storage, some_logs(2)
    storage.write_logs([going, staying])
    real = PostgresConnection.let_changes_end

    def change() -> tuple[int, int]:
        with storage.transaction() as unit:
            pinned = unit.logs.where(Logs.c.log_id == staying.log_id).pin()
        return pinned, storage.logs.where(Logs.c.log_id == staying.log_id).redact("line", "row")

    def let_changes_end(connection: PostgresConnection) -> None:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(change).result(timeout=60) == (1, 1)
        real(connection)

    monkeypatch.setattr(PostgresConnection, "let_changes_end", let_changes_end)
    assert storage.logs.where(Logs.c.log_id == going.log_id).delete() == Deleted(1, 0, 0)


def test_a_deletion_of_logs_takes_memberships_along_that_a_transaction_was_writing(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, (log,), fiber_id = postgresql_storage, some_logs(1), uuid4()
    storage.write_logs([log])
    real, has_deleted = PostgresConnection.let_changes_end, threading.Event()

    def let_changes_end(connection: PostgresConnection) -> None:
        has_deleted.set()
        real(connection)

    monkeypatch.setattr(PostgresConnection, "let_changes_end", let_changes_end)
    with ThreadPoolExecutor(1) as thread:
        with storage.transaction() as unit:
            deletion = thread.submit(storage.logs.where(Logs.c.log_id == log.log_id).delete)
            assert has_deleted.wait(timeout=60)
            unit.write_memberships([FiberMembership(log_id=log.log_id, fiber_id=fiber_id, config_version=1)])
        assert deletion.result(timeout=60) == Deleted(1, 0, 1)


def test_a_deletion_of_fibers_is_run_again_if_one_has_changed_meanwhile(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, log, fibers = postgresql_storage, some_logs(1)[0], [a_fiber(closed=True), a_fiber(closed=True)]
    going, staying = (fiber.fiber_id for fiber in fibers)
    storage.write_batch(
        logs=[log],
        fibers=fibers,
        memberships=[
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for fiber in fibers
        ],
    )
    real, reopened = query.delete_rows, list[int]()

    def delete(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
        gone = real(session, table, which)
        if not reopened:
            with ThreadPoolExecutor(1) as thread:
                reopening = thread.submit(storage.fibers.where(Fibers.c.fiber_id == staying).reopen)
                reopened.append(reopening.result(timeout=60))
        return gone

    monkeypatch.setattr("fiberstore.repositories.fibers.delete_rows", delete)
    assert storage.fibers.where(Fibers.c.closed.is_(True)).delete() == Deleted(0, 1, 1)
    assert reopened == [1]
    assert storage.get_fiber(going) is None
    assert storage.get_log_fibers(log.log_id) == [staying]


def test_redaction_goes_in_steps_that_others_see(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = postgresql_storage
    storage.write_logs(some_logs(5))
    steps: list[int] = []

    def note(call: Call) -> None:
        if call.method == "logs.redact.step":
            steps.append(storage.logs.where(Logs.c.raw_text.startswith("row")).count())

    storage.on_call(note)
    monkeypatch.setattr(storage._sessions, "_support", replace(SUPPORT, redacted_at_once=2))
    assert storage.logs.redact("line", "row") == 5
    assert steps == [2, 4, 5]
    with storage.transaction() as unit:
        assert unit.logs.redact("row", "line") == 5
    assert steps == [2, 4, 5]


def test_a_merge_lets_others_change_fibers_and_moves_what_they_have_written(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, real = postgresql_storage, bulk.move_memberships
    (first, second), fibers = some_logs(2), [a_fiber(), a_fiber()]
    loser, survivor = (fiber.fiber_id for fiber in fibers)

    def joined(log: LogRecord) -> FiberMembership:
        return FiberMembership(log_id=log.log_id, fiber_id=loser, config_version=1)

    storage.write_batch(logs=[first, second], fibers=fibers, memberships=[joined(first)])
    later = fibers[0].model_copy(update={"last_activity": NOON + timedelta(hours=1)})
    counts: list[int] = []

    def move(session: Session, merges: Columns) -> int:
        counts.append(real(session, merges))
        if len(counts) == 1:
            with ThreadPoolExecutor(1) as thread:
                batch = thread.submit(storage.write_batch, fibers=[later], memberships=[joined(second)])
                batch.result(timeout=60)
        return counts[-1]

    monkeypatch.setattr(bulk, "move_memberships", move)
    assert storage.merge_fibers({loser: survivor}) == Merged(1, 2)
    assert counts == [1, 1]
    assert [log.log_id for log in storage.get_fiber_logs(survivor)] == [first.log_id, second.log_id]
    merged = storage.get_fiber(survivor)
    assert merged is not None
    assert merged.last_activity == later.last_activity


def test_logs_that_all_write_at_once_are_no_conflict(storage: DuckDBStorage) -> None:
    """They meet at the commit, where DuckDB refuses the second."""
    rounds = [some_logs(50) for _ in range(8)]
    barrier = threading.Barrier(8)

    def write(_: int) -> int:
        written = 0
        try:
            for logs in rounds:
                barrier.wait(60)
                written += storage.write_logs(logs)
        except BaseException:
            barrier.abort()
            raise
        return written

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(write, range(8))) == 8 * 50


def test_transactions_that_fail_give_their_connections_and_their_turn_back(store_file: Path) -> None:
    """Sixteen threads at two connections."""
    with DuckDBStorage(store_file, pool_size=2) as storage:
        fiber = a_fiber()
        storage.write_fiber(fiber)

        def fail(number: int) -> None:
            with pytest.raises(ZeroDivisionError), storage.transaction() as transaction:
                transaction.logs.write_logs(some_logs(number + 1))
                transaction.fibers.update_fiber(fiber.model_copy(update={"closed": True}))
                raise ZeroDivisionError

        with ThreadPoolExecutor(16) as threads:
            for one in [threads.submit(fail, number) for number in range(32)]:
                one.result(timeout=60)
        assert storage.get_fiber(fiber.fiber_id) == fiber
        assert "Current Checked out connections: 0" in storage.engine.pool.status()


def test_a_session_on_the_last_connection_does_not_block_who_holds_the_lock(
    db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, is_acquired = ChangeLock.acquire, threading.Event()

    def noting(lock: ChangeLock) -> LockHold:
        turn = acquire(lock)
        is_acquired.set()
        return turn

    with DuckDBStorage(db_file, pool_size=1) as storage:
        storage.init_schema()
        fiber = a_fiber()
        storage.write_fiber(fiber)
        monkeypatch.setattr(ChangeLock, "acquire", noting)
        monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 1)
        with ThreadPoolExecutor(1) as thread, storage.session() as session:
            row = session.get_one(Fiber, fiber.fiber_id)
            update = thread.submit(storage.update_fiber, fiber.model_copy(update={"fiber_type": "retyped"}))
            is_acquired.wait(60)
            row.closed = True
            with pytest.raises(OperationalError, match="rows were changed"):
                session.commit()
            session.rollback()
            update.result(60)
