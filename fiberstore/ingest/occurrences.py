"""Pattern search: a line in, its occurrences out, with the keys by which it joins fibers."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import NamedTuple, TypeAlias, TypeVar

from fiberstore.ingest.rules import Pattern, Rules


class Key(NamedTuple):
    """Name and text by which lines join a fiber."""

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


_Group: TypeAlias = tuple[str, int, Callable[[str], str] | None]
_Cut: TypeAlias = tuple[bool, bool, timedelta | None]

_Texts: TypeAlias = tuple[str | None, ...]
"""Texts of the groups of a match, in their order."""

Found: TypeAlias = tuple[tuple[str, Occurrence], ...]
"""The occurrences of a line, each with its fiber type, in the order of the rules."""

_T = TypeVar("_T")

_NO_CUT: _Cut = (False, False, None)
_KNOWN_TEXTS = 256
_LONGEST_KNOWN = 4096


class PatternSearch:
    """Searches lines for the patterns of rules.

    All plain patterns of a type that match a line make one occurrence together: it has their keys, starts a
    fiber if one of them does, and closes it if one of them does, with the longest grace. Each match of an
    ``each`` pattern makes one of its own, numbered over all such patterns of the type. What has no key makes
    none. A key is a group that holds text; with ``key = [...]`` it is all these groups, each with text.

    Args:
        rules: The fiber types.

    Attributes:
        keyless: Number of lines so far without an occurrence, by declared source.
    """

    def __init__(self, rules: Rules) -> None:
        self.keyless = dict.fromkeys(rules.sources, 0)
        self._types = [
            (name, [_Compiled(pattern) for pattern in fiber_type.patterns])
            for name, fiber_type in rules.fibers.items()
        ]
        self._by_source = {source: _SourceSearch(self._types, source) for source in rules.sources}
        self._undeclared = _SourceSearch(self._types, None)

    @property
    def matches(self) -> dict[str, list[int]]:
        """Number of matches so far, for each fiber type and each of its patterns in their order."""
        return {name: [pattern.matches for pattern in patterns] for name, patterns in self._types}

    def find(self, source_id: str, raw_text: str) -> Found:
        """Return the occurrences of a line, each with its fiber type, in the order of the rules.

        Args:
            source_id: Source of the line; patterns without ``source`` also search undeclared ones.
            raw_text: The line.
        """
        search = self._by_source.get(source_id, self._undeclared)
        texts = tuple([pattern.find(raw_text) for pattern in search.patterns])
        found = (search.known if len(raw_text) <= _LONGEST_KNOWN else search.occurrences)(texts)
        if not found and source_id in self.keyless:
            self.keyless[source_id] += 1
        return found


class _SourceSearch:
    """Patterns that search the lines of one source.

    Lines in which they find the same texts have equal occurrences, so those of recent lines are kept.

    Attributes:
        patterns: The patterns, in the order of the texts that they find.
        known: Does what ``occurrences`` does, and keeps the results.
    """

    def __init__(self, types: Sequence[tuple[str, Sequence["_Compiled"]]], source: str | None) -> None:
        self._plan = []
        self.patterns: list[_Compiled] = []
        for name, patterns in types:
            read = [pattern for pattern in patterns if pattern.reads(source)]
            plain = [pattern for pattern in read if not pattern.is_each]
            each = [pattern for pattern in read if pattern.is_each]
            self._plan.append((name, plain, each))
            self.patterns += [*plain, *each]
        self.known = lru_cache(maxsize=_KNOWN_TEXTS)(self.occurrences)

    def occurrences(self, texts: tuple[tuple[_Texts, ...], ...]) -> Found:
        """Return the occurrences of a line, given the texts of all matches of each pattern."""
        found = []
        matches = iter(texts)
        for name, plain, each in self._plan:
            keys: tuple[Key, ...] = ()
            attributes: tuple[tuple[str, str], ...] = ()
            cut = _NO_CUT
            for pattern in plain:
                for match in next(matches):
                    keys = _united(keys, pattern.keys(match))
                    attributes = _united(attributes, pattern.attributes(match))
                    cut = cut if pattern.cut == _NO_CUT else _joint_cut(cut, pattern.cut)
            if keys:
                found.append((name, Occurrence(keys, attributes, 0, *cut)))
            number = 0
            for pattern in each:
                for match in next(matches):
                    number += 1
                    keys = pattern.keys(match)
                    if keys:
                        found.append(
                            (name, Occurrence(keys, pattern.attributes(match), number, *pattern.cut))
                        )
        return tuple(found)


class _Compiled:
    """A pattern ready to search, with the numbers of its groups in place of their names."""

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self.matches = 0
        self.is_each = pattern.each
        self.cut: _Cut = (pattern.start, pattern.close, pattern.close_grace)
        self._search = pattern.regex.search
        self._find_all = pattern.regex.finditer
        self._single = [self._group(names[0]) for names in pattern.keys if len(names) == 1]
        self._joint = [self._group(name) for names in pattern.keys if len(names) > 1 for name in names]
        in_keys = {name for names in pattern.keys for name in names}
        self._attribute_groups = [
            self._group(name) for name in pattern.regex.groupindex if name not in in_keys
        ]

    def reads(self, source: str | None) -> bool:
        """Return True if lines of the source are searched; None stands for one that is not declared."""
        return self._pattern.source is None if source is None else self._pattern.reads(source)

    def find(self, raw_text: str) -> tuple[_Texts, ...]:
        """Return the texts of the first match, or of all, and count them."""
        if self.is_each:
            found = tuple([match.groups() for match in self._find_all(raw_text)])
            self.matches += len(found)
            return found
        match = self._search(raw_text)
        if match is None:
            return ()
        self.matches += 1
        return (match.groups(),)

    def keys(self, match: _Texts) -> tuple[Key, ...]:
        """Return the keys of a match."""
        keys = []
        for name, place, normalize in self._single:
            text = match[place]
            if text and normalize is not None:
                text = normalize(text)
            if text:
                keys.append(Key(name, text))
        if self._joint:
            texts = _texts(match, self._joint)
            if all(texts):
                keys.append(_joint_key(self._joint, texts))
        return tuple(keys)

    def attributes(self, match: _Texts) -> tuple[tuple[str, str], ...]:
        """Return the other texts of a match."""
        groups = self._attribute_groups
        if not groups:
            return ()
        return tuple(
            (group[0], text) for group, text in zip(groups, _texts(match, groups), strict=True) if text
        )

    def _group(self, name: str) -> _Group:
        place = self._pattern.regex.groupindex[name] - 1
        return name, place, _SPELLINGS.get(self._pattern.normalize.get(name))


_SPELLINGS: dict[str | None, Callable[[str], str]] = {
    "lower": str.lower,
    "hex": lambda text: text.replace("-", "").lower(),
}


def _texts(match: _Texts, groups: Sequence[_Group]) -> list[str]:
    return [
        text if normalize is None else normalize(text)
        for _, place, normalize in groups
        for text in (match[place] or "",)
    ]


def _joint_key(groups: Sequence[_Group], texts: Sequence[str]) -> Key:
    escaped = [text.replace("\\", "\\\\").replace("+", "\\+") for text in texts]
    return Key("+".join(name for name, _, _ in groups), "+".join(escaped))


def _united(first: tuple[_T, ...], second: tuple[_T, ...]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(first + second)) if first and second else first or second


def _joint_cut(first: _Cut, second: _Cut) -> _Cut:
    graces = [grace for _, _, grace in (first, second) if grace is not None]
    return first[0] or second[0], first[1] or second[1], max(graces, default=None)
