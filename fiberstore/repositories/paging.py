"""Queries in several orders: pages by key, many ids at once, counts of values."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from fiberstore.checks import MAX_ROWS, check_id, check_number
from fiberstore.contract.conditions import depends_on_active
from fiberstore.contract.cursors import PagePosition, Watermark, decode, encode
from fiberstore.contract.queries import Group, OrderName, P, Partition, TimedQuery
from fiberstore.contract.results import Bucket, Found, Page, ValueCount
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import CursorError, SerializationError
from fiberstore.records import from_epoch_us
from fiberstore.repositories.access import SessionAccess
from fiberstore.repositories.histogram import Histogram, check_group
from fiberstore.repositories.query import SqlQuery, execute_write, select_rows
from fiberstore.sql.arrival_order import CommitOrder
from fiberstore.sql.conditions import ACTIVE_VERSION, among
from fiberstore.sql.functions import TimeUs

if TYPE_CHECKING:
    from fiberstore.exchange.writing import SortKey

V = TypeVar("V")

_ID_BITS = 128
_BY_TIME = ("oldest", "newest")


@dataclass(frozen=True, slots=True)
class Order:
    """An order of rows, before their id.

    Attributes:
        column: What is compared, and sorted by.
        number: The same as an integer, which a cursor can hold.
        value_of: The value of ``column`` for such an integer.
        descending: Whether it is reversed; so is the order of ids then.
        source: What to select from, if that is not the table alone.
    """

    column: sa.ColumnElement[Any]
    number: sa.ColumnElement[int]
    value_of: Callable[[int], object]
    descending: bool
    source: sa.FromClause | None = None


def checked_ids(ids: Iterable[UUID]) -> list[UUID]:
    """Return the ids, each once, in the order they were given first.

    Raises:
        TypeError: One is not a ``uuid.UUID``.
    """
    given = list(ids)
    for id_ in given:
        check_id(id_)
    return list(dict.fromkeys(given))


def value_counts(rows: Iterable[tuple[Any, ...]], value_of: Callable[[Any], V]) -> list[ValueCount[V]]:
    """Make counts of rows of a value, a number, and two times as ``epoch_us``."""
    return [
        ValueCount(value_of(value), count, from_epoch_us(first_us), from_epoch_us(last_us))
        for value, count, first_us, last_us in rows
    ]


@dataclass(frozen=True, slots=True)
class _Row(Generic[P]):
    key: tuple[int, UUID]
    record: P


class PagedQuery(SqlQuery[P], TimedQuery[P, OrderName, Group], Generic[P, OrderName, Group]):
    """A query that can be read in pages and in several orders."""

    _orders: ClassVar[Mapping[str, Order]]
    _id: ClassVar[sa.ColumnElement[UUID]]
    _id_name: ClassVar[str]
    _group: ClassVar[sa.Column[str]]
    _seen: ClassVar[tuple[sa.ColumnElement[datetime], sa.ColumnElement[datetime]]]
    _pins: ClassVar[sa.Table]

    def __init__(self, session: Session | SessionAccess) -> None:
        super().__init__(session)
        self._order_name = "oldest"
        self._generation = ""

    def order_by(self, order: OrderName) -> Self:
        if order not in self._orders:
            raise ValueError(f"order must be one of {', '.join(self._orders)}, got {order!r}")
        query = copy(self)
        query._order_name = order
        return query

    def _check_partition(self, partition_by: Partition | None) -> None:
        if partition_by is not None and self._order_name not in _BY_TIME:
            raise ValueError(
                f"what is split by {partition_by} must be ordered by time, not {self._order_name}; use "
                f"order_by({' or '.join(map(repr, _BY_TIME))})"
            )

    def __repr__(self) -> str:
        return f"{super().__repr__()}.order_by({self._order_name!r})"

    @property
    def _order(self) -> Order:
        return self._orders[self._order_name]

    def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[P]:
        with self._read("page") as session, self._paging(session, limit, cursor) as page:
            return page

    @contextmanager
    def _paging(self, session: Session, limit: int, cursor: str | None) -> Iterator[Page[P]]:
        """Give a page, and the snapshot that it is of."""
        check_number("limit", limit, least=1)
        place = None if cursor is None else self._place(cursor)
        with self._commit_order(session).snapshot(session, None if place is None else place.mark) as mark:
            query = self._of_generation(session)
            if place is None:
                page = query._page_after(session, limit, None, mark, [])
                if not page.items:
                    query._warn_of_lists(session)
                yield page
                return
            if place.generation != query._generation:
                raise CursorError(
                    "another config version has become the active one since the cursor was made; start again "
                    "without the cursor"
                )
            if place.forward:
                yield query._page_with_late(session, limit, place, mark)
            else:
                yield query._page_before(session, limit, place)

    def _of_generation(self, session: Session) -> Self:
        """Return the query with the version that is active in the present snapshot, if it depends on that."""
        if not any(map(depends_on_active, self._conditions)):
            return self
        query = copy(self)
        query._generation = "".join(f"{version:016x}" for (version,) in select_rows(session, ACTIVE_VERSION))
        return query

    def _place(self, cursor: str) -> PagePosition:
        place = decode(repr(self), cursor)
        try:
            self._order.value_of(place.key[0])
        except SerializationError as error:
            raise CursorError(f"the cursor leads nowhere: {error}") from error
        return place

    def _page_with_late(self, session: Session, limit: int, place: PagePosition, mark: Watermark) -> Page[P]:
        commit_order = self._commit_order(session)
        is_late = sa.and_(commit_order.is_new(session, place.mark), self._before(self._stepped(place.key, 1)))
        late_ones = self._keyed().where(is_late).order_by(*commit_order.order)
        in_steps = not (place.mark.holes or mark.holes)  # or one of them would tell nothing of the others
        late = self._keyed_rows(session, late_ones.limit(_one_more(limit)) if in_steps else late_ones)
        if in_steps and len(late) > limit:
            # These first, and the page with the next cursor: then none of its rows can be late any more.
            late = late[:limit]
            known = commit_order.watermark_at(session, late[-1].key[1])
            before = self._cursor(False, self._stepped(place.key, 1), known)
            return Page([], self._cursor(True, place.key, known), before, [row.record for row in late])
        return self._page_after(session, limit, place, mark, [row.record for row in late])

    def _page_after(
        self, session: Session, limit: int, place: PagePosition | None, mark: Watermark, late: list[P]
    ) -> Page[P]:
        found = self._rows(session, _one_more(limit), self._after(place))
        items = found[:limit]
        following = self._cursor(True, items[-1].key, mark) if len(found) > limit else None
        previous = None
        if place is not None:
            first = items[0].key if items else self._stepped(place.key, 1)
            previous = self._cursor(False, first, mark)
        return Page([row.record for row in items], following, previous, late)

    def _page_before(self, session: Session, limit: int, place: PagePosition) -> Page[P]:
        found = self._rows(session, _one_more(limit), self._before(place.key), backwards=True)
        items = found[:limit][::-1]
        last = items[-1].key if items else self._stepped(place.key, -1)
        return Page(
            [row.record for row in items],
            self._cursor(True, last, place.mark),
            self._cursor(False, items[0].key, place.mark) if len(found) > limit else None,
            [],
        )

    def _rows(
        self, session: Session, limit: int, *conditions: sa.ColumnElement[bool], backwards: bool = False
    ) -> list[_Row[P]]:
        statement = self._keyed().where(*conditions).limit(limit)
        return self._keyed_rows(session, self._ordered(statement, backwards=backwards))

    def pin(self) -> int:
        ids = self._select(self._id)
        add = insert(self._pins).from_select([self._id_name], ids).on_conflict_do_nothing()
        return self._change("pin", lambda session: execute_write(session, add))

    def unpin(self) -> int:
        remove = sa.delete(self._pins).where(self._pins.c[self._id_name].in_(self._select(self._id)))
        return self._change("unpin", lambda session: execute_write(session, remove))

    def get_many(self, ids: Iterable[UUID]) -> Found[P]:
        given = list(ids)
        wanted = checked_ids(given)
        statement = self._select(*self._columns()).where(among(self._id, wanted))
        with self._read("get_many") as session:
            found = {
                getattr(row, self._id_name): row for row in self._records(select_rows(session, statement))
            }
        missing = [id_ for id_ in wanted if id_ not in found]
        return Found([found[id_] for id_ in given if id_ in found], missing)

    def histogram(
        self,
        width: timedelta,
        *,
        by: Group | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Bucket]:
        histogram = Histogram(width, start, end)
        check_group(by, self._group.key)
        group = None if by is None else self._group
        statement = histogram.counts(self._select(), self._seen[0], group)
        with self._read("histogram") as session:
            return histogram.buckets(select_rows(session, statement), grouped=group is not None)

    def _grouped(self, keys: Iterable[UUID], rows: Iterable[tuple[Any, ...]]) -> dict[UUID, list[P]]:
        """Return the records of rows that end with one of the keys, by key, in the order of the rows."""
        groups: dict[UUID, list[P]] = {key: [] for key in keys}
        owners: list[list[P]] = []

        def with_owners() -> Iterator[tuple[Any, ...]]:  # not a list of the rows, as in fetch_rows
            for row in rows:
                owners.append(groups[row[-1]])
                yield row

        for record, owner in zip(self._records(with_owners()), owners, strict=True):
            owner.append(record)
        return groups

    def _values(self, value: sa.ColumnElement[Any], *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return the statement whose rows ``value_counts`` takes."""
        first, last = self._seen
        columns = (value.label("value"), first.label("first_seen"), last.label("last_seen"))
        found = self._select(*columns).where(*conditions).subquery().c
        count = sa.func.count()
        seen_us = map(TimeUs, (sa.func.min(found.first_seen), sa.func.max(found.last_seen)))
        statement = sa.select(found.value, count, *seen_us).group_by(found.value)
        return statement.order_by(count.desc(), found.value)

    @abstractmethod
    def _commit_order(self, session: Session) -> CommitOrder:
        """Return the order in which the rows were stored."""

    def _keyed(self) -> sa.Select[Any]:
        return self._from_source(self._select(*self._columns(), self._order.number))

    def _keyed_rows(self, session: Session, statement: sa.Select[Any]) -> list[_Row[P]]:
        rows = list(select_rows(session, statement))
        records = self._records(rows)
        return [
            _Row((row[-1], getattr(record, self._id_name)), record)
            for row, record in zip(rows, records, strict=True)
        ]

    def _from_source(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """Select from what the order is by, too."""
        return statement if self._order.source is None else statement.select_from(self._order.source)

    def _ordered(self, statement: sa.Select[Any], *, backwards: bool = False) -> sa.Select[Any]:
        return self._from_source(statement).order_by(*self._order_by(backwards=backwards))

    def _sort_keys(self) -> "Sequence[SortKey]":
        column = self._order.column
        if not isinstance(column, sa.Column):
            return []
        direction: Literal["ascending", "descending"] = (
            "descending" if self._order.descending else "ascending"
        )
        return [(column.key, direction), (self._id_name, direction)]

    def _order_by(self, *, backwards: bool = False) -> list[sa.ColumnElement[Any]]:
        order = self._order
        if order.descending == backwards:
            return [order.column, self._id]
        return [order.column.desc(), self._id.desc()]

    def _after(self, place: PagePosition | None) -> sa.ColumnElement[bool]:
        if place is None:
            return sa.true()
        return self._beyond(place.key, larger=not self._order.descending)

    def _before(self, key: tuple[int, UUID]) -> sa.ColumnElement[bool]:
        return self._beyond(key, larger=self._order.descending)

    def _beyond(self, key: tuple[int, UUID], *, larger: bool) -> sa.ColumnElement[bool]:
        column, value = self._order.column, self._order.value_of(key[0])
        # By the first condition alone DuckDB passes over whole row groups.
        if larger:
            return sa.and_(column >= value, sa.or_(column > value, self._id > key[1]))
        return sa.and_(column <= value, sa.or_(column < value, self._id < key[1]))

    def _stepped(self, key: tuple[int, UUID], step: int) -> tuple[int, UUID]:
        """Return the possible key right behind a key in the order, or right before it with a step of -1."""
        number = (key[0] << _ID_BITS) + key[1].int + (-step if self._order.descending else step)
        return number >> _ID_BITS, UUID(int=number & (1 << _ID_BITS) - 1)

    def _cursor(self, forward: bool, key: tuple[int, UUID], mark: Watermark) -> str:
        return encode(repr(self), PagePosition(forward, key, mark, self._generation))


def _one_more(limit: int) -> int:
    """Return how many rows tell whether there are more than so many."""
    return min(limit + 1, MAX_ROWS)
