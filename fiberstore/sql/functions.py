"""SQL functions that the engines have under different names, as elements of SQLAlchemy expressions.

The classes say what each is; below them stands how DuckDB says it, and how PostgreSQL does.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, array
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from fiberstore.patterns import as_text, to_duckdb, to_postgres

T = TypeVar("T")

_LONGEST_US = 2**63 - 1
_LARGEST_FLOAT = "1.7976931348623157e308"
_LEAST_FLOAT = "4.9e-324"
_IS_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
_IS_INDEX = re.compile(r"0|[1-9][0-9]*")


class EpochUs(FunctionElement[int]):
    """A time as µs since 1970, to calculate with; NULL for 'infinity'."""

    name = "epoch_us"
    type = sa.BigInteger()
    inherit_cache = True


class TimeUs(EpochUs):
    """A time as µs since 1970, to be fetched: PostgreSQL's driver makes the number."""

    inherit_cache = True


class DurationUs(FunctionElement[int]):
    """The µs from the first time to the second; the most there is, if that is more or one is 'infinity'."""

    name = "duration_us"
    type = sa.BigInteger()
    inherit_cache = True


class TextBytes(FunctionElement[int]):
    """How many bytes a text takes in UTF-8."""

    name = "strlen"
    type = sa.BigInteger()
    inherit_cache = True


class Contains(FunctionElement[bool]):
    """Whether the first text has the second in it."""

    name = "contains"
    type = sa.Boolean()
    inherit_cache = True


class StartsWith(FunctionElement[bool]):
    """Whether the first text begins with the second."""

    name = "starts_with"
    type = sa.Boolean()
    inherit_cache = True


class RegexpMatches(FunctionElement[bool]):
    """Whether a pattern of RE2, given as a value, matches somewhere in the text.

    Raises:
        ValueError: When it is compiled for PostgreSQL: that cannot say the pattern.
    """

    name = "regexp_matches"
    type = sa.Boolean()
    inherit_cache = False  # its SQL depends on the pattern

    @property
    def pattern(self) -> str:
        """The pattern of RE2."""
        return cast("sa.BindParameter[str]", list(self.clauses)[1]).value or ""


class Quotient(FunctionElement[int]):
    """The whole number of times that the second fits in the first, of positive numbers."""

    name = "divide"
    type = sa.BigInteger()
    inherit_cache = True


class NobodyChanges(FunctionElement[bool]):
    """True, once nobody holds ``connections.Lock.CHANGES``: for a statement that changes rows by itself.

    DuckDB's connection has waited for that before.
    """

    name = "nobody_changes"
    type = sa.Boolean()
    inherit_cache = True


class JsonElement(FunctionElement[Any]):
    """Something about the element of a JSON document that a JSON pointer, given as a value, leads to.

    It is NULL if there is no such element, or no document.
    """

    inherit_cache = True

    def __init__(self, document: sa.ColumnElement[Any], pointer: str) -> None:
        super().__init__(document, sa.literal(pointer))
        self.document = document
        self.pointer = pointer


class JsonExists(JsonElement):
    """Whether there is such an element."""

    name = "json_exists"
    type = sa.Boolean()
    inherit_cache = True


class JsonType(JsonElement):
    """Its kind: OBJECT, ARRAY, VARCHAR, BOOLEAN, NULL, BIGINT, UBIGINT, or DOUBLE for any other number.

    PostgreSQL has BIGINT for both.
    """

    name = "json_type"
    type = sa.String()
    inherit_cache = True


class JsonText(JsonElement):
    """The text of a string, or the JSON of anything else."""

    name = "json_extract_string"
    type = sa.String()
    inherit_cache = True


class Json(JsonElement):
    """Its JSON, as text."""

    name = "json_extract"
    type = sa.String()
    inherit_cache = True


class JsonFloat(JsonElement):
    """The nearest float of a number, NULL for anything else."""

    type = sa.Double()
    inherit_cache = True


class JsonInteger(JsonElement):
    """An integer, NULL for anything else."""

    type = sa.Numeric(20)
    inherit_cache = True


class JsonKeys(JsonElement):
    """The keys of an object, each in a row of its own; no row for anything else."""

    name = "json_keys"
    type = sa.String()
    inherit_cache = True


