"""Conditions in SQL. Each is true or false of every row, never NULL."""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import eq, ge, gt, le, lt
from typing import Any, TypeAlias, TypeGuard
from uuid import UUID

import sqlalchemy as sa

from fiberstore.contract.conditions import (
    LEAST_NUMBER,
    And,
    AttributeCompare,
    AttributeContains,
    AttributeExists,
    AttributeIn,
    AttributeIsList,
    Compare,
    Condition,
    Flag,
    HasFiber,
    HasLog,
    In,
    IsActive,
    Joined,
    KeyExists,
    KeyIn,
    KeyStartsWith,
    Match,
    Not,
    Operator,
    Or,
    Value,
)
from fiberstore.ids import key_hash
from fiberstore.records import MICROSECOND, FiberMembership, FiberRecord, StoredLog
from fiberstore.sql.functions import (
    Contains,
    DurationUs,
    JsonElement,
    JsonExists,
    JsonFloat,
    JsonInteger,
    JsonItems,
    JsonTextAt,
    JsonType,
    RegexpMatches,
    StartsWith,
    array_value,
)
from fiberstore.sql.models import Base, PinnedFiber, PinnedLog, RegisteredVersion

Expression: TypeAlias = sa.ColumnElement[Any]

LOGS = Base.metadata.tables["raw_logs"]
FIBERS = Base.metadata.tables["fibers"]
KEYS = Base.metadata.tables["fiber_keys"]
MEMBERSHIPS = Base.metadata.tables["fiber_memberships"]
DURATION_US: sa.ColumnElement[int] = DurationUs(FIBERS.c.first_activity, FIBERS.c.last_activity)
# SQL NULL reads as None.
ATTRIBUTES: sa.ColumnElement[Any] = sa.func.coalesce(
    FIBERS.c.attributes, sa.cast(sa.literal_column("'null'"), FIBERS.c.attributes.type)
)

ACTIVE_VERSION = sa.select(RegisteredVersion.config_version).where(RegisteredVersion.active.is_(True))

_MOST_PARAMETERS = 50
_MOST_LOOKUPS = 8
_EXACT_AS_FLOAT = 2**53
_COLUMNS: dict[type, dict[str, Expression]] = {
    StoredLog: {**dict(LOGS.c), "pinned": LOGS.c.log_id.in_(sa.select(PinnedLog.log_id))},
    FiberRecord: {
        **dict(FIBERS.c),
        "duration": DURATION_US,
        "pinned": FIBERS.c.fiber_id.in_(sa.select(PinnedFiber.fiber_id)),
    },
    FiberMembership: dict(MEMBERSHIPS.c),
}
_OPERATORS: dict[Operator, Callable[[Any, Any], sa.ColumnElement[bool]]] = {
    "==": eq,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
}


