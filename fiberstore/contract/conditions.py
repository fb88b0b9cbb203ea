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

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeAlias, TypeVar
from uuid import UUID

from fiberstore.checks import as_utc, check_config_version, check_duration, check_id, check_text
from fiberstore.contract.patterns import closed, has_bytes
from fiberstore.records import FiberMembership, FiberRecord, StoredLog

R = TypeVar("R", StoredLog, FiberRecord, FiberMembership)
V = TypeVar("V", str, int, UUID, datetime, timedelta)

Operator: TypeAlias = Literal["==", "<", "<=", ">", ">="]
Value: TypeAlias = str | int | UUID | datetime | timedelta
Scalar: TypeAlias = str | int | float | bool | None

_MOST_NESTED = 60
_NAMED_GROUP = re.compile(  # or what can hold its beginning as text: quoted, escaped or in brackets
    r"\\Q.*?(?:\\E|\Z)|\\.|\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^]\\])*\]|(?P<begin>\(\?<)", re.DOTALL
)
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
        return And(self.record, (*_parts(self, And), *_parts(_same(self, other), And)))

    def __or__(self, other: "Condition[R]") -> "Condition[R]":
        return Or(self.record, (*_parts(self, Or), *_parts(_same(self, other), Or)))

    def __invert__(self) -> "Condition[R]":
        return Not(self.record, self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a condition is not true or false by itself: join conditions with &, | and ~ (each in "
            "parentheses) instead of and, or and not, and use between() instead of a < column < b"
        )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class And(Condition[R]):
    """True where all of its conditions are."""

    record: type[R]
    conditions: tuple[Condition[R], ...]
    nesting: int = field(init=False)

    def __post_init__(self) -> None:
        _nest(self, *self.conditions)

    def __repr__(self) -> str:
        return _joined(self, " & ") if self.conditions else "True"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Or(Condition[R]):
    """True where one of its conditions is."""

    record: type[R]
    conditions: tuple[Condition[R], ...]
    nesting: int = field(init=False)

    def __post_init__(self) -> None:
        _nest(self, *self.conditions)

    def __repr__(self) -> str:
        return _joined(self, " | ") if self.conditions else "False"


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


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeExists(Condition[FiberRecord]):
    """There is a value at a JSON pointer, be it null."""

    pointer: str
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}].exists()"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeCompare(Condition[FiberRecord]):
    """The value at a JSON pointer compared with one of its kind."""

    pointer: str
    operator: Operator
    value: Scalar
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        return f"(attributes[{self.pointer!r}] {self.operator} {self.value!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeIn(Condition[FiberRecord]):
    """The value at a JSON pointer is one of these, of their kind."""

    pointer: str
    values: tuple[Scalar, ...]
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}].in_({list(self.values)!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeContains(Condition[FiberRecord]):
    """The list at a JSON pointer has a value of this kind that is equal to it."""

    pointer: str
    value: Scalar
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}].contains({self.value!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AttributeIsList(Condition[FiberRecord]):
    """There is a list at a JSON pointer."""

    pointer: str
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        return f"attributes[{self.pointer!r}] is a list"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyExists(Condition[FiberRecord]):
    """A fiber has a key of this name."""

    name: str
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        return f"keys[{self.name!r}].exists()"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyIn(Condition[FiberRecord]):
    """A fiber has a key of this name with one of these values."""

    name: str
    values: tuple[str, ...]
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        if len(self.values) == 1:
            return f"(keys[{self.name!r}] == {self.values[0]!r})"
        return f"keys[{self.name!r}].in_({list(self.values)!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyStartsWith(Condition[FiberRecord]):
    """A fiber has a key of this name whose value begins with a prefix."""

    name: str
    prefix: str
    record: type[FiberRecord] = field(default=FiberRecord, init=False)

    def __repr__(self) -> str:
        return f"keys[{self.name!r}].startswith({self.prefix!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HasLog(Condition[FiberRecord]):
    """A fiber with a stored log of which a condition is true."""

    condition: Condition[StoredLog]
    record: type[FiberRecord] = field(default=FiberRecord, init=False)
    nesting: int = field(init=False)

    def __post_init__(self) -> None:
        _nest(self, self.condition)

    def __repr__(self) -> str:
        return f"logs.any({self.condition!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HasFiber(Condition[StoredLog]):
    """A log in a stored fiber of which a condition is true."""

    condition: Condition[FiberRecord]
    record: type[StoredLog] = field(default=StoredLog, init=False)
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


@dataclass(frozen=True, slots=True, eq=False)
class Column(Generic[R, V]):
    """A column that can be equal to a value."""

    record: type[R]
    name: str

    def check(self, value: V) -> V:
        """Return the value as it is compared; ``TypeError`` or ``ValueError`` if it cannot be one."""
        return value

    def __eq__(self, value: V) -> Condition[R]:  # type: ignore[override]  # as in SQLAlchemy
        return Compare(self.record, self.name, "==", self.check(value))

    def __ne__(self, value: V) -> Condition[R]:  # type: ignore[override]
        return ~(self == value)

    __hash__ = object.__hash__

    def in_(self, values: Iterable[V]) -> Condition[R]:
        """Be true where the column has one of these values; of none, never."""
        if isinstance(values, str):
            raise TypeError(f"expected several values, got the text {values!r}; use == for one")
        return In(self.record, self.name, tuple(map(self.check, values)))


class OrderedColumn(Column[R, V]):
    """A column whose values have an order."""

    __slots__ = ()

    def __lt__(self, value: V) -> Condition[R]:
        return Compare(self.record, self.name, "<", self.check(value))

    def __le__(self, value: V) -> Condition[R]:
        return Compare(self.record, self.name, "<=", self.check(value))

    def __gt__(self, value: V) -> Condition[R]:
        return Compare(self.record, self.name, ">", self.check(value))

    def __ge__(self, value: V) -> Condition[R]:
        return Compare(self.record, self.name, ">=", self.check(value))

    def between(self, low: V, high: V) -> Condition[R]:
        """Be true from ``low`` to ``high``, both included."""
        return (self >= low) & (self <= high)


class IdColumn(Column[R, UUID]):
    """A column of ids."""

    __slots__ = ()

    def check(self, value: UUID) -> UUID:
        """Take a ``UUID``."""
        check_id(value)
        return value


class TimeColumn(OrderedColumn[R, datetime]):
    """A column of instants."""

    __slots__ = ()

    def check(self, value: datetime) -> datetime:
        """Take aware datetimes in any zone."""
        return as_utc(value)


class DurationColumn(OrderedColumn[R, timedelta]):
    """A span of time, exact to 1 µs."""

    __slots__ = ()

    def check(self, value: timedelta) -> timedelta:
        """Take a ``timedelta``."""
        return check_duration(self.name, value)


class VersionColumn(OrderedColumn[R, int]):
    """A column of config versions."""

    __slots__ = ()

    def check(self, value: int) -> int:
        """Take 0 to 2**64 - 1."""
        check_config_version(value)
        return value


class GenerationColumn(VersionColumn[R]):
    """A column of the config versions that have made fibers."""

    __slots__ = ()

    def is_active(self) -> Condition[R]:
        """Be true where it is the version that is active (see ``fiberstore.contract.lifecycle.Versions``)."""
        return IsActive(self.record)


class TextColumn(Column[R, str]):
    """A column of text. Upper and lower case differ."""

    __slots__ = ()

    def check(self, value: str) -> str:
        """Take what the store can hold."""
        return check_text(value)

    def contains(self, text: str) -> Condition[R]:
        """Be true where the text is found anywhere; ``%`` and ``_`` mean themselves."""
        return Match(self.record, self.name, "contains", check_text(text))

    def startswith(self, prefix: str) -> Condition[R]:
        """Be true where the column begins with the prefix."""
        return Match(self.record, self.name, "startswith", check_text(prefix))

    def regexp_match(self, pattern: str) -> Condition[R]:
        r"""Be true where the pattern matches somewhere.

        Args:
            pattern: A regular expression of RE2 (https://github.com/google/re2/wiki/Syntax), which takes a
                time in proportion to the text whatever it is. ``(?i)`` at its beginning ignores case.

        Raises:
            ValueError: It is no such expression, as RE2 has no look-around and no back-references; or it has
                ``\C``, which matches a byte of a character.
        """
        _check_pattern(pattern)
        return Match(self.record, self.name, "regexp_match", pattern)


class Attribute:
    """The value at a JSON pointer in the attributes of a fiber.

    It is compared with values of its kind: numbers with numbers, text with text, by the order of code points.
    Nothing is equal to, less or greater than a value of another kind: true is not 1, and a list is not its
    only item. ``contains`` looks into lists; a query that finds nothing where it compares lists with values
    logs a warning that says so.

    Args:
        pointer: See RFC 6901: ``""`` is the whole, ``"/user/name"`` the ``name`` of the ``user``, ``"/0"``
            the first of a list; in a key, ``~1`` stands for ``/`` and ``~0`` for ``~``.
    """

    __slots__ = ("pointer",)
    __hash__ = object.__hash__

    def __init__(self, pointer: str) -> None:
        self.pointer = check_pointer(pointer)

    def exists(self) -> Condition[FiberRecord]:
        """Be true where there is a value, be it null."""
        return AttributeExists(self.pointer)

    def __eq__(self, value: Scalar) -> Condition[FiberRecord]:  # type: ignore[override]  # as in SQLAlchemy
        return AttributeCompare(self.pointer, "==", _checked_scalar(value))

    def __ne__(self, value: Scalar) -> Condition[FiberRecord]:  # type: ignore[override]
        return ~(self == value)

    def in_(self, values: Iterable[Scalar]) -> Condition[FiberRecord]:
        """Be true where the value is one of these; of none, never."""
        if isinstance(values, str):
            raise TypeError(f"expected several values, got the text {values!r}; use == for one")
        return AttributeIn(self.pointer, tuple(map(_checked_scalar, values)))

    def __lt__(self, value: str | float) -> Condition[FiberRecord]:
        return AttributeCompare(self.pointer, "<", _checked_bound(value))

    def __le__(self, value: str | float) -> Condition[FiberRecord]:
        return AttributeCompare(self.pointer, "<=", _checked_bound(value))

    def __gt__(self, value: str | float) -> Condition[FiberRecord]:
        return AttributeCompare(self.pointer, ">", _checked_bound(value))

    def __ge__(self, value: str | float) -> Condition[FiberRecord]:
        return AttributeCompare(self.pointer, ">=", _checked_bound(value))

    def between(self, low: str | float, high: str | float) -> Condition[FiberRecord]:
        """Be true from ``low`` to ``high``, both included."""
        return (self >= low) & (self <= high)

    def contains(self, value: Scalar) -> Condition[FiberRecord]:
        """Be true where it is a list that has this value; only its own items count, not theirs."""
        return AttributeContains(self.pointer, _checked_scalar(value))


class Attributes:
    """The attributes of a fiber: ``attributes["/user"]`` is what they hold at a JSON pointer."""

    __slots__ = ()

    def __getitem__(self, pointer: str) -> Attribute:
        return Attribute(pointer)


class KeyColumn:
    """The values of the keys of one name that a fiber has: none, one or several.

    A comparison is true of a fiber if it is true of one of them, and ``!=`` if ``==`` is not.
    """

    __slots__ = ("name",)
    __hash__ = object.__hash__

    def __init__(self, name: str) -> None:
        if not check_text(name):
            raise ValueError("the name of a key has at least one character")
        self.name = name

    def exists(self) -> Condition[FiberRecord]:
        """Be true of a fiber that has a key of this name."""
        return KeyExists(self.name)

    def __eq__(self, value: str) -> Condition[FiberRecord]:  # type: ignore[override]  # as in SQLAlchemy
        return KeyIn(self.name, (check_text(value),))

    def __ne__(self, value: str) -> Condition[FiberRecord]:  # type: ignore[override]
        return ~(self == value)

    def in_(self, values: Iterable[str]) -> Condition[FiberRecord]:
        """Be true where one of them is among these values; of none, never."""
        if isinstance(values, str):
            raise TypeError(f"expected several values, got the text {values!r}; use == for one")
        return KeyIn(self.name, tuple(map(check_text, values)))

    def startswith(self, prefix: str) -> Condition[FiberRecord]:
        """Be true where one of them begins with the prefix."""
        return KeyStartsWith(self.name, check_text(prefix))


class KeyColumns:
    """The keys of a fiber: ``keys["request"]`` are those of that name.

    A key of several groups (``key = ["host", "queue"]`` in the rules) has the name ``host+queue``; its value
    is their texts joined by ``+``, with a backslash before each ``+`` or backslash in a text.
    """

    __slots__ = ()

    def __getitem__(self, name: str) -> KeyColumn:
        return KeyColumn(name)


class Activity:
    """The time from the first to the last activity of a fiber, both included."""

    __slots__ = ()

    def overlaps(self, start: datetime, end: datetime) -> Condition[FiberRecord]:
        """Be true where some of it lies between ``start`` and ``end``, both included and timezone-aware."""
        started = Compare(FiberRecord, "first_activity", "<=", as_utc(end))
        not_over = Compare(FiberRecord, "last_activity", ">=", as_utc(start))
        if start > end:
            return Or(FiberRecord, ())
        return started & not_over


class FiberLogs:
    """The logs of a fiber."""

    __slots__ = ()

    def any(self, condition: Condition[StoredLog]) -> Condition[FiberRecord]:
        """Be true of a fiber that has a stored log of which the condition is true."""
        return HasLog(checked_condition(condition, StoredLog))

    def contains(self, *log_ids: UUID) -> Condition[FiberRecord]:
        """Be true of a fiber that one of these logs, stored or not, belongs to."""
        return Joined(FiberRecord, "logs", _checked_ids(log_ids))


class LogFibers:
    """The fibers of a log."""

    __slots__ = ()

    def any(self, condition: Condition[FiberRecord]) -> Condition[StoredLog]:
        """Be true of a log that belongs to a stored fiber of which the condition is true."""
        return HasFiber(checked_condition(condition, FiberRecord))

    def contains(self, *fiber_ids: UUID) -> Condition[StoredLog]:
        """Be true of a log that belongs to one of these fibers, stored or not."""
        return Joined(StoredLog, "fibers", _checked_ids(fiber_ids))


class LogColumns:
    """Columns for conditions on logs."""

    log_id = IdColumn(StoredLog, "log_id")
    timestamp = TimeColumn(StoredLog, "timestamp")
    source_id = TextColumn(StoredLog, "source_id")
    raw_text = TextColumn(StoredLog, "raw_text")
    ingestion_time = TimeColumn(StoredLog, "ingestion_time")
    config_version = VersionColumn(StoredLog, "config_version")
    pinned = Flag(StoredLog, "pinned")
    fibers: ClassVar = LogFibers()


class FiberColumns:
    """Columns for conditions on fibers."""

    fiber_id = IdColumn(FiberRecord, "fiber_id")
    fiber_type = TextColumn(FiberRecord, "fiber_type")
    config_version = GenerationColumn(FiberRecord, "config_version")
    attributes: ClassVar = Attributes()
    keys: ClassVar = KeyColumns()
    first_activity = TimeColumn(FiberRecord, "first_activity")
    last_activity = TimeColumn(FiberRecord, "last_activity")
    activity: ClassVar = Activity()
    duration = DurationColumn(FiberRecord, "duration")
    closed = Flag(FiberRecord, "closed")
    pinned = Flag(FiberRecord, "pinned")
    logs: ClassVar = FiberLogs()


class MembershipColumns:
    """Columns for conditions on memberships."""

    log_id = IdColumn(FiberMembership, "log_id")
    fiber_id = IdColumn(FiberMembership, "fiber_id")
    config_version = GenerationColumn(FiberMembership, "config_version")


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
    match condition:
        case IsActive():
            return True
        case And() | Or():
            return any(map(depends_on_active, condition.conditions))
        case Not() | HasLog() | HasFiber():
            return depends_on_active(condition.condition)
    return False


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


def check_pointer(pointer: str) -> str:
    """Return the text if it is a JSON pointer.

    Raises:
        ValueError: It is not.
    """
    check_text(pointer)
    if pointer and not pointer.startswith("/"):
        key = pointer.replace("~", "~0").replace("/", "~1")
        raise ValueError(f"{pointer!r} is no JSON pointer; for the key of that name, write {'/' + key!r}")
    if re.search("~(?![01])", pointer):
        raise ValueError(f"{pointer!r} is no JSON pointer: in a key, write ~0 for ~ and ~1 for /")
    return pointer


def check_redaction(pattern: str) -> None:
    """Check that a regular expression of RE2 matches some text only.

    Raises:
        ValueError: It is no such expression, or matches the empty text, be it only beside some character.
    """
    _check_pattern(pattern)
    if _can_be_empty(pattern):
        raise ValueError(f"{pattern!r} matches the empty text, so everywhere; write one that does not")


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


def _joined(condition: And[R] | Or[R], sign: str) -> str:
    first, *others = condition.conditions
    begin = repr(first)
    if not others:
        return begin
    if type(first) is type(condition) and len(first.conditions) > 1:  # (a & b) & c is a & b & c
        begin = begin[1:-1]
    return f"({sign.join([begin, *map(repr, others)])})"


def _shown(value: Value) -> str:
    """Show a value as text in quotes, or as a number."""
    if isinstance(value, datetime):
        return repr(value.isoformat())
    if isinstance(value, UUID):
        return repr(str(value))
    if isinstance(value, timedelta):
        seconds, rest_us = divmod(abs(value) // timedelta(microseconds=1), 1_000_000)
        decimals = f".{rest_us:06d}".rstrip("0").rstrip(".")
        return repr(f"{'-' * (value < timedelta())}{seconds}{decimals}s")
    return repr(value)


def _checked_ids(ids: tuple[UUID, ...]) -> tuple[UUID, ...]:
    for id_ in ids:
        check_id(id_)
    return ids


def _checked_scalar(value: Scalar) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    return _checked_bound(value)


def _checked_bound(value: str | float) -> str | float:
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"an attribute is compared with text, a number, a bool or None, got {value!r:.200}; "
            "compare the parts of a list or an object by their pointers"
        )
    if not LEAST_NUMBER <= value <= GREATEST_NUMBER:  # so NaN is refused, too
        raise ValueError(f"{value} is beyond the numbers that are compared exactly, -2**63 to 2**64 - 1")
    return value


def _check_pattern(pattern: str) -> None:
    """Check a regular expression of RE2, see ``TextColumn.regexp_match``."""
    _re2_finds(check_text(pattern), [""], pattern)
    if any(token["begin"] for token in _NAMED_GROUP.finditer(pattern)):  # what only newer versions know
        reason = "Invalid regular expression: invalid perl operator: (?<"
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {reason}")
    if has_bytes(pattern):
        raise ValueError(
            rf"{pattern!r} has \C, which matches a byte; write (?s:.), which matches a character"
        )


def _can_be_empty(pattern: str) -> bool:
    """Return whether a regular expression matches the empty text somewhere in some text.

    That depends on the two characters around it only, and of each on what assertions see: no character at
    all, the end of a line, a character of a word, or another.
    """
    seen = ("\n", "a", " ")
    around = {
        "{}": [""],
        "(?s:.){}": seen,
        "{}(?s:.)": seen,
        "(?s:.){}(?s:.)": [before + after for before in seen for after in seen],
    }
    empty = f"(?:{closed(pattern)})"
    return any(_re2_finds(rf"\A{place.format(empty)}\z", texts, pattern) for place, texts in around.items())


def _re2_finds(expression: str, texts: Sequence[str], pattern: str) -> bool:
    """Return whether an expression that is made of a pattern matches in one of the texts."""
    import pyarrow as pa  # it has RE2
    from pyarrow import compute

    try:
        return any(compute.match_substring_regex(pa.array(texts), expression).to_pylist())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {error}") from error
