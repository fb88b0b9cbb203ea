"""Arrow batches in the binary format of PostgreSQL's COPY.

Followed: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". Arrow joins the bytes of
whole columns; to make them value by value takes five times as long.
"""

from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from struct import Struct

import pyarrow as pa
import pyarrow.compute as pc

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_ROWS_AT_ONCE = 8_192
_EPOCH_US = pa.scalar(946_684_800_000_000)  # PostgreSQL counts from 2000

_int16, _int32 = Struct("!h"), Struct("!i")
_BYTES = pa.large_binary()
_NOTHING = pa.scalar(b"", _BYTES)
_NULL = pa.scalar(_int32.pack(-1), _BYTES)
_JSONB_VERSION = pa.scalar(b"\x01", _BYTES)
_LENGTHS = {length: pa.scalar(_int32.pack(length), _BYTES) for length in (1, 8, 16)}
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
    return pc.if_else(column.is_valid(), values, _NULL) if column.null_count else values


def _rows(batch: pa.RecordBatch, json_columns: frozenset[str]) -> memoryview:
    pieces = [pa.scalar(_int16.pack(batch.num_columns), _BYTES)]
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        is_json = name in json_columns
        if column.null_count:
            pieces.append(fields(column, is_json=is_json))
        elif _has_one_value(column):
            pieces.append(fields(column.slice(0, 1), is_json=is_json)[0])
        else:
            pieces += _pieces(column, is_json=is_json)
    return memoryview(_joined(pieces).buffers()[2])


def _has_one_value(column: pa.Array) -> bool:
    """Tell whether all values are the same number or time, as stamps are."""
    if not (pa.types.is_timestamp(column.type) or pa.types.is_integer(column.type)):
        return False
    lowest, highest = pc.min_max(column).values()
    return bool(lowest == highest)


def _pieces(column: pa.Array, *, is_json: bool) -> list[pa.Array | pa.Scalar]:
    """Split a column into what ``fields`` joins, whatever is there for a null."""
    if isinstance(column.type, pa.UuidType):
        return [_LENGTHS[16], _of_width(16, column.storage.buffers()[1], column.offset, len(column))]
    if pa.types.is_timestamp(column.type):
        return [_LENGTHS[8], _big_endian(pc.subtract(column.view(pa.int64()), _EPOCH_US), "q")]
    if pa.types.is_boolean(column.type):
        return [_LENGTHS[1], _big_endian(column.cast(pa.int8()), "b")]
    if pa.types.is_large_string(column.type):
        lengths, texts = pc.binary_length(column), column.view(_BYTES)
        if is_json:
            return [_big_endian(pc.add(lengths, 1).cast(pa.int32()), "i"), _JSONB_VERSION, texts]
        return [_big_endian(lengths.cast(pa.int32()), "i"), texts]
    numbers = column.dictionary_encode()  # there are few config versions
    values = [_numeric(number) for number in numbers.dictionary.to_pylist()]
    return [pa.array(values, _BYTES).take(numbers.indices)]


def _joined(pieces: list[pa.Array | pa.Scalar]) -> pa.Array:
    """Join pieces to one for each row; of neighbours that are the same in all rows, one is made first."""
    merged: list[pa.Array | pa.Scalar] = []
    for piece in pieces:
        if merged and isinstance(piece, pa.Scalar) and isinstance(merged[-1], pa.Scalar):
            merged[-1] = pa.scalar(merged[-1].as_py() + piece.as_py(), _BYTES)
        else:
            merged.append(piece)
    return pc.binary_join_element_wise(*merged, _NOTHING)


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
    return _of_width(width, pa.py_buffer(swapped), 0, len(numbers))


def _of_width(width: int, values: pa.Buffer, offset: int, count: int) -> pa.Array:
    """Return values of so many bytes each, from one of them on."""
    return pa.LargeBinaryArray.from_buffers(
        _BYTES,
        count,
        [None, _every(width, max(count, _ROWS_AT_ONCE)), values.slice(offset * width, count * width)],
    )


@lru_cache(maxsize=8)
def _every(width: int, count: int) -> pa.Buffer:
    return pa.py_buffer(array("q", range(0, width * (count + 1), width)))


def _numeric(value: int) -> bytes:
    digits = []
    rest = value
    while rest:
        rest, digit = divmod(rest, _DIGIT)
        digits.append(digit)
    head = _numeric_head.pack(len(digits), len(digits) - 1, 0, 0)
    number = head + b"".join(map(_int16.pack, reversed(digits)))
    return _int32.pack(len(number)) + number
