"""A storage of plain dicts, short enough to be seen right: what the others are compared with."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from fiberstore.checks import MAX_ROWS, as_utc, check_id, check_number, check_page, check_text
from fiberstore.contract.conditions import Condition, Or, checked_condition
from fiberstore.contract.lifecycle import CheckpointMove, LifecycleStorage
from fiberstore.contract.results import BatchCounts, Compacted, Merged, Pruned, Upserted
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import DatabaseError, DuplicateError, NotFoundError
from fiberstore.exchange import Stamp, read_records
from fiberstore.exchange.schemas import Kind
from fiberstore.json_text import dump_json
from fiberstore.records import (
    FiberKey,
    FiberMembership,
    FiberRecord,
    LogRecord,
    StoredLog,
    fiber_key,
    log_key,
)
from tests.support.oracle_lifecycle import (
    MemoryCheckpoints,
    MemoryVersions,
    merge,
    next_step,
    pruned,
    still_to_prune,
    to_prune,
)
from tests.support.oracle_queries import MemoryFibers, MemoryLogs, MemoryMemberships
from tests.support.oracle_tables import Tables

if TYPE_CHECKING:
    from fiberstore.contract.results import Deleted

_T = TypeVar("_T")


_TIMES = {"timestamp", "ingestion_time", "first_activity", "last_activity", "first_timestamp"}


class MemoryStorage(LifecycleStorage):
    """Keeps everything in plain dicts, under one lock, and sorts whatever it is asked for."""

    def __init__(self, *, config_version: int = 0) -> None:
        self._config_version = config_version
        self._stored = Tables()
        self._numbers = count(1)

    def init_schema(self) -> None:
        pass

    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        batch = _checked(logs, LogRecord)
        with self._stored.changed:
            before = len(self._stored.logs)
            for log in batch:
                if log.log_id not in self._stored.logs:
                    self._stored.logs[log.log_id] = self._stamped(log)
                    self._arrive(StoredLog, log.log_id)
            return len(self._stored.logs) - before

    def get_log(self, log_id: UUID) -> StoredLog | None:
        check_id(log_id)
        with self._stored.changed:
            return self._stored.logs.get(log_id)

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
        with self._stored.changed:
            found = [log for log in self._stored.logs.values() if start <= log.timestamp <= end]
        return _page(found, _log_order, limit, offset, key)

    def write_fiber(self, fiber: FiberRecord) -> None:
        (row,) = _frozen([fiber])
        with self._stored.changed:
            if row.fiber_id in self._stored.fibers:
                raise DuplicateError(row.fiber_id)
            self._put(row)

    def update_fiber(self, fiber: FiberRecord) -> None:
        (row,) = _frozen([fiber])
        with self._stored.changed:
            if row.fiber_id not in self._stored.fibers:
                raise NotFoundError(row.fiber_id)
            self._put(row)

    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        check_id(fiber_id)
        with self._stored.changed:
            row = self._stored.fibers.get(fiber_id)
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
        with self._stored.changed:
            found = [row for row in self._stored.fibers.values() if row.fiber_type == fiber_type]
        return [_thawed(row) for row in _page(found, _fiber_order, limit, offset, key)]

    def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        batch = _checked(memberships, FiberMembership)
        with self._stored.changed:
            before = len(self._stored.memberships)
            for membership in batch:
                self._stored.memberships.setdefault((membership.log_id, membership.fiber_id), membership)
            return len(self._stored.memberships) - before

    def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        check_id(log_id)
        with self._stored.changed:
            return sorted(fiber for log, fiber in self._stored.memberships if log == log_id)

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
        with self._stored.changed:
            found = [
                self._stored.logs[log]
                for log, fiber in self._stored.memberships
                if fiber == fiber_id and log in self._stored.logs
            ]
        return _page(found, _log_order, limit, offset, key)

    @property
    def logs(self) -> MemoryLogs:
        return MemoryLogs(self._tables, self._stored)

    @property
    def fibers(self) -> MemoryFibers:
        return MemoryFibers(self._tables, self._stored)

    @property
    def memberships(self) -> MemoryMemberships:
        return MemoryMemberships(self._tables, self._stored)

    @property
    def checkpoints(self) -> MemoryCheckpoints:
        return MemoryCheckpoints(self._stored)

    @property
    def versions(self) -> MemoryVersions:
        return MemoryVersions(self._stored)

    def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        keys: Iterable[FiberKey] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        log_rows, fiber_rows = _checked(logs, LogRecord), _frozen(fibers)
        membership_rows, key_rows = _checked(memberships, FiberMembership), _checked(keys, FiberKey)
        if checkpoint is not None:
            _checked([checkpoint], CheckpointMove)
        with self._stored.changed:
            self._check_fibers(key_rows, {row.fiber_id for row in fiber_rows})
            if checkpoint is not None:  # the only thing that may still be refused
                self.checkpoints.compare_and_set(checkpoint.name, checkpoint.expected, checkpoint.value)
            return BatchCounts(
                self.write_logs(log_rows),
                self._upsert(fiber_rows),
                self.write_memberships(membership_rows),
                self.write_keys(key_rows),
            )

    def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        rows = _frozen(fibers)
        with self._stored.changed:
            new = [row for row in rows if row.fiber_id not in self._stored.fibers]
            return self._upsert(new).new

    def upsert_fibers(self, fibers: Iterable[FiberRecord], *, widen: bool = False) -> Upserted:
        rows = _frozen(fibers)
        with self._stored.changed:
            return self._upsert([self._widened(row) for row in rows] if widen else rows)

    def _widened(self, row: FiberRecord) -> FiberRecord:
        known = self._stored.fibers.get(row.fiber_id, row)
        first = min(row.first_activity, known.first_activity)
        last = max(row.last_activity, known.last_activity)
        return row.model_copy(update={"first_activity": first, "last_activity": last})

    def _upsert(self, rows: list[FiberRecord]) -> Upserted:
        with self._stored.changed:
            new = sum(row.fiber_id not in self._stored.fibers for row in rows)
            for row in rows:
                self._put(row)
            return Upserted(new, len(rows) - new)

    def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        with self._stored.changed:
            return merge(self._stored, survivors)

    def write_keys(self, keys: Iterable[FiberKey]) -> int:
        rows = _checked(keys, FiberKey)
        with self._stored.changed:
            self._check_fibers(rows, set())
            before = len(self._stored.keys)
            for row in rows:
                self._stored.put_key(row)
            return len(self._stored.keys) - before

    def _check_fibers(self, keys: list[FiberKey], others: set[UUID]) -> None:
        for key in keys:
            if key.fiber_id not in self._stored.fibers and key.fiber_id not in others:
                raise NotFoundError(key.fiber_id)

    def get_keys(self, fiber_ids: Iterable[UUID]) -> dict[UUID, list[FiberKey]]:
        asked = list(fiber_ids)
        for id_ in asked:
            check_id(id_)
        with self._stored.changed:
            return {id_: self._stored.keys_of(id_) for id_ in asked}

    def query_fibers_by_key(
        self, name: str, value: str, limit: int = DEFAULT_LIMIT, offset: int = 0
    ) -> list[FiberRecord]:
        check_text(name)
        check_text(value)
        check_page(limit, offset)
        with self._stored.changed:
            ids = {
                key.fiber_id for key in self._stored.keys.values() if (key.name, key.value) == (name, value)
            }
            found = sorted((_thawed(self._stored.fibers[id_]) for id_ in ids), key=_fiber_order)
            return found[offset : offset + limit]

    def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        asked = list(fiber_ids)
        for id_ in asked:
            check_id(id_)
        with self._stored.changed:
            stored = self._stored.fibers
            now = {id_: id_ if id_ in stored else self._stored.survivors.get(id_) for id_ in asked}
            return {id_: found for id_, found in now.items() if found in stored}

    def prune(
        self,
        *,
        fibers: Condition[FiberRecord] | None = None,
        logs: Condition[StoredLog] | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
        step_rows: int | None = None,
        max_steps: int | None = None,
        on_step: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        if fibers is None and logs is None and max_bytes is None:
            raise ValueError("nothing to prune: give fibers, logs or max_bytes")
        if step_rows is None:
            step_rows = MAX_ROWS
        check_number("step_rows", step_rows, least=1)
        if max_steps is not None:
            check_number("max_steps", max_steps, least=1)
        if max_bytes is not None:
            check_number("max_bytes", max_bytes, least=1)
            raise DatabaseError("a storage in memory has no file whose size max_bytes could bound")
        of_fibers = Or(FiberRecord, ()) if fibers is None else checked_condition(fibers, FiberRecord)
        of_logs = Or(StoredLog, ()) if logs is None else checked_condition(logs, StoredLog)
        with self._stored.changed:
            units = to_prune(self._tables(), of_fibers, of_logs)
        if dry_run:
            step_rows, max_steps = MAX_ROWS, 1
        steps: list[tuple[Deleted, int]] = []
        while units and (max_steps is None or len(steps) < max_steps):
            with self._stored.changed:
                now = self._tables()
                doomed, texts = still_to_prune(next_step(units, step_rows), now)
                deleted = (now if dry_run else self._stored).remove(
                    [log.log_id for log in texts], [fiber.fiber_id for fiber in doomed]
                )
            steps.append((deleted, sum(len(log.raw_text.encode()) for log in texts)))
            if on_step is not None and not dry_run and (doomed or texts):
                on_step(pruned(steps, is_complete=False))
        return pruned(steps, is_complete=not units)

    def compact(self) -> Compacted:
        return Compacted(0, 0)

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

    def import_keys(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self.write_keys([FiberKey(**row) for row in self._rows_of(path, FiberKey, on_rows)])

    def _rows_of(
        self, path: str | Path, kind: Kind, on_rows: Callable[[int], None] | None
    ) -> list[dict[str, Any]]:
        stamp = Stamp(datetime.now(UTC), self._config_version)
        rows = []
        for batch in read_records(path, kind, stamp, on_rows=on_rows):
            for row in batch.to_pylist():
                for name in row.keys() & _TIMES:
                    row[name] = row[name].astimezone(UTC)
                if row.get("attributes") is not None:
                    row["attributes"] = json.loads(row["attributes"])
                rows.append(row)
        return rows

    def _tables(self) -> Tables:
        with self._stored.changed:
            return replace(
                self._stored,
                logs=dict(self._stored.logs),
                fibers={id_: _thawed(row) for id_, row in self._stored.fibers.items()},
                memberships=dict(self._stored.memberships),
                keys=dict(self._stored.keys),
                arrivals=dict(self._stored.arrivals),
                pins=set(self._stored.pins),
                survivors=dict(self._stored.survivors),
            )

    def _put(self, row: FiberRecord) -> None:
        before = self._stored.fibers.get(row.fiber_id)
        self._stored.fibers[row.fiber_id] = row
        if before is None or before.fiber_type != row.fiber_type:
            self._arrive(FiberRecord, row.fiber_id)

    def _arrive(self, kind: type, id_: UUID) -> None:
        self._stored.arrivals[kind, id_] = next(self._numbers)
        self._stored.changed.notify_all()

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


def _frozen(fibers: Iterable[FiberRecord]) -> list[FiberRecord]:
    rows = [
        fiber.model_copy(update={"attributes": dump_json(fiber.attributes)})
        for fiber in _checked(fibers, FiberRecord)
    ]
    if len({row.fiber_id for row in rows}) < len(rows):
        raise ValueError("a fiber is given twice")
    return rows


def _thawed(row: FiberRecord) -> FiberRecord:
    text = row.attributes
    return row.model_copy(update={"attributes": json.loads(text) if isinstance(text, str) else None})
