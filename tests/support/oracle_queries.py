"""The queries of the storage of plain dicts: every question is a loop over all there is."""

import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar, cast
from uuid import UUID

import pyarrow as pa
from pyarrow import compute

from fiberstore.checks import as_utc, check_id, check_number, check_seconds, check_text
from fiberstore.contract.columns import check_pointer
from fiberstore.contract.conditions import (
    Condition,
    Scalar,
    checked_condition,
)
from fiberstore.contract.cursors import (
    NOTHING_SEEN,
    PagePosition,
    Watermark,
    decode,
    decode_position,
    encode,
    encode_position,
)
from fiberstore.contract.patterns import check_redaction, closed
from fiberstore.contract.queries import (
    ARROW_BATCH_ROWS,
    MOST_BUCKETS,
    FiberGroup,
    FiberOrder,
    Fibers,
    Group,
    LogGroup,
    LogOrder,
    Logs,
    LogTail,
    Memberships,
    OrderName,
    P,
    Partition,
    Query,
    TimedQuery,
)
from fiberstore.contract.results import (
    Bucket,
    Deleted,
    FiberSummary,
    Found,
    LogContext,
    Page,
    Timeline,
    TimelinePoint,
    ValueCount,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import CursorError
from fiberstore.exchange import schema_of, write_records
from fiberstore.json_text import dump_json
from fiberstore.records import EPOCH, MICROSECOND, FiberKey, FiberMembership, FiberRecord, StoredLog
from tests.support.oracle_tables import MISSING, Tables, holds, value_at

R = TypeVar("R", StoredLog, FiberRecord, FiberMembership)
T = TypeVar("T", bound=Scalar)
Key = tuple[int, UUID]

YEAR_1 = datetime.min.replace(tzinfo=UTC)


class MemoryQuery(Query[R], Generic[R]):
    """A query over what ``tables()`` gives, which changes what is ``stored``."""

    record: type[R]
    name: str

    def __init__(self, tables: Callable[[], Tables], stored: Tables) -> None:
        self._tables = tables
        self._stored = stored
        self._conditions: tuple[Condition[R], ...] = ()
        self._order = "oldest"

    def __repr__(self) -> str:
        return f"{self.name}.where({self._conditions}).order_by({self._order})"

    def where(self, *conditions: Condition[R]) -> Self:
        query = copy(self)
        query._conditions += tuple(checked_condition(one, self.record) for one in conditions)
        return query

    def count(self, at_most: int | None = None) -> int:
        if at_most is not None:
            check_number("at_most", at_most)
        found = len(self._found(self._tables()))
        return found if at_most is None else min(found, at_most)

    def iter_records(self) -> Iterator[R]:
        return iter(self._found(self._tables()))

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> pa.RecordBatchReader:
        check_number("batch_rows", batch_rows, least=1)
        rows = [self._arrow_row(record) for record in self._found(self._tables())]
        return pa.Table.from_pylist(rows, schema_of(self.record)).to_reader(batch_rows)

    def export(
        self,
        path: str | Path,
        *,
        partition_by: Partition | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> int:
        return write_records(self.to_arrow(), self.record, path, partition_by=partition_by, on_rows=on_rows)

    @contextmanager
    def _changing(self) -> Iterator[tuple[Tables, list[R]]]:
        """Give what is stored, and the rows of the query, while nobody else reads or writes."""
        with self._stored.changed:
            yield self._stored, self._found(self._tables())

    def _found(self, tables: Tables) -> list[R]:
        return sorted(self._having(self._all(tables), tables), key=lambda row: self._key(row, tables))

    def _having(self, records: Iterable[R], tables: Tables) -> list[R]:
        return [row for row in records if all(holds(one, row, tables) for one in self._conditions)]

    @abstractmethod
    def _all(self, tables: Tables) -> Iterable[R]: ...

    @abstractmethod
    def _key(self, record: R, tables: Tables) -> Any: ...  # noqa: ANN401  # whatever it is sorted by

    def _arrow_row(self, record: R) -> dict[str, object]:
        values = {name: getattr(record, name) for name in schema_of(self.record).names}
        if "attributes" in values:
            values["attributes"] = dump_json(values["attributes"])
        return {name: str(value) if isinstance(value, UUID) else value for name, value in values.items()}


class PagedMemory(MemoryQuery[P], TimedQuery[P, OrderName, Group], Generic[P, OrderName, Group]):
    """A query with orders and pages. Its keys ascend in every order: those of a reversed one are negated."""

    orders: tuple[str, ...]
    group: str

    def order_by(self, order: OrderName) -> Self:
        if order not in self.orders:
            raise ValueError(f"order must be one of {', '.join(self.orders)}, got {order!r}")
        query = copy(self)
        query._order = order
        return query

    def pin(self) -> int:
        with self._changing() as (stored, rows):
            new = {(self.record, self._id(row)) for row in rows} - stored.pins
            stored.pins |= new
            return len(new)

    def unpin(self) -> int:
        with self._changing() as (stored, rows):
            old = {(self.record, self._id(row)) for row in rows} & stored.pins
            stored.pins -= old
            return len(old)

    def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[P]:
        return self._page(limit, cursor, self._tables())

    def _page(self, limit: int, cursor: str | None, tables: Tables) -> Page[P]:
        check_number("limit", limit, least=1)
        rows = [(self._key(row, tables), row) for row in self._found(tables)]
        mark = Watermark(None, max(tables.arrivals.values(), default=0))
        if cursor is None:
            return self._page_after(rows, limit, None, mark, [])
        place = decode(repr(self), cursor)
        if not place.forward:
            return self._page_before(rows, limit, place)
        late = self._arrived([row for key, row in rows if key <= place.key], place.mark, tables)
        if len(late) <= limit:
            return self._page_after(rows, limit, place.key, mark, late)
        known = Watermark(None, tables.arrivals[self.record, self._id(late[limit - 1])])
        before = self._cursor(False, _stepped(place.key, 1), known)
        return Page([], self._cursor(True, place.key, known), before, late[:limit])

    def _page_after(
        self, rows: list[tuple[Key, P]], limit: int, after: Key | None, mark: Watermark, late: list[P]
    ) -> Page[P]:
        rest = [(key, row) for key, row in rows if after is None or key > after]
        found = rest[:limit]
        following = self._cursor(True, found[-1][0], mark) if len(rest) > limit else None
        previous = None
        if after is not None:
            previous = self._cursor(False, found[0][0] if found else _stepped(after, 1), mark)
        return Page([row for _, row in found], following, previous, late)

    def _page_before(self, rows: list[tuple[Key, P]], limit: int, place: PagePosition) -> Page[P]:
        rest = [(key, row) for key, row in rows if key < place.key]
        found = rest[-limit:]
        following = self._cursor(True, found[-1][0] if found else _stepped(place.key, -1), place.mark)
        previous = self._cursor(False, found[0][0], place.mark) if len(rest) > limit else None
        return Page([row for _, row in found], following, previous, [])

    def _arrived(self, records: Iterable[P], since: Watermark, tables: Tables) -> list[P]:
        """Return the rows that have arrived since, in that order."""
        arrivals = {tables.arrivals[self.record, self._id(row)]: row for row in records}
        return [arrivals[number] for number in sorted(arrivals) if number > since.number]

    def _cursor(self, forward: bool, key: Key, mark: Watermark) -> str:
        return encode(repr(self), PagePosition(forward, key, mark))

    def _key(self, record: P, tables: Tables) -> Key:
        number, id_ = self._number(record, tables), self._id(record)
        return (number, id_) if self._order == "oldest" else (-number, UUID(int=2**128 - 1 - id_.int))

    def _number(self, record: P, tables: Tables) -> int:  # noqa: ARG002  # what another order needs
        return (self._time(record) - EPOCH) // MICROSECOND

    @abstractmethod
    def _time(self, record: P) -> datetime: ...

    @abstractmethod
    def _id(self, record: P) -> UUID: ...

    def get_many(self, ids: Iterable[UUID]) -> Found[P]:
        tables, asked = self._tables(), _checked_ids(ids)
        by_id = {self._id(row): row for row in self._found(tables)}
        missing = dict.fromkeys(id_ for id_ in asked if id_ not in by_id)
        return Found([by_id[id_] for id_ in asked if id_ in by_id], list(missing))

    def _values(
        self, values_of: Callable[[P], Iterable[T]], text_of: Callable[[T], str] = str
    ) -> list[ValueCount[T]]:
        """Count the values of each record; those of one text are the same."""
        having: dict[str, tuple[T, list[P]]] = {}
        for row in self._found(self._tables()):
            for value in values_of(row):
                having.setdefault(text_of(value), (value, []))[1].append(row)
        counts = [
            (
                text,
                ValueCount(value, len(rows), min(map(self._time, rows)), max(map(self._last_time, rows))),
            )
            for text, (value, rows) in having.items()
        ]
        return [count for _, count in sorted(counts, key=lambda pair: (-pair[1].count, pair[0]))]

    def _last_time(self, record: P) -> datetime:
        return self._time(record)

    def histogram(
        self,
        width: timedelta,
        *,
        by: Group | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Bucket]:
        _check_group(by, self.group)
        if not isinstance(width, timedelta):
            raise TypeError(f"width must be a timedelta, got {width!r}")
        if width <= timedelta(0):
            raise ValueError(f"width must be positive, got {width}")
        rows = self._found(self._tables())
        if start is not None:
            rows = [row for row in rows if self._time(row) >= as_utc(start)]
        if end is not None:
            rows = [row for row in rows if self._time(row) <= as_utc(end)]
        times = [self._time(row) for row in rows]
        first = min(times, default=None) if start is None else as_utc(start)
        last = max(times, default=None) if end is None else as_utc(end)
        if first is None or last is None or first > last:
            return []
        counts = Counter(
            ((self._time(row) - EPOCH) // width, getattr(row, by) if by else None) for row in rows
        )
        groups = sorted({group for _, group in counts}, key=str) if by else [None]
        every = range((first - EPOCH) // width, (last - EPOCH) // width + 1)
        if every[0] * (width // MICROSECOND) < (YEAR_1 - EPOCH) // MICROSECOND:
            raise ValueError(f"the first bucket of width {width} would begin before the year 1")
        if not groups:
            return []
        if len(every) * len(groups) > MOST_BUCKETS:
            raise ValueError(f"there would be more than {MOST_BUCKETS:,} buckets of width {width}")
        return [
            Bucket(EPOCH + number * width, group, counts[number, group])
            for number in every
            for group in groups
        ]


class MemoryLogs(PagedMemory[StoredLog, LogOrder, LogGroup], Logs):
    record = StoredLog
    name = "logs"
    orders = ("oldest", "newest")
    group = "source_id"

    def delete(self) -> Deleted:
        with self._changing() as (stored, logs):
            return stored.remove(logs=[log.log_id for log in logs])

    def redact(self, pattern: str, replacement: str = "[redacted]") -> int:
        check_redaction(pattern)
        literal = check_text(replacement).replace("\\", "\\\\")
        with self._changing() as (stored, logs):
            changed = 0
            for log in logs:
                (new,) = compute.replace_substring_regex(
                    pa.array([log.raw_text]), closed(pattern), literal
                ).to_pylist()
                changed += new != log.raw_text
                stored.logs[log.log_id] = log.model_copy(update={"raw_text": new})
            return changed

    def by_fiber(
        self, fiber_ids: Iterable[UUID], limit_per_fiber: int = DEFAULT_LIMIT
    ) -> dict[UUID, list[StoredLog]]:
        asked = _checked_ids(fiber_ids)
        check_number("limit_per_fiber", limit_per_fiber)
        tables = self._tables()
        logs = self._found(tables)
        return {
            id_: [log for log in logs if (log.log_id, id_) in tables.memberships][:limit_per_fiber]
            for id_ in asked
        }

    def sources(self) -> list[ValueCount[str]]:
        return self._values(lambda log: [log.source_id])

    def context(
        self,
        log_id: UUID,
        before: int = 10,
        after: int = 10,
        *,
        within: Literal["source", "fibers"] | None = None,
    ) -> LogContext | None:
        check_id(log_id)
        check_number("before", before)
        check_number("after", after)
        if within not in (None, "source", "fibers"):
            raise ValueError(f"within must be 'source', 'fibers' or None, got {within!r}")
        tables = self._tables()
        log = tables.logs.get(log_id)
        if log is None:
            return None
        fibers = {fiber for member, fiber in tables.memberships if member == log_id}

        def is_near(other: StoredLog) -> bool:
            if within == "source":
                return other.source_id == log.source_id
            if within == "fibers":
                return any((other.log_id, fiber) in tables.memberships for fiber in fibers)
            return True

        near = sorted(filter(is_near, self._having(tables.logs.values(), tables)), key=_log_key)
        older = [other for other in near if _log_key(other) < _log_key(log)]
        newer = [other for other in near if _log_key(other) > _log_key(log)]
        return LogContext(older[max(len(older) - before, 0) :], log, newer[:after])

    def tail(self, position: str | None = None, *, timeout_s: float | None = None) -> LogTail:
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        every = MemoryLogs(self._tables, self._stored).arrived(NOTHING_SEEN)
        places = {NOTHING_SEEN.newest_id: NOTHING_SEEN} | {place.newest_id: place for place, _ in every}
        newest_id = [*places][-1] if position is None else decode_position(position).newest_id
        if newest_id not in places:
            raise CursorError(f"{newest_id} has been deleted")
        return MemoryTail(self, places[newest_id], timeout_s)

    def wait(self, since: Watermark, deadline: float | None) -> None:
        """Wait until something has arrived since, or the deadline."""
        tables = self._tables()
        with tables.changed:
            tables.changed.wait_for(
                lambda: self.arrived(since), None if deadline is None else max(deadline - time.monotonic(), 0)
            )

    def arrived(self, since: Watermark) -> list[tuple[Watermark, StoredLog]]:
        """Return the logs of the query that have arrived since, each with the place after it."""
        tables = self._tables()
        found = self._arrived(self._found(tables), since, tables)
        return [(Watermark(log.log_id, tables.arrivals[StoredLog, log.log_id]), log) for log in found]

    def _all(self, tables: Tables) -> Iterable[StoredLog]:
        return tables.logs.values()

    def _time(self, record: StoredLog) -> datetime:
        return record.timestamp

    def _id(self, record: StoredLog) -> UUID:
        return record.log_id


class MemoryTail(LogTail):
    def __init__(self, logs: MemoryLogs, mark: Watermark, timeout_s: float | None) -> None:
        self._logs = logs
        self._mark = mark
        self._timeout_s = timeout_s
        self._batch: deque[tuple[Watermark, StoredLog]] = deque()

    @property
    def position(self) -> str:
        return encode_position(self._mark)

    def __next__(self) -> StoredLog:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while not self._batch:
            self._batch.extend(self._logs.arrived(self._mark))
            if not self._batch:
                if deadline is not None and time.monotonic() >= deadline:
                    raise StopIteration
                self._logs.wait(self._mark, deadline)
        self._mark, log = self._batch.popleft()
        return log


class MemoryFibers(PagedMemory[FiberRecord, FiberOrder, FiberGroup], Fibers):
    record = FiberRecord
    name = "fibers"
    orders = ("oldest", "newest", "longest", "most_logs")
    group = "fiber_type"

    def delete(self) -> Deleted:
        with self._changing() as (stored, fibers):
            return stored.remove(fibers=[fiber.fiber_id for fiber in fibers])

    def close(self) -> int:
        return self._set_closed(closed=True)

    def reopen(self) -> int:
        return self._set_closed(closed=False)

    def _set_closed(self, *, closed: bool) -> int:
        with self._changing() as (stored, fibers):
            ids = [fiber.fiber_id for fiber in fibers if fiber.closed != closed]
            for id_ in ids:
                stored.fibers[id_] = stored.fibers[id_].model_copy(update={"closed": closed})
            return len(ids)

    def summaries(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberSummary]:
        tables = self._tables()
        page = self._page(limit, cursor, tables)
        return Page(
            [_summary(fiber, tables) for fiber in page.items],
            page.next,
            page.previous,
            [_summary(fiber, tables) for fiber in page.late],
        )

    def by_log(self, log_ids: Iterable[UUID]) -> dict[UUID, list[FiberRecord]]:
        asked, tables = _checked_ids(log_ids), self._tables()
        fibers = self._found(tables)
        return {
            id_: [fiber for fiber in fibers if (id_, fiber.fiber_id) in tables.memberships] for id_ in asked
        }

    def types(self) -> list[ValueCount[str]]:
        return self._values(lambda fiber: [fiber.fiber_type])

    def attribute_keys(self, pointer: str = "") -> list[ValueCount[str]]:
        check_pointer(pointer)

        def keys(fiber: FiberRecord) -> list[str]:
            found = value_at(fiber.attributes, pointer)
            names = found if isinstance(found, dict) else {}
            return [f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}" for name in names]

        return self._values(keys)

    def attribute_values(self, pointer: str, limit: int = 20) -> list[ValueCount[Scalar]]:
        check_pointer(pointer)
        check_number("limit", limit)

        def values(fiber: FiberRecord) -> list[Scalar]:
            found = value_at(fiber.attributes, pointer)
            if found is MISSING or isinstance(found, list | dict):
                return []
            return [cast("Scalar", found)]

        return self._values(values, lambda value: dump_json(value) or "null")[:limit]

    def key_names(self) -> list[ValueCount[str]]:
        tables = self._tables()
        return self._values(lambda fiber: {key.name for key in tables.keys_of(fiber.fiber_id)})

    def key_values(self, name: str, prefix: str = "", limit: int = 20) -> list[ValueCount[str]]:
        check_text(name)
        check_text(prefix)
        check_number("limit", limit)
        tables = self._tables()

        def values(fiber: FiberRecord) -> list[str]:
            found = [key.value for key in tables.keys_of(fiber.fiber_id) if key.name == name]
            return [value for value in found if value.startswith(prefix)]

        return self._values(values)[:limit]

    def export_keys(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        tables = self._tables()
        keys = [key for fiber in self._found(tables) for key in tables.keys_of(fiber.fiber_id)]
        rows = [
            {
                **dict(key),
                "fiber_id": str(key.fiber_id),
                "first_log_id": None if key.first_log_id is None else str(key.first_log_id),
            }
            for key in sorted(keys, key=lambda key: (key.fiber_id, key.name, key.value))
        ]
        batches = pa.Table.from_pylist(rows, schema_of(FiberKey)).to_batches()
        return write_records(batches, FiberKey, path, on_rows=on_rows)

    def timeline(self, fibers: int = 50, points: int = 10_000) -> Timeline:
        check_number("fibers", fibers)
        check_number("points", points)
        tables = self._tables()
        shown = self._found(tables)[:fibers]
        every = [
            TimelinePoint(fiber.fiber_id, log.timestamp, log.source_id, log.log_id)
            for fiber in shown
            for log in sorted(tables.logs_of(fiber.fiber_id), key=_log_key)
        ]
        kept, total = min(points, len(every)), len(every)
        chosen = [
            point
            for number, point in enumerate(every, 1)
            if number * kept // total != (number - 1) * kept // total
        ]
        return Timeline(shown, chosen, total)

    def _all(self, tables: Tables) -> Iterable[FiberRecord]:
        return tables.fibers.values()

    def _number(self, record: FiberRecord, tables: Tables) -> int:
        if self._order == "longest":
            return (record.last_activity - record.first_activity) // MICROSECOND
        if self._order == "most_logs":
            return len(tables.logs_of(record.fiber_id))
        return super()._number(record, tables)

    def _time(self, record: FiberRecord) -> datetime:
        return record.first_activity

    def _last_time(self, record: FiberRecord) -> datetime:
        return record.last_activity

    def _id(self, record: FiberRecord) -> UUID:
        return record.fiber_id


class MemoryMemberships(MemoryQuery[FiberMembership], Memberships):
    record = FiberMembership
    name = "memberships"

    def delete(self) -> Deleted:
        with self._changing() as (stored, rows):
            return stored.remove(memberships=[(row.log_id, row.fiber_id) for row in rows])

    def _all(self, tables: Tables) -> Iterable[FiberMembership]:
        return tables.memberships.values()

    def _key(self, record: FiberMembership, tables: Tables) -> tuple[UUID, UUID]:  # noqa: ARG002  # as others
        return record.log_id, record.fiber_id


def _summary(fiber: FiberRecord, tables: Tables) -> FiberSummary:
    logs = tables.logs_of(fiber.fiber_id)
    times = [log.timestamp for log in logs]
    return FiberSummary(
        fiber,
        len(logs),
        sorted({log.source_id for log in logs}),
        min(times, default=None),
        max(times, default=None),
    )


def _log_key(log: StoredLog) -> tuple[datetime, UUID]:
    return log.timestamp, log.log_id


def _stepped(key: Key, step: int) -> Key:
    number = (key[0] << 128) + key[1].int + step
    return number >> 128, UUID(int=number % 2**128)


def _checked_ids(ids: Iterable[UUID]) -> list[UUID]:
    asked = list(ids)
    for id_ in asked:
        check_id(id_)
    return asked


def _check_group(by: str | None, column: str) -> None:
    if by not in (None, column):
        raise ValueError(f"by must be {column!r} or None, got {by!r}")
