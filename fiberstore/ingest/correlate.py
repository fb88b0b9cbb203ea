"""New lines into the stored fibers of one type.

The fibers are those that ``sweep`` makes of all lines, the stored and the new ones. To find them, only the
fibers are loaded that use a key of a new line at its time, without their lines; what results may use a key
longer than before, and then those that it meets are loaded too. Lines of a stored fiber are read only if a
cut falls into it. ``docs/correlation.md`` proves that nothing else has to be looked at.

Ids of logs and fibers are numbers here, their 128 bits: sets of them are what most of the time goes into.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from pydantic import JsonValue

from fiberstore.ingest.occurrences import Key
from fiberstore.ingest.sweep import (
    END_OF_TIMESTAMP,
    First,
    Item,
    Position,
    StoredFiber,
    SweptFiber,
    stored_items,
    sweep,
)
from fiberstore.json_text import dump_json, dump_texts
from fiberstore.records import LATEST_US

Use: TypeAlias = tuple[Key, int, int]
"""A key, and the first and the last time that are asked for, in µs since 1970."""

_Place: TypeAlias = tuple[Position, int]
_PLACE: Callable[[Item], _Place] = itemgetter(0, 1)


class OpenedFiber(NamedTuple):
    """The lines of a stored fiber.

    Attributes:
        lines: Their occurrences, those of other fibers too.
        former_ids: Ids of fibers that have become part of it.
    """

    lines: list[Item]
    former_ids: list[int]


class FiberStore(ABC):
    """Stored fibers of one type and config version.

    Attributes:
        max_gap_us: Longest silence within a fiber, in µs; None for any.
    """

    max_gap_us: int | None

    @abstractmethod
    def new_id(self, log_id: int, match: int) -> int:
        """Return the id of a fiber that begins with an occurrence."""

    @abstractmethod
    def taken(self, fiber_ids: Collection[int]) -> Collection[int]:
        """Return those of the ids that are stored fibers."""

    @property
    @abstractmethod
    def latest_us(self) -> int:
        """Time of the last line of all fibers, in µs since 1970."""

    @abstractmethod
    def find(self, uses: Sequence[Use], known: Collection[int]) -> list[StoredFiber]:
        """Return the fibers that use one of the keys at one of the times, but for known ones."""

    @abstractmethod
    def open(self, fibers: Sequence[StoredFiber]) -> dict[int, OpenedFiber]:
        """Read the lines of fibers."""


@dataclass(slots=True)
class FiberChange:
    """A fiber that is new or has changed.

    Attributes:
        fiber_id: Its id.
        fiber: The fiber as it is now.
        is_new: No fiber of this id is stored.
        attributes: Its attributes as JSON; None if they are stored.
        keys_new: Keys that are stored neither with it nor with fibers merged into it.
        keys_moved: Keys that are stored so, with another first line.
        keys_gone: Keys that are stored so, and are none of its own any more.
        is_end_new: Its end is not the stored one, or those of fibers merged into it are to be deleted.
    """

    fiber_id: int
    fiber: SweptFiber
    is_new: bool
    attributes: str | None
    keys_new: dict[Key, First]
    keys_moved: dict[Key, First]
    keys_gone: list[Key]
    is_end_new: bool


@dataclass(slots=True)
class Changes:
    """Changes to be written, in this order.

    Attributes:
        merged: Stored fibers that become part of others, and these.
        fibers: New and changed fibers.
        left: Pairs of a log and a fiber that it is no longer in.
        joined: Pairs of a log and its fiber, to be stored unless they are.
        resolved: Ids of former fibers that resolve to another fiber than before.
    """

    merged: dict[int, int] = field(default_factory=dict)
    fibers: list[FiberChange] = field(default_factory=list)
    left: list[tuple[int, int]] = field(default_factory=list)
    joined: list[tuple[int, int]] = field(default_factory=list)
    resolved: dict[int, int] = field(default_factory=dict)


def correlate(store: FiberStore, lines: Iterable[Item], known: Iterable[Item] = ()) -> Changes:
    """Return how the stored fibers change when lines join them.

    Args:
        store: The stored fibers.
        lines: Occurrences of lines that are in none of them.
        known: Occurrences of lines that are in some of them. Those of releases before are made anew.
    """
    batch = _Batch(store, lines)
    batch.look_up(known)
    return batch.changes(batch.sweep())


class _Batch:
    def __init__(self, store: FiberStore, lines: Iterable[Item]) -> None:
        self._store = store
        self._max_gap_us = store.max_gap_us
        self._lines = {_PLACE(line): line for line in lines}
        self._looked_up: dict[Key, list[tuple[int, int]]] = {}
        self._stored: dict[int, StoredFiber] = {}
        self._opened: dict[int, StoredFiber] = {}
        self._emptied: dict[int, StoredFiber] = {}
        self._ids: dict[_Place, list[tuple[int, bool]]] = {}
        self._elsewhere: dict[int, list[Item]] = {}

    def look_up(self, lines: Iterable[Item]) -> None:
        """Load the fibers that use a key of one of the lines at its time."""
        self._load(self._uses_of(lines))

    def sweep(self) -> list[SweptFiber]:
        """Sweep, load what the result meets, and repeat until it meets nothing else."""
        self.look_up(self._lines.values())
        while True:
            items = [line for _, line in sorted(self._lines.items())]
            earliest_us = items[0].position[0] if items else LATEST_US
            if self._stored:
                for stored in self._stored.values():
                    items += stored_items(stored, earliest_us)
                items.sort(key=_PLACE)
            fibers = sweep(items, self._max_gap_us)
            broken = [stored for fiber in fibers for stored in fiber.broken()]
            follows_all = earliest_us > self._store.latest_us
            met = [] if follows_all else [use for fiber in fibers for use in self._longer_uses(fiber)]
            is_opened = self._open(broken)
            if not (self._load(met) or is_opened):
                return fibers

    def _load(self, uses: Sequence[Use]) -> bool:
        """Load the fibers with these uses; return False if all are known."""
        if not uses:
            return False
        found = self._store.find(uses, self._stored.keys() | self._opened.keys() | self._emptied.keys())
        self._stored.update((stored.fiber_id, stored) for stored in found)
        self._open([stored for stored in found if not stored.is_known])
        return bool(found)

    def _open(self, fibers: Sequence[StoredFiber]) -> bool:
        """Take the lines of stored fibers in their place; return False if there are no fibers."""
        if not fibers:
            return False
        unknown: list[Item] = []
        opened = self._store.open(fibers)
        for stored in fibers:
            lines, former_ids = opened[stored.fiber_id]
            del self._stored[stored.fiber_id]
            own = []
            for line in lines:
                if stored.has(line, self._max_gap_us):
                    own.append(line)
                else:
                    self._elsewhere.setdefault(line.log_id, []).append(line)
            if not own:
                self._emptied[stored.fiber_id] = stored
                continue
            self._opened[stored.fiber_id] = stored
            self._place_ids(stored, own, former_ids)
            for line in own:
                self._lines.setdefault(_PLACE(line), line)
            if not stored.is_known:
                unknown += own
        self.look_up(unknown)
        return True

    def _place_ids(self, stored: StoredFiber, lines: Sequence[Item], former_ids: Collection[int]) -> None:
        """Find the occurrence that each id was made from; the fiber's own id stays with its first line."""
        own = _PLACE(min(lines, key=_PLACE))
        wanted = {stored.fiber_id, *former_ids}
        for line in lines:
            made = self._store.new_id(line.log_id, line.match)
            if made == stored.fiber_id:
                own = _PLACE(line)
            elif made in wanted:
                self._ids.setdefault(_PLACE(line), []).append((made, False))
        self._ids.setdefault(own, []).append((stored.fiber_id, True))

    def _uses_of(self, lines: Iterable[Item]) -> list[Use]:
        """Return when fibers that use the keys of lines might be met by them; note that this is looked up."""
        times: dict[Key, list[int]] = {}
        for line in lines:
            for key in line.keys:
                times.setdefault(key, []).append(line.position[0])
        uses = []
        for key, found in times.items():
            found.sort()
            first_us = last_us = found[0]
            spans = []
            for time_us in found if found[-1] > self._after(first_us) else ():
                if time_us > self._after(last_us):
                    spans.append((first_us, self._after(last_us)))
                    first_us = time_us
                last_us = time_us
            spans.append((first_us, self._after(found[-1])))
            self._looked_up.setdefault(key, []).extend(spans)
            uses += [(key, *span) for span in spans]
        return uses

    def _after(self, time_us: int) -> int:
        return LATEST_US if self._max_gap_us is None else min(time_us + self._max_gap_us, LATEST_US)

    def _longer_uses(self, fiber: SweptFiber) -> list[Use]:
        """Return the uses of a fiber that have not been looked up: where others might use the keys, too."""
        if not fiber.lines and len(fiber.stored) == 1:
            return []
        until_us = min(fiber.reach[0], LATEST_US)
        origins = {origin: None for origin in fiber.stored if origin.is_known}
        origins.update((line.origin, None) for line in fiber.lines if line.origin and line.origin.is_known)
        reaches = [(origin, origin.reach(self._max_gap_us)) for origin in origins]
        uses = []
        for key, first in fiber.keys.items():
            spans = [*self._looked_up.get(key, ())]
            for origin, (reach_us, place) in reaches:
                if key in origin.keys:
                    whole = place == END_OF_TIMESTAMP
                    spans.append((origin.keys[key].position[0], reach_us if whole else reach_us - 1))
            seen_us = first.position[0] - 1
            for from_us, to_us in sorted(spans):
                if from_us <= seen_us + 1 and to_us > seen_us:
                    seen_us = to_us
            if seen_us < until_us and seen_us < self._store.latest_us:
                self._looked_up.setdefault(key, []).append((seen_us + 1, until_us))
                uses.append((key, seen_us + 1, until_us))
        return uses

    def changes(self, fibers: Iterable[SweptFiber]) -> Changes:
        """Compare the fibers with the stored ones."""
        changes = Changes()
        changed = [
            (fiber, *self._take_id(fiber, changes))
            for fiber in fibers
            if fiber.lines or len(fiber.stored) != 1 or fiber.stored[0].end != fiber.end
        ]
        free = self._free_ids([fiber_id for _, fiber_id, parts in changed if not parts])
        for fiber, chosen, parts in changed:
            fiber_id = chosen if parts else free[chosen]
            changes.fibers.append(_change(fiber_id, fiber, parts))
            changes.joined += [(line.log_id, fiber_id) for line in fiber.lines]
        changes.joined = list(dict.fromkeys(changes.joined))
        changes.fibers += [
            _emptied(stored, self._max_gap_us) for stored in self._emptied.values() if stored.is_known
        ]
        if self._opened:
            self._compare_memberships(changes)
        return changes

    def _compare_memberships(self, changes: Changes) -> None:
        """Leave out of what has joined what is stored, and tell what is stored and has not."""
        stored = {
            (line.log_id, changes.merged.get(line.origin.fiber_id, line.origin.fiber_id))
            for change in changes.fibers
            for line in change.fiber.lines
            if line.origin is not None
        }
        joined = {*changes.joined}
        whole = {change.fiber_id: change.fiber.stored for change in changes.fibers}
        changes.left = sorted(
            (log_id, fiber_id)
            for log_id, fiber_id in stored - joined
            if not any(
                part.has(line, self._max_gap_us)
                for line in self._elsewhere.get(log_id, ())
                for part in whole[fiber_id]
            )
        )
        changes.joined = sorted(joined - stored)

    def _free_ids(self, fiber_ids: Collection[int]) -> dict[int, int]:
        """Return an id for each new fiber: another one if its own is stored, made from a deleted log."""
        free = {fiber_id: fiber_id for fiber_id in fiber_ids}
        while free and (taken := self._store.taken(free.values())):
            free = {made: self._store.new_id(id_, 0) if id_ in taken else id_ for made, id_ in free.items()}
        return free

    def _take_id(self, fiber: SweptFiber, changes: Changes) -> tuple[int, list[StoredFiber]]:
        """Choose the id of a fiber, and note what becomes of the others.

        Returns:
            The id; and the stored fibers that the fiber continues, the one of this id first.
        """
        if not (fiber.stored or self._ids):
            return self._new_id(fiber), []
        living = [(stored.first, stored.fiber_id) for stored in fiber.stored]
        former: list[tuple[Position, int]] = []
        for line in fiber.lines if self._ids else ():
            for id_, is_living in self._ids.get(_PLACE(line), ()):
                (living if is_living else former).append((line.position, id_))
        ids = [id_ for _, id_ in [*sorted(living), *sorted(former)]]
        if not ids:
            return self._new_id(fiber), []
        chosen = ids[0]
        changes.merged.update((id_, chosen) for _, id_ in living if id_ != chosen)
        changes.resolved.update((id_, chosen) for _, id_ in former if id_ != chosen)
        parts = [self._stored.get(id_) or self._opened[id_] for id_ in ids[: len(living)]]
        return chosen, parts

    def _new_id(self, fiber: SweptFiber) -> int:
        first = min(fiber.lines, key=_PLACE)
        return self._store.new_id(first.log_id, first.match)


