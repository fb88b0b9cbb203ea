"""Queries in coroutines: streams give their thread back, tails wait without one."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest

from fiberstore import (
    AsyncDuckDBStorage,
    DatabaseError,
    DuckDBStorage,
    Fibers,
    LogRecord,
    Logs,
    StorageClosedError,
    StoredLog,
)
from fiberstore.aio.queries import AsyncQuery
from fiberstore.testing.examples import at, fiber, log, member, uid

LOGS = 5_000  # more than a stream fetches at once
TIMEOUT_S = 30
Stream = AsyncGenerator[object, None]
Streamed = Callable[[AsyncQuery[StoredLog]], Stream]


def records(query: AsyncQuery[StoredLog]) -> Stream:
    return query.iter_records()


def batches(query: AsyncQuery[StoredLog]) -> Stream:
    return query.to_arrow(100)


STREAMS = pytest.mark.parametrize("streamed", [records, batches])


@cache
def filled() -> bytes:
    """Return a file with logs, for copies: to make and to fill it takes four times as long as to open it."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "store.duckdb")
        with DuckDBStorage(path) as storage:
            storage.init_schema()
            storage.write_logs([log(number) for number in range(LOGS)])
        return path.read_bytes()


@asynccontextmanager
async def a_storage(pool_size: int = 1) -> AsyncIterator[AsyncDuckDBStorage]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "store.duckdb")
        path.write_bytes(filled())
        async with AsyncDuckDBStorage(path, pool_size=pool_size) as storage:
            yield storage


