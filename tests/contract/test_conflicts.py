"""Conflicts are retried for a while and end as ``ConflictError``; errors and cancelled tasks hold nothing."""

import asyncio
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar
from uuid import UUID

import duckdb
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import fiberstore.duckdb.change_lock
import fiberstore.repositories.access
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
    Memberships,
    PostgresStorage,
    RawLog,
)
from fiberstore.contract.results import BatchCounts, Deleted, Merged, Upserted
from fiberstore.duckdb.change_lock import ChangeLock, LockHold
from fiberstore.postgresql.connection import NativeCursor, PostgresConnection
from fiberstore.postgresql.support import SUPPORT
from fiberstore.repositories import query
from fiberstore.sql import bulk
from fiberstore.sql.arrow import Columns, insert_new
from fiberstore.telemetry import Call
from tests.support.factories import NOON, a_fiber, some_logs

T = TypeVar("T")
OnceAfter: TypeAlias = Callable[[str, Callable[[], object]], None]

RETRY_TIMEOUT_S = 0.3
_WRITES_MEMBERSHIPS = "(INSERT INTO|DELETE FROM) fiber_memberships"


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


@dataclass(frozen=True)
class Pair:
    """A fiber with two logs, and another without."""

    storage: PostgresStorage
    log_ids: list[UUID]
    fiber: FiberRecord
    other: FiberRecord

    def merge(self) -> Merged:
        return self.storage.merge_fibers({self.fiber.fiber_id: self.other.fiber_id})

    def delete_logs(self) -> Deleted:
        return self.storage.logs.where(Logs.c.raw_text.startswith("line")).delete()

    def delete_fibers(self) -> Deleted:
        return self.storage.fibers.where(Fibers.c.fiber_id == self.fiber.fiber_id).delete()

    def delete_memberships(self) -> Deleted:
        return self.storage.memberships.where(Memberships.c.log_id.in_(self.log_ids)).delete()

    def take_what_is_there(self) -> bool:
        """Tell whether all memberships that a block has seen are there when it deletes them."""
        with self.storage.transaction() as unit:
            return unit.memberships.count() == unit.memberships.delete().memberships

    def join_what_is_there(self) -> int:
        with self.storage.transaction() as unit:
            return unit.write_memberships(self.members(self.other)) if unit.logs.count() else 0

    def write_more(self) -> Upserted:
        (log,) = some_logs(1, "web")
        member = FiberMembership(log_id=log.log_id, fiber_id=self.fiber.fiber_id, config_version=1)
        return self.storage.write_batch(
            logs=[log.model_copy(update={"raw_text": "more"})], fibers=[self.fiber], memberships=[member]
        ).fibers

    def members(self, fiber: FiberRecord) -> list[FiberMembership]:
        return [
            FiberMembership(log_id=log_id, fiber_id=fiber.fiber_id, config_version=1)
            for log_id in self.log_ids
        ]

    def let_run(self, call: Future[T]) -> Future[T]:
        """Wait until a call has ended, or waits for a lock."""
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with self.storage.engine.connect() as connection:
            while not wait([call], timeout=0.01).done and not connection.scalar(waiting):
                connection.rollback()  # which sees the same until it ends
        return call


@pytest.fixture
def pair(postgresql_storage: PostgresStorage) -> Pair:
    logs, (fiber, other) = some_logs(2), [a_fiber(), a_fiber()]
    pair = Pair(postgresql_storage, [log.log_id for log in logs], fiber, other)
    postgresql_storage.write_batch(logs=logs, fibers=[fiber, other], memberships=pair.members(fiber))
    return pair


@pytest.fixture
def once_after(monkeypatch: pytest.MonkeyPatch) -> OnceAfter:
    """Return a function that has a call made once, after a statement of this thread that a pattern finds."""

    def once_after(pattern: str, call: Callable[[], object]) -> None:
        real, caller, calls = PostgresConnection._execute, threading.current_thread(), [call]

        def execute(connection: PostgresConnection, sql: str, values: Iterable[object] = ()) -> NativeCursor:
            cursor = real(connection, sql, values)
            if calls and re.search(pattern, sql) and threading.current_thread() is caller:
                calls.pop()()
            return cursor

        monkeypatch.setattr(PostgresConnection, "_execute", execute)

    return once_after


def test_of_two_batches_that_move_one_checkpoint_the_second_is_refused(
    pair: Pair, once_after: OnceAfter
) -> None:
    move, seconds = CheckpointMove("file", expected=None, value="line 1"), list[Future[BatchCounts]]()

    def write() -> BatchCounts:
        return pair.storage.write_batch(logs=some_logs(1), checkpoint=move)

    once_after("raw_logs", lambda: seconds.append(pair.let_run(thread.submit(write))))
    with ThreadPoolExecutor(1) as thread:
        assert write().logs == 1
        with pytest.raises(CheckpointError):
            seconds[0].result(timeout=60)
    assert pair.storage.logs.count() == 3


