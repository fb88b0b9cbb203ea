"""The files of a source that were read before, known by how they begin, whatever they are called now.

How far each was read depends on the rules, too, by which its lines were read: places are kept apart.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from datetime import datetime
from itertools import islice
from typing import NamedTuple, Self
from uuid import UUID

from fiberstore.ids import StableLogIds
from fiberstore.ingest.stamps import ClockState

_MAX_FILES = 1_000


class Place(NamedTuple):
    """Place to continue in a file: at the first line of the log that was stored last, as that may have grown.

    Attributes:
        byte: Number of bytes before the line, decompressed.
        line: Number of the line.
        characters: Length of the line.
        digest: Hash of the line.
        log_id: Id of the log.
        time_us: Time of the log, in µs since 1970.
        clock: State of the clock before the line.
    """

    byte: int
    line: int
    characters: int
    digest: str
    log_id: str
    time_us: int
    clock: ClockState

    def is_at(self, line: str) -> bool:
        """Return True if a line is the one of this place, which may have been cut then."""
        return digest_of(line[: self.characters].encode(errors="surrogatepass")) == self.digest


def places_from_text(text: str) -> dict[str, Place]:
    """Read the text of ``places_to_text``."""
    return {
        name: Place(*values)._replace(clock=tuple(values[-1])) for name, values in json.loads(text).items()
    }


def places_to_text(places: Mapping[str, Place]) -> str:
    """Return places by the names of their files as a text for a checkpoint: the last 1,000."""
    kept = dict(islice(places.items(), max(len(places) - _MAX_FILES, 0), None))
    return json.dumps(kept, separators=(",", ":"))


class Tail(NamedTuple):
    """The log that stood last in a file.

    Attributes:
        log_id: Its id.
        line: Number of its first line.
        twin: That of the file.
    """

    log_id: UUID
    line: int
    twin: int

    def is_of(self, source_id: str, text: str, time_us: int) -> bool:
        """Return False if the log was read with another text than this one: it was redacted since."""
        return StableLogIds(source_id, self.twin).number(self.line, text, time_us) == self.log_id.int


@dataclass(slots=True, eq=False)
class KnownFile:
    """A file as it was when it was last read.

    Attributes:
        size: Bytes of its beginning that are known; 0 of an empty file, and of standard input, which are not
            known again.
        digest: Hash of these bytes.
        first_line: Hash of its first line.
        twin: 0, or a number that tells it from others with the same first line.
        year: Year of its first stamp, if stamps have none.
        tail: Id of the record that stood last; it may have grown since.
        tail_line: Number of the first line of that record.
    """

    size: int
    digest: str
    first_line: str
    twin: int
    year: int | None = None
    tail: str | None = None
    tail_line: int = 0

    @property
    def name(self) -> str:
        """Name that no other file of the source has, however much it grows."""
        return f"{self.first_line} {self.twin}"


@dataclass(slots=True)
class KnownFiles:
    """The files of one source; a new file with the beginning of a known one is that file, grown or renamed.

    Attributes:
        files: The files, those last read at the end. The last 1,000 are kept, and all of the last reading.
        last: Time of the latest record read so far.
        replaced: Tails that have grown, by the 128 bits of the id of the log that has the whole text.
        dropped: Tails whose line has grown to one that begins no log, and that line.
        places: How far files were read by the present rules, by their names.
        saved: Text of the checkpoint as this run has read or written it.
        saved_places: Text of the checkpoint of the places as this run has written it.
    """

    files: list[KnownFile] = field(default_factory=list)
    last: datetime | None = None
    replaced: dict[int, Tail] = field(default_factory=dict)
    dropped: list[tuple[Tail, str]] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    saved: str | None = None
    saved_places: str | None = None
    _added: int = 0

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read the text of ``to_text``."""
        data = json.loads(text)
        last = data["last"]
        files = [KnownFile(*file) for file in data["files"]]
        return cls(files, last and datetime.fromisoformat(last), saved=text)

    def to_text(self) -> str:
        """Return the files as a text for a checkpoint."""
        last = None if self.last is None else self.last.isoformat()
        data = {
            "files": [astuple(file) for file in self.files[-max(_MAX_FILES, self._added) :]],
            "last": last,
        }
        return json.dumps(data, separators=(",", ":"))

    def note_saved(self) -> None:
        """Take note that all of it is in the checkpoints."""
        if self.files:
            self.saved = self.to_text()
        self.saved_places = places_to_text(self.places)

    @property
    def is_saved(self) -> bool:
        """True if the checkpoints, as far as there are any, hold all of it."""
        has_files = not self.files or self.saved == self.to_text()
        return has_files and (not self.places or self.saved_places == places_to_text(self.places))

    def find(self, content: bytes) -> KnownFile | None:
        """Return the known file that begins like this one, that of the longest beginning."""
        found = [
            known
            for known in self.files
            if known.size <= len(content) and digest_of(content[: known.size]) == known.digest
        ]
        return max(found, key=lambda known: known.size, default=None)

    def add(self, content: bytes, before: KnownFile | None, year: int | None) -> KnownFile:
        """Take note of a file, and return what tells it from others; equal ones share it.

        Args:
            content: Its beginning: whole lines, or the first line as far as it is written.
            before: What ``find`` found.
            year: Year of its first stamp, if stamps have none.
        """
        first_line = digest_of(content.partition(b"\n")[0])
        self._added += 1
        if before is not None:
            self.files.remove(before)
        twins = [known.twin for known in self.files if known.first_line == first_line]
        twin = max(twins, default=-1) + 1
        if before is None:
            known = KnownFile(len(content), digest_of(content), first_line, twin, year)
        else:
            known = before
            if known.twin in twins:  # its first line was cut, and has grown to that of another
                known.twin = twin
            known.size, known.digest, known.first_line = len(content), digest_of(content), first_line
            known.year = known.year or year
        self.files.append(known)
        return known


def digest_of(content: bytes) -> str:
    """Return a hash of a beginning."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
