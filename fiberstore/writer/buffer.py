"""Records that wait to be written, and the time of the next flush: a buffered writer without its thread.

It is not thread-safe: its users serialize their calls.
"""

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from pydantic import JsonValue

from fiberstore.checks import check_number
from fiberstore.errors import BufferFullError, DatabaseError, StorageClosedError, StorageError
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog

if TYPE_CHECKING:
    from uuid import UUID

BufferedRecord: TypeAlias = LogRecord | FiberRecord | FiberMembership
WhenFull: TypeAlias = Literal["block", "raise", "drop"]
S = TypeVar("S")
F = TypeVar("F")

DEFAULT_FLUSH_ROWS = 10_000
DEFAULT_FLUSH_BYTES = 32 << 20
DEFAULT_FLUSH_INTERVAL_S = 1.0
DEFAULT_BUFFER_BYTES = 64 << 20
DEFAULT_CLOSE_TIMEOUT_S = 30.0

_FORKED = "the writer belongs to the parent process; make one in this process, for a storage opened here"
RECORD_BYTES = 2_500
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_WHEN_FULL = ("block", "raise", "drop")

_logger = logging.getLogger(__name__)


class LogSink(Protocol):
    """A store of logs that does not need fibers: it finds them itself, for example by rules."""

    def write(self, logs: list[LogRecord], /) -> object:
        """Store logs in their order, all or none."""


class AsyncLogSink(Protocol):
    """``LogSink`` in coroutines."""

    async def write(self, logs: list[LogRecord], /) -> object:
        """Store logs in their order, all or none."""


class UnwrittenError(StorageError):
    """A writer was closed, and could not store all records. Its cause is the last error of the storage.

    Attributes:
        records: What is not stored, in the order it was written: another writer or storage can take it.
    """

    def __init__(self, records: Iterable[BufferedRecord], reason: str) -> None:
        self.records = list(records)
        super().__init__(
            f"{len(self.records)} records are not stored, they are in the error's `records`: {reason}"
        )


@dataclass(frozen=True, slots=True)
class Batch(Generic[F]):
    """Records of one write.

    Attributes:
        logs: In the order they came.
        fibers: The last of each id.
        memberships: In the order they came.
        size: Number of records, those that a later one of the same fiber replaces among them.
        futures: Those of the records that have one.
    """

    logs: list[LogRecord]
    fibers: list[FiberRecord]
    memberships: list[FiberMembership]
    size: int
    futures: list[F]


class _Entry(NamedTuple, Generic[F]):
    record: BufferedRecord
    size_bytes: int
    since_s: float
    future: F | None


