"""Sessions for the methods of the repositories: the caller's own, or a new one for each call."""

import gc
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from math import inf
from typing import TypeVar

from sqlalchemy.orm import Session

from fiberstore.checks import check_config_version
from fiberstore.errors import ConflictError
from fiberstore.sql.connection import Lock
from fiberstore.sql.models import RawLog
from fiberstore.sql.prepared import CallSession, connection_of
from fiberstore.sql.support import BackendSupport, FindGoing
from fiberstore.sql.translate import translate_errors
from fiberstore.telemetry import Telemetry

R = TypeVar("R")
T = TypeVar("T")

BATCH_ROWS = 100_000
# From so many rows on, a change takes `Lock.MANY_CHANGES`.
MANY_ROWS = 20_000
# Share of a table from which on it is written anew without the rows that go, where the engine does that.
LEAST_SHARE = 0.1
RETRY_TIMEOUT_S = 10.0
_FIRST_DELAY_S = 0.001
_LONGEST_DELAY_S = 0.1

# Locks beside which others upsert, where the engine lets them; of two, a work sees what they have done.
_BESIDE_OTHERS = (Lock.DELETES, Lock.LATEST, Lock.LATE)
_SEES_OTHERS = (Lock.LATEST, Lock.LATE)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Going:
    """Rows that a call is about to delete, foreseen before its transaction.

    Attributes:
        count: Counts them; it may stop at ``MANY_ROWS``.
        find: Finds them in their tables, see ``FindGoing``.
    """

    count: Callable[[Session], int]
    find: FindGoing


class SessionAccess(ABC):
    """Gives each method of a repository the session that it works on."""

    @property
    @abstractmethod
    def config_version(self) -> int:
        """The stamp of a ``LogRecord``."""

    @property
    @abstractmethod
    def redacted_at_once(self) -> float:
        """Most logs that one transaction is to redact; infinite if it is the caller's."""

    @abstractmethod
    def read(self, method: str | None) -> AbstractContextManager[Session]:
        """Yield a session to read with; translate the errors of the block.

        Args:
            method: Name of the call for telemetry; None for a part of a call that is counted already.
        """

    @abstractmethod
    def write(
        self,
        method: str,
        work: Callable[[Session], T],
        *,
        lock: Lock = Lock.CHANGES,
        one_statement: bool = False,
        going: Going | None = None,
        before: Callable[[], object] | None = None,
    ) -> T:
        """Run work that writes, in one transaction, and translate its errors.

        Args:
            method: Name of the call for telemetry.
            work: Run again after a conflict, if the transaction is its own.
            lock: Lock of the transaction.
            one_statement: The work is a single statement, which needs no BEGIN.
            going: Rows that the work deletes. Of many, the lock is ``Lock.MANY_CHANGES``, and the engine
                prepares for that before the lock is taken.
            before: Makes what the work needs, while others may change rows; what it keeps, the work finds.
        """

    @abstractmethod
    def write_rows(self, method: str, records: Iterable[R], write: Callable[[Session, list[R]], int]) -> int:
        """Append records in one transaction; return how many rows ``write`` has counted."""

    @abstractmethod
    def stream(self, method: str, parts: Generator[T]) -> Generator[T]:
        """Yield the parts of a stream, as one call."""


def session_access(session: Session | SessionAccess, config_version: int | None = None) -> SessionAccess:
    """Return the access to a session that its caller owns; that of a storage stays as it is.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``, or a storage's access.
        config_version: The stamp of a ``LogRecord``; None is that of the storage on the engine, or 0.

    Raises:
        TypeError: It is neither.
        ValueError: The config version is out of bounds.
    """
    if config_version is not None:
        check_config_version(config_version)
    if isinstance(session, Session):
        return OwnedSession(session, config_version)
    if not isinstance(session, SessionAccess):
        raise TypeError(f"expected a sqlalchemy.orm.Session, got {type(session).__name__}")
    return session


