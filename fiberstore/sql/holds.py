"""``Hold``: ownership that ends with its owner, so that no Ctrl-C leaves anything owned by nobody.

Python may raise ``KeyboardInterrupt`` after any call, also after the one that has taken a lock and before the
name is bound by which it would be released. So ownership is not the state of a lock here, but the life of an
object: a ``Hold`` is registered before anybody waits for it, and ends when the last reference to it goes,
which is one step of the interpreter. All that follows happens in C, in the callbacks of weak references,
where no signal is handled and no lock is needed. The traceback of an interrupt refers to the names of its
functions; what it owns by them, it owns until it is dropped.
"""

import threading
import time
from collections.abc import Collection, Iterable
from itertools import takewhile
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import ref

T = TypeVar("T")


class Hold:
    """Ownership of a place in a ``Registry``, while something refers to it."""

    __slots__ = ("__weakref__",)


class Registry(Generic[T]):
    """Objects in the order in which they were added, until each ends with its last reference."""

    def __init__(self) -> None:
        self._refs: dict[ref[T], None] = {}

    def add(self, member: T) -> T:
        """Add an object as the newest, and return it."""
        self._refs[ref(member, self._refs.pop)] = None
        return member

    def alive(self) -> list[ref[T]]:
        """Return the objects that are alive, the oldest first."""
        return [member for member in list(self._refs) if member() is not None]

    def wait(self, member: ref[T], deadline: float, *, places: int = 1) -> bool:
        """Wait until a member is one of the oldest so many; return whether it is, by the deadline.

        Args:
            member: A weak reference, or the traceback of an interrupted wait would keep the member alive.
            deadline: By ``time.monotonic``; may be ``math.inf``.
            places: How many members may own at once what the registry is for.
        """
        while len(older := list(takewhile(lambda other: other != member, self.alive()))) >= places:
            if not wait_for_one(older, deadline):
                return False
        return True


def wait_for_all(members: Iterable[ref[Any]], deadline: float) -> bool:
    """Wait until each of these objects is gone; return whether they are, by the deadline."""
    return all(wait_for_one([member], deadline) for member in members)


def wait_for_one(members: Collection[ref[Any]], deadline: float) -> bool:
    """Wait until one of these objects is gone; return whether it is, by the deadline."""
    gone: SimpleQueue[object] = SimpleQueue()
    try:
        # No name is bound to the objects, see ``Registry.wait``.
        watching = [ref(member(), gone.put) for member in members]
    except TypeError:  # there is no reference to None: one is gone already
        return True
    try:
        gone.get(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
    except Empty:
        return False
    finally:
        del watching
    return True
