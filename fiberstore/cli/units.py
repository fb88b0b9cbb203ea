"""Sizes as text: ``500MB``, ``1.5GiB``."""

import re
from fractions import Fraction

_PREFIXES = "kmgt"
_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?(?:([{_PREFIXES}])(i?))?b?", re.IGNORECASE)
_MOST_CHARACTERS = 40


def parse_size(text: str) -> int:
    """Return the number of bytes that a text names, rounded down: 1 K or KB is 1,000, 1 KiB is 1,024.

    Raises:
        ValueError: It names none.
    """
    parts = _SIZE.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
    if parts is None:
        raise ValueError(f"{text!r:.100} is no size; give one such as '500MB', '10GB', '1.5GiB'")
    number, prefix, binary = parts.groups()
    step = 1_024 if binary else 1_000
    return int(Fraction(number) * step ** (_PREFIXES.index(prefix.lower()) + 1 if prefix else 0))
