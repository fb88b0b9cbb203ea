"""Log lines."""

from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore import bulk
from fiberstore.errors import SerializationError, translate_errors
from fiberstore.models import RawLog
from fiberstore.records import LogRecord, StoredLog, as_utc, check_config_version, check_id, check_page
from fiberstore.storage import DEFAULT_LIMIT

SELECT_LOGS = sa.select(
    RawLog.log_id,
    RawLog.timestamp,
    RawLog.source_id,
    RawLog.raw_text,
    RawLog.ingestion_time,
    RawLog.config_version,
)


class LogRepository:
    """The logs of a session's database.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``. The repository flushes it and never
            commits.
        config_version: What a ``LogRecord`` is stamped with, 0 to 2**64 - 1.
    """

    def __init__(self, session: Session, *, config_version: int = 0) -> None:
        check_config_version(config_version)
        self._session = session
        self._config_version = config_version

    def write(self, logs: Iterable[LogRecord]) -> int:
        """Store logs; see ``Storage.write_logs``."""
        rows = bulk.checked(logs, LogRecord)
        if not rows:
            return 0
        with translate_errors():
            return bulk.insert_logs(self._session, rows, self._config_version, datetime.now(UTC))

    def get(self, log_id: UUID) -> StoredLog | None:
        """Return one log or None; see ``Storage.get_log``."""
        check_id(log_id)
        with translate_errors():
            rows = to_logs(self._session.execute(SELECT_LOGS.where(RawLog.log_id == log_id)))
        return rows[0] if rows else None

    def query_by_time(
        self, start: datetime, end: datetime, limit: int = DEFAULT_LIMIT, offset: int = 0
    ) -> list[StoredLog]:
        """Return the logs of a closed range of time; see ``Storage.query_logs_by_time``."""
        start, end = as_utc(start), as_utc(end)
        check_page(limit, offset)
        statement = (
            SELECT_LOGS.where(RawLog.timestamp.between(start, end))
            .order_by(RawLog.timestamp, RawLog.log_id)
            .limit(limit)
            .offset(offset)
        )
        with translate_errors():
            return to_logs(self._session.execute(statement))


def to_logs(rows: Iterable[sa.Row[UUID, datetime, str, str, datetime | None, int]]) -> list[StoredLog]:
    """Make records of the rows of ``SELECT_LOGS``; the database holds nothing that needs checking again."""
    logs = []
    for log_id, timestamp, source_id, raw_text, ingestion_time, config_version in rows:
        if ingestion_time is None:
            raise SerializationError(f"log {log_id} has no ingestion_time; another client stored it as NULL")
        logs.append(
            StoredLog.model_construct(
                log_id=log_id,
                timestamp=timestamp,
                source_id=source_id,
                raw_text=raw_text,
                ingestion_time=ingestion_time,
                config_version=config_version,
            )
        )
    return logs
