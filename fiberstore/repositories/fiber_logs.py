"""The logs of fibers: how many, from where and when, and as points of a timeline."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.results import FiberSummary, TimelinePoint
from fiberstore.records import FiberRecord, from_epoch_us
from fiberstore.repositories.query import select_rows
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS, among
from fiberstore.sql.functions import Quotient, TimeUs, array_value, sorted_array

_COUNTS = (
    sa.select(MEMBERSHIPS.c.fiber_id, sa.func.count().label("logs"))
    .join(LOGS, LOGS.c.log_id == MEMBERSHIPS.c.log_id)
    .group_by(MEMBERSHIPS.c.fiber_id)
    .subquery("log_counts")
)
LOG_COUNT: sa.ColumnElement[int] = sa.func.coalesce(_COUNTS.c.logs, 0)
"""How many stored logs a fiber has, of ``WITH_LOG_COUNT``."""

WITH_LOG_COUNT = FIBERS.outerjoin(_COUNTS, _COUNTS.c.fiber_id == FIBERS.c.fiber_id)


def summaries_of(session: Session, fibers: Sequence[FiberRecord]) -> list[FiberSummary]:
    """Return the summaries of fibers, in their order."""
    spans = {}
    if fibers:
        rows = select_rows(session, _log_spans([fiber.fiber_id for fiber in fibers]))
        spans = {fiber_id: span for fiber_id, *span in rows}
    return [_summary(fiber, spans.get(fiber.fiber_id)) for fiber in fibers]


def timeline_points(session: Session, fiber_ids: list[UUID], most: int) -> tuple[list[TimelinePoint], int]:
    """Return evenly chosen logs of fibers, at most so many, and the number of all."""
    rows = list(select_rows(session, _timeline_points(fiber_ids, most))) if fiber_ids else []
    points = [TimelinePoint(row[0], from_epoch_us(row[1]), row[2], row[3]) for row in rows]
    return points if most else [], rows[0][4] if rows else 0


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
