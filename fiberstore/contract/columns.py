"""Columns of logs, fibers and memberships, of which ``Logs.c`` and ``Fibers.c`` make conditions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Generic, NoReturn, TypeVar
from uuid import UUID

from fiberstore.checks import as_utc, check_config_version, check_duration, check_id, check_text
from fiberstore.contract.conditions import (
    GREATEST_NUMBER,
    LEAST_NUMBER,
    AttributeCompare,
    AttributeContains,
    AttributeExists,
    AttributeIn,
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
    Or,
    R,
    Scalar,
    checked_condition,
)
from fiberstore.contract.patterns import check_pattern
from fiberstore.records import FiberMembership, FiberRecord, StoredLog

V = TypeVar("V", str, int, UUID, datetime, timedelta)


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
        check_pattern(pattern)
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

    def exists(self) -> KeyExists:
        """Be true of a fiber that has a key of this name."""
        return KeyExists(self.name)

    def __eq__(self, value: str) -> KeyIn:  # type: ignore[override]  # as in SQLAlchemy
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


class _Columns:
    """Columns of a record, by their names."""

    if not TYPE_CHECKING:  # a type checker finds a wrong name itself

        def __getattr__(self, name: str) -> NoReturn:
            names = [column for column in dir(type(self)) if not column.startswith("_")]
            raise AttributeError(f"no column {name!r}; there are {', '.join(names)}", name=name, obj=self)


class LogColumns(_Columns):
    """Columns for conditions on logs."""

    log_id = IdColumn(StoredLog, "log_id")
    timestamp = TimeColumn(StoredLog, "timestamp")
    source_id = TextColumn(StoredLog, "source_id")
    raw_text = TextColumn(StoredLog, "raw_text")
    ingestion_time = TimeColumn(StoredLog, "ingestion_time")
    config_version = VersionColumn(StoredLog, "config_version")
    pinned = Flag(StoredLog, "pinned")
    fibers: ClassVar = LogFibers()


class FiberColumns(_Columns):
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


class MembershipColumns(_Columns):
    """Columns for conditions on memberships."""

    log_id = IdColumn(FiberMembership, "log_id")
    fiber_id = IdColumn(FiberMembership, "fiber_id")
    config_version = GenerationColumn(FiberMembership, "config_version")


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
