"""``AsyncBufferedWriter``: ``BufferedWriter`` in coroutines, without a thread of its own."""

import asyncio
import logging
import os
import time
from types import TracebackType
from typing import Self

from fiberstore.aio.storage import AsyncLifecycleStorage
from fiberstore.writer.buffer import (
    DEFAULT_CLOSE_TIMEOUT_S,
    AsyncLogSink,
    Batch,
    BufferedRecord,
    Writer,
    warn_of,
)

_logger = logging.getLogger(__name__)


class AsyncBufferedWriter(Writer[AsyncLifecycleStorage | AsyncLogSink, asyncio.Future[None]]):
    """``BufferedWriter`` in coroutines: same arguments, same contract, for use in one event loop.

    Use it as an asynchronous context manager, or call ``close()``, before the storage is closed and before
    the loop ends: what is not stored when the loop ends is lost, and an error is logged.

    Raises:
        TypeError: ``storage`` is neither an ``AsyncLifecycleStorage`` nor an ``AsyncLogSink``.
        ValueError: An argument is out of bounds.
    """

    _storage_kind = AsyncLifecycleStorage
    _in_coroutines = True

    def _prepare(self) -> None:
        self._due = asyncio.Event()
        self._progress = asyncio.Event()  # a new one after each progress
        self._task: asyncio.Task[None] | None = None

    async def write(self, record: BufferedRecord) -> asyncio.Future[None]:
        """Take a record. If the call is cancelled, the record is not taken.

        A ``LogRecord`` is stamped when it is flushed. Of several fibers of one id in a batch, the last is
        stored.

        Returns:
            A future that is done when the record is durable. If the future is cancelled, the record is
            written all the same. For a record that was dropped, it has ``BufferFullError``; after a
            ``close()`` that failed, the error of the storage.

        Raises:
            TypeError: It is no record, lacks a field, or is no log where nothing else is taken.
            ValueError: It holds values that cannot be stored.
            BufferFullError: There is no room, and ``when_full`` is ``"raise"``.
            DatabaseError: The writer is closed, or belongs to a parent process.
        """
        copy, size_bytes = self._checked(record)
        self._start()
        future = asyncio.get_running_loop().create_future()
        if self._buffer.is_full:
            await asyncio.sleep(0)  # or a loop of writes would leave no turn to the flush
            self._buffer.check_open()
        if not self._buffer.has_room(size_bytes) and not await self._get_room(size_bytes):
            _fail(future, self._buffer.full())
        elif self._buffer.add(copy, size_bytes, time.monotonic(), future):
            self._due.set()
        return future

    async def flush(self, timeout_s: float | None = None) -> None:
        self._refuse_fork()
        wanted = self._buffer.demand()
        self._due.set()
        try:
            async with asyncio.timeout(timeout_s):
                while self._buffer.durable < wanted and not self._has_ended:
                    await self._progress.wait()
        except TimeoutError:
            pass  # it may be durable all the same
        self._buffer.check_durable(wanted)

    async def close(self, timeout_s: float = DEFAULT_CLOSE_TIMEOUT_S) -> None:
        if self._pid != os.getpid():
            return
        self._buffer.close(time.monotonic() + timeout_s)
        self._due.set()
        self._tell()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._buffer.check_written()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _start(self) -> None:
        self._refuse_fork()
        self._buffer.check_open()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="fiberstore-writer")

    async def _get_room(self, size_bytes: int) -> bool:
        """Wait for room, or return that there is none."""
        buffer = self._buffer
        if not self._may_wait_for_room():
            return False
        buffer.waiting += 1
        self._due.set()
        try:
            while not buffer.is_closing and not buffer.has_room(size_bytes):
                await self._progress.wait()
        finally:
            buffer.waiting -= 1
        buffer.check_open()
        return True

    def _tell(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    async def _run(self) -> None:
        try:
            while batch := await self._next_batch():
                await self._write(batch)
        finally:
            if len(self._buffer) and not self._buffer.has_given_up:  # nobody may ask any more
                _logger.error("the event loop has ended, and %d records are not stored", len(self._buffer))
            futures, error = self._buffer.end("the event loop has ended before the writer was closed")
            for future in futures:
                if not future.done():  # it may have been cancelled
                    _fail(future, error)
            self._has_ended = True
            self._tell()

    async def _next_batch(self) -> Batch[asyncio.Future[None]] | None:
        """Wait until a batch is due; None is the end."""
        while True:
            due_in_s = self._buffer.due_in_s(time.monotonic())
            if due_in_s == 0:
                return self._buffer.batch()
            if due_in_s is None and self._buffer.is_closing:
                return None
            self._due.clear()
            try:
                async with asyncio.timeout(due_in_s):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _write(self, batch: Batch[asyncio.Future[None]]) -> None:
        try:
            if isinstance(self._storage, AsyncLifecycleStorage):
                await self._storage.write_batch(
                    logs=batch.logs, fibers=batch.fibers, memberships=batch.memberships
                )
            else:
                await self._storage.write(batch.logs)
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing may be lost
            warn_of(error, self._buffer.failed(error, time.monotonic()))
            return
        for future in batch.futures:
            if not future.done():  # it may have been cancelled
                future.set_result(None)
        self._buffer.stored(batch)
        self._tell()


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # or asyncio would complain of each that nobody asks