class Buffer(Generic[F]):
    """Records in the order they came, each with the future of whoever wrote it and asked for one.

    They stay until they are known to be stored, so what is on its way counts too. The arguments are those of
    ``BufferedWriter``.

    Attributes:
        when_full: As given.
        dropped: How many records were not taken, because there was no room.
        last_error: Why the last attempt failed; None if it did not.
        waiting: How many wait for room.
        added: How many records were taken so far.
        durable: How many of them are stored.
        is_closing: Whether it takes no more.
        has_given_up: Whether it is not tried again, although writing has failed.
    """

    def __init__(
        self,
        flush_rows: int,
        flush_bytes: int,
        flush_interval_s: float,
        buffer_bytes: int,
        when_full: WhenFull,
    ) -> None:
        check_number("flush_rows", flush_rows, least=1)
        check_number("flush_bytes", flush_bytes, least=1)
        check_number("buffer_bytes", buffer_bytes, least=1)
        if not 0 <= flush_interval_s < float("inf"):
            raise ValueError(f"flush_interval_s must be a number of seconds >= 0, got {flush_interval_s}")
        if when_full not in _WHEN_FULL:
            raise ValueError(f"when_full must be one of {', '.join(_WHEN_FULL)}, got {when_full!r}")
        self.when_full = when_full
        self.dropped = 0
        self.last_error: Exception | None = None
        self.waiting = 0
        self.added = 0
        self.durable = 0
        self.is_closing = False
        self.has_given_up = False
        self._flush_rows = flush_rows
        self._flush_bytes = flush_bytes
        self._flush_interval_s = flush_interval_s
        self._buffer_bytes = buffer_bytes
        self._entries = deque[_Entry[F]]()
        self._bytes = 0
        self._demanded = 0
        self._not_before_s = 0.0
        self._delay_s = _FIRST_DELAY_S
        self._give_up_s = float("inf")
        self._unwritten: list[BufferedRecord] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        """True if a flush is due, however young the records are."""
        return len(self._entries) >= self._flush_rows or self._bytes >= self._flush_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Return whether a record of that size can be taken; one that is larger than all the room, alone."""
        return not self._entries or self._bytes + size_bytes <= self._buffer_bytes

    def full(self) -> BufferFullError:
        """Return the error of a record without room; count the record if such are dropped."""
        self.dropped += self.when_full == "drop"
        return BufferFullError(len(self._entries), self._bytes)

    def check_open(self) -> None:
        """Raise ``DatabaseError`` if it takes no more records."""
        if self.is_closing:
            raise DatabaseError("the writer is closed")

    def add(self, record: BufferedRecord, size_bytes: int, now_s: float, future: F | None) -> bool:
        """Take a record; return whether the time of the next flush changes."""
        self._entries.append(_Entry(record, size_bytes, now_s, future))
        self._bytes += size_bytes
        self.added += 1
        return len(self._entries) == 1 or self.is_full

    def due_in_s(self, now_s: float) -> float | None:
        """Return in how many seconds a flush is due; None if nothing waits for one."""
        if not self._entries or self.has_given_up:
            return None
        due_s = self._entries[0].since_s + self._flush_interval_s
        if self.is_full or self.waiting or self.is_closing or self.durable < self._demanded:
            due_s = now_s
        return max(0.0, due_s - now_s, self._not_before_s - now_s)

    def demand(self) -> int:
        """Make all records due at once; return the number that must be durable then."""
        self._demanded = self.added
        self._not_before_s = 0.0
        return self._demanded

    def close(self, give_up_s: float) -> None:
        """Take no more records; make the rest due at once, and not retried after that time."""
        self.is_closing = True
        self._give_up_s = give_up_s
        self._not_before_s = 0.0

    def batch(self) -> Batch[F]:
        """Return the next batch to write; it stays here until it is ``stored``."""
        size = size_bytes = 0
        futures: list[F] = []
        logs: list[LogRecord] = []
        fibers: dict[UUID, FiberRecord] = {}
        memberships: list[FiberMembership] = []
        for entry in islice(self._entries, self._flush_rows):
            if size and size_bytes + entry.size_bytes > self._flush_bytes:
                break
            if entry.future is not None:
                futures.append(entry.future)
            size += 1
            size_bytes += entry.size_bytes
            match entry.record:
                case LogRecord() as log:
                    logs.append(log)
                case FiberRecord() as fiber:
                    fibers[fiber.fiber_id] = fiber
                case membership:
                    memberships.append(membership)
        return Batch(logs, list(fibers.values()), memberships, size, futures)

    def stored(self, batch: Batch[F]) -> None:
        """Forget the records that were written."""
        self.last_error = None
        self._delay_s = _FIRST_DELAY_S
        self._not_before_s = 0.0
        self.durable += batch.size
        self._take(batch.size)

    def failed(self, error: Exception, now_s: float) -> float | None:
        """Record a failed write; return the seconds until the retry, None without one."""
        self.last_error = error
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, _LONGEST_DELAY_S)
        if isinstance(error, StorageClosedError):  # no further try can change that
            self.close(now_s)
        self._not_before_s = now_s + delay_s
        self.has_given_up = self._not_before_s > self._give_up_s
        return None if self.has_given_up else delay_s

    def check_durable(self, wanted: int) -> None:
        """Raise the last error, or ``TimeoutError``, unless so many of all records are stored."""
        if self.durable >= wanted:
            return
        if self.last_error is not None:
            raise self.last_error
        raise TimeoutError(f"{wanted - self.durable} records are not stored yet; they stay in the buffer")

    def end(self, reason: str) -> tuple[list[F], Exception]:
        """Forget the records that are left, which are not stored.

        Args:
            reason: Why, if it is not that an attempt has failed.

        Returns:
            The futures of what was left, and the error they get.
        """
        error = self.last_error or DatabaseError(reason)
        self.is_closing = True
        if self._entries:
            self.last_error = error
        entries = self._take(len(self._entries))
        self._unwritten += [entry.record for entry in entries]
        return [entry.future for entry in entries if entry.future is not None], error

    def check_written(self) -> None:
        """Raise ``UnwrittenError`` once if something was left at the end."""
        unwritten, self._unwritten = self._unwritten, []
        if unwritten:
            error = self.last_error
            raise UnwrittenError(unwritten, f"{type(error).__name__}: {error}") from error

    def _take(self, count: int) -> list[_Entry[F]]:
        entries = [self._entries.popleft() for _ in range(count)]
        self._bytes -= sum(entry.size_bytes for entry in entries)
        return entries


class Writer(ABC, Generic[S, F]):
    """The part of a buffered writer that is the same with a thread and with a task."""

    _storage_kind: ClassVar[type]
    _in_coroutines: ClassVar[bool]

    def __init__(
        self,
        storage: S,
        *,
        flush_rows: int = DEFAULT_FLUSH_ROWS,
        flush_bytes: int = DEFAULT_FLUSH_BYTES,
        flush_interval_s: float = DEFAULT_FLUSH_INTERVAL_S,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        when_full: WhenFull = "block",
    ) -> None:
        self._storage = storage
        self._takes_logs_only = not isinstance(storage, self._storage_kind)
        if self._takes_logs_only:
            check_sink(storage, coroutine=self._in_coroutines)
        self._buffer = Buffer[F](flush_rows, flush_bytes, flush_interval_s, buffer_bytes, when_full)
        self._has_ended = False
        self._pid = os.getpid()
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what it waits by."""

    @abstractmethod
    def flush(self, timeout_s: float | None = None) -> object:
        """Wait until all that was written so far is durable.

        Args:
            timeout_s: Seconds to wait at most; None is without end.

        Raises:
            TimeoutError: It is not durable in time, and no flush has failed.
            StorageError: It is not durable in time: the error that the storage raised last.
        """

    @abstractmethod
    def close(self, timeout_s: float = DEFAULT_CLOSE_TIMEOUT_S) -> object:
        """Take no more records, write the rest, and end the thread or the task.

        Again, or in a forked child, it does nothing. If a coroutine of it is cancelled, call it again.

        Args:
            timeout_s: Seconds for which a flush that fails is retried. A flush that runs is waited for.

        Raises:
            UnwrittenError: Records could not be stored. The error holds them, and their futures have the
                error of the storage.
        """

    @property
    def last_error(self) -> Exception | None:
        """Error of the last flush; None if it succeeded."""
        return self._buffer.last_error

    @property
    def dropped(self) -> int:
        """Number of records that were dropped because the buffer was full."""
        return self._buffer.dropped

    def _checked(self, record: BufferedRecord) -> tuple[BufferedRecord, int]:
        copy, size_bytes = checked(record)
        if self._takes_logs_only and not isinstance(copy, LogRecord):
            raise TypeError(f"expected a LogRecord, as the fibers are found by rules, got {record!r:.200}")
        return copy, size_bytes

    def _may_wait_for_room(self) -> bool:
        """Return whether to wait for room, or raise ``BufferFullError``, as ``when_full`` says."""
        if self._buffer.when_full == "raise":
            raise self._buffer.full()
        return self._buffer.when_full == "block"

    def _refuse_fork(self) -> None:
        if self._pid != os.getpid():  # the lock may be held for ever
            raise DatabaseError(_FORKED)