def all_of(conditions: Sequence[Condition[Any]]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions for ``Select.where``."""
    return [to_sql(condition) for condition in conditions]


def to_sql(condition: Condition[Any]) -> sa.ColumnElement[bool]:
    """Return a condition as an expression on the table of its records."""
    sql_of = _SQL_OF.get(type(condition))
    if sql_of is None:
        raise TypeError(f"{condition!r:.200} cannot be asked of a database")
    return sql_of(condition)


def _column(condition: Compare[Any] | In[Any] | Match[Any] | Flag[Any]) -> Expression:
    return _COLUMNS[condition.record][condition.column]


def _compare(condition: Compare[Any]) -> sa.ColumnElement[bool]:
    compare = _OPERATORS[condition.operator]
    return _known(compare(_column(condition), _driver_value(condition.value)), condition.column)


def _in(condition: In[Any]) -> sa.ColumnElement[bool]:
    return _known(among(_column(condition), list(map(_driver_value, condition.values))), condition.column)


def _joined_to(condition: Joined[Any]) -> sa.ColumnElement[bool]:
    if condition.relation == "logs":
        fibers = _joined(MEMBERSHIPS.c.fiber_id, among(MEMBERSHIPS.c.log_id, condition.ids))
        return FIBERS.c.fiber_id.in_(fibers)
    logs = _joined(MEMBERSHIPS.c.log_id, among(MEMBERSHIPS.c.fiber_id, condition.ids))
    return LOGS.c.log_id.in_(logs)


def _has_log(condition: HasLog) -> sa.ColumnElement[bool]:
    same = MEMBERSHIPS.c.log_id == LOGS.c.log_id
    return FIBERS.c.fiber_id.in_(_joined(MEMBERSHIPS.c.fiber_id, same, to_sql(condition.condition)))


def _has_fiber(condition: HasFiber) -> sa.ColumnElement[bool]:
    fibers = _joined(FIBERS.c.fiber_id, to_sql(condition.condition))
    return LOGS.c.log_id.in_(_joined(MEMBERSHIPS.c.log_id, MEMBERSHIPS.c.fiber_id.in_(fibers)))


def _attribute_exists(condition: AttributeExists) -> sa.ColumnElement[bool]:
    if condition.pointer == "":
        return sa.true()
    return sa.func.coalesce(_json(JsonExists, condition.pointer), sa.false())


def _attribute_compare(condition: AttributeCompare) -> sa.ColumnElement[bool]:
    document = _document(condition.pointer)
    compared = _compared(document, condition.pointer, condition.operator, condition.value)
    return sa.func.coalesce(compared, sa.false())


def _attribute_in(condition: AttributeIn) -> sa.ColumnElement[bool]:
    pointer = condition.pointer
    texts = [value for value in condition.values if isinstance(value, str)]
    floats = [float(value) for value in condition.values if _is_exact_as_float(value)]
    others = [
        value for value in condition.values if not (isinstance(value, str) or _is_exact_as_float(value))
    ]
    found = [_compared(_document(pointer), pointer, "==", value) for value in dict.fromkeys(others)]
    if texts:
        found.append(sa.and_(_json(JsonType, pointer) == "VARCHAR", among(_json(JsonTextAt, pointer), texts)))
    if floats:
        found.append(among(_json(JsonFloat, pointer), floats))
    return sa.func.coalesce(sa.or_(sa.false(), *found), sa.false())


def _attribute_contains(condition: AttributeContains) -> sa.ColumnElement[bool]:
    items = JsonItems(_document(condition.pointer), condition.pointer)
    item = items.table_valued(sa.column("item", sa.JSON)).render_derived().c.item
    return sa.exists().where(sa.func.coalesce(_compared(item, "", "==", condition.value), sa.false()))


def _has_key(name: str, *conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return FIBERS.c.fiber_id.in_(sa.select(KEYS.c.fiber_id).where(KEYS.c.name == name, *conditions))


_SQL_OF: dict[type[Condition[Any]], Callable[[Any], sa.ColumnElement[bool]]] = {
    And: lambda both: sa.and_(sa.true(), *all_of(both.conditions)),
    Or: lambda either: sa.or_(sa.false(), *all_of(either.conditions)),
    Not: lambda negated: sa.not_(to_sql(negated.condition)),
    Compare: _compare,
    In: _in,
    Match: lambda match: _TEXT_FUNCTIONS[match.kind](_column(match), match.text),
    Flag: lambda flag: _column(flag).is_(True),
    IsActive: lambda active: _COLUMNS[active.record]["config_version"].in_(ACTIVE_VERSION),
    Joined: _joined_to,
    HasLog: _has_log,
    HasFiber: _has_fiber,
    AttributeExists: _attribute_exists,
    AttributeCompare: _attribute_compare,
    AttributeIn: _attribute_in,
    AttributeContains: _attribute_contains,
    AttributeIsList: lambda at: sa.func.coalesce(_json(JsonType, at.pointer) == "ARRAY", sa.false()),
    KeyExists: lambda key: _has_key(key.name),
    KeyStartsWith: lambda key: _has_key(key.name, StartsWith(KEYS.c.value, key.prefix)),
    KeyIn: lambda key: FIBERS.c.fiber_id.in_(fibers_with_keys(key.name, key.values)),
}


def fibers_with_keys(name: str, values: Sequence[str]) -> sa.Select[UUID] | sa.CompoundSelect[UUID]:
    """Select the ids of the fibers that have a key of a name with one of the values."""
    if 0 < len(values) <= _MOST_LOOKUPS:
        lookups = [_fibers_with_key(name, value, key_hash(name, value)) for value in values]
        return lookups[0] if len(lookups) == 1 else sa.union_all(*lookups)
    hashes = [key_hash(name, value) for value in values]
    is_one = sa.and_(KEYS.c.name == name, among(KEYS.c.value, values))
    return sa.select(KEYS.c.fiber_id).where(among(KEYS.c.hash, hashes), is_one)


def _fibers_with_key(name: object, value: object, hashed: object) -> sa.Select[UUID]:
    # DuckDB asks an index by one condition alone, and only the index is quick: OFFSET keeps the others out.
    alike = (
        sa.select(KEYS.c.fiber_id, KEYS.c.name, KEYS.c.value)
        .where(KEYS.c.hash == hashed)
        .offset(sa.literal_column("0"))
        .subquery()
    )
    return sa.select(alike.c.fiber_id).where(alike.c.name == name, alike.c.value == value)


FIBERS_WITH_KEY = _fibers_with_key(*(sa.bindparam(name) for name in ("name", "value", "hash")))
"""Ids of the fibers with a key, whose ``name``, ``value`` and ``hash`` are parameters."""


def among(column: Expression, values: Sequence[object]) -> sa.ColumnElement[bool]:
    """Return that the column has one of the values; of many, a database takes a list in less time."""
    if len(values) <= _MOST_PARAMETERS:
        return column.in_(values)
    return column.in_(sa.select(sa.func.unnest(array_value(values, column.type))))


def apart(rows: sa.Select[Any]) -> sa.Subquery:
    """Return a subquery that a database runs by itself, rather than as part of the join that it is in.

    Citus can join its rows to those of another table, which lie on other nodes.
    """
    return rows.offset(sa.literal_column("0")).subquery()


_TEXT_FUNCTIONS: dict[str, Callable[[Expression, str], sa.ColumnElement[bool]]] = {
    "contains": Contains,
    "startswith": StartsWith,
    "regexp_match": RegexpMatches,
}


def _known(comparison: sa.ColumnElement[bool], name: str) -> sa.ColumnElement[bool]:
    """Make a comparison with NULL, which only this column may hold, false."""
    return sa.func.coalesce(comparison, sa.false()) if name == "ingestion_time" else comparison


def _driver_value(value: Value) -> object:
    return value // MICROSECOND if isinstance(value, timedelta) else value


def _joined(column: Expression, *conditions: sa.ColumnElement[bool]) -> sa.Select[UUID]:
    return sa.select(column).where(*conditions).correlate(None)


def _json(function: type[JsonElement], pointer: str) -> sa.ColumnElement[Any]:
    return function(_document(pointer), pointer)


def _document(pointer: str) -> sa.ColumnElement[Any]:
    return FIBERS.c.attributes if pointer else ATTRIBUTES


def _is_exact_as_float(value: str | float | bool | None) -> TypeGuard[int | float]:
    """Tell whether it is a number that no other number, rounded to a float, is equal to."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _EXACT_AS_FLOAT


def _compared(
    document: sa.ColumnElement[Any], pointer: str, operator: Operator, value: str | float | bool | None
) -> sa.ColumnElement[bool]:
    kind, text = JsonType(document, pointer), JsonTextAt(document, pointer)
    compare = _OPERATORS[operator]
    match value:
        case None:
            return kind == "NULL"
        case bool():
            return sa.and_(kind == "BOOLEAN", text == str(value).lower())
        case str():
            return sa.and_(kind == "VARCHAR", compare(text, value))
    if _is_exact_as_float(value):
        return compare(JsonFloat(document, pointer), float(value))
    number = int(value)
    as_float: sa.ColumnElement[Any] = JsonFloat(document, pointer)
    is_integer = kind.in_(["UBIGINT", "BIGINT"])
    if number == LEAST_NUMBER:  # what is stored as a lesser integer would be rounded up to it
        beyond = RegexpMatches(text, "^-[0-9]+$")
        as_float = sa.case((beyond, sa.cast(sa.literal_column("'-inf'"), sa.Double)), else_=as_float)
    return sa.or_(
        sa.and_(is_integer, compare(JsonInteger(document, pointer), number)),
        sa.and_(kind == "DOUBLE", _float_compared(as_float, operator, number)),
    )


def _float_compared(column: Expression, operator: Operator, number: int) -> sa.ColumnElement[bool]:
    """Compare a column of floats with an integer that may lie between two of them."""
    nearest = float(number)
    if nearest == number:
        return _OPERATORS[operator](column, nearest)
    if operator == "==":
        return sa.false()
    below = nearest if nearest < number else math.nextafter(nearest, -math.inf)
    return column <= below if operator in ("<", "<=") else column > below
