"""An asynchronous face seen as what it wraps, so that one contract suite tests both."""

import asyncio
import inspect
import threading
from abc import update_abstractmethods
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Generic, TypeVar

import pyarrow as pa

from fiberstore.aio.queries import AsyncFibers, AsyncLogs, AsyncMemberships, AsyncQuery
from fiberstore.aio.storage import AsyncCheckpoints, AsyncLifecycleStorage, AsyncVersions
from fiberstore.aio.streams import AsyncLogTail
from fiberstore.contract.lifecycle import Checkpoints, LifecycleStorage, Versions
from fiberstore.contract.queries import (
    ARROW_BATCH_ROWS,
    Fibers,
    Logs,
    LogTail,
    Memberships,
    Query,
    R,
)
from fiberstore.records import FiberMembership, FiberRecord, StoredLog

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


class _Blocking:
    """Calls the object in coroutines that it stands for on a loop, from any number of threads."""

    def __init__(self, wrapped: Any, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ANN401  # of any face
        self.wrapped = wrapped
        self._loop = loop

    def run(self, call: Coroutine[object, object, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def read(self, stream: AsyncGenerator[_T, None]) -> Iterator[_T]:
        try:
            while (item := self.run(_next(stream))) is not None:
                yield item
        finally:
            self.run(stream.aclose())

    def seen(self, value: object) -> object:
        """Return the answer of a call as a caller of the wrapped object would see it."""
        if inspect.iscoroutine(value):
            return self.seen(self.run(value))
        for face, kind in _SEEN.items():
            if isinstance(value, face):
                return kind(value, self._loop)
        return value


async def _next(items: AsyncIterator[_T]) -> _T | None:
    return await anext(items, None)


def _derived(kind: type[_T]) -> type[_T]:
    """Give a class what it lacks of its contract: each method asks the method of that name of the face."""
    for name in kind.__abstractmethods__:  # type: ignore[attr-defined]  # of an ABC
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property):
            setattr(kind, name, property(_asked(name)))
        else:
            setattr(kind, name, wraps(member, updated=())(_called(name)))
    update_abstractmethods(kind)
    return kind


def _asked(name: str) -> Callable[[_Blocking], object]:
    return lambda self: self.seen(getattr(self.wrapped, name))


def _called(name: str) -> Callable[..., object]:
    def call(self: _Blocking, *args: object, **kwargs: object) -> object:
        return self.seen(getattr(self.wrapped, name)(*args, **kwargs))

    return call


@_derived
class SyncFace(_Blocking, LifecycleStorage):
    @classmethod
    def of(cls, store: AsyncLifecycleStorage, loop: asyncio.AbstractEventLoop) -> "SyncFace":
        return cls(store, loop)


class _Query(_Blocking, Query[R], Generic[R]):
    wrapped: AsyncQuery[R]

    def iter_records(self) -> Iterator[R]:
        return self.read(self.wrapped.iter_records())

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> pa.RecordBatchReader:
        batches = self.read(self.wrapped.to_arrow(batch_rows))
        first = next(batches)

        def all_of_them() -> Iterator[pa.RecordBatch]:
            yield first
            yield from batches

        return pa.RecordBatchReader.from_batches(first.schema, all_of_them())


@_derived
class _Logs(_Query[StoredLog], Logs):
    pass


@_derived
class _Fibers(_Query[FiberRecord], Fibers):
    pass


@_derived
class _Memberships(_Query[FiberMembership], Memberships):
    pass


@_derived
class _Checkpoints(_Blocking, Checkpoints):
    pass


@_derived
class _Versions(_Blocking, Versions):
    pass


@_derived
class _LogTail(_Blocking, LogTail):
    def __next__(self) -> StoredLog:
        log: StoredLog | None = self.run(_next(self.wrapped))
        if log is None:
            raise StopIteration
        return log


_SEEN: dict[type, Callable[..., object]] = {
    AsyncLogs: _Logs,
    AsyncFibers: _Fibers,
    AsyncMemberships: _Memberships,
    AsyncCheckpoints: _Checkpoints,
    AsyncVersions: _Versions,
    AsyncLogTail: _LogTail,
}
