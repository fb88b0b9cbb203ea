"""Ids that are kept for a block in arrays, which go along with each statement that reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from psycopg import errors
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from fiberstore.errors import DatabaseError
from fiberstore.postgresql.arrays import LARGEST_BYTES, BinaryArray, array_of
from fiberstore.sql.arrow import Columns
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.sql.support import KeptIds
from fiberstore.sql.translate import first_line

if TYPE_CHECKING:
    from fiberstore.postgresql.connection import PostgresConnection

_IDS: sa.types.TypeEngine[Any] = ARRAY(sa.Uuid)
_TOO_MANY = (
    "one call takes at most 50 million ids on PostgreSQL; make several calls, each with a condition on the "
    "time, or delete by prune(), which goes in steps"
)
_NO_IDS = sa.cast(sa.literal_column("'{}'"), _IDS)


@contextmanager
def keep(session: Session, rows: sa.Select[Any]) -> Iterator[KeptIds]:
    """Keep rows of ids; see ``BackendSupport.keep``."""
    selected = rows.subquery().c
    arrays = (sa.func.array_send(sa.func.coalesce(sa.func.array_agg(column), _NO_IDS)) for column in selected)
    connection = cast("PostgresConnection", connection_of(session))
    statement = compiled(session, sa.select(*arrays))
    try:
        (columns,) = connection.fetch_once(*statement)
    except (errors.ProgramLimitExceeded, errors.OutOfMemory, errors.InternalError_) as error:
        raise DatabaseError(f"{first_line(error)}: {_TOO_MANY}") from error
    size = sum(map(len, columns))
    if size > LARGEST_BYTES:
        raise DatabaseError(f"the ids of the rows take {size:,} bytes: {_TOO_MANY}")
    yield _ids_of(dict(zip(selected.keys(), map(BinaryArray, columns), strict=True)))


@contextmanager
def given(_session: Session, columns: Columns) -> Iterator[KeptIds]:
    """Give ids; see ``BackendSupport.given``."""
    yield _ids_of({name: array_of(column, "uuid") for name, column in columns.items()})


def _ids_of(arrays: dict[str, BinaryArray]) -> KeptIds:
    """Return the arrays as columns of a table."""
    values = [sa.cast(sa.bindparam(None, array, type_=_IDS, unique=True), _IDS) for array in arrays.values()]
    columns = (sa.column(name, sa.Uuid) for name in arrays)
    rows = sa.func.unnest(*values).table_valued(*columns, name="kept").render_derived()
    # Of an array, the planner knows how many values it has; of its rows, it takes 200 to be different.
    return KeptIds(rows, lambda column: column == sa.any_(values[0]))
