"""The functions of ``sql.functions`` in the words of PostgreSQL."""

import math
import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BIT, array

from fiberstore.postgresql.regex import to_postgres
from fiberstore.sql.functions import (
    LONGEST_US,
    Contains,
    DurationUs,
    EpochMicroseconds,
    HoldsChangeLock,
    JsonElement,
    JsonExists,
    JsonFloat,
    JsonInteger,
    JsonItems,
    JsonKeys,
    JsonTextAt,
    JsonType,
    JsonValueAt,
    KeyHash,
    Quotient,
    RegexpMatches,
    TextBytes,
    TimeUs,
    arguments_of,
    compiles_for,
    key_text,
)

_LARGEST_FLOAT = "1.7976931348623157e308"
_LEAST_FLOAT = "4.9e-324"
_IS_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
_IS_INDEX = re.compile(r"0|[1-9][0-9]*")


@compiles_for("postgresql", EpochMicroseconds)
def _epoch_us(element: EpochMicroseconds) -> sa.ColumnElement[int]:
    (time,) = arguments_of(element)
    epoch_us = sa.cast(sa.extract("epoch", time) * 1_000_000, sa.BigInteger)
    return sa.case((sa.func.isfinite(time), epoch_us))


@compiles_for("postgresql", TimeUs)
def _time_us(element: TimeUs) -> sa.ColumnElement[Any]:
    (time,) = arguments_of(element)
    return time


@compiles_for("postgresql", DurationUs)
def _duration_us(element: DurationUs) -> sa.ColumnElement[int]:
    first, last = arguments_of(element)
    return sa.func.coalesce(EpochMicroseconds(last) - EpochMicroseconds(first), LONGEST_US)


@compiles_for("postgresql", TextBytes)
def _text_bytes(element: TextBytes) -> sa.ColumnElement[int]:
    return sa.func.octet_length(*arguments_of(element))


@compiles_for("postgresql", Contains)
def _contains(element: Contains) -> sa.ColumnElement[bool]:
    return sa.func.strpos(*arguments_of(element)) > 0


@compiles_for("postgresql", RegexpMatches)
def _regexp_matches(element: RegexpMatches) -> sa.ColumnElement[bool]:
    text, _pattern = arguments_of(element)
    return text.regexp_match(to_postgres(element.pattern))


@compiles_for("postgresql", KeyHash)
def _key_hash(element: KeyHash) -> sa.ColumnElement[int]:
    digits: sa.ColumnElement[str] = sa.literal_column("'x'") + sa.func.substr(
        sa.func.md5(key_text(element)), sa.literal_column("1"), sa.literal_column("15"), type_=sa.String()
    )
    return sa.cast(sa.cast(digits, BIT(60)), sa.BigInteger)


@compiles_for("postgresql", HoldsChangeLock)
def _holds_change_lock(_element: HoldsChangeLock) -> sa.ColumnElement[bool]:
    # Before it looks for rows to lock, of which there are none, it locks the table as `Lock.DELETES` does.
    merges = sa.table("fiber_merges")
    return ~sa.exists(sa.select(sa.true()).select_from(merges).where(sa.false()).with_for_update(read=True))


@compiles_for("postgresql", Quotient)
def _quotient(element: Quotient) -> sa.ColumnElement[int]:
    return sa.func.div(*arguments_of(element))


def _in_postgres(element: JsonElement) -> sa.ColumnElement[Any]:
    """Return the element as JSONB; ``#>`` alone would take -1 or 01 for places in an array."""
    value = element.document
    for token in element.pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        found: sa.ColumnElement[Any] = value.op("#>")(sa.cast(array([sa.literal(key)]), ARRAY(sa.Text)))
        if _IS_NUMBER.fullmatch(key) and not _IS_INDEX.fullmatch(key):
            found = sa.case((sa.func.jsonb_typeof(value) == "object", found))
        value = found
    return value


def _by_code_point(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the text in the collation of our columns rather than in that of the database."""
    return sa.collate(sa.type_coerce(text, sa.Text), "C")


def _number(value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.case((sa.func.jsonb_typeof(value) == "number", sa.cast(value, sa.Numeric)))


@compiles_for("postgresql", JsonExists)
def _json_exists(element: JsonExists) -> sa.ColumnElement[bool]:
    return _in_postgres(element).is_not(None)


@compiles_for("postgresql", JsonType)
def _json_type(element: JsonType) -> sa.ColumnElement[Any]:
    value = _in_postgres(element)
    kind = _by_code_point(sa.func.jsonb_typeof(value))
    is_integer = sa.and_(
        _by_code_point(sa.cast(value, sa.Text)).regexp_match("^-?[0-9]+$"),
        _number(value).between(-(2**63), 2**64 - 1),
    )
    number = sa.case((is_integer, "BIGINT"), else_="DOUBLE")
    return sa.case((kind == "number", number), (kind == "string", "VARCHAR"), else_=sa.func.upper(kind))


@compiles_for("postgresql", JsonTextAt)
def _json_text(element: JsonTextAt) -> sa.ColumnElement[str]:
    value = _in_postgres(element)
    return _by_code_point(value.op("#>>")(sa.cast(array([], type_=sa.Text), ARRAY(sa.Text))))


@compiles_for("postgresql", JsonValueAt)
def _json_value(element: JsonValueAt) -> sa.ColumnElement[str]:
    return _by_code_point(sa.cast(_in_postgres(element), sa.Text))


@compiles_for("postgresql", JsonFloat)
def _json_float(element: JsonFloat) -> sa.ColumnElement[Any]:
    number = _number(_in_postgres(element))
    largest, least = (sa.literal_column(text, sa.Numeric()) for text in (_LARGEST_FLOAT, _LEAST_FLOAT))
    return sa.case(  # what is beyond a float is an error to a cast
        (sa.func.abs(number) < least, 0.0),
        (sa.func.abs(number) <= largest, sa.cast(number, sa.Double)),
        (number > 0, math.inf),
        (number < 0, -math.inf),
    )


@compiles_for("postgresql", JsonInteger)
def _json_integer(element: JsonInteger) -> sa.ColumnElement[Any]:
    return _number(_in_postgres(element))


@compiles_for("postgresql", JsonItems)
def _json_items(element: JsonItems) -> sa.ColumnElement[Any]:
    value = _in_postgres(element)
    return sa.func.jsonb_array_elements(sa.case((sa.func.jsonb_typeof(value) == "array", value)))


@compiles_for("postgresql", JsonKeys)
def _json_keys(element: JsonKeys) -> sa.ColumnElement[Any]:
    value = _in_postgres(element)
    keys = sa.func.jsonb_object_keys(sa.case((sa.func.jsonb_typeof(value) == "object", value)))
    return _by_code_point(keys)
