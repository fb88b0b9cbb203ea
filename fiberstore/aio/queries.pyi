# Written by tools/write_stubs.py; not to be edited.

"""Queries in coroutines."""

from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar, Generic, Literal, Self
from uuid import UUID

import pyarrow as pa

from fiberstore.aio.face import Face
from fiberstore.aio.streams import AsyncLogTail
from fiberstore.contract.columns import FiberColumns, LogColumns, MembershipColumns
from fiberstore.contract.conditions import Condition, Scalar
from fiberstore.contract.queries import (
    ARROW_BATCH_ROWS,
    FiberGroup,
    FiberOrder,
    Fibers,
    Group,
    LogGroup,
    LogOrder,
    Logs,
    OrderName,
    P,
    Partition,
    Query,
    R,
)
from fiberstore.contract.results import (
    Bucket,
    Deleted,
    FiberSummary,
    Found,
    LogContext,
    Page,
    Timeline,
    ValueCount,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.records import FiberMembership, FiberRecord, StoredLog

class AsyncQuery(Face, Generic[R]):
    """``Query`` with coroutines: same names, same arguments, same contract.

    A stream is an asynchronous generator, which begins when it is read first: ask it in ``async for``, within
    ``contextlib.aclosing`` if it may be left before its end. An ``on_rows`` is called in another thread.
    """

    _wrapped: Query[R]

    def iter_records(self) -> AsyncGenerator[R]:
        """Return an iterator over all records as they were at one moment, in bounded memory, in order.

        It holds a connection of the pool until it ends or is closed.
        """

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> AsyncGenerator[pa.RecordBatch]:
        """Iterate over everything as it was at one moment in Arrow batches, in order.

        It begins when it is read first, and holds a connection of the pool until it ends or is closed. Of no
        rows, there is one batch without any, for its schema.

        Args:
            batch_rows: Most rows of a batch, >= 1.
        """

    def __repr__(self) -> str: ...
    def where(self, *conditions: Condition[R]) -> Self:
        """Return the query with these conditions besides those it has.

        Raises:
            TypeError: One is no condition on this kind of record.
        """

    async def count(self, at_most: int | None = None) -> int:
        """Count the records of the query.

        Args:
            at_most: Stop counting at this number, >= 0, and return it.

        Raises:
            ValueError: ``at_most`` is negative.
        """

    async def export(
        self,
        path: str | Path,
        *,
        partition_by: Partition | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> int:
        """Write everything into a new file, in order and in bounded memory; ``import_…`` reads it again.

        Args:
            path: The file, which has its name only once it is complete: ``.parquet``, ``.csv`` or ``.jsonl``.
                With ``partition_by`` a new folder of that name, with ``day=2024-12-10/part-0.parquet`` and so
                on in it.
            partition_by: Split by the UTC month, day or hour of ``timestamp`` or ``first_activity``; the
                query must be ordered by it, oldest or newest first. Of nothing, there is an empty ``part-0``.
            on_rows: Called with the number of rows of each batch.

        Returns:
            How many rows were written.

        Raises:
            ValueError: The suffix is none of these; or memberships, which have no time, are to be split, or
                what is ordered by something else.
            DatabaseError: The path exists, or cannot be written. Nothing is left there.
        """

    async def delete(self) -> Deleted:
        """Delete everything, all or none: logs and fibers with their memberships and pins.

        ``count()`` tells before how much that is. The space is free for what is written next; ``compact()``
        gives it back to the disk. Pins keep nothing from it.

        DuckDB lets nobody in while it commits deletes, 10 µs for each row. So of 20,000 rows or more, and a
        tenth of a table or more, a table without them is written beside the old one, while others read and
        write. One transaction verifies it, adds what came later and puts it in the place of the old one: all
        or none. Readers do not wait; writers do for that transaction, about 1 µs for each row that stays, and
        3 µs if others have changed or deleted rows of the table meanwhile, for then it is written once more.
        Row by row go fibers all the same, and others in a transaction of yours, beside one that has appended
        and stays open, while a listener or ``echo`` is on, if the disk has no room for the file once more,
        and from a table to which you have given columns, comments, triggers or foreign keys.
        """

class AsyncTimedQuery(AsyncQuery[P], Generic[P, OrderName, Group]):
    """``TimedQuery`` with coroutines."""

    def order_by(self, order: OrderName) -> Self:
        """Copy the query in another order.

        Args:
            order: ``"oldest"``, the default, is by ``(time, id)``; ``"newest"`` is its reverse. Fibers have
                two more: ``"longest"`` by ``(duration, fiber_id)`` and ``"most_logs"`` by
                ``(number of stored logs, fiber_id)``, both descending.

        Raises:
            ValueError: There is no such order.
        """

    async def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[P]:
        """Read a page of the query.

        Reading pages by ``page.next`` until it is None gives every record exactly once, in ``items`` or in
        ``late``, whatever is stored meanwhile. Only a fiber that moves in the order, or that begins to meet
        the conditions, may come twice or not at all. Every page costs the same. A transaction reads one
        snapshot: rows that it stores itself before the current page are not reported, and rows that it read
        before its commit may appear once more in ``late`` after it.

        Args:
            limit: Most rows, >= 1, and most late ones, unless transactions were open (PostgreSQL).
            cursor: ``next`` or ``previous`` of a page of this query; None for the first page.

        Raises:
            ValueError: ``limit`` is less than 1.
            CursorError: The cursor is damaged or of another query, or the newest row it knew of was deleted.
        """

    async def get_many(self, ids: Iterable[UUID]) -> Found[P]:
        """Look up the records of these ids that the query has, in the order of the ids."""

    async def histogram(
        self,
        width: timedelta,
        *,
        by: Group | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Bucket]:
        """Count the records in buckets of time.

        Args:
            width: Of a bucket, > 0. Buckets begin at multiples of it since 1970-01-01 UTC.
            by: Count each ``"source_id"`` of logs, or each ``"fiber_type"`` of fibers, by itself.
            start: Count from this instant on, and begin with its bucket; None is the first record.
            end: Count up to this instant, inclusive, and end with its bucket; None is the last record.

        Returns:
            A bucket for each step of time and each group, those without records too, ordered by both.

        Raises:
            ValueError: There would be more than 100,000 of them, the first would begin before the year 1, or
                the width is not positive.
        """

    async def pin(self) -> int:
        """Keep the logs of the query, or its fibers and their logs, from ``prune()``.

        Returns:
            How many were not pinned yet.
        """

    async def unpin(self) -> int:
        """Pin the records of the query no longer; return how many were."""

class AsyncLogs(AsyncTimedQuery[StoredLog, LogOrder, LogGroup]):
    """``Logs`` with coroutines.

    ``tail`` is one too, because it asks for its position: ``async for log in await logs.tail()``.
    """

    c: ClassVar[LogColumns]
    _wrapped: Logs

    async def tail(self, position: str | None = None, *, timeout_s: float | None = None) -> AsyncLogTail:
        """Return an iterator over the logs of the query in the order they are stored, and wait for more.

        Each log that is committed after the position comes exactly once, those of one call or transaction
        in any order. One whose timestamp or source an application changes comes again.

        Args:
            position: ``tail.position`` of another tail; None is now, and ``""`` the beginning of the store.
            timeout_s: End when no log of the query has come for so many seconds, >= 0; None waits for ever.

        Raises:
            CursorError: The position is damaged, or its log was deleted; also while it is read.
        """

    async def by_fiber(
        self, fiber_ids: Iterable[UUID], limit_per_fiber: int = DEFAULT_LIMIT
    ) -> dict[UUID, list[StoredLog]]:
        """Return the logs of each of these fibers that the query has, in its order.

        Args:
            fiber_ids: The fibers; they need not be stored.
            limit_per_fiber: Most logs of each, >= 0.

        Returns:
            For each id, in the order they were given, its logs; an empty list if there are none.
        """

    async def sources(self) -> list[ValueCount[str]]:
        """Return the sources, the most frequent first, then by name, with the times of their logs."""

    async def context(
        self,
        log_id: UUID,
        before: int = 10,
        after: int = 10,
        *,
        within: Literal["source", "fibers"] | None = None,
    ) -> LogContext | None:
        """Return a log and its neighbours among the logs of the query; None if there is no log of that id.

        The log itself need not be one of the query. Neighbours are by ``(timestamp, log_id)``.

        Args:
            log_id: The log in the middle.
            before: Most logs before it, >= 0.
            after: Most logs after it, >= 0.
            within: Only neighbours of its own source, or that share a fiber with it.
        """

    async def redact(self, pattern: str, replacement: str = "[redacted]") -> int:
        """Replace every match in the text of the logs of the query.

        Queries do not find the old text any more. It may stay in unused parts of the file, as whatever is
        changed or deleted, until ``storage.compact()`` writes the file anew. Attributes and keys of fibers
        stay: ``docs/lifecycle.md`` has how they go. On PostgreSQL, outside a ``transaction()`` block, it goes
        in steps of 5,000 logs, each a transaction; after an error, those before it stay, and another run does
        the rest.

        Args:
            pattern: A regular expression of RE2, see ``Logs.c.raw_text.regexp_match``.
            replacement: What stands there instead, as it is.

        Returns:
            How many logs have changed.

        Raises:
            ValueError: The pattern is no such expression, or matches the empty text.
        """

class AsyncFibers(AsyncTimedQuery[FiberRecord, FiberOrder, FiberGroup]):
    """``Fibers`` with coroutines."""

    c: ClassVar[FiberColumns]
    _wrapped: Fibers

    async def summaries(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberSummary]:
        """Return the same page as ``page``, with the number, the sources and the span of the logs of each."""

    async def by_log(self, log_ids: Iterable[UUID]) -> dict[UUID, list[FiberRecord]]:
        """Return the fibers of each of these logs that the query has, in its order.

        Returns:
            For each id, in the order they were given, its fibers; an empty list if there are none.
        """

    async def types(self) -> list[ValueCount[str]]:
        """Return the types of fibers, the most frequent first, then by name."""

    async def attribute_keys(self, pointer: str = "") -> list[ValueCount[str]]:
        """Return the keys of the objects at a JSON pointer, as pointers.

        The most frequent come first, those of equal frequency by name.
        """

    async def attribute_values(self, pointer: str, limit: int = 20) -> list[ValueCount[Scalar]]:
        """Return the most frequent values at a JSON pointer.

        Those of equal frequency come by their JSON text as the database gives it. Lists and objects are left
        out; if there are only lists, a warning is logged. Values are told apart by their JSON text: 1 and 1.0
        are two.

        Args:
            pointer: See ``Fibers.c.attributes``.
            limit: Most values, >= 0.
        """

    async def key_names(self) -> list[ValueCount[str]]:
        """Return the names of the keys that these fibers have, the most frequent first, then by name.

        Returns:
            Each name with the number of fibers that have a key of it.
        """

    async def key_values(self, name: str, prefix: str = "", limit: int = 20) -> list[ValueCount[str]]:
        """Return the values of the keys of a name, the most frequent first, then by value.

        Args:
            name: Name of the keys.
            prefix: Only values that begin so.
            limit: Most values to return, >= 0.

        Returns:
            Each value with the number of fibers that have it.
        """

    async def export_keys(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """Write the keys of these fibers into a new file, by ``(fiber_id, name, value)``; see ``export``."""

    async def timeline(self, fibers: int = 50, points: int = 10000) -> Timeline:
        """Return the first fibers of the query and their logs as points.

        Args:
            fibers: Most fibers, >= 0.
            points: Most points, >= 0; of more logs, this many are evenly chosen.
        """

    async def close(self) -> int:
        """Close the open fibers of the query; return how many there were."""

    async def reopen(self) -> int:
        """Open the closed fibers of the query again; return how many there were."""

class AsyncMemberships(AsyncQuery[FiberMembership]):
    """``Memberships`` with coroutines."""

    c: ClassVar[MembershipColumns]
