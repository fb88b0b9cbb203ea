"""``BufferedWriter``: single records from any number of threads, written in batches."""

import atexit
import logging
import os
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.records import LogRecord
from fiberstore.writer.buffer import (
    DEFAULT_CLOSE_TIMEOUT_S,
    Batch,
    BufferedRecord,
    LogSink,
    Writer,
    log_bytes,
    warn_of,
)

_EXIT_TIMEOUT_S = 10.0

_logger = logging.getLogger(__name__)


class BufferedWriter(Writer[LifecycleStorage | LogSink, Future[None]]):
    """Takes single records, from any number of threads, and writes them in batches, in their order.

    Use it as a context manager, or call ``close()``, before the storage is closed. A thread of its own writes
    a batch when there are ``flush_rows`` records or ``flush_bytes`` of them, when the oldest has waited for
    ``flush_interval_s``, and when somebody waits. A batch is stored all or none.

    A flush that fails loses nothing: the records stay, in their order, and it is tried again after 0.1 s,
    then after twice as long each time, up to 5 s. ``last_error`` tells, and a warning is logged.

    Memory is bounded: what waits and what is being written are at most ``buffer_bytes``, by an estimate (see
    ``buffer.checked``); a record larger than that is taken when there is no other. A flush needs
    about as much again for its batch. When there is no room, ``when_full`` decides: ``"block"`` waits,
    ``"raise"`` raises ``BufferFullError``, ``"drop"`` leaves the record out and counts it in ``dropped``.

    A writer that is not closed when the interpreter ends is closed then; records that cannot be stored within
    10 s are lost, and the error is printed. A forked child cannot use its parent's writer.

    Args:
        storage: Where to: a storage, of which only ``write_batch`` is called; or what finds the fibers of
            logs by rules and takes nothing else, of which only ``write`` is called.
        flush_rows: Most records of a batch, >= 1.
        flush_bytes: Most bytes of a batch, >= 1; one record may be more.
        flush_interval_s: Seconds that a record waits at most for others, >= 0.
        buffer_bytes: Most bytes of all records that are not stored yet, >= 1.
        when_full: What ``write`` does when there is no room.

    Raises:
        TypeError: ``storage`` is neither.
        ValueError: An argument is out of bounds.
    """

    _storage_kind = LifecycleStorage
    _in_coroutines = False

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="fiberstore-writer", daemon=True)
        self._thread.start()
        atexit.register(self._close_at_exit)

    def write(self, record: BufferedRecord, timeout_s: float | None = None) -> Future[None]:
        """Take a record.

        A ``LogRecord`` is stamped when it is flushed. Of several fibers of one id in a batch, the last is
        stored.

        Args:
            record: The record.
            timeout_s: Seconds to wait for room at most, if ``when_full`` is ``"block"``; None is without end.

        Returns:
            A future that is done when the record is durable. It cannot be cancelled. For a record that was
            dropped, it has ``BufferFullError``; after a ``close()`` that failed, what the storage raised. Its
            callbacks run in the writer's thread, where nothing may wait for the writer.

        Raises:
            TypeError: It is no record, lacks a field, or is no log where nothing else is taken.
            ValueError: It holds values that cannot be stored.
            BufferFullError: There is no room, and ``when_full`` is ``"raise"``; or there is none in time.
            DatabaseError: The writer is closed, or belongs to a parent process.
        """
        copy, size_bytes = self._checked(record)
        future = Future[None]()
        future.set_running_or_notify_cancel()
        if not self._add(copy, size_bytes, timeout_s, future):
            future.set_exception(self._buffer.full())
        return future

    def write_log(self, log: LogRecord, timeout_s: float) -> None:
        """Take a log that is known to be storable, at half the cost of ``write``: unchecked, without future.

        Raises:
            BufferFullError: There is no room, whatever ``when_full`` is.
            DatabaseError: The writer is closed, or belongs to a parent process.
        """
        if not self._add(log, log_bytes(log), timeout_s, None):
            raise self._buffer.full()

    def _add(
        self, record: BufferedRecord, size_bytes: int, timeout_s: float | None, future: Future[None] | None
    ) -> bool:
        """Add a record; return whether there is room."""
        self._refuse_fork()
        with self._lock:
            self._buffer.check_open()
            if not self._buffer.has_room(size_bytes) and not self._get_room(size_bytes, timeout_s):
                return False
            if self._buffer.add(record, size_bytes, time.monotonic(), future):
                self._due.notify()
        return True

    def flush(self, timeout_s: float | None = None) -> None:
        self._refuse_fork()
        self._refuse_own_thread()
        with self._lock:
            wanted = self._buffer.demand()
            self._due.notify()
            self._progress.wait_for(
                lambda: self._buffer.durable >= wanted or self._has_ended, _waitable(timeout_s)
            )
            self._buffer.check_durable(wanted)

    def close(self, timeout_s: float = DEFAULT_CLOSE_TIMEOUT_S) -> None:
        if self._pid != os.getpid():  # what was written before the fork is the parent's
            return
        self._refuse_own_thread()
        with self._lock:
            self._buffer.close(time.monotonic() + timeout_s)
            self._due.notify()
            self._progress.notify_all()
            self._progress.wait_for(lambda: self._has_ended)
        self._thread.join()
        atexit.unregister(self._close_at_exit)
        self._buffer.check_written()

    def is_own_thread(self) -> bool:
        """Return whether the caller runs in the thread that writes, where nothing may wait for the writer."""
        return threading.get_ident() == self._thread.ident

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get_room(self, size_bytes: int, timeout_s: float | None) -> bool:
        """Wait for room, or return that there is none."""
        buffer = self._buffer
        if not self._may_wait_for_room():
            return False
        self._refuse_own_thread()
        buffer.waiting += 1
        self._due.notify()
        try:
            found = self._progress.wait_for(
                lambda: buffer.is_closing or buffer.has_room(size_bytes), _waitable(timeout_s)
            )
        finally:
            buffer.waiting -= 1
        buffer.check_open()
        if not found:
            raise buffer.full()
        return True

    def _refuse_own_thread(self) -> None:
        if self.is_own_thread():
            raise RuntimeError("a callback of a future would wait for the writer, which waits for it")

    def _close_at_exit(self) -> None:
        self.close(_EXIT_TIMEOUT_S)

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._write(batch)
        finally:
            with self._lock:
                futures, error = self._buffer.end("the writer's thread has ended")
            for future in futures:
                if not future.done():
                    _settle(future, error)
            with self._lock:
                self._has_ended = True
                self._progress.notify_all()

    def _next_batch(self) -> Batch[Future[None]] | None:
        """Wait until a batch is due; None is the end."""
        with self._lock:
            while True:
                due_in_s = self._buffer.due_in_s(time.monotonic())
                if due_in_s == 0:
                    return self._buffer.batch()
                if due_in_s is None and self._buffer.is_closing:
                    return None
                self._due.wait(_waitable(due_in_s))

    def _write(self, batch: Batch[Future[None]]) -> None:
        try:
            if isinstance(self._storage, LifecycleStorage):
                self._storage.write_batch(logs=batch.logs, fibers=batch.fibers, memberships=batch.memberships)
            else:
                self._storage.write(batch.logs)
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing may be lost
            with self._lock:
                delay_s = self._buffer.failed(error, time.monotonic())
            warn_of(error, delay_s)
            return
        for future in batch.futures:
            _settle(future, None)
        with self._lock:
            self._buffer.stored(batch)
            self._progress.notify_all()


def _settle(future: Future[None], error: Exception | None) -> None:
    try:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
    except BaseException:  # such as SystemExit, which must not end the writer's thread; others are logged too
        _logger.exception("a callback of a future has raised an error")


def _waitable(seconds: float | None) -> float | None:
    """Return a time that ``threading`` can wait for: not more than 292 years."""
    return None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
