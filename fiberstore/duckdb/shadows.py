"""Refusal of statements that let the names of the store's tables lead to other ones.

A temporary table named ``raw_logs``, or ``USE``, stays with a connection when it goes back to the pool. Calls
of the storage would write into another table from then on, and what they acknowledged would be gone with it.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import duckdb

Execute: TypeAlias = Callable[..., duckdb.DuckDBPyConnection]

_PLACE = "SELECT current_database(), current_schema()"
_TEMPORARY = (
    "SELECT if(table_type = 'VIEW', 'VIEW', 'TABLE'), table_name FROM information_schema.tables "
    "WHERE table_catalog = 'temp' AND lower(table_name) IN (SELECT unnest($1))"
)


def place(execute: Execute) -> tuple[Any, ...]:
    """Return the database and the schema in which a connection looks for tables."""
    return execute(_PLACE).fetchall()[0]


def undo_shadows(execute: Execute, home: tuple[Any, ...]) -> None:
    """Let the names of the store's tables lead to these again.

    Args:
        execute: That of a connection whose result was read.
        home: Its ``place`` when it was opened.

    Raises:
        duckdb.CatalogException: They led to others.
    """
    from fiberstore.sql.models import Base

    if place(execute) != home:
        execute(f"USE {'.'.join(map(_quoted, home))}")
        raise duckdb.CatalogException(
            f"the connection stays in {'.'.join(home)}, where calls of the storage look for its tables; name "
            "tables of other databases and schemas in full, as in other.main.raw_logs"
        )
    for kind, name in execute(_TEMPORARY, [list(Base.metadata.tables)]).fetchall():
        execute(f"DROP {kind} temp.main.{_quoted(name)}")
        raise duckdb.CatalogException(
            f"a temporary {kind.lower()} named {name} would hide the store's table from later calls, and was "
            "dropped; give it another name"
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
