"""The tables of the storage of plain dicts, and which rows a condition is true of."""

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from operator import eq, ge, gt, le, lt
from typing import Any, cast
from uuid import UUID

import pyarrow as pa
from pyarrow import compute
from pydantic import JsonValue

from fiberstore.contract.conditions import (
    And,
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
    Not,
    Or,
)
from fiberstore.contract.results import Checkpoint, ConfigVersion, Deleted
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, StoredLog

MISSING = object()
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"==": eq, "<": lt, "<=": le, ">": gt, ">=": ge}


@dataclass
class Tables:
    """Rows that are there, or were at one moment; ``changed`` is their lock, and is notified of new ones.

    In a store the attributes of fibers are JSON text, so that nothing is shared with its callers; what
    queries look at has their values.
    """

    logs: dict[UUID, StoredLog] = field(default_factory=dict)
    fibers: dict[UUID, FiberRecord] = field(default_factory=dict)
    memberships: dict[tuple[UUID, UUID], FiberMembership] = field(default_factory=dict)
    keys: dict[tuple[UUID, str, str], FiberKey] = field(default_factory=dict)
    arrivals: dict[tuple[type, UUID], int] = field(default_factory=dict)  # the order rows were stored in
    pins: set[tuple[type, UUID]] = field(default_factory=set)
    survivors: dict[UUID, UUID] = field(default_factory=dict)  # of fibers that were merged
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    versions: dict[int, ConfigVersion] = field(default_factory=dict)  # which is active is not told here
    active: int | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def logs_of(self, fiber_id: UUID) -> list[StoredLog]:
        ids = (log for log, fiber in self.memberships if fiber == fiber_id)
        return [self.logs[log] for log in ids if log in self.logs]

    def fibers_of(self, log_id: UUID) -> list[FiberRecord]:
        ids = (fiber for log, fiber in self.memberships if log == log_id)
        return [self.fibers[fiber] for fiber in ids if fiber in self.fibers]

    def put_key(self, key: FiberKey) -> None:
        """Store a key; if its fiber has it, the earlier beginning stays."""
        identity = (key.fiber_id, key.name, key.value)
        self.keys[identity] = min(self.keys.get(identity, key), key, key=_beginning)

    def keys_of(self, fiber_id: UUID) -> list[FiberKey]:
        keys = [key for key in self.keys.values() if key.fiber_id == fiber_id]
        return sorted(keys, key=lambda key: (*_beginning(key), key.name, key.value))

    def remove(
        self,
        logs: Iterable[UUID] = (),
        fibers: Iterable[UUID] = (),
        memberships: Iterable[tuple[UUID, UUID]] = (),
    ) -> Deleted:
        """Delete these rows, and whatever is of these logs and fibers."""
        gone_logs, gone_fibers = set(logs), set(fibers)
        gone = set(memberships) | {
            (log, fiber) for log, fiber in self.memberships if log in gone_logs or fiber in gone_fibers
        }
        for pair in gone:
            del self.memberships[pair]
        for kind, rows, ids in ((StoredLog, self.logs, gone_logs), (FiberRecord, self.fibers, gone_fibers)):
            for id_ in ids:
                del cast("dict[UUID, Any]", rows)[id_], self.arrivals[kind, id_]
                self.pins.discard((kind, id_))
        self.keys = {ids: key for ids, key in self.keys.items() if key.fiber_id not in gone_fibers}
        for old, survivor in list(self.survivors.items()):
            if old in gone_fibers or survivor in gone_fibers:
                del self.survivors[old]
        return Deleted(len(gone_logs), len(gone_fibers), len(gone))


def _beginning(key: FiberKey) -> tuple[datetime, bool, UUID | None]:
    return key.first_timestamp, key.first_log_id is None, key.first_log_id


def holds(  # noqa: C901, PLR0911, PLR0912  # a case for each class of conditions
    condition: Condition[Any],
    record: Any,  # noqa: ANN401  # of the kind that the condition says
    tables: Tables,
) -> bool:
    """Tell whether a condition is true of a record."""
    match condition:
        case And():
            return all(holds(one, record, tables) for one in condition.conditions)
        case Or():
            return any(holds(one, record, tables) for one in condition.conditions)
        case Not():
            return not holds(condition.condition, record, tables)
        case Compare():
            return OPERATORS[condition.operator](_value(record, condition.column), condition.value)
        case In():
            return _value(record, condition.column) in condition.values
        case Match():
            return _matches(condition, _value(record, condition.column))
        case Flag(column="pinned"):
            id_ = record.log_id if condition.record is StoredLog else record.fiber_id
            return (condition.record, id_) in tables.pins
        case Flag():
            return _value(record, condition.column) is True
        case IsActive():
            return bool(record.config_version == tables.active)
        case AttributeExists():
            return value_at(record.attributes, condition.pointer) is not MISSING
        case AttributeCompare():
            return _attribute_holds(condition, value_at(record.attributes, condition.pointer))
        case AttributeIn():
            found = value_at(record.attributes, condition.pointer)
            return any(_kind(found) == _kind(value) and found == value for value in condition.values)
        case AttributeContains():
            items = value_at(record.attributes, condition.pointer)
            equal = AttributeCompare("", "==", condition.value)
            return isinstance(items, list) and any(_attribute_holds(equal, item) for item in items)
        case KeyExists():
            return any(key.name == condition.name for key in tables.keys_of(record.fiber_id))
        case KeyIn():
            keys = {(key.name, key.value) for key in tables.keys_of(record.fiber_id)}
            return any((condition.name, value) in keys for value in condition.values)
        case KeyStartsWith():
            return any(
                key.name == condition.name and key.value.startswith(condition.prefix)
                for key in tables.keys_of(record.fiber_id)
            )
        case HasLog():
            return any(holds(condition.condition, log, tables) for log in tables.logs_of(record.fiber_id))
        case HasFiber():
            return any(holds(condition.condition, fiber, tables) for fiber in tables.fibers_of(record.log_id))
        case Joined(relation="logs"):
            return any((log, record.fiber_id) in tables.memberships for log in condition.ids)
        case Joined(relation="fibers"):
            return any((record.log_id, fiber) in tables.memberships for fiber in condition.ids)
    raise TypeError(repr(condition))


def value_at(value: JsonValue, pointer: str) -> object:
    """Return the value at a JSON pointer (RFC 6901), or ``MISSING``."""
    found: object = value
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and re.fullmatch("0|[1-9][0-9]*", key) and int(key) < len(found):
            found = found[int(key)]
        else:
            return MISSING
    return found


def _value(record: Any, column: str) -> Any:  # noqa: ANN401  # of the kind that the condition says
    if column == "duration":
        return record.last_activity - record.first_activity
    return getattr(record, column)


def _matches(condition: Match[Any], text: str) -> bool:
    if condition.kind == "contains":
        return condition.text in text
    if condition.kind == "startswith":
        return text.startswith(condition.text)
    return bool(compute.match_substring_regex(pa.array([text]), condition.text)[0].as_py())


def _attribute_holds(condition: AttributeCompare, value: object) -> bool:
    return _kind(value) == _kind(condition.value) and (
        OPERATORS[condition.operator](value, condition.value) if value is not None else True
    )


def _kind(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return type(value).__name__
    return "number"
