"""``Occurrence``: the keys of one line for one fiber type, and whether a fiber begins or ends there."""

from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple


class Key(NamedTuple):
    """What lines of one fiber have in common."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Keys of one line for one fiber: of all plain patterns of its type, or of one match of an ``each`` one.

    Attributes:
        keys: At least one, each once, in the order of the patterns and their groups.
        attributes: Texts that join nothing, as pairs of group name and text.
        match: 0, or the number of the match of an ``each`` pattern on the line, from 1 on.
        start: The fibers that use one of the keys end just before the line.
        close_grace: The fiber ends so long after the line; None if the line does not end it.
    """

    keys: tuple[Key, ...]
    attributes: tuple[tuple[str, str], ...] = ()
    match: int = 0
    start: bool = False
    close_grace: timedelta | None = None
