"""The order in which the files of a source are read, and what is known of each before it is read."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fiberstore.ingest.counts import SourceCounts
from fiberstore.ingest.files import Head, decoded, read_head
from fiberstore.ingest.known_files import KnownFile, KnownFiles
from fiberstore.ingest.rules import Source, stamp_group
from fiberstore.ingest.stamps import Clock
from fiberstore.records import from_epoch_us


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that is to be read.

    Attributes:
        path: Its path.
        head: Its beginning.
        known: What tells it from other files.
    """

    path: Path
    head: Head
    known: KnownFile


class FilePlan:
    """Finds the order and the years of the files of a source.

    Args:
        source: Its rules.
        timestamp: Expression of its stamps.
        known: Its files that were read before; the new ones are added.
        counts: Where years that are guessed are counted.
    """

    def __init__(
        self, source: Source, timestamp: re.Pattern[str], known: KnownFiles, counts: SourceCounts
    ) -> None:
        self._source = source
        self._timestamp = timestamp
        self._known = known
        self._counts = counts

    def order(self, paths: Sequence[Path]) -> list[PlannedFile]:
        """Return the files by their first stamps, or by their own times where stamps have no year.

        Raises:
            LogFileError: A file cannot be read.
        """
        heads = [(path, read_head(path)) for path in paths]
        stamps = {path: self._first_stamp(head) for path, head in heads}
        if self._source.has_year:
            heads.sort(key=lambda pair: self.first_time(stamps[pair[0]]) or pair[1].modified)
        else:
            heads.sort(key=lambda pair: pair[1].modified)
        files = []
        near = self._known.last
        for path, head in heads:
            file = self._planned(path, head, stamps[path], near)
            if not self._source.has_year:
                begin = self.first_time(stamps[path], file.known.year)
                near = max(filter(None, (near, begin)), default=None)
            files.append(file)
        return files

    def renewed(self, file: PlannedFile) -> PlannedFile:
        """Return a file as it is now: files may have been rotated since the reading began.

        Raises:
            LogFileError: It cannot be read.
        """
        if not file.path.is_file():
            return file
        head = read_head(file.path)
        if file.head.content and head.content.startswith(file.head.content):
            return file
        return self._planned(file.path, head, self._first_stamp(head), self._known.last)

    def first_time(self, stamp: str | None, year: int | None = None) -> datetime | None:
        """Return the time of a first stamp, or None if it is none."""
        clock = self._new_clock()
        clock.begin(year)
        try:
            return None if stamp is None else from_epoch_us(clock.read(stamp))
        except (ValueError, OverflowError):
            return None

    def clock_of(self, file: PlannedFile) -> Clock:
        """Return a clock that reads the stamps of a file from its beginning."""
        clock = self._new_clock()
        clock.begin(file.known.year, file.head.modified if self._source.year is None else None)
        return clock

    def _new_clock(self) -> Clock:
        return Clock(self._source.format or (), self._source.timezone, self._source.clock_offset)

    def _planned(self, path: Path, head: Head, stamp: str | None, near: datetime | None) -> PlannedFile:
        before = self._known.find(head.content)
        year = None if before is None else before.year
        if year is None and not self._source.has_year:
            year = self._year_of(stamp, head, near)
            self._counts.guessed_years += year != self._source.year
        is_known = bool(head.content)
        known = self._known.add(head.content, before, year) if is_known else KnownFile(0, "", "", 0, year)
        return PlannedFile(path, head, known)

    def _first_stamp(self, head: Head) -> str | None:
        blocks = decoded(io.BytesIO(head.content), self._source.encoding, "backslashreplace")
        group = stamp_group(self._timestamp)
        matches = (self._timestamp.search(line.lstrip("\0")) for block in blocks for line in block.texts)
        return next((stamp for match in matches if match and (stamp := match[group]) is not None), None)

    def _year_of(self, stamp: str | None, head: Head, near: datetime | None) -> int | None:
        """Return the year of the first stamp of a new file, by when it was written, or by lines before."""
        year = self._source.year
        if stamp is None or (year is not None and near is None):
            return year
        clock = self._new_clock()
        try:
            return (
                clock.first_year(stamp, None, head.modified)
                if year is None
                else clock.first_year(stamp, near)
            )
        except (ValueError, OverflowError):
            return year
