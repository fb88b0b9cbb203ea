"""Queries in coroutines."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, ClassVar, Generic

from fiberstore.aio.face import Face
from fiberstore.aio.streams import AsyncLogTail, follow, stream_batches, stream_records
from fiberstore.contract.columns import FiberColumns, LogColumns, MembershipColumns
from fiberstore.contract.queries import (
    ARROW_BATCH_ROWS,
    FiberGroup,
    FiberOrder,
    Fibers,
    Group,
    LogGroup,
    LogOrder,
    Logs,
    Memberships,
    OrderName,
    P,
    Query,
    R,
    TimedQuery,
)
from fiberstore.records import FiberMembership, FiberRecord, StoredLog

if TYPE_CHECKING:
    import pyarrow as pa


class AsyncQuery(Face, Generic[R], of=Query):
    """``Query`` with coroutines: same names, same arguments, same contract.

    A stream is an asynchronous generator, which begins when it is read first: ask it in ``async for``, within
    ``contextlib.aclosing`` if it may be left before its end. An ``on_rows`` is called in another thread.
    """

    _wrapped: Query[R]

    def iter_records(self) -> AsyncGenerator[R, None]:
        return stream_records(self._threads, self._wrapped)

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> AsyncGenerator["pa.RecordBatch", None]:
        """Iterate over everything as it was at one moment in Arrow batches, in order.

        It begins when it is read first, and holds a connection of the pool until it ends or is closed. Of no
        rows, there is one batch without any, for its schema.

        Args:
            batch_rows: Most rows of a batch, >= 1.
        """
        return stream_batches(self._threads, self._wrapped, batch_rows)

    def __repr__(self) -> str:
        return repr(self._wrapped)


class AsyncTimedQuery(AsyncQuery[P], Generic[P, OrderName, Group], of=TimedQuery):
    """``TimedQuery`` with coroutines."""


class AsyncLogs(AsyncTimedQuery[StoredLog, LogOrder, LogGroup], of=Logs):
    """``Logs`` with coroutines.

    ``tail`` is one too, because it asks for its position: ``async for log in await logs.tail()``.
    """

    c: ClassVar[LogColumns] = Logs.c
    _wrapped: Logs

    async def tail(self, position: str | None = None, *, timeout_s: float | None = None) -> AsyncLogTail:
        return await follow(self._threads, self._wrapped, position, timeout_s)


class AsyncFibers(AsyncTimedQuery[FiberRecord, FiberOrder, FiberGroup], of=Fibers):
    """``Fibers`` with coroutines."""

    c: ClassVar[FiberColumns] = Fibers.c
    _wrapped: Fibers


class AsyncMemberships(AsyncQuery[FiberMembership], of=Memberships):
    """``Memberships`` with coroutines."""

    c: ClassVar[MembershipColumns] = Memberships.c
