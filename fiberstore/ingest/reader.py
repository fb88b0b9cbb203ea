"""Log files read as streams of records: the files of a source one after the other, sources merged by time."""

import heapq
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from uuid import UUID

from fiberstore.ids import stable_log_id
from fiberstore.ingest.files import Head, Line, LogFileError, decoded, find_files, read_head, read_lines
from fiberstore.ingest.known_files import KnownFile, KnownFiles
from fiberstore.ingest.rules import Rules, Source
from fiberstore.ingest.stamps import Clock, NoZoneError, format_has
from fiberstore.records import LogRecord

_MAX_UNSTAMPED = 1 << 26
_FIRST_LINES = 3
_FIRST_CHARACTERS = 500
_CRI_LINE = re.compile(r"(\S+ (stdout|stderr)) ([FP])(?::\S*)? (.*)", re.DOTALL)


class IngestError(ValueError):
    """A log file that cannot be read by its rules; the message names file, line and fix."""


@dataclass(slots=True)
class SourceCounts:
    """Number of lines of a source, by what became of them.

    Attributes:
        files: Files read.
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


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    head: Head
    known: KnownFile | None
    year: int | None

    @property
    def twin(self) -> int:
        return 0 if self.known is None else self.known.twin


@dataclass(slots=True)
class _Draft:
    """A record whose lines are being read.

    Attributes:
        number: Number of its first line.
        lines: Its lines.
        time: Its time; None if it has no stamp, or one that is no time.
        has_stamp: True if it has a stamp.
        is_begun: True as long as all its lines are such that begin a record.
    """

    number: int
    lines: list[str]
    time: datetime | None = None
    has_stamp: bool = False
    is_begun: bool = False


def _joined_parts(lines: Iterator[Line], counts: SourceCounts, *, is_growing: bool) -> Iterator[Line]:
    """Join the parts of lines that a container runtime has cut: tags P up to F, of one stream each."""
    parts: dict[str, tuple[int, str, list[str]]] = {}
    for line in lines:
        match = _CRI_LINE.fullmatch(line.text)
        if match is None:
            yield line
            continue
        head, stream, tag, content = match.groups()
        number, head, contents = parts.setdefault(stream, (line.number, head, []))
        contents.append(content)
        if tag == "F":
            del parts[stream]
            yield Line(number, f"{head} F {''.join(contents)}")
    for number, head, contents in parts.values():
        if is_growing:
            counts.held_back += 1
        else:
            yield Line(number, f"{head} P {''.join(contents)}", is_whole=False)


class LogReader:
    """Reads the files of rules.

    Args:
        rules: Names the files.
        known: What is known of each source from earlier readings, by its name; it is updated.
        on_bytes: Called with the number of bytes read since its last call, every 64 KiB and at a file's end.

    Attributes:
        counts: What was read so far, by source.

    Raises:
        IngestError: A file cannot be found, or not be read.
    """

    def __init__(
        self,
        rules: Rules,
        known: dict[str, KnownFiles] | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self.counts: dict[str, SourceCounts] = {}
        self._sources = []
        for name, source in rules.sources.items():
            if source.path is not None:
                files = KnownFiles() if known is None else known.setdefault(name, KnownFiles())
                reader = _SourceReader(name, source, files, on_bytes)
                self.counts[name] = reader.counts
                self._sources.append(reader)

    def records(self) -> Iterator[LogRecord]:
        """Yield all records, those of several sources merged by time.

        Equal times come in the order of the sources in the rules. A file's own order is never
        changed, nor that of a source's files: where their times run backwards, so do the merged ones.

        Raises:
            IngestError: A file cannot be read by its rules.
        """
        if len(self._sources) == 1:
            return self._sources[0].records()
        return heapq.merge(*(source.records() for source in self._sources), key=attrgetter("timestamp"))


def read_sources(rules: Rules, on_bytes: Callable[[int], None] | None = None) -> Iterator[LogRecord]:
    """Yield the records of all files of the rules, merged by time, as if none of them was ever read before.

    Args:
        rules: Names the files.
        on_bytes: As for ``LogReader``.

    Raises:
        IngestError: A file cannot be read by its rules.
    """
    yield from LogReader(rules, on_bytes=on_bytes).records()


def read_source(
    name: str, source: Source, on_bytes: Callable[[int], None] | None = None
) -> Iterator[LogRecord]:
    r"""Yield the records of one source, holding no more than one of them.

    Lines end at LF or CRLF; a CR elsewhere stays in the text. A line without a stamp continues the record
    before it, joined by ``\n``. Lines before the first stamp are a record of their own with that stamp,
    unless all are blank.

    The log id is made from the source's name, the number of the record's first line, its text and its time.
    So it is the same whenever the line is read, whatever the file is called. Of different files that begin
    with the same line, the later ones have other ids: two hosts may write equal lines.

    Files are read in the order of their first stamps, or of their own times where stamps have no year.

    Args:
        name: The records' ``source_id``.
        source: The files and their rules.
        on_bytes: As for ``LogReader``.

    Raises:
        IngestError: A file cannot be read, has bytes that its encoding does not allow, a NUL within a line
            (unless ``encoding_errors`` is ``"backslashreplace"``), a stamp that does not fit the format, or
            text but no stamp (in its first 64 MiB).
    """
    yield from _SourceReader(name, source, KnownFiles(), on_bytes).records()


class _SourceReader:
    """Reads the files of one source."""

    def __init__(
        self, name: str, source: Source, known: KnownFiles, on_bytes: Callable[[int], None] | None
    ) -> None:
        if source.path is None or source.timestamp is None or source.format is None:
            raise IngestError(f"sources.{name}: a file is read by path, timestamp and format; add them")
        self.counts = SourceCounts()
        self._name = name
        self._source = source
        self._formats = source.format
        self._regex = source.timestamp
        self._group: str | int = "ts" if "ts" in self._regex.groupindex else min(self._regex.groups, 1)
        self._known = known
        self._on_bytes = on_bytes
        try:
            self._files = self._plan(find_files(source.path))
        except LogFileError as error:
            raise self._wrong_path(error) from error

    def records(self) -> Iterator[LogRecord]:
        before: datetime | None = None
        for file in self._files:
            self.counts.files += 1
            for record in self._read_file(file):
                self.counts.records += 1
                self.counts.late += before is not None and record.timestamp < before
                before = record.timestamp
                yield record
            if before is not None:
                self._known.last = max(self._known.last or before, before)

    def _plan(self, paths: list[Path]) -> list[_File]:
        heads = [(path, read_head(path)) for path in paths]
        stamps = {path: self._first_stamp(head) for path, head in heads}
        if self._source.has_year:
            heads.sort(key=lambda pair: self._first_time(stamps[pair[0]]) or pair[1].modified)
        else:
            heads.sort(key=lambda pair: pair[1].modified)
        files = []
        near = self._known.last
        for path, head in heads:
            known = self._known.find(head.content) if head.content else None
            year = None if known is None else known.year
            if not self._source.has_year:
                if year is None:
                    year = self._year_of(stamps[path], head, near)
                    self.counts.guessed_years += year != self._source.year
                begin = self._first_time(stamps[path], year)
                near = max(filter(None, (near, begin)), default=None)
            known = self._known.add(head.content, known, year) if head.content else None
            files.append(_File(path, head, known, year))
        return files

    def _first_stamp(self, head: Head) -> str | None:
        lines = decoded(io.BytesIO(head.content), self._source.encoding, "backslashreplace")
        for line in lines:
            match = self._regex.search(line.text.lstrip("\0"))
            if match and match[self._group] is not None:
                return match[self._group]
        return None

    def _first_time(self, stamp: str | None, year: int | None = None) -> datetime | None:
        clock = self._clock()
        clock.begin(year)
        try:
            return None if stamp is None else clock.read(stamp)
        except (ValueError, OverflowError):
            return None

    def _year_of(self, stamp: str | None, head: Head, near: datetime | None) -> int | None:
        """Return the year of the first stamp of a new file, by when it was written, or by lines before."""
        year = self._source.year
        if stamp is None or (year is not None and near is None):
            return year
        clock = self._clock()
        try:
            return (
                clock.first_year(stamp, None, head.modified)
                if year is None
                else clock.first_year(stamp, near)
            )
        except (ValueError, OverflowError):
            return year

    def _clock(self) -> Clock:
        return Clock(self._formats, self._source.timezone, self._source.clock_offset)

    def _read_file(self, file: _File) -> Iterator[LogRecord]:
        clock = self._clock()
        clock.begin(file.year, file.head.modified if self._source.year is None else None)
        undated: list[_Draft] = []
        last: datetime | None = None
        record: LogRecord | None = None
        tail_line = 0
        for draft in self._drafts(file, clock):
            draft.time = draft.time or last
            if draft.time is None:
                undated.append(draft)
                continue
            last = draft.time
            for early in (*undated, draft) if undated else (draft,):
                record = self._make_record(file, early, last)
                yield record
            tail_line = draft.number
            undated.clear()
        if file.known is not None and file.head.is_growing:
            file.known.tail = None if record is None else str(record.log_id)
            file.known.tail_line = tail_line
        if undated:
            raise self._no_stamp(file.path, undated[0].lines)

    def _drafts(self, file: _File, clock: Clock) -> Iterator[_Draft]:
        draft = _Draft(1, [])
        is_dropping = False
        is_dated, undated = False, 0
        for line in self._lines(file):
            stamp = self._stamp(line.text)
            if not line.is_whole and file.head.is_growing and self._is_cut(stamp, is_dated=is_dated):
                self.counts.held_back += 1
                continue
            begins = stamp is not None or self._begins(line.text)
            if (is_dropping and not begins) or (self._source.drop and self._is_dropped(line.text)):
                self.counts.dropped += 1
                self.counts.keep("dropped", line.text, f"{file.path.name}:{line.number}: ")
                is_dropping = is_dropping or begins
                continue
            if not begins:
                self.counts.unstamped += 1
                self.counts.keep("unstamped", line.text, f"{file.path.name}:{line.number}: ")
                draft.lines.append(line.text)
                draft.is_begun = False
                undated += 0 if is_dated else len(line.text) + 1
                if undated > _MAX_UNSTAMPED:
                    raise self._no_stamp(file.path, draft.lines)
                continue
            is_dropping = False
            time = None if stamp is None else self._read_stamp(clock, stamp, file, line.number)
            if draft.is_begun and not (stamp is not None and draft.has_stamp):
                draft.lines.append(line.text)
            else:
                if draft.has_stamp or any(map(str.strip, draft.lines)):
                    yield draft
                draft = _Draft(line.number, [line.text], None, has_stamp=False, is_begun=True)
            if stamp is not None:
                draft.has_stamp = True
                draft.time = time
                is_dated = is_dated or time is not None
        if draft.has_stamp or any(map(str.strip, draft.lines)):
            yield draft

    def _stamp(self, text: str) -> str | None:
        match = self._regex.search(text)
        return match and match[self._group]

    def _is_cut(self, stamp: str | None, *, is_dated: bool) -> bool:
        """Return whether a last line ends before it says what time it is."""
        return not is_dated if stamp is None else self._first_time(stamp) is None

    def _begins(self, text: str) -> bool:
        return self._source.record_start is not None and bool(self._source.record_start.search(text))

    def _is_dropped(self, text: str) -> bool:
        return any(regex.search(text) for regex in self._source.drop)

    def _read_stamp(self, clock: Clock, stamp: str, file: _File, number: int) -> datetime | None:
        name, place = self._name, f"{file.path}:{number}: stamp {stamp!r:.80}"
        try:
            return clock.read(stamp)
        except NoZoneError as error:
            raise IngestError(
                f'{place} has no zone; set sources.{name}.timezone, for example timezone = "UTC"'
            ) from error
        except (ValueError, OverflowError) as error:
            if self._source.on_bad_stamp == "previous":
                self.counts.bad_stamps += 1
                self.counts.keep("bad_stamps", stamp, f"{file.path.name}:{number}: ")
                return None
            shown = self._formats[0] if len(self._formats) == 1 else list(self._formats)
            fix = f"change sources.{name}.format or sources.{name}.timestamp"
            if any(format_has(each, "bB") for each in self._formats) and not stamp.isascii():
                fix = f"names of months are English: write them so, as by sed, or {fix}"
            raise IngestError(
                f"{place} does not fit format {shown!r} ({error}); {fix}, or let the line take the time "
                f'before it: sources.{name}.on_bad_stamp = "previous"'
            ) from error

    def _lines(self, file: _File) -> Iterator[Line]:
        lines = self._whole_lines(file)
        if self._source.join is None:
            return lines
        return _joined_parts(lines, self.counts, is_growing=file.head.is_growing)

    def _whole_lines(self, file: _File) -> Iterator[Line]:
        name, source, number = self._name, self._source, 0
        try:
            for line in read_lines(file.path, source.encoding, source.encoding_errors, self._on_bytes):
                number = line.number
                self.counts.lines += 1
                yield line if "\0" not in line.text else self._without_nuls(line, file)
        except UnicodeDecodeError as error:
            byte = f"byte {error.object[error.start]:#04x} at column {error.start + 1}"
            raise IngestError(
                f"{file.path}:{number + 1}: {byte} is not {error.encoding}; set sources.{name}.encoding "
                '(for example "latin-1"), or encoding_errors = "backslashreplace"'
            ) from error
        except LogFileError as error:
            raise self._wrong_path(error) from error

    def _without_nuls(self, line: Line, file: _File) -> Line:
        """Leave out the NULs before a line, the hole that a truncated file has, and escape others."""
        text = line.text.lstrip("\0")
        self.counts.nul_bytes += len(line.text) - len(text)
        if "\0" in text and self._source.encoding_errors == "strict":
            raise IngestError(
                f"{file.path}:{line.number}: NUL at character {line.text.rindex(chr(0)) + 1}; "
                f'remove it, or set sources.{self._name}.encoding_errors = "backslashreplace"'
            )
        return line._replace(text=text.replace("\0", r"\x00"))

    def _make_record(self, file: _File, draft: _Draft, time: datetime) -> LogRecord:
        text = "\n".join(draft.lines)
        log_id = stable_log_id(self._name, draft.number, text, time, file.twin)
        known = file.known
        if known is not None and known.tail_line == draft.number and known.tail != str(log_id):
            self._known.replaced[log_id] = UUID(known.tail)
        return LogRecord(timestamp=time, source_id=self._name, raw_text=text, log_id=log_id)

    def _no_stamp(self, path: Path, lines: list[str]) -> IngestError:
        first = next(filter(str.strip, lines), "")
        return IngestError(
            f"{path}: no line has a stamp that '{self._regex.pattern}' finds; the first is "
            f"{first[:80]!r}; change sources.{self._name}.timestamp"
        )

    def _wrong_path(self, error: LogFileError) -> IngestError:
        return IngestError(f"{error}; correct sources.{self._name}.path")