@pytest.mark.parametrize(
    ("first", "second", "of_second"),
    [
        (Pair.merge, Pair.delete_memberships, Deleted(0, 0, 2)),
        (Pair.merge, Pair.delete_logs, Deleted(2, 0, 2)),
        (Pair.merge, Pair.take_what_is_there, True),
        (Pair.delete_memberships, Pair.take_what_is_there, True),
        (Pair.delete_memberships, Pair.merge, Merged(1, 0)),
        (Pair.delete_logs, Pair.join_what_is_there, 0),
        (Pair.delete_fibers, Pair.take_what_is_there, True),
    ],
)
def test_of_merges_deletions_and_blocks_the_second_sees_all_that_the_first_has_done(
    pair: Pair,
    once_after: OnceAfter,
    first: Callable[[Pair], object],
    second: Callable[[Pair], object],
    of_second: object,
) -> None:
    seconds = list[Future[object]]()
    once_after(_WRITES_MEMBERSHIPS, lambda: seconds.append(pair.let_run(thread.submit(second, pair))))
    with ThreadPoolExecutor(1) as thread:
        first(pair)
        assert seconds[0].result(timeout=60) == of_second
    assert pair.storage.memberships.count() == 0


@pytest.mark.parametrize("call", [Pair.merge, Pair.delete_logs, Pair.delete_fibers, Pair.delete_memberships])
def test_batches_are_written_beside_merges_and_deletions_and_blocks_that_wait_for_these(
    pair: Pair, once_after: OnceAfter, call: Callable[[Pair], object]
) -> None:
    calls = list[Future[object]]()

    def write() -> None:
        calls.append(pair.let_run(threads.submit(pair.join_what_is_there)))  # which waits
        calls.append(threads.submit(pair.write_more))
        assert calls[1].result(timeout=60) == Upserted(0, 1)
        assert not calls[0].done()

    once_after(_WRITES_MEMBERSHIPS, write)
    with ThreadPoolExecutor(2) as threads:
        call(pair)
        calls[0].result(timeout=60)
    fiber_ids = {fiber.fiber_id for fiber in pair.storage.fibers.iter_records()}
    assert {member.fiber_id for member in pair.storage.memberships.iter_records()} <= fiber_ids


def test_a_deletion_of_logs_takes_memberships_along_that_a_batch_was_writing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletions = list[Future[Deleted]]()

    def insert(session: Session, table: str, columns: Columns) -> int:
        if table == "fiber_memberships":
            deletions.append(pair.let_run(thread.submit(pair.delete_logs)))
        return insert_new(session, table, columns)

    monkeypatch.setattr("fiberstore.repositories.batches.insert_new", insert)
    logs = list(pair.storage.logs.iter_records())
    with ThreadPoolExecutor(1) as thread:
        pair.storage.write_batch(logs=logs, memberships=pair.members(pair.other))
        assert deletions[0].result(timeout=60) == Deleted(2, 0, 4)


def test_a_deletion_keeps_logs_whose_text_has_changed_meanwhile_and_their_memberships(
    pair: Pair, once_after: OnceAfter
) -> None:
    def change() -> None:
        with pair.storage.session() as session:
            session.execute(sa.update(RawLog).where(RawLog.log_id == pair.log_ids[0]).values(raw_text="new"))
            session.commit()

    once_after("array_send", change)
    assert pair.delete_logs() == Deleted(1, 0, 1)
    assert [log.raw_text for log in pair.storage.get_fiber_logs(pair.fiber.fiber_id)] == ["new"]


def test_a_survivor_covers_what_a_session_has_committed_to_its_loser_meanwhile(pair: Pair) -> None:
    later = NOON + timedelta(days=1)
    with ThreadPoolExecutor(1) as thread, pair.storage.session() as session:
        session.get_one(Fiber, pair.fiber.fiber_id).last_activity = later
        session.flush()
        merge = pair.let_run(thread.submit(pair.merge))
        session.commit()
        assert merge.result(timeout=60) == Merged(1, 2)
    assert pair.storage.fibers.where(Fibers.c.last_activity == later).count() == 1


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
    real, reopened = query.delete_rows, list[Upserted]()

    def delete(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
        gone = real(session, table, which)
        if not reopened:
            with ThreadPoolExecutor(1) as thread:
                reopening = thread.submit(storage.upsert_fibers, [a_fiber(fiber_id=staying)])
                reopened.append(reopening.result(timeout=60))
        return gone

    monkeypatch.setattr("fiberstore.repositories.fibers.delete_rows", delete)
    assert storage.fibers.where(Fibers.c.closed.is_(True)).delete() == Deleted(0, 1, 1)
    assert reopened == [Upserted(0, 1)]
    assert storage.get_fiber(going) is None
    assert storage.get_log_fibers(log.log_id) == [staying]


def test_redaction_goes_in_steps_that_others_see_and_asks_its_conditions_in_each(
    postgres_tables_url: str, postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgresql_storage.write_logs(some_logs(5))
    steps: list[int] = []
    with PostgresStorage(postgres_tables_url, pool_size=1) as storage:

        def note(call: Call) -> None:
            if call.method == "logs.redact.step":
                steps.append(storage.logs.where(Logs.c.raw_text.startswith("row")).count())
                if len(steps) == 2:
                    with storage.session() as session:
                        session.execute(sa.update(RawLog).values(source_id="web"))
                        session.commit()

        storage.on_call(note)
        monkeypatch.setattr(storage._sessions, "_support", replace(SUPPORT, redacted_at_once=2))
        assert storage.logs.where(Logs.c.source_id == "api").redact("line", "row") == 4
        assert steps == [2, 4, 4]
        with storage.transaction() as unit:
            assert unit.logs.redact("row", "line") == 4
        assert steps == [2, 4, 4]


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
