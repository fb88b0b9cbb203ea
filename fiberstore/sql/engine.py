"""Settings and handling of forks that the engines of every database share."""

import os
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DEFAULT_POOL_SIZE = 8
POOL_TIMEOUT_S = 30.0
IN_MEMORY = ":memory:"
FORKED = (
    "the database was opened before this process was forked, and is the parent's; start processes by 'spawn' "
    "or fork first, and open the storage in one process only"
)

_engines: WeakSet[sa.Engine] = WeakSet()


def made_url(text: str) -> URL | None:
    """Return the URL of a text, or None: the error of SQLAlchemy may quote a part of a password."""
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        return None


def leave_pool_to_parent(engine: sa.Engine) -> None:
    """Let a forked child begin with an empty pool, without the parent's connections and locks."""
    _engines.add(engine)


def _empty_pools() -> None:
    for engine in list(_engines):
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_empty_pools)
