"""The storage trait: what every storage does, in prose. It holds no logic."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog

DEFAULT_LIMIT = 1_000


class LogStorage(ABC):
    """The part of ``Storage`` that holds logs."""

    @abstractmethod
    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """Store logs, all or none.

        A ``LogRecord`` is stamped with the current time and the storage's ``config_version``; a ``StoredLog``
        keeps its own.

        Args:
            logs: Any number of records. An iterator may give more than fit in memory: it is read while they
                are written. As it cannot be read twice, a conflict then ends the call.

        Returns:
            How many are new: their ``log_id`` was not stored yet.

        Raises:
            TypeError: An item is not a ``LogRecord``.
            ConflictError: Another transaction has written one of the ids while an iterator was read.
        """

    @abstractmethod
    def get_log(self, log_id: UUID) -> StoredLog | None:
        """Return one log, or None when there is none of that id."""

    @abstractmethod
    def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the logs with ``start <= timestamp <= end``, oldest first.

        Order: ``(timestamp, log_id)``.

        Args:
            start: Inclusive lower bound, timezone-aware.
            end: Inclusive upper bound, timezone-aware. Before ``start``, the answer is empty.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: A bound is naive, or limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """


class FiberStorage(ABC):
    """The part of ``Storage`` that holds fibers."""

    @abstractmethod
    def write_fiber(self, fiber: FiberRecord) -> None:
        """Store a new fiber.

        Raises:
            DuplicateError: A fiber of that id is stored already; it stays as it is.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    @abstractmethod
    def update_fiber(self, fiber: FiberRecord) -> None:
        """Replace every field of the fiber with that ``fiber_id``.

        Raises:
            NotFoundError: There is no fiber of that id.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    @abstractmethod
    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """Return one fiber, or None when there is none of that id."""

    @abstractmethod
    def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """Return the fibers of one type, in the order they began.

        Order: ``(first_activity, fiber_id)``.

        Args:
            fiber_type: The exact type.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A fiber, or the ``(first_activity, fiber_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative, or the type cannot be stored as text.
            TypeError: ``after`` is neither a fiber nor such a pair.
        """


class MembershipStorage(ABC):
    """The part of ``Storage`` that holds which log belongs to which fiber."""

    @abstractmethod
    def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """Store which logs belong to which fibers, all or none.

        Neither the logs nor the fibers need to be stored yet.

        Args:
            memberships: Any number of records; see ``write_logs`` for an iterator.

        Returns:
            How many are new: their pair of ids was not stored yet.

        Raises:
            TypeError: An item is not a ``FiberMembership``.
            ConflictError: Another transaction has written one of the pairs while an iterator was read.
        """

    @abstractmethod
    def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """Return the ids of every fiber the log belongs to, ascending, stored as fibers or not."""

    @abstractmethod
    def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the stored logs of one fiber, oldest first.

        Order: ``(timestamp, log_id)``. Memberships whose log is not stored add nothing.

        Args:
            fiber_id: The fiber; it need not be stored itself.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """


class Storage(LogStorage, FiberStorage, MembershipStorage):
    """Keeps logs, fibers, and which log belongs to which fiber.

    What holds for every method:

    - Time: datetimes are timezone-aware, in any zone; what comes back is in UTC, exact to 1 µs.
    - Order is total: logs by ``(timestamp, log_id)``, fibers by ``(first_activity, fiber_id)``, ids by the
      order of their 128 bits; always ascending.
    - Pages: at most ``limit`` rows after the first ``offset``; ``limit=0`` is an empty list. While nobody
      writes, pages put end to end are the whole: nothing twice, nothing missing.
    - The cost of a page grows with its ``offset``. ``after``, the last row of the page before, costs the same
      on every page: the page holds the rows that follow it in the order, stored or not, and ``offset`` counts
      from there. So no row comes twice and none that was there is missed, whatever is written meanwhile;
      only a fiber whose ``first_activity`` or type is changed meanwhile may move from one page to another.
    - Writing is atomic and durable: a call stores its whole batch or nothing, and returns once it is on disk.
    - Logs and memberships are idempotent: the first write of a key wins and a repeat is a no-op, also within
      one batch.
    - Threads: one storage may be shared by any number of threads. Transactions that conflict are run again;
      ``ConflictError`` says that they conflicted for too long.
    - What is returned belongs to the caller; changing it changes nothing in the store.
    - Errors are ``StorageError`` and its subclasses (see ``fiberstore.errors``) when the database fails,
      ``ValueError`` and ``TypeError`` when an argument is out of bounds or of the wrong type. After an error
      nothing of that call is stored, and the next call works. Only after a ``ConnectionLostError`` it may
      not be known whether all of it is.
    """

    @abstractmethod
    def init_schema(self) -> None:
        """Build the tables and indexes, or bring them to the newest revision; otherwise do nothing.

        Safe from several threads at once. Tables of the same names and columns that were made without
        migrations are adopted with their rows.

        Raises:
            SchemaVersionError: The database is at a revision this release does not know.
            DatabaseError: The tables there have other columns, or the database is read-only.
        """
