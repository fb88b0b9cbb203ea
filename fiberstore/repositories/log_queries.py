"""Queries of logs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from uuid import UUID

import sqlalchemy as sa

from fiberstore.dbapi import Connection
from fiberstore.errors import DatabaseError
from fiberstore.queries import Logs
from fiberstore.records import StoredLog, from_epoch_us
from fiberstore.repositories.arrival import Arrival
from fiberstore.repositories.conditions import LOGS
from fiberstore.repositories.queries import Order, PagedQuery, select_rows
from fiberstore.repositories.rows import log_columns, to_logs
from fiberstore.repositories.tails import News, SqlTail

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

    def tail(self, position: str | None = None, *, timeout_s: float | None = None) -> SqlTail:
        """See ``Logs.tail``."""
        return SqlTail(self._news_after, position, timeout_s)

    def _news_after(self, log_id: UUID | None, limit: int) -> News:
        with self._asking("tail") as session:
            if not isinstance(session, Connection) or session.in_transaction:
                raise DatabaseError("a transaction sees one moment only; follow storage.logs instead")
            ended = session.appends.ended
            with self._arrival.news(session, log_id) as (after, newest, newest_id):
                arrived = self._select(*self._columns()).where(self._arrival.rowid.between(after + 1, newest))
                rows = select_rows(session, arrived.order_by(self._arrival.rowid).limit(limit))
                logs = self._records(rows)
        up_to = logs[-1].log_id if logs and len(logs) == limit else newest_id
        return News(logs, up_to, session.appends, ended)