async def count(storage: AsyncDuckDBStorage) -> int:
    """Ask something that needs a thread; without one it waits until pytest ends the test."""
    return await storage.logs.count()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Log records of the event loop: errors that nobody fetched, and tasks that were left."""
    return [record.getMessage() for record in caplog.records if record.name == "asyncio"]


def run(test: Callable[[AsyncDuckDBStorage], Awaitable[None]], pool_size: int = 1) -> None:
    async def body() -> None:
        async with a_storage(pool_size) as storage:
            await test(storage)

    asyncio.run(body())


@STREAMS
def test_a_half_read_stream_that_is_closed_gives_its_thread_back(streamed: Streamed) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        for _ in range(3):
            async with aclosing(streamed(storage.logs)) as stream:
                assert await anext(stream) is not None
            assert await count(storage) == LOGS

    run(test)


@pytest.mark.usefixtures("collects_garbage")
@STREAMS
def test_a_half_read_stream_that_is_forgotten_gives_its_thread_back(streamed: Streamed) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        stream = streamed(storage.logs)
        assert await anext(stream) is not None
        del stream
        gc.collect()
        assert await count(storage) == LOGS

    run(test)


@STREAMS
def test_streams_that_were_never_read_hold_nothing(streamed: Streamed) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        streams = [streamed(storage.logs) for _ in range(3)]
        assert await count(storage) == LOGS
        for stream in streams:
            await stream.aclose()

    run(test)


@STREAMS
def test_streams_that_are_cancelled_anywhere_give_their_thread_back(streamed: Streamed) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        async def read() -> int:
            return len([item async for item in streamed(storage.logs)])

        for rounds in range(40):
            tasks = [asyncio.create_task(read()) for _ in range(3)]  # one reads, the others wait for a thread
            for _ in range(rounds):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await count(storage) == LOGS
        assert await asyncio.wait_for(read(), TIMEOUT_S) == (LOGS if streamed is records else LOGS // 100)

    run(test)


@STREAMS
def test_a_stream_that_fails_gives_its_thread_back(streamed: Streamed) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        await asyncio.to_thread(drop_logs, storage)
        for _ in range(3):
            with pytest.raises(DatabaseError, match="raw_logs"):
                await asyncio.wait_for(anext(streamed(storage.logs)), TIMEOUT_S)

    run(test)


def drop_logs(storage: AsyncDuckDBStorage) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE raw_logs")


@STREAMS
def test_closing_the_storage_ends_half_read_streams(streamed: Streamed) -> None:
    async def body() -> None:
        async with a_storage(2) as storage:
            stream = streamed(storage.logs)
            assert await anext(stream) is not None
        with pytest.raises(DatabaseError, match="closed"):
            async for _ in stream:
                pass
        with pytest.raises(DatabaseError, match="closed"):
            await anext(streamed(storage.logs))

    asyncio.run(asyncio.wait_for(body(), TIMEOUT_S))


def test_a_stream_that_waits_for_a_thread_is_told_when_the_storage_closes() -> None:
    async def body() -> None:
        async with a_storage() as storage:
            first = storage.logs.iter_records()
            await anext(first)
            streams = [storage.logs.iter_records() for _ in range(3)]
            waiting = [asyncio.create_task(step(stream)) for stream in streams]
            for _ in range(5):  # until they wait in the queue, before who closes
                await asyncio.sleep(0)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(end) for end in ends} == {StorageClosedError}

    asyncio.run(asyncio.wait_for(body(), TIMEOUT_S))


async def step(stream: AsyncIterator[object]) -> object:
    return await anext(stream)


def test_streams_run_side_by_side_and_see_one_moment_each() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        async def read(number: int) -> list[int]:
            mine = Logs.c.log_id.in_([uid(number * 1000 + each) for each in range(1000)])
            return [row.log_id.int async for row in storage.logs.where(mine).iter_records()]

        found = await asyncio.gather(*(read(number % 5) for number in range(20)))
        assert found == [[number % 5 * 1000 + each for each in range(1000)] for number in range(20)]
        stream = storage.logs.iter_records()
        seen = [(await anext(stream)).log_id.int]
        await storage.write_logs([log(LOGS)])
        seen += [row.log_id.int async for row in stream]
        assert seen == list(range(LOGS))

    run(test, pool_size=3)


def test_pages_go_on_at_a_cursor_and_go_back() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        for number in range(9):
            await storage.write_fiber(fiber(number))
        logs = storage.logs.where(Logs.c.timestamp >= at(1), Logs.c.timestamp < at(6)).order_by("newest")
        first = await logs.page(2)
        second = await logs.page(2, first.next)
        assert [[row.log_id.int for row in page.items] for page in (first, second)] == [[5, 4], [3, 2]]
        assert (await logs.page(2, second.previous)).items == first.items
        fibers = storage.fibers.where(Fibers.c.fiber_id != uid(0)).where(Fibers.c.fiber_id != uid(2))
        first_fibers = await fibers.page(3)
        second_fibers = await fibers.page(3, first_fibers.next)
        assert {row.fiber_id.int for page in (first_fibers, second_fibers) for row in page.items} == {
            1, 3, 4, 5, 6, 7,
        }  # fmt: skip
        assert (await fibers.page(3, second_fibers.previous)).items == first_fibers.items

    run(test)


def test_what_is_no_condition_is_refused() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        with pytest.raises(TypeError, match="condition"):
            storage.logs.where(Fibers.c.closed)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="limit"):
            await storage.logs.page(0)

    run(test)


def test_queries_of_a_transaction_see_what_it_wrote() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        async with storage.transaction() as transaction:
            await transaction.logs.write_logs([log(LOGS)])
            await transaction.fibers.write_fiber(fiber(1))
            await transaction.memberships.write_memberships([member(LOGS, 1)])
            assert await transaction.logs.count() == LOGS + 1
            page = await transaction.logs.order_by("newest").page(1)
            assert [row.log_id for row in page.items] == [uid(LOGS)]
            in_a_log = Fibers.c.logs.any(Logs.c.timestamp == at(LOGS))
            assert [row.fiber_id async for row in transaction.fibers.where(in_a_log).iter_records()] == [
                uid(1)
            ]
            assert await transaction.memberships.count() == 1

    run(test)


@STREAMS
def test_a_half_read_stream_of_a_transaction_ends_with_it(streamed: Streamed) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        async with storage.transaction() as transaction:
            await transaction.logs.write_logs([log(LOGS)])
            stream = streamed(transaction.logs)
            assert await anext(stream) is not None
            assert await transaction.logs.count() == LOGS + 1  # the same thread
        with pytest.raises(DatabaseError, match="closed"):
            async for _ in stream:
                pass
        assert await count(storage) == LOGS + 1

    run(test)


def test_a_where_of_a_transaction_leaves_its_repository_as_it_is() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        async with storage.transaction() as transaction:
            assert await transaction.logs.where(Logs.c.timestamp > at(9)).count() == LOGS - 10
            assert await transaction.logs.count() == LOGS
            assert await storage.logs.where(Logs.c.timestamp > at(9)).count() == LOGS - 10

    run(test, pool_size=2)


def test_a_tail_waits_without_a_thread_and_meets_each_log_once() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        tail = await storage.logs.where(Logs.c.source_id == "mine").tail()
        waiting = asyncio.create_task(step(tail))
        await asyncio.sleep(0)
        assert await count(storage) == LOGS  # the pool has one thread
        await storage.write_logs([a_log("other", 1), *(a_log("mine", number) for number in range(3))])
        found = [await asyncio.wait_for(waiting, TIMEOUT_S), await anext(tail)]
        position = tail.position
        found.append(await anext(tail))
        assert [row.log_id for row in found if isinstance(row, StoredLog)] == [
            uid(10**6 + n) for n in range(3)
        ]
        again = await storage.logs.where(Logs.c.source_id == "mine").tail(position, timeout_s=0)
        assert [row.log_id async for row in again] == [uid(10**6 + 2)]

    run(test)


def a_log(source: str, number: int) -> LogRecord:
    begin = 10**6 if source == "mine" else 2 * 10**6
    return LogRecord(log_id=uid(begin + number), timestamp=at(0), source_id=source, raw_text="text")


def test_a_wait_for_a_tail_that_is_cancelled_loses_no_log() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        tail = await storage.logs.tail("")
        found: list[StoredLog] = []
        attempts = 0
        while len(found) < LOGS:
            attempts += 1
            try:
                found.append(await asyncio.wait_for(anext(tail), 0.0005 * (attempts % 50)))
            except TimeoutError:
                continue
        assert [row.log_id.int for row in found] == list(range(LOGS))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(tail), 0.05)
        assert await count(storage) == LOGS

    run(test)


def test_a_look_goes_on_when_the_wait_for_it_is_cancelled() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        tail = await storage.logs.tail("")
        found: list[StoredLog] = []
        cancelled = 0
        while len(found) < LOGS // 2 and cancelled < 20:
            try:
                async with asyncio.timeout(0):
                    found.append(await anext(tail))
            except TimeoutError:
                cancelled += 1
                await count(storage)  # waits for the look, as the pool has one thread
        rest = await storage.logs.tail(tail.position, timeout_s=0)
        ids = [row.log_id.int for row in found]
        assert ids == list(range(LOGS // 2))
        assert [row.log_id.int async for row in rest] == list(range(LOGS // 2, LOGS))

    run(test)


@pytest.mark.usefixtures("collects_garbage")
def test_a_look_that_fails_while_nobody_waits_is_no_ones_error(caplog: pytest.LogCaptureFixture) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        tail = await storage.logs.tail("")
        await asyncio.to_thread(drop_logs, storage)
        begun = asyncio.create_task(step(tail))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # until the look has begun
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)
        with pytest.raises(DatabaseError, match="raw_logs"):
            await storage.logs.count()  # after the look: the pool has one thread
        again = await asyncio.gather(step(tail), return_exceptions=True)
        assert [type(error) for error in again] == [DatabaseError]
        del tail, begun, again
        gc.collect()

    run(test)
    assert complaints(caplog) == []


@pytest.mark.slow
@pytest.mark.usefixtures("collects_garbage")
def test_a_tail_that_is_forgotten_while_it_looks_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        tasks = asyncio.all_tasks()
        for rounds in range(8):
            tail = await storage.logs.tail("")
            waiting = asyncio.create_task(step(tail))
            for _ in range(rounds):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            del tail, waiting
            gc.collect()
            assert await count(storage) == LOGS
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == tasks

    for _ in range(2):
        run(test)
    asyncio.run(leave_looking())
    gc.collect()
    assert complaints(caplog) == []


async def leave_looking() -> None:
    async with a_storage() as storage:
        tail = await storage.logs.tail("")
        waiting = asyncio.create_task(step(tail))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def test_a_tail_ends_when_nothing_was_stored_for_its_timeout() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        tail = await storage.logs.tail(timeout_s=0.2)
        assert [row async for row in tail] == []
        assert 0.2 <= loop.time() - began_s < TIMEOUT_S

    run(test)


def test_arrow_batches_of_nothing_tell_the_schema() -> None:
    async def test(storage: AsyncDuckDBStorage) -> None:
        (none,) = [batch async for batch in storage.logs.where(Logs.c.source_id == "none").to_arrow()]
        some = [batch async for batch in storage.logs.to_arrow(2_000)]
        assert none.num_rows == 0
        assert none.schema == some[0].schema
        assert max(batch.num_rows for batch in some) <= 2_000
        assert pa.Table.from_batches(some).num_rows == LOGS

    run(test)
