"""Promises of ``AsyncDuckDBStorage`` in particular: tasks, cancellation, units of work."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from fiberstore import (
    AsyncDuckDBStorage,
    DatabaseError,
    DuckDBStorage,
    DuplicateError,
    FiberMembership,
    FiberRecord,
    LogRecord,
    Logs,
)
from fiberstore.contract.results import Pruned

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
POOL_SIZE = 3


def a_fiber() -> FiberRecord:
    return FiberRecord(
        fiber_id=uuid4(),
        fiber_type="t",
        config_version=0,
        attributes=0,
        first_activity=NOON,
        last_activity=NOON,
    )


def a_log() -> LogRecord:
    return LogRecord(timestamp=NOON, source_id="s", raw_text="t")


def in_a_loop(
    test: Callable[[AsyncDuckDBStorage], Awaitable[None]],
) -> Callable[[Path], None]:
    """Run a coroutine as a test, on a storage of its own."""

    async def body(store_file: Path) -> None:
        async with AsyncDuckDBStorage(store_file, pool_size=POOL_SIZE) as storage:
            await test(storage)

    def run(store_file: Path) -> None:
        asyncio.run(body(store_file))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def raise_counter(storage: AsyncDuckDBStorage, fiber: FiberRecord) -> None:
    async with storage.transaction() as transaction:
        found = await transaction.fibers.get_fiber(fiber.fiber_id)
        assert found is not None
        assert isinstance(found.attributes, int)
        await transaction.fibers.update_fiber(found.model_copy(update={"attributes": found.attributes + 1}))


@in_a_loop
async def test_many_tasks_lose_no_update(storage: AsyncDuckDBStorage) -> None:
    fiber = a_fiber()
    await storage.write_fiber(fiber)
    await asyncio.gather(*(raise_counter(storage, fiber) for _ in range(64)))
    stored = await storage.get_fiber(fiber.fiber_id)
    assert stored is not None
    assert stored.attributes == 64


@in_a_loop
async def test_a_transaction_is_stored_whole(storage: AsyncDuckDBStorage) -> None:
    fiber, log = a_fiber(), a_log()
    async with storage.transaction() as transaction:
        assert await transaction.logs.write_logs([log]) == 1
        await transaction.fibers.write_fiber(fiber)
        await transaction.memberships.write_memberships(
            [FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=0)]
        )
        assert await transaction.memberships.get_log_fibers(log.log_id) == [fiber.fiber_id]
    assert [found.log_id for found in await storage.get_fiber_logs(fiber.fiber_id)] == [log.log_id]


@in_a_loop
async def test_a_transaction_that_raises_stores_nothing(storage: AsyncDuckDBStorage) -> None:
    known, new = a_fiber(), a_fiber()
    await storage.write_fiber(known)
    with pytest.raises(DuplicateError):
        async with storage.transaction() as transaction:
            await transaction.fibers.write_fiber(new)
            await transaction.fibers.write_fiber(known)
    assert await storage.get_fiber(new.fiber_id) is None


@in_a_loop
async def test_cancelled_transactions_leave_nothing_and_hold_nothing(storage: AsyncDuckDBStorage) -> None:
    """More tasks than threads: some are cancelled inside, some while they begin, some while they wait."""
    fiber = a_fiber()
    await storage.write_fiber(fiber)
    inside = asyncio.Event()

    async def stay() -> None:
        async with storage.transaction() as transaction:
            await transaction.fibers.write_fiber(a_fiber())
            inside.set()
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(stay()) for _ in range(2 * POOL_SIZE)]
    await inside.wait()
    for task in tasks:
        task.cancel()
    assert {type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)} == {
        asyncio.CancelledError
    }
    await asyncio.gather(*(raise_counter(storage, fiber) for _ in range(2 * POOL_SIZE)))
    assert [found.attributes for found in await storage.query_fibers_by_type("t")] == [2 * POOL_SIZE]


def test_a_cancelled_call_happens_wholly_or_not_at_all(db_file: Path) -> None:
    batches = [[a_log() for _ in range(200)] for _ in range(20)]

    async def body() -> list[int | BaseException]:
        async with AsyncDuckDBStorage(db_file, pool_size=POOL_SIZE) as storage:
            await storage.init_schema()
            tasks = [asyncio.create_task(storage.write_logs(batch)) for batch in batches]
            await tasks[0]
            for task in tasks:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    ends = asyncio.run(body())
    assert ends[0] == 200
    assert any(isinstance(end, asyncio.CancelledError) for end in ends)
    with DuckDBStorage(db_file) as storage:
        stored = {log.log_id for log in storage.query_logs_by_time(NOON, NOON, limit=10_000)}
    parts = [len(stored.intersection(log.log_id for log in batch)) for batch in batches]
    assert set(parts) <= {0, 200}
    assert all(part == 200 for part, end in zip(parts, ends, strict=True) if end == 200)


@in_a_loop
async def test_more_tasks_than_threads_all_get_their_turn(storage: AsyncDuckDBStorage) -> None:
    written = await asyncio.gather(*(storage.write_logs([a_log()]) for _ in range(64)))
    assert sum(written) == 64


@in_a_loop
async def test_a_call_that_waits_is_told_when_the_storage_closes(storage: AsyncDuckDBStorage) -> None:
    calls = [asyncio.create_task(storage.write_logs([a_log()])) for _ in range(10 * POOL_SIZE)]
    await asyncio.sleep(0)
    await storage.close()
    ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert {type(end) for end in ends} <= {int, DatabaseError}


@in_a_loop
async def test_a_close_that_was_cancelled_can_be_finished(storage: AsyncDuckDBStorage) -> None:
    async with storage.transaction() as transaction:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(storage.close(), 0.05)
        await transaction.logs.write_logs([a_log()])
    await storage.close()
    with pytest.raises(DatabaseError, match="closed"):
        await storage.get_log(uuid4())


@in_a_loop
async def test_a_prune_that_is_cancelled_ends_with_its_step(storage: AsyncDuckDBStorage) -> None:
    await storage.write_logs([a_log() for _ in range(100)])
    loop, stepped, cancelled = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def on_step(_so_far: Pruned) -> None:
        loop.call_soon_threadsafe(stepped.set)
        cancelled.wait()

    task = asyncio.create_task(storage.prune(logs=Logs.c.source_id == "s", step_rows=10, on_step=on_step))
    await stepped.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    await asyncio.sleep(0.5)
    assert await storage.logs.count() == 90


@in_a_loop
async def test_a_timeout_ends_the_wait_for_another_transaction(storage: AsyncDuckDBStorage) -> None:
    fiber = a_fiber()
    await storage.write_fiber(fiber)

    async def wait() -> None:
        async with storage.transaction():
            raise AssertionError

    async with storage.transaction():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(), 0.05)
    await raise_counter(storage, fiber)


def test_a_closed_storage_says_so() -> None:
    async def body() -> None:
        storage = AsyncDuckDBStorage(":memory:")
        await storage.close()
        await storage.close()
        with pytest.raises(DatabaseError, match="closed"):
            await storage.get_log(uuid4())

    asyncio.run(body())


def test_the_storage_closes_while_calls_run() -> None:
    async def body() -> int:
        storage = AsyncDuckDBStorage(":memory:", pool_size=2)
        await storage.init_schema()
        call: Coroutine[None, None, int] = storage.write_logs([a_log() for _ in range(1000)])
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        await storage.close()
        return await task

    assert asyncio.run(body()) == 1000
