"""Pattern search: a line in, its occurrences out, with the keys by which it joins fibers."""

from datetime import timedelta
from typing import NamedTuple

from fiberstore.ingest.rules import Rules


class Key(NamedTuple):
    """What lines of one fiber have in common."""

    name: str
    value: str


class Occurrence(NamedTuple):
    """Keys of one line for one fiber: of all plain patterns of its type, or of one match of an ``each`` one.

    Attributes:
        keys: At least one, each once, in the order of the patterns and their groups.
        attributes: Texts that join nothing, as pairs of group name and text, each once.
        match: 0, or the number of the match of an ``each`` pattern on the line, from 1 on.
        start: The fibers that use one of the keys end just before the line.
        close: The fiber ends with the line, or later by ``close_grace``.
        close_grace: The fiber takes lines for so long after the line, bounds included; None for no line after
            this one, not even one of the same time.
    """

    keys: tuple[Key, ...]
    attributes: tuple[tuple[str, str], ...] = ()
    match: int = 0
    start: bool = False
    close: bool = False
    close_grace: timedelta | None = None


class PatternSearch:
    """Searches lines for the patterns of rules."""

    def __init__(self, rules: Rules) -> None:
        self._by_source = {
            source: [
                (name, patterns)
                for name, rule in rules.fibers.items()
                if (patterns := [pattern for pattern in rule.patterns if pattern.source == source])
            ]
            for source in rules.sources
        }

    def find(self, source_id: str, raw_text: str) -> list[tuple[str, Occurrence]]:
        """Return the occurrences of a line, each with its fiber type, in the order of the rules."""
        found = []
        for name, patterns in self._by_source.get(source_id, ()):
            keys: dict[Key, None] = {}
            close = False
            for pattern in patterns:
                if match := pattern.regex.search(raw_text):
                    keys.update((Key(*key), None) for key in match.groupdict().items() if key[1])
                    close = close or pattern.close
            if keys:
                found.append((name, Occurrence(tuple(keys), close=close)))
        return found
