"""``ChangeLock``: transactions that change rows of a database run one at a time."""

import logging
import time
from weakref import ref

import duckdb

from fiberstore.duckdb.fork_guard import PerDatabase
from fiberstore.sql.holds import Hold, Registry, wait_for_all

_logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 10.0
# How long appends are kept out for the sake of one that has begun before; less than the second of a call.
APPENDS_TIMEOUT_S = 0.5
# How long an append waits for one that writes a table anew: some 20 million rows.
REWRITE_TIMEOUT_S = 60.0


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
        appends: Transactions that have appended rows, without the lock.
        keeping_out: The hold that lets no transaction begin to append.
        changes: Holds so far that may have changed rows.
        is_unsettled: Nobody has said yet whether the last hold has changed rows.
    """

    def __init__(self) -> None:
        self.queue = Registry[Hold]()
        self.appends = Registry[Hold]()
        self.keeping_out = Registry[Hold]()
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

    def begin_append(self) -> Hold:
        """Note a transaction that is about to append, for the life of what is returned.

        It waits as long as appends are kept out, which a call of ours does for the time of one transaction.

        Raises:
            duckdb.TransactionException: That took ``REWRITE_TIMEOUT_S``.
        """
        deadline = time.monotonic() + REWRITE_TIMEOUT_S
        while True:
            append = self.appends.add(Hold())
            if not (keeping_out := self.keeping_out.alive()):
                return append
            del append
            if not wait_for_all(keeping_out, deadline):
                raise duckdb.TransactionException(
                    f"another call has been deleting many rows for {REWRITE_TIMEOUT_S:g} s; wait for its end"
                )


class LockHold:
    """The right to change rows, until it ends.

    Whoever holds it may end it, and only the first time counts.
    """

    def __init__(self, lock: ChangeLock) -> None:
        self._lock = lock
        self._hold: Hold | None = lock.queue.add(Hold())
        self._place = ref(self._hold)
        self._keeps_out: Hold | None = None

    @property
    def is_alone(self) -> bool:
        """True if nobody appends until this hold ends."""
        return self._keeps_out is not None

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

    def keep_appends_out(self) -> None:
        """Let nobody append until this hold ends; it has to be one that has the lock.

        Appends continue if a transaction that has appended has not ended in ``APPENDS_TIMEOUT_S``: it may
        last for minutes.
        """
        self._keeps_out = self._lock.keeping_out.add(Hold())
        if not wait_for_all(self._lock.appends.alive(), time.monotonic() + APPENDS_TIMEOUT_S):
            self._keeps_out = None
            _logger.warning(
                "a transaction that appends has been open for %g s; many rows are deleted one by one beside "
                "it, and others may wait for the commit",
                APPENDS_TIMEOUT_S,
            )

    def end(self, *, changed: bool) -> None:
        """Let the next one change rows, and all append.

        Args:
            changed: Whether rows may have been changed; not if all was rolled back.
        """
        if self._hold is not None:
            self._lock.changes += changed
            self._lock.is_unsettled = False
            self._keeps_out = None
            self._hold = None
