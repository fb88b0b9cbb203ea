"""``AsyncSqlStorage``: the contract in coroutines, on threads: DuckDB has no asynchronous driver."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from copy import copy
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.aio.lifecycle import ThreadedCheckpoints, ThreadedVersions
from fiberstore.aio.queries import ThreadedFibers, ThreadedLogs, ThreadedMemberships
from fiberstore.aio.workers import OneWorker, Threads, Worker, Workers
from fiberstore.contract.conditions import Condition
from fiberstore.contract.lifecycle import (
    DEFAULT_STEP_ROWS,
    AsyncLifecycleStorage,
    BatchCounts,
    CheckpointMove,
    Compacted,
    Merged,
    Pruned,
    Upserted,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import DatabaseError
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.repositories import FiberRepository, LogRepository, MembershipRepository
from fiberstore.repositories.storage import SqlStorage, Transaction
from fiberstore.telemetry import Call, StorageStats


class AsyncLogRepository(ThreadedLogs):
    """``LogRepository`` in coroutines."""

    def __init__(self, threads: Threads, logs: LogRepository) -> None:
        super().__init__(logs, threads)
        self._logs = logs

    async def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """See ``Storage.write_logs``."""
        return await self._threads.run(self._logs.write_logs, list(logs))

    async def get_log(self, log_id: UUID) -> StoredLog | None:
        """See ``Storage.get_log``."""
        return await self._threads.run(self._logs.get_log, log_id)

    async def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """See ``Storage.query_logs_by_time``."""
        return await self._threads.run(self._logs.query_logs_by_time, start, end, limit, offset, after=after)


class AsyncFiberRepository(ThreadedFibers):
    """``FiberRepository`` in coroutines."""

    def __init__(self, threads: Threads, fibers: FiberRepository) -> None:
        super().__init__(fibers, threads)
        self._fibers = fibers

    async def write_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.write_fiber``."""
        await self._threads.run(self._fibers.write_fiber, fiber)

    async def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """See ``FiberRepository.write_fibers``."""
        return await self._threads.run(self._fibers.write_fibers, list(fibers))

    async def update_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.update_fiber``."""
        await self._threads.run(self._fibers.update_fiber, fiber)

    async def update_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """See ``FiberRepository.update_fibers``."""
        return await self._threads.run(self._fibers.update_fibers, list(fibers))

    async def upsert_fibers(self, fibers: Iterable[FiberRecord]) -> Upserted:
        """See ``FiberRepository.upsert_fibers``."""
        return await self._threads.run(self._fibers.upsert_fibers, list(fibers))

    async def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        """See ``FiberRepository.merge_fibers``."""
        return await self._threads.run(self._fibers.merge_fibers, copy(survivors))

    async def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """See ``FiberRepository.resolve_fibers``."""
        return await self._threads.run(self._fibers.resolve_fibers, list(fiber_ids))

    async def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """See ``Storage.get_fiber``."""
        return await self._threads.run(self._fibers.get_fiber, fiber_id)

    async def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """See ``Storage.query_fibers_by_type``."""
        return await self._threads.run(
            self._fibers.query_fibers_by_type, fiber_type, limit, offset, after=after
        )


class AsyncMembershipRepository(ThreadedMemberships):
    """``MembershipRepository`` in coroutines."""

    def __init__(self, threads: Threads, memberships: MembershipRepository) -> None:
        super().__init__(memberships, threads)
        self._memberships = memberships

    async def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """See ``Storage.write_memberships``."""
        return await self._threads.run(self._memberships.write_memberships, list(memberships))

    async def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """See ``Storage.get_log_fibers``."""
        return await self._threads.run(self._memberships.get_log_fibers, log_id)

    async def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """See ``Storage.get_fiber_logs``."""
        return await self._threads.run(self._memberships.get_fiber_logs, fiber_id, limit, offset, after=after)


class AsyncTransaction:
    """``Transaction`` in coroutines; use it from one task at a time.

    Attributes:
        logs: The logs.
        fibers: The fibers.
        memberships: Which log belongs to which fiber.
        checkpoints: The checkpoints.
        versions: The config versions.
    """

    def __init__(self, threads: Threads, transaction: Transaction) -> None:
        self.logs = AsyncLogRepository(threads, transaction.logs)
        self.fibers = AsyncFiberRepository(threads, transaction.fibers)
        self.memberships = AsyncMembershipRepository(threads, transaction.memberships)
        self.checkpoints = ThreadedCheckpoints(transaction.checkpoints, threads)
        self.versions = ThreadedVersions(transaction.versions, threads)


class AsyncSqlStorage(AsyncLifecycleStorage):
    """A ``SqlStorage`` in coroutines: same contract, for use in one event loop.

    Calls run on threads of its own, one for each connection of the pool. A call that is cancelled while it
    waits for a thread has not happened; one that is cancelled later goes on in its thread and happens wholly
    or not at all. A cancelled ``transaction()`` is rolled back, unless it was committing already.

    Args:
        storage: The storage, which is closed with this.
        threads: How many calls run side by side, >= 1.
    """

    def __init__(self, storage: SqlStorage, threads: int) -> None:
        self._storage = storage
        self._workers = Workers(threads)

    @property
    def engine(self) -> sa.Engine:
        """The SQLAlchemy engine; it blocks, so use it in a thread."""
        return self._storage.engine

    @property
    def config_version(self) -> int:
        """What a ``LogRecord`` is stamped with."""
        return self._storage.config_version

    async def close(self) -> None:
        """Wait for the calls that run, end half-read streams, and close every connection, for good.

        If this is cancelled, call it again.
        """
        await self._workers.close()
        self._storage.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __getstate__(self) -> NoReturn:
        self._storage.__getstate__()

    def stats(self) -> StorageStats:
        """See ``SqlStorage.stats``."""
        return self._storage.stats()

    def on_call(self, hook: Callable[[Call], None]) -> None:
        """See ``SqlStorage.on_call``; the thread is a worker, and has the task's context variables."""
        self._storage.on_call(hook)

    def session(self) -> Session:
        """Return a new ORM session on the engine; it blocks, so use it in a thread."""
        return self._storage.session()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """Begin a unit of work; see ``DuckDBStorage.transaction``.

        Raises:
            ConflictError: Another transaction kept the store for too long, or wrote the same new key first;
                run the block again.
        """
        worker = await self._workers.next()
        stack = ExitStack()
        try:
            transaction = await worker.run(stack.enter_context, self._storage.transaction())
        except BaseException as error:
            # If it begins after all, the worker ends it again; nobody waits for that.
            self._workers.give_back_after(worker.submit(stack.__exit__, type(error), error, None), worker)
            raise
        threads = OneWorker(worker)
        try:
            yield AsyncTransaction(threads, transaction)
        except BaseException as error:
            threads.end_streams()
            await self._end(worker, stack, error)  # after what the worker still does
            raise
        else:
            threads.end_streams()
            await self._end(worker, stack, None)

    async def init_schema(self) -> None:
        """See ``Storage.init_schema``."""
        await self._workers.run(self._storage.init_schema)

    @property
    def logs(self) -> ThreadedLogs:
        """See ``QueryStorage.logs``."""
        return ThreadedLogs(self._storage.logs, self._workers)

    @property
    def fibers(self) -> ThreadedFibers:
        """See ``QueryStorage.fibers``."""
        return ThreadedFibers(self._storage.fibers, self._workers)

    @property
    def memberships(self) -> ThreadedMemberships:
        """See ``QueryStorage.memberships``."""
        return ThreadedMemberships(self._storage.memberships, self._workers)

    @property
    def checkpoints(self) -> ThreadedCheckpoints:
        """See ``LifecycleStorage.checkpoints``."""
        return ThreadedCheckpoints(self._storage.checkpoints, self._workers)

    @property
    def versions(self) -> ThreadedVersions:
        """See ``LifecycleStorage.versions``."""
        return ThreadedVersions(self._storage.versions, self._workers)

    async def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        """See ``LifecycleStorage.write_batch``."""
        return await self._workers.run(
            self._storage.write_batch,
            logs=list(logs),
            fibers=list(fibers),
            memberships=list(memberships),
            checkpoint=checkpoint,
        )

    async def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """See ``LifecycleStorage.write_fibers``."""
        return await self._workers.run(self._storage.write_fibers, list(fibers))

    async def upsert_fibers(self, fibers: Iterable[FiberRecord]) -> Upserted:
        """See ``LifecycleStorage.upsert_fibers``."""
        return await self._workers.run(self._storage.upsert_fibers, list(fibers))

    async def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        """See ``LifecycleStorage.merge_fibers``."""
        return await self._workers.run(self._storage.merge_fibers, copy(survivors))

    async def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """See ``LifecycleStorage.resolve_fibers``."""
        return await self._workers.run(self._storage.resolve_fibers, list(fiber_ids))

    async def prune(
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
        """See ``LifecycleStorage.prune``."""
        cancelled = threading.Event()

        def after_step(so_far: Pruned) -> None:
            if on_step is not None:
                on_step(so_far)
            if cancelled.is_set():
                raise DatabaseError("prune() was cancelled; the steps before that stay")

        try:
            return await self._workers.run(
                self._storage.prune,
                fibers=fibers,
                logs=logs,
                max_bytes=max_bytes,
                dry_run=dry_run,
                step_rows=step_rows,
                max_steps=max_steps,
                on_step=after_step,
            )
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def compact(self) -> Compacted:
        """See ``LifecycleStorage.compact``."""
        return await self._workers.run(self._storage.compact)

    async def import_logs(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """See ``QueryStorage.import_logs``."""
        return await self._workers.run(self._storage.import_logs, path, on_rows=on_rows)

    async def import_fibers(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """See ``QueryStorage.import_fibers``."""
        return await self._workers.run(self._storage.import_fibers, path, on_rows=on_rows)

    async def import_memberships(
        self, path: str | Path, *, on_rows: Callable[[int], None] | None = None
    ) -> int:
        """See ``QueryStorage.import_memberships``."""
        return await self._workers.run(self._storage.import_memberships, path, on_rows=on_rows)

    async def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """See ``Storage.write_logs``."""
        return await self._workers.run(self._storage.write_logs, list(logs))

    async def get_log(self, log_id: UUID) -> StoredLog | None:
        """See ``Storage.get_log``."""
        return await self._workers.run(self._storage.get_log, log_id)

    async def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """See ``Storage.query_logs_by_time``."""
        return await self._workers.run(
            self._storage.query_logs_by_time, start, end, limit, offset, after=after
        )

    async def write_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.write_fiber``."""
        await self._workers.run(self._storage.write_fiber, fiber)

    async def update_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.update_fiber``."""
        await self._workers.run(self._storage.update_fiber, fiber)

    async def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """See ``Storage.get_fiber``."""
        return await self._workers.run(self._storage.get_fiber, fiber_id)

    async def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """See ``Storage.query_fibers_by_type``."""
        return await self._workers.run(
            self._storage.query_fibers_by_type, fiber_type, limit, offset, after=after
        )

    async def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """See ``Storage.write_memberships``."""
        return await self._workers.run(self._storage.write_memberships, list(memberships))

    async def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """See ``Storage.get_log_fibers``."""
        return await self._workers.run(self._storage.get_log_fibers, log_id)

    async def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """See ``Storage.get_fiber_logs``."""
        return await self._workers.run(self._storage.get_fiber_logs, fiber_id, limit, offset, after=after)

    async def _end(self, worker: Worker, stack: ExitStack, error: BaseException | None) -> None:
        end = worker.submit(stack.__exit__, type(error) if error else None, error, None)
        self._workers.give_back_after(end, worker)
        await asyncio.shield(asyncio.wrap_future(end))
