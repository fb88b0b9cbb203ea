"""``Appends``: which writes of a database are on their way, for who reads in the order of arrival.

DuckDB before 2.0.1 showed rows of a commit on its way, of statements of a row group (122,880 rows) or more,
to snapshots that were older: rows with larger numbers (``rowid``) were there while rows with smaller ones
were missing. From 2.0.1 on a commit appends its rows and becomes visible under one lock, so the numbers are
in the order of the commits, and no snapshot has such holes. ``tests/test_duckdb.py`` watches it.
"""

import os
import re
import threading
import time
from collections.abc import Iterable
from functools import lru_cache
from queue import SimpleQueue
from typing import ClassVar
from weakref import WeakValueDictionary, ref

from fiberstore.holds import Hold, Registry, wait_for_all
from fiberstore.process import database_key

_STATEMENTS_KEPT = 256
_LONGEST_KEPT_CHARS = 10_000
_APPENDS = re.compile(r"\b(insert|copy|merge|update|execute|import)\b", re.IGNORECASE)


def appends_rows(sql: str) -> bool:
    """Tell whether a statement may append rows; an update of an indexed column does. It goes by words."""
    return _appends_rows(sql) if len(sql) <= _LONGEST_KEPT_CHARS else _APPENDS.search(sql) is not None


@lru_cache(maxsize=_STATEMENTS_KEPT)
def _appends_rows(sql: str) -> bool:
    return _APPENDS.search(sql) is not None


class Write:
    """A write that is on its way, until it is ended or dropped."""

    def __init__(self, writes: Registry[Hold]) -> None:
        self.hold: Hold | None = writes.add(Hold())


class Appends:
    """The writes that are on their way to one database, from all connections of this process.

    A write that is a transaction of its own is on its way while it runs, another while it commits. It is so
    no longer than its ``Write`` lives, whatever interrupts it (see ``fiberstore.holds``).
    """

    _by_database: ClassVar[WeakValueDictionary[str, "Appends"]] = WeakValueDictionary()
    _registry_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._writes = Registry[Hold]()
        self._newest: ref[Hold] | None = None
        self._listeners = Registry[SimpleQueue[None]]()

    @classmethod
    def of(cls, database: str) -> "Appends":
        """Return what all connections of this process to one database share."""
        key = database_key(database)
        with cls._registry_lock:
            appends = cls._by_database.get(key)
            if appends is None:
                appends = cls._by_database[key] = Appends()
            return appends

    @classmethod
    def forget_all(cls) -> None:
        """Begin anew in a forked child, where the threads that write do not exist."""
        cls._by_database = WeakValueDictionary()
        cls._registry_lock = threading.Lock()

    def begin(self) -> Write:
        """Note that a write begins, before it does."""
        write = Write(self._writes)
        if write.hold is not None:
            self._newest = ref(write.hold)
        return write

    def end(self, write: Write) -> None:
        """Note that a write has ended, whichever way."""
        write.hold = None
        for listener in self._listeners.alive():
            bell = listener()
            if bell is not None and bell.empty():
                bell.put(None)

    def running(self) -> list[ref[Hold]]:
        """Return the writes that are on their way."""
        return self._writes.alive()

    @property
    def newest(self) -> ref[Hold] | None:
        """The last write that began, ended or not."""
        return self._newest

    def begun_after(self, newest: ref[Hold] | None) -> list[ref[Hold]]:
        """Return writes that began since that one was the newest, ended or not; none if none did."""
        return [] if self._newest is newest or self._newest is None else [self._newest, *self.running()]

    def listen(self) -> SimpleQueue[None]:
        """Return a queue that gets something when a write ends; after an interrupt it may miss one."""
        return self._listeners.add(SimpleQueue())

    def wait_for(self, writes: Iterable[ref[Hold]], timeout_s: float) -> bool:
        """Wait until these writes have ended; return whether they have in time."""
        return wait_for_all(writes, time.monotonic() + timeout_s)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Appends.forget_all)
