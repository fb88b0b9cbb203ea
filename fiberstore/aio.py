"""``AsyncDuckDBStorage``: the storage trait in coroutines, on threads: DuckDB has no asynchronous driver."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from contextvars import copy_context
from datetime import datetime
from types import TracebackType
from typing import NoReturn, ParamSpec, Self, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.dbapi import FORKED
from fiberstore.duckdb import DuckDBStorage, Transaction
from fiberstore.engine import DEFAULT_POOL_SIZE, POOL_TIMEOUT_S
from fiberstore.errors import DatabaseError
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.repositories import FiberRepository, LogRepository, MembershipRepository
from fiberstore.storage import DEFAULT_LIMIT, AsyncStorage
from fiberstore.telemetry import DEFAULT_SLOW_CALL_S, Call, StorageStats

P = ParamSpec("P")
T = TypeVar("T")


class _Worker:
    """A thread that does one thing after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fiberstore")

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        context = copy_context()
        return self._executor.submit(lambda: context.run(work, *args, **kwargs))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self.submit(work, *args, **kwargs))

    def stop(self) -> None:
        self._executor.shutdown()


class AsyncLogRepository:
    """``LogRepository`` in coroutines."""

    def __init__(self, worker: _Worker, logs: LogRepository) -> None:
        self._worker = worker
        self._logs = logs

    async def write(self, logs: Iterable[LogRecord]) -> int:
        """See ``Storage.write_logs``."""
        return await self._worker.run(self._logs.write, list(logs))

    async def get(self, log_id: UUID) -> StoredLog | None:
        """See ``Storage.get_log``."""
        return await self._worker.run(self._logs.get, log_id)

    async def query_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """See ``Storage.query_logs_by_time``."""
        return await self._worker.run(self._logs.query_by_time, start, end, limit, offset, after=after)


class AsyncFiberRepository:
    """``FiberRepository`` in coroutines."""

    def __init__(self, worker: _Worker, fibers: FiberRepository) -> None:
        self._worker = worker
        self._fibers = fibers

    async def write(self, fiber: FiberRecord) -> None:
        """See ``Storage.write_fiber``."""
        await self._worker.run(self._fibers.write, fiber)

    async def write_many(self, fibers: Iterable[FiberRecord]) -> int:
        """See ``FiberRepository.write_many``."""
        return await self._worker.run(self._fibers.write_many, list(fibers))

    async def update(self, fiber: FiberRecord) -> None:
        """See ``Storage.update_fiber``."""
        await self._worker.run(self._fibers.update, fiber)

    async def update_many(self, fibers: Iterable[FiberRecord]) -> int:
        """See ``FiberRepository.update_many``."""
        return await self._worker.run(self._fibers.update_many, list(fibers))

    async def merge(self, survivors: Mapping[UUID, UUID]) -> None:
        """See ``FiberRepository.merge``."""
        await self._worker.run(self._fibers.merge, dict(survivors))

    async def get(self, fiber_id: UUID) -> FiberRecord | None:
        """See ``Storage.get_fiber``."""
        return await self._worker.run(self._fibers.get, fiber_id)

    async def query_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """See ``Storage.query_fibers_by_type``."""
        return await self._worker.run(self._fibers.query_by_type, fiber_type, limit, offset, after=after)


