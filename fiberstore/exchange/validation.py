"""Validation of Arrow batches of any origin, whole columns at a time."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from fiberstore.errors import SerializationError
from fiberstore.exchange.schemas import (
    IDS,
    JSON_COLUMN,
    KEYS,
    NULLABLE,
    TEXT,
    TIME,
    VERSION,
    Kind,
    first,
    out_of_range,
    schema_of,
)
from fiberstore.json_text import dump_json, load_json
from fiberstore.records import FiberKey, FiberRecord, StoredLog

_ID = pa.binary(16)
_INDEX_OF_PANDAS = re.compile(r"(?:Unnamed: \d+|__index_level_\d+__)?")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Defaults for logs that lack these values.

    Attributes:
        ingestion_time: Time of the call that stores them.
        config_version: Config version of the storage.
    """

    ingestion_time: datetime
    config_version: int


_STAMPED = ("ingestion_time", "config_version")


def check_columns(names: Collection[str], kind: Kind) -> None:
    """Raise ``ValueError`` unless these are the columns of a kind; those that are stamped may be missing."""
    known = schema_of(kind).names
    needed = [name for name in known if kind is not StoredLog or name not in _STAMPED]
    if index := [name for name in names if _INDEX_OF_PANDAS.fullmatch(name)]:
        raise ValueError(f"has {index[0]!r}, an index that pandas has written; write it with index=False")
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"lacks {', '.join(missing)}; a {kind.__name__} has {', '.join(needed)}")
    if extra := [name for name in names if name not in known]:
        raise ValueError(f"has {', '.join(extra)}, which no {kind.__name__} has; leave it out")
    if len(set(names)) < len(names):
        raise ValueError(f"has a column twice: {', '.join(names)}")


def validated(batch: pa.RecordBatch, kind: Kind, stamp: Stamp, row: int) -> pa.RecordBatch:
    """Return a batch ready to be stored: checked, ids as 16 bytes, of equal keys the first.

    Args:
        batch: With columns that ``check_columns`` has passed.
        kind: What it holds.
        stamp: What columns are filled with that are left out.
        row: How many rows of the file came before it, for messages.

    Raises:
        ValueError: A value cannot be stored; the message names row, column and value.
    """
    columns = {}
    for field in schema_of(kind):
        if field.name in batch.schema.names:
            values = batch.column(field.name)
            convert = _as_ids if field.name in IDS else _CONVERSIONS[field.type]
            columns[field.name] = _Column(field.name, values, row).converted(
                _as_json if field.name == JSON_COLUMN else convert
            )
        else:
            value = pa.scalar(getattr(stamp, field.name), field.type)
            columns[field.name] = pa.repeat(value, batch.num_rows)
    if kind is FiberKey:
        _Column("name", columns["name"], row).require(pc.not_equal(columns["name"], ""), "is empty")
    if kind is FiberRecord:
        _check_activity(columns["first_activity"], columns["last_activity"], row)
    found = _first_of_each(pa.RecordBatch.from_pydict(columns), KEYS[kind])
    return pa.RecordBatch.from_arrays(
        [
            pa.ExtensionArray.from_storage(pa.uuid(), values) if values.type == _ID else values
            for values in found.columns
        ],
        names=found.schema.names,
    )


class _Column:
    """A column of a batch that is being checked."""

    def __init__(self, name: str, values: pa.Array, row: int) -> None:
        self.name = name
        self.values = _plain(values)
        self._row = row

    def converted(self, convert: "Callable[[_Column], pa.Array]") -> pa.Array:
        """Return the values in the type they are stored in."""
        if self.name not in NULLABLE:
            self.require(pc.is_valid(self.values), "is missing")
        return convert(self)

    @property
    def is_text(self) -> bool:
        """True if the column holds text."""
        return bool(self.values.type == TEXT)

    def require(self, passes: pa.Array, what: str) -> None:
        """Raise ``ValueError`` for the first value that does not pass."""
        position = first(pc.invert(passes))
        if position is not None:
            self.refuse(position, what)

    def refuse(self, position: int, what: str) -> NoReturn:
        """Raise ``ValueError`` for one value."""
        value = self.values[position]
        if pa.types.is_timestamp(value.type):  # which Python may not be able to hold
            value = self.values.slice(position, 1).view(pa.int64())[0]
        shown = f", got {value.as_py() if self.is_text else str(value)!r:.100}" if value.is_valid else ""
        raise ValueError(f"row {self._row + position + 1}: {self.name} {what}{shown}")

    def cast(self, target: pa.DataType, what: str) -> pa.Array:
        """Return the values in another type, if none is changed by that."""
        try:
            return self.values.cast(target)
        except pa.ArrowInvalid:
            for position in range(len(self.values)):
                try:
                    self.values.slice(position, 1).cast(target)
                except pa.ArrowInvalid:
                    self.refuse(position, what)
            raise

    def refuse_type(self, expected: str) -> NoReturn:
        """Raise ``ValueError`` for all of them."""
        raise ValueError(f"column {self.name} must hold {expected}, got {self.values.type}")


