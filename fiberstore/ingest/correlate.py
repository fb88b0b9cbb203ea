"""Joins log lines into fibers, in memory: lines go in, changes to be stored come out.

For each fiber type, the patterns for the line's source are searched in its text; every named group that holds
text is a key, that is (group name, text). A line joins the open fiber of that type with which it shares a
key; if there are several, they become one, and the oldest survives; if there is none, a fiber begins. A line
without keys joins nothing and changes nothing.

Time is the lines' own: log time is the latest stamp of a line that has keys. When it moves on, fibers whose
last line lies more than ``max_gap`` back are closed; so is one that shares a key with a line more than
``max_gap`` after its last. A late line joins an open fiber however early it was logged. A closed fiber takes
no more lines.

The whole state of an open fiber is in its record: ``attributes`` is its keys, as
``{group name: [texts in order of appearance]}``. So a correlator that is given the stored open fibers, and
by ``skip`` the lines of stored fibers, resumes as if it had never stopped. Lines without keys leave no trace
in a store; they may be skipped or added again.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydantic import JsonValue, TypeAdapter, ValidationError

from fiberstore.ids import stable_fiber_id
from fiberstore.ingest.occurrences import Key, Occurrence, PatternSearch
from fiberstore.ingest.rules import FiberType, Rules
from fiberstore.records import FiberMembership, FiberRecord, LogRecord

_BEGINNING = datetime.min.replace(tzinfo=UTC)
_ATTRIBUTES = TypeAdapter(dict[str, list[str]])


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of fibers since the last ``drain``; no fiber is in two of the first three.

    Attributes:
        new: Fibers that began, as they are now.
        updated: Fibers known before that changed, as they are now.
        merged: Fibers known before that are no more, each with the fiber that has its lines now.
        memberships: The lines that joined a fiber, each with the fiber it is in now, in the lines' order.
    """

    new: list[FiberRecord]
    updated: list[FiberRecord]
    merged: dict[UUID, UUID]
    memberships: list[FiberMembership]


class Correlator:
    """Joins lines into fibers. Batches may be cut anywhere: what comes of the lines is the same.

    Args:
        rules: The fiber types.
        open_fibers: Where an earlier run stopped: all stored fibers of these rules that are not closed.
        log_time: Log time then, for who does not ``skip`` the lines of that run.

    Raises:
        ValueError: One of ``open_fibers`` is closed or was not made by these rules.
    """

    def __init__(
        self, rules: Rules, open_fibers: Iterable[FiberRecord] = (), log_time: datetime = _BEGINNING
    ) -> None:
        self._config_version = rules.config_version
        self._log_time = log_time
        self._types = {name: _OpenFibers(name, rule) for name, rule in rules.fibers.items()}
        self._search = PatternSearch(rules)
        self._joined: list[tuple[UUID, _Fiber]] = []
        for record in open_fibers:
            self._restore(record)

    @property
    def matches(self) -> dict[str, list[int]]:
        """Number of matches so far, for each fiber type and each of its patterns in their order."""
        return self._search.matches

    def skip(self, log: LogRecord) -> None:
        """Take note of a line that an earlier run put into a fiber: only log time moves, no fiber changes."""
        if log.timestamp > self._log_time and self._search.find(log.source_id, log.raw_text):
            self._log_time = log.timestamp

    def add(self, log: LogRecord) -> None:
        """Join a line to the fibers it belongs to, and close those that are over."""
        found = self._search.find(log.source_id, log.raw_text)
        if found and log.timestamp > self._log_time:
            self._log_time = log.timestamp
            for fibers in self._types.values():
                fibers.expire(log.timestamp)
        for name, occurrence in found:
            if occurrence.start:
                self._types[name].end(occurrence.keys)
        joined = [(name, occurrence, self._join(log, name, occurrence)) for name, occurrence in found]
        for name, occurrence, fiber in joined:
            survivor = fiber.survivor()
            if occurrence.close and not survivor.closed:
                self._types[name].finish(survivor, log.timestamp, occurrence.close_grace)

    def drain(self) -> Changes:
        """Return the changes since the last call, once."""
        changes = Changes([], [], {}, [])
        for fibers in self._types.values():
            for fiber in fibers.changed.values():
                if fiber.merged_into is None:
                    record = fiber.record(fibers.name, self._config_version)
                    (changes.updated if fiber.stored else changes.new).append(record)
                elif fiber.stored:
                    changes.merged[fiber.fiber_id] = fiber.survivor().fiber_id
                fiber.stored = True
            fibers.changed.clear()
        pairs = dict.fromkeys((log_id, fiber.survivor().fiber_id) for log_id, fiber in self._joined)
        changes.memberships.extend(
            FiberMembership(log_id=log_id, fiber_id=fiber_id, config_version=self._config_version)
            for log_id, fiber_id in pairs
        )
        self._joined.clear()
        return changes

    def _join(self, log: LogRecord, name: str, occurrence: Occurrence) -> "_Fiber":
        fibers = self._types[name]
        keys = dict.fromkeys(occurrence.keys)
        fiber = fibers.find(keys, log.timestamp) or fibers.begin(log, self._config_version, occurrence.match)
        fibers.join(fiber, keys, log.timestamp)
        self._joined.append((log.log_id, fiber))
        return fiber

    def _restore(self, record: FiberRecord) -> None:
        if record.closed:
            raise ValueError(f"fiber {record.fiber_id} is closed; give open ones only")
        fibers = self._types.get(record.fiber_type)
        try:
            attributes = _ATTRIBUTES.validate_python(record.attributes, strict=True)
        except ValidationError:
            attributes = {}
        keys = {Key(name, text): None for name, texts in attributes.items() for text in texts}
        if fibers is None or not keys or record.config_version != self._config_version:
            raise ValueError(
                f"fiber {record.fiber_id} of type {record.fiber_type!r} and config_version "
                f"{record.config_version} was not made by these rules (version {self._config_version})"
            )
        fibers.open(_Fiber(record.fiber_id, record.first_activity, record.last_activity, keys, stored=True))


