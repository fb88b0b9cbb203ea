"""Conditions as text, for ``--where``: the words of ``Logs.c`` and ``Fibers.c``, read and never evaluated.

```
source_id == "web" and not raw_text.contains("healthz")
keys["request"] == "7f3a" or attributes["/user"] == "root" and logs.any(source_id == "db")
closed and duration > "5s" and activity.overlaps("2024-12-10T07:00Z", "2024-12-10T08:00Z")
```

Python's own parser reads the text; what it finds is walked, and whatever is not named here is refused. Times
and ids are written as text, durations as text (``"1.5h"``) or as a number of seconds. ``repr(condition)`` is
such a text too.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

import typer

from fiberstore.cli.times import parse_time
from fiberstore.contract.columns import (
    Activity,
    Attribute,
    Attributes,
    Column,
    DurationColumn,
    FiberColumns,
    FiberLogs,
    GenerationColumn,
    IdColumn,
    KeyColumn,
    KeyColumns,
    LogColumns,
    LogFibers,
    OrderedColumn,
    TextColumn,
    TimeColumn,
)
from fiberstore.contract.conditions import And, Condition, Flag, Or
from fiberstore.records import FiberRecord, StoredLog, parse_duration

R = TypeVar("R", StoredLog, FiberRecord)
T = TypeVar("T")
Literal: TypeAlias = str | int | float | bool | None

_MOST_CHARACTERS = 20_000
_MOST_DEPTH = 100
_SHOWN_CHARACTERS = 80

_NAMES: Final[Mapping[type, Mapping[str, object]]] = {
    record: {name: value for name, value in vars(columns).items() if not name.startswith("_")}
    for record, columns in ((StoredLog, LogColumns), (FiberRecord, FiberColumns))
}
_TABLES = {StoredLog: "logs", FiberRecord: "fibers"}
_COMPARISONS: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_SEVERAL = -1
_METHODS: Final[tuple[tuple[type, Mapping[str, int]], ...]] = (  # and how many values they take
    (Column, {"in_": 1}),
    (OrderedColumn, {"between": 2}),
    (GenerationColumn, {"is_active": 0}),
    (TextColumn, {"contains": 1, "startswith": 1, "regexp_match": 1}),
    (Flag, {"is_": 1}),
    (Attribute, {"exists": 0, "in_": 1, "between": 2, "contains": 1}),
    (KeyColumn, {"exists": 0, "in_": 1, "startswith": 1}),
    (Activity, {"overlaps": 2}),
    (FiberLogs, {"any": 1, "contains": _SEVERAL}),
    (LogFibers, {"any": 1, "contains": _SEVERAL}),
)


def parse_log_condition(text: str) -> Condition[StoredLog]:
    """Return the condition on logs that a text says.

    Raises:
        typer.BadParameter: It says none; the message names the part of the text.
    """
    return _parse(text, StoredLog)


def parse_fiber_condition(text: str) -> Condition[FiberRecord]:
    """Do for fibers what ``parse_log_condition`` does for logs."""
    return _parse(text, FiberRecord)


def _parse(text: str, record: type[R]) -> Condition[R]:
    if len(text) > _MOST_CHARACTERS:
        raise typer.BadParameter(f"it has {len(text):,} characters; {_MOST_CHARACTERS:,} are the most")
    text = text.strip()
    if not text:
        raise typer.BadParameter("it is empty; give a condition such as config_version > 0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is what a pattern holds
            tree = ast.parse(text, mode="eval")
        return _Reader(text, record).condition(tree.body, 0)
    except SyntaxError as error:
        at = (error.offset or 1) - 1
        if "Maybe you meant '=='" in error.msg or (error.lineno == 1 and text[at : at + 1] == "="):
            raise typer.BadParameter(f"{_cut(text)} cannot be read; to compare, write == for =") from error
        place = f" at character {error.offset}" if error.lineno == 1 and error.offset else ""
        raise typer.BadParameter(f"{_cut(text)} cannot be read{place}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise typer.BadParameter(_too_deep(text)) from error
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"{_cut(text)} is not UTF-8 at character {error.start + 1}") from error
    except ValueError as error:  # such as a NUL
        raise typer.BadParameter(f"{_cut(text)} cannot be read: {error}") from error


class _Reader:
    """Makes conditions on one kind of record from parts of a text."""

    def __init__(self, text: str, record: type[StoredLog] | type[FiberRecord]) -> None:
        self._text = text
        self._record = record

    def condition(self, node: ast.expr, depth: int) -> Condition[Any]:  # noqa: PLR0911  # one for each kind
        if depth > _MOST_DEPTH:
            raise typer.BadParameter(_too_deep(self._text))
        match node:
            case ast.BoolOp(values=values):
                join = And if isinstance(node.op, ast.And) else Or
                return join(self._record, tuple(self.condition(value, depth + 1) for value in values))
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                join = And if isinstance(node.op, ast.BitAnd) else Or
                parts = _chain(node, type(node.op))
                return join(self._record, tuple(self.condition(part, depth + 1) for part in parts))
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                return ~self.condition(operand, depth + 1)
            case ast.Compare():
                return self._comparison(node)
            case ast.Constant(value=bool(value)):
                return And(self._record, ()) if value else Or(self._record, ())
            case ast.Call():
                return self._call(node, depth)
            case ast.Name():
                found = self._column(node)
                if isinstance(found, Condition):
                    return found
                raise self._wrong(node, f"is no condition by itself; {_how_to_use(found)}")
        raise self._wrong(
            node, "is no condition; write one such as config_version > 0, and join them by and, or, not"
        )

    def _comparison(self, node: ast.Compare) -> Condition[Any]:
        sides = [node.left, *node.comparators]
        found = [
            self._compared(left, type(op), right)
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return found[0] if len(found) == 1 else And(self._record, tuple(found))

    def _compared(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr) -> Condition[Any]:
        column, other = self._column(left), self._column(right)
        if column is not None and other is not None:
            raise self._wrong(right, f"is a column; {self._part(left)} is compared with a value only")
        if column is None and other is None:
            raise self._wrong(left, f"is no column; {self._there_are()}")
        if op not in _COMPARISONS:
            raise self._wrong(
                left if other is None else right, f"cannot be compared so; {_how_to_use(column or other)}"
            )
        is_turned = column is None
        if column is None:
            left, right, column = right, left, other
        is_ordered = isinstance(column, OrderedColumn | Attribute)
        if not (is_ordered or (isinstance(column, Column | KeyColumn) and op not in _ORDERS)):
            raise self._wrong(left, f"cannot be compared so; {_how_to_use(column)}")
        value = self._value(right, column)
        compare = _COMPARISONS[op]
        return self._made(right, lambda: compare(value, column) if is_turned else compare(column, value))

    def _call(self, call: ast.Call, depth: int) -> Condition[Any]:
        if not isinstance(call.func, ast.Attribute):
            raise self._wrong(call.func, "cannot be called; only methods of columns can")
        name, owner = call.func.attr, self._column(call.func.value)
        if owner is None:
            raise self._wrong(call.func.value, f"is no column; {self._there_are()}")
        methods = _methods(owner)
        if name not in methods:
            raise self._wrong(call.func, f"is not there; {_how_to_use(owner)}")
        if call.keywords or any(isinstance(argument, ast.Starred) for argument in call.args):
            raise self._wrong(call, "has names or stars; give the values alone")
        if methods[name] not in (_SEVERAL, len(call.args)):
            raise self._wrong(call, f"has {len(call.args)} values; {name}() takes {methods[name]}")
        method = getattr(owner, name)
        if name == "any":
            other = _Reader(self._text, FiberRecord if self._record is StoredLog else StoredLog)
            inner = other.condition(call.args[0], depth + 1)
            return self._made(call, lambda: method(inner))
        if name == "in_":
            values = [self._value(item, owner) for item in self._items(call.args[0])]
            return self._made(call, lambda: method(values))
        if name == "regexp_match":
            self._check_escapes(call.args[0])
        arguments = [self._value(argument, owner) for argument in call.args]
        return self._made(call, lambda: method(*arguments))

    def _column(self, node: ast.expr) -> object | None:
        """Return the column that a part names; None if it is something else."""
        match node:
            case ast.Name(id=name):
                names = _NAMES[self._record]
                if name not in names:
                    key = f'; a key of that name is keys["{name}"]' if self._record is FiberRecord else ""
                    raise self._wrong(node, f"is no column; {self._there_are()}{key}")
                return names[name]
            case ast.Subscript(value=ast.Name() as name, slice=part):
                column = self._column(name)
                if not isinstance(column, Attributes | KeyColumns):
                    raise self._wrong(
                        node,
                        'is not there; only attributes have parts, such as attributes["/user"], and keys, '
                        'such as keys["request"]',
                    )
                if not isinstance(part, ast.Constant) or not isinstance(text := part.value, str):
                    what = "JSON pointer" if isinstance(column, Attributes) else "name of keys"
                    raise self._wrong(part, f"is no {what} in quotes; {_how_to_use(column)}")
                return self._made(part, lambda: column[text])
        return None

    def _items(self, node: ast.expr) -> list[ast.expr]:
        if not isinstance(node, ast.List | ast.Tuple):
            raise self._wrong(node, "is no list; in_ takes one, such as [1, 2]")
        return node.elts

    def _value(self, node: ast.expr, column: object) -> object:
        value = self._literal(node)
        if isinstance(column, TimeColumn | Activity):
            return self._made(node, lambda: _time(value))
        if isinstance(column, IdColumn | FiberLogs | LogFibers):
            return self._made(node, lambda: _id(value))
        if isinstance(column, DurationColumn):
            return self._made(node, lambda: _duration(value))
        if isinstance(column, TextColumn | KeyColumn) and not isinstance(value, str):
            raise self._wrong(node, "is no text; write it in quotes")
        return value

    def _literal(self, node: ast.expr) -> Literal:
        match node:
            case ast.Constant(value=None | str() | int() | float() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                if not isinstance(number, bool):
                    return -number
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                raise self._wrong(
                    node, "binds tighter than a comparison; write and, or, not, or set parentheses"
                )
        raise self._wrong(node, "is no value; write a text in quotes, a number, True, False or None")

    def _check_escapes(self, node: ast.expr) -> None:
        is_backspace = isinstance(node, ast.Constant) and "\b" in str(node.value)
        if is_backspace and "\\b" in self._part(node):
            raise self._wrong(
                node, 'holds a backspace; put an r before the quotes, r"…", and \\b is a word\'s end'
            )

    def _made(self, node: ast.expr, make: Callable[[], T]) -> T:
        try:
            return make()
        except (TypeError, ValueError) as error:
            raise self._wrong(node, f"cannot be used: {error}") from error

    def _wrong(self, node: ast.expr, why: str) -> typer.BadParameter:
        return typer.BadParameter(f"{self._part(node)} {why}")

    def _part(self, node: ast.expr) -> str:
        return _cut(ast.get_source_segment(self._text, node) or self._text)

    def _there_are(self) -> str:
        return f"those of {_TABLES[self._record]} are {', '.join(_NAMES[self._record])}"


def _chain(node: ast.expr, op: type[ast.operator]) -> list[ast.expr]:
    """Return the parts of ``a & b & c``, which Python reads as ``(a & b) & c``."""
    parts = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, op):
        parts.append(node.right)
        node = node.left
    return [node, *reversed(parts)]


def _methods(column: object) -> dict[str, int]:
    return {
        name: values for kind, names in _METHODS if isinstance(column, kind) for name, values in names.items()
    }


def _how_to_use(column: object) -> str:
    if isinstance(column, Flag):
        return f"write {column.column} or not {column.column}"
    if isinstance(column, Attributes):
        return 'take a part of it, such as attributes["/user"]'
    if isinstance(column, KeyColumns):
        return 'take those of a name, such as keys["request"]'
    ways = [
        f".{name}({'[…]' if name == 'in_' else '…' if values else ''})"
        for name, values in _methods(column).items()
    ]
    if isinstance(column, OrderedColumn | Attribute):
        ways = ["==, !=, <, <=, >, >=", *ways]
    elif isinstance(column, Column | KeyColumn):
        ways = ["==, !=", *ways]
    return f"use one of {', '.join(ways)}"


def _time(value: object) -> datetime:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no time; write one such as '2024-12-10T06:55:46Z' or '1h'")
    return parse_time(value)


def _id(value: object) -> UUID:
    try:
        return UUID(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"{value!r:.100} is no id; write its 32 hex digits in quotes") from None


def _duration(value: object) -> timedelta:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no duration; write one such as '1.5h', or a number of seconds")
    try:
        return timedelta(seconds=value)
    except OverflowError:
        raise ValueError(f"{value} seconds are more than a timedelta holds") from None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _too_deep(text: str) -> str:
    return f"{_cut(text)} is nested too deep; {_MOST_DEPTH} levels are the most"
