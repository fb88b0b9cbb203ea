"""Writes of the killed program: lanes of numbered transactions, each known from its lane and number alone.

So the parent knows what a store must hold after any of them, and each can be written a second time.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Self
from uuid import NAMESPACE_OID, UUID, uuid5

from fiberstore import (
    DuckDBStorage,
    DuplicateError,
    FiberMembership,
    FiberRecord,
    LogRecord,
    NotFoundError,
    SqlStorage,
    stable_log_id,
)
from fiberstore.json_text import dump_json

LANES = ("a", "b", "c")
BULK, LOGS = "bulk", "logs"
ROWS = {BULK: 130_000, LOGS: 20_000}  # BULK takes two statements
MERGING = 7
_CYCLE = 9
_SCANS = (
    "log_id, epoch_us(timestamp), source_id, raw_text FROM raw_logs",
    """fiber_id, fiber_type, config_version, attributes::VARCHAR, epoch_us(first_activity),
        epoch_us(last_activity), closed FROM fibers""",
    "log_id, fiber_id, config_version FROM fiber_memberships",
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_START = datetime(2024, 5, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction of a lane; writing it again changes nothing."""

    logs: list[LogRecord] = field(default_factory=list)
    begun: list[FiberRecord] = field(default_factory=list)
    changed: list[FiberRecord] = field(default_factory=list)
    merged: list[tuple[UUID, UUID]] = field(default_factory=list)
    memberships: list[FiberMembership] = field(default_factory=list)

    def write(self, storage: SqlStorage) -> None:
        """Write it, by a call of the storage where one can do it, otherwise as a unit of work."""
        match self:
            case Step([], [], [fiber], [], []):
                storage.update_fiber(fiber)
            case Step([], [fiber], [], [], []):
                with suppress(DuplicateError):
                    storage.write_fiber(fiber)
            case Step(_, [], [], [], []):
                storage.write_logs(iter(self.logs) if len(self.logs) in ROWS.values() else self.logs)
            case Step([], [], [], [], _):
                storage.write_memberships(self.memberships)
            case _:
                with storage.transaction() as transaction:
                    transaction.logs.write_logs(self.logs)
                    transaction.fibers.write_fibers(self.begun)
                    with suppress(NotFoundError):  # it was merged before
                        transaction.fibers.merge_fibers(dict(self.merged))
                    for fiber in self.changed:
                        with suppress(NotFoundError):
                            transaction.fibers.update_fiber(fiber)
                    transaction.memberships.write_memberships(self.memberships)


@lru_cache(maxsize=2)  # some take a second
def step(lane: str, number: int) -> Step:
    """Return the transaction of that number: fibers A and B begin, change, get lines, and become one."""
    if lane in ROWS:
        return Step(logs=list(bulk_logs(lane, number)))
    cycle, place = divmod(number, _CYCLE)
    a, b, c = (uuid5(NAMESPACE_OID, f"{lane}/{cycle}/{name}") for name in "abc")
    logs = [] if place in {2, 3, 5, 8} else _logs(lane, number)
    match place:
        case 0:
            done = Step(logs=logs, begun=[_fiber(lane, a, cycle, place)], memberships=_joined(logs, a))
        case 1:
            done = Step(logs=logs, begun=[_fiber(lane, b, cycle, place)], memberships=_joined(logs, b))
        case 2:
            before = uuid5(NAMESPACE_OID, f"{lane}/{cycle - 1}/c") if cycle else a
            done = Step(changed=[_fiber(lane, before, cycle - 1 + cycle % 2, place)])
        case 3:
            done = Step(changed=[_fiber(lane, b, cycle + 1, place)])  # another fiber_type, which is indexed
        case 4:
            done = Step(logs=logs)
        case 5:
            joining = step(lane, number - 1).logs
            done = Step(memberships=_joined(joining, a) + _joined(joining, b))
        case 6:
            changed = [_fiber(lane, a, cycle + 1, place), _fiber(lane, b, cycle + 1, place)]
            done = Step(logs=logs, changed=changed, memberships=_joined(logs, b))
        case 7:
            changed = [_fiber(lane, a, cycle + 1, place)]
            done = Step(logs=logs, changed=changed, merged=[(b, a)], memberships=_joined(logs, a))
        case _:
            done = Step(begun=[_fiber(lane, c, cycle, place)])
    return done


def bulk_logs(lane: str, number: int) -> Iterator[LogRecord]:
    """Make the rows of one long ``write_logs``."""
    for row in range(ROWS[lane]):
        yield LogRecord(
            timestamp=_START + timedelta(days=number, milliseconds=row),
            source_id=f"{lane}-{number}-{row % 100}",
            raw_text=f"row {row}",
            log_id=UUID(int=number << 64 | row * 0x9E3779B97F4A7C15 % 2**64),
        )


