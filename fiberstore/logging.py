"""``Handler``: the records of Python's ``logging`` as logs of a store."""

import atexit
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.errors import StorageError
from fiberstore.escaping import escape_unstorable
from fiberstore.ids import new_log_id
from fiberstore.records import LogRecord, construct_unvalidated
from fiberstore.writer.buffer import LogSink, UnwrittenError
from fiberstore.writer.threaded import BufferedWriter

DEFAULT_MAX_WAIT_S = 1.0
DEFAULT_FORMAT = "%(levelname)s %(name)s: %(message)s"

_TIMEOUT_S = 5.0


class Handler(logging.Handler):
    r"""Stores log records, by a ``BufferedWriter`` whose thread writes them in batches.

    ```python
    logging.getLogger().addHandler(Handler(storage))
    ```

    The text of a log is the formatted record, with its traceback; NUL and lone surrogates become ``\x00`` and
    ``\udc80``. A record whose arguments do not fit its message is stored with both as they are.

    A caller waits only while the buffer is full, and ``max_wait_s`` at most. After such a wait in vain,
    nobody waits until the buffer has room again. A record that finds no room is counted in ``dropped`` and
    given to ``on_unwritten``, and stderr is told of the first. So are the records that are written when the
    handler or the store is closed, or in a forked child, which needs a handler and a storage of its own.

    Records that the writer's thread itself logs, such as statements by SQLAlchemy's ``echo``, are counted in
    ``skipped``, or each flush would cause another one; warnings among them go to stderr.

    The handler is closed at exit, if it is not before: for up to 5 s it stores the rest. A storage that is
    closed by a ``with`` block is closed after the handler: ``contextlib.closing`` is its block.

    Args:
        target: Where to: a storage, or what finds the fibers of logs by rules; or a ``BufferedWriter`` of
            your own, which the handler closes, and whose ``when_full`` decides whether anybody waits.
        source_id: The ``source_id`` of the logs; None is the name of each record's logger.
        max_wait_s: Seconds that a caller waits at most for room in the buffer, >= 0.
        on_unwritten: Called with logs that are not stored and will not be, in their order: one at a time when
            there is no room, in the thread of the caller; the rest when the handler is closed.

    Attributes:
        dropped: Number of records that were not taken.
        skipped: Number of records of the writer's own thread.
        unwritten: After ``close()``, the logs that were taken and could not be stored, in their order.
    """

    def __init__(
        self,
        target: LifecycleStorage | LogSink | BufferedWriter,
        *,
        source_id: str | None = None,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
        on_unwritten: Callable[[list[LogRecord]], object] | None = None,
    ) -> None:
        if not 0 <= max_wait_s < float("inf"):
            raise ValueError(f"max_wait_s must be a number of seconds >= 0, got {max_wait_s}")
        super().__init__()
        self.setFormatter(logging.Formatter(DEFAULT_FORMAT))
        self.dropped = 0
        self.skipped = 0
        self.unwritten: list[LogRecord] = []
        self._writer = target if isinstance(target, BufferedWriter) else BufferedWriter(target)
        self._source_id = source_id
        self._max_wait_s = max_wait_s
        self._on_unwritten = on_unwritten
        self._has_room = True
        self._is_closed = False
        self._pid = os.getpid()
        self._thread = _OfThread()
        atexit.register(self.close)  # before logging does, when DuckDB reads nothing of Python's any more

    def handle(self, record: logging.LogRecord) -> bool:
        """Store a record that the filters let through; return whether they did.

        The handler's lock is not taken: a caller who waits for room would keep it from the writer's thread,
        which makes the room.
        """
        if self._writer.is_own_thread():
            self.skipped += 1
            if record.levelno >= logging.WARNING and logging.lastResort is not None:
                logging.lastResort.handle(record)
            return False
        found: object = self.filter(record)
        if isinstance(found, logging.LogRecord):  # filters may replace it, from Python 3.12 on
            record = found
        if found:
            self.emit(record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        """Give a record to the writer."""
        try:
            log = self._log_of(record)
        except Exception:  # noqa: BLE001  # whatever somebody has put into the record
            self.dropped += 1
            self.handleError(record)
            return
        waiting = self._thread.waiting
        if waiting is None:
            with self._undisturbed():
                self._write(log)
        elif self._thread.hands_back:  # it would be dropped too, and handed back, without end
            self.dropped += 1
        else:
            waiting.append(log)

    def flush(self) -> None:
        """Wait until what was logged so far is stored, for 5 s at most; stderr is told if it is not."""
        if self._is_closed or self._pid != os.getpid() or self._writer.is_own_thread():
            return
        with self._undisturbed():
            try:
                self._writer.flush(_TIMEOUT_S)
            except (StorageError, TimeoutError) as error:
                _tell(f"records are not stored yet: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Store the rest, for 5 s at most, and end the writer; again, it does nothing.

        What cannot be stored is in ``unwritten`` and given to ``on_unwritten``, and stderr is told.
        """
        if not self._is_closed:
            self._is_closed = True
            if self._pid == os.getpid():
                with self._undisturbed():
                    self._close_writer()
            if self.dropped:
                _tell(f"records dropped: {self.dropped}")
            atexit.unregister(self.close)
        super().close()

    def _close_writer(self) -> None:
        try:
            self._writer.flush(_TIMEOUT_S)
        except TimeoutError:  # `logging.config` may wait here with a lock that the flush needs, to log
            _tell("a flush still runs; the rest is stored after it")
            return
        except StorageError:
            pass  # it is tried once more
        try:
            self._writer.close(0)
        except UnwrittenError as error:
            self.unwritten = [record for record in error.records if isinstance(record, LogRecord)]
            cause = error.__cause__
            _tell(f"records not stored: {len(self.unwritten)} ({type(cause).__name__}: {cause})")
            self._hand_back(self.unwritten)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Write what the thread logs in the block after it: the writer's lock may be held in between.

        The garbage collector and signals run code, which may log, at any place.
        """
        waiting = self._thread.waiting = deque[LogRecord]()
        try:
            yield
            while waiting:
                self._write(waiting.popleft())
        finally:
            self._thread.waiting = None

    def _write(self, log: LogRecord) -> None:
        try:
            self._writer.write_log(log, self._max_wait_s if self._has_room else 0.0)
        except StorageError as error:
            if self._has_room:
                _tell(f"records are dropped from now on: {type(error).__name__}: {error}")
            self._has_room = False
            self.dropped += 1
            self._hand_back([log])
        else:
            self._has_room = True

    def _log_of(self, record: logging.LogRecord) -> LogRecord:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001  # of a message and its arguments, which anybody may have written
            self.handleError(record)
            text = f"{record.levelname} {record.name}: {record.msg!r} {record.args!r}"
        timestamp = datetime.fromtimestamp(record.created, UTC)
        values = {
            "timestamp": timestamp,
            "source_id": escape_unstorable(record.name if self._source_id is None else self._source_id),
            "raw_text": escape_unstorable(text),
            "log_id": new_log_id(timestamp),
        }
        return construct_unvalidated(LogRecord, values)

    def _hand_back(self, logs: list[LogRecord]) -> None:
        if self._on_unwritten is None:
            return
        self._thread.hands_back = True
        try:
            self._on_unwritten(logs)
        except Exception:  # noqa: BLE001  # nobody who logs expects an error of it
            _tell(f"on_unwritten has failed:\n{traceback.format_exc()}")
        finally:
            self._thread.hands_back = False


class _OfThread(threading.local):
    waiting: deque[LogRecord] | None = None
    hands_back = False


def _tell(what: str) -> None:
    if logging.raiseExceptions and sys.stderr is not None:
        print(f"fiberstore.logging: {what}", file=sys.stderr)  # noqa: T201  # loggers may lead here