class OwnedSession(SessionAccess):
    """A session that the caller owns and commits. Its methods are no calls of a storage, and not counted."""

    def __init__(self, session: Session, config_version: int | None = None) -> None:
        self._session = session
        self._config_version = config_version

    @property
    def config_version(self) -> int:
        if self._config_version is not None:
            return self._config_version
        return getattr(self._session.get_bind(RawLog).dialect, "config_version", 0)

    @property
    def redacted_at_once(self) -> float:
        return inf

    @contextmanager
    def read(self, method: str | None) -> Iterator[Session]:
        del method
        with translate_errors():
            yield self._session

    def write(
        self,
        method: str,
        work: Callable[[Session], T],
        *,
        lock: Lock = Lock.CHANGES,
        one_statement: bool = False,
        going: Going | None = None,
        before: Callable[[], object] | None = None,
    ) -> T:
        # The transaction is the caller's, and may have read before.
        del method, lock, one_statement, going, before
        with translate_errors():
            return work(self._session)

    def write_rows(self, method: str, records: Iterable[R], write: Callable[[Session, list[R]], int]) -> int:
        rows = list(records)
        return self.write(method, lambda session: write(session, rows))

    def stream(self, method: str, parts: Generator[T]) -> Generator[T]:
        del method
        return parts


class CallSessions(SessionAccess):
    """A new session for each call of a storage, in AUTOCOMMIT isolation: no BEGIN, no ROLLBACK.

    Args:
        connect: Yields a session on such a connection, which has waited for a lock.
        support: What the engine does in its own way.
        telemetry: Counts the calls.
        config_version: The stamp of a ``LogRecord``.
    """

    def __init__(
        self,
        connect: Callable[[Lock], AbstractContextManager[CallSession]],
        support: BackendSupport,
        telemetry: Telemetry,
        config_version: int,
    ) -> None:
        self._connect = connect
        self._support = support
        self._telemetry = telemetry
        self._config_version = config_version

    @property
    def config_version(self) -> int:
        return self._config_version

    @property
    def redacted_at_once(self) -> float:
        return self._support.redacted_at_once

    @contextmanager
    def read(self, method: str | None) -> Iterator[Session]:
        running = nullcontext() if method is None else self._telemetry.running(method)
        with running as call, self._connect(Lock.NOTHING) as session, translate_errors():
            yield session
            if call is not None:
                call.rows_written = session.rows_written

    def write(
        self,
        method: str,
        work: Callable[[Session], T],
        *,
        lock: Lock = Lock.CHANGES,
        one_statement: bool = False,
        going: Going | None = None,
        before: Callable[[], object] | None = None,
    ) -> T:
        def run(session: Session, lock: Lock) -> T:
            with translate_errors():
                if one_statement:
                    return work(session)
                connection = connection_of(session)
                connection.begin(sees_latest=lock in _SEES_OTHERS)
                connection.take_lock(lock)
                result = work(session)
                connection.commit()
                return result

        return self._retried(method, run, lock, going, before)

    def write_rows(self, method: str, records: Iterable[R], write: Callable[[Session, list[R]], int]) -> int:
        rest = iter(records)
        is_collection = rest is not records
        batch = list(rest if is_collection else islice(rest, BATCH_ROWS))
        if is_collection or len(batch) < BATCH_ROWS:
            return self.write(
                method, lambda session: write(session, batch), lock=Lock.NOTHING, one_statement=True
            )
        batches = chain([batch], iter(lambda: list(islice(rest, BATCH_ROWS)), []))
        with self._telemetry.running(method) as call, self._connect(Lock.NOTHING) as session:
            written = _append(session, batches, write)
            call.rows_written = session.rows_written
            return written

    def write_batches(
        self, method: str, read: Callable[[], Iterable[T]], write: Callable[[Session, T], int]
    ) -> int:
        """Append batches in one transaction, which are read again after a conflict."""
        return self._retried(method, lambda session, _: _append(session, read(), write), Lock.NOTHING)

    def stream(self, method: str, parts: Generator[T]) -> Generator[T]:
        return self._telemetry.stream(method, parts)

    def _retried(
        self,
        method: str,
        work: Callable[[Session, Lock], T],
        lock: Lock,
        going: Going | None = None,
        before: Callable[[], object] | None = None,
    ) -> T:
        with self._telemetry.running(method) as call, ExitStack() as stack:
            if before is not None:
                with uncollected():
                    before()
            lock_of_all = stack.enter_context(self._prepared(lock, going))

            def run() -> T:
                # On PostgreSQL, many rows would meet a conflict each time if others often change one of them.
                keeps_out = call.retries and lock_of_all in _BESIDE_OTHERS
                taken = Lock.CHANGES if keeps_out else lock_of_all
                with self._connect(taken) as session:
                    done = work(session, taken)
                    call.rows_written = session.rows_written
                    return done

            def note(retries: int) -> None:
                call.retries = retries

            return retried(method, run, note)

    @contextmanager
    def _prepared(self, lock: Lock, going: Going | None) -> Iterator[Lock]:
        """Yield the lock for the rows that go; of many, the engine has prepared their deletion."""
        prepared = self._support.prepared
        if going is None or prepared is None:
            yield lock
            return
        with ExitStack() as stack:
            with translate_errors():
                session = stack.enter_context(self._connect(Lock.BESIDE))
                if going.count(session) >= MANY_ROWS:
                    stack.enter_context(prepared(session, going.find))
                    lock = Lock.MANY_CHANGES
                else:
                    stack.close()
            yield lock


