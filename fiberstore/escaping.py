"""Text from logs, made harmless to look at, and fit to be stored."""

import unicodedata
from functools import lru_cache

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


def escape_controls(text: str, keep: str = "") -> str:
    r"""Return the text with every character that moves, hides or turns text shown as ``\x1b`` and the like.

    Args:
        text: What anybody may have written.
        keep: Characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    characters = set(text).difference(keep)
    if any(map(_is_unseen, characters)):
        # All characters are in the table: one that is not costs an exception.
        text = text.translate(
            {ord(found): _escape(found) if _is_unseen(found) else found for found in characters}
        )
    if any(map(_is_mark, characters)):
        text = _without_piles(text)
    return text


def escape_unstorable(text: str) -> str:
    r"""Return a text with NUL and lone surrogates as ``\x00`` and ``\udc80``, which no record may hold."""
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


@lru_cache(maxsize=4_096)
def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN or character in _IGNORABLE


@lru_cache(maxsize=4_096)
def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in _MARKS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _without_piles(text: str) -> str:
    """Escape the marks in a row beyond those that are shown; NUL, where it is kept, parts no row."""
    shown, marks = [], 0
    for character in text:
        if character != "\0":
            marks = marks + 1 if _is_mark(character) else 0
        is_shown = marks <= _MOST_MARKS or character == "\0"
        shown.append(character if is_shown else _escape(character))
    return "".join(shown)
