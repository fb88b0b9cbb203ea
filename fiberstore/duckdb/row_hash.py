"""Hashes of rows that tell them apart byte by byte, whatever collation their texts have."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from fiberstore.sql.models import Json, Text


def exact(column: sa.ColumnElement[Any], of: str = "") -> str:
    """Return the expression to compare in place of a column; ``of`` stands before its name.

    By the collation NOCASE, texts that differ may be equal, and have one hash.
    """
    name = f'{of}"{column.name}"'
    return f"encode({name})" if isinstance(column.type, Text | Json) else name


def row_hash(columns: Iterable[sa.ColumnElement[Any]], of: str = "") -> str:
    """Return the expression for the hash of some columns of a row; see ``exact``."""
    return f"hash({', '.join(exact(column, of) for column in columns)})"
