"""The functions of ``sql.functions`` in the words of DuckDB."""

from typing import Any

import sqlalchemy as sa

from fiberstore.duckdb.regex import as_text, to_duckdb
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
    StartsWith,
    arguments_of,
    compiles_for,
    key_text,
)


@compiles_for("duckdb", DurationUs)
def _duration_us(element: DurationUs) -> sa.ColumnElement[int]:
    first, last = arguments_of(element)
    difference = getattr(sa.func, "try")(EpochMicroseconds(last) - EpochMicroseconds(first))
    return sa.func.coalesce(difference, LONGEST_US)


@compiles_for("duckdb", RegexpMatches)
def _regexp_matches(element: RegexpMatches) -> sa.ColumnElement[bool]:
    text, _pattern = arguments_of(element)
    part = as_text(element.pattern.removeprefix("^"))
    if part is not None:  # in half the time
        return StartsWith(text, part) if element.pattern.startswith("^") else Contains(text, part)
    return sa.func.regexp_matches(text, to_duckdb(element.pattern), type_=sa.Boolean())


@compiles_for("duckdb", Quotient)
def _quotient(element: Quotient) -> sa.ColumnElement[int]:
    number, divisor = arguments_of(element)
    return number.op("//")(divisor)


@compiles_for("duckdb", KeyHash)
def _key_hash(element: KeyHash) -> sa.ColumnElement[int]:
    digits: sa.ColumnElement[str] = sa.literal_column("'0x'") + sa.func.substr(
        sa.func.md5(key_text(element)), sa.literal_column("1"), sa.literal_column("15"), type_=sa.String()
    )
    return sa.cast(digits, sa.BigInteger)


@compiles_for("duckdb", HoldsChangeLock)
def _holds_change_lock(_element: HoldsChangeLock) -> sa.ColumnElement[bool]:
    return sa.true()


def _in_duckdb(function: str, element: JsonElement) -> sa.ColumnElement[Any]:
    # To DuckDB "" is no pointer, but its own form of a path has one to the whole.
    document = sa.type_coerce(element.document, sa.String)
    call: sa.ColumnElement[Any] = getattr(sa.func, function)(
        document, element.pointer or "$", type_=element.type
    )
    return call


@compiles_for("duckdb", JsonExists, JsonType, JsonTextAt)
def _json_call(element: JsonElement) -> sa.ColumnElement[Any]:
    return _in_duckdb(element.name, element)


@compiles_for("duckdb", JsonValueAt)
def _json_value(element: JsonValueAt) -> sa.ColumnElement[str]:
    return sa.cast(_in_duckdb("json_extract", element), sa.String)


@compiles_for("duckdb", JsonItems)
def _json_items(element: JsonItems) -> sa.ColumnElement[Any]:
    return sa.func.unnest(sa.func.json_extract(_in_duckdb("json_extract", element), "$[*]"))


@compiles_for("duckdb", JsonFloat)
def _json_float(element: JsonFloat) -> sa.ColumnElement[float]:
    # The JSON text of a string has quotes.
    return sa.try_cast(sa.cast(_in_duckdb("json_extract", element), sa.String), sa.Double)


@compiles_for("duckdb", JsonInteger)
def _json_integer(element: JsonInteger) -> sa.ColumnElement[Any]:
    return sa.try_cast(_in_duckdb("json_extract_string", element), sa.Numeric(20))


@compiles_for("duckdb", JsonKeys)
def _json_keys(element: JsonKeys) -> sa.ColumnElement[Any]:
    return sa.func.unnest(sa.func.list_distinct(_in_duckdb("json_keys", element)))
