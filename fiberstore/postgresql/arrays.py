"""Arrays of many values as one parameter of a statement, in PostgreSQL's binary format.

To a server, an array of many thousands is as quick as COPY into a temporary table, and unlike the table it is
nothing that Citus could not join to a distributed table. psycopg makes a Python object of each value.

Followed: ``array_recv`` and ``array_send`` of PostgreSQL, ``src/backend/utils/adt/arrayfuncs.c``.
"""

from struct import Struct
from typing import TYPE_CHECKING

from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of one statement: that suffice, for a server takes up to eight times as much memory, and that it can
# just take.
MOST_BYTES, LARGEST_BYTES = 2**24, 1_000_000_000
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
    return BinaryArray(head + fields(column, is_json=type_ == "jsonb").buffers()[2])
