"""Queries of fibers."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.checks import check_number
from fiberstore.contract.conditions import Scalar, check_pointer
from fiberstore.contract.queries import (
    Deleted,
    FiberGroup,
    FiberOrder,
    Fibers,
    FiberSummary,
    Page,
    Timeline,
    TimelinePoint,
    ValueCount,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.json_text import load_json
from fiberstore.records import FiberRecord, from_epoch_us
from fiberstore.repositories.arrival import Arrival
from fiberstore.repositories.engines import engine_of
from fiberstore.repositories.paging import Order, PagedQuery, checked_ids, value_counts
from fiberstore.repositories.query import chosen, one_snapshot, select_rows, written
from fiberstore.sql.conditions import (
    ATTRIBUTES,
    DURATION_US,
    FIBERS,
    LOGS,
    MEMBERSHIPS,
    all_of,
    among,
)
from fiberstore.sql.connection import Connection
from fiberstore.sql.functions import Json, JsonKeys, JsonType, Quotient, TimeUs, array_value, sorted_array
from fiberstore.sql.models import MergedFiber, PinnedFiber
from fiberstore.sql.rows import fiber_columns, to_fibers

_BEGAN_US = TimeUs(FIBERS.c.first_activity)
_COUNTS = (
    sa.select(MEMBERSHIPS.c.fiber_id, sa.func.count().label("logs"))
    .join(LOGS, LOGS.c.log_id == MEMBERSHIPS.c.log_id)
    .group_by(MEMBERSHIPS.c.fiber_id)
    .subquery("log_counts")
)
_LOG_COUNT: sa.ColumnElement[int] = sa.func.coalesce(_COUNTS.c.logs, 0)


class SqlFibers(PagedQuery[FiberRecord, FiberOrder, FiberGroup], Fibers):
    """``Fibers`` on a connection or a session."""

    _record = FiberRecord
    _name = "fibers"
    _table = FIBERS
    _id = FIBERS.c.fiber_id
    _id_name = "fiber_id"
    _group = FIBERS.c.fiber_type
    _seen = (FIBERS.c.first_activity, FIBERS.c.last_activity)
    _pins = PinnedFiber.metadata.tables["fiber_pins"]
    _orders: ClassVar = {
        "oldest": Order(FIBERS.c.first_activity, _BEGAN_US, from_epoch_us, descending=False),
        "newest": Order(FIBERS.c.first_activity, _BEGAN_US, from_epoch_us, descending=True),
        "longest": Order(DURATION_US, DURATION_US, int, descending=True),
        "most_logs": Order(
            _LOG_COUNT,
            _LOG_COUNT,
            int,
            descending=True,
            source=FIBERS.outerjoin(_COUNTS, _COUNTS.c.fiber_id == FIBERS.c.fiber_id),
        ),
    }

    def close(self) -> int:
        return self._set_closed("close", closed=True)

    def reopen(self) -> int:
        return self._set_closed("reopen", closed=False)

    def _set_closed(self, method: str, *, closed: bool) -> int:
        differs = FIBERS.c.closed.is_not(closed)
        change = sa.update(FIBERS).values(closed=closed).where(differs, *all_of(self._conditions))
        return self._change(method, lambda session: written(session, change))

    def _delete(self, session: Session | Connection) -> Deleted:
        with chosen(session, self._select(FIBERS.c.fiber_id)) as ids:
            merges = sa.or_(MergedFiber.fiber_id.in_(ids), MergedFiber.survivor_id.in_(ids))
            written(session, sa.delete(MergedFiber).where(merges))
            memberships = written(session, sa.delete(MEMBERSHIPS).where(MEMBERSHIPS.c.fiber_id.in_(ids)))
            written(session, sa.delete(self._pins).where(self._pins.c.fiber_id.in_(ids)))
            fibers = written(session, sa.delete(FIBERS).where(FIBERS.c.fiber_id.in_(ids)))
        return Deleted(0, fibers, memberships)

    def _arrival(self, session: Session | Connection) -> Arrival:
        return engine_of(session).fiber_arrival

    def _columns(self) -> Sequence[sa.ColumnElement[Any]]:
        return fiber_columns(FIBERS)

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[FiberRecord]:
        return to_fibers(rows, from_epoch_us)

    def summaries(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberSummary]:
        with self._asking("summaries") as session, self._paging(session, limit, cursor) as page:
            fiber_ids = [fiber.fiber_id for fiber in (*page.items, *page.late)]
            rows = list(select_rows(session, _log_spans(fiber_ids))) if fiber_ids else []
        spans = {fiber_id: span for fiber_id, *span in rows}
        return Page(
            [_summary(fiber, spans.get(fiber.fiber_id)) for fiber in page.items],
            page.next,
            page.previous,
            [_summary(fiber, spans.get(fiber.fiber_id)) for fiber in page.late],
        )

    def by_log(self, log_ids: Iterable[UUID]) -> dict[UUID, list[FiberRecord]]:
        wanted = checked_ids(log_ids)
        statement = (
            self._ordered(self._select(*self._columns(), MEMBERSHIPS.c.log_id))
            .join(MEMBERSHIPS, MEMBERSHIPS.c.fiber_id == FIBERS.c.fiber_id)
            .where(among(MEMBERSHIPS.c.log_id, wanted))
        )
        with self._asking("by_log") as session:
            return self._grouped(wanted, select_rows(session, statement))

    def types(self) -> list[ValueCount[str]]:
        statement = self._values(FIBERS.c.fiber_type)
        with self._asking("types") as session:
            return value_counts(select_rows(session, statement), str)

    def attribute_keys(self, pointer: str = "") -> list[ValueCount[str]]:
        check_pointer(pointer)
        statement = self._values(JsonKeys(ATTRIBUTES, pointer))
        with self._asking("attribute_keys") as session:
            counts = value_counts(
                select_rows(session, statement),
                lambda key: f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}",
            )
        return sorted(counts, key=lambda found: (-found.count, found.value))

    def attribute_values(self, pointer: str, limit: int = 20) -> list[ValueCount[Scalar]]:
        check_pointer(pointer)
        check_number("limit", limit)
        kind, text = JsonType(ATTRIBUTES, pointer), Json(ATTRIBUTES, pointer)
        statement = self._values(text, kind.not_in(["ARRAY", "OBJECT"])).limit(limit)
        with self._asking("attribute_values") as session:
            return value_counts(select_rows(session, statement), _scalar)

    def timeline(self, fibers: int = 50, points: int = 10_000) -> Timeline:
        check_number("fibers", fibers)
        check_number("points", points)
        first = self._ordered(self._select(*self._columns())).limit(fibers)
        with self._asking("timeline") as session, one_snapshot(session):
            chosen = self._records(select_rows(session, first))
            ids = [fiber.fiber_id for fiber in chosen]
            rows = list(select_rows(session, _timeline_points(ids, points))) if ids else []
        found = [TimelinePoint(row[0], from_epoch_us(row[1]), row[2], row[3]) for row in rows]
        return Timeline(chosen, found if points else [], rows[0][4] if rows else 0)


def _timeline_points(fiber_ids: list[UUID], most: int) -> sa.Select[Any]:
    """Select evenly chosen logs of fibers, with the number of all; of none, the last one tells the number."""
    listed = array_value(fiber_ids, FIBERS.c.fiber_id.type)
    chosen = sa.select(
        sa.func.unnest(listed).label("fiber_id"), sa.func.generate_subscripts(listed, 1).label("place")
    ).subquery("chosen")
    in_order = sa.func.row_number().over(order_by=(chosen.c.place, LOGS.c.timestamp, LOGS.c.log_id))
    points = (
        sa.select(
            chosen.c.fiber_id,
            TimeUs(LOGS.c.timestamp).label("time_us"),
            LOGS.c.source_id,
            LOGS.c.log_id,
            in_order.label("number"),
            sa.func.count().over().label("total"),
        )
        .select_from(chosen)
        .join(MEMBERSHIPS, MEMBERSHIPS.c.fiber_id == chosen.c.fiber_id)
        .join(LOGS, LOGS.c.log_id == MEMBERSHIPS.c.log_id)
        .subquery("points")
    )
    number, total = points.c.number, points.c.total
    wanted = sa.func.least(most, total)
    is_chosen = Quotient(number * wanted, total) != Quotient((number - 1) * wanted, total)
    return (
        sa.select(points.c.fiber_id, points.c.time_us, points.c.source_id, points.c.log_id, total)
        .where(sa.or_(is_chosen, number == total))
        .order_by(number)
    )


def _log_spans(fiber_ids: Sequence[UUID]) -> sa.Select[Any]:
    return (
        sa.select(
            MEMBERSHIPS.c.fiber_id,
            sa.func.count(),
            sorted_array(LOGS.c.source_id),
            TimeUs(sa.func.min(LOGS.c.timestamp)),
            TimeUs(sa.func.max(LOGS.c.timestamp)),
        )
        .join(LOGS, LOGS.c.log_id == MEMBERSHIPS.c.log_id)
        .where(among(MEMBERSHIPS.c.fiber_id, fiber_ids))
        .group_by(MEMBERSHIPS.c.fiber_id)
    )


def _summary(fiber: FiberRecord, span: Sequence[Any] | None) -> FiberSummary:
    if span is None:
        return FiberSummary(fiber, 0, [], None, None)
    log_count, source_ids, first_us, last_us = span
    return FiberSummary(fiber, log_count, source_ids, from_epoch_us(first_us), from_epoch_us(last_us))


def _scalar(text: str) -> Scalar:
    return cast("Scalar", load_json(text))
