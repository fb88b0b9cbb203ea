"""Patterns of RE2 as DuckDB must be given them to find exactly what RE2 finds.

DuckDB has RE2, but its optimizer replaces some patterns by LIKE, prefix or suffix comparisons.
"""

import re

from fiberstore.contract.patterns import closed

_TEXT = re.compile(r"(?:[^\\.+*?()|\[\]{}^$]|\\[^0-9A-Za-z])*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def as_text(pattern: str) -> str | None:
    """Return the text that a pattern stands for, if it has only characters that mean themselves."""
    return _ESCAPED.sub(r"\1", pattern) if _TEXT.fullmatch(pattern) else None


def to_duckdb(pattern: str) -> str:
    """Return the same pattern in a form that DuckDB's optimizer leaves to RE2.

    The optimizer turns a sequence of text, anchors and ``.*`` into LIKE, and takes an empty group at its edge
    for an anchor. A capturing group stops it. An empty one at the end costs RE2 nothing.
    """
    return f"{closed(pattern)}()"
