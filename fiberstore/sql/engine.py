"""Settings and handling of forks that the engines of every database share."""

import os
import re
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from fiberstore.forks import renew_in_child

DEFAULT_POOL_SIZE = 8
POOL_TIMEOUT_S = 30.0
IN_MEMORY = ":memory:"
FORKED = (
    "the database was opened before this process was forked, and is the parent's; start processes by 'spawn' "
    "or fork first, and open the storage in one process only"
)

alembic_loaders: list[Callable[[], object]] = []
"""Functions that tell Alembic of an engine it does not know, for ``sql.migrate`` to call once it is there."""

# Also with mistakes in it: what is taken for a file is shown in errors, and its password would be.
_MEANT_AS_URL = re.compile(r"postgres(ql)?(\+\w*)?(:|//)|(?!.*://).*\b(dbname|password) *=", re.IGNORECASE)


def is_postgresql(target: str | os.PathLike[str]) -> bool:
    """Return whether a target is the URL of a PostgreSQL database, rather than a DuckDB file or its URL."""
    return _MEANT_AS_URL.match(os.fsdecode(target)) is not None


def made_url(text: str) -> URL | None:
    """Return the URL of a text, or None: the error of SQLAlchemy may quote a part of a password."""
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        return None


def leave_pool_to_parent(engine: sa.Engine) -> None:
    """Let a forked child begin with an empty pool, without the parent's connections and locks."""
    renew_in_child(engine, lambda inherited: inherited.dispose(close=False))
