"""A storage of plain dicts, short enough to be seen right: what the others are compared with."""

import json
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from oracle_queries import MemoryFibers, MemoryLogs, MemoryMemberships, Tables

from fiberstore.errors import DuplicateError, NotFoundError
from fiberstore.exchange import Stamp, read_records
from fiberstore.exchange.schemas import Kind
from fiberstore.queries import QueryStorage
from fiberstore.records import (
    FiberMembership,
    FiberRecord,
    LogRecord,
    StoredLog,
    as_utc,
    check_id,
    check_page,
    check_text,
    dump_json,
    fiber_key,
    log_key,
)
from fiberstore.storage import DEFAULT_LIMIT

_T = TypeVar("_T")


class MemoryStorage(QueryStorage):
    """Keeps everything in three dicts, under one lock, and sorts whatever it is asked for."""

    def __init__(self, *, config_version: int = 0) -> None:
        self._config_version = config_version
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._logs: dict[UUID, StoredLog] = {}
        self._fibers: dict[UUID, FiberRecord] = {}  # their attributes are JSON text: nothing is shared
        self._memberships: dict[tuple[UUID, UUID], FiberMembership] = {}
        self._arrivals: dict[tuple[type, UUID], int] = {}  # the order in which rows were stored
        self._numbers = count(1)

    def init_schema(self) -> None:
        pass

    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        batch = _checked(logs, LogRecord)
        with self._lock:
            before = len(self._logs)
            for log in batch:
                if log.log_id not in self._logs:
                    self._logs[log.log_id] = self._stamped(log)
                    self._arrive(StoredLog, log.log_id)
            return len(self._logs) - before

    def get_log(self, log_id: UUID) -> StoredLog | None:
        check_id(log_id)
        with self._lock:
            return self._logs.get(log_id)

    def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        start, end = as_utc(start), as_utc(end)
        check_page(limit, offset)
        key = log_key(after)
        with self._lock:
            found = [log for log in self._logs.values() if start <= log.timestamp <= end]
        return _page(found, _log_order, limit, offset, key)

    def write_fiber(self, fiber: FiberRecord) -> None:
        (fiber,) = _checked([fiber], FiberRecord)
        row = _frozen(fiber)
        with self._lock:
            if fiber.fiber_id in self._fibers:
                raise DuplicateError(fiber.fiber_id)
            self._fibers[fiber.fiber_id] = row
            self._arrive(FiberRecord, fiber.fiber_id)

    def update_fiber(self, fiber: FiberRecord) -> None:
        (fiber,) = _checked([fiber], FiberRecord)
        row = _frozen(fiber)
        with self._lock:
            if fiber.fiber_id not in self._fibers:
                raise NotFoundError(fiber.fiber_id)
            self._fibers[fiber.fiber_id] = row
            self._arrive(FiberRecord, fiber.fiber_id)

    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        check_id(fiber_id)
        with self._lock:
            row = self._fibers.get(fiber_id)
        return None if row is None else _thawed(row)

    def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        check_text(fiber_type)
        check_page(limit, offset)
        key = fiber_key(after)
        with self._lock:
            found = [row for row in self._fibers.values() if row.fiber_type == fiber_type]
        return [_thawed(row) for row in _page(found, _fiber_order, limit, offset, key)]

    def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        batch = _checked(memberships, FiberMembership)
        with self._lock:
            before = len(self._memberships)
            for membership in batch:
                self._memberships.setdefault((membership.log_id, membership.fiber_id), membership)
            return len(self._memberships) - before

    def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        check_id(log_id)
        with self._lock:
            return sorted(fiber for log, fiber in self._memberships if log == log_id)

    def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        check_id(fiber_id)
        check_page(limit, offset)
        key = log_key(after)
        with self._lock:
            found = [
                self._logs[log] for log, fiber in self._memberships if fiber == fiber_id and log in self._logs
            ]
        return _page(found, _log_order, limit, offset, key)

    @property
    def logs(self) -> MemoryLogs:
        return MemoryLogs(self._tables)

    @property
    def fibers(self) -> MemoryFibers:
        return MemoryFibers(self._tables)

    @property
    def memberships(self) -> MemoryMemberships:
        return MemoryMemberships(self._tables)

    def import_logs(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self.write_logs([StoredLog(**row) for row in self._rows_of(path, StoredLog, on_rows)])

    def import_fibers(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        fibers = [FiberRecord(**row) for row in self._rows_of(path, FiberRecord, on_rows)]
        new = {fiber.fiber_id: fiber for fiber in reversed(fibers) if self.get_fiber(fiber.fiber_id) is None}
        for fiber in new.values():
            self.write_fiber(fiber)
        return len(new)

    def import_memberships(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        rows = self._rows_of(path, FiberMembership, on_rows)
        return self.write_memberships([FiberMembership(**row) for row in rows])

    def _rows_of(
        self, path: str | Path, kind: Kind, on_rows: Callable[[int], None] | None
    ) -> list[dict[str, Any]]:
        stamp = Stamp(datetime.now(UTC), self._config_version)
        rows = []
        for batch in read_records(path, kind, stamp, on_rows=on_rows):
            for row in batch.to_pylist():
                for name in row.keys() & {"timestamp", "ingestion_time", "first_activity", "last_activity"}:
                    row[name] = row[name].astimezone(UTC)
                if row.get("attributes") is not None:
                    row["attributes"] = json.loads(row["attributes"])
                rows.append(row)
        return rows

    def _tables(self) -> Tables:
        with self._lock:
            return Tables(
                dict(self._logs),
                {id_: _thawed(row) for id_, row in self._fibers.items()},
                dict(self._memberships),
                dict(self._arrivals),
                self._changed,
            )

    def _arrive(self, kind: type, id_: UUID) -> None:
        self._arrivals[kind, id_] = next(self._numbers)
        self._changed.notify_all()

    def _stamped(self, log: LogRecord) -> StoredLog:
        if isinstance(log, StoredLog):
            return log
        return StoredLog(
            log_id=log.log_id,
            timestamp=log.timestamp,
            source_id=log.source_id,
            raw_text=log.raw_text,
            ingestion_time=datetime.now(UTC),
            config_version=self._config_version,
        )


def _page(
    rows: list[_T],
    order: Callable[[_T], tuple[datetime, UUID]],
    limit: int,
    offset: int,
    after: tuple[datetime, UUID] | None,
) -> list[_T]:
    rest = [row for row in rows if after is None or order(row) > after]
    return sorted(rest, key=order)[offset : offset + limit]


def _log_order(log: StoredLog) -> tuple[datetime, UUID]:
    return log.timestamp, log.log_id


def _fiber_order(fiber: FiberRecord) -> tuple[datetime, UUID]:
    return fiber.first_activity, fiber.fiber_id


def _checked(items: Iterable[_T], kind: type[_T]) -> list[_T]:
    batch = list(items)
    for item in batch:
        if not isinstance(item, kind):
            raise TypeError(f"expected a {kind.__name__}, got {item!r}")
    return batch


def _frozen(fiber: FiberRecord) -> FiberRecord:
    return fiber.model_copy(update={"attributes": dump_json(fiber.attributes)})


def _thawed(row: FiberRecord) -> FiberRecord:
    text = row.attributes
    return row.model_copy(update={"attributes": json.loads(text) if isinstance(text, str) else None})
