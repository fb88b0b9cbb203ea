"""Storages in coroutines, on threads: DuckDB has no asynchronous driver."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from types import TracebackType
from typing import NoReturn, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.aio.face import Face
from fiberstore.aio.queries import AsyncFibers, AsyncLogs, AsyncMemberships
from fiberstore.aio.workers import OneWorker, Worker, Workers
from fiberstore.checks import check_number
from fiberstore.contract.conditions import Condition
from fiberstore.contract.lifecycle import Checkpoints, LifecycleStorage, Versions
from fiberstore.contract.queries import QueryStorage
from fiberstore.contract.results import Pruned
from fiberstore.contract.storage import Storage
from fiberstore.errors import DatabaseError
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.repositories import FiberRepository, LogRepository, MembershipRepository
from fiberstore.repositories.storage import SqlStorage, Transaction
from fiberstore.telemetry import Call, StorageStats


class AsyncCheckpoints(Face, of=Checkpoints):
    """``Checkpoints`` with coroutines."""


class AsyncVersions(Face, of=Versions):
    """``Versions`` with coroutines."""


class AsyncStorage(Face, of=Storage):
    """A ``Storage`` in coroutines: same names, same arguments, same contract, for use in one event loop.

    It wraps any storage, and calls it on threads of its own. A call that is cancelled while it waits for a
    thread has not happened; one that is cancelled later continues in its thread and happens wholly or not at
    all. An iterable is read to its end first, in the calling task.

    Use it as an asynchronous context manager, or call ``close()``.

    Args:
        storage: The storage. It can be used beside this, and stays open when this is closed.
        threads: How many calls run side by side, >= 1.

    Raises:
        TypeError: The storage is not of the class that this is the face of.
        ValueError: ``threads`` is less than 1.
    """

    _workers: Workers

    def __init__(self, storage: Storage, threads: int) -> None:
        if not isinstance(storage, self._contract):
            raise TypeError(f"expected a {self._contract.__name__}, got {storage!r:.200}")
        check_number("threads", threads, least=1)
        self._workers = Workers(threads)
        super().__init__(storage, self._workers)

    async def close(self) -> None:
        """Wait for the calls that run, and end half-read streams and the threads, for good.

        If this is cancelled, call it again.
        """
        await self._workers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncQueryStorage(AsyncStorage, of=QueryStorage):
    """A ``QueryStorage`` in coroutines: same names, same arguments, same contract.

    An ``on_rows`` is called in another thread.
    """


class AsyncLifecycleStorage(AsyncQueryStorage, of=LifecycleStorage):
    """A ``LifecycleStorage`` in coroutines: same names, same arguments, same contract.

    An ``on_step`` is called in another thread. A ``prune`` that is cancelled ends with the step that runs.
    """

    _wrapped: LifecycleStorage

    async def prune(
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
        cancelled = threading.Event()

        def after_step(so_far: Pruned) -> None:
            if on_step is not None:
                on_step(so_far)
            if cancelled.is_set():
                raise DatabaseError("prune() was cancelled; the steps before that stay")

        try:
            return await self._threads.run(
                self._wrapped.prune,
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


class AsyncLogRepository(AsyncLogs, of=LogRepository):
    """``LogRepository`` in coroutines."""


class AsyncFiberRepository(AsyncFibers, of=FiberRepository):
    """``FiberRepository`` in coroutines."""


class AsyncMembershipRepository(AsyncMemberships, of=MembershipRepository):
    """``MembershipRepository`` in coroutines."""


class AsyncTransaction(Face, of=Transaction):
    """``Transaction`` in coroutines; use it from one task at a time."""


class AsyncSqlStorage(AsyncLifecycleStorage, of=SqlStorage):
    """A ``SqlStorage`` in coroutines.

    A cancelled ``transaction()`` is rolled back, unless it was committing already.

    Args:
        storage: The storage, which is closed with this.
        threads: How many calls run side by side, >= 1.
    """

    _wrapped: SqlStorage

    @property
    def engine(self) -> sa.Engine:
        """The SQLAlchemy engine; it blocks, so use it in a thread."""
        return self._wrapped.engine

    @property
    def config_version(self) -> int:
        """The stamp of a ``LogRecord``."""
        return self._wrapped.config_version

    async def close(self) -> None:
        """Wait for the calls that run, end half-read streams, and close every connection, for good.

        If this is cancelled, call it again.
        """
        await super().close()
        self._wrapped.close()

    def __getstate__(self) -> NoReturn:
        self._wrapped.__getstate__()

    def stats(self) -> StorageStats:
        return self._wrapped.stats()

    def on_call(self, hook: Callable[[Call], None]) -> None:
        """Have a hook called after each call and each ``transaction()`` block, in the thread of the call.

        An ``Exception`` of the hook is logged and changes nothing; what it waits for, the caller waits for.
        The thread has the context variables of the task. ``fiberstore.otel.instrument`` is such a hook.
        """
        self._wrapped.on_call(hook)

    def session(self) -> Session:
        """Return a new ORM session on the engine; it blocks, so use it in a thread."""
        return self._wrapped.session()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        worker = await self._workers.next()
        stack = ExitStack()
        try:
            transaction = await worker.run(stack.enter_context, self._wrapped.transaction())
        except BaseException as error:
            # If it begins after all, the worker ends it again; nobody waits for that.
            self._workers.give_back_after(worker.submit(stack.__exit__, type(error), error, None), worker)
            raise
        threads = OneWorker(worker)
        try:
            yield AsyncTransaction(transaction, threads)
        except BaseException as error:
            threads.end_streams()
            await self._end(worker, stack, error)  # after what the worker still does
            raise
        else:
            threads.end_streams()
            await self._end(worker, stack, None)

    async def _end(self, worker: Worker, stack: ExitStack, error: BaseException | None) -> None:
        end = worker.submit(stack.__exit__, type(error) if error else None, error, None)
        self._workers.give_back_after(end, worker)
        await asyncio.shield(asyncio.wrap_future(end))
