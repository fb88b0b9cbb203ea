"""Queries of logs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.checks import check_id, check_number, check_text
from fiberstore.contract.conditions import check_redaction
from fiberstore.contract.queries import (
    Deleted,
    LogContext,
    LogGroup,
    LogOrder,
    Logs,
    ValueCount,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import DatabaseError
from fiberstore.records import StoredLog, from_epoch_us
from fiberstore.repositories.arrival import Arrival
from fiberstore.repositories.engines import engine_of
from fiberstore.repositories.paging import Order, PagedQuery, checked_ids, value_counts
from fiberstore.repositories.query import chosen, one_snapshot, select_rows, written
from fiberstore.repositories.tailing import Arrived, SqlTail
from fiberstore.sql.conditions import LOGS, MEMBERSHIPS, all_of, among
from fiberstore.sql.connection import Connection
from fiberstore.sql.cursors import Mark
from fiberstore.sql.functions import TimeUs
from fiberstore.sql.models import PinnedLog
from fiberstore.sql.rows import log_columns, to_logs

_TIMESTAMP_US = TimeUs(LOGS.c.timestamp)


class SqlLogs(PagedQuery[StoredLog, LogOrder, LogGroup], Logs):
    """``Logs`` on a connection or a session."""

    _record = StoredLog
    _name = "logs"
    _table = LOGS
    _id = LOGS.c.log_id
    _id_name = "log_id"
    _group = LOGS.c.source_id
    _seen = (LOGS.c.timestamp, LOGS.c.timestamp)
    _pins = PinnedLog.metadata.tables["log_pins"]
    _orders: ClassVar = {
        "oldest": Order(LOGS.c.timestamp, _TIMESTAMP_US, from_epoch_us, descending=False),
        "newest": Order(LOGS.c.timestamp, _TIMESTAMP_US, from_epoch_us, descending=True),
    }

    def _arrival(self, session: Session | Connection) -> Arrival:
        return engine_of(session).log_arrival

    def _columns(self) -> Sequence[sa.ColumnElement[Any]]:
        return log_columns(LOGS)

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[StoredLog]:
        return to_logs(rows, from_epoch_us)

    def redact(self, pattern: str, replacement: str = "[redacted]") -> int:
        check_redaction(pattern)
        check_text(replacement)
        conditions = all_of(self._conditions)
        return self._change(
            "redact", lambda session: engine_of(session).redact(session, conditions, pattern, replacement)
        )

    def _delete(self, session: Session | Connection) -> Deleted:
        with chosen(session, self._select(LOGS.c.log_id)) as ids:
            memberships = written(session, sa.delete(MEMBERSHIPS).where(MEMBERSHIPS.c.log_id.in_(ids)))
            written(session, sa.delete(self._pins).where(self._pins.c.log_id.in_(ids)))
            return Deleted(written(session, sa.delete(LOGS).where(LOGS.c.log_id.in_(ids))), 0, memberships)

    def by_fiber(
        self, fiber_ids: Iterable[UUID], limit_per_fiber: int = DEFAULT_LIMIT
    ) -> dict[UUID, list[StoredLog]]:
        wanted = checked_ids(fiber_ids)
        check_number("limit_per_fiber", limit_per_fiber)
        place = sa.func.row_number().over(partition_by=MEMBERSHIPS.c.fiber_id, order_by=self._order_by())
        placed = (
            self._select(*self._columns(), MEMBERSHIPS.c.fiber_id.label("of_fiber"), place.label("place"))
            .join(MEMBERSHIPS, MEMBERSHIPS.c.log_id == LOGS.c.log_id)
            .where(among(MEMBERSHIPS.c.fiber_id, wanted))
            .subquery()
        )
        columns = list(placed.c)[:-1]
        statement = sa.select(*columns).where(placed.c.place <= limit_per_fiber).order_by(placed.c.place)
        with self._asking("by_fiber") as session:
            return self._grouped(wanted, select_rows(session, statement))

    def sources(self) -> list[ValueCount[str]]:
        statement = self._values(LOGS.c.source_id)
        with self._asking("sources") as session:
            return value_counts(select_rows(session, statement), str)

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
        log_itself = sa.select(*self._columns()).where(LOGS.c.log_id == log_id)
        with self._asking("context") as session, one_snapshot(session):
            rows = list(select_rows(session, log_itself))
            if not rows:
                return None
            (log,) = self._records(rows)
            key = (rows[0][1], log_id)
            neighbours = self.order_by("oldest")._among_neighbours(session, log, within)
            earlier = neighbours._rows(session, before, neighbours._beyond(key, larger=False), backwards=True)
            later = neighbours._rows(session, after, neighbours._beyond(key, larger=True))
        return LogContext([row.record for row in reversed(earlier)], log, [row.record for row in later])

    def _among_neighbours(
        self, session: Session | Connection, log: StoredLog, within: Literal["source", "fibers"] | None
    ) -> Self:
        match within:
            case "source":
                return self.where(Logs.c.source_id == log.source_id)
            case "fibers":
                fibers = sa.select(MEMBERSHIPS.c.fiber_id).where(MEMBERSHIPS.c.log_id == log.log_id)
                fiber_ids = [fiber_id for (fiber_id,) in select_rows(session, fibers)]
                return self.where(Logs.c.fibers.contains(*fiber_ids))
        return self

    def tail(self, position: str | None = None, *, timeout_s: float | None = None) -> SqlTail:
        return SqlTail(self._news_after, position, timeout_s)

    def _news_after(self, seen: Mark, limit: int) -> Arrived:
        with self._asking("tail") as session:
            if not isinstance(session, Connection) or session.in_transaction:
                raise DatabaseError("a transaction sees one moment only; follow storage.logs instead")
            arrival = self._arrival(session)
            with arrival.news(session, seen) as news:
                arrived = self._select(*self._columns(), arrival.number).where(news.condition)
                rows = list(select_rows(session, arrived.order_by(*arrival.order).limit(limit)))
        logs = self._records([row[:-1] for row in rows])
        placed = [(log, Mark(log.log_id, row[-1])) for log, row in zip(logs, rows, strict=True)]
        mark = placed[-1][1] if placed and len(placed) == limit else news.mark
        return Arrived(placed, mark, news.wait)
