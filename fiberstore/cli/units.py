"""Quantities as text: durations (``250ms``, ``1.5h``, ``5min``) and sizes (``500MB``, ``1.5GiB``)."""

import re
from datetime import timedelta
from fractions import Fraction

_UNIT_US = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_DURATION = re.compile(rf"(-?[0-9]+(?:\.[0-9]+)?) ?({'|'.join(sorted(_UNIT_US, key=len, reverse=True))})")
_PREFIXES = "kmgt"
_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?(?:([{_PREFIXES}])(i?))?b?", re.IGNORECASE)
_MOST_CHARACTERS = 40


def parse_duration(text: str) -> timedelta:
    """Return the duration that a text names, exactly.

    Raises:
        ValueError: It names none, or one that a ``timedelta`` cannot hold.
    """
    parts = _DURATION.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
    if parts is None:
        raise ValueError(
            f"{text!r:.100} is no duration; give one such as '250ms', '5s', '5min', '1.5h', '1d'"
        )
    span_us = Fraction(parts[1]) * _UNIT_US[parts[2]]
    if span_us.denominator != 1:
        raise ValueError(f"{text!r} is finer than 1 µs")
    try:
        return timedelta(microseconds=span_us.numerator)
    except OverflowError:
        raise ValueError(f"{text!r} is too long; 999999999d is the longest") from None


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
