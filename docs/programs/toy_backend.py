"""A backend of dictionaries: all that a storage has to do, in the fewest lines."""

import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from fiberstore import (
    DuplicateError,
    FiberMembership,
    FiberRecord,
    LogRecord,
    NotFoundError,
    Storage,
    StoredLog,
)
from fiberstore.checks import as_utc, check_id, check_page, check_text
from fiberstore.records import fiber_key, log_key

Place = tuple[datetime, UUID]
Record = TypeVar("Record")
Key = TypeVar("Key", UUID, tuple[UUID, UUID])


class ToyStorage(Storage):
    """Keeps everything in memory, under one lock.

    Args:
        config_version: What a ``LogRecord`` is stamped with.
    """

    def __init__(self, config_version: int = 0) -> None:
        self._config_version = config_version
        self._lock = threading.Lock()
        self._logs: dict[UUID, StoredLog] = {}
        self._fibers: dict[UUID, FiberRecord] = {}
        self._memberships: dict[tuple[UUID, UUID], FiberMembership] = {}

    def init_schema(self) -> None:
        """There is nothing to build."""

    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        batch = {log.log_id: self._stamped(log) for log in reversed(checked(logs, LogRecord))}
        with self._lock:
            return add_new(self._logs, batch)

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

    def get_log(self, log_id: UUID) -> StoredLog | None:
        check_id(log_id)
        return self._logs.get(log_id)

    def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = 1_000,
        offset: int = 0,
        *,
        after: LogRecord | Place | None = None,
    ) -> list[StoredLog]:
        first, last, place = as_utc(start), as_utc(end), log_key(after)
        with self._lock:
            logs = {
                (log.timestamp, log.log_id): log
                for log in self._logs.values()
                if first <= log.timestamp <= last
            }
        return page_of(logs, limit, offset, place)

    def write_fiber(self, fiber: FiberRecord) -> None:
        new = copy_of(fiber)
        with self._lock:
            if new.fiber_id in self._fibers:
                raise DuplicateError(new.fiber_id)
            self._fibers[new.fiber_id] = new

    def update_fiber(self, fiber: FiberRecord) -> None:
        new = copy_of(fiber)
        with self._lock:
            if new.fiber_id not in self._fibers:
                raise NotFoundError(new.fiber_id)
            self._fibers[new.fiber_id] = new

    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        check_id(fiber_id)
        fiber = self._fibers.get(fiber_id)
        return None if fiber is None else copy_of(fiber)

    def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = 1_000,
        offset: int = 0,
        *,
        after: FiberRecord | Place | None = None,
    ) -> list[FiberRecord]:
        wanted, place = check_text(fiber_type), fiber_key(after)
        with self._lock:
            fibers = {
                (fiber.first_activity, fiber.fiber_id): fiber
                for fiber in self._fibers.values()
                if fiber.fiber_type == wanted
            }
        return [copy_of(fiber) for fiber in page_of(fibers, limit, offset, place)]

    def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        batch = {
            (member.log_id, member.fiber_id): member
            for member in reversed(checked(memberships, FiberMembership))
        }
        with self._lock:
            return add_new(self._memberships, batch)

    def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        check_id(log_id)
        with self._lock:
            return sorted(fiber for log, fiber in self._memberships if log == log_id)

    def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = 1_000,
        offset: int = 0,
        *,
        after: LogRecord | Place | None = None,
    ) -> list[StoredLog]:
        check_id(fiber_id)
        place = log_key(after)
        with self._lock:
            stored = [
                self._logs[log] for log, fiber in self._memberships if fiber == fiber_id and log in self._logs
            ]
        return page_of({(log.timestamp, log.log_id): log for log in stored}, limit, offset, place)


def checked(records: Iterable[Record], kind: type[Record]) -> list[Record]:
    """Return the records in a list, before anything is stored.

    Raises:
        TypeError: One is of another kind.
    """
    batch = list(records)
    for record in batch:
        if not isinstance(record, kind):
            raise TypeError(f"expected a {kind.__name__}, got {record!r:.200}")
    return batch


def add_new(stored: dict[Key, Record], batch: dict[Key, Record]) -> int:
    """Add the records whose keys are not stored yet, and return their number."""
    new = batch.keys() - stored.keys()
    stored.update({key: batch[key] for key in new})
    return len(new)


def page_of(records: dict[Place, Record], limit: int, offset: int, after: Place | None) -> list[Record]:
    """Return a page of records in the order of their places."""
    check_page(limit, offset)
    places = sorted(place for place in records if after is None or place > after)
    return [records[place] for place in places[offset : offset + limit]]


def copy_of(fiber: FiberRecord) -> FiberRecord:
    """Return a copy, so that nobody else can change the attributes; they are checked once more.

    Raises:
        TypeError: It is no fiber.
        SerializationError: Its attributes were changed into something that is not JSON.
    """
    if not isinstance(fiber, FiberRecord):
        raise TypeError(f"expected a FiberRecord, got {fiber!r:.200}")
    return FiberRecord(**fiber.model_copy(deep=True).__dict__)
