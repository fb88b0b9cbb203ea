"""Regular expressions of RE2, as conditions and redaction take them."""

import re
from collections.abc import Sequence

from fiberstore.checks import check_text

_ESCAPE = re.compile(r"\\Q.*?(?P<end>\\E|\Z)|\\.", re.DOTALL)  # RE2 refuses \Q and \C in brackets
_NAMED_GROUP = re.compile(  # or what can hold its beginning as text: quoted, escaped or in brackets
    r"\\Q.*?(?:\\E|\Z)|\\.|\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^]\\])*\]|(?P<begin>\(\?<)", re.DOTALL
)


def closed(pattern: str) -> str:
    r"""End the quotation (``\Q``) that lasts to the end of a pattern, so that more can follow."""
    ends = [escape["end"] for escape in _ESCAPE.finditer(pattern) if escape["end"] is not None]
    return rf"{pattern}\E" if ends and not ends[-1] else pattern


def has_bytes(pattern: str) -> bool:
    r"""Return whether a pattern has ``\C``, which matches a byte of a character."""
    return any(escape[0] == r"\C" for escape in _ESCAPE.finditer(pattern))


def check_redaction(pattern: str) -> None:
    """Check that a regular expression of RE2 matches some text only.

    Raises:
        ValueError: It is no such expression, or matches the empty text, be it only beside some character.
    """
    check_pattern(pattern)
    if _can_be_empty(pattern):
        raise ValueError(f"{pattern!r} matches the empty text, so everywhere; write one that does not")


def check_pattern(pattern: str) -> None:
    """Check a regular expression of RE2, see ``TextColumn.regexp_match``."""
    _re2_finds(check_text(pattern), [""], pattern)
    if any(token["begin"] for token in _NAMED_GROUP.finditer(pattern)):  # what only newer versions know
        reason = "Invalid regular expression: invalid perl operator: (?<"
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {reason}")
    if has_bytes(pattern):
        raise ValueError(
            rf"{pattern!r} has \C, which matches a byte; write (?s:.), which matches a character"
        )


def _can_be_empty(pattern: str) -> bool:
    """Return whether a regular expression matches the empty text somewhere in some text.

    That depends on the two characters around it only, and of each on what assertions see: no character at
    all, the end of a line, a character of a word, or another.
    """
    seen = ("\n", "a", " ")
    around = {
        "{}": [""],
        "(?s:.){}": seen,
        "{}(?s:.)": seen,
        "(?s:.){}(?s:.)": [before + after for before in seen for after in seen],
    }
    empty = f"(?:{closed(pattern)})"
    return any(_re2_finds(rf"\A{place.format(empty)}\z", texts, pattern) for place, texts in around.items())


def _re2_finds(expression: str, texts: Sequence[str], pattern: str) -> bool:
    """Return whether an expression that is made of a pattern matches in one of the texts."""
    import pyarrow as pa  # it has RE2
    from pyarrow import compute

    try:
        return any(compute.match_substring_regex(pa.array(texts), expression).to_pylist())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {error}") from error