class AsyncMembershipRepository:
    """``MembershipRepository`` in coroutines."""

    def __init__(self, worker: _Worker, memberships: MembershipRepository) -> None:
        self._worker = worker
        self._memberships = memberships

    async def write(self, memberships: Iterable[FiberMembership]) -> int:
        """See ``Storage.write_memberships``."""
        return await self._worker.run(self._memberships.write, list(memberships))

    async def fibers_of(self, log_id: UUID) -> list[UUID]:
        """See ``Storage.get_log_fibers``."""
        return await self._worker.run(self._memberships.fibers_of, log_id)

    async def logs_of(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """See ``Storage.get_fiber_logs``."""
        return await self._worker.run(self._memberships.logs_of, fiber_id, limit, offset, after=after)


class AsyncTransaction:
    """``Transaction`` in coroutines; use it from one task at a time.

    Attributes:
        logs: The logs.
        fibers: The fibers.
        memberships: Which log belongs to which fiber.
    """

    def __init__(self, worker: _Worker, transaction: Transaction) -> None:
        self.logs = AsyncLogRepository(worker, transaction.logs)
        self.fibers = AsyncFiberRepository(worker, transaction.fibers)
        self.memberships = AsyncMembershipRepository(worker, transaction.memberships)


class AsyncDuckDBStorage(AsyncStorage):
    """``DuckDBStorage`` in coroutines: same arguments, same contract, for use in one event loop.

    Calls run on threads of its own, one for each connection of the pool. A call that is cancelled while it
    waits for a thread has not happened; one that is cancelled later goes on in its thread and happens wholly
    or not at all. A cancelled ``transaction()`` is rolled back, unless it was committing already.

    Opening happens in the constructor, in the calling thread; it is quick unless the write-ahead log of a
    killed process has to be replayed.

    Args:
        target: A path, a ``duckdb:///`` URL, or ``":memory:"``; see ``DuckDBStorage``.
        config_version: What a ``LogRecord`` is stamped with, 0 to 2**64 - 1.
        read_only: Open an existing file for reading only.
        pool_size: Connections and threads, >= 1; as many calls run side by side.
        lock_timeout_s: Seconds to wait, >= 0, while another process holds the file; the loop waits too.
        slow_call_s: From how many seconds on, >= 0, the logger ``fiberstore.telemetry`` warns of a call.

    Raises:
        StorageLockedError: Another process holds the file, and has not let it go in time.
        DatabaseError: The file cannot be opened, or is no DuckDB database.
        ValueError: An argument is out of bounds.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        config_version: int = 0,
        read_only: bool = False,
        pool_size: int = DEFAULT_POOL_SIZE,
        lock_timeout_s: float = 0.0,
        slow_call_s: float = DEFAULT_SLOW_CALL_S,
    ) -> None:
        self._storage = DuckDBStorage(
            target,
            config_version=config_version,
            read_only=read_only,
            pool_size=pool_size,
            lock_timeout_s=lock_timeout_s,
            slow_call_s=slow_call_s,
        )
        self._workers = [_Worker() for _ in range(pool_size)]
        self._pid = os.getpid()
        self._closed = False
        self._stopped: list[_Worker] = []
        self._idle: asyncio.Queue[_Worker | None] = asyncio.LifoQueue()  # None: the storage is closed
        for worker in self._workers:
            self._idle.put_nowait(worker)

    @property
    def engine(self) -> sa.Engine:
        """The SQLAlchemy engine; it blocks, so use it in a thread."""
        return self._storage.engine

    @property
    def config_version(self) -> int:
        """What a ``LogRecord`` is stamped with."""
        return self._storage.config_version

    async def close(self) -> None:
        """Wait for the calls that run, and close every connection; the storage cannot be used afterwards.

        If this is cancelled, call it again.
        """
        self._closed = True
        while len(self._stopped) < len(self._workers):
            worker = await self._idle.get()
            if worker is None:  # another task has closed the storage meanwhile
                break
            self._stopped.append(worker)
            worker.stop()
        self._idle.put_nowait(None)
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
        """See ``DuckDBStorage.stats``."""
        return self._storage.stats()

    def on_call(self, hook: Callable[[Call], None]) -> None:
        """See ``DuckDBStorage.on_call``; the thread is a worker, and has the task's context variables."""
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
        worker = await self._next_worker()
        stack = ExitStack()
        try:
            transaction = await worker.run(stack.enter_context, self._storage.transaction())
        except BaseException as error:
            # If it begins after all, the worker ends it again; nobody waits for that.
            self._give_back_after(worker.submit(stack.__exit__, type(error), error, None), worker)
            raise
        try:
            yield AsyncTransaction(worker, transaction)
        except BaseException as error:
            await self._end(worker, stack, error)  # after what the worker still does
            raise
        else:
            await self._end(worker, stack, None)

    async def init_schema(self) -> None:
        """See ``Storage.init_schema``."""
        await self._run(self._storage.init_schema)

    async def backup(self, target: str | os.PathLike[str]) -> None:
        """See ``DuckDBStorage.backup``."""
        await self._run(self._storage.backup, target)

    async def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """See ``Storage.write_logs``."""
        return await self._run(self._storage.write_logs, list(logs))

    async def get_log(self, log_id: UUID) -> StoredLog | None:
        """See ``Storage.get_log``."""
        return await self._run(self._storage.get_log, log_id)

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
        return await self._run(self._storage.query_logs_by_time, start, end, limit, offset, after=after)

    async def write_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.write_fiber``."""
        await self._run(self._storage.write_fiber, fiber)

    async def update_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.update_fiber``."""
        await self._run(self._storage.update_fiber, fiber)

    async def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """See ``Storage.get_fiber``."""
        return await self._run(self._storage.get_fiber, fiber_id)

    async def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """See ``Storage.query_fibers_by_type``."""
        return await self._run(self._storage.query_fibers_by_type, fiber_type, limit, offset, after=after)

    async def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """See ``Storage.write_memberships``."""
        return await self._run(self._storage.write_memberships, list(memberships))

    async def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """See ``Storage.get_log_fibers``."""
        return await self._run(self._storage.get_log_fibers, log_id)

    async def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """See ``Storage.get_fiber_logs``."""
        return await self._run(self._storage.get_fiber_logs, fiber_id, limit, offset, after=after)

    async def _end(self, worker: _Worker, stack: ExitStack, error: BaseException | None) -> None:
        end = worker.submit(stack.__exit__, type(error) if error else None, error, None)
        self._give_back_after(end, worker)
        await asyncio.shield(asyncio.wrap_future(end))

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        worker = await self._next_worker()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(future: Future[T]) -> None:
            self._idle.put_nowait(worker)
            if not done.cancelled():
                error = future.exception()
                if error is None:
                    done.set_result(future.result())
                else:
                    done.set_exception(error)

        # One message to the loop for both, where asyncio.wrap_future() and one for the worker would be two.
        worker.submit(work, *args, **kwargs).add_done_callback(
            lambda future: loop.call_soon_threadsafe(finish, future)
        )
        return await done

    async def _next_worker(self) -> _Worker:
        if self._closed:
            raise DatabaseError("the storage is closed")
        if self._pid != os.getpid():  # a forked child has not inherited the threads
            raise DatabaseError(FORKED)
        try:
            worker = self._idle.get_nowait()
        except asyncio.QueueEmpty:
            worker = await self._wait_for_worker()
        if worker is None:
            self._idle.put_nowait(None)  # for the next that waits
            raise DatabaseError("the storage is closed")
        return worker

    async def _wait_for_worker(self) -> _Worker | None:
        try:
            return await asyncio.wait_for(self._idle.get(), POOL_TIMEOUT_S)
        except TimeoutError:
            raise DatabaseError(f"no thread was free for {POOL_TIMEOUT_S:g} s; raise pool_size") from None

    def _give_back_after(self, future: Future[T], worker: _Worker) -> None:
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._idle.put_nowait, worker))