def _append(session: Session, batches: Iterable[T], write: Callable[[Session, T], int]) -> int:
    """Write batches in one transaction; the errors of their iterator are its own."""
    connection, written = connection_of(session), 0
    with translate_errors():
        connection.begin(sees_latest=True)
    for batch in batches:
        with translate_errors():
            written += write(session, batch)
    with translate_errors():
        connection.commit()
    return written


def begins_beside_others(session: Session) -> bool:
    """Return whether a work with ``Lock.LATE`` is to take ``Lock.CHANGES`` at its end.

    It is not in a transaction of the caller's, nor where ``Lock.LATE`` is as good. After a conflict the work
    has ``Lock.CHANGES`` from the beginning; then it takes it once more, which does nothing.
    """
    return isinstance(session, CallSession) and connection_of(session).support.locks_late


def retried(method: str, work: Callable[[], T], on_retry: Callable[[int], object] | None = None) -> T:
    """Run work that begins a transaction, again and again while it conflicts, up to ``RETRY_TIMEOUT_S``.

    Args:
        method: Name of the call, for the log.
        work: Run at least once.
        on_retry: Called before each retry with its number, from 1 on.

    Raises:
        ConflictError: That of the last run.
    """
    deadline, waits_s = time.monotonic() + RETRY_TIMEOUT_S, delays_s()
    retries = 0
    while True:
        try:
            return work()
        except ConflictError:
            if time.monotonic() >= deadline:
                raise
        retries += 1
        if on_retry is not None:
            on_retry(retries)
        _logger.info("%s met a conflict and is run again (%d)", method, retries)
        time.sleep(next(waits_s))


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector off for a block that makes many objects without cycles.

    It would look through all of them again and again: a quarter of the time that an ingest takes, in which
    no other thread runs.
    """
    was_enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if was_enabled:
            gc.enable()


def delays_s() -> Iterator[float]:
    """Yield how long to wait before each further try: jittered, and longer each time, up to 0.1 s."""
    longest_s = _FIRST_DELAY_S
    while True:
        yield random.uniform(0, longest_s)  # noqa: S311  # jitter, no secret
        longest_s = min(2 * longest_s, _LONGEST_DELAY_S)
