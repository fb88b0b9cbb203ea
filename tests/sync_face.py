"""An ``AsyncStorage`` seen as a ``Storage``, so that one contract suite tests both."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.storage import DEFAULT_LIMIT, AsyncStorage, Storage

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


class SyncFace(Storage):
    """Runs each call as a task on the loop, from any number of threads."""

    def __init__(self, store: AsyncStorage, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self._loop = loop

    def run(self, call: Coroutine[object, object, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

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
