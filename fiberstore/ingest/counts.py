"""Counts of what became of the lines of a source."""

from dataclasses import dataclass, field

_FIRST_LINES = 3
_FIRST_CHARACTERS = 500


@dataclass(slots=True)
class SourceCounts:
    """Number of lines of a source, by what became of them.

    Attributes:
        files: Files read.
        continued: Files of which only the end was read, as the rest is stored.
        lines: Lines read.
        records: Records made of them.
        unstamped: Lines without a stamp, joined to the record before them.
        dropped: Lines left out by ``drop``.
        bad_stamps: Records whose stamp was no time, and which got that of the record before.
        late: Records whose time is before that of the record before.
        held_back: Last lines of files that are not whole yet, and can only be read when they are.
        guessed_years: Files whose year was taken from their own time, or from lines before them.
        nul_bytes: NUL bytes left out at the beginning of lines.
        keyless: Records in which no pattern found a key; they are in no fiber.
        first_lines: The first lines that were counted as unstamped, dropped, bad_stamps, and keyless in a
            check, each with file and number where they are known.
    """

    files: int = 0
    continued: int = 0
    lines: int = 0
    records: int = 0
    unstamped: int = 0
    dropped: int = 0
    bad_stamps: int = 0
    late: int = 0
    held_back: int = 0
    guessed_years: int = 0
    nul_bytes: int = 0
    keyless: int = 0
    first_lines: dict[str, list[str]] = field(default_factory=dict)

    def keep(self, kind: str, text: str, place: str = "") -> None:
        """Keep the beginning of a line if it is among the first of its kind."""
        first = self.first_lines.setdefault(kind, [])
        if len(first) < _FIRST_LINES:
            first.append(f"{place}{text[:_FIRST_CHARACTERS]}")
