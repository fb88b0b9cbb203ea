"""Comparison of the answers of calls with the store: is there one order that explains all of them?

A store is a dict of named values; a name that is missing stands for None. Each transaction that changes
something enters itself into a journal, which is stored with its changes: its place in the order, what it
read and left. Calls note when they began and ended. ``contradictions`` runs the journal again and says what
cannot be: a lost update, a torn read, a snapshot older than what was acknowledged before.
"""

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from pydantic import JsonValue

Values = Mapping[str, JsonValue]


class Outcome(Enum):
    """A call, as its caller knows it."""

    DONE = 0
    FAILED = 1
    UNKNOWN = 2  # cancelled: it happens wholly or not at all, perhaps later


@dataclass(frozen=True)
class Change:
    """A call that was to change something.

    Attributes:
        call: Its number.
        begin: When it was called.
        end: When it returned.
        outcome: How.
    """

    call: int
    begin: float
    end: float
    outcome: Outcome


@dataclass(frozen=True)
class Read:
    """Rows that were read in one snapshot.

    Attributes:
        begin: When the call began.
        end: When it ended.
        seen: The values.
        position: The last entry of the journal in that snapshot; None if the call did not look.
    """

    begin: float
    end: float
    seen: Values
    position: int | None = None


@dataclass(frozen=True)
class Entry:
    """A transaction as it has entered itself into the journal.

    Attributes:
        position: One more than the last entry it saw.
        call: The number of the call.
        before: What it read.
        after: What it left of that, where it differs.
    """

    position: int
    call: int
    before: Values
    after: Values

    def to_text(self) -> str:
        return json.dumps([self.position, self.call, self.before, self.after])

    @classmethod
    def from_text(cls, text: str) -> "Entry":
        return cls(*json.loads(text))


def contradictions(
    changes: Iterable[Change], reads: Iterable[Read], journal: Iterable[Entry], final: Values
) -> list[str]:
    """Say what no order of the calls explains; nothing if there is one.

    Args:
        changes: Every call that was to change something.
        reads: Every call that only read.
        journal: Every entry that is stored in the end.
        final: Every value that is stored in the end.
    """
    changes, journal = list(changes), sorted(journal, key=lambda entry: entry.position)
    if [entry.position for entry in journal] != list(range(1, len(journal) + 1)):
        return [f"positions of the journal are {[entry.position for entry in journal]}"]
    found = _unlike_their_outcome(changes, journal)
    states = _states(journal, found)
    bounds = _Bounds(changes, journal)
    found += [
        f"entry {entry.position} does not follow what was acknowledged before it began, {least}"
        for change, entry in bounds.entered
        if entry.position <= (least := bounds.least(change.begin))
    ]
    for read in reads:
        least, most = bounds.least(read.begin), bounds.most(read.end)
        if read.position is not None and not least <= read.position <= most:
            found.append(f"a read saw {read.position} entries, expected {least} to {most}")
            continue
        possible = range(least, most + 1) if read.position is None else [read.position]
        if not any(_agree(read.seen, states[position]) for position in possible):
            found.append(f"nothing explains that a read saw {read.seen} with {list(possible)[:3]}... entries")
    if not _agree(final, states[-1]) or not _agree(states[-1], final):
        found.append(f"the end is {final}, expected {states[-1]}")
    return found


def stale_register(writes: Sequence[tuple[Change, JsonValue]], reads: Iterable[Read], name: str) -> list[str]:
    """Say which reads of one value saw what was never written, not yet written, or written over.

    Args:
        writes: Calls that set the value, each to one of its own, whatever it was before.
        reads: Calls that read it by its name.
        name: The name.
    """
    by_value = {_text(value): change for change, value in writes if change.outcome is not Outcome.FAILED}
    done = [change for change, _ in writes if change.outcome is Outcome.DONE]
    found = []
    for read in reads:
        write = by_value.get(_text(read.seen[name]))
        if write is None or write.begin > read.end:
            found.append(f"{read} saw what was not written")
        elif any(_end(write) < other.begin and other.end < read.begin for other in done):
            found.append(f"{read} saw what was written over")
    return found


class _Bounds:
    """Bounds of the entries of a snapshot, by what was acknowledged before and begun until then."""

    def __init__(self, changes: Iterable[Change], journal: Iterable[Entry]) -> None:
        entries = {entry.call: entry for entry in journal}
        self.entered = [(change, entries[change.call]) for change in changes if change.call in entries]
        by_end = sorted((_end(change), entry.position) for change, entry in self.entered)
        by_begin = sorted((change.begin, entry.position) for change, entry in self.entered)
        self._ends, self._least = _running_maximum(by_end)
        self._begins, self._most = _running_maximum(by_begin)

    def least(self, begin: float) -> int:
        return self._least[bisect_left(self._ends, begin)]

    def most(self, end: float) -> int:
        return self._most[bisect_left(self._begins, end)]


def _running_maximum(pairs: Sequence[tuple[float, int]]) -> tuple[list[float], list[int]]:
    return [time for time, _ in pairs], list(accumulate((position for _, position in pairs), max, initial=0))


def _unlike_their_outcome(changes: Iterable[Change], journal: Iterable[Entry]) -> list[str]:
    entered = Counter(entry.call for entry in journal)
    found = []
    for change in changes:
        times = entered.pop(change.call, 0)
        expected = {Outcome.DONE: (1,), Outcome.FAILED: (0,), Outcome.UNKNOWN: (0, 1)}[change.outcome]
        if times not in expected:
            found.append(f"{change} is entered {times} times")
    found += [f"nobody made call {call}, which is entered" for call in entered]
    return found


def _states(journal: Iterable[Entry], found: list[str]) -> list[Values]:
    """Return the store before all entries and after each; add what an entry read that was not so."""
    states: list[Values] = [{}]
    for entry in journal:
        if not _agree(entry.before, states[-1]):
            found.append(f"{entry} has not read what the entries before it had left, {states[-1]}")
        states.append({**states[-1], **entry.after})
    return states


def _agree(part: Values, whole: Values) -> bool:
    return all(value == whole.get(name) for name, value in part.items())


def _end(change: Change) -> float:
    return math.inf if change.outcome is Outcome.UNKNOWN else change.end


def _text(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True)  # PostgreSQL has an order of keys of its own
