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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar
from weakref import WeakSet

IN_MEMORY = ":memory:"
T = TypeVar("T")


class Handle(Protocol):
    """An open connection."""

    database_key: str
    closed: bool

    def abandon(self) -> None:
        """Leave the database to the parent process."""


# Held from the look at a file until DuckDB has it open, and while it closes it. A thread may take it twice,
# because the garbage collector may close a connection anywhere.
opening = threading.RLock()
_let_in = threading.Condition(opening)
_lock = threading.Lock()
_handles: WeakSet[Handle] = WeakSet()
_inherited: set[str] = set()
_closed_off: set[str] = set()


def database_key(database: str) -> str:
    """Return what all names of one database have in common."""
    return database if database.startswith(IN_MEMORY) else os.path.realpath(database)


def register(handle: Handle) -> None:
    """Note an open connection, for as long as it lives."""
    with _lock:
        _handles.add(handle)


def open_handles(database: str) -> set[Handle]:
    """Return the connections of this process to the database that are open."""
    key = database_key(database)
    with _lock:
        return {handle for handle in _handles if handle.database_key == key and not handle.closed}


def is_open(database: str) -> bool:
    """Tell whether this process has the database open."""
    return bool(open_handles(database))


def wait_to_open(database: str) -> None:
    """Wait until nobody has the database closed off; for who holds ``opening``.

    The caller holds it by a ``with`` of its own: a generator that did would have it until Python drops the
    generator, after an interrupt, perhaps in a thread that cannot give it back.
    """
    key = database_key(database)
    while key in _closed_off:
        _let_in.wait()


@contextmanager
def closed_off(database: str) -> Iterator[None]:
    """Let nobody in this process open the database until the block ends; they wait."""
    key = database_key(database)
    try:
        with opening:
            _closed_off.add(key)
        yield
    finally:
        with opening:
            _closed_off.discard(key)
            _let_in.notify_all()


def opened(database: str, connect: Callable[[], T], close: Callable[[T], None]) -> T:
    """Open a database, again if a compaction in another process has replaced the file meanwhile.

    Otherwise this process might hold the lock of the file that was there before, which has no name any more,
    and write to it. While another process compacts, it holds that lock; so one look afterwards is enough.
    """
    while True:
        before = file_number(database)
        try:
            found = connect()
        except Exception:
            if before is None or before == file_number(database):
                raise
        else:
            if before is None or before == file_number(database):
                return found
            close(found)


def file_number(database: str) -> tuple[int, int] | None:
    """Return what tells a file from another of the same name; None if there is none."""
    try:
        found = os.stat(database)  # noqa: PTH116  # it opens nothing
    except OSError:  # DuckDB will say what is wrong
        return None
    return found.st_dev, found.st_ino


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
    _closed_off.clear()
    _free_locks()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_hold_locks, after_in_parent=_free_locks, after_in_child=_abandon_all)
