"""``AsyncBufferedWriter``: what ``BufferedWriter`` promises, in coroutines."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fiberstore import (
    AsyncBufferedWriter,
    AsyncDuckDBStorage,
    BufferFullError,
    CheckpointMove,
    ConflictError,
    DatabaseError,
    FiberKey,
    FiberMembership,
    FiberRecord,
    LogRecord,
    UnwrittenError,
)
from fiberstore.contract.results import BatchCounts
from fiberstore.testing.examples import fiber, log, member, uid
from fiberstore.writer.buffer import BufferedRecord, checked

TIMEOUT_S = 60
NEVER_S = 1_000.0
LOG_BYTES = checked(log(1))[1]


class GatedStorage(AsyncDuckDBStorage):
    """A storage whose batches wait for a gate, and fail as often as they are told."""

    def __init__(self, target: Path) -> None:
        super().__init__(target)
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Semaphore(0)
        self.errors: list[Exception] = []
        self.batches: list[list[BufferedRecord]] = []

    async def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        keys: Iterable[FiberKey] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        logs, fibers, memberships = list(logs), list(fibers), list(memberships)
        self.arrived.release()
        async with asyncio.timeout(TIMEOUT_S):
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append([*logs, *fibers, *memberships])
        return await super().write_batch(
            logs=logs, fibers=fibers, memberships=memberships, keys=keys, checkpoint=checkpoint
        )

    async def numbers(self) -> list[int]:
        return [row.log_id.int async for row in self.logs.iter_records()]


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[GatedStorage]:
    async with GatedStorage(path) as storage:
        yield storage


def run(path: Path, body: Callable[[GatedStorage], Coroutine[Any, Any, None]]) -> None:
    async def in_loop() -> None:
        async with asyncio.timeout(TIMEOUT_S), opened(path) as storage:
            await body(storage)

    asyncio.run(in_loop())


def test_it_flushes_by_rows_by_bytes_and_by_time(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        async with AsyncBufferedWriter(storage, flush_rows=3, flush_interval_s=NEVER_S) as writer:
            await asyncio.gather(*[await writer.write(log(number)) for number in range(3)])
            late = await writer.write(log(3))
            assert [len(batch) for batch in storage.batches] == [3]
        assert late.done()
        async with AsyncBufferedWriter(storage, flush_bytes=50_000, flush_interval_s=NEVER_S) as writer:
            small = [await writer.write(log(number)) for number in range(4, 6)]
            assert len(storage.batches) == 2
            await asyncio.gather(*small, await writer.write(log(6, text="x" * 50_000)))
        assert [len(batch) for batch in storage.batches] == [3, 1, 2, 1]
        async with AsyncBufferedWriter(storage, flush_interval_s=0.05) as writer:
            await (await writer.write(log(7)))
            await (await writer.write(log(8)))
        assert [len(batch) for batch in storage.batches] == [3, 1, 2, 1, 1, 1]

    run(store_file, body)


def test_all_kinds_of_records_are_stored_and_flush_waits_for_them(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        threads = threading.active_count()
        async with AsyncBufferedWriter(storage, flush_interval_s=NEVER_S) as writer:
            await writer.flush()
            records = (fiber(1, "login"), log(1), member(1, 1), fiber(1, attributes={"n": 1}))
            futures = [await writer.write(record) for record in records]
            await writer.flush()
            assert all(future.done() and future.exception() is None for future in futures)
            assert await storage.get_fiber(uid(1)) == fiber(1, attributes={"n": 1})
            assert await storage.get_log_fibers(uid(1)) == [uid(1)]
            with pytest.raises(ValueError, match="NUL"):
                await writer.write(log(2).model_copy(update={"raw_text": "\0"}))
            storage.gate.clear()
            late = await writer.write(log(3))
            with pytest.raises(TimeoutError, match="1 records are not stored yet"):
                await writer.flush(timeout_s=0.01)
            storage.gate.set()
        assert late.done()
        assert threading.active_count() <= threads + 1  # the storage's own, when it works first

    run(store_file, body)


def test_block_waits_for_room_and_a_cancelled_write_is_not_taken(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        storage.gate.clear()
        async with AsyncBufferedWriter(
            storage, flush_rows=2, flush_interval_s=NEVER_S, buffer_bytes=3 * LOG_BYTES
        ) as writer:
            futures = [await writer.write(log(number)) for number in range(3)]
            await storage.arrived.acquire()  # two are being written, and count
            blocked = [asyncio.create_task(writer.write(log(number))) for number in (3, 4)]
            assert not (await asyncio.wait(blocked, timeout=0.05))[0]
            blocked[1].cancel()
            storage.gate.set()
            futures.append(await blocked[0])
            for number in range(10, 100):
                await writer.write(log(number))
        assert all(future.done() for future in futures)
        assert await storage.numbers() == [0, 1, 2, 3, *range(10, 100)]

    run(store_file, body)


def test_raise_and_drop_refuse_what_has_no_room(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        storage.gate.clear()
        async with AsyncBufferedWriter(
            storage, flush_rows=1, buffer_bytes=2 * LOG_BYTES, when_full="raise"
        ) as writer:
            for number in range(2):
                await writer.write(log(number))
            with pytest.raises(BufferFullError):
                await writer.write(log(2))
            storage.gate.set()
        storage.gate.clear()
        async with AsyncBufferedWriter(
            storage, flush_rows=1, buffer_bytes=2 * LOG_BYTES, when_full="drop"
        ) as writer:
            futures = [await writer.write(log(number)) for number in range(10, 15)]
            assert writer.dropped == 3
            assert [type(future.exception()) for future in futures[2:]] == [BufferFullError] * 3
            storage.gate.set()
        assert await storage.numbers() == [0, 1, 10, 11]

    run(store_file, body)


def test_a_failed_flush_loses_nothing_and_keeps_the_order(
    store_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(storage: GatedStorage) -> None:
        storage.errors = [DatabaseError("no space for 'secret'"), ConflictError("once more")]
        async with AsyncBufferedWriter(storage, flush_rows=2) as writer:
            futures = [await writer.write(log(number, text="secret")) for number in range(5)]
            with pytest.raises((DatabaseError, ConflictError)):
                await writer.flush(timeout_s=0.01)
            assert not any(future.done() for future in futures)
            await writer.flush()
            assert writer.last_error is None
            assert all(future.done() for future in futures)
        written = [record for batch in storage.batches for record in batch]
        assert written == [log(number, text="secret") for number in range(5)]

    with caplog.at_level(logging.WARNING, "fiberstore"):
        run(store_file, body)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "secret" not in caplog.text


def test_close_gives_back_what_could_not_be_stored(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        writer = AsyncBufferedWriter(storage, flush_interval_s=NEVER_S)
        futures = [await writer.write(log(number)) for number in range(3)]
        assert futures[0].cancel()
        await storage.close()
        with pytest.raises(UnwrittenError, match=r"3 records .* storage is closed") as caught:
            await writer.close(timeout_s=0)
        assert caught.value.records == [log(number) for number in range(3)]
        assert isinstance(futures[1].exception(), DatabaseError)
        await writer.close()
        with pytest.raises(DatabaseError, match="writer is closed"):
            await writer.write(log(4))

    run(store_file, body)


def test_one_who_waits_for_a_flush_is_told_that_it_was_given_up(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        storage.gate.clear()
        storage.errors = [DatabaseError("not today")]
        writer = AsyncBufferedWriter(storage, flush_rows=1)
        future = await writer.write(log(1))
        flushing = asyncio.create_task(writer.flush())
        closing = asyncio.create_task(writer.close(timeout_s=0))
        await storage.arrived.acquire()
        storage.gate.set()
        with pytest.raises(DatabaseError, match="not today"):
            await flushing
        with pytest.raises(UnwrittenError):
            await closing
        with pytest.raises(DatabaseError, match="not today"):
            await future

    run(store_file, body)


def test_a_cancelled_future_changes_nothing(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        async with AsyncBufferedWriter(storage, flush_interval_s=NEVER_S) as writer:
            futures = [await writer.write(log(number)) for number in range(3)]
            assert futures[1].cancel()
            await writer.flush()
            assert futures[2].result() is None
        assert await storage.numbers() == [0, 1, 2]

    run(store_file, body)


def test_close_under_load_keeps_what_it_has_taken(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        writer = AsyncBufferedWriter(storage, flush_rows=20, buffer_bytes=60 * LOG_BYTES)
        taken: list[tuple[int, asyncio.Future[None]]] = []

        async def write(task: int) -> None:
            for number in range(task, 10_000_000, 4):
                future = await writer.write(log(number))
                taken.append((number, future))

        tasks = [asyncio.create_task(write(task)) for task in range(4)]
        while len(taken) < 500:
            await asyncio.sleep(0)
        closing = asyncio.create_task(writer.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await writer.close()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {str(error) for error in errors} == {"the writer is closed"}
        assert all(future.done() and future.exception() is None for _, future in taken)
        assert await storage.numbers() == sorted(number for number, _ in taken)

    run(store_file, body)


def test_a_loop_that_ends_first_says_what_is_lost(store_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        storage = AsyncDuckDBStorage(store_file)
        writer = AsyncBufferedWriter(storage, flush_interval_s=NEVER_S)
        for number in range(3):
            await writer.write(log(number))
        await storage.close()

    with caplog.at_level(logging.ERROR, "fiberstore"):
        asyncio.run(body())
    assert "3 records are not stored" in caplog.text


def test_a_writer_that_was_not_used_closes(store_file: Path) -> None:
    async def body(storage: GatedStorage) -> None:
        async with AsyncBufferedWriter(storage) as writer:
            await writer.flush()
        await writer.close()
        with pytest.raises(ValueError, match="when_full"):
            AsyncBufferedWriter(storage, when_full="wait")  # type: ignore[arg-type]

    run(store_file, body)