def sorted_array(column: sa.ColumnElement[T]) -> sa.ColumnElement[Any]:
    """Return the aggregate that lists the distinct values of a column, ascending."""
    return sa.func.array_agg(aggregate_order_by(column.distinct(), column), type_=ARRAY(column.type))


def array_value(values: Sequence[object], type_: sa.types.TypeEngine[Any]) -> sa.ColumnElement[Any]:
    """Return values as one parameter; its type is said, because a server cannot tell it."""
    is_text = isinstance(type_, sa.String) or isinstance(getattr(type_, "impl", None), sa.String)
    plain = sa.String() if is_text else type_  # a cast takes no collation
    return sa.cast(sa.bindparam(None, list(values), type_=sa.ARRAY(plain), unique=True), sa.ARRAY(plain))


def array_of(column: sa.ColumnElement[T]) -> sa.ColumnElement[Any]:
    """Return an array of one value."""
    return array([column], type_=column.type)


Expression = Callable[[Any], sa.ColumnElement[Any]]


def _says(engine: str, kind: type[FunctionElement[Any]]) -> Callable[[Expression], Expression]:
    """Let an engine say a function by the expression that is returned for one."""

    def register(expression_of: Expression) -> Expression:
        def compile_(element: FunctionElement[Any], compiler: SQLCompiler, **options: object) -> str:
            return compiler.process(expression_of(element).self_group(), **options)

        compiles(kind, engine)(compile_)
        return expression_of

    return register


def _arguments(element: FunctionElement[Any]) -> list[sa.ColumnElement[Any]]:
    return list(element.clauses)


# DuckDB


@compiles(EpochUs)
@compiles(TextBytes)
@compiles(Contains)
@compiles(StartsWith)
def _by_name(element: FunctionElement[Any], compiler: SQLCompiler, **options: object) -> str:
    return f"{element.name}({compiler.process(element.clauses, **options)})"


@_says("duckdb", DurationUs)
def _(element: DurationUs) -> sa.ColumnElement[int]:
    first, last = _arguments(element)
    difference = getattr(sa.func, "try")(EpochUs(last) - EpochUs(first))
    return sa.func.coalesce(difference, _LONGEST_US)


@_says("duckdb", RegexpMatches)
def _(element: RegexpMatches) -> sa.ColumnElement[bool]:
    text, _pattern = _arguments(element)
    part = as_text(element.pattern.removeprefix("^"))
    if part is not None:  # in half the time
        return StartsWith(text, part) if element.pattern.startswith("^") else Contains(text, part)
    return sa.func.regexp_matches(text, to_duckdb(element.pattern), type_=sa.Boolean())


@_says("duckdb", Quotient)
def _(element: Quotient) -> sa.ColumnElement[int]:
    number, divisor = _arguments(element)
    return number.op("//")(divisor)


@_says("duckdb", NobodyChanges)
def _(_element: NobodyChanges) -> sa.ColumnElement[bool]:
    return sa.true()


def _in_duckdb(function: str, element: JsonElement) -> sa.ColumnElement[Any]:
    # To DuckDB "" is no pointer, but its own form of a path has one to the whole.
    document = sa.type_coerce(element.document, sa.String)
    call: sa.ColumnElement[Any] = getattr(sa.func, function)(
        document, element.pointer or "$", type_=element.type
    )
    return call


@_says("duckdb", JsonExists)
@_says("duckdb", JsonType)
@_says("duckdb", JsonText)
def _(element: JsonElement) -> sa.ColumnElement[Any]:
    return _in_duckdb(element.name, element)


@_says("duckdb", Json)
def _(element: Json) -> sa.ColumnElement[str]:
    return sa.cast(_in_duckdb("json_extract", element), sa.String)


@_says("duckdb", JsonFloat)
def _(element: JsonFloat) -> sa.ColumnElement[float]:
    # The JSON text of a string has quotes.
    return sa.try_cast(sa.cast(_in_duckdb("json_extract", element), sa.String), sa.Double)


@_says("duckdb", JsonInteger)
def _(element: JsonInteger) -> sa.ColumnElement[Any]:
    return sa.try_cast(_in_duckdb("json_extract_string", element), sa.Numeric(20))


