"""Arrays of many values as one parameter of a statement, in PostgreSQL's binary format.

To a server, an array of many thousands is as quick as COPY into a temporary table, and unlike the table it is
nothing that Citus could not join to a distributed table. psycopg makes a Python object of each value.

Followed: ``array_recv`` and ``array_send`` of PostgreSQL, ``src/backend/utils/adt/arrayfuncs.c``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from fiberstore.sql.arrow import joined_uuids
from fiberstore.sql.prepared import compiled, connection_of

if TYPE_CHECKING:
    import pyarrow as pa

    from fiberstore.postgresql.connection import PostgresConnection

# Bytes of one statement: that suffice, and that a server can just take.
MOST_BYTES, LARGEST_BYTES = 2**28, 1_000_000_000
_head = Struct("!iiIii")  # dimensions, whether there are nulls, type, length, first index
_empty = Struct("!iiI")
_TYPE_NUMBERS = {
    "boolean": 16,
    "text": 25,
    "timestamptz": 1184,
    "numeric": 1700,
    "uuid": 2950,
    "jsonb": 3802,
}


class BinaryArray(bytes):
    """An array as the server takes and gives it; the statement has to say its type by a cast."""


class _BinaryArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: BinaryArray) -> BinaryArray:
        return obj


def register(context: AdaptContext) -> None:
    """Let the cursors of a connection take such arrays."""
    if context.adapters is not None:
        context.adapters.register_dumper(BinaryArray, _BinaryArrayDumper)


def array_of(column: "pa.Array", type_: str) -> BinaryArray:
    """Return a column as an array.

    Args:
        column: Of a type that ``copy_format.encoded`` takes.
        type_: Name of the type of its values.
    """
    from fiberstore.postgresql.copy_format import fields

    number = _TYPE_NUMBERS[type_]
    if not len(column):
        return BinaryArray(_empty.pack(0, 0, number))
    head = _head.pack(1, column.null_count > 0, number, len(column), 1)
    return BinaryArray(head + b"".join(fields(column, is_json=type_ == "jsonb")))


@contextmanager
def keep(session: Session, rows: sa.Select[Any]) -> Iterator[sa.FromClause]:
    """Keep rows of ids; see ``BackendSupport.keep``."""
    selected = rows.subquery()
    arrays = sa.select(
        *(
            sa.func.array_send(
                sa.func.coalesce(sa.func.array_agg(column), sa.cast(sa.literal_column("'{}'"), _IDS))
            )
            for column in selected.c
        )
    )
    connection = cast("PostgresConnection", connection_of(session))
    columns = connection.fetch_once(*compiled(session, arrays))[0]
    yield _table([str(column.key) for column in selected.c], list(map(BinaryArray, columns)))


@contextmanager
def given(_session: Session, name: str, ids: bytes) -> Iterator[sa.FromClause]:
    """Give ids; see ``BackendSupport.given``."""
    yield _table([name], [array_of(joined_uuids(ids), "uuid")])


_IDS: sa.types.TypeEngine[Any] = ARRAY(sa.Uuid)


def _table(names: list[str], arrays: list[BinaryArray]) -> sa.FromClause:
    """Return what has columns of ids."""
    values = [sa.cast(sa.bindparam(None, array, type_=_IDS, unique=True), _IDS) for array in arrays]
    columns = [sa.column(name, sa.Uuid) for name in names]
    return sa.func.unnest(*values).table_valued(*columns, name="kept").render_derived()
