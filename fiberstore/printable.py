"""Text from logs, made harmless to look at."""

import itertools
import re
import sys
import unicodedata
from functools import cache

# Controls, format characters, surrogates, private and unassigned code points, ends of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Of Unicode's Default_Ignorable_Code_Point those in other categories: fillers and variation selectors.
_IGNORABLE = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)
_MARKS = frozenset({"Mn", "Me"})
_MOST_MARKS = 8  # more than any language puts on a letter; a pile of them covers the lines around it


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with every character that moves, hides or turns text shown as ``\x1b`` and the like.

    Args:
        text: What anybody may have written.
        keep: Characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    characters = set(text).difference(keep)
    unseen = filter(_is_unseen, characters)
    text = text.translate({ord(character): _escape(character) for character in unseen})
    if any(unicodedata.category(character) in _MARKS for character in characters):
        text = _runs_of_marks().sub(_without_pile, text)
    return text


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN or character in _IGNORABLE


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


@cache
def _runs_of_marks() -> re.Pattern[str]:
    """Build the pattern of more marks than are shown; it takes long, and few texts have any."""
    every = map(chr, range(sys.maxunicode + 1))
    marks = "".join(character for character in every if unicodedata.category(character) in _MARKS)
    return re.compile(f"[{marks}\0]{{{_MOST_MARKS + 1},}}")  # NUL, where it is kept, parts no pile


def _without_pile(run: re.Match[str]) -> str:
    numbers = itertools.count(1)
    return "".join(_escape(mark) if mark != "\0" and next(numbers) > _MOST_MARKS else mark for mark in run[0])
