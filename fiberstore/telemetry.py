"""Telemetry of a storage: log records, counters, and hooks for tracing.

The loggers are those of the modules, ``fiberstore.doctor`` and so on. They name methods and numbers; never an
id, a text or the message of an error, which may quote one.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from fiberstore.errors import ConflictError
from fiberstore.forks import renew_in_child

DEFAULT_SLOW_CALL_S = 1.0

T = TypeVar("T")

_NS_PER_S = 1_000_000_000

_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # other warnings reach a program that has set up no logging, too


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a storage's method, one ``transaction()`` block or one stream that has ended.

    Attributes:
        method: The method's name.
        began_ns: When it began, in ns since 1970.
        ended_ns: When it ended, in ns since 1970.
        duration_s: How long it took, waiting for other transactions included, the reader of a stream not.
        rows_written: Rows that were inserted, updated or deleted, not by statements that return rows.
        retries: How often it was run again after a conflict.
        error: What it raised, or None.
    """

    method: str
    began_ns: int
    ended_ns: int
    duration_s: float
    rows_written: int
    retries: int
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class CallStats:
    """The calls of one method, since the storage was opened.

    Attributes:
        calls: How many have ended.
        errors: How many of them raised.
        duration_s: What they took together.
    """

    calls: int = 0
    errors: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StorageStats:
    """Counters of a storage since it was opened.

    Attributes:
        calls: Counters by method name; ``transaction()`` blocks are among them.
        rows_written: Rows that calls have inserted, updated or deleted.
        conflicts: Conflicts of transactions.
        retries: Transactions that were run again after a conflict.
        checkpoints: WAL checkpoints that were seen: the write-ahead log had moved into the file.
    """

    calls: dict[str, CallStats] = field(default_factory=dict)
    rows_written: int = 0
    conflicts: int = 0
    retries: int = 0
    checkpoints: int = 0


class RunningCall:
    """A call in progress; use it as a context manager around what the method does.

    Attributes:
        method: The method's name.
        rows_written: Rows written so far.
        retries: Retries so far.
        idle_s: Time that is not the call's own.
    """

    def __init__(self, method: str, end: Callable[[Call], None]) -> None:
        self._end = end
        self.method = method
        self.rows_written = 0
        self.retries = 0
        self.idle_s = 0.0

    def __enter__(self) -> "RunningCall":
        self._began_ns = time.time_ns()
        self._began_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed_s = time.perf_counter() - self._began_s
        ended_ns = self._began_ns + round(elapsed_s * _NS_PER_S)
        self._end(
            Call(
                self.method,
                self._began_ns,
                ended_ns,
                elapsed_s - self.idle_s,
                self.rows_written,
                self.retries,
                error,
            )
        )


class Telemetry:
    """Counts the calls of a storage, logs the slow ones, and hands each to the hooks.

    Args:
        slow_call_s: From how many seconds on a call is logged as slow.
        wal: Path of the database's write-ahead log; None for a database in memory.
    """

    def __init__(self, slow_call_s: float, wal: str | None) -> None:
        self._slow_call_s = slow_call_s
        self._wal = wal
        self._wal_bytes = 0
        self._lock = threading.RLock()  # the garbage collector may end a stream while its thread holds it
        self._calls: dict[str, CallStats] = {}
        self._rows_written = self._conflicts = self._retries = self._checkpoints = 0
        self._hooks: tuple[Callable[[Call], None], ...] = ()
        renew_in_child(self, Telemetry.renew_lock)

    def running(self, method: str) -> RunningCall:
        """Return a context manager for a call of a method."""
        return RunningCall(method, self.end)

    def stream(self, method: str, parts: Generator[T]) -> Generator[T]:
        """Yield the parts of a stream, and count it as one call, which ends with it.

        Its hooks run in the context that asked for the first part, wherever the stream ends.
        """
        context = copy_context()
        with RunningCall(method, lambda call: context.run(self.end, call)) as call, closing(parts):
            for part in parts:
                given_s = time.perf_counter()
                try:
                    yield part
                except GeneratorExit:  # closed half-read, which is no error
                    return
                finally:
                    call.idle_s += time.perf_counter() - given_s

    def add_hook(self, hook: Callable[[Call], None]) -> None:
        """Call the hook after each call; once, however often it is added."""
        if hook not in self._hooks:
            self._hooks = (*self._hooks, hook)

    def stats(self) -> StorageStats:
        """Return the counters as they are now."""
        with self._lock:
            return StorageStats(
                dict(self._calls), self._rows_written, self._conflicts, self._retries, self._checkpoints
            )

    def end(self, call: Call) -> None:
        """Count a call that has ended, and report it to log and hooks."""
        with self._lock:
            before_bytes = self._wal_bytes
            if call.rows_written:
                self._wal_bytes = self._size_of_wal()
            checkpointed = self._wal_bytes < before_bytes
            self._count(call)
            self._checkpoints += checkpointed
        if checkpointed:
            _logger.info("WAL checkpoint: %d bytes of the write-ahead log are in the file now", before_bytes)
        if call.duration_s >= self._slow_call_s:
            _logger.warning(
                "slow call: %s took %.3f s, %d rows written", call.method, call.duration_s, call.rows_written
            )
        for hook in self._hooks:
            try:
                hook(call)
            except Exception:  # the call has ended; what it did must not look as if it had failed
                _logger.exception("a hook failed after %s", call.method)

    def _count(self, call: Call) -> None:
        before = self._calls.get(call.method, CallStats())
        self._calls[call.method] = CallStats(
            before.calls + 1, before.errors + (call.error is not None), before.duration_s + call.duration_s
        )
        self._rows_written += call.rows_written
        self._conflicts += call.retries + isinstance(call.error, ConflictError)
        self._retries += call.retries

    def _size_of_wal(self) -> int:
        if self._wal is None:
            return 0
        try:
            return os.stat(self._wal).st_size  # noqa: PTH116  # a third of the time of Path.stat()
        except OSError:  # there is none, which is no trouble of the call that has ended
            return 0

    def renew_lock(self) -> None:
        """Forget a thread that does not exist in a forked child."""
        self._lock = threading.RLock()
