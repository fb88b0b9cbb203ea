"""``WriteSignal``: tells tails that a write of this process has ended.

Tails and pages go by the order in which rows arrive, ``rowid``. From DuckDB 2.0.1 on, a commit appends its
rows and becomes visible under one lock, so a snapshot that sees a row sees all rows before it. Earlier
releases showed rows of a large commit that was on its way; ``tests/duckdb/test_duckdb.py`` watches for it.
"""

import os
import re
import threading
from functools import lru_cache
from queue import SimpleQueue
from typing import ClassVar
from weakref import WeakValueDictionary

from fiberstore.duckdb.fork_guard import database_key
from fiberstore.sql.holds import Registry

_STATEMENTS_KEPT = 256
_LONGEST_KEPT_CHARS = 10_000
_APPENDS = re.compile(r"\b(insert|copy|merge|update|execute|import)\b", re.IGNORECASE)


def appends_rows(sql: str) -> bool:
    """Return whether a statement may append rows; an update of an indexed column does. It goes by words."""
    return _appends_rows(sql) if len(sql) <= _LONGEST_KEPT_CHARS else _APPENDS.search(sql) is not None


@lru_cache(maxsize=_STATEMENTS_KEPT)
def _appends_rows(sql: str) -> bool:
    return _APPENDS.search(sql) is not None


class WriteSignal:
    """The ends of writes to one database, from all connections of this process."""

    _by_database: ClassVar[WeakValueDictionary[str, "WriteSignal"]] = WeakValueDictionary()
    _registry_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._listeners = Registry[SimpleQueue[None]]()

    @classmethod
    def of(cls, database: str) -> "WriteSignal":
        """Return the signal that all connections of this process to one database share."""
        key = database_key(database)
        with cls._registry_lock:
            signal = cls._by_database.get(key)
            if signal is None:
                signal = cls._by_database[key] = WriteSignal()
            return signal

    @classmethod
    def forget_all(cls) -> None:
        """Begin anew in a forked child, where the threads that write do not exist."""
        cls._by_database = WeakValueDictionary()
        cls._registry_lock = threading.Lock()

    def listen(self) -> SimpleQueue[None]:
        """Return a queue that gets an item when a write ends; after an interrupt it may miss one."""
        return self._listeners.add(SimpleQueue())

    def note_end(self) -> None:
        """Notify all listeners that a write has ended, committed or not."""
        for listener in self._listeners.alive():
            bell = listener()
            if bell is not None and bell.empty():
                bell.put(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WriteSignal.forget_all)
