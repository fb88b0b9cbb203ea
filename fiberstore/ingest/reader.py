"""Log files read as streams of logs: the files of a source one after the other, sources merged by time.

A log is a plain ``NewLog`` until a user sees it: of many lines, a validated record would cost more than all
the rest.
"""

import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

from fiberstore.ids import StableLogIds
from fiberstore.ingest.counts import SourceCounts
from fiberstore.ingest.file_plan import FilePlan, PlannedFile
from fiberstore.ingest.files import Block, LogFileError, find_files, read_blocks
from fiberstore.ingest.known_files import KnownFile, KnownFiles, Place, digest_of
from fiberstore.ingest.last_logs import LastLogs
from fiberstore.ingest.rules import Rules, Source, stamp_group
from fiberstore.ingest.stamps import Clock, ClockState, NoZoneError, format_has
from fiberstore.records import LogRecord, construct_unvalidated, from_epoch_us
from fiberstore.sql.bulk import NewLog

_MAX_UNSTAMPED = 1 << 26
_CRI_LINE = re.compile(r"(\S+ (stdout|stderr)) ([FP])(?::\S*)? (.*)", re.DOTALL)


class IngestError(ValueError):
    """A log file that cannot be read by its rules; the message names file, line and fix."""


_Line: TypeAlias = tuple[int, str, bool]
"""Number of a line, the line, and False if it is the last one of its file and not whole."""

_Draft: TypeAlias = tuple[int, Sequence[str], int | None, ClockState | None]
"""Number of a log's first line, its lines, its time, and the state of the clock before it.

The time is None if it has no stamp, or one that is no time; the state, if lines before it are not read yet.
"""


_Parts: TypeAlias = dict[str, tuple[int, str, list[str]]]
"""Number, head and parts of the line of each stream that has not come to its end."""


def _joined_parts(
    lines: Iterator[_Line], counts: SourceCounts, parts: _Parts, *, is_growing: bool
) -> Iterator[_Line]:
    """Join the parts of lines that a container runtime has cut: tags P up to F, of one stream each."""
    for line in lines:
        match = _CRI_LINE.fullmatch(line[1])
        if match is None:
            if is_growing and not line[2]:
                counts.held_back += 1
            else:
                yield line
            continue
        head, stream, tag, content = match.groups()
        if tag == "F" and stream not in parts:
            yield line[0], f"{head} F {content}", True
            continue
        number, head, contents = parts.setdefault(stream, (line[0], head, []))
        contents.append(content)
        if tag == "F":
            del parts[stream]
            yield number, f"{head} F {''.join(contents)}", True
    for number, head, contents in parts.values():
        if is_growing:
            counts.held_back += 1
        else:
            yield number, f"{head} P {''.join(contents)}", False


@dataclass(slots=True)
class _Reading:
    """State of a file that is being read.

    Attributes:
        clock: Dates its stamps.
        file: What tells it from other files.
        last: The log that was taken last: number of its first line, the line, its time and id, and the state
            of the clock before it.
        first: Number of the first line of the log whose lines are being read.
        blocks: Number of the first line, place and sizes of the lines of each block that has one of these.
        parts: Lines that are being joined.
        continued_us: Time of the log from which it was read, if it was read before.
    """

    clock: Clock
    file: KnownFile
    last: tuple[int, str, int, int, ClockState] | None = None
    first: int = 1
    blocks: list[tuple[int, int, list[int]]] = field(default_factory=list)
    parts: _Parts = field(default_factory=dict)
    continued_us: int | None = None

    def continue_at(self, place: Place) -> None:
        """Let the clock, and lines without a stamp, continue from there."""
        self.clock.state = place.clock
        self.continued_us = place.time_us

    def is_behind(self, first: int, following: int) -> bool:
        """Return True if a line before a log, or before the one after it, is not read yet."""
        return bool(self.parts) or following < first

    def note_block(self, block: Block) -> None:
        """Take note of a block, and forget those that have no line from which reading might continue."""
        wanted = [self.first, *(number for number, _, _ in self.parts.values())]
        if self.last is not None:
            wanted.append(self.last[0])
        self.blocks = [
            (begin, byte, sizes)
            for begin, byte, sizes in self.blocks
            if any(begin <= number < begin + len(sizes) for number in wanted)
        ]
        if block.byte is not None:
            self.blocks.append((block.number, block.byte, block.sizes))

    def byte_of(self, number: int) -> int | None:
        """Return the number of bytes before a line; None if it is not known."""
        for begin, byte, sizes in self.blocks:
            if begin <= number < begin + len(sizes):
                return byte + sum(sizes[: number - begin])
        return None


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

    def note_places(self) -> None:
        """Take note, in what is known of each source, of how far its logs were taken from ``logs()``."""
        for source in self._sources:
            source.note_place()

    def logs(self) -> Iterator[NewLog]:
        """Yield all logs, those of several sources merged by time.

        Equal times come in the order of the sources in the rules. A file's own order is never
        changed, nor that of a source's files: where their times run backwards, so do the merged ones.

        Raises:
            IngestError: A file cannot be read by its rules.
        """
        if len(self._sources) == 1:
            return self._sources[0].logs()
        return heapq.merge(*(source.logs() for source in self._sources), key=itemgetter(0))


