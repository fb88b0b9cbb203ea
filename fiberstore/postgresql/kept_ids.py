"""Ids that are kept for a block in arrays, which go along with each statement that reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from fiberstore.postgresql.arrays import BinaryArray, array_of
from fiberstore.sql.arrow import Columns
from fiberstore.sql.prepared import compiled, connection_of

if TYPE_CHECKING:
    from fiberstore.postgresql.connection import PostgresConnection

_IDS: sa.types.TypeEngine[Any] = ARRAY(sa.Uuid)
_NO_IDS = sa.cast(sa.literal_column("'{}'"), _IDS)


@contextmanager
def keep(session: Session, rows: sa.Select[Any]) -> Iterator[sa.FromClause]:
    """Keep rows of ids; see ``BackendSupport.keep``."""
    selected = rows.subquery().c
    arrays = (sa.func.array_send(sa.func.coalesce(sa.func.array_agg(column), _NO_IDS)) for column in selected)
    connection = cast("PostgresConnection", connection_of(session))
    (columns,) = connection.fetch_once(*compiled(session, sa.select(*arrays)))
    yield _table(dict(zip(selected.keys(), map(BinaryArray, columns), strict=True)))


@contextmanager
def given(_session: Session, columns: Columns) -> Iterator[sa.FromClause]:
    """Give ids; see ``BackendSupport.given``."""
    yield _table({name: array_of(column, "uuid") for name, column in columns.items()})


def _table(arrays: dict[str, BinaryArray]) -> sa.FromClause:
    """Return the arrays as columns of a table."""
    values = (sa.cast(sa.bindparam(None, array, type_=_IDS, unique=True), _IDS) for array in arrays.values())
    columns = (sa.column(name, sa.Uuid) for name in arrays)
    return sa.func.unnest(*values).table_valued(*columns, name="kept").render_derived()
