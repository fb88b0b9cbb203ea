"""SQL functions that the engines have under different names, as elements of SQLAlchemy expressions.

``duckdb.functions`` and ``postgresql.functions`` say them in the words of their engine.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, array
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal

T = TypeVar("T")

LONGEST_US = 2**63 - 1


class _Function(FunctionElement[T]):
    """A function whose statements are compiled once, unless it says otherwise."""

    inherit_cache = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.inherit_cache = vars(cls).get("inherit_cache", True)  # SQLAlchemy looks at each class itself


class _Number(_Function[int]):
    type = sa.BigInteger()


class _Truth(_Function[bool]):
    type = sa.Boolean()


class EpochMicroseconds(_Number):
    """A time as µs since 1970, to calculate with; NULL for 'infinity'."""

    name = "epoch_us"


class TimeUs(EpochMicroseconds):
    """A time as µs since 1970, to be fetched: PostgreSQL's driver makes the number."""


class DurationUs(_Number):
    """The µs from the first time to the second; the most there is, if that is more or one is 'infinity'."""

    name = "duration_us"


class TextBytes(_Number):
    """Length of a text in UTF-8, in bytes."""

    name = "strlen"


class KeyHash(_Number):
    """``ids.key_hash`` of a name and a value."""

    name = "key_hash"


class Contains(_Truth):
    """True if the first text has the second in it."""

    name = "contains"


class StartsWith(_Truth):
    """True if the first text begins with the second."""

    name = "starts_with"


class RegexpMatches(_Truth):
    """True if a pattern of RE2, given as a value, matches somewhere in the text.

    Raises:
        ValueError: When it is compiled for PostgreSQL: that cannot say the pattern.
    """

    name = "regexp_matches"
    inherit_cache = False  # its SQL depends on the pattern

    @property
    def pattern(self) -> str:
        """The pattern of RE2."""
        return cast("sa.BindParameter[str]", list(self.clauses)[1]).value or ""


class Quotient(_Number):
    """The whole number of times that the second fits in the first, of positive numbers."""

    name = "divide"


class HoldsChangeLock(_Truth):
    """Lock ``Lock.CHANGES`` for the rest of the statement, and be true: for one that changes rows by itself.

    On PostgreSQL, the WHERE that holds it waits for the lock before it looks for rows. DuckDB's connection
    has taken the lock before the statement.
    """

    name = "holds_change_lock"


class JsonElement(_Function[Any]):
    """Something about the element of a JSON document that a JSON pointer, given as a value, leads to.

    It is NULL if there is no such element, or no document.
    """

    # Its SQL depends on the pointer, which is thereby part of the key of a compiled statement.
    _traverse_internals = [  # noqa: RUF012
        *FunctionElement._traverse_internals,
        ("pointer", InternalTraversal.dp_string),
    ]

    def __init__(self, document: sa.ColumnElement[Any], pointer: str) -> None:
        super().__init__(document, sa.literal(pointer))
        self.document = document
        self.pointer = pointer


class JsonExists(JsonElement):
    """True if there is such an element."""

    name = "json_exists"
    type = sa.Boolean()


class JsonType(JsonElement):
    """Its kind: OBJECT, ARRAY, VARCHAR, BOOLEAN, NULL, BIGINT, UBIGINT, or DOUBLE for any other number.

    PostgreSQL has BIGINT for both.
    """

    name = "json_type"
    type = sa.String()


class JsonTextAt(JsonElement):
    """The text of a string, or the JSON of anything else."""

    name = "json_extract_string"
    type = sa.String()


class JsonValueAt(JsonElement):
    """Its JSON, as text."""

    name = "json_extract"
    type = sa.String()


class JsonFloat(JsonElement):
    """The nearest float of a number, NULL for anything else."""

    type = sa.Double()


class JsonInteger(JsonElement):
    """An integer, NULL for anything else."""

    type = sa.Numeric(20)


class JsonItems(JsonElement):
    """The items of a list, each in a row of its own; no row for anything else."""

    name = "json_items"
    type = sa.JSON()


class JsonKeys(JsonElement):
    """The keys of an object, each in a row of its own; no row for anything else."""

    name = "json_keys"
    type = sa.String()


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


def key_text(element: KeyHash) -> sa.ColumnElement[str]:
    """Return the text whose hash ``KeyHash`` is, as ``ids.key_hash`` joins it."""
    name, value = list(element.clauses)
    return sa.cast(TextBytes(name), sa.String) + sa.literal_column("':'") + name + value


def compiles_for(engine: str, *kinds: type[FunctionElement[Any]]) -> Callable[[Expression], Expression]:
    """Have an engine say functions of these kinds by the expression that the decorated function returns."""

    def register(expression_of: Expression) -> Expression:
        def compile_(element: FunctionElement[Any], compiler: SQLCompiler, **options: object) -> str:
            return compiler.process(expression_of(element).self_group(), **options)

        for kind in kinds:
            compiles(kind, engine)(compile_)
        return expression_of

    return register


def arguments_of(element: FunctionElement[Any]) -> list[sa.ColumnElement[Any]]:
    """Return the arguments of a function."""
    return list(element.clauses)


@compiles(EpochMicroseconds)
@compiles(TextBytes)
@compiles(Contains)
@compiles(StartsWith)
def _call_by_name(element: FunctionElement[Any], compiler: SQLCompiler, **options: object) -> str:
    return f"{element.name}({compiler.process(element.clauses, **options)})"
