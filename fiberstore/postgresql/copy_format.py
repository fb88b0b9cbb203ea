"""Arrow batches in the binary format of PostgreSQL's COPY.

Followed: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". Arrow joins the bytes of
whole columns; to make them value by value takes five times as long.
"""

from array import array
from collections.abc import Iterable, Iterator
from struct import Struct

import pyarrow as pa
import pyarrow.compute as pc

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_ROWS_AT_ONCE = 4_096
_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000
_JSONB_VERSION = b"\x01"
_BYTES = pa.large_binary()

_int16, _int32 = Struct("!h"), Struct("!i")
_numeric_head = Struct("!hhhh")
_DIGIT = 10_000  # of a number, in base 10,000


def encoded(batches: Iterable[pa.RecordBatch], json_columns: frozenset[str]) -> Iterator[bytes | memoryview]:
    """Encode batches for a binary COPY, in parts.

    Args:
        batches: Columns of UUIDs, times in µs, texts, unsigned integers and booleans.
        json_columns: Names of those text columns that are JSONB in the table.
    """
    yield HEADER
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            yield _rows(batch.slice(start, _ROWS_AT_ONCE), json_columns)
    yield TRAILER


def fields(column: pa.Array, *, is_json: bool) -> pa.Array:
    """Return the bytes of the values of a column, each with its length before it."""
    values = _joined(_pieces(column, is_json=is_json))
    return pc.if_else(column.is_valid(), values, _same(_NULL)) if column.null_count else values


def _rows(batch: pa.RecordBatch, json_columns: frozenset[str]) -> memoryview:
    pieces = [_same(_int16.pack(batch.num_columns))]
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        is_json = name in json_columns
        pieces += [fields(column, is_json=is_json)] if column.null_count else _pieces(column, is_json=is_json)
    return memoryview(_joined(pieces).buffers()[2])


def _pieces(column: pa.Array, *, is_json: bool) -> list[pa.Array | pa.Scalar]:
    """Split a column into what ``fields`` joins, whatever is there for a null."""
    if isinstance(column.type, pa.UuidType):
        return [_same(_int32.pack(16)), column.storage.cast(_BYTES)]
    if pa.types.is_timestamp(column.type):
        return [_same(_int32.pack(8)), _big_endian(pc.subtract(column.view(pa.int64()), _EPOCH_US), "q")]
    if pa.types.is_boolean(column.type):
        return [_same(_int32.pack(1)), _big_endian(column.cast(pa.int8()), "b")]
    if pa.types.is_large_string(column.type):
        version = _JSONB_VERSION if is_json else b""
        lengths = pc.add(pc.binary_length(column), len(version)).cast(pa.int32())
        return [_big_endian(lengths, "i"), _same(version), column.view(_BYTES)]
    numbers = column.dictionary_encode()  # there are few config versions
    values = [_numeric(number) for number in numbers.dictionary.to_pylist()]
    return [pa.array(values, _BYTES).take(numbers.indices)]


def _joined(pieces: list[pa.Array | pa.Scalar]) -> pa.Array:
    return pc.binary_join_element_wise(*pieces, _same(b""))


def _same(value: bytes) -> pa.Scalar:
    return pa.scalar(value, _BYTES)


def _big_endian(numbers: pa.Array, code: str) -> pa.Array:
    """Return the bytes of signed integers, whatever is there for a null.

    Args:
        numbers: The integers.
        code: Their type, as ``array`` names it.
    """
    width = array(code).itemsize
    begin = numbers.offset * width
    swapped = array(code, memoryview(numbers.buffers()[1])[begin : begin + len(numbers) * width].tobytes())
    swapped.byteswap()
    buffers = [None, pa.py_buffer(swapped)]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(numbers), buffers).cast(_BYTES)


def _numeric(value: int) -> bytes:
    digits = []
    rest = value
    while rest:
        rest, digit = divmod(rest, _DIGIT)
        digits.append(digit)
    head = _numeric_head.pack(len(digits), len(digits) - 1, 0, 0)
    number = head + b"".join(map(_int16.pack, reversed(digits)))
    return _int32.pack(len(number)) + number
