"""The queries in coroutines: each asks the query it wraps, in a thread."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import closing
from copy import copy
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar
from uuid import UUID

from fiberstore.aio.workers import Threads
from fiberstore.contract.conditions import Condition, Scalar
from fiberstore.contract.queries import (
    ARROW_BATCH_ROWS,
    AsyncFibers,
    AsyncLogs,
    AsyncLogTail,
    AsyncMemberships,
    AsyncQuery,
    Bucket,
    Deleted,
    FiberOrder,
    Fibers,
    FiberSummary,
    Found,
    LogContext,
    LogOrder,
    Logs,
    Memberships,
    Page,
    Partition,
    Query,
    R,
    Timeline,
    ValueCount,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.records import FiberMembership, FiberRecord, StoredLog

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

_RECORDS_AT_ONCE = 2_048
_POLL_S = 0.1


class ThreadedQuery(AsyncQuery[R], Generic[R]):
    """``AsyncQuery`` on a query.

    Args:
        query: What is asked.
        threads: Where.
    """

    _query: Query[R]

    def __init__(self, query: Query[R], threads: Threads) -> None:
        self._query = query
        self._threads = threads

    def where(self, *conditions: Condition[R]) -> Self:
        """See ``Query.where``."""
        return self._on(self._query.where(*conditions))

    async def count(self, at_most: int | None = None) -> int:
        """See ``Query.count``."""
        return await self._threads.run(self._query.count, at_most)

    def iter_records(self) -> AsyncGenerator[R, None]:
        """See ``AsyncQuery.iter_records``."""
        return _stream(self._threads, _records(self._query), _RECORDS_AT_ONCE)

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> AsyncGenerator["pa.RecordBatch", None]:
        """See ``AsyncQuery.to_arrow``."""
        return _stream(self._threads, _batches(self._query, batch_rows), 1)

    async def export(
        self,
        path: str | Path,
        *,
        partition_by: Partition | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> int:
        """See ``Query.export``."""
        return await self._threads.run(self._query.export, path, partition_by=partition_by, on_rows=on_rows)

    async def delete(self) -> Deleted:
        """See ``Query.delete``."""
        return await self._threads.run(self._query.delete)

    def __repr__(self) -> str:
        return repr(self._query)

    def _on(self, query: Query[R]) -> Self:
        other = copy(self)
        other._query = query
        return other


class ThreadedLogs(ThreadedQuery[StoredLog], AsyncLogs):
    """``AsyncLogs`` on ``Logs``."""

    _query: Logs

    def order_by(self, order: LogOrder) -> Self:
        """See ``Logs.order_by``."""
        return self._on(self._query.order_by(order))

    async def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[StoredLog]:
        """See ``Logs.page``."""
        return await self._threads.run(self._query.page, limit, cursor)

    async def get_many(self, log_ids: Iterable[UUID]) -> Found[StoredLog]:
        """See ``Logs.get_many``."""
        return await self._threads.run(self._query.get_many, list(log_ids))

    async def by_fiber(
        self, fiber_ids: Iterable[UUID], limit_per_fiber: int = DEFAULT_LIMIT
    ) -> dict[UUID, list[StoredLog]]:
        """See ``Logs.by_fiber``."""
        return await self._threads.run(self._query.by_fiber, list(fiber_ids), limit_per_fiber)

    async def sources(self) -> list[ValueCount[str]]:
        """See ``Logs.sources``."""
        return await self._threads.run(self._query.sources)

    async def histogram(
        self,
        width: timedelta,
        *,
        by: Literal["source_id"] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Bucket]:
        """See ``Logs.histogram``."""
        return await self._threads.run(self._query.histogram, width, by=by, start=start, end=end)

    async def context(
        self,
        log_id: UUID,
        before: int = 10,
        after: int = 10,
        *,
        within: Literal["source", "fibers"] | None = None,
    ) -> LogContext | None:
        """See ``Logs.context``."""
        return await self._threads.run(self._query.context, log_id, before, after, within=within)

    async def tail(self, position: str | None = None, *, timeout_s: float | None = None) -> AsyncLogTail:
        """See ``AsyncLogs.tail``."""
        began_at = await self._threads.run(_begin_tail, self._query, position, timeout_s)
        return ThreadedLogTail(self._query, self._threads, began_at, timeout_s)

    async def redact(self, pattern: str, replacement: str = "[redacted]") -> int:
        """See ``Logs.redact``."""
        return await self._threads.run(self._query.redact, pattern, replacement)

    async def pin(self) -> int:
        """See ``Logs.pin``."""
        return await self._threads.run(self._query.pin)

    async def unpin(self) -> int:
        """See ``Logs.unpin``."""
        return await self._threads.run(self._query.unpin)


class ThreadedLogTail(AsyncLogTail):
    """Looks again and again for what a tail that does not wait would give."""

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
        """See ``LogTail.position``."""
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


class ThreadedFibers(ThreadedQuery[FiberRecord], AsyncFibers):
    """``AsyncFibers`` on ``Fibers``."""

    _query: Fibers

    def order_by(self, order: FiberOrder) -> Self:
        """See ``Fibers.order_by``."""
        return self._on(self._query.order_by(order))

    async def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberRecord]:
        """See ``Fibers.page``."""
        return await self._threads.run(self._query.page, limit, cursor)

    async def summaries(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberSummary]:
        """See ``Fibers.summaries``."""
        return await self._threads.run(self._query.summaries, limit, cursor)

    async def get_many(self, fiber_ids: Iterable[UUID]) -> Found[FiberRecord]:
        """See ``Fibers.get_many``."""
        return await self._threads.run(self._query.get_many, list(fiber_ids))

    async def by_log(self, log_ids: Iterable[UUID]) -> dict[UUID, list[FiberRecord]]:
        """See ``Fibers.by_log``."""
        return await self._threads.run(self._query.by_log, list(log_ids))

    async def types(self) -> list[ValueCount[str]]:
        """See ``Fibers.types``."""
        return await self._threads.run(self._query.types)

    async def attribute_keys(self, pointer: str = "") -> list[ValueCount[str]]:
        """See ``Fibers.attribute_keys``."""
        return await self._threads.run(self._query.attribute_keys, pointer)

    async def attribute_values(self, pointer: str, limit: int = 20) -> list[ValueCount[Scalar]]:
        """See ``Fibers.attribute_values``."""
        return await self._threads.run(self._query.attribute_values, pointer, limit)

    async def histogram(
        self,
        width: timedelta,
        *,
        by: Literal["fiber_type"] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Bucket]:
        """See ``Fibers.histogram``."""
        return await self._threads.run(self._query.histogram, width, by=by, start=start, end=end)

    async def timeline(self, fibers: int = 50, points: int = 10_000) -> Timeline:
        """See ``Fibers.timeline``."""
        return await self._threads.run(self._query.timeline, fibers, points)

    async def close(self) -> int:
        """See ``Fibers.close``."""
        return await self._threads.run(self._query.close)

    async def reopen(self) -> int:
        """See ``Fibers.reopen``."""
        return await self._threads.run(self._query.reopen)

    async def pin(self) -> int:
        """See ``Fibers.pin``."""
        return await self._threads.run(self._query.pin)

    async def unpin(self) -> int:
        """See ``Fibers.unpin``."""
        return await self._threads.run(self._query.unpin)


class ThreadedMemberships(ThreadedQuery[FiberMembership], AsyncMemberships):
    """``AsyncMemberships`` on ``Memberships``."""

    _query: Memberships


async def _stream(
    threads: Threads, parts: Generator[T, None, None], parts_at_once: int
) -> AsyncGenerator[T, None]:
    """Read a generator in a thread, which is free again however this ends."""
    thread = await threads.hold(parts.close)
    try:
        while some := await thread.run(_next, parts, parts_at_once):
            for part in some:
                yield part
    finally:
        thread.end()


def _next(parts: Iterable[T], count: int) -> list[T]:
    return list(islice(parts, count))


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


def _begin_tail(query: Logs, position: str | None, timeout_s: float | None) -> str:
    return query.tail(position, timeout_s=timeout_s).position


def _take_error(looking: "asyncio.Task[None]") -> None:
    """Have asyncio not warn of the error of a look that nobody waits for: the next look will meet it."""
    if not looking.cancelled():
        looking.exception()


def _look(query: Logs, position: str) -> tuple[list[tuple[StoredLog, str]], str]:
    """Return the logs after the position, each with the position after it, and how far this looked."""
    tail = query.tail(position, timeout_s=0)
    found = [(log, tail.position) for log in islice(tail, _RECORDS_AT_ONCE)]
    return found, tail.position
