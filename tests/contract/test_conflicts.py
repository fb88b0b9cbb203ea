"""Conflicts are retried for a while and end as ``ConflictError``; errors and cancelled tasks hold nothing."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import duckdb
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import fiberstore.duckdb.change_lock
import fiberstore.repositories.access
from fiberstore import AsyncDuckDBStorage, ConflictError, DuckDBStorage, Fiber, FiberRecord, PostgresStorage
from fiberstore.contract.results import Upserted
from fiberstore.duckdb.change_lock import ChangeLock, LockHold
from fiberstore.sql import bulk
from fiberstore.sql.arrow import Columns
from tests.support.factories import a_fiber, some_logs

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


def test_a_call_that_has_met_a_conflict_keeps_others_out_when_it_is_run_again(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fiber, real = a_fiber(), bulk.upsert_fibers
    postgresql_storage.write_fiber(fiber)
    others: list[Future[Upserted]] = []

    def upsert(session: Session, fibers: Columns, *, widen: bool) -> Upserted:
        if threading.current_thread() is threading.main_thread():
            session.execute(sa.text("SELECT 1 FROM fibers"))  # which takes the snapshot
            others.append(thread.submit(postgresql_storage.upsert_fibers, [fiber]))
            wait(others, timeout=0.5)  # as long as it takes, if it is not kept out
        return real(session, fibers, widen=widen)

    monkeypatch.setattr(bulk, "upsert_fibers", upsert)
    monkeypatch.setattr(fiberstore.repositories.access, "RETRY_TIMEOUT_S", 1.0)
    with ThreadPoolExecutor(1) as thread:
        assert postgresql_storage.upsert_fibers([fiber]) == Upserted(0, 1)
        assert [other.result() for other in others] == [Upserted(0, 1)] * 2


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
