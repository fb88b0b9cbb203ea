"""Log lines."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import ClassVar, Literal, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.checks import as_utc, check_id, check_number, check_page, check_text
from fiberstore.contract.cursors import Watermark
from fiberstore.contract.patterns import check_redaction
from fiberstore.contract.queries import LogGroup, LogOrder, Logs
from fiberstore.contract.results import Deleted, LogContext, ValueCount
from fiberstore.contract.storage import DEFAULT_LIMIT, LogStorage
from fiberstore.errors import DatabaseError
from fiberstore.records import LogRecord, StoredLog, from_epoch_us, log_key, to_epoch_us
from fiberstore.repositories.access import SessionAccess, begins_beside_others, session_access
from fiberstore.repositories.paging import Order, PagedQuery, checked_ids, value_counts
from fiberstore.repositories.query import delete_rows, given, kept_ids, one_snapshot, select_rows
from fiberstore.repositories.tailing import Arrived, SqlTail
from fiberstore.sql import bulk
from fiberstore.sql.arrival_order import CommitOrder
from fiberstore.sql.conditions import LOGS, MEMBERSHIPS, all_of, among
from fiberstore.sql.connection import Lock, Row
from fiberstore.sql.functions import RegexpMatches, TimeUs
from fiberstore.sql.models import PinnedLog, stored_time
from fiberstore.sql.prepared import Prepared, PreparedPages, compiled, connection_of
from fiberstore.sql.rows import columns_in_us, columns_of, to_records
from fiberstore.sql.support import GoingRows


def log_pages(logs: sa.FromClause, *conditions: sa.ColumnElement[bool]) -> PreparedPages[Row]:
    """Prepare the pages of ``raw_logs``, or of what has its columns."""
    rows = sa.select(*columns_in_us(StoredLog, logs)).where(*conditions)
    return PreparedPages(rows, logs.c.timestamp, logs.c.log_id)


_TIMESTAMP_US = TimeUs(LOGS.c.timestamp)
_BY_ID = Prepared[Row](sa.select(*columns_of(StoredLog, LOGS)).where(LOGS.c.log_id == sa.bindparam("log_id")))
_BY_TIME = log_pages(LOGS, LOGS.c.timestamp.between(sa.bindparam("start"), sa.bindparam("end")))


class LogMethods(LogStorage):
    """``LogStorage`` through sessions."""

    _sessions: SessionAccess

    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        config_version = self._sessions.config_version

        def write(session: Session, batch: list[LogRecord]) -> int:
            return bulk.insert_logs(session, batch, config_version, datetime.now(UTC))

        return self._sessions.write_rows("write_logs", logs, write)

    def get_log(self, log_id: UUID) -> StoredLog | None:
        with self._sessions.read("get_log") as session:
            check_id(log_id)
            logs = to_records(StoredLog, _BY_ID.rows(session, {"log_id": log_id}), stored_time)
        return logs[0] if logs else None

    def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        with self._sessions.read("query_logs_by_time") as session:
            values = {"start": as_utc(start), "end": as_utc(end)}
            check_page(limit, offset)
            rows = _BY_TIME.rows(session, values, limit, offset, log_key(after))
            return to_records(StoredLog, rows, connection_of(session).support.to_time)


class LogRepository(LogMethods, PagedQuery[StoredLog, LogOrder, LogGroup], Logs):
    """The logs of a database, to be written and queried: ``LogStorage`` and ``Logs``.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``, which the caller owns: it is
            flushed if it autoflushes, what it holds unflushed otherwise stays, and nothing is committed. A
            storage passes its session factory instead, and each call is a session of its own.
        config_version: The stamp of a ``LogRecord``; by default that of the storage on the session's engine,
            or 0 if there is none.
    """

    _record = StoredLog
    _name = "logs"
    _table = LOGS
    _id = LOGS.c.log_id
    _id_name = "log_id"
    _group = LOGS.c.source_id
    _seen = (LOGS.c.timestamp, LOGS.c.timestamp)
    _pins = PinnedLog.metadata.tables["log_pins"]
    _delete_lock = Lock.LATE
    _orders: ClassVar = {
        "oldest": Order(LOGS.c.timestamp, _TIMESTAMP_US, from_epoch_us, descending=False),
        "newest": Order(LOGS.c.timestamp, _TIMESTAMP_US, from_epoch_us, descending=True),
    }

    def __init__(self, session: Session | SessionAccess, *, config_version: int | None = None) -> None:
        super().__init__(session_access(session, config_version))

    def _commit_order(self, session: Session) -> CommitOrder:
        return connection_of(session).support.log_commit_order

    def redact(self, pattern: str, replacement: str = "[redacted]") -> int:
        check_redaction(pattern)
        check_text(replacement)

        def work(session: Session, conditions: list[sa.ColumnElement[bool]]) -> int:
            return connection_of(session).support.redact(session, conditions, pattern, replacement)

        rows = self._sessions.redacted_at_once
        if rows == inf:
            return self._change("redact", lambda session: work(session, all_of(self._conditions)))
        matching = self._select(LOGS.c.log_id).where(RegexpMatches(LOGS.c.raw_text, pattern))
        with self._read("redact") as session:
            ids = connection_of(session).stream_rows(*compiled(session, matching), int(rows))
            with closing(ids):
                steps = [b"".join([id_.bytes for (id_,) in some]) for some in ids]
        return sum(self._redact_some(log_ids, work) for log_ids in steps)

    def _redact_some(
        self, log_ids: bytes, redact: Callable[[Session, list[sa.ColumnElement[bool]]], int]
    ) -> int:
        """Redact those of the logs that the query still finds, in a transaction."""

        def work(session: Session) -> int:
            with given(session, "log_id", log_ids) as ids:
                return redact(session, [ids.hold(LOGS.c.log_id), *all_of(self._conditions)])

        return self._change("redact.step", work)

    @contextmanager
    def _going(self, session: Session) -> Iterator[list[GoingRows]]:
        with kept_ids(session, self._select(LOGS.c.log_id)) as ids:
            yield [GoingRows(table, ids.hold(table.c.log_id)) for table in (MEMBERSHIPS, self._pins, LOGS)]

    def _delete_beside(self, session: Session) -> Deleted:
        if not begins_beside_others(session):
            return self._delete(session)
        with kept_ids(session, self._select(LOGS.c.log_id)) as ids:
            are_members = ids.hold(MEMBERSHIPS.c.log_id)
            memberships = delete_rows(session, MEMBERSHIPS, are_members)
            delete_rows(session, self._pins, ids.hold(self._pins.c.log_id))
            logs = self._delete_found(session, ids, LOGS.c.log_id)
            connection_of(session).take_lock(Lock.CHANGES)
            memberships += delete_rows(session, MEMBERSHIPS, are_members)  # of batches that have met the logs
        return Deleted(logs, 0, memberships)

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
        with self._read("by_fiber") as session:
            return self._grouped(wanted, select_rows(session, statement))

    def sources(self) -> list[ValueCount[str]]:
        statement = self._values(LOGS.c.source_id)
        with self._read("sources") as session:
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
        with self._read("context") as session, one_snapshot(session):
            rows = list(select_rows(session, log_itself))
            if not rows:
                return None
            (log,) = self._records(rows)
            key = (to_epoch_us(log.timestamp), log_id)
            neighbours = self.order_by("oldest")._among_neighbours(session, log, within)
            earlier = neighbours._rows(session, before, neighbours._beyond(key, larger=False), backwards=True)
            later = neighbours._rows(session, after, neighbours._beyond(key, larger=True))
        return LogContext([row.record for row in reversed(earlier)], log, [row.record for row in later])

    def _among_neighbours(
        self, session: Session, log: StoredLog, within: Literal["source", "fibers"] | None
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

    def _news_after(self, seen: Watermark | None, limit: int) -> Arrived:
        with self._read("tail") as session:
            if connection_of(session).in_transaction:
                raise DatabaseError("a transaction sees one moment only; follow storage.logs instead")
            commit_order = self._commit_order(session)
            with commit_order.new_rows(session, seen) as news:
                arrived = self._select(*self._columns(), commit_order.number).where(news.condition)
                rows = list(select_rows(session, arrived.order_by(*commit_order.order).limit(limit)))
        logs = self._records(rows)
        placed = [
            (log, replace(news.mark, newest_id=log.log_id, number=row[-1]))
            for log, row in zip(logs, rows, strict=True)
        ]
        mark = placed[-1][1] if placed and len(placed) == limit else news.mark
        return Arrived(placed, mark, news.wait)
