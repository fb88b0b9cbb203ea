"""Arrow batches: columns of values, and the statements that read them.

Records may have skipped their validation (``model_copy`` and ``model_construct`` do), so values are checked:
all at once, and one by one only if that fails, for the error that names the value. SQL that reads a batch is
text, because a batch is no table to SQLAlchemy; it names our own columns, and holds no values.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.orm import Session

from fiberstore.checks import as_utc, check_config_version, check_id, check_text
from fiberstore.json_text import dump_json
from fiberstore.records import EPOCH, to_epoch_us
from fiberstore.sql.connection import Row
from fiberstore.sql.models import Json, Text, Timestamp, UnsignedBigInt
from fiberstore.sql.prepared import connection_of, expire

if TYPE_CHECKING:
    import pyarrow as pa  # takes longer to import than all the rest, so each function that needs it does

Columns: TypeAlias = "dict[str, pa.Array]"

_FIRST_US = to_epoch_us(datetime.min.replace(tzinfo=UTC))
_LAST_US = to_epoch_us(datetime.max.replace(tzinfo=UTC))


def insert_new(session: Session, table: str, columns: Columns) -> int:
    """Insert the rows of a batch without equal keys whose key is new. Return how many there were."""
    return insert_as_made(session, table, [columns], lambda: columns)


def insert_as_made(
    session: Session, table: str, parts: Iterable[Columns], distinct: Callable[[], Columns]
) -> int:
    """Insert the rows whose key is new, the first of equal keys. Return how many there were.

    That all keys are new and different, as most often, is found out by trying, where that is faster.

    Args:
        session: The session.
        table: Where.
        parts: All rows, which may be inserted while they are made.
        distinct: Makes one batch of the rows without equal keys, if the parts were not taken.
    """
    connection = connection_of(session)
    inserted = connection.insert_as_made(table, map(batch_of, parts))
    if inserted is None:
        inserted = connection.insert_new(table, batch_of(distinct()))
    expire(session)
    return inserted


def write_with_batch(session: Session, sql: str, columns: Columns) -> int:
    """Run a statement that writes and reads a batch. Return how many rows it has written."""
    written = connection_of(session).write_with_batch(sql, batch_of(columns))
    expire(session)
    return written


def write_each(session: Session, sql: str, columns: Columns) -> int:
    """Do the same with a statement that does each row of the batch by itself."""
    written = connection_of(session).write_each(sql, batch_of(columns))
    expire(session)
    return written


def fetch_with_batch(session: Session, sql: str, columns: Columns) -> list[Row]:
    """Return the rows of a query that reads a batch."""
    return connection_of(session).fetch_with_batch(sql, batch_of(columns))


def batch_of(columns: Columns) -> "pa.RecordBatch":
    """Return columns as a batch."""
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def values_of(records: Iterable[object], field: str) -> list[Any]:
    """Return one field of each record."""
    try:
        return list(map(attrgetter(field), records))
    except AttributeError as error:
        raise TypeError(f"a record has no {field}; make it with all its fields") from error


def integers(ids: Collection[UUID]) -> list[int]:
    """Return the 128 bits of each id: unlike the ids, they are compared without running any Python."""
    if set(map(type, ids)) - {UUID}:
        for id_ in ids:
            check_id(id_)
    return [id_.int for id_ in ids]


def uuids(ids: Collection[int]) -> "pa.Array":
    """Return a column of ids, given as their 128 bits."""
    return joined_uuids(b"".join([id_.to_bytes(16, "big") for id_ in ids]))


def joined_uuids(ids: bytes) -> "pa.Array":
    """Return a column of ids, given as their bytes, joined."""
    import pyarrow as pa

    storage = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids) // 16, [None, pa.py_buffer(ids)])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def timestamps(times: Sequence[datetime]) -> "pa.Array":
    """Return a column of times."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if set(map(type, times)) - {datetime}:
        times = [as_utc(time) for time in times]  # a subclass may be finer than Arrow is told
    # Arrow asks every aware datetime for its offset; it takes differences four times as fast.
    try:
        since_epoch = [time - EPOCH for time in times]
    except TypeError:
        since_epoch = [as_utc(time) - EPOCH for time in times]
    times_us = pa.array(since_epoch, pa.duration("us")).view(pa.int64())
    bounds_us = pc.min_max(times_us).as_py()
    if times and not _FIRST_US <= bounds_us["min"] <= bounds_us["max"] <= _LAST_US:
        for time in times:
            as_utc(time)
    return times_us.view(pa.timestamp("us", "UTC"))


def epoch_times(times_us: Sequence[int]) -> "pa.Array":
    """Return a column of times, given in µs since 1970."""
    import pyarrow as pa

    return pa.array(times_us, pa.int64()).view(pa.timestamp("us", "UTC"))


def texts(values: Sequence[str]) -> "pa.Array":
    """Return a column of texts."""
    import pyarrow as pa

    try:
        texts = pa.array(values, pa.large_string())  # a batch may hold more than 2 GiB
    except (TypeError, ValueError):
        texts = pa.array([check_text(value) for value in values], pa.large_string())
    characters = texts.buffers()[2]
    all_text = all(issubclass(kind, str) for kind in set(map(type, values)))  # Arrow takes bytes too
    if not all_text or (characters is not None and b"\0" in characters.to_pybytes()):
        for value in values:
            check_text(value)
    return texts


def json_texts(values: Sequence[JsonValue]) -> "pa.Array":
    """Return a column of values as JSON."""
    import pyarrow as pa

    return pa.array([dump_json(value) for value in values], pa.large_string())


def unsigned(values: Sequence[int]) -> "pa.Array":
    """Return a column of config versions."""
    import pyarrow as pa

    if set(map(type, values)) - {int} or not 0 <= min(values, default=0) <= max(values, default=0) < 2**64:
        for value in values:
            check_config_version(value)
    return pa.array(values, pa.uint64())


def booleans(values: Sequence[bool]) -> "pa.Array":
    """Return a column of truth values."""
    import pyarrow as pa

    return pa.array(values, pa.bool_())


def repeated(values: "pa.Array", count: int) -> "pa.Array":
    """Return a column of the same value so many times."""
    import pyarrow as pa

    return pa.repeat(values[0], count)


_TO_ARRAY: dict[type[sa.types.TypeEngine[Any]], Callable[[Any], "pa.Array"]] = {
    sa.Uuid: lambda ids: uuids(integers(ids)),
    Text: texts,
    UnsignedBigInt: unsigned,
    Json: json_texts,
    Timestamp: timestamps,
    sa.Boolean: booleans,
}


def column_of(column: sa.ColumnElement[Any], values: Sequence[Any]) -> "pa.Array":
    """Return values as a column of the type that a column of a table has, null for None."""
    import pyarrow as pa

    to_array = _TO_ARRAY[type(column.type)]
    if NoneType not in set(map(type, values)) or to_array is json_texts:
        return to_array(values)
    places = itertools.count()
    indices = pa.array([None if value is None else next(places) for value in values], pa.int64())
    return to_array([value for value in values if value is not None]).take(indices)
