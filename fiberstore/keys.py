"""Keys of fibers as people read and write them: ``request=7f3a``."""

import shlex
from collections.abc import Sequence

from fiberstore.escaping import escape_controls
from fiberstore.records import FiberKey


def key_values(keys: Sequence[FiberKey]) -> dict[str, list[str]]:
    """Return the values of the keys of each name, in their order."""
    values: dict[str, list[str]] = {}
    for key in keys:
        values.setdefault(key.name, []).append(key.value)
    return values


def key_label(keys: Sequence[FiberKey]) -> str:
    """Return the words of the keys, separated by blanks."""
    return " ".join(key_words(keys))


def key_words(keys: Sequence[FiberKey]) -> list[str]:
    """Return each key as ``--key`` takes it, quoted for a shell where that needs it; equal names together."""
    return [_quoted(f"{name}={value}") for name, values in key_values(keys).items() for value in values]


def _quoted(text: str) -> str:
    shown = escape_controls(text)
    is_one_word = len(shown.split()) == 1 and not set("'\"\\`$;&|<>()*?!#") & set(shown)
    return shown if is_one_word else shlex.quote(shown)