def _change(fiber_id: int, fiber: SweptFiber, parts: Sequence[StoredFiber]) -> FiberChange:
    """Compare a fiber with the stored ones that it continues, the one whose id it keeps first."""
    if not parts:
        texts = _texts(fiber)
        is_ended = fiber.end is not None
        return FiberChange(fiber_id, fiber, True, dump_texts(texts), fiber.keys, {}, [], is_ended)
    before: dict[Key, First] = {}
    for part in parts:
        for key, first in part.keys.items():
            if key not in before or first.position < before[key].position:
                before[key] = first
    known = all(part.is_known for part in parts)
    new, moved = {}, {}
    for key, first in fiber.keys.items():
        if (stored := before.get(key)) is None:
            new[key] = first
        elif stored != first or not known:
            moved[key] = first
    gone = [key for key in before if key not in fiber.keys]
    attributes = None
    if new or moved or gone or len(parts) != 1 or any(line.attributes for line in fiber.lines):
        found = _attributes(fiber, parts)
        attributes = None if parts[0].attributes == found else dump_json(found)
    is_end_new = {part.end for part in parts} != {fiber.end}
    return FiberChange(fiber_id, fiber, False, attributes, new, moved, gone, is_end_new)


def _emptied(stored: StoredFiber, max_gap_us: int | None) -> FiberChange:
    """Return the change of a fiber none of whose lines is there: it uses no key any more."""
    fiber = SweptFiber(stored.first, stored.last_us, stored.reach(max_gap_us), stored.end)
    return _change(stored.fiber_id, fiber, [stored])


