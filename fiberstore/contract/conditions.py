"""Conditions, of which filters of logs and fibers are made.

``Logs.c`` and ``Fibers.c`` hold the columns. Comparing one with a value makes a condition, as in SQLAlchemy,
and ``&``, ``|`` and ``~`` join conditions:

```python
Logs.c.source_id.in_(["web", "db"]) & ~Logs.c.raw_text.contains("healthz")
Fibers.c.keys["request"] == "7f3a"
Fibers.c.attributes["/user"] == "root"
Fibers.c.logs.any(Logs.c.raw_text.regexp_match("(?i)time[d]? ?out"))
```

A condition is plain data that knows no backend. It is true or false of a record, never unknown:
``~condition`` holds exactly where ``condition`` does not. So ``column != value`` holds too where there is no
value. What no backend could answer exactly is refused when the condition is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeAlias, TypeVar
from uuid import UUID

from fiberstore.records import MICROSECOND, FiberMembership, FiberRecord, StoredLog

R = TypeVar("R", StoredLog, FiberRecord, FiberMembership)

Operator: TypeAlias = Literal["==", "<", "<=", ">", ">="]
Value: TypeAlias = str | int | UUID | datetime | timedelta
Scalar: TypeAlias = str | int | float | bool | None

_MOST_NESTED = 60
LEAST_NUMBER, GREATEST_NUMBER = -(2**63), 2**64 - 1


class Condition(ABC, Generic[R]):
    """Something that is true or false of each record of one kind.

    Attributes:
        record: The kind of record.
        nesting: How many conditions lie in one another, at most 60.
    """

    record: type[R]
    nesting: int = 1

    @abstractmethod
    def __repr__(self) -> str: ...

    def __and__(self, other: "Condition[R]") -> "Condition[R]":
        parts = (*_parts(self, And), *_parts(_same(self, other), And))
        return parts[0] if len(parts) == 1 else And(self.record, parts)  # an empty one has no part

    def __or__(self, other: "Condition[R]") -> "Condition[R]":
        parts = (*_parts(self, Or), *_parts(_same(self, other), Or))
        return parts[0] if len(parts) == 1 else Or(self.record, parts)

    def __invert__(self) -> "Condition[R]":
        return Not(self.record, self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a condition is not true or false by itself: join conditions with &, | and ~ (each in "
            "parentheses) instead of and, or and not, and use between() instead of a < column < b"
        )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Several(Condition[R]):
    record: type[R]
    conditions: tuple[Condition[R], ...]
    nesting: int = field(init=False)
    sign: ClassVar[str]
    of_none: ClassVar[bool]

    def __post_init__(self) -> None:
        _nest(self, *self.conditions)

    def __repr__(self) -> str:
        if not self.conditions:
            return str(self.of_none)
        first, *others = self.conditions
        begin = repr(first)
        if not others:
            return begin
        if type(first) is type(self) and len(first.conditions) > 1:  # (a & b) & c is a & b & c
            begin = begin[1:-1]
        return f"({f' {self.sign} '.join([begin, *map(repr, others)])})"


class And(_Several[R]):
    """True where all of its conditions are."""

    __slots__ = ()
    sign, of_none = "&", True


class Or(_Several[R]):
    """True where one of its conditions is."""

    __slots__ = ()
    sign, of_none = "|", False


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Not(Condition[R]):
    """True where its condition is not."""

    record: type[R]
    condition: Condition[R]
    nesting: int = field(init=False)

    def __post_init__(self) -> None:
        _nest(self, self.condition)

    def __invert__(self) -> Condition[R]:
        return self.condition

    def __repr__(self) -> str:
        return f"~{self.condition!r}"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Compare(Condition[R]):
    """A column compared with a value."""

    record: type[R]
    column: str
    operator: Operator
    value: Value

    def __repr__(self) -> str:
        return f"({self.column} {self.operator} {_shown(self.value)})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class In(Condition[R]):
    """A column that has one of some values."""

    record: type[R]
    column: str
    values: tuple[Value, ...]

    def __repr__(self) -> str:
        return f"{self.column}.in_([{', '.join(map(_shown, self.values))}])"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Match(Condition[R]):
    """A text that holds, begins with, or matches another."""

    record: type[R]
    column: str
    kind: Literal["contains", "startswith", "regexp_match"]
    text: str

    def __repr__(self) -> str:
        return f"{self.column}.{self.kind}({self.text!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Flag(Condition[R]):
    """A column that is true or false; it is a condition itself."""

    record: type[R]
    column: str

    def __repr__(self) -> str:
        return self.column

    def is_(self, value: bool) -> Condition[R]:
        """Be true where the column has this value."""
        if not isinstance(value, bool):
            raise TypeError(f"expected True or False, got {value!r}")
        return self if value else ~self


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class IsActive(Condition[R]):
    """True where the config version is the active one; while none is active, nowhere."""

    record: type[R]

    def __repr__(self) -> str:
        return "config_version.is_active()"


class _OfFiber(Condition[FiberRecord]):
    record = FiberRecord


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeExists(_OfFiber):
    """There is a value at a JSON pointer, be it null."""

    pointer: str

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}].exists()"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeCompare(_OfFiber):
    """The value at a JSON pointer compared with one of its kind."""

    pointer: str
    operator: Operator
    value: Scalar

    def __repr__(self) -> str:
        return f"(attributes[{self.pointer!r}] {self.operator} {self.value!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeIn(_OfFiber):
    """The value at a JSON pointer is one of these, of their kind."""

    pointer: str
    values: tuple[Scalar, ...]

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}].in_({list(self.values)!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeContains(_OfFiber):
    """The list at a JSON pointer has a value of this kind that is equal to it."""

    pointer: str
    value: Scalar

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}].contains({self.value!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeIsList(_OfFiber):
    """There is a list at a JSON pointer."""

    pointer: str

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}] is a list"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyExists(_OfFiber):
    """A fiber has a key of this name."""

    name: str

    def __repr__(self) -> str:
        return f"keys[{self.name!r}].exists()"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyIn(_OfFiber):
    """A fiber has a key of this name with one of these values."""

    name: str
    values: tuple[str, ...]

    def __repr__(self) -> str:
        if len(self.values) == 1:
            return f"(keys[{self.name!r}] == {self.values[0]!r})"
        return f"keys[{self.name!r}].in_({list(self.values)!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyStartsWith(_OfFiber):
    """A fiber has a key of this name whose value begins with a prefix."""

    name: str
    prefix: str

    def __repr__(self) -> str:
        return f"keys[{self.name!r}].startswith({self.prefix!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HasLog(_OfFiber):
    """A fiber with a stored log of which a condition is true."""

    condition: Condition[StoredLog]
    nesting: int = field(init=False)

    def __post_init__(self) -> None:
        _nest(self, self.condition)

    def __repr__(self) -> str:
        return f"logs.any({self.condition!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HasFiber(Condition[StoredLog]):
    """A log in a stored fiber of which a condition is true."""

    record = StoredLog
    condition: Condition[FiberRecord]
    nesting: int = field(init=False)

    def __post_init__(self) -> None:
        _nest(self, self.condition)

    def __repr__(self) -> str:
        return f"fibers.any({self.condition!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Joined(Condition[R]):
    """A record that a membership joins to one of these ids, stored or not."""

    record: type[R]
    relation: Literal["logs", "fibers"]
    ids: tuple[UUID, ...]

    def __repr__(self) -> str:
        return f"{self.relation}.contains({', '.join(map(_shown, self.ids))})"


def checked_condition(condition: Condition[R], record: type[R]) -> Condition[R]:
    """Return the condition if it is one on that kind of record.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(condition, Condition):
        raise TypeError(f"expected a condition, such as Logs.c.source_id == 'web', got {condition!r:.200}")
    if condition.record is not record:
        raise TypeError(
            f"{condition!r:.200} is a condition on a {condition.record.__name__}, not on a {record.__name__}"
        )
    return condition


