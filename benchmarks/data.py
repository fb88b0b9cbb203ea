"""One seeded generator for every store: logs of 100 bytes, one a millisecond, 20 to a fiber."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Literal
from uuid import UUID

import pyarrow as pa

from fiberstore import FiberMembership, FiberRecord, LogRecord

Ids = Literal["v7", "v4"]
Row = tuple[object, ...]

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MILLISECOND = timedelta(milliseconds=1)
LOGS_TO_A_FIBER = 20
TYPES = ("request", "login", "job", "block", "session")

_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Batch:
    """Logs, the fibers they make up, and which belongs to which; in the forms that stores take."""

    logs: list[LogRecord]
    fibers: list[FiberRecord]
    memberships: list[FiberMembership]

    @cached_property
    def log_rows(self) -> list[Row]:
        """One tuple for each log, in the order of the table's columns."""
        return [(log.log_id, log.timestamp, log.source_id, log.raw_text, NOON, 0) for log in self.logs]

    @cached_property
    def fiber_rows(self) -> list[Row]:
        """One tuple for each fiber."""
        return [fiber_row(fiber) for fiber in self.fibers]

    @cached_property
    def membership_rows(self) -> list[Row]:
        """One tuple for each membership."""
        return [(pair.log_id, pair.fiber_id, pair.config_version) for pair in self.memberships]

    @cached_property
    def log_table(self) -> pa.Table:
        """The logs as an Arrow table with DuckDB's types."""
        ids, times, sources, texts, _, _ = zip(*self.log_rows, strict=True)
        return pa.table(
            {
                "log_id": _uuids(ids),
                "timestamp": pa.array(times, _TIME),
                "source_id": sources,
                "raw_text": texts,
                "ingestion_time": pa.array([NOON] * len(ids), _TIME),
                "config_version": pa.array([0] * len(ids), pa.uint64()),
            }
        )

    @cached_property
    def fiber_table(self) -> pa.Table:
        """The fibers as an Arrow table."""
        ids, types, versions, attributes, first, last, closed = zip(*self.fiber_rows, strict=True)
        return pa.table(
            {
                "fiber_id": _uuids(ids),
                "fiber_type": types,
                "config_version": pa.array(versions, pa.uint64()),
                "attributes": attributes,
                "first_activity": pa.array(first, _TIME),
                "last_activity": pa.array(last, _TIME),
                "closed": closed,
            }
        )

    @cached_property
    def membership_table(self) -> pa.Table:
        """The memberships as an Arrow table."""
        log_ids, fiber_ids, versions = zip(*self.membership_rows, strict=True)
        return pa.table(
            {
                "log_id": _uuids(log_ids),
                "fiber_id": _uuids(fiber_ids),
                "config_version": pa.array(versions, pa.uint64()),
            }
        )


class Generator:
    """Makes batches that follow each other, the same ones for the same seed.

    Args:
        ids: UUIDs of version 7, which sort by time, or random ones of version 4.
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._dice = random.Random(7)
        self._made = 0

    def batch(self, count: int) -> Batch:
        """Return the next logs, a multiple of 20, and their fibers and memberships."""
        logs = list(self.logs(count))
        groups = [logs[start : start + LOGS_TO_A_FIBER] for start in range(0, count, LOGS_TO_A_FIBER)]
        fibers = [
            FiberRecord(
                fiber_id=self._id(group[0].timestamp),
                fiber_type=self._dice.choice(TYPES),
                config_version=1,
                attributes={"n": self._dice.randrange(10**6)},
                first_activity=group[0].timestamp,
                last_activity=group[-1].timestamp,
            )
            for group in groups
        ]
        memberships = [
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1)
            for group, fiber in zip(groups, fibers, strict=True)
            for log in group
        ]
        return Batch(logs, fibers, memberships)

    def logs(self, count: int) -> Iterator[LogRecord]:
        """Yield the next logs."""
        for _ in range(count):
            when = NOON + self._made * MILLISECOND
            self._made += 1
            yield LogRecord(
                timestamp=when,
                source_id=f"source-{self._dice.randrange(10)}",
                raw_text=f"request {self._dice.randrange(10**9):09} took {self._made % 997:03} ms "
                + "x" * 72,
                log_id=self._id(when),
            )

    def _id(self, when: datetime) -> UUID:
        bits = self._dice.getrandbits(128)
        if self._ids == "v7":
            bits = (when - EPOCH) // MILLISECOND << 80 | bits & (1 << 80) - 1
        version = 7 if self._ids == "v7" else 4
        return UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | version << 76 | 2 << 62)


def fiber_row(fiber: FiberRecord) -> Row:
    """Return a fiber in the order of the table's columns."""
    return (
        fiber.fiber_id,
        fiber.fiber_type,
        fiber.config_version,
        json.dumps(fiber.attributes),
        fiber.first_activity,
        fiber.last_activity,
        fiber.closed,
    )


def _uuids(ids: tuple[object, ...]) -> pa.Array:
    storage = pa.array([id_.bytes for id_ in ids if isinstance(id_, UUID)], pa.binary(16))
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)
