"""The lifecycle of the storage of plain dicts: checkpoints, versions, merges, and what is to be pruned."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import get_args
from uuid import UUID

from fiberstore.checks import check_config_version, check_id, check_number, check_text
from fiberstore.contract.conditions import Condition
from fiberstore.contract.lifecycle import Checkpoints, Versions
from fiberstore.contract.results import (
    ChangeKind,
    Checkpoint,
    ConfigVersion,
    Deleted,
    FiberChange,
    GenerationDiff,
    Merged,
    Pruned,
)
from fiberstore.errors import CheckpointError, DatabaseError, NotFoundError, VersionNotFoundError
from fiberstore.records import FiberMembership, FiberRecord, StoredLog
from fiberstore.versioning import config_version as version_of
from tests.support.oracle_tables import Tables, holds

KINDS: tuple[ChangeKind, ...] = get_args(ChangeKind)


class MemoryCheckpoints(Checkpoints):
    def __init__(self, stored: Tables) -> None:
        self._stored = stored

    def get(self, name: str) -> Checkpoint | None:
        with self._stored.changed:
            return self._stored.checkpoints.get(check_text(name))

    def all(self) -> list[Checkpoint]:
        with self._stored.changed:
            return [self._stored.checkpoints[name] for name in sorted(self._stored.checkpoints)]

    def set(self, name: str, value: str) -> None:
        _check_checkpoint(name, value)
        with self._stored.changed:
            self._stored.checkpoints[name] = Checkpoint(name, value, datetime.now(UTC))

    def compare_and_set(self, name: str, expected: str | None, value: str) -> None:
        _check_checkpoint(name, value)
        if expected is not None:
            check_text(expected)
        with self._stored.changed:
            known = self.get(name)
            found = None if known is None else known.value
            if found != expected:
                raise CheckpointError(name, expected, found)
            self.set(name, value)

    def delete(self, name: str) -> bool:
        with self._stored.changed:
            return self._stored.checkpoints.pop(check_text(name), None) is not None


def _check_checkpoint(name: str, value: str) -> None:
    if not check_text(name):
        raise ValueError("a checkpoint needs a name")
    check_text(value)


class MemoryVersions(Versions):
    def __init__(self, stored: Tables) -> None:
        self._stored = stored

    def register(self, content: bytes | str | Path, *, parent: int | None = None) -> ConfigVersion:
        data = content.read_bytes() if isinstance(content, Path) else content
        data = data.encode() if isinstance(data, str) else data
        text = check_text(data.decode())
        if parent is not None:
            check_config_version(parent)
        return self._register(version_of(data), sha256(data).hexdigest(), text, parent)

    def _register(
        self, version: int, content_hash: str | None, content: str | None, parent: int | None
    ) -> ConfigVersion:
        with self._stored.changed:
            parent = self._stored.active if parent is None else parent
            new = ConfigVersion(version, content_hash, content, parent, datetime.now(UTC), active=False)
            known = self._stored.versions.setdefault(version, new)
            if known.content is None:  # known by its fibers only
                self._stored.versions[version] = replace(known, content=content, content_hash=content_hash)
            return self._shown(version)

    def get(self, config_version: int) -> ConfigVersion | None:
        check_config_version(config_version)
        with self._stored.changed:
            return self._shown(config_version) if config_version in self._stored.versions else None

    def all(self) -> list[ConfigVersion]:
        with self._stored.changed:
            versions = [self._shown(version) for version in self._stored.versions]
        return sorted(versions, key=lambda version: (version.created_at, version.config_version))

    def active(self) -> ConfigVersion | None:
        with self._stored.changed:
            return None if self._stored.active is None else self._shown(self._stored.active)

    def activate(self, config_version: int | None) -> ConfigVersion | None:
        with self._stored.changed:
            before = self.active()
            if config_version is not None:
                check_config_version(config_version)
                self._check_known(config_version)
                self._register(config_version, None, None, None)
            self._stored.active = config_version
            return before

    def diff(self, old: int, new: int, limit: int = 1_000) -> GenerationDiff:
        check_number("limit", limit)
        check_config_version(old)
        check_config_version(new)
        with self._stored.changed:
            self._check_known(old)
            self._check_known(new)
            unchanged, changes = difference(self._stored, old, new)
        counts = {kind: sum(change.kind == kind for change in changes) for kind in KINDS}
        return GenerationDiff(unchanged, counts, changes[:limit])

    def drop(self, config_version: int) -> Deleted:
        check_config_version(config_version)
        with self._stored.changed:
            self._check_known(config_version)
            if config_version == self._stored.active:
                raise DatabaseError("it is active; activate another first")
            self._register(config_version, None, None, None)
            fibers, memberships = self._stored.fibers.values(), self._stored.memberships.items()
            return self._stored.remove(
                fibers=[fiber.fiber_id for fiber in fibers if fiber.config_version == config_version],
                memberships=[key for key, row in memberships if row.config_version == config_version],
            )

    def _check_known(self, version: int) -> None:
        fibers = self._stored.fibers.values()
        if version not in self._stored.versions and all(row.config_version != version for row in fibers):
            raise VersionNotFoundError(version)

    def _shown(self, version: int) -> ConfigVersion:
        return replace(self._stored.versions[version], active=version == self._stored.active)


def merge(stored: Tables, survivors: Mapping[UUID, UUID]) -> Merged:
    _check_merge(stored, survivors)
    had = set(stored.memberships)
    for loser, survivor in survivors.items():
        _widen(stored, survivor, stored.fibers[loser])
        if (FiberRecord, loser) in stored.pins:
            stored.pins.add((FiberRecord, survivor))
    moving = [row for row in stored.memberships.values() if row.fiber_id in survivors]
    for row in sorted(moving, key=lambda row: row.config_version):  # of several, the lowest version stays
        key = (row.log_id, survivors[row.fiber_id])
        stored.memberships.setdefault(
            key, FiberMembership(log_id=key[0], fiber_id=key[1], config_version=row.config_version)
        )
    for held in [held for held in stored.keys.values() if held.fiber_id in survivors]:
        stored.put_key(held.model_copy(update={"fiber_id": survivors[held.fiber_id]}))
    gained = len(set(stored.memberships) - had)
    heirs = {old: survivors.get(now, now) for old, now in stored.survivors.items()}
    stored.remove(fibers=survivors)
    stored.survivors = {**heirs, **survivors}
    return Merged(len(survivors), gained)


def _check_merge(stored: Tables, survivors: Mapping[UUID, UUID]) -> None:
    if not isinstance(survivors, Mapping):
        raise TypeError(f"expected a mapping, got {survivors!r}")
    for id_ in [*survivors, *survivors.values()]:
        check_id(id_)
    if both := survivors.keys() & set(survivors.values()):
        raise ValueError(f"{both} are survivors, and end themselves")
    for loser, survivor in survivors.items():
        for id_ in (loser, survivor):
            if id_ not in stored.fibers:
                raise NotFoundError(id_)
        if stored.fibers[loser].config_version != stored.fibers[survivor].config_version:
            raise ValueError(f"{loser} and {survivor} are of two versions")


def _widen(stored: Tables, survivor: UUID, loser: FiberRecord) -> None:
    fiber = stored.fibers[survivor]
    stored.fibers[survivor] = fiber.model_copy(
        update={
            "first_activity": min(fiber.first_activity, loser.first_activity),
            "last_activity": max(fiber.last_activity, loser.last_activity),
        }
    )


def difference(tables: Tables, old: int, new: int) -> tuple[int, list[FiberChange]]:
    """Return how many fibers are unchanged, and every change in order."""
    olds = [fiber for fiber in tables.fibers.values() if fiber.config_version == old]
    news = [fiber for fiber in tables.fibers.values() if fiber.config_version == new]
    before = [fiber for fiber in olds if not _has_twin(fiber, news, tables)]
    after = [fiber for fiber in news if not _has_twin(fiber, olds, tables)]
    became = {fiber.fiber_id: _sharing(fiber, after, tables) for fiber in before}
    was = {fiber.fiber_id: _sharing(fiber, before, tables) for fiber in after}
    alone = [(fiber, *became[fiber.fiber_id]) for fiber in before if len(became[fiber.fiber_id]) == 1]
    moved = [(one, other) for one, other in alone if was[other.fiber_id] == [one]]
    changes = [
        *(_change("gone", [fiber], []) for fiber in before if not became[fiber.fiber_id]),
        *(_change("split", [fiber], them) for fiber in before if len(them := became[fiber.fiber_id]) > 1),
        *(_change("moved", [one], [other]) for one, other in moved),
        *(_change("new", [], [fiber]) for fiber in after if not was[fiber.fiber_id]),
        *(_change("merged", them, [fiber]) for fiber in after if len(them := was[fiber.fiber_id]) > 1),
    ]
    in_order = sorted(changes, key=lambda one: (KINDS.index(one.kind), one.old[:1], one.new))
    return len(olds) - len(before), in_order


def _has_twin(fiber: FiberRecord, others: list[FiberRecord], tables: Tables) -> bool:
    """Tell whether one of the same type has the same logs, and some."""
    logs = _log_ids(fiber, tables)
    return any(_log_ids(other, tables) == logs for other in _sharing(fiber, others, tables))


def _sharing(fiber: FiberRecord, others: list[FiberRecord], tables: Tables) -> list[FiberRecord]:
    """Return those of the same type that have a log of the fiber."""
    logs = _log_ids(fiber, tables)
    return [
        other for other in others if other.fiber_type == fiber.fiber_type and _log_ids(other, tables) & logs
    ]


def _log_ids(fiber: FiberRecord, tables: Tables) -> set[UUID]:
    return {log.log_id for log in tables.logs_of(fiber.fiber_id)}


def _change(kind: ChangeKind, old: list[FiberRecord], new: list[FiberRecord]) -> FiberChange:
    fiber_type = (old + new)[0].fiber_type
    old_ids, new_ids = ([fiber.fiber_id for fiber in fibers] for fibers in (old, new))
    return FiberChange(kind, fiber_type, sorted(old_ids), sorted(new_ids))


@dataclass
class PruneUnit:
    """Rows that go in one step or not at all: a fiber with the logs of which it is the youngest, or a log."""

    fiber: FiberRecord | None
    memberships: int
    logs: list[StoredLog]

    def is_as_it_was(self, tables: Tables) -> bool:
        if self.fiber is None:
            return True
        fiber_id = self.fiber.fiber_id
        return (
            tables.fibers.get(fiber_id) == self.fiber
            and (FiberRecord, fiber_id) not in tables.pins
            and _memberships_of(fiber_id, tables) == self.memberships
        )


def to_prune(
    tables: Tables, of_fibers: Condition[FiberRecord], of_logs: Condition[StoredLog]
) -> list[PruneUnit]:
    """Return the set that goes, the oldest first."""
    units = {
        fiber.fiber_id: PruneUnit(fiber, _memberships_of(fiber.fiber_id, tables), [])
        for fiber in tables.fibers.values()
        if holds(of_fibers, fiber, tables) and (FiberRecord, fiber.fiber_id) not in tables.pins
    }
    alone: list[StoredLog] = []
    for log in tables.logs.values():
        holders = sorted(tables.fibers_of(log.log_id), key=lambda one: (one.last_activity, one.fiber_id))
        if (StoredLog, log.log_id) in tables.pins:
            continue
        if holders and all(holder.fiber_id in units for holder in holders):
            units[holders[-1].fiber_id].logs.append(log)
        elif not holders and holds(of_logs, log, tables):
            alone.append(log)
    in_order = [
        *((one.fiber.last_activity, 0, one.fiber.fiber_id, one) for one in units.values() if one.fiber),
        *((log.timestamp, 1, log.log_id, PruneUnit(None, 0, [log])) for log in alone),
    ]
    return [row[-1] for row in sorted(in_order, key=lambda row: row[:-1])]


def next_step(units: list[PruneUnit], step_rows: int) -> list[PruneUnit]:
    """Take the units of the next step from the first ones."""
    step = [units.pop(0)]
    while units and sum(max(unit.memberships, 1) for unit in [*step, units[0]]) <= step_rows:
        step.append(units.pop(0))
    return step


def still_to_prune(step: list[PruneUnit], tables: Tables) -> tuple[list[FiberRecord], list[StoredLog]]:
    """Return the part of a step that may go now."""
    units = [unit for unit in step if unit.is_as_it_was(tables)]
    fibers = [unit.fiber for unit in units if unit.fiber is not None]
    logs = [tables.logs[log.log_id] for unit in units for log in unit.logs if log.log_id in tables.logs]
    return fibers, [log for log in logs if not _is_kept(log, fibers, tables)]


def _memberships_of(fiber_id: UUID, tables: Tables) -> int:
    return sum(row.fiber_id == fiber_id for row in tables.memberships.values())


def _is_kept(log: StoredLog, gone: list[FiberRecord], tables: Tables) -> bool:
    """Tell whether a log is pinned, or in another stored fiber than these."""
    gone_ids = {fiber.fiber_id for fiber in gone}
    holders = {fiber.fiber_id for fiber in tables.fibers_of(log.log_id)}
    return (StoredLog, log.log_id) in tables.pins or bool(holders - gone_ids)


def pruned(steps: Iterable[tuple[Deleted, int]], *, is_complete: bool) -> Pruned:
    """Return the rows that steps have deleted, each with the bytes of its text."""
    every = list(steps)
    return Pruned(
        fibers=sum(deleted.fibers for deleted, _ in every),
        memberships=sum(deleted.memberships for deleted, _ in every),
        logs=sum(deleted.logs for deleted, _ in every),
        text_bytes=sum(text_bytes for _, text_bytes in every),
        file_bytes=0,
        free_bytes=0,
        is_complete=is_complete,
    )
