"""Which databases this process has open, and what becomes of them in a forked child.

DuckDB guards a file by a POSIX lock, with two consequences that are nobody's intention:

- The lock goes as soon as the process closes *any* descriptor of the file. So a file that is open here must
  not be opened beside DuckDB, not even to look at its first bytes.
- A forked child inherits the open database, but neither the lock nor DuckDB's threads. What it writes is lost
  or damages the parent's file. So the child gives up all it has inherited, without running any destructor of
  DuckDB, which would write a checkpoint into the parent's file.
"""

import ctypes
import os
import threading
from typing import Protocol
from weakref import WeakSet

IN_MEMORY = ":memory:"


class Handle(Protocol):
    """An open connection."""

    database_key: str
    closed: bool

    def abandon(self) -> None:
        """Leave the database to the parent process."""


# Held from the look at a file until DuckDB has it open, and while it closes it. A thread may take it twice,
# because the garbage collector may close a connection anywhere.
opening = threading.RLock()
_lock = threading.Lock()
_handles: WeakSet[Handle] = WeakSet()
_inherited: set[str] = set()


def database_key(database: str) -> str:
    """Return what all names of one database have in common."""
    return database if database.startswith(IN_MEMORY) else os.path.realpath(database)


def register(handle: Handle) -> None:
    """Note an open connection, for as long as it lives."""
    with _lock:
        _handles.add(handle)


def is_open(database: str) -> bool:
    """Tell whether this process has the database open."""
    key = database_key(database)
    with _lock:
        return any(handle.database_key == key and not handle.closed for handle in _handles)


def is_inherited(database: str) -> bool:
    """Tell whether the parent process had the database open when it forked this one."""
    return database_key(database) in _inherited


def keep_forever(value: object) -> None:
    """See that the value is never destroyed, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _hold_locks() -> None:
    opening.acquire()
    _lock.acquire()


def _free_locks() -> None:
    _lock.release()
    opening.release()


def _abandon_all() -> None:
    for handle in list(_handles):
        if not handle.closed:
            _inherited.add(handle.database_key)
            handle.abandon()
    _free_locks()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_hold_locks, after_in_parent=_free_locks, after_in_child=_abandon_all)
