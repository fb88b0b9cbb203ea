"""Log lines."""

from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.checks import as_utc, check_config_version, check_id, check_page
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.records import LogRecord, StoredLog, from_epoch_us, log_key
from fiberstore.repositories.log_queries import SqlLogs
from fiberstore.repositories.query import bound_to
from fiberstore.sql import bulk
from fiberstore.sql.connection import Connection
from fiberstore.sql.models import RawLog, stored_time
from fiberstore.sql.prepared import Prepared, PreparedPages
from fiberstore.sql.rows import LogRow, log_columns, to_logs
from fiberstore.sql.translate import translate_errors


def log_pages(logs: sa.FromClause, *conditions: sa.ColumnElement[bool]) -> PreparedPages[LogRow[int]]:
    """Prepare the pages of ``raw_logs``, or of what has its columns."""
    columns = logs.c
    return PreparedPages(sa.select(*log_columns(logs)).where(*conditions), columns.timestamp, columns.log_id)


_LOGS = RawLog.__table__
_BY_ID = Prepared[LogRow[object]](sa.select(*_LOGS.c).where(_LOGS.c.log_id == sa.bindparam("log_id")))
_BY_TIME = log_pages(_LOGS, _LOGS.c.timestamp.between(sa.bindparam("start"), sa.bindparam("end")))


class LogRepository(SqlLogs):
    """The logs of a session's database, to be written, and asked as ``Logs`` describes.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``. The repository flushes it if it
            autoflushes, keeps what it holds unflushed otherwise, and never commits. On a DBAPI connection
            instead, each statement is a transaction of its own.
        config_version: What a ``LogRecord`` is stamped with.
    """

    def __init__(self, session: Session | Connection, *, config_version: int = 0) -> None:
        check_config_version(config_version)
        super().__init__(*bound_to(session))
        self._session = session
        self._config_version = config_version

    def write(self, logs: Iterable[LogRecord]) -> int:
        """Store logs; see ``Storage.write_logs``. An iterator is read to its end first."""
        rows = bulk.checked(logs, LogRecord)
        if not rows:
            return 0
        with translate_errors():
            return bulk.insert_logs(self._session, rows, self._config_version, datetime.now(UTC))

    def get(self, log_id: UUID) -> StoredLog | None:
        """Return one log or None; see ``Storage.get_log``."""
        check_id(log_id)
        with translate_errors():
            logs = to_logs(_BY_ID.rows(self._session, {"log_id": log_id}), stored_time)
        return logs[0] if logs else None

    def query_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the logs of a closed range of time; see ``Storage.query_logs_by_time``."""
        values = {"start": as_utc(start), "end": as_utc(end)}
        check_page(limit, offset)
        key = log_key(after)
        with translate_errors():
            return to_logs(_BY_TIME.rows(self._session, values, limit, offset, key), from_epoch_us)