@dataclass(slots=True, eq=False)
class _Fiber:
    fiber_id: UUID
    first_activity: datetime
    last_activity: datetime
    keys: dict[Key, None]
    closed: bool = False
    end: datetime | None = None
    stored: bool = False
    merged_into: "_Fiber | None" = None

    def survivor(self) -> "_Fiber":
        fiber = self
        while fiber.merged_into is not None:
            fiber = fiber.merged_into
        return fiber

    def record(self, fiber_type: str, config_version: int) -> FiberRecord:
        attributes: dict[str, list[JsonValue]] = {}
        for name, text in self.keys:
            attributes.setdefault(name, []).append(text)
        return FiberRecord(
            fiber_id=self.fiber_id,
            fiber_type=fiber_type,
            config_version=config_version,
            attributes={**attributes},
            first_activity=self.first_activity,
            last_activity=self.last_activity,
            closed=self.closed or self.end is not None,
        )


class _OpenFibers:
    """The open fibers of one type, and those that changed since the last drain.

    ``_waiting`` is a heap with one entry per open fiber: a time not after its last activity. Entries are
    brought up to date, or dropped, when they come to the top.
    """

    def __init__(self, name: str, rule: FiberType) -> None:
        self.name = name
        self.changed: dict[UUID, _Fiber] = {}
        self._max_gap = rule.max_gap
        self._by_id: dict[UUID, _Fiber] = {}
        self._by_key: dict[Key, _Fiber] = {}
        self._waiting: list[tuple[datetime, UUID]] = []

    def open(self, fiber: _Fiber) -> None:
        self._by_id[fiber.fiber_id] = fiber
        self._by_key.update(dict.fromkeys(fiber.keys, fiber))
        if self._max_gap is not None:
            heapq.heappush(self._waiting, (fiber.last_activity, fiber.fiber_id))

    def begin(self, log: LogRecord, config_version: int, match: int) -> _Fiber:
        fiber_id = stable_fiber_id(self.name, config_version, log.log_id, match)
        fiber = _Fiber(fiber_id, log.timestamp, log.timestamp, {})
        self.open(fiber)
        return fiber

    def find(self, keys: dict[Key, None], timestamp: datetime) -> _Fiber | None:
        """Return the fiber that has one of the keys; several become one, those that are over are closed."""
        found = dict.fromkeys(self._by_key[key] for key in keys if key in self._by_key)
        for fiber in found:
            if self._is_over(fiber.last_activity, timestamp) or (fiber.end and timestamp > fiber.end):
                self.close(fiber)
        alive = sorted(
            (fiber for fiber in found if not fiber.closed),
            key=lambda fiber: (fiber.first_activity, fiber.fiber_id),
        )
        for fiber in alive[1:]:
            self._merge(fiber, alive[0])
        return alive[0] if alive else None

    def join(self, fiber: _Fiber, keys: dict[Key, None], timestamp: datetime) -> None:
        if not fiber.first_activity <= timestamp <= fiber.last_activity:
            fiber.first_activity = min(fiber.first_activity, timestamp)
            fiber.last_activity = max(fiber.last_activity, timestamp)
            self.changed[fiber.fiber_id] = fiber
        if not keys.keys() <= fiber.keys.keys():
            fiber.keys.update(keys)
            self._by_key.update(dict.fromkeys(keys, fiber))
            self.changed[fiber.fiber_id] = fiber

    def finish(self, fiber: _Fiber, timestamp: datetime, grace: timedelta | None) -> None:
        if grace is None:
            self.close(fiber)
        else:
            fiber.end = min(fiber.end or timestamp + grace, timestamp + grace)
            self.changed[fiber.fiber_id] = fiber

    def close(self, fiber: _Fiber) -> None:
        fiber.closed = True
        self.changed[fiber.fiber_id] = fiber
        del self._by_id[fiber.fiber_id]
        for key in fiber.keys:
            del self._by_key[key]

    def end(self, keys: Iterable[Key]) -> None:
        for fiber in dict.fromkeys(self._by_key[key] for key in keys if key in self._by_key):
            self.close(fiber)

    def expire(self, log_time: datetime) -> None:
        while self._waiting and self._is_over(self._waiting[0][0], log_time):
            _, fiber_id = heapq.heappop(self._waiting)
            fiber = self._by_id.get(fiber_id)
            if fiber is None:
                continue
            if self._is_over(fiber.last_activity, log_time):
                self.close(fiber)
            else:
                heapq.heappush(self._waiting, (fiber.last_activity, fiber_id))

    def _is_over(self, last_activity: datetime, now: datetime) -> bool:
        return self._max_gap is not None and now - last_activity > self._max_gap

    def _merge(self, loser: _Fiber, survivor: _Fiber) -> None:
        loser.merged_into = survivor
        del self._by_id[loser.fiber_id]
        self.changed[loser.fiber_id] = loser
        self.join(survivor, loser.keys, loser.first_activity)
        self.join(survivor, {}, loser.last_activity)
        survivor.end = min(filter(None, (survivor.end, loser.end)), default=None)