def _logs(lane: str, number: int) -> list[LogRecord]:
    dice = random.Random(f"{lane}/{number}")
    start = _START + timedelta(days=LANES.index(lane), seconds=number)
    logs = []
    for row in range(dice.randint(1, 40)):
        timestamp, text = start + timedelta(milliseconds=row), f"{lane}-{number}-{row} " + "x" * row
        source_id = f"{lane}-{number % 20}"
        spread_out = uuid5(NAMESPACE_OID, f"{lane}/{number}/{row}")
        log_id = stable_log_id(source_id, row, text, timestamp) if number % 2 else spread_out
        logs.append(LogRecord(timestamp=timestamp, source_id=source_id, raw_text=text, log_id=log_id))
    return logs


def _fiber(lane: str, fiber_id: UUID, fiber_type: int, place: int) -> FiberRecord:
    return FiberRecord(
        fiber_id=fiber_id,
        fiber_type=f"{lane}-{fiber_type % 7}",
        config_version=1,
        attributes={"place": place},
        first_activity=_START,
        last_activity=_START + timedelta(seconds=place),
        closed=place == MERGING,
    )


def _joined(logs: list[LogRecord], fiber_id: UUID) -> list[FiberMembership]:
    return [FiberMembership(log_id=log.log_id, fiber_id=fiber_id, config_version=1) for log in logs]


def rows(storage: DuckDBStorage, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a query as they come from the driver."""
    pooled = storage.engine.raw_connection()
    try:
        cursor = pooled.cursor()
        cursor.execute(sql, parameters)
        return [*cursor.fetchall()]
    finally:
        pooled.close()


def epoch_us(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def _fiber_row(fiber: FiberRecord) -> tuple[object, ...]:
    times = (epoch_us(fiber.first_activity), epoch_us(fiber.last_activity))
    return fiber.fiber_type, fiber.config_version, dump_json(fiber.attributes), *times, fiber.closed


@dataclass(slots=True)
class Contents:
    """All that a store holds, but for ``ingestion_time``; times are µs since 1970."""

    logs: dict[UUID, tuple[object, ...]] = field(default_factory=dict)
    fibers: dict[UUID, tuple[object, ...]] = field(default_factory=dict)
    memberships: dict[tuple[UUID, UUID], int] = field(default_factory=dict)

    @classmethod
    def scanned(cls, storage: DuckDBStorage) -> Self:
        """Read the three tables from end to end, through no index.

        Raises:
            AssertionError: A key is there twice.
        """
        logs, fibers, memberships = (rows(storage, f"SELECT {columns}") for columns in _SCANS)
        found = cls(
            {row[0]: row[1:] for row in logs},
            {row[0]: row[1:] for row in fibers},
            {(log_id, fiber_id): version for log_id, fiber_id, version in memberships},
        )
        for kind, table, keys in (
            ("log", logs, found.logs),
            ("fiber", fibers, found.fibers),
            ("membership", memberships, found.memberships),
        ):
            assert len(table) == len(keys), f"{len(table)} {kind} rows have {len(keys)} keys"
        return found

    @classmethod
    def read(cls, storage: SqlStorage) -> Self:
        """Read all records, of whatever engine."""
        return cls(
            {
                log.log_id: (epoch_us(log.timestamp), log.source_id, log.raw_text)
                for log in storage.logs.iter_records()
            },
            {fiber.fiber_id: _fiber_row(fiber) for fiber in storage.fibers.iter_records()},
            {(row.log_id, row.fiber_id): row.config_version for row in storage.memberships.iter_records()},
        )

    def copy(self) -> "Contents":
        return Contents(dict(self.logs), dict(self.fibers), dict(self.memberships))

    def add(self, done: Step) -> None:
        """Do what the step does, in the same order."""
        for log in done.logs:
            self.logs.setdefault(log.log_id, (epoch_us(log.timestamp), log.source_id, log.raw_text))
        for fiber in done.begun:
            self.fibers.setdefault(fiber.fiber_id, _fiber_row(fiber))
        for loser, survivor in done.merged:
            for log_id, fiber_id in [pair for pair in self.memberships if pair[1] == loser]:
                version = self.memberships.pop((log_id, fiber_id))
                self.memberships.setdefault((log_id, survivor), version)
            self.fibers.pop(loser, None)
        for fiber in done.changed:
            if fiber.fiber_id in self.fibers:
                self.fibers[fiber.fiber_id] = _fiber_row(fiber)
        for membership in done.memberships:
            pair = (membership.log_id, membership.fiber_id)
            self.memberships.setdefault(pair, membership.config_version)

    def differences(self, expected: "Contents") -> str:
        """Say in a few words what is not as expected."""
        found = []
        for kind in ("logs", "fibers", "memberships"):
            ours, theirs = getattr(self, kind), getattr(expected, kind)
            changed = [key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]]
            for what, keys in (
                ("missing", theirs.keys() - ours.keys()),
                ("too many", ours.keys() - theirs.keys()),
                ("changed", changed),
            ):
                if keys:
                    found.append(f"{len(keys)} {kind} {what}, as {next(iter(keys))}")
        return "; ".join(found)