def depends_on_active(condition: Condition[Any]) -> bool:
    """Return whether a condition depends on which config version is the active one."""
    return any(isinstance(part, IsActive) for part in _walk(condition))


def compared_as_lists(condition: Condition[R]) -> tuple[Condition[R], list[AttributeCompare | AttributeIn]]:
    """Turn comparisons of attributes with values into conditions that they are lists.

    No list is equal to a value, so a condition that nothing fulfils may be one that was meant for the items.

    Returns:
        The other condition, and the comparisons for which it asks for a list; a pointer whose items the
        condition looks at with ``contains`` is left alone.
    """
    looked_into = {part.pointer for part in _walk(condition) if isinstance(part, AttributeContains)}
    compared: list[AttributeCompare | AttributeIn] = []

    def turned(part: Condition[Any]) -> Condition[Any]:
        match part:
            case AttributeCompare() | AttributeIn():
                if part.pointer in looked_into:
                    return part
                compared.append(part)
                return AttributeIsList(part.pointer)
            case And() | Or():
                return type(part)(part.record, tuple(map(turned, part.conditions)))
            case Not():
                return Not(part.record, turned(part.condition))
            case HasLog() | HasFiber():
                return type(part)(turned(part.condition))
        return part

    return turned(condition), compared


def _walk(condition: Condition[Any]) -> Iterator[Condition[Any]]:
    """Yield a condition and all in it."""
    yield condition
    match condition:
        case And() | Or():
            for part in condition.conditions:
                yield from _walk(part)
        case Not() | HasLog() | HasFiber():
            yield from _walk(condition.condition)


def _nest(condition: Condition[R], *parts: Condition[Any]) -> None:
    """Set the nesting of a new condition.

    Raises:
        ValueError: Deeper than Python and SQLAlchemy can go.
    """
    nesting = 1 + max((part.nesting for part in parts), default=0)
    if nesting > _MOST_NESTED:
        raise ValueError(
            f"conditions are nested more than {_MOST_NESTED} deep; use in_() for many values, and join many "
            "conditions with & or | one after the other"
        )
    object.__setattr__(condition, "nesting", nesting)  # they are frozen


def _parts(condition: Condition[R], kind: type[And[R]] | type[Or[R]]) -> tuple[Condition[R], ...]:
    return condition.conditions if isinstance(condition, kind) else (condition,)


def _same(condition: Condition[R], other: Condition[R]) -> Condition[R]:
    return checked_condition(other, condition.record)


def _shown(value: Value) -> str:
    """Show a value as text in quotes, or as a number."""
    if isinstance(value, datetime):
        return repr(value.isoformat())
    if isinstance(value, UUID):
        return repr(str(value))
    if isinstance(value, timedelta):
        seconds, rest_us = divmod(abs(value) // MICROSECOND, 1_000_000)
        decimals = f".{rest_us:06d}".rstrip("0").rstrip(".")
        return repr(f"{'-' * (value < timedelta())}{seconds}{decimals}s")
    return repr(value)
