"""An ``AsyncLifecycleStorage`` seen as a ``LifecycleStorage``, so that one contract suite tests both."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar
from uuid import UUID

import pyarrow as pa

from fiberstore.contract.conditions import Condition, Scalar
from fiberstore.contract.lifecycle import (
    DEFAULT_STEP_ROWS,
    AsyncCheckpoints,
    AsyncLifecycleStorage,
    AsyncVersions,
    BatchCounts,
    Checkpoint,
    CheckpointMove,
    Checkpoints,
    Compacted,
    ConfigVersion,
    GenerationDiff,
    LifecycleStorage,
    Merged,
    Pruned,
    Upserted,
    Versions,
)
from fiberstore.contract.queries import (
    ARROW_BATCH_ROWS,
    AsyncFibers,
    AsyncLogs,
    AsyncLogTail,
    AsyncMemberships,
    AsyncQuery,
    Bucket,
    Deleted,
    FiberOrder,
    Fibers,
    FiberSummary,
    Found,
    LogContext,
    LogOrder,
    Logs,
    LogTail,
    Memberships,
    Page,
    Partition,
    Query,
    R,
    Timeline,
    ValueCount,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_T = TypeVar("_T")


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give an event loop that runs on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class SyncFace(LifecycleStorage):
    """Runs each call as a task on the loop, from any number of threads."""

    def __init__(self, store: AsyncLifecycleStorage, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self._loop = loop

    def run(self, call: Coroutine[object, object, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def read(self, stream: "AsyncGenerator[_T, None]") -> Iterator[_T]:
        try:
            while (item := self.run(_next(stream))) is not None:
                yield item
        finally:
            self.run(stream.aclose())

    @property
    def logs(self) -> "SyncLogs":
        return SyncLogs(self, self.store.logs)

    @property
    def fibers(self) -> "SyncFibers":
        return SyncFibers(self, self.store.fibers)

    @property
    def memberships(self) -> "SyncMemberships":
        return SyncMemberships(self, self.store.memberships)

    @property
    def checkpoints(self) -> "SyncCheckpoints":
        return SyncCheckpoints(self, self.store.checkpoints)

    @property
    def versions(self) -> "SyncVersions":
        return SyncVersions(self, self.store.versions)

    def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        return self.run(
            self.store.write_batch(logs=logs, fibers=fibers, memberships=memberships, checkpoint=checkpoint)
        )

    def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        return self.run(self.store.write_fibers(fibers))

    def upsert_fibers(self, fibers: Iterable[FiberRecord]) -> Upserted:
        return self.run(self.store.upsert_fibers(fibers))

    def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        return self.run(self.store.merge_fibers(survivors))

    def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        return self.run(self.store.resolve_fibers(fiber_ids))

    def prune(
        self,
        *,
        fibers: Condition[FiberRecord] | None = None,
        logs: Condition[StoredLog] | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
        step_rows: int = DEFAULT_STEP_ROWS,
        max_steps: int | None = None,
        on_step: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        return self.run(
            self.store.prune(
                fibers=fibers,
                logs=logs,
                max_bytes=max_bytes,
                dry_run=dry_run,
                step_rows=step_rows,
                max_steps=max_steps,
                on_step=on_step,
            )
        )

    def compact(self) -> Compacted:
        return self.run(self.store.compact())

    def import_logs(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self.run(self.store.import_logs(path, on_rows=on_rows))

    def import_fibers(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self.run(self.store.import_fibers(path, on_rows=on_rows))

    def import_memberships(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self.run(self.store.import_memberships(path, on_rows=on_rows))

    def init_schema(self) -> None:
        self.run(self.store.init_schema())

    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        return self.run(self.store.write_logs(logs))

    def get_log(self, log_id: UUID) -> StoredLog | None:
        return self.run(self.store.get_log(log_id))

    def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        return self.run(self.store.query_logs_by_time(start, end, limit, offset, after=after))

    def write_fiber(self, fiber: FiberRecord) -> None:
        self.run(self.store.write_fiber(fiber))

    def update_fiber(self, fiber: FiberRecord) -> None:
        self.run(self.store.update_fiber(fiber))

    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        return self.run(self.store.get_fiber(fiber_id))

    def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        return self.run(self.store.query_fibers_by_type(fiber_type, limit, offset, after=after))

    def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        return self.run(self.store.write_memberships(memberships))

    def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        return self.run(self.store.get_log_fibers(log_id))

    def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        return self.run(self.store.get_fiber_logs(fiber_id, limit, offset, after=after))


async def _next(items: AsyncIterator[_T]) -> _T | None:
    return await anext(items, None)


class SyncQuery(Query[R], Generic[R]):
    """Asks an asynchronous query by the face."""

    query: AsyncQuery[R]

    def __init__(self, face: SyncFace, query: AsyncQuery[R]) -> None:
        self._face = face
        self.query = query
        self._run = face.run

    def where(self, *conditions: Condition[R]) -> Self:
        return self._on(self.query.where(*conditions))

    def count(self, at_most: int | None = None) -> int:
        return self._run(self.query.count(at_most))

    def iter_records(self) -> Iterator[R]:
        return self._face.read(self.query.iter_records())

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> pa.RecordBatchReader:
        batches = self._face.read(self.query.to_arrow(batch_rows))
        first = next(batches)

        def all_of_them() -> Iterator[pa.RecordBatch]:
            yield first
            yield from batches

        return pa.RecordBatchReader.from_batches(first.schema, all_of_them())

    def export(
        self,
        path: str | Path,
        *,
        partition_by: Partition | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> int:
        return self._run(self.query.export(path, partition_by=partition_by, on_rows=on_rows))

    def delete(self) -> Deleted:
        return self._run(self.query.delete())

    def _on(self, query: AsyncQuery[R]) -> Self:
        other = copy(self)
        other.query = query
        return other


class SyncLogs(SyncQuery[StoredLog], Logs):
    query: AsyncLogs

    def order_by(self, order: LogOrder) -> Self:
        return self._on(self.query.order_by(order))

    def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[StoredLog]:
        return self._run(self.query.page(limit, cursor))

    def get_many(self, log_ids: Iterable[UUID]) -> Found[StoredLog]:
        return self._run(self.query.get_many(log_ids))

    def by_fiber(
        self, fiber_ids: Iterable[UUID], limit_per_fiber: int = DEFAULT_LIMIT
    ) -> dict[UUID, list[StoredLog]]:
        return self._run(self.query.by_fiber(fiber_ids, limit_per_fiber))

    def sources(self) -> list[ValueCount[str]]:
        return self._run(self.query.sources())

    def histogram(
        self,
        width: timedelta,
        *,
        by: Literal["source_id"] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Bucket]:
        return self._run(self.query.histogram(width, by=by, start=start, end=end))

    def context(
        self,
        log_id: UUID,
        before: int = 10,
        after: int = 10,
        *,
        within: Literal["source", "fibers"] | None = None,
    ) -> LogContext | None:
        return self._run(self.query.context(log_id, before, after, within=within))

    def tail(self, position: str | None = None, *, timeout_s: float | None = None) -> LogTail:
        return SyncLogTail(self._face, self._run(self.query.tail(position, timeout_s=timeout_s)))

    def redact(self, pattern: str, replacement: str = "[redacted]") -> int:
        return self._run(self.query.redact(pattern, replacement))

    def pin(self) -> int:
        return self._run(self.query.pin())

    def unpin(self) -> int:
        return self._run(self.query.unpin())


class SyncLogTail(LogTail):
    def __init__(self, face: SyncFace, tail: AsyncLogTail) -> None:
        self._face = face
        self._tail = tail

    @property
    def position(self) -> str:
        return self._tail.position

    def __next__(self) -> StoredLog:
        log = self._face.run(_next(self._tail))
        if log is None:
            raise StopIteration
        return log


class SyncFibers(SyncQuery[FiberRecord], Fibers):
    query: AsyncFibers

    def order_by(self, order: FiberOrder) -> Self:
        return self._on(self.query.order_by(order))

    def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberRecord]:
        return self._run(self.query.page(limit, cursor))

    def summaries(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[FiberSummary]:
        return self._run(self.query.summaries(limit, cursor))

    def get_many(self, fiber_ids: Iterable[UUID]) -> Found[FiberRecord]:
        return self._run(self.query.get_many(fiber_ids))

    def by_log(self, log_ids: Iterable[UUID]) -> dict[UUID, list[FiberRecord]]:
        return self._run(self.query.by_log(log_ids))

    def types(self) -> list[ValueCount[str]]:
        return self._run(self.query.types())

    def attribute_keys(self, pointer: str = "") -> list[ValueCount[str]]:
        return self._run(self.query.attribute_keys(pointer))

    def attribute_values(self, pointer: str, limit: int = 20) -> list[ValueCount[Scalar]]:
        return self._run(self.query.attribute_values(pointer, limit))

    def histogram(
        self,
        width: timedelta,
        *,
        by: Literal["fiber_type"] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Bucket]:
        return self._run(self.query.histogram(width, by=by, start=start, end=end))

    def timeline(self, fibers: int = 50, points: int = 10_000) -> Timeline:
        return self._run(self.query.timeline(fibers, points))

    def close(self) -> int:
        return self._run(self.query.close())

    def reopen(self) -> int:
        return self._run(self.query.reopen())

    def pin(self) -> int:
        return self._run(self.query.pin())

    def unpin(self) -> int:
        return self._run(self.query.unpin())


class SyncMemberships(SyncQuery[FiberMembership], Memberships):
    query: AsyncMemberships


class SyncCheckpoints(Checkpoints):
    def __init__(self, face: SyncFace, checkpoints: AsyncCheckpoints) -> None:
        self._checkpoints = checkpoints
        self._run = face.run

    def get(self, name: str) -> Checkpoint | None:
        return self._run(self._checkpoints.get(name))

    def all(self) -> list[Checkpoint]:
        return self._run(self._checkpoints.all())

    def set(self, name: str, value: str) -> None:
        self._run(self._checkpoints.set(name, value))

    def compare_and_set(self, name: str, expected: str | None, value: str) -> None:
        self._run(self._checkpoints.compare_and_set(name, expected, value))

    def delete(self, name: str) -> bool:
        return self._run(self._checkpoints.delete(name))


class SyncVersions(Versions):
    def __init__(self, face: SyncFace, versions: AsyncVersions) -> None:
        self._versions = versions
        self._run = face.run

    def register(self, content: bytes | str | Path, *, parent: int | None = None) -> ConfigVersion:
        return self._run(self._versions.register(content, parent=parent))

    def get(self, config_version: int) -> ConfigVersion | None:
        return self._run(self._versions.get(config_version))

    def all(self) -> list[ConfigVersion]:
        return self._run(self._versions.all())

    def active(self) -> ConfigVersion | None:
        return self._run(self._versions.active())

    def activate(self, config_version: int | None) -> ConfigVersion | None:
        return self._run(self._versions.activate(config_version))

    def diff(self, old: int, new: int, limit: int = 1_000) -> GenerationDiff:
        return self._run(self._versions.diff(old, new, limit))

    def drop(self, config_version: int) -> Deleted:
        return self._run(self._versions.drop(config_version))
