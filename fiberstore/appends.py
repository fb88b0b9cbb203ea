"""``Appends``: which writes of a database are on their way, for who reads in the order of arrival.

DuckDB before 2.0.1 showed rows of a commit on its way, of statements of a row group (122,880 rows) or more,
to snapshots that were older: rows with larger numbers (``rowid``) were there while rows with smaller ones
were missing. From 2.0.1 on a commit appends its rows and becomes visible under one lock, so the numbers are
in the order of the commits, and no snapshot has such holes. ``tests/test_duckdb.py`` watches it.
"""

import os
import re
import threading
from functools import lru_cache
from typing import ClassVar
from weakref import WeakValueDictionary

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


class Appends:
    """The writes that are on their way to one database, from all connections of this process.

    Each has a number: a write that is a transaction of its own while it runs, another while it commits.
    """

    _by_database: ClassVar[WeakValueDictionary[str, "Appends"]] = WeakValueDictionary()
    _registry_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._running: set[int] = set()
        self._begun = 0
        self._ended = 0

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

    def begin(self) -> int:
        """Note that a write begins, and return its number."""
        with self._changed:
            self._begun += 1
            self._running.add(self._begun)
            return self._begun

    def end(self, number: int) -> None:
        """Note that a write has ended, whichever way."""
        with self._changed:
            self._running.discard(number)
            self._ended += 1
            self._changed.notify_all()

    def running(self) -> tuple[set[int], int]:
        """Return the writes that are on their way, and the number of the last that began."""
        with self._changed:
            return set(self._running), self._begun

    def begun_after(self, number: int) -> set[int]:
        """Return the writes that began after that one."""
        with self._changed:
            return set(range(number + 1, self._begun + 1))

    @property
    def ended(self) -> int:
        """How many writes have ended so far."""
        return self._ended

    def wait_for_more(self, ended: int, timeout_s: float) -> None:
        """Wait until more than so many writes have ended, but not longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended > ended, timeout_s)

    def wait_for(self, numbers: set[int], timeout_s: float) -> bool:
        """Wait until these writes have ended; return whether they have in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not numbers & self._running, timeout_s)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Appends.forget_all)
