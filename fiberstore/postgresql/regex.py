"""Patterns of RE2 in the words of PostgreSQL: its advanced regular expressions.

A pattern is translated, or it is refused. PostgreSQL is told as little as possible: every class is spelled
out as ranges of code points, and case is ignored by naming the characters that differ in it. So neither the
locale nor the version of Unicode of a server counts.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import NamedTuple, NoReturn, TypeAlias

Ranges: TypeAlias = list[tuple[int, int]]  # code points from the first to the last, both included

_GREATEST = 0x10FFFF
_GREATEST_WITH_CASE = 0x1E943
_MOST_NESTED = 100
_MOST_REPEATED = 255  # in one bound of PostgreSQL; RE2 allows 1000

_CLASSES = {
    "alnum": "09AZaz",
    "alpha": "AZaz",
    "ascii": "\0\x7f",
    "blank": "\t\t  ",
    "cntrl": "\0\x1f\x7f\x7f",
    "digit": "09",
    "graph": "!~",
    "lower": "az",
    "print": " ~",
    "punct": "!/:@[`{~",
    "space": "\t\r  ",
    "upper": "AZ",
    "word": "09AZ__az",
    "xdigit": "09AFaf",
    "d": "09",
    "s": "\t\n\f\r  ",
    "w": "09AZ__az",
}
# Of letters that Unicode has in two cases since its version 16 only, RE2 knows one.
_WITH_NEWER_CASE = {
    *(*range(0x1C89, 0x1C8B), *range(0xA7CB, 0xA7D0), *range(0xA7D2, 0xA7D6), *range(0xA7DA, 0xA7DD)),
    *(*range(0x10D50, 0x10D86), *range(0x16EA0, 0x16ED4)),
}
_CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

_CHARACTER = re.compile(
    r"\\x\{(?P<hex>[0-9A-Fa-f]+)\}|\\x(?P<hex2>..)|\\(?P<octal>[0-7]{1,3})|\\(?P<escaped>.)|(?P<itself>.)",
    re.DOTALL,
)
_QUOTED = re.compile(r"\\Q(.*?)(?:\\E|\Z)", re.DOTALL)
_NAMED_CLASS = re.compile(r"\[:(?P<negated>\^?)(?P<name>[a-z]+):\]")
_PERL_CLASS = re.compile(r"\\(?P<name>[dswDSW])")
_UNICODE_CLASS = re.compile(r"\\[pP](?:\{[^}]*\}|.)", re.DOTALL)
_GROUP = re.compile(r"\(\?P<[^>]*>|\((?!\?)")
_FLAGS = re.compile(r"\(\?(?P<on>[imsU]*)-?(?P<off>[imsU]*)(?P<end>[:)])")
_ASSERTION = re.compile(r"\^|\$|\\[AzbB]")
# RE2 reads braces as text if a number in them begins with a 0 or has more than nine digits.
_NUMBER = "0|[1-9][0-9]{0,8}"
_QUANTIFIER = re.compile(
    rf"(?:(?P<sign>[*+?])|\{{(?P<least>{_NUMBER})(?P<most_too>,(?P<most>{_NUMBER})?)?\}})\??"
)


class _Part(NamedTuple):
    r"""A part of a pattern in the words of PostgreSQL.

    Attributes:
        source: Its words.
        is_atom: Whether a quantifier behind them is one of them all.
        is_within: Whether it matches within a character, where RE2 sees the bytes of UTF-8: no character is
            there, and of the assertions, only ``\B`` is true.
    """

    source: str
    is_atom: bool = True
    is_within: bool = False


def to_postgres(pattern: str) -> str:
    r"""Translate a regular expression of RE2 to one of PostgreSQL that matches somewhere in the same texts.

    Args:
        pattern: What DuckDB takes as a regular expression of RE2, without NUL and ``\C``.

    Returns:
        The expression for the right of PostgreSQL's ``~``, with a text of the collation "C" on its left.
        Where in a text it matches, and how far, can differ.

    Raises:
        ValueError: It has ``\p`` or ``\P``, or groups nested more than 100 deep.
    """
    translated = _Parser(pattern).alternatives()
    source = translated.source
    if translated.is_within and r"\Y" in source:  # then RE2 matches within any character of several bytes
        source += r"|[^\x01-\x7F]"
    return f"(?w){source}"  # ^ and $ stand at every line, \A and \Z at the text; a newline is any character


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._flags = frozenset[str]()
        self._nesting = 0

    def alternatives(self) -> _Part:
        """Read up to the end of the group."""
        branches = [self._branch()]
        while self._takes("|"):
            branches.append(self._branch())
        source = "|".join(branch.source for branch in branches)
        return _Part(source, False, any(branch.is_within for branch in branches))

    def _branch(self) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._pattern) and not self._sees("|", ")"):
            if quantifier := self._take(_QUANTIFIER):
                parts[-1] = _repeated(parts[-1], quantifier)
            else:
                parts += self._parts()
        source = "".join(part.source for part in parts)
        return _Part(source, False, all(part.is_within for part in parts))

    def _parts(self) -> list[_Part]:
        """Read the next atom, or what holds no or many of them."""
        if quoted := self._take(_QUOTED):
            return [self._literal(ord(character)) for character in quoted[1]]
        if flags := self._take(_FLAGS):
            outer = self._flags
            self._flags = (outer | set(flags["on"])) - set(flags["off"])
            return [self._group(outer)] if flags["end"] == ":" else []
        if self._take(_GROUP):
            return [self._group(self._flags)]
        return [self._atom()]

    def _atom(self) -> _Part:
        if assertion := self._take(_ASSERTION):
            return self._assertion(assertion[0])
        if self._sees("(?"):
            self._refuse(self._pattern[self._at :][:3], "a group's name is written (?P<name>...)")
        if self._takes("."):
            return _Part("." if "s" in self._flags else r"[^\n]")
        if self._takes("["):
            return _Part(_class(self._bracketed()))
        if (ranges := self._named_class()) is not None:
            return _Part(_class(ranges))
        return self._literal(self._character())

    def _group(self, outer: frozenset[str]) -> _Part:
        self._nesting += 1
        if self._nesting > _MOST_NESTED:
            self._refuse(f"groups nested more than {_MOST_NESTED} deep", "write it with fewer parentheses")
        inner = self.alternatives()
        self._takes(")")
        self._nesting -= 1
        self._flags = outer
        return _Part(f"(?:{inner.source})", True, inner.is_within)

    def _assertion(self, assertion: str) -> _Part:
        if assertion in "^$" and "m" in self._flags:
            return _Part(assertion, False)
        source = {"^": r"\A", "$": r"\Z", r"\A": r"\A", r"\z": r"\Z", r"\b": r"\y", r"\B": r"\Y"}[assertion]
        return _Part(source, False, assertion == r"\B")

    def _literal(self, code: int) -> _Part:
        return _Part(_class(self._any_case([(code, code)])))

    def _bracketed(self) -> Ranges:
        is_negated = self._takes("^")
        ranges = self._member()  # be it a bracket
        while not self._takes("]"):
            ranges += self._member()
        return _complement(ranges) if is_negated else _joined(ranges)

    def _member(self) -> Ranges:
        if (ranges := self._named_class()) is not None:
            return ranges
        first = last = self._character()
        if self._sees("-") and not self._sees("-]"):
            self._at += 1
            last = self._character()
        return self._any_case([(first, last)])

    def _named_class(self) -> Ranges | None:
        if unicode := self._take(_UNICODE_CLASS):
            self._refuse(unicode[0], r"write its characters as ranges, such as [\x{370}-\x{3FF}]")
        if perl := self._take(_PERL_CLASS):
            name, is_negated = perl["name"].lower(), perl["name"].isupper()
        elif named := self._take(_NAMED_CLASS):
            name, is_negated = named["name"], bool(named["negated"])
        else:
            return None
        bounds = _CLASSES[name]
        ranges = self._any_case(list(zip(map(ord, bounds[::2]), map(ord, bounds[1::2]), strict=True)))
        return _complement(ranges) if is_negated else ranges

    def _any_case(self, ranges: Ranges) -> Ranges:
        return _folded(ranges) if "i" in self._flags else ranges

    def _character(self) -> int:
        match = self._take(_CHARACTER)
        assert match is not None  # noqa: S101  # RE2 has read it
        if digits := match["hex"] or match["hex2"]:
            return int(digits, 16)
        if match["octal"]:
            return int(match["octal"], 8)
        escaped = match["escaped"]
        return ord(_CONTROLS.get(escaped, escaped) if escaped else match["itself"])

    def _sees(self, *texts: str) -> bool:
        return self._pattern.startswith(texts, self._at)

    def _takes(self, text: str) -> bool:
        is_seen = self._sees(text)
        self._at += len(text) * is_seen
        return is_seen

    def _take(self, token: re.Pattern[str]) -> re.Match[str] | None:
        match = token.match(self._pattern, self._at)
        if match:
            self._at = match.end()
        return match

    def _refuse(self, construct: str, instead: str) -> NoReturn:
        raise ValueError(f"{self._pattern!r} has {construct}, which PostgreSQL does not know; {instead}")


def _repeated(part: _Part, quantifier: re.Match[str]) -> _Part:
    atom = part.source if part.is_atom else f"(?:{part.source})"
    if sign := quantifier["sign"]:
        return _Part(atom + sign, False, sign in "*?" or part.is_within)
    least = int(quantifier["least"])
    most = int(quantifier["most"] or least)
    if max(least, most) <= _MOST_REPEATED:
        bounds = [f"{{{least}{quantifier['most_too'] or ''}}}"]
    else:
        bounds = [f"{{{times}}}" for times in _at_once(least)]
        bounds += ["*"] if quantifier["most_too"] == "," else [f"{{0,{n}}}" for n in _at_once(most - least)]
    return _Part("".join(atom + bound for bound in bounds), False, least == 0 or part.is_within)


def _at_once(times: int) -> list[int]:
    """Split a number of repetitions into what PostgreSQL takes in one bound."""
    whole, rest = divmod(times, _MOST_REPEATED)
    return [_MOST_REPEATED] * whole + [rest] * (rest > 0)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the same code points in order, with a gap between any two ranges."""
    joined: Ranges = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def _complement(ranges: Ranges) -> Ranges:
    """Return all other code points."""
    ends = [(-1, -1), *_joined(ranges), (_GREATEST + 1, _GREATEST + 1)]
    return [(before + 1, after - 1) for (_, before), (after, _) in pairwise(ends) if before + 1 < after]


