"""The storage trait on PostgreSQL; install ``fiberstore[postgresql]`` for its driver, psycopg.

Names are imported when they are first used: the command line knows of PostgreSQL without its driver.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fiberstore.errors import DatabaseError

if TYPE_CHECKING:
    from fiberstore.postgresql.engine import create_engine
    from fiberstore.postgresql.storage import AsyncPostgresStorage, PostgresStorage

__all__ = ["AsyncPostgresStorage", "PostgresStorage", "check_driver", "create_engine"]


def check_driver() -> None:
    """Raise ``DatabaseError``, with what to install, if psycopg cannot be imported."""
    try:
        import_module("psycopg")
    except ImportError as error:  # also without libpq, which psycopg[binary] brings
        raise DatabaseError(
            f"PostgreSQL needs its driver, psycopg: pip install 'fiberstore[postgresql]' ({error})"
        ) from error


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = "engine" if name == "create_engine" else "storage"
        found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return found
