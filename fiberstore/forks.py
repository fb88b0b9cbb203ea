"""Renewal, in a forked child, of objects that a fork leaves unusable: locks whose thread is not there."""

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_renewals: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()


def renew_in_child(owner: T, renew: Callable[[T], object]) -> None:
    """Call ``renew(owner)`` in every child that this process forks while ``owner`` lives.

    Args:
        owner: What to renew; it is not kept alive.
        renew: A function that does not refer to it.
    """
    _renewals[owner] = renew


def _renew_all() -> None:
    for owner, renew in list(_renewals.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_all)
