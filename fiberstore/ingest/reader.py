"""Log files read as streams of records: one file in its own order, several merged by time."""

import heapq
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

from fiberstore.checks import as_utc
from fiberstore.ids import stable_log_id
from fiberstore.ingest.rules import Rules, Source
from fiberstore.records import LogRecord

_PROGRESS_STEP = 1 << 16
_MAX_UNSTAMPED = 1 << 26
_DIGITS = "0123456789"
_FRACTION_DIGITS = 6
_NEXT_YEAR = timedelta(days=180)
_LATE = timedelta(days=364)


class IngestError(ValueError):
    """A log file that cannot be read by its rules; the message names file, line and fix."""


def read_sources(rules: Rules, on_bytes: Callable[[int], None] | None = None) -> Iterator[LogRecord]:
    """Read all files of the rules, merged by time.

    Equal times come in the order of the sources in the rules. A file's own order is never changed: where its
    times run backwards, so do the merged ones.

    Args:
        rules: Names the files.
        on_bytes: Called with the number of bytes read since its last call, every 64 KiB and at a file's end.

    Raises:
        IngestError: A file cannot be read by its rules.
    """
    streams = [read_source(name, source, on_bytes) for name, source in rules.sources.items() if source.path]
    return heapq.merge(*streams, key=attrgetter("timestamp"))


def read_source(
    name: str, source: Source, on_bytes: Callable[[int], None] | None = None
) -> Iterator[LogRecord]:
    r"""Read one file, holding no more than one record of it.

    Lines end at LF or CRLF; a CR elsewhere stays in the text. A line without a stamp continues the record
    before it, joined by ``\n``. Lines before the first stamp are a record of their own with that stamp,
    unless all are blank. A log id is the same whenever the file is read: it is made from the source's name,
    the number of the record's first line, its text and its time.

    A stamp without a year is dated from ``source.year`` on, one year later after each step back of more than
    180 days; after such a step, a line more than 364 days ahead is a late one of the year before. A time that
    the zone has twice means the first; one that it skips counts on from before the gap.

    Args:
        name: The records' ``source_id``.
        source: The file and its rules.
        on_bytes: As for ``read_sources``.

    Raises:
        IngestError: The file cannot be read, has bytes that its encoding does not allow, a NUL (unless
            ``encoding_errors`` is ``"backslashreplace"``), a stamp that does not fit the format, or text but
            no stamp (in its first 64 MiB).
    """
    path, regex, stamp_format = source.path, source.timestamp, source.format
    if path is None or regex is None or stamp_format is None:
        raise IngestError(f"sources.{name}: a file is read by path, timestamp and format; add them")
    search = regex.search
    group = "ts" if "ts" in regex.groupindex else min(regex.groups, 1)
    clock = _Clock(source, stamp_format)
    record: list[str] = []
    first_line = 1
    unstamped = 0
    timestamp: datetime | None = None
    for number, line in _read_lines(name, source, path, on_bytes):
        match = search(line)
        stamp = match and match[group]
        if stamp is None:
            record.append(line)
            if timestamp is None:
                unstamped += len(line) + 1
                if unstamped > _MAX_UNSTAMPED:
                    raise _no_stamp(name, path, regex, record)
            continue
        try:
            next_timestamp = clock.read(stamp)
        except ValueError as error:
            raise IngestError(
                f"{path}:{number}: stamp {stamp!r:.80} does not fit format {source.format!r} "
                f"({error}); change sources.{name}.format or sources.{name}.timestamp"
            ) from error
        if timestamp is not None or any(map(str.strip, record)):
            yield _make_record(name, first_line, record, timestamp or next_timestamp)
        record, first_line, timestamp = [line], number, next_timestamp
    if timestamp is not None:
        yield _make_record(name, first_line, record, timestamp)
    elif any(map(str.strip, record)):
        raise _no_stamp(name, path, regex, record)


class _Clock:
    """Reads the stamps of one file in their order.

    Parsing is slow, and most stamps differ from the one before in their fraction of a second only: where the
    format ends with one, the rest is parsed once per second, and the fraction is added.
    """

    def __init__(self, source: Source, stamp_format: str) -> None:
        self._format = stamp_format if source.has_year else f"%Y {stamp_format}"
        self._offset = source.clock_offset
        self._zone = source.timezone
        self._first_year = self._year = 0 if source.has_year else source.year or 0
        self._ends_with_fraction = re.search(r"[^\w%]%f\Z", stamp_format) is not None
        self._before: datetime | None = None
        self._parse = lru_cache(maxsize=256)(self._parse_uncached)

    def read(self, stamp: str) -> datetime:
        """Return the time of the stamp in UTC.

        Raises:
            ValueError: The stamp does not fit the format.
        """
        whole = stamp.rstrip(_DIGITS) if self._ends_with_fraction else stamp
        fraction = stamp[len(whole) :]
        if 0 < len(fraction) <= _FRACTION_DIGITS:
            time = self._date(f"{whole}0") + timedelta(
                microseconds=int(fraction.ljust(_FRACTION_DIGITS, "0"))
            )
        else:
            time = self._date(stamp)
        self._before = time
        return time - self._offset

    def _date(self, stamp: str) -> datetime:
        time = self._parse(stamp, self._year)
        if not self._year or self._before is None:
            return time
        if self._before - time > _NEXT_YEAR:
            self._year += 1
            return self._parse(stamp, self._year)
        if time - self._before > _LATE and self._year > self._first_year:
            return self._parse(stamp, self._year - 1)
        return time

    def _parse_uncached(self, stamp: str, year: int) -> datetime:
        text = f"{year:04d} {stamp}" if year else stamp
        time = datetime.strptime(text, self._format)  # noqa: DTZ007 - it gets its zone below
        return as_utc(time if time.tzinfo else time.replace(tzinfo=self._zone))


def _read_lines(
    name: str, source: Source, path: Path, on_bytes: Callable[[int], None] | None
) -> Iterator[tuple[int, str]]:
    encoding, errors, strict = source.encoding, source.encoding_errors, source.encoding_errors == "strict"
    size = 0
    number = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removesuffix(b"\n").removesuffix(b"\r").decode(encoding, errors)
                if "\0" in line:
                    if strict:
                        raise IngestError(
                            f"{path}:{number}: NUL at character {line.index(chr(0)) + 1}; "
                            f'remove it, or set sources.{name}.encoding_errors = "backslashreplace"'
                        )
                    line = line.replace("\0", r"\x00")
                yield number, line
                size += len(raw)
                if on_bytes and size >= _PROGRESS_STEP:
                    on_bytes(size)
                    size = 0
    except UnicodeDecodeError as error:
        raise IngestError(
            f"{path}:{number}: byte {error.object[error.start]:#04x} at column {error.start + 1} "
            f'is not {encoding}; set sources.{name}.encoding (for example "latin-1"), or '
            f'encoding_errors = "backslashreplace"'
        ) from error
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}; correct sources.{name}.path") from error
    if on_bytes and size:
        on_bytes(size)


def _make_record(name: str, number: int, lines: list[str], timestamp: datetime) -> LogRecord:
    text = "\n".join(lines)
    log_id = stable_log_id(name, number, text, timestamp)
    return LogRecord(timestamp=timestamp, source_id=name, raw_text=text, log_id=log_id)


def _no_stamp(name: str, path: Path, regex: re.Pattern[str], lines: list[str]) -> IngestError:
    first = next(filter(str.strip, lines), "")
    return IngestError(
        f"{path}: no line has a stamp that '{regex.pattern}' finds; the first is "
        f"{first[:80]!r}; change sources.{name}.timestamp"
    )