def _plain(values: pa.Array) -> pa.Array:
    """Return the values without what only says how they are kept."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    types = pa.types
    if types.is_string(values.type) or types.is_string_view(values.type) or types.is_null(values.type):
        values = values.cast(TEXT)
    return values


def _as_ids(column: _Column) -> pa.Array:
    what = "must be a UUID"
    if not column.is_text:
        types, found = pa.types, column.values.type
        if not (types.is_fixed_size_binary(found) or types.is_binary(found) or types.is_large_binary(found)):
            column.refuse_type("UUIDs as text or as 16 bytes")
        is_whole = pc.equal(pc.binary_length(column.values), _ID.byte_width)
        column.require(pc.fill_null(is_whole, True), what)
        return column.values.cast(_ID)
    digits = pc.replace_substring(column.values, "-", "")
    column.require(pc.fill_null(pc.match_substring_regex(digits, "^[0-9a-fA-F]{32}$"), True), what)
    if digits.null_count:
        return pa.array([id_ and bytes.fromhex(id_) for id_ in digits.to_pylist()], _ID)
    text = b"" if not len(digits) else digits.buffers()[2].to_pybytes()[: 32 * len(digits)]
    data = pa.py_buffer(bytes.fromhex(text.decode("ascii")))
    return pa.FixedSizeBinaryArray.from_buffers(_ID, len(digits), [None, data])


def _as_text(column: _Column) -> pa.Array:
    if not column.is_text:
        column.refuse_type("text")
    try:
        column.values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"column {column.name} is not UTF-8") from error
    nul = pc.match_substring(column.values, "\0")
    column.require(pc.invert(nul), "holds NUL")
    return column.values


def _as_json(column: _Column) -> pa.Array:
    texts = []
    for position, text in enumerate(_as_text(column).to_pylist()):
        try:
            texts.append(dump_json(load_json(text)))
        except SerializationError as error:
            column.refuse(position, f"cannot be stored ({error})")
    return pa.array(texts, TEXT)


def _as_times(column: _Column) -> pa.Array:
    if pa.types.is_timestamp(column.values.type):
        if column.values.type.tz is None:
            raise ValueError(f"column {column.name} has no time zone; write its times in UTC")
    elif not column.is_text:
        column.refuse_type("times with a time zone")
    times = column.cast(TIME, "must be a time in ISO 8601 with a time zone, of at most 6 decimals")
    wrong = out_of_range(times)
    if wrong is not None:
        column.refuse(wrong, "must be in the years 1 to 9999 in UTC")
    return times


def _as_versions(column: _Column) -> pa.Array:
    what = "must be an integer from 0 to 2**64 - 1"
    if column.is_text:
        column.require(pc.match_substring_regex(column.values, "^[0-9]{1,20}$"), what)
    elif not pa.types.is_integer(column.values.type):
        column.refuse_type("integers")
    return column.cast(VERSION, what)


def _as_booleans(column: _Column) -> pa.Array:
    if column.is_text:
        is_one = pc.match_substring_regex(column.values, "(?i)^(true|false)$")
        column.require(is_one, "must be true or false")
    elif not pa.types.is_boolean(column.values.type):
        column.refuse_type("true or false")
    return column.values.cast(pa.bool_())


_CONVERSIONS: dict[pa.DataType, Callable[[_Column], pa.Array]] = {
    TEXT: _as_text,
    TIME: _as_times,
    VERSION: _as_versions,
    pa.bool_(): _as_booleans,
}


def _check_activity(begins: pa.Array, ends: pa.Array, row: int) -> None:
    position = first(pc.greater(begins, ends))
    if position is not None:
        begin, end = begins[position], ends[position]
        raise ValueError(f"row {row + position + 1}: first_activity {begin} is after last_activity {end}")


def _first_of_each(batch: pa.RecordBatch, keys: list[str]) -> pa.RecordBatch:
    numbered = pa.table(
        [*(batch.column(key) for key in keys), pa.array(range(batch.num_rows), pa.int64())],
        names=[*keys, "row"],
    )
    rows = numbered.group_by(keys, use_threads=False).aggregate([("row", "min")])["row_min"].combine_chunks()
    return batch if len(rows) == batch.num_rows else batch.take(rows.take(pc.sort_indices(rows)))