def _texts(fiber: SweptFiber, others: Iterable[tuple[str, str]] = ()) -> dict[str, list[str]]:
    """Return the texts of a fiber by their names: its keys by the lines that have them first, others sorted.

    Args:
        fiber: The fiber.
        others: Pairs of a name and a text, besides those of its lines.
    """
    keys = fiber.keys
    in_order = keys if len(keys) == 1 else sorted(keys, key=lambda key: (keys[key].position, key))
    extra = {pair for line in fiber.lines for pair in line.attributes}.union(others)
    by_name: dict[str, dict[str, None]] = {}
    for name, value in (*in_order, *sorted(extra)) if extra else in_order:
        by_name.setdefault(name, {})[value] = None
    return {name: [*texts] for name, texts in by_name.items()}


def _attributes(fiber: SweptFiber, parts: Sequence[StoredFiber]) -> dict[str, JsonValue]:
    """Return the texts of a fiber that continues stored ones.

    Of the first of these, what ``ingest`` has not written stays.
    """
    others: list[tuple[str, str]] = []
    kept: dict[str, JsonValue] = {}
    for part in parts:
        if not isinstance(part.attributes, dict):
            continue
        for name, texts in part.attributes.items():
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                if part in fiber.stored:
                    others += [(name, str(text)) for text in texts]
            elif part is parts[0]:
                kept[name] = texts
    kept.update(_texts(fiber, others))  # type: ignore[arg-type]
    return kept
