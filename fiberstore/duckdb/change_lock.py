"""``ChangeLock``: transactions that change rows of a database run one at a time."""

import time
from weakref import ref

import duckdb

from fiberstore.duckdb.fork_guard import PerDatabase
from fiberstore.sql.holds import Hold, Registry

LOCK_TIMEOUT_S = 10.0


class ChangeLock(PerDatabase):
    """Lets one transaction at a time change rows of a database; appends and reads go beside it.

    DuckDB lets two transactions that change one row both commit, and drops one of the changes, when one
    updates an indexed column and the other a plain one, or when one updates and the other deletes (DuckDB
    #17223). The cure: whoever changes rows holds this lock to the end of the transaction, and its snapshot
    must not be older than the last change. One that read first and finds a change since gets the same
    error class as DuckDB's own write-write conflict, and has to start again.

    A hold ends when ``LockHold.end`` says so, and at the latest with the life of the object: whoever is
    interrupted between two lines leaves no lock behind (see ``fiberstore.sql.holds``).

    Attributes:
        queue: The one that has the lock, then those that wait for it.
        changes: Holds so far that may have changed rows.
        is_unsettled: Nobody has said yet whether the last hold has changed rows.
    """

    def __init__(self) -> None:
        self.queue = Registry[Hold]()
        self.changes = 0
        self.is_unsettled = False

    def acquire(self) -> "LockHold":
        """Wait for the lock, first come, first served; any thread may end the hold.

        Raises:
            duckdb.TransactionException: It did not come free within ``LOCK_TIMEOUT_S``.
        """
        hold = LockHold(self)
        try:
            hold.wait(time.monotonic() + LOCK_TIMEOUT_S)
        except BaseException:
            hold.leave()
            raise
        return hold


class LockHold:
    """The right to change rows, until it ends.

    Whoever holds it may end it, and only the first time counts.
    """

    def __init__(self, lock: ChangeLock) -> None:
        self._lock = lock
        self._hold: Hold | None = lock.queue.add(Hold())
        self._place = ref(self._hold)

    def wait(self, deadline: float) -> None:
        """Wait for the lock; for ``ChangeLock.acquire``."""
        lock = self._lock
        if not lock.queue.wait(self._place, deadline):
            raise duckdb.TransactionException(
                f"another open transaction has been changing rows for {LOCK_TIMEOUT_S:g} s; end it first, or "
                "if it is your own, use it for this change too"
            )
        lock.changes += lock.is_unsettled
        lock.is_unsettled = True

    def leave(self) -> None:
        """Give up waiting; for ``ChangeLock.acquire``."""
        self._hold = None

    def end(self, *, changed: bool) -> None:
        """Let the next one change rows.

        Args:
            changed: Whether rows may have been changed; not if all was rolled back.
        """
        if self._hold is not None:
            self._lock.changes += changed
            self._lock.is_unsettled = False
            self._hold = None
