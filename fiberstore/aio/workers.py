"""The threads on which the async face calls the database."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, Protocol, TypeVar

from fiberstore.errors import DatabaseError, StorageClosedError
from fiberstore.sql.engine import FORKED, POOL_TIMEOUT_S

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """A thread that does one thing after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fiberstore")

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin it, and do not wait for it."""
        context = copy_context()
        return self._executor.submit(lambda: context.run(work, *args, **kwargs))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the work in the thread; it continues if this is cancelled."""
        return await asyncio.wrap_future(self.submit(work, *args, **kwargs))

    def stop(self) -> None:
        """Wait for what it does, and end the thread."""
        self._executor.shutdown()


class Lease:
    """A worker that reads a stream, until the stream ends it or what is read is closed.

    Args:
        worker: The worker.
        close: Closes the stream.
        leases: Where the lease is listed until it ends.
        give_back: Gets the worker, and what has to be done first.
    """

    def __init__(
        self,
        worker: Worker,
        close: Callable[[], None],
        leases: "set[Lease]",
        give_back: Callable[[Future[None], Worker], None],
    ) -> None:
        self._worker = worker
        self._close = close
        self._leases = leases
        self._give_back = give_back
        leases.add(self)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it on the worker."""
        if self not in self._leases:
            raise DatabaseError("the storage or the transaction that is read has been closed")
        return await self._worker.run(work, *args, **kwargs)

    def end(self) -> None:
        """Have the stream closed after what the worker does now; again, it does nothing."""
        if self in self._leases:
            self._leases.remove(self)
            self._give_back(self._worker.submit(self._close), self._worker)


class Threads(Protocol):
    """The threads on which the calls of a storage or of a transaction run."""

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the work in the thread; it continues if this is cancelled."""

    async def hold(self, close: Callable[[], None]) -> Lease:
        """Return a worker for a stream, which is closed like this; the caller ends the lease."""


class OneWorker(Threads):
    """The worker of a transaction."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._leases = set[Lease]()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._worker.run(work, *args, **kwargs)

    async def hold(self, close: Callable[[], None]) -> Lease:
        return Lease(self._worker, close, self._leases, lambda _future, _worker: None)

    def end_streams(self) -> None:
        """End what is read half."""
        for lease in list(self._leases):
            lease.end()


class Workers(Threads):
    """So many workers, each for one call, stream or transaction at a time."""

    def __init__(self, count: int) -> None:
        self._workers = [Worker() for _ in range(count)]
        self._leases = set[Lease]()
        self._pid = os.getpid()
        self._closed = False
        self._stopped: list[Worker] = []
        self._idle: asyncio.Queue[Worker | None] = asyncio.LifoQueue()  # None: closed
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End the streams, wait for the calls that run, and end the threads.

        If this is cancelled, call it again.
        """
        self._closed = True
        for lease in list(self._leases):
            lease.end()
        while len(self._stopped) < len(self._workers):
            worker = await self._idle.get()
            if worker is None:  # another task has closed them meanwhile
                break
            self._stopped.append(worker)
            worker.stop()
        self._idle.put_nowait(None)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        worker = await self.next()
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
        worker.submit(work, *args, **kwargs).add_done_callback(lambda future: _tell(loop, finish, future))
        return await done

    async def hold(self, close: Callable[[], None]) -> Lease:
        worker = await self.next()
        if self._closed:  # while this waited
            self._idle.put_nowait(worker)
            raise StorageClosedError
        return Lease(worker, close, self._leases, self.give_back_after)

    async def next(self) -> Worker:
        """Wait for an idle worker; the caller gives it back."""
        if self._closed:
            raise StorageClosedError
        if self._pid != os.getpid():  # a forked child has not inherited the threads
            raise DatabaseError(FORKED)
        try:
            worker = self._idle.get_nowait()
        except asyncio.QueueEmpty:
            worker = await self._wait_for_worker()
        if worker is None:
            self._idle.put_nowait(None)  # for the next that waits
            raise StorageClosedError
        return worker

    def give_back_after(self, future: Future[T], worker: Worker) -> None:
        """Take a worker back when it has done that."""
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _tell(loop, self._idle.put_nowait, worker))

    async def _wait_for_worker(self) -> Worker | None:
        try:
            async with asyncio.timeout(POOL_TIMEOUT_S):  # wait_for() may swallow a cancellation (Python 3.11)
                return await self._idle.get()
        except TimeoutError:
            raise DatabaseError(
                f"no thread was free for {POOL_TIMEOUT_S:g} s; raise pool_size, or close half-read streams"
            ) from None


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[T], object], value: T) -> None:
    """Make a call in the loop, from another thread, unless the loop has ended: then nobody waits for it."""
    try:
        loop.call_soon_threadsafe(callback, value)
    except RuntimeError:
        if not loop.is_closed():
            raise
