"""The Arrow schemas of the records, and what a stored row must hold to be one."""

from datetime import datetime
from types import NoneType
from typing import Annotated, Any, TypeAlias, get_args, get_origin
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from fiberstore.errors import SerializationError
from fiberstore.json_text import load_json
from fiberstore.records import EARLIEST_US, LATEST_US, FiberKey, FiberMembership, FiberRecord, StoredLog

Kind: TypeAlias = type[StoredLog] | type[FiberRecord] | type[FiberMembership] | type[FiberKey]

TEXT = pa.large_string()  # a batch may hold more than 2 GiB
TIME = pa.timestamp("us", "UTC")
VERSION = pa.uint64()
JSON_COLUMN = "attributes"

KEYS: dict[Kind, list[str]] = {
    StoredLog: ["log_id"],
    FiberRecord: ["fiber_id"],
    FiberMembership: ["log_id", "fiber_id"],
    FiberKey: ["fiber_id", "name", "value"],
}
TIMES: dict[Kind, str] = {StoredLog: "timestamp", FiberRecord: "first_activity"}

_ARROW_TYPES: dict[object, pa.DataType] = {
    UUID: TEXT,
    str: TEXT,
    JsonValue: TEXT,
    datetime: TIME,
    int: VERSION,
    bool: pa.bool_(),
}


def _types_of(kind: Kind, name: str) -> tuple[object, ...]:
    """Return the types that a field of a record may have, without their checks."""
    annotation: object = kind.model_fields[name].annotation
    if annotation is JsonValue:
        return JsonValue, NoneType
    types = get_args(annotation) or (annotation,)
    return tuple(get_args(type_)[0] if get_origin(type_) is Annotated else type_ for type_ in types)


_FIELD_TYPES = {
    kind: {name: _types_of(kind, name) for name in dict.fromkeys([*keys, *kind.model_fields])}
    for kind, keys in KEYS.items()
}
IDS = {name for fields in _FIELD_TYPES.values() for name, types in fields.items() if UUID in types}
NULLABLE = {name for fields in _FIELD_TYPES.values() for name, types in fields.items() if NoneType in types}

# What JSON does not have, in whatever case, and numbers that may be too large for a float.
_SUSPECT = r"(?i)nan|inf|e\+?\d{3}|\d{309}"


def schema_of(kind: Kind) -> pa.Schema:
    """Return the schema in which records of a kind are streamed: ids and JSON as text, times in UTC."""
    return pa.schema([(name, _ARROW_TYPES[types[0]]) for name, types in _FIELD_TYPES[kind].items()])


def as_stored(batch: pa.RecordBatch, kind: Kind) -> pa.RecordBatch:
    """Return a batch of stored rows in the schema of their kind.

    Raises:
        SerializationError: Another client stored what no record can hold.
    """
    batch = batch.cast(schema_of(kind))
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if values.type == TIME:
            _check_times(batch, name, values)
        elif name == JSON_COLUMN:
            suspect = pc.fill_null(pc.match_substring_regex(values, _SUSPECT), False)
            for text in values.filter(suspect):
                load_json(text.as_py())
    return batch


def _check_times(batch: pa.RecordBatch, name: str, values: pa.Array) -> None:
    wrong = out_of_range(values)
    if wrong is not None:
        raise SerializationError(
            f"{batch.schema.names[0]} {batch.column(0)[wrong]} has no {name} in the years 1 to 9999; another "
            "client wrote it"
        )


def out_of_range(times: pa.Array) -> int | None:
    """Return the position of the first time that is null or outside the years 1 to 9999, or None."""
    us = times.view(pa.int64())
    inside = pc.and_(pc.greater_equal(us, EARLIEST_US), pc.less_equal(us, LATEST_US))
    return first(pc.invert(pc.fill_null(inside, False)))


def first(wrong: Any) -> int | None:  # noqa: ANN401  # an Arrow array, which has no types
    """Return the position of the first true value, or None."""
    position = pc.index(wrong, True).as_py()
    return None if position < 0 else int(position)
