"""Queries of logs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import sqlalchemy as sa

from fiberstore.queries import Logs
from fiberstore.records import StoredLog, from_epoch_us
from fiberstore.repositories.arrival import Arrival
from fiberstore.repositories.conditions import LOGS
from fiberstore.repositories.queries import Order, PagedQuery
from fiberstore.repositories.rows import log_columns, to_logs

_TIMESTAMP_US = sa.func.epoch_us(LOGS.c.timestamp, type_=sa.BigInteger)


class SqlLogs(PagedQuery[StoredLog], Logs):
    """``Logs`` on a connection or a session."""

    _record = StoredLog
    _name = "logs"
    _table = LOGS
    _id = LOGS.c.log_id
    _id_name = "log_id"
    _arrival = Arrival(LOGS, LOGS.c.log_id)
    _orders: ClassVar = {
        "oldest": Order(LOGS.c.timestamp, _TIMESTAMP_US, from_epoch_us, descending=False),
        "newest": Order(LOGS.c.timestamp, _TIMESTAMP_US, from_epoch_us, descending=True),
    }

    def _columns(self) -> Sequence[sa.ColumnElement[Any]]:
        return log_columns(LOGS)

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[StoredLog]:
        return to_logs(rows, from_epoch_us)

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def by_fiber(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def sources(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def histogram(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def context(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def tail(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError
