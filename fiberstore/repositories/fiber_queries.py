"""Queries of fibers."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from uuid import UUID

import sqlalchemy as sa

from fiberstore.queries import Fibers, Timeline, TimelinePoint
from fiberstore.records import FiberRecord, check_page, from_epoch_us
from fiberstore.repositories.arrival import Arrival
from fiberstore.repositories.conditions import DURATION_US, FIBERS, LOGS, MEMBERSHIPS
from fiberstore.repositories.queries import Order, PagedQuery, one_snapshot, select_rows
from fiberstore.repositories.rows import fiber_columns, to_fibers

_BEGAN_US = sa.func.epoch_us(FIBERS.c.first_activity, type_=sa.BigInteger)
_COUNTS = (
    sa.select(MEMBERSHIPS.c.fiber_id, sa.func.count().label("logs"))
    .join(LOGS, LOGS.c.log_id == MEMBERSHIPS.c.log_id)
    .group_by(MEMBERSHIPS.c.fiber_id)
    .subquery("log_counts")
)
_LOG_COUNT: sa.ColumnElement[int] = sa.func.coalesce(_COUNTS.c.logs, 0)


class SqlFibers(PagedQuery[FiberRecord], Fibers):
    """``Fibers`` on a connection or a session."""

    _record = FiberRecord
    _name = "fibers"
    _table = FIBERS
    _id = FIBERS.c.fiber_id
    _id_name = "fiber_id"
    _arrival = Arrival(FIBERS, FIBERS.c.fiber_id)
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

    def _columns(self) -> Sequence[sa.ColumnElement[Any]]:
        return fiber_columns(FIBERS)

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[FiberRecord]:
        return to_fibers(rows, from_epoch_us)

    def summaries(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def by_log(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def types(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def attribute_keys(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def attribute_values(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def histogram(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def timeline(self, fibers: int = 50, points: int = 10_000) -> Timeline:
        """See ``Fibers.timeline``."""
        check_page(fibers, 0)
        check_page(points, 0)
        first = self._ordered(self._select(*self._columns())).limit(fibers)
        with self._asking("timeline") as session, one_snapshot(session):
            chosen = self._records(select_rows(session, first))
            ids = [fiber.fiber_id for fiber in chosen]
            rows = list(select_rows(session, _timeline_points(ids, points))) if ids else []
        found = [TimelinePoint(row[0], from_epoch_us(row[1]), row[2], row[3]) for row in rows]
        return Timeline(chosen, found if points else [], rows[0][4] if rows else 0)


def _timeline_points(fiber_ids: list[UUID], most: int) -> sa.Select[Any]:
    """Select evenly chosen logs of fibers, with the number of all; of none, the last one tells the number."""
    listed = sa.bindparam("fiber_ids", fiber_ids, type_=sa.ARRAY(FIBERS.c.fiber_id.type))
    chosen = sa.select(
        sa.func.unnest(listed).label("fiber_id"), sa.func.generate_subscripts(listed, 1).label("place")
    ).subquery("chosen")
    in_order = sa.func.row_number().over(order_by=(chosen.c.place, LOGS.c.timestamp, LOGS.c.log_id))
    points = (
        sa.select(
            chosen.c.fiber_id,
            sa.func.epoch_us(LOGS.c.timestamp).label("time_us"),
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
    is_chosen = (number * wanted).op("//")(total) != ((number - 1) * wanted).op("//")(total)
    return (
        sa.select(points.c.fiber_id, points.c.time_us, points.c.source_id, points.c.log_id, total)
        .where(sa.or_(is_chosen, number == total))
        .order_by(number)
    )
