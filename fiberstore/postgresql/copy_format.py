"""Arrow batches in the binary format of PostgreSQL's COPY.

Followed: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". psycopg's ``write_row``
takes a row of Python's objects; from Arrow's columns it is faster to make the bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from struct import Struct
from typing import Any

import pyarrow as pa

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_ROWS_AT_ONCE = 4_096
_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000
_JSONB_VERSION = b"\x01"

_int16, _int32 = Struct("!h"), Struct("!i")
_time, _boolean = Struct("!iq"), Struct("!i?")
_numeric_head = Struct("!hhhh")
_DIGIT = 10_000  # of a number, in base 10,000


def encoded(batch: pa.RecordBatch, json_columns: Iterable[str]) -> Iterator[bytes]:
    """Encode a batch for a binary COPY, in parts.

    Args:
        batch: Columns of UUIDs, times in µs, texts, unsigned integers and booleans.
        json_columns: Names of those text columns that are JSONB in the table.
    """
    json_names = set(json_columns)
    count = repeat(_int16.pack(batch.num_columns))
    yield HEADER
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        part = batch.slice(start, _ROWS_AT_ONCE)
        values = [
            fields(column, is_json=name in json_names)
            for name, column in zip(part.schema.names, part.columns, strict=True)
        ]
        yield b"".join(chain.from_iterable(zip(count, *values, strict=False)))
    yield TRAILER


def fields(column: pa.Array, *, is_json: bool) -> Sequence[bytes]:
    """Return the values of a column, each with its length before it."""
    values, encode = _python_values(column), _encoder(column.type, is_json=is_json)
    if not column.null_count:
        return [encode(value) for value in values]
    return [_NULL if value is None else encode(value) for value in values]


def _python_values(column: pa.Array) -> list[Any]:
    if isinstance(column.type, pa.UuidType):
        column = column.storage
    elif pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values


def _encoder(type_: pa.DataType, *, is_json: bool) -> Callable[[Any], bytes]:
    if is_json:
        return _jsonb
    if isinstance(type_, pa.UuidType) or pa.types.is_large_string(type_):
        return _bytes
    if pa.types.is_timestamp(type_):
        return _timestamp
    if pa.types.is_boolean(type_):
        return _bool
    return _numeric


def _bytes(value: bytes) -> bytes:
    return _int32.pack(len(value)) + value


def _jsonb(value: bytes) -> bytes:
    return _int32.pack(len(value) + 1) + _JSONB_VERSION + value


def _timestamp(us: int) -> bytes:
    return _time.pack(8, us - _EPOCH_US)


def _bool(value: bool) -> bytes:
    return _boolean.pack(1, value)


@lru_cache
def _numeric(value: int) -> bytes:
    """Return an integer, made once: there are few config versions."""
    digits = []
    rest = value
    while rest:
        rest, digit = divmod(rest, _DIGIT)
        digits.append(digit)
    head = _numeric_head.pack(len(digits), len(digits) - 1, 0, 0)
    return _bytes(head + b"".join(map(_int16.pack, reversed(digits))))