def checked(record: BufferedRecord) -> tuple[BufferedRecord, int]:
    """Return a copy of a record, checked again as ``model_copy`` checks nothing, and its size in bytes.

    The size is what Python needs for its texts (1 to 4 bytes for a character) and ``attributes``, and
    ``RECORD_BYTES`` for the record and its future.

    Raises:
        TypeError: It is none of the three, or lacks a field.
        ValueError: A field has a value that cannot be stored.
    """
    for kind in (StoredLog, LogRecord, FiberMembership, FiberRecord):
        if isinstance(record, kind):
            break
    else:
        raise TypeError(f"expected a LogRecord, a FiberRecord or a FiberMembership, got {record!r:.200}")
    try:
        values = {name: getattr(record, name) for name in kind.model_fields}
    except AttributeError as error:
        raise TypeError(f"the record lacks a field: {error}; make it with all its fields") from error
    copy = kind(**values)
    return copy, log_bytes(copy) if isinstance(copy, LogRecord) else RECORD_BYTES + _text_bytes(copy)


def check_sink(target: object, *, coroutine: bool) -> None:
    """Raise ``TypeError`` if it has no ``write``, or one of the other kind: each flush would fail."""
    write = getattr(target, "write", None)
    if not callable(write) or iscoroutinefunction(write) is not coroutine:
        kind = "AsyncLifecycleStorage or an asynchronous" if coroutine else "LifecycleStorage or a"
        raise TypeError(f"expected a {kind} method write(logs), got {target!r:.200}")


def log_bytes(log: LogRecord) -> int:
    """Return the size of a log, by the estimate of ``checked``."""
    return RECORD_BYTES + sys.getsizeof(log.raw_text) + sys.getsizeof(log.source_id)


def warn_of(error: Exception, delay_s: float | None) -> None:
    """Log that writing has failed; not by the error's words, which may quote what was written."""
    then = "not tried again" if delay_s is None else f"tried again in {delay_s:.1f} s"
    _logger.warning("writing failed with %s, and is %s", type(error).__name__, then)


def _text_bytes(record: FiberRecord | FiberMembership) -> int:
    if isinstance(record, FiberRecord):
        return sys.getsizeof(record.fiber_type) + _json_bytes(record.attributes)
    return 0


def _json_bytes(value: JsonValue) -> int:
    size_bytes = 0
    rest: list[JsonValue] = [value]
    while rest:
        value = rest.pop()
        size_bytes += sys.getsizeof(value)
        if isinstance(value, dict):
            rest.extend(value)
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return size_bytes