@_says("duckdb", JsonKeys)
def _(element: JsonKeys) -> sa.ColumnElement[Any]:
    return sa.func.unnest(sa.func.list_distinct(_in_duckdb("json_keys", element)))


# PostgreSQL


@_says("postgresql", EpochUs)
def _(element: EpochUs) -> sa.ColumnElement[int]:
    (time,) = _arguments(element)
    epoch_us = sa.cast(sa.extract("epoch", time) * 1_000_000, sa.BigInteger)
    return sa.case((sa.func.isfinite(time), epoch_us))


@_says("postgresql", TimeUs)
def _(element: TimeUs) -> sa.ColumnElement[Any]:
    (time,) = _arguments(element)
    return time


@_says("postgresql", DurationUs)
def _(element: DurationUs) -> sa.ColumnElement[int]:
    first, last = _arguments(element)
    return sa.func.coalesce(EpochUs(last) - EpochUs(first), _LONGEST_US)


@_says("postgresql", TextBytes)
def _(element: TextBytes) -> sa.ColumnElement[int]:
    return sa.func.octet_length(*_arguments(element))


@_says("postgresql", Contains)
def _(element: Contains) -> sa.ColumnElement[bool]:
    return sa.func.strpos(*_arguments(element)) > 0


@_says("postgresql", RegexpMatches)
def _(element: RegexpMatches) -> sa.ColumnElement[bool]:
    text, _pattern = _arguments(element)
    return text.regexp_match(to_postgres(element.pattern))


@_says("postgresql", NobodyChanges)
def _(_element: NobodyChanges) -> sa.ColumnElement[bool]:
    # Before it looks for rows to lock, of which there are none, it locks the table as `Lock.DELETES` does.
    merges = sa.table("fiber_merges")
    return ~sa.exists(sa.select(sa.true()).select_from(merges).where(sa.false()).with_for_update(read=True))


@_says("postgresql", Quotient)
def _(element: Quotient) -> sa.ColumnElement[int]:
    return sa.func.div(*_arguments(element))


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


@_says("postgresql", JsonExists)
def _(element: JsonExists) -> sa.ColumnElement[bool]:
    return _in_postgres(element).is_not(None)


@_says("postgresql", JsonType)
def _(element: JsonType) -> sa.ColumnElement[Any]:
    value = _in_postgres(element)
    kind = _by_code_point(sa.func.jsonb_typeof(value))
    is_integer = sa.and_(
        _by_code_point(sa.cast(value, sa.Text)).regexp_match("^-?[0-9]+$"),
        _number(value).between(-(2**63), 2**64 - 1),
    )
    number = sa.case((is_integer, "BIGINT"), else_="DOUBLE")
    return sa.case((kind == "number", number), (kind == "string", "VARCHAR"), else_=sa.func.upper(kind))


@_says("postgresql", JsonText)
def _(element: JsonText) -> sa.ColumnElement[str]:
    value = _in_postgres(element)
    return _by_code_point(value.op("#>>")(sa.cast(array([], type_=sa.Text), ARRAY(sa.Text))))


@_says("postgresql", Json)
def _(element: Json) -> sa.ColumnElement[str]:
    return _by_code_point(sa.cast(_in_postgres(element), sa.Text))


@_says("postgresql", JsonFloat)
def _(element: JsonFloat) -> sa.ColumnElement[Any]:
    number = _number(_in_postgres(element))
    largest, least = (sa.literal_column(text, sa.Numeric()) for text in (_LARGEST_FLOAT, _LEAST_FLOAT))
    return sa.case(  # what is beyond a float is an error to a cast
        (sa.func.abs(number) < least, 0.0),
        (sa.func.abs(number) <= largest, sa.cast(number, sa.Double)),
        (number > 0, math.inf),
        (number < 0, -math.inf),
    )


@_says("postgresql", JsonInteger)
def _(element: JsonInteger) -> sa.ColumnElement[Any]:
    return _number(_in_postgres(element))


@_says("postgresql", JsonKeys)
def _(element: JsonKeys) -> sa.ColumnElement[Any]:
    value = _in_postgres(element)
    keys = sa.func.jsonb_object_keys(sa.case((sa.func.jsonb_typeof(value) == "object", value)))
    return _by_code_point(keys)