def read_sources(rules: Rules, on_bytes: Callable[[int], None] | None = None) -> Iterator[LogRecord]:
    """Yield the records of all files of the rules, merged by time, as if none of them was ever read before.

    Args:
        rules: Names the files.
        on_bytes: As for ``LogReader``.

    Raises:
        IngestError: A file cannot be read by its rules.
    """
    yield from map(_to_record, LogReader(rules, on_bytes=on_bytes).logs())


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
    yield from map(_to_record, _SourceReader(name, source, KnownFiles(), on_bytes).logs())


def _to_record(log: NewLog) -> LogRecord:
    time_us, log_id, source_id, raw_text = log
    values = {"timestamp": from_epoch_us(time_us), "source_id": source_id, "raw_text": raw_text}
    return construct_unvalidated(LogRecord, {**values, "log_id": UUID(int=log_id)})


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
        self._group = stamp_group(source.timestamp)
        self._known = known
        self._last_logs = LastLogs(known)
        self._reading: _Reading | None = None
        self._on_bytes = on_bytes
        self._plan = FilePlan(source, source.timestamp, known, self.counts)
        try:
            self._files = self._plan.order(find_files(source.path))
        except LogFileError as error:
            raise self._wrong_path(error) from error
        for file in self._files:
            self._last_logs.expect(file.known)

    def logs(self) -> Iterator[NewLog]:
        counts = self.counts
        before_us: int | None = None
        for planned in self._files:
            counts.files += 1
            for log in self._read_file(self._renewed(planned)):
                counts.records += 1
                if before_us is not None and log[0] < before_us:
                    counts.late += 1
                before_us = log[0]
                yield log
            if before_us is not None:
                before = from_epoch_us(before_us)
                self._known.last = max(self._known.last or before, before)

    def _renewed(self, planned: PlannedFile) -> PlannedFile:
        try:
            file = self._plan.renewed(planned)
        except LogFileError as error:
            raise self._wrong_path(error) from error
        if file is not planned:
            self._last_logs.expect(file.known)
        return file

    def _read_file(self, file: PlannedFile) -> Iterator[NewLog]:
        known, name, ids = file.known, self._name, StableLogIds(self._name, file.known.twin)
        reading = self._reading = _Reading(self._plan.clock_of(file), known)
        tail_line = self._last_logs.line_of(known)
        undated: list[_Draft] = []
        last_us: int | None = None
        number = log_id = 0
        for draft in self._drafts(file, reading):
            if draft[2] is not None:
                last_us = draft[2]
            elif last_us is None:
                last_us = reading.continued_us
            if last_us is None:
                undated.append(draft)
                continue
            for number, lines, _, state in (*undated, draft) if undated else (draft,):
                text = "\n".join(lines)
                log_id = ids.number(number, text, last_us)
                if number == tail_line:
                    self._last_logs.note_read(known, log_id)
                yield last_us, log_id, name, text
                if state is not None:
                    reading.last = number, lines[0], last_us, log_id, state
            undated.clear()
        self.note_place()
        self._reading = None
        if file.head.is_growing:
            self._last_logs.note_end(known, number, log_id)
        if undated:
            raise self._no_stamp(file.path, undated[0][1])

    def note_place(self) -> None:
        """Take note of how far the file was read whose logs are being taken."""
        reading = self._reading
        if reading is None or reading.last is None or not reading.file.size:
            return
        number, line, time_us, log_id, state = reading.last
        byte = reading.byte_of(number)
        if byte is not None:
            digest = digest_of(line.encode(errors="surrogatepass"))
            place = Place(byte, number, len(line), digest, str(UUID(int=log_id)), time_us, state)
            self._known.places.pop(reading.file.name, None)
            self._known.places[reading.file.name] = place

    def _drafts(self, file: PlannedFile, reading: _Reading) -> Iterator[_Draft]:
        clock = reading.clock
        search, group, drop = self._regex.search, self._group, self._source.drop
        record_start = self._source.record_start
        is_growing = file.head.is_growing
        given = self._lines(file, reading)
        first, lines, time_us, state = 1, list[str](), None, clock.state
        has_stamp = False  # the log whose lines are being read has one
        is_begun = False  # and all these lines are such that begin one
        is_dropping, is_dated = False, reading.continued_us is not None
        undated = 0
        for number, text, is_whole in given:
            match = search(text)
            stamp = match and match[group]
            if not is_whole and is_growing and self._is_cut(stamp, is_dated=is_dated):
                self.counts.held_back += 1
                continue
            begins = stamp is not None or (record_start is not None and bool(record_start.search(text)))
            if (is_dropping and not begins) or (drop and self._is_dropped(text)):
                self.counts.dropped += 1
                self.counts.keep("dropped", text, f"{file.path.name}:{number}: ")
                self._last_logs.note_dropped(file.known, number, text)
                is_dropping = is_dropping or begins
                continue
            if not begins:
                self.counts.unstamped += 1
                self.counts.keep("unstamped", text, f"{file.path.name}:{number}: ")
                self._last_logs.note_dropped(file.known, number, text)
                lines.append(text)
                is_begun = False
                undated += 0 if is_dated else len(text) + 1
                if undated > _MAX_UNSTAMPED:
                    raise self._no_stamp(file.path, lines)
                continue
            is_dropping = False
            before = clock.state if stamp is None else None
            stamp_us = None if stamp is None else self._read_stamp(clock, stamp, file, number)
            if is_begun and (stamp is None or not has_stamp):
                lines.append(text)
            else:
                if has_stamp or any(map(str.strip, lines)):
                    yield first, lines, time_us, None if reading.is_behind(first, number) else state
                first, lines, time_us, has_stamp, is_begun = number, [text], None, False, True
                reading.first = first
                state = before or clock.before
            if stamp is not None:
                has_stamp, time_us = True, stamp_us
                is_dated = is_dated or stamp_us is not None
        if has_stamp or any(map(str.strip, lines)):
            yield first, lines, time_us, None if reading.is_behind(first, first) else state

    def _is_cut(self, stamp: str | None, *, is_dated: bool) -> bool:
        """Return whether a last line ends before it says what time it is."""
        return not is_dated if stamp is None else self._plan.first_time(stamp) is None

    def _begins(self, text: str) -> bool:
        match, record_start = self._regex.search(text), self._source.record_start
        has_stamp = match is not None and match[self._group] is not None
        return has_stamp or (record_start is not None and bool(record_start.search(text)))

    def _is_dropped(self, text: str) -> bool:
        return any(regex.search(text) for regex in self._source.drop)

    def _read_stamp(self, clock: Clock, stamp: str, file: PlannedFile, number: int) -> int | None:
        try:
            return clock.read(stamp)
        except NoZoneError as error:
            name, place = self._name, f"{file.path}:{number}: stamp {stamp!r:.80}"
            raise IngestError(
                f'{place} has no zone; set sources.{name}.timezone, for example timezone = "UTC"'
            ) from error
        except (ValueError, OverflowError) as error:
            if self._source.on_bad_stamp == "previous":
                self.counts.bad_stamps += 1
                self.counts.keep("bad_stamps", stamp, f"{file.path.name}:{number}: ")
                return None
            name, place = self._name, f"{file.path}:{number}: stamp {stamp!r:.80}"
            shown = self._formats[0] if len(self._formats) == 1 else list(self._formats)
            fix = f"change sources.{name}.format or sources.{name}.timestamp"
            if any(format_has(each, "bB") for each in self._formats) and not stamp.isascii():
                fix = f"names of months are English: write them so, as by sed, or {fix}"
            raise IngestError(
                f"{place} does not fit format {shown!r} ({error}); {fix}, or let the line take the time "
                f'before it: sources.{name}.on_bad_stamp = "previous"'
            ) from error

    def _lines(self, file: PlannedFile, reading: _Reading) -> Iterator[_Line]:
        """Read the lines from the known place on, or all if the line there is another one now."""
        place = self._known.places.get(file.known.name)
        lines = None if place is None else self._lines_from(place, file, reading)
        if lines is None:
            lines = self._whole_lines(file, reading)
        if self._source.join is None:
            return lines
        return _joined_parts(lines, self.counts, reading.parts, is_growing=file.head.is_growing)

    def _lines_from(self, place: Place, file: PlannedFile, reading: _Reading) -> Iterator[_Line] | None:
        counted = self.counts.lines
        lines = self._whole_lines(file, reading, place.line, place.byte)
        first = next(lines, None)
        if first is None or not place.is_at(first[1]) or not self._begins(first[1]):
            self.counts.lines = counted
            return None
        self.counts.continued += 1
        reading.continue_at(place)
        return itertools.chain((first,), lines)

    def _whole_lines(
        self, file: PlannedFile, reading: _Reading, number: int = 1, byte: int = 0
    ) -> Iterator[_Line]:
        reading.blocks.clear()
        for block in self._blocks(file, number, byte):
            self.counts.lines += len(block.texts)
            reading.note_block(block)
            last = block.number + len(block.texts) - (0 if block.is_whole else 1)
            for at, text in enumerate(block.texts, block.number):
                yield at, text if "\0" not in text else self._without_nuls(at, text, file), at != last

    def _blocks(self, file: PlannedFile, number: int, byte: int) -> Iterator[Block]:
        name, source = self._name, self._source
        encoding, errors = source.encoding, source.encoding_errors
        try:
            for block in read_blocks(file.path, encoding, errors, self._on_bytes, number=number, byte=byte):
                yield block
                number = block.number + len(block.texts)
        except UnicodeDecodeError as error:
            wrong = f"byte {error.object[error.start]:#04x} at column {error.start + 1}"
            raise IngestError(
                f"{file.path}:{number}: {wrong} is not {error.encoding}; set sources.{name}.encoding "
                '(for example "latin-1"), or encoding_errors = "backslashreplace"'
            ) from error
        except LogFileError as error:
            raise self._wrong_path(error) from error

    def _without_nuls(self, number: int, line: str, file: PlannedFile) -> str:
        """Leave out the NULs before a line, the hole that a truncated file has, and escape others."""
        text = line.lstrip("\0")
        self.counts.nul_bytes += len(line) - len(text)
        if "\0" in text and self._source.encoding_errors == "strict":
            raise IngestError(
                f"{file.path}:{number}: NUL at character {line.rindex(chr(0)) + 1}; "
                f'remove it, or set sources.{self._name}.encoding_errors = "backslashreplace"'
            )
        return text.replace("\0", r"\x00")

    def _no_stamp(self, path: Path, lines: Sequence[str]) -> IngestError:
        first = next(filter(str.strip, lines), "")
        return IngestError(
            f"{path}: no line has a stamp that '{self._regex.pattern}' finds; the first is "
            f"{first[:80]!r}; change sources.{self._name}.timestamp"
        )

    def _wrong_path(self, error: LogFileError) -> IngestError:
        return IngestError(f"{error}; correct sources.{self._name}.path")
