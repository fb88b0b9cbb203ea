"""Fibers."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from functools import cache
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from fiberstore.checks import check_config_version, check_id, check_number, check_page, check_text
from fiberstore.contract.columns import check_pointer
from fiberstore.contract.conditions import Scalar
from fiberstore.contract.lifecycle import FiberBatchStorage
from fiberstore.contract.queries import FiberGroup, FiberOrder, Fibers
from fiberstore.contract.results import Deleted, FiberSummary, Merged, Page, Timeline, Upserted, ValueCount
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import ConflictError, DuplicateError, NotFoundError
from fiberstore.ids import key_hash
from fiberstore.json_text import dump_json, load_json
from fiberstore.records import FiberKey, FiberRecord, fiber_key, from_epoch_us
from fiberstore.repositories import access
from fiberstore.repositories.access import Going, SessionAccess, begins_beside_others
from fiberstore.repositories.fiber_logs import LOG_COUNT, WITH_LOG_COUNT, summaries_of, timeline_points
from fiberstore.repositories.paging import Order, PagedQuery, checked_ids, value_counts
from fiberstore.repositories.query import (
    as_arrow,
    belongings_of,
    count_up_to,
    delete_rows,
    execute_write,
    kept_ids,
    one_snapshot,
    select_rows,
)
from fiberstore.sql import bulk, key_rows
from fiberstore.sql.arrival_order import CommitOrder
from fiberstore.sql.arrow import Columns
from fiberstore.sql.conditions import (
    ATTRIBUTES,
    DURATION_US,
    FIBERS,
    FIBERS_WITH_KEY,
    KEYS,
    MEMBERSHIPS,
    all_of,
    among,
    apart,
)
from fiberstore.sql.connection import Lock, Row
from fiberstore.sql.functions import HoldsChangeLock, JsonKeys, JsonType, JsonValueAt, StartsWith, TimeUs
from fiberstore.sql.models import BELONGINGS, PinnedFiber, stored_time
from fiberstore.sql.prepared import Prepared, PreparedPages, connection_of, expire
from fiberstore.sql.rows import columns_in_us, columns_of, to_records
from fiberstore.sql.support import GoingRows, Others

if TYPE_CHECKING:
    from fiberstore.exchange.writing import SortKey

_logger = logging.getLogger(__name__)

_IN_US = sa.select(*columns_in_us(FiberRecord, FIBERS))

_BY_ID = Prepared[Row](
    sa.select(*columns_of(FiberRecord, FIBERS)).where(FIBERS.c.fiber_id == sa.bindparam("fiber_id"))
)
_BY_TYPE = PreparedPages[Row](
    _IN_US.where(FIBERS.c.fiber_type == sa.bindparam("fiber_type")),
    FIBERS.c.first_activity,
    FIBERS.c.fiber_id,
)
_BY_KEY = Prepared[Row](
    _IN_US.add_columns(TimeUs(FIBERS.c.first_activity), FIBERS.c.fiber_id).where(
        FIBERS.c.fiber_id.in_(FIBERS_WITH_KEY)
    )
)
_VALUES: dict[str, sa.BindParameter[object]] = {column.name: sa.bindparam(column.name) for column in FIBERS.c}
_INSERT = Prepared[Row](insert(FIBERS).values(_VALUES).on_conflict_do_nothing())
_FIELDS = {name: value for name, value in _VALUES.items() if name != "fiber_id"}
_UPDATE_ANY = sa.update(FIBERS).where(FIBERS.c.fiber_id == _VALUES["fiber_id"], HoldsChangeLock())
_UPDATE = Prepared[Row](_UPDATE_ANY.values(_FIELDS))
# To set an indexed column, even to what it is, DuckDB deletes the row, to which another may refer.
_UPDATE_OF_SAME_TYPE = Prepared[Row](
    _UPDATE_ANY.where(FIBERS.c.fiber_type == _VALUES["fiber_type"]).values(
        {name: value for name, value in _FIELDS.items() if name != "fiber_type"}
    )
)
# The model has no column `arrived`.
_NOTED = sa.table("fibers", *(sa.column(each.name, each.type) for each in FIBERS.c), sa.column("arrived"))
_UPDATE_AND_ARRIVE = Prepared[Row](
    sa.update(_NOTED)
    .where(_NOTED.c.fiber_id == _VALUES["fiber_id"], HoldsChangeLock())
    .values({**_FIELDS, "arrived": sa.literal_column("DEFAULT")})
)
_BEGAN_US = TimeUs(FIBERS.c.first_activity)


class FiberMethods(FiberBatchStorage):
    """``FiberBatchStorage`` through sessions."""

    _sessions: SessionAccess

    def write_fiber(self, fiber: FiberRecord) -> None:
        def write(session: Session) -> None:
            try:
                written = _INSERT.write(session, _driver_values(_validated(fiber)))
            except ConflictError as error:  # committed after this transaction's snapshot
                raise DuplicateError(fiber.fiber_id) from error
            if not written:
                raise DuplicateError(fiber.fiber_id)

        self._sessions.write("write_fiber", write, lock=Lock.NOTHING, one_statement=True)

    def update_fiber(self, fiber: FiberRecord) -> None:
        def update(session: Session) -> None:
            values = _driver_values(_validated(fiber))
            if not _UPDATE_OF_SAME_TYPE.write(session, values):
                sets_arrival = connection_of(session).support.sets_arrival(session)
                if not (_UPDATE_AND_ARRIVE if sets_arrival else _UPDATE).write(session, values):
                    raise NotFoundError(fiber.fiber_id)
            expire(session)

        self._sessions.write("update_fiber", update, one_statement=True)

    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        with self._sessions.read("get_fiber") as session:
            check_id(fiber_id)
            fibers = to_records(FiberRecord, _BY_ID.rows(session, {"fiber_id": fiber_id}), stored_time)
        return fibers[0] if fibers else None

    def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        with self._sessions.read("query_fibers_by_type") as session:
            check_text(fiber_type)
            check_page(limit, offset)
            rows = _BY_TYPE.rows(session, {"fiber_type": fiber_type}, limit, offset, fiber_key(after))
            return to_records(FiberRecord, rows, connection_of(session).support.to_time)

    def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        given = list(fibers)

        def write(session: Session) -> int:
            rows = distinct_fibers(given)
            return bulk.insert_fibers(session, rows) if rows else 0

        return self._sessions.write("write_fibers", write, lock=Lock.NOTHING, one_statement=True)

    def upsert_fibers(self, fibers: Iterable[FiberRecord], *, widen: bool = False) -> Upserted:
        given = list(fibers)

        @cache
        def columns() -> Columns:
            return bulk.fiber_columns(distinct_fibers(given))

        return self._sessions.write(
            "upsert_fibers",
            lambda session: bulk.upsert_fibers(session, columns(), widen=widen),
            lock=Lock.LATEST,
            before=columns,
        )

    def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        @cache
        def columns() -> Columns:
            _check_survivors(survivors)
            return bulk.merges_of(survivors)

        def is_loser(fiber_id: sa.ColumnElement[UUID]) -> sa.ColumnElement[bool]:
            return among(fiber_id, list(survivors))

        def merge(session: Session) -> Merged:
            merges = columns()
            if not survivors:
                return Merged(0, 0)
            _check_mergeable(session, merges)
            if connection_of(session).writes_alone:
                with _moved_memberships(session, merges) as moved:
                    return bulk.merge_fibers(session, merges, moved.is_loser, moved.put_in_place())
            if not begins_beside_others(session):
                return bulk.merge_fibers(session, merges, is_loser)
            memberships = bulk.move_memberships(session, merges)
            connection_of(session).take_lock(Lock.CHANGES)
            _check_mergeable(session, merges)
            memberships += bulk.move_memberships(session, merges)  # those that others have appended
            fibers = bulk.end_fibers(session, merges)
            if fibers < len(survivors):
                raise ConflictError("another transaction has deleted a fiber that was to be merged")
            bulk.merge_belongings(session, merges, is_loser)
            return Merged(fibers, memberships)

        def memberships_of_losers(session: Session) -> int:
            held = sa.select(MEMBERSHIPS.c.log_id).where(is_loser(MEMBERSHIPS.c.fiber_id))
            return count_up_to(session, held, access.MANY_ROWS)

        going = Going(memberships_of_losers, lambda session: _memberships_to_move(session, columns()))
        return self._sessions.write("merge_fibers", merge, lock=Lock.LATE, going=going, before=columns)

    def write_keys(self, keys: Iterable[FiberKey]) -> int:
        given = list(keys)

        @cache
        def columns() -> Columns:
            return key_rows.key_columns(bulk.checked(given, FiberKey))

        return self._sessions.write(
            "write_keys",
            lambda session: key_rows.insert_key_columns(session, columns()) if given else 0,
            before=columns,
        )

    def get_keys(self, fiber_ids: Iterable[UUID]) -> dict[UUID, list[FiberKey]]:
        with self._sessions.read("get_keys") as session:
            found: dict[UUID, list[FiberKey]] = {fiber_id: [] for fiber_id in checked_ids(fiber_ids)}
            for key in key_rows.keys_of(session, found) if found else []:
                found[key.fiber_id].append(key)
        return found

    def query_fibers_by_key(
        self, name: str, value: str, limit: int = DEFAULT_LIMIT, offset: int = 0
    ) -> list[FiberRecord]:
        with self._sessions.read("query_fibers_by_key") as session:
            values = {"name": check_text(name), "value": check_text(value), "hash": key_hash(name, value)}
            check_page(limit, offset)
            rows = _BY_KEY.rows(session, values)
            # To sort a few rows takes DuckDB longer than to find them.
            first = nsmallest(offset + limit, rows, key=_place) if limit else []
            return to_records(FiberRecord, first[offset:], connection_of(session).support.to_time)

    def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        with self._sessions.read("resolve_fibers") as session:
            wanted = checked_ids(fiber_ids)
            places = bulk.places_of(session, wanted) if wanted else {}
        return {fiber_id: places[fiber_id] for fiber_id in wanted if fiber_id in places}


class FiberRepository(FiberMethods, PagedQuery[FiberRecord, FiberOrder, FiberGroup], Fibers):
    """The fibers of a database, to be written and queried: ``FiberBatchStorage`` and ``Fibers``.

    Args:
        session: As for ``LogRepository``.
    """

    _record = FiberRecord
    _name = "fibers"
    _table = FIBERS
    _id = FIBERS.c.fiber_id
    _id_name = "fiber_id"
    _group = FIBERS.c.fiber_type
    _seen = (FIBERS.c.first_activity, FIBERS.c.last_activity)
    _delete_lock = Lock.LATE
    _pins = PinnedFiber.metadata.tables["fiber_pins"]
    _orders: ClassVar = {
        "oldest": Order(FIBERS.c.first_activity, _BEGAN_US, from_epoch_us, descending=False),
        "newest": Order(FIBERS.c.first_activity, _BEGAN_US, from_epoch_us, descending=True),
        "longest": Order(DURATION_US, DURATION_US, int, descending=True),
        "most_logs": Order(LOG_COUNT, LOG_COUNT, int, descending=True, source=WITH_LOG_COUNT),
    }

    def close(self) -> int:
        return self._set_closed("close", closed=True)

    def reopen(self) -> int:
        return self._set_closed("reopen", closed=False)

    def copy_to(self, config_version: int) -> int:
        """Copy the fibers of the query into another config version, with what belongs to them.

        The copies have ids of their own; their logs are the same.

        Returns:
            How many they are.
        """
        check_config_version(config_version)
        ids = self._select(FIBERS.c.fiber_id, sa.func.gen_random_uuid(type_=sa.Uuid).label("copy_id"))

        def copy(session: Session) -> int:
            with kept_ids(session, ids) as kept:
                copies = kept.rows
                replaced: dict[str, sa.ColumnElement[Any]] = {
                    "fiber_id": copies.c.copy_id,
                    "config_version": sa.literal(config_version, FIBERS.c.config_version.type),
                }
                for table in (MEMBERSHIPS, *BELONGINGS):
                    _copy_rows(session, table, copies, replaced)
                return _copy_rows(session, FIBERS, copies, replaced)

        return self._change("copy_to", copy)

    def _set_closed(self, method: str, *, closed: bool) -> int:
        differs = FIBERS.c.closed.is_not(closed)
        change = sa.update(FIBERS).values(closed=closed).where(differs, *all_of(self._conditions))
        return self._change(method, lambda session: execute_write(session, change))

    @contextmanager
    def _going(self, session: Session) -> Iterator[list[GoingRows]]:
        with kept_ids(session, self._select(FIBERS.c.fiber_id)) as ids:
            of_fibers = [GoingRows(table, ids.hold(table.c.fiber_id)) for table in (MEMBERSHIPS, FIBERS)]
            yield [*belongings_of(ids.hold), *of_fibers]

    def _delete_beside(self, session: Session) -> Deleted:
        if not begins_beside_others(session):
            return self._delete(session)
        with kept_ids(session, self._select(FIBERS.c.fiber_id)) as ids:
            are_members = ids.hold(MEMBERSHIPS.c.fiber_id)
            memberships = delete_rows(session, MEMBERSHIPS, are_members)
            connection_of(session).take_lock(Lock.CHANGES)
            fibers = self._delete_found(session, ids, FIBERS.c.fiber_id)
            memberships += delete_rows(session, MEMBERSHIPS, are_members)  # those that others have appended
            for table, which, _ in belongings_of(ids.hold):
                delete_rows(session, table, which)
        return Deleted(0, fibers, memberships)

    def _count_to_delete(self, session: Session) -> int:
        held = sa.select(MEMBERSHIPS.c.log_id).where(
            MEMBERSHIPS.c.fiber_id.in_(self._select(FIBERS.c.fiber_id))
        )
        return super()._count_to_delete(session) + count_up_to(session, held, access.MANY_ROWS)

    def _commit_order(self, session: Session) -> CommitOrder:
        return connection_of(session).support.fiber_commit_order

    def summaries(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberSummary]:
        with self._read("summaries") as session, self._paging(session, limit, cursor) as page:
            found = summaries_of(session, [*page.items, *page.late])
        items = len(page.items)
        return Page(found[:items], page.next, page.previous, found[items:])

    def by_log(self, log_ids: Iterable[UUID]) -> dict[UUID, list[FiberRecord]]:
        wanted = checked_ids(log_ids)
        held = apart(sa.select(*MEMBERSHIPS.c).where(among(MEMBERSHIPS.c.log_id, wanted)))
        statement = self._ordered(self._select(*self._columns(), held.c.log_id)).join(
            held, held.c.fiber_id == FIBERS.c.fiber_id
        )
        with self._read("by_log") as session:
            return self._grouped(wanted, select_rows(session, statement))

    def types(self) -> list[ValueCount[str]]:
        statement = self._values(FIBERS.c.fiber_type)
        with self._read("types") as session:
            return value_counts(select_rows(session, statement), str)

    def attribute_keys(self, pointer: str = "") -> list[ValueCount[str]]:
        check_pointer(pointer)
        statement = self._values(JsonKeys(ATTRIBUTES, pointer))
        with self._read("attribute_keys") as session:
            counts = value_counts(
                select_rows(session, statement),
                lambda key: f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}",
            )
        return sorted(counts, key=lambda found: (-found.count, found.value))

    def attribute_values(self, pointer: str, limit: int = 20) -> list[ValueCount[Scalar]]:
        check_pointer(pointer)
        check_number("limit", limit)
        kind, text = JsonType(ATTRIBUTES, pointer), JsonValueAt(ATTRIBUTES, pointer)
        statement = self._values(text, kind.not_in(["ARRAY", "OBJECT"])).limit(limit)
        with self._read("attribute_values") as session:
            found = value_counts(select_rows(session, statement), _scalar)
            if not found and limit:
                self._warn_of_list_values(session, pointer, kind)
            return found

    def _warn_of_list_values(self, session: Session, pointer: str, kind: JsonType) -> None:
        """Warn that an attribute that has no value is a list: the keys that rules find are."""
        ((lists,),) = select_rows(session, self._select(sa.func.count()).where(kind == "ARRAY"))
        if lists:
            _logger.warning(
                "nothing is found: attributes[%r] is a list in %d of the fibers, and items of lists are not "
                "counted; key_values(name) counts the values of keys",
                pointer,
                lists,
            )

    def key_names(self) -> list[ValueCount[str]]:
        names = sa.select(KEYS.c.fiber_id, KEYS.c.name).distinct().subquery()
        statement = self._values(names.c.name, names.c.fiber_id == FIBERS.c.fiber_id)
        with self._read("key_names") as session:
            return value_counts(select_rows(session, statement), str)

    def key_values(self, name: str, prefix: str = "", limit: int = 20) -> list[ValueCount[str]]:
        check_text(name)
        check_text(prefix)
        check_number("limit", limit)
        is_one = sa.and_(KEYS.c.fiber_id == FIBERS.c.fiber_id, KEYS.c.name == name)
        has_prefix = StartsWith(KEYS.c.value, prefix) if prefix else sa.true()
        statement = self._values(KEYS.c.value, is_one, has_prefix).limit(limit)
        with self._read("key_values") as session:
            return value_counts(select_rows(session, statement), str)

    def export_keys(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        from fiberstore.exchange import write_records
        from fiberstore.exchange.schemas import schema_of

        identity = [KEYS.c.fiber_id, KEYS.c.name, KEYS.c.value]
        statement = (
            sa.select(*(as_arrow(KEYS.c[name]) for name in schema_of(FiberKey).names))
            .where(KEYS.c.fiber_id.in_(self._select(FIBERS.c.fiber_id)))
            .order_by(*identity)
        )
        with closing(self._stream("export_keys", statement, FiberKey)) as batches:
            sorted_by: list[SortKey] = [(column.name, "ascending") for column in identity]
            return write_records(batches, FiberKey, path, sorted_by=sorted_by, on_rows=on_rows)

    def timeline(self, fibers: int = 50, points: int = 10_000) -> Timeline:
        check_number("fibers", fibers)
        check_number("points", points)
        first = self._ordered(self._select(*self._columns())).limit(fibers)
        with self._read("timeline") as session, one_snapshot(session):
            chosen = self._records(select_rows(session, first))
            return Timeline(chosen, *timeline_points(session, [fiber.fiber_id for fiber in chosen], points))


def _place(row: Row) -> tuple[Any, int]:
    *_fiber, first, fiber_id = row
    return first, fiber_id.int


def _copy_rows(
    session: Session, table: sa.Table, copies: sa.FromClause, replaced: Mapping[str, sa.ColumnElement[Any]]
) -> int:
    both = table.join(copies, copies.c.fiber_id == table.c.fiber_id)
    rows = sa.select(*(replaced.get(column.name, column) for column in table.c)).select_from(both)
    return execute_write(session, sa.insert(table).from_select(table.c.keys(), rows))


def _validated(fiber: FiberRecord) -> FiberRecord:
    """Check a fiber again: its attributes may have been changed, and ``model_copy`` checks nothing."""
    if not isinstance(fiber, FiberRecord):
        raise TypeError(f"expected a FiberRecord, got {fiber!r:.200}")
    values = {name: value for name, value in fiber if name in FiberRecord.model_fields}
    return FiberRecord(**values)


def distinct_fibers(fibers: Sequence[FiberRecord]) -> list[FiberRecord]:
    """Check fibers again, see ``_validated``, and that each is given once."""
    rows = [_validated(fiber) for fiber in bulk.checked(fibers, FiberRecord)]
    seen: set[UUID] = set()
    for fiber in rows:
        if fiber.fiber_id in seen:
            raise ValueError(f"fiber {fiber.fiber_id} is given twice")
        seen.add(fiber.fiber_id)
    return rows


def _check_survivors(survivors: Mapping[UUID, UUID]) -> None:
    if not isinstance(survivors, Mapping):
        raise TypeError(f"expected a mapping of fiber ids to survivors, got {survivors!r:.200}")
    for loser, survivor in survivors.items():
        check_id(loser)
        check_id(survivor)
        if survivor in survivors:
            raise ValueError(f"fiber {loser} cannot become part of {survivor}, which ends itself")


def _check_mergeable(session: Session, merges: Columns) -> None:
    refused = bulk.unmergeable(session, merges)
    if refused is None:
        return
    loser, survivor, of_loser, of_survivor = refused
    for fiber_id, version in ((loser, of_loser), (survivor, of_survivor)):
        if version is None:
            raise NotFoundError(fiber_id)
    raise ValueError(
        f"fiber {loser} of config version {of_loser} cannot become part of {survivor} of {of_survivor}; "
        "merge fibers of one version"
    )


class _MovedMemberships:
    """The memberships of fibers that end, as they are written anew as those of their survivors.

    Args:
        session: Where a transaction is open.
        merges: Table of the fibers that end and their survivors.
    """

    def __init__(self, session: Session, merges: sa.FromClause) -> None:
        self._session = session
        self._merges = merges
        self.going = GoingRows(MEMBERSHIPS, self.is_loser(MEMBERSHIPS.c.fiber_id), self._others)

    def is_loser(self, fiber_id: sa.ColumnElement[UUID]) -> sa.ColumnElement[bool]:
        """Return that a fiber ends."""
        return fiber_id.in_(sa.select(self._merges.c.loser))

    def put_in_place(self) -> int | None:
        """Write the table anew, if it is worth it; return how many memberships the survivors have got."""
        connection = connection_of(self._session)
        of_losers = sa.select(sa.func.count()).select_from(MEMBERSHIPS).where(self.going.which)
        ((rows,),) = select_rows(self._session, of_losers)
        fewer = connection.support.replace(self._session, self.going)
        if fewer is None:
            return None
        connection.rows_written += 2 * (rows - fewer)  # as if so many were inserted, and more deleted
        return int(rows - fewer)

    def _others(self, some: sa.ColumnElement[bool]) -> Others:
        """Make one membership of those of each pair, of the survivor's version, else of the least."""
        merges = self._merges
        all_rows = (
            sa.select(
                MEMBERSHIPS.c.log_id,
                sa.func.coalesce(merges.c.survivor, MEMBERSHIPS.c.fiber_id).label("fiber_id"),
                MEMBERSHIPS.c.config_version,
                merges.c.loser.is_(None).label("stays"),
            )
            .outerjoin_from(MEMBERSHIPS, merges, merges.c.loser == MEMBERSHIPS.c.fiber_id)
            .where(some)
            .subquery("all_rows")
        )
        pair, least = (all_rows.c.log_id, all_rows.c.fiber_id), sa.func.min(all_rows.c.config_version)
        version = sa.func.coalesce(least.filter(all_rows.c.stays), least)
        return Others(all_rows, sa.select(*pair, version).group_by(*pair))


@contextmanager
def _moved_memberships(session: Session, merges: Columns) -> Iterator[_MovedMemberships]:
    with connection_of(session).support.given(session, merges) as kept:
        yield _MovedMemberships(session, kept.rows)


@contextmanager
def _memberships_to_move(session: Session, merges: Columns) -> Iterator[list[GoingRows]]:
    with _moved_memberships(session, merges) as moved:
        yield [moved.going]


def _driver_values(fiber: FiberRecord) -> dict[str, object]:
    return {**dict(fiber), "attributes": dump_json(fiber.attributes)}


def _scalar(text: str) -> Scalar:
    return cast("Scalar", load_json(text))
