"""The definition of fibers, as one pass over the lines in order of position.

``docs/correlation.md`` says it in words. The pass also takes stored fibers whole, in place of their lines:
what it makes of them is right unless a cut falls between their first and their last line, which ``broken``
tells.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from pydantic import JsonValue

from fiberstore.ingest.occurrences import Key, Occurrence
from fiberstore.records import MICROSECOND

Position: TypeAlias = tuple[int, int]
"""Where a line stands: µs since 1970, and twice the number that its log id is."""

Cut: TypeAlias = tuple[int, int]
"""Where a fiber ends: between two positions, so that it equals none."""

NO_LOG = -1
END_OF_TIMESTAMP = 1 << 130
END_OF_TIME: Cut = (1 << 62, END_OF_TIMESTAMP)


class First(NamedTuple):
    """The first line of a fiber that has a key.

    Attributes:
        position: Where the line stands; a log id that is not known counts as 0.
        starts: A ``start`` occurrence of the line has the key.
    """

    position: Position
    starts: bool


@dataclass(slots=True, eq=False)
class StoredFiber:
    """A stored fiber, without its lines.

    Attributes:
        fiber_id: Its id.
        last_us: Time of its last line, in µs since 1970.
        keys: Its keys.
        attributes: Its attributes: the texts of its keys by name, and others.
        end: Where it ends; None for most.
        is_known: False if a release before wrote it, which did not store where the use of a key begins.
    """

    fiber_id: int
    last_us: int
    keys: dict[Key, First]
    attributes: JsonValue
    end: Cut | None
    is_known: bool = True

    @property
    def first(self) -> Position:
        """Position of its first line."""
        return min(self.keys.values()).position

    def reach(self, max_gap_us: int | None) -> Cut:
        """Return the last position that joins it."""
        return _reach(self.last_us, self.end, max_gap_us)

    def has(self, line: "Item", max_gap_us: int | None) -> bool:
        """Return True if an occurrence is of this fiber, as it uses one of the keys at its position."""
        position = line.position
        return position < self.reach(max_gap_us) and any(
            key in self.keys and self.keys[key].position <= position for key in line.keys
        )


class Item(NamedTuple):
    """Element of the pass: an occurrence, or keys that a stored fiber has from a position on.

    Attributes:
        position: Where.
        match: Number of the occurrence on its line.
        keys: Its keys.
        starts: Those of them that a ``start`` occurrence has.
        end: Where its fiber ends by it.
        log_id: Its line; ``NO_LOG`` for a stored fiber.
        attributes: Texts that join nothing.
        origin: The stored fiber that it is, or that the occurrence was part of.
    """

    position: Position
    match: int
    keys: tuple[Key, ...]
    starts: tuple[Key, ...] = ()
    end: Cut | None = None
    log_id: int = NO_LOG
    attributes: tuple[tuple[str, str], ...] = ()
    origin: StoredFiber | None = None


@dataclass(slots=True, eq=False)
class SweptFiber:
    """A fiber as it results.

    Attributes:
        first: Position of its first line.
        last_us: Time of its last line, in µs since 1970.
        keys: Its keys.
        lines: Its occurrences, but for those of ``stored``.
        stored: The stored fibers that it consists of.
        end: Where it ends.
        reach: The last position that joins it.
    """

    first: Position
    last_us: int
    reach: Cut
    end: Cut | None = None
    keys: dict[Key, First] = field(default_factory=dict)
    lines: list[Item] = field(default_factory=list)
    stored: list[StoredFiber] = field(default_factory=list)
    _part_of: "SweptFiber | None" = None

    def whole(self) -> "SweptFiber":
        """Return the fiber that this one has become part of, or itself."""
        fiber = self
        while fiber._part_of is not None:
            fiber = fiber._part_of
        return fiber

    def cut(self, end: Cut) -> None:
        """End the fiber there, if it does not end before."""
        if self.end is None or end < self.end:
            self.end = end
            self.reach = min(self.reach, end)

    def absorb(self, other: "SweptFiber") -> "SweptFiber":
        """Make one fiber of two, and return it."""
        if len(other.keys) + len(other.lines) > len(self.keys) + len(self.lines):
            return other.absorb(self)
        other._part_of = self
        keys = self.keys
        for key, first in other.keys.items():
            known = keys.get(key)
            if known is None or first.position < known.position:
                keys[key] = first
        self.lines += other.lines
        self.stored += other.stored
        self.first = min(self.first, other.first)
        self.last_us = max(self.last_us, other.last_us)
        self.reach = max(self.reach, other.reach)
        for end in (self.end, other.end):
            if end is not None:
                self.end = end if self.end is None else min(self.end, end)
                self.reach = min(self.reach, end)
        other.keys, other.lines, other.stored = {}, [], []
        return self

    def broken(self) -> list[StoredFiber]:
        """Return the stored fibers that do not fit whole into it, since it ends before their last line."""
        end = self.end
        if end is None:
            return []
        return [
            stored
            for stored in self.stored
            if (stored.end is None or end < stored.end)
            and (stored.last_us > end[0] or (stored.last_us == end[0] and end[1] < END_OF_TIMESTAMP))
        ]


def line_item(time_us: int, log_id: int, occurrence: Occurrence, origin: StoredFiber | None = None) -> Item:
    """Return the item of an occurrence."""
    keys, attributes, match, start, close, close_grace = occurrence
    place = log_id << 1
    end = None
    if close:
        end = (
            (time_us, place + 1)
            if close_grace is None
            else (time_us + close_grace // MICROSECOND, END_OF_TIMESTAMP)
        )
    return Item((time_us, place), match, keys, keys if start else (), end, log_id, attributes, origin)


def stored_items(stored: StoredFiber, earliest_us: int) -> list[Item]:
    """Return the items that stand for a stored fiber.

    Args:
        stored: The fiber.
        earliest_us: Time of the first line of the pass. Of a fiber without lines from then on, only the state
            counts.
    """
    if stored.last_us < earliest_us:
        return [Item((stored.last_us, 0), 0, tuple(stored.keys), (), stored.end, origin=stored)]
    by_position: dict[Position, list[Key]] = {}
    for key, first in stored.keys.items():
        by_position.setdefault(first.position, []).append(key)
    return [
        Item(
            position, 0, tuple(keys), tuple(key for key in keys if stored.keys[key].starts), stored.end,
            origin=stored,
        )
        for position, keys in by_position.items()
    ]  # fmt: skip


def sweep(items: Sequence[Item], max_gap_us: int | None) -> list[SweptFiber]:
    """Read items in order of position, and return their fibers.

    At each position, first every ``start`` ends the fibers that use one of its keys; then each item joins the
    fibers that use one of its keys, which become one, or begins a fiber; then the fibers of those that close
    them end.

    Args:
        items: Sorted by position and match.
        max_gap_us: Longest silence within a fiber, in µs; None for any.
    """
    sweeping = _Sweeping(max_gap_us)
    if not any(item.starts or item.end for item in items):
        for item in items:
            sweeping.join(item)
        return sweeping.whole_fibers()
    for position, group in groupby(items, itemgetter(0)):
        here = list(group)
        for item in here:
            if item.starts:
                sweeping.end_users(item.starts, position)
        joined = [(sweeping.join(item), item.end) for item in here]
        for fiber, end in joined:
            if end is not None:
                fiber.whole().cut(end)
    return sweeping.whole_fibers()


class _Sweeping:
    """The fibers so far, and which was the last to use a key."""

    def __init__(self, max_gap_us: int | None) -> None:
        self.fibers: list[SweptFiber] = []
        self._max_gap_us = max_gap_us
        self._users: dict[Key | StoredFiber, SweptFiber] = {}

    def whole_fibers(self) -> list[SweptFiber]:
        """Return the fibers that have not become part of others."""
        return [fiber for fiber in self.fibers if fiber.whole() is fiber]

    def end_users(self, keys: Iterable[Key], position: Position) -> None:
        """End the fibers that use one of the keys just before a position."""
        for key in keys:
            user = self._users.get(key)
            if user is not None and position < (user := user.whole()).reach:
                user.cut((position[0], position[1] - 1))

    def join(self, item: Item) -> SweptFiber:
        """Make one of the fibers that use a key of an item, or begin one, and give it the item."""
        users, position = self._users, item.position
        stored = item.origin if item.log_id == NO_LOG else None
        fiber = None
        joining: tuple[Key | StoredFiber, ...] = item.keys if stored is None else (*item.keys, stored)
        for key in joining:
            user = users.get(key)
            if user is not None:
                user = user.whole()
                if user is not fiber and position < user.reach:
                    fiber = user if fiber is None else fiber.absorb(user)
        if fiber is None:
            fiber = SweptFiber(position, position[0], END_OF_TIME)
            self.fibers.append(fiber)
        if stored is None:
            _add_line(fiber, item, self._max_gap_us)
        else:
            if stored not in users:
                fiber.stored.append(stored)
            users[stored] = fiber
            _add_stored(fiber, item, stored, self._max_gap_us)
        for key in item.keys:
            users[key] = fiber
        return fiber


def _add_line(fiber: SweptFiber, item: Item, max_gap_us: int | None) -> None:
    position, keys, starts = item.position, fiber.keys, item.starts
    for key in item.keys:
        if key not in keys or (starts and keys[key].position == position):
            keys[key] = First(position, bool(starts))
    fiber.lines.append(item)
    if position[0] >= fiber.last_us:
        fiber.last_us = position[0]
        fiber.reach = _reach(position[0], fiber.end, max_gap_us)


def _add_stored(fiber: SweptFiber, item: Item, stored: StoredFiber, max_gap_us: int | None) -> None:
    for key in item.keys:
        first = stored.keys[key]
        known = fiber.keys.get(key)
        if known is None or first.position < known.position:
            fiber.keys[key] = first
        fiber.first = min(fiber.first, first.position)
    fiber.last_us = max(fiber.last_us, stored.last_us)
    fiber.reach = _reach(fiber.last_us, fiber.end, max_gap_us)


def _reach(last_us: int, end: Cut | None, max_gap_us: int | None) -> Cut:
    reach = END_OF_TIME if max_gap_us is None else (last_us + max_gap_us, END_OF_TIMESTAMP)
    return reach if end is None or reach < end else end