def _folded(ranges: Ranges) -> Ranges:
    """Return the code points and those that differ from one of them in case only."""
    variants = _case_variants()
    codes = list(variants)
    folded = list(ranges)
    for first, last in ranges:
        for code in codes[bisect_left(codes, first) : bisect_right(codes, last)]:
            folded += [(variant, variant) for variant in variants[code]]
    return _joined(folded)


@cache
def _case_variants() -> dict[int, frozenset[int]]:
    """Return, in order, the code points that have a case, each with itself and those of its other cases."""
    variants = defaultdict[str, frozenset[str]](frozenset)
    others = set(map(chr, _WITH_NEWER_CASE)) | {"\u0131"}  # Unicode folds no dotless i
    for character in set(map(chr, range(_GREATEST_WITH_CASE + 1))) - others:
        for cased in {character.lower(), character.upper()} - {character} - others:
            if len(cased) == 1:
                same = variants[character] | variants[cased] | {character, cased}
                variants.update(dict.fromkeys(same, same))
    return {ord(one): frozenset(map(ord, variants[one])) for one in sorted(variants)}


def _class(ranges: Ranges) -> str:
    """Return the words for one character of these; ``ranges`` are in order, with gaps between them."""
    if not ranges:
        return rf"[^\U00000000-{_said(_GREATEST)}]"
    is_negated = ranges[-1][1] == _GREATEST
    named = _complement(ranges) if is_negated else ranges
    if not named:
        return "."
    if not is_negated and len(named) == 1 and named[0][0] == named[0][1]:
        return _said(named[0][0])
    members = "".join(
        _said(first) if first == last else f"{_said(first)}-{_said(last)}" for first, last in named
    )
    return f"[{'^' * is_negated}{members}]"


def _said(code: int) -> str:
    """Return a character as PostgreSQL reads it, in a class or outside."""
    character = chr(code)
    if not character.isprintable():
        return rf"\U{code:08X}"
    return rf"\{character}" if character.isascii() and not character.isalnum() else character
