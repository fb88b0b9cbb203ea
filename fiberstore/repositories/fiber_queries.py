"""Queries of fibers."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import sqlalchemy as sa

from fiberstore.queries import Fibers
from fiberstore.records import FiberRecord, from_epoch_us
from fiberstore.repositories.arrival import Arrival
from fiberstore.repositories.conditions import DURATION_US, FIBERS, LOGS, MEMBERSHIPS
from fiberstore.repositories.queries import Order, PagedQuery
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

    def timeline(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError
