"""A plain reading of the definition of fibers, and a store of fibers in memory."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import sqlalchemy as sa

from fiberstore import DuckDBStorage, Fiber, Membership
from fiberstore.ingest import Rules, ingest, read_sources
from fiberstore.ingest.correlate import Changes, FiberStore, OpenedFiber, Use, correlate
from fiberstore.ingest.occurrences import Key, Occurrence
from fiberstore.ingest.sweep import Cut, StoredFiber, line_item
from fiberstore.records import FiberRecord

SECOND = 1_000_000


class Line(NamedTuple):
    """A line by its second and its log id, with its occurrences."""

    second: int
    log_id: int
    occurrences: tuple[Occurrence, ...]


def line(second: int, number: int, *occurrences: str | Occurrence) -> Line:
    """Return a line whose occurrences are written like ``a b close``; several are matches of their own."""
    found = [
        one if isinstance(one, Occurrence) else occurrence(one, match if len(occurrences) > 1 else 0)
        for match, one in enumerate(occurrences, 1)
    ]
    return Line(second, number, tuple(found))


def occurrence(words: str, match: int = 0) -> Occurrence:
    """Return an occurrence from its keys, ``start``, ``close``, ``close+1`` for a grace of 1 s, ``!text``."""
    keys, attributes = [], []
    start = close = False
    grace = None
    for word in words.split():
        if word == "start":
            start = True
        elif word.startswith("close"):
            close = True
            grace = timedelta(seconds=int(word[6:])) if word[5:] else None
        elif word.startswith("!"):
            attributes.append(("note", word[1:]))
        else:
            keys.append(Key(word[0], word))
    return Occurrence(tuple(keys), tuple(attributes), match, start, close, grace)


@dataclass(eq=False)
class PlainFiber:
    """A fiber of the plain reading: its occurrences, and where it ends."""

    occurrences: list[tuple[Line, Occurrence]]
    end: tuple[int, float] | None = None
    gone: bool = False

    def covers(self, key: Key, line: Line, max_gap: int | None) -> bool:
        """Return True if the fiber's use of the key covers the position of the line."""
        if self.gone or not any(key in occurrence.keys for _, occurrence in self.occurrences):
            return False
        if self.end is not None and (line.second, line.log_id) >= self.end:
            return False
        last = max(other.second for other, _ in self.occurrences)
        return max_gap is None or line.second <= last + max_gap

    def cut(self, end: tuple[int, float]) -> None:
        self.end = end if self.end is None else min(self.end, end)

    @property
    def log_ids(self) -> frozenset[int]:
        return frozenset(line.log_id for line, _ in self.occurrences)


def plain_fibers(lines: Iterable[Line], max_gap: int | None) -> list[PlainFiber]:
    """Return the fibers of lines: the definition word by word, looking at every fiber for every line."""
    fibers: list[PlainFiber] = []
    for line in sorted(set(lines)):
        here = (line.second, line.log_id)
        starting = [key for occurrence in line.occurrences if occurrence.start for key in occurrence.keys]
        for fiber in fibers:
            if any(fiber.covers(key, line, max_gap) for key in starting):
                fiber.cut(here)
        ending = []
        for occurrence in line.occurrences:
            joined = [
                fiber for fiber in fibers if any(fiber.covers(key, line, max_gap) for key in occurrence.keys)
            ]
            whole = PlainFiber([(line, occurrence)])
            for fiber in joined:
                whole.occurrences += fiber.occurrences
                fiber.gone = True
                if fiber.end is not None:
                    whole.cut(fiber.end)
            fibers.append(whole)
            if occurrence.close:
                ending.append((occurrence, (here[0], here[1] + 0.5)))
        for occurrence, end in ending:
            grace = occurrence.close_grace
            (fiber,) = (
                fiber for fiber in fibers if not fiber.gone and (line, occurrence) in fiber.occurrences
            )
            fiber.cut(end if grace is None else (line.second + grace // timedelta(seconds=1), float("inf")))
    return [fiber for fiber in fibers if not fiber.gone]


@dataclass
class MemoryStore(FiberStore):
    """Rows of a database, for one fiber type.

    Attributes:
        max_gap: Longest silence within a fiber, in s.
        fibers: Fibers by id.
        memberships: Pairs of a log and a fiber.
        merges: Former ids, and the fibers that they resolve to.
        lines: Lines by log id.
        opened: How many fibers were read.
    """

    max_gap: int | None
    fibers: dict[int, StoredFiber] = field(default_factory=dict)
    memberships: set[tuple[int, int]] = field(default_factory=set)
    merges: dict[int, int] = field(default_factory=dict)
    lines: dict[int, Line] = field(default_factory=dict)
    opened: int = 0

    def __post_init__(self) -> None:
        self.max_gap_us = None if self.max_gap is None else self.max_gap * SECOND

    def new_id(self, log_id: int, match: int) -> int:
        return new_id(log_id, match)

    @property
    def latest_us(self) -> int:
        return max((fiber.last_us for fiber in self.fibers.values()), default=-1)

    def taken(self, fiber_ids: Collection[int]) -> Collection[int]:
        return self.fibers.keys() & set(fiber_ids)

    def find(self, uses: Sequence[Use], known: Collection[int]) -> list[StoredFiber]:
        return [
            fiber
            for fiber_id, fiber in self.fibers.items()
            if fiber_id not in known
            and any(
                key in fiber.keys
                and fiber.keys[key].position[0] <= to_us
                and fiber.reach(self.max_gap_us)[0] >= from_us
                for key, from_us, to_us in uses
            )
        ]

    def open(self, fibers: Sequence[StoredFiber]) -> dict[int, OpenedFiber]:
        self.opened += len(fibers)
        return {
            fiber.fiber_id: OpenedFiber(
                [
                    line_item(line.second * SECOND, log_id, occurrence, fiber)
                    for log_id, fiber_id in self.memberships
                    if fiber_id == fiber.fiber_id
                    for line in (self.lines[log_id],)
                    for occurrence in line.occurrences
                ],
                [old for old, new in self.merges.items() if new == fiber.fiber_id],
            )
            for fiber in fibers
        }

    def write(self, batch: Sequence[Line]) -> None:
        """Store the lines that are not stored yet, and their fibers."""
        new = {line.log_id: line for line in batch if line.log_id not in self.lines}
        self.lines.update(new)
        items = [
            line_item(line.second * SECOND, line.log_id, occurrence)
            for line in new.values()
            for occurrence in line.occurrences
        ]
        self.apply(correlate(self, items))

    def apply(self, changes: Changes) -> None:
        """Write changes, as a database does."""
        for loser, survivor in changes.merged.items():
            assert survivor not in changes.merged
            keys, others = self.fibers[survivor].keys, self.fibers.pop(loser).keys
            for key, first in others.items():
                keys[key] = min(keys.get(key, first), first)
            self.memberships = {
                (log_id, survivor if fiber_id == loser else fiber_id) for log_id, fiber_id in self.memberships
            }
            self.merges = {old: survivor if new == loser else new for old, new in self.merges.items()} | {
                loser: survivor
            }
        for change in changes.fibers:
            assert change.is_new == (change.fiber_id not in self.fibers)
            if change.is_new:
                assert change.attributes is not None
                stored = StoredFiber(change.fiber_id, 0, {}, change.attributes, None)
                self.fibers[change.fiber_id] = stored
                self.merges.pop(change.fiber_id, None)
            stored = self.fibers[change.fiber_id]
            stored.last_us = change.fiber.last_us
            stored.keys = dict(stored.keys)
            assert stored.keys.keys().isdisjoint(change.keys_new)
            assert stored.keys.keys() >= change.keys_moved.keys()
            stored.keys.update(change.keys_new)
            stored.keys.update(change.keys_moved)
            for key in change.keys_gone:
                del stored.keys[key]
            if change.is_end_new:
                stored.end = change.fiber.end
            assert stored.end == change.fiber.end
            assert stored.keys == change.fiber.keys
            if change.attributes is not None:
                stored.attributes = change.attributes
        assert self.memberships >= set(changes.left)
        self.memberships -= set(changes.left)
        assert len(set(changes.joined)) == len(changes.joined)
        self.memberships |= set(changes.joined)
        self.merges.update(changes.resolved)
        assert not self.fibers.keys() & self.merges.keys()

    def resolve(self, fiber_id: int) -> int:
        """Return the fiber that an id once given stands for."""
        return self.merges.get(fiber_id, fiber_id)

    def logs_of(self, fiber_id: int) -> frozenset[int]:
        return frozenset(log_id for log_id, other in self.memberships if other == fiber_id)


def shown(fiber: FiberRecord) -> set[tuple[str, str]]:
    """Return the names and texts that a fiber has as attributes, each once."""
    assert isinstance(fiber.attributes, dict)
    pairs = []
    for name, texts in fiber.attributes.items():
        assert isinstance(texts, list)
        pairs += [(name, str(text)) for text in texts]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def new_id(log_id: int, match: int) -> int:
    """Return the id of a fiber that begins with an occurrence."""
    return log_id * 100 + match


def disjoint(fibers: Iterable[StoredFiber], max_gap_us: int | None) -> bool:
    """Return True if no two fibers use one key at one position."""
    uses: dict[Key, list[tuple[tuple[int, int], Cut]]] = {}
    for fiber in fibers:
        for key, first in fiber.keys.items():
            uses.setdefault(key, []).append((first.position, fiber.reach(max_gap_us)))
    return all(
        reach < following
        for spans in uses.values()
        for (_, reach), (following, _) in zip(sorted(spans), sorted(spans)[1:], strict=False)
    )


def numbered_fibers(storage: DuckDBStorage, rules: Rules) -> str:
    """Ingest files; return a line for each fiber: its type, and the numbers of its logs in order of time."""
    ingest(storage, rules)
    numbers = {log.log_id: number for number, log in enumerate(read_sources(rules), 1)}
    with storage.session() as session:
        statement = sa.select(Fiber.fiber_type, Fiber.fiber_id, Membership.log_id).join(
            Membership, Membership.fiber_id == Fiber.fiber_id
        )
        found: dict[tuple[str, object], list[int]] = {}
        for name, fiber_id, log_id in session.execute(
            statement.where(Fiber.config_version == rules.config_version)
        ):
            found.setdefault((name, fiber_id), []).append(numbers[log_id])
    lines = sorted((sorted(members), name) for (name, _), members in found.items())
    return "".join(f"{name}: {' '.join(map(str, members))}\n" for members, name in lines)
