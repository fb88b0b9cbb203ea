"""Streams and tails in coroutines, which hold a thread no longer than they have to."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from fiberstore.aio.workers import Threads
from fiberstore.contract.queries import Logs, Query, R
from fiberstore.records import StoredLog

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

_RECORDS_AT_ONCE = 2_048
_POLL_S = 0.1


class AsyncLogTail(AsyncIterator[StoredLog]):
    """``LogTail`` with coroutines. While it waits it holds no thread, and a cancelled wait loses no log.

    It looks again and again for what a tail that does not wait would give.
    """

    def __init__(self, query: Logs, threads: Threads, position: str, timeout_s: float | None) -> None:
        self._query = query
        self._threads = threads
        self._position = position
        self._read_to = position
        self._found: deque[tuple[StoredLog, str]] = deque()
        self._timeout_s = timeout_s
        self._looking: asyncio.Task[None] | None = None  # goes on when a wait for it is cancelled

    @property
    def position(self) -> str:
        """The position after the last log that was given out, for ``tail()``; it outlives the program."""
        return self._position

    async def __anext__(self) -> StoredLog:
        now_s = asyncio.get_running_loop().time
        until_s = math.inf if self._timeout_s is None else now_s() + self._timeout_s
        while not self._found:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
                self._looking.add_done_callback(_take_error)
            looking = self._looking
            await asyncio.wait([looking])
            looking.result()
            if not self._found:
                rest_s = until_s - now_s()
                if rest_s <= 0:
                    raise StopAsyncIteration
                await asyncio.sleep(min(rest_s, _POLL_S))
        log, self._position = self._found.popleft()
        return log

    async def _look(self) -> None:
        found, self._read_to = await self._threads.run(_look, self._query, self._read_to)
        self._found.extend(found)
        if not found:
            self._position = self._read_to


def stream_records(threads: Threads, query: Query[R]) -> AsyncGenerator[R, None]:
    """Read the records of a query; nothing happens before the first is asked for."""
    return _stream(threads, _records(query), _RECORDS_AT_ONCE)


def stream_batches(
    threads: Threads, query: Query[R], batch_rows: int
) -> AsyncGenerator["pa.RecordBatch", None]:
    """Read a query in Arrow batches; of no rows, there is one batch without any, for its schema."""
    return _stream(threads, _batches(query, batch_rows), 1)


async def follow(
    threads: Threads, query: Logs, position: str | None, timeout_s: float | None
) -> AsyncLogTail:
    """Begin to follow a query at a position, or now; see ``Logs.tail``."""
    began_at = await threads.run(lambda: query.tail(position, timeout_s=timeout_s).position)
    return AsyncLogTail(query, threads, began_at, timeout_s)


async def _stream(
    threads: Threads, parts: Generator[T, None, None], parts_at_once: int
) -> AsyncGenerator[T, None]:
    """Read a generator in a thread, which is free again however this ends."""
    thread = await threads.hold(parts.close)
    try:
        while some := await thread.run(lambda: list(islice(parts, parts_at_once))):
            for part in some:
                yield part
    finally:
        thread.end()


def _records(query: Query[R]) -> Generator[R, None, None]:
    yield from query.iter_records()


def _batches(query: Query[R], batch_rows: int) -> Generator["pa.RecordBatch", None, None]:
    import pyarrow as pa

    with closing(query.to_arrow(batch_rows)) as reader:
        batch = None
        for batch in reader:
            yield batch
        if batch is None:
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)


def _take_error(looking: "asyncio.Task[None]") -> None:
    """Have asyncio not warn of the error of a look that nobody waits for: the next look will meet it."""
    if not looking.cancelled():
        looking.exception()


def _look(query: Logs, position: str) -> tuple[list[tuple[StoredLog, str]], str]:
    """Return the logs after the position, each with the position after it, and how far this looked."""
    tail = query.tail(position, timeout_s=0)
    found = [(log, tail.position) for log in islice(tail, _RECORDS_AT_ONCE)]
    return found, tail.position
