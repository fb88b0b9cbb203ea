"""Registry of the databases that this process has open, and their fate in a forked child.

DuckDB knows a file by its path: a second path of an open file (a hard link, a bind mount, another spelling on
a disk that ignores case) makes a second instance with a log of its own, and each overwrites what the other
has written. So a file that is open is known by its number, too, and opened by one path at a time.

DuckDB guards a file by a POSIX lock, with two consequences that are nobody's intention:

- The lock goes as soon as the process closes *any* descriptor of the file. So a file that is open here must
  not be opened beside DuckDB, not even to look at its first bytes.
- A forked child inherits the open database, but neither the lock nor DuckDB's threads. What it writes is lost
  or damages the parent's file. So the child gives up all it has inherited, without running any destructor of
  DuckDB, which would write a WAL checkpoint into the parent's file.
"""

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Protocol, Self, TypeVar, cast
from weakref import WeakSet, WeakValueDictionary

from fiberstore.errors import DatabaseError
from fiberstore.forks import renew_in_child
from fiberstore.sql.engine import IN_MEMORY

T = TypeVar("T")


class Handle(Protocol):
    """An open connection.

    Attributes:
        database_key: See ``database_key``.
        file_number: See ``file_number``; ``register`` sets it.
        closed: Whether it has given up the database.
    """

    database_key: str
    file_number: tuple[int, int] | None
    closed: bool

    def abandon(self) -> None:
        """Leave the database to the parent process."""


# Held from the look at a file until DuckDB has it open, and while it closes it. A thread may take it twice,
# because the garbage collector may close a connection anywhere.
opening = threading.RLock()
_let_in = threading.Condition(opening)
_lock = threading.RLock()  # of the registry; taken twice for the same reason
_handles: WeakSet[Handle] = WeakSet()
_inherited: set[str] = set()
_closed_off = Counter[str]()  # by how many each is


class PerDatabase:
    """Base of objects that all connections of this process to one database share.

    A forked child begins anew: the threads that held or waited for something do not exist there.
    """

    _kinds: ClassVar[list[type["PerDatabase"]]] = []
    _by_database: ClassVar[WeakValueDictionary[str, "PerDatabase"]]

    def __init_subclass__(cls) -> None:
        cls._by_database = WeakValueDictionary()
        cls._kinds.append(cls)

    @classmethod
    def of(cls, database: str) -> Self:
        """Return the one of a database; it lives as long as somebody refers to it."""
        key = database_key(database)
        with _lock:
            shared = cast("Self | None", cls._by_database.get(key))
            if shared is None:
                shared = cls._by_database[key] = cls()
            return shared

    @classmethod
    def forget_all(cls) -> None:
        """Forget those of every database, and of every kind."""
        for kind in cls._kinds:
            kind._by_database = WeakValueDictionary()


def database_key(database: str) -> str:
    """Return the path that all symbolic links to a database lead to."""
    return database if database.startswith(IN_MEMORY) else os.path.realpath(database)


def register(handle: Handle) -> None:
    """Note an open connection, for as long as it lives, and which file it has open."""
    number = file_number(handle.database_key)
    with _lock:
        # By the same path, DuckDB gives every connection the file that the first has opened.
        beside = (
            other for other in _handles if other.database_key == handle.database_key and not other.closed
        )
        handle.file_number = next((other.file_number for other in beside), number)
        _handles.add(handle)


def open_handles(database: str) -> set[Handle]:
    """Return the connections of this process to the database that are open, by whatever path."""
    key, number = database_key(database), file_number(database)
    with _lock:
        return {
            handle
            for handle in _handles
            if not handle.closed
            and (handle.database_key == key or (number is not None and handle.file_number == number))
        }


def is_open(database: str) -> bool:
    """Return whether this process has the database open."""
    return bool(open_handles(database))


def wait_to_open(database: str) -> None:
    """Wait until nobody has the database closed off; for who holds ``opening``.

    The caller holds it by a ``with`` of its own: a generator that did would have it until Python drops the
    generator, after an interrupt, perhaps in a thread that cannot give it back.

    Raises:
        DatabaseError: This process has the file open by another path.
    """
    key = database_key(database)
    while _closed_off[key]:
        _let_in.wait()
    others = {handle.database_key for handle in open_handles(database)} - {key}
    if others:
        raise DatabaseError(
            f"{key} is the file that this process has open as {min(others)}; by two names, DuckDB would "
            "overwrite what was written by the other. Open it by that name, or close it there first"
        )


@contextmanager
def closed_off(database: str) -> Iterator[None]:
    """Let nobody in this process open the database until the block ends; they wait."""
    key = database_key(database)
    with opening:
        _closed_off[key] += 1
    try:
        yield
    finally:
        with opening:
            _closed_off[key] -= 1
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
    """Return the device and inode of a file, which tell it from another of that name; None if missing."""
    try:
        found = os.stat(database)  # noqa: PTH116  # it opens nothing
    except OSError:  # DuckDB will say what is wrong
        return None
    return found.st_dev, found.st_ino


def is_inherited(database: str) -> bool:
    """Return whether the parent process had the database open when it forked this one."""
    return database_key(database) in _inherited


def keep_forever(value: object) -> None:
    """Keep a value from being destroyed, even when the interpreter ends."""
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
    _handles.clear()
    _closed_off.clear()
    PerDatabase.forget_all()
    _free_locks()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_hold_locks, after_in_parent=_free_locks)
# Before the engines are renewed, which are made later: they would close what is the parent's.
renew_in_child(_abandon_all, lambda abandon_all: abandon_all())
