"""No change of a row is lost, whichever sessions and transactions make it."""

import gc
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import duckdb
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

import fiberstore.duckdb.change_lock
from fiberstore import ConflictError, DuckDBStorage, Fiber, FiberRecord
from fiberstore.contract.results import Upserted
from fiberstore.duckdb.change_lock import ChangeLock
from fiberstore.duckdb.connection import DuckDBConnection
from tests.support.factories import a_fiber, some_logs


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


def test_a_session_that_has_read_does_not_undo_a_call_of_the_storage(storage: DuckDBStorage) -> None:
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with storage.session() as session:
        row = session.get_one(Fiber, fiber.fiber_id)
        storage.update_fiber(fiber.model_copy(update={"fiber_type": "retyped"}))
        row.closed = True
        with pytest.raises(OperationalError, match="changed by another transaction"):
            session.commit()
    stored = storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert (stored.closed, stored.fiber_type) == (False, "retyped")


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
    monkeypatch.setattr(DuckDBConnection, "lock_changes", lambda _self: None)
    interleave(storage, fiber.fiber_id)
    stored = storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert (stored.closed, stored.fiber_type) != (True, "retyped")


def test_with_the_lock_the_second_transaction_is_refused(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.05)
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
            found = transaction.fibers.get_fiber(fiber.fiber_id)
            assert found is not None
            assert isinstance(found.attributes, dict)
            assert isinstance(found.attributes["n"], int)
            raised = found.model_copy(update={"attributes": {"n": found.attributes["n"] + 1}})
            transaction.fibers.update_fiber(raised)

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
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.05)
    fiber = a_fiber()
    storage.write_fiber(fiber)
    change = sa.update(Fiber).values(fiber_type="by cte").returning(Fiber.fiber_id).cte()
    with storage.transaction() as transaction:
        transaction.fibers.update_fiber(fiber)
        with storage.session() as session, pytest.raises(OperationalError, match="another open transaction"):
            session.execute(sa.select(change))


@pytest.mark.usefixtures("collects_garbage")
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


def test_a_turn_ends_once_whoever_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may leave a turn in two hands; the second to end it must not end the turn of another."""
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.01)
    lock = ChangeLock()
    first = lock.acquire()
    first.end(changed=True)
    second = lock.acquire()
    first.end(changed=True)
    assert lock.changes == 1
    with pytest.raises(duckdb.TransactionException, match="another open transaction"):
        lock.acquire()
    second.end(changed=False)
    lock.acquire()


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
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr("fiberstore.repositories.access.RETRY_TIMEOUT_S", 0.0)
    fiber = a_fiber()
    storage.write_fiber(fiber)
    with storage.transaction(), ThreadPoolExecutor(1) as thread:
        late = thread.submit(storage.update_fiber, fiber)
        with pytest.raises(ConflictError, match="another open transaction"):
            late.result()
    storage.update_fiber(fiber)


def test_fibers_are_checked_before_the_lock_is_taken(
    storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr("fiberstore.repositories.access.RETRY_TIMEOUT_S", 0.0)
    other = a_fiber()
    storage.write_fiber(other)

    class Checked(FiberRecord):
        def __iter__(self) -> Generator[tuple[str, object]]:
            storage.update_fiber(other)
            yield from super().__iter__()

    assert storage.upsert_fibers([Checked(**dict(a_fiber()))]) == Upserted(1, 0)


def test_fibers_are_checked_without_the_garbage_collector_which_all_threads_wait_for(
    storage: DuckDBStorage,
) -> None:
    fibers = [a_fiber() for _ in range(2_000)]
    passes: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        passes.append(phase)

    class Checked(FiberRecord):
        def __iter__(self) -> Generator[tuple[str, object]]:
            gc.callbacks.append(note)
            yield from super().__iter__()

    class Last(FiberRecord):
        def __iter__(self) -> Generator[tuple[str, object]]:
            yield from super().__iter__()
            gc.callbacks.remove(note)

    storage.upsert_fibers([Checked(**dict(a_fiber())), *fibers, Last(**dict(a_fiber()))])
    assert passes == []


def test_appends_need_no_lock(storage: DuckDBStorage) -> None:
    with storage.transaction(), ThreadPoolExecutor(1) as thread:
        assert thread.submit(storage.write_logs, some_logs(3)).result() == 3
        thread.submit(storage.write_fiber, a_fiber()).result()
