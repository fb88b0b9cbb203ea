"""First rules of log files: the stamp, found among well-known ones, and candidate keys as comments."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from fiberstore.ingest.files import STANDARD_INPUT, find_files, read_blocks, read_head
from fiberstore.ingest.rules import RulesError, stamp_group
from fiberstore.ingest.stamps import Clock, has_year

_SAMPLE_LINES = 10_000
_SAMPLE_CHARACTERS = 1 << 25
_MOST_LINES_OF_A_LOG = 100  # on average; a form of stamps on fewer lines is no find
_DATE = r"\d{4}-\d\d-\d\d"
_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_ISO = rf"{_DATE}[T ]{_TIME}(?: ?(?:UTC|GMT|[+-]\d\d:?\d\d)|Z|[+-]\d\d)?\b"
_JSON_KEY = '"(?:timestamp|time|ts|t|@t|asctime)": ?'


class WellKnownStamp(NamedTuple):
    """A form of stamps.

    Attributes:
        name: Programs that write it.
        timestamp: The key of that name in a rules file.
        format: The key of that name.
        sign: Expression that a line of the file must match, too.
        more: Other lines of the source in a rules file.
    """

    name: str
    timestamp: str
    format: str
    sign: str = ""
    more: tuple[str, ...] = ()


_STAMPS = (  # of those that fit equally many lines, the first is taken
    WellKnownStamp(
        "journalctl -o export",
        r"^__REALTIME_TIMESTAMP=(\d+)",
        "epoch_us",
        more=("record_start = '^__CURSOR='",),
    ),
    WellKnownStamp(
        "slow queries of MySQL",
        rf"^# Time: ({_ISO})",
        "iso8601",
        more=(
            "record_start = '^# User@Host:'",
            "drop = [' Version: .* started with:$', '^Tcp port: ', '^Time +Id +Command']",
        ),
    ),
    WellKnownStamp(
        "containerd, CRI-O", rf"^{_ISO}(?= std(?:out|err) [FP] )", "iso8601", more=('join = "cri"',)
    ),
    WellKnownStamp("Docker, json-file", rf'"time":"(?P<ts>{_ISO})"\}}$', "iso8601"),
    WellKnownStamp("MongoDB", rf'"t":\{{"\$date":"(?P<ts>{_ISO})"\}}', "iso8601"),
    WellKnownStamp("JSON of Elastic", rf'"@timestamp": ?"(?P<ts>{_ISO})"', "iso8601"),
    WellKnownStamp("JSON", rf'{_JSON_KEY}"(?P<ts>{_ISO})"', "iso8601"),
    WellKnownStamp("JSON, seconds", rf"{_JSON_KEY}(?P<ts>\d{{9,10}}(?:\.\d+)?)\b", "epoch_s"),
    WellKnownStamp("JSON, milliseconds", rf"{_JSON_KEY}(?P<ts>\d{{12,13}})\b", "epoch_ms"),
    WellKnownStamp("JSON, microseconds", rf"{_JSON_KEY}(?P<ts>\d{{15,16}})\b", "epoch_us"),
    WellKnownStamp("JSON, nanoseconds", rf"{_JSON_KEY}(?P<ts>\d{{18,19}})\b", "epoch_ns"),
    WellKnownStamp("logfmt", rf'\b(?:time|ts|t|timestamp)="?(?P<ts>{_ISO})', "iso8601"),
    WellKnownStamp("syslog, RFC 5424", rf"^<\d+>1 ({_ISO})", "iso8601"),
    WellKnownStamp("HAProxy", rf"\[(\d\d/\w{{3}}/\d{{4}}:{_TIME})\]", "%d/%b/%Y:%H:%M:%S.%f"),
    WellKnownStamp("access logs", rf"\[(\d\d/\w{{3}}/\d{{4}}:{_TIME} [+-]\d{{4}})\]", "%d/%b/%Y:%H:%M:%S %z"),
    WellKnownStamp(
        "errors of Apache",
        rf"^\[(\w{{3}} \w{{3}} [ \d]\d {_TIME} \d{{4}})\]",
        "%a %b %d %H:%M:%S.%f %Y",
    ),
    WellKnownStamp("errors of nginx, Go's log", rf"^\d{{4}}/\d\d/\d\d {_TIME}", "%Y/%m/%d %H:%M:%S.%f"),
    WellKnownStamp("klog", rf"^[IWEF](\d{{4}} {_TIME})", "%m%d %H:%M:%S.%f"),
    WellKnownStamp("Redis", rf"^\d+:[XCSM] (\d\d \w{{3}} \d{{4}} {_TIME})", "%d %b %Y %H:%M:%S.%f"),
    WellKnownStamp("syslog, RFC 3164", rf"^(?:<\d+>)?(\w{{3}} [ \d]\d {_TIME})", "%b %d %H:%M:%S.%f"),
    WellKnownStamp("PostgreSQL", rf"^{_DATE} {_TIME} [A-Z]{{3,5}}\b", "%Y-%m-%d %H:%M:%S.%f %Z"),
    WellKnownStamp("IIS, W3C", rf"^{_DATE} {_TIME}", "iso8601", "^#Fields: ", ("drop = '^#'",)),
    WellKnownStamp("ISO 8601 at the beginning", rf"^\[?({_ISO})", "iso8601"),
    WellKnownStamp("HDFS", r"^\d{6} \d{6}\b", "%y%m%d %H%M%S"),
    WellKnownStamp("seconds at the beginning", r"^\d{10}(?:\.\d+)?\b", "epoch_s"),
    WellKnownStamp("log4j", rf"^\d\d \w{{3}} \d{{4}} {_TIME}", "%d %b %Y %H:%M:%S,%f"),
    WellKnownStamp("Tomcat", rf"^\d\d-\w{{3}}-\d{{4}} {_TIME}", "%d-%b-%Y %H:%M:%S.%f"),
)
_ANYWHERE = WellKnownStamp("ISO 8601", _ISO, "iso8601")  # if none of the others fits
_ZONES = (  # whose abbreviations are tried where stamps have some
    *("Europe/Berlin", "Europe/London", "Europe/Moscow", "Asia/Kolkata", "Asia/Tokyo"),
    *("America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles"),
)


class WellKnownKey(NamedTuple):
    """A form of keys: the name of its fiber type, and the expression of a pattern."""

    name: str
    regex: str
    more: str = ""


_ASSIGNED = r'"?[=:] ?"?'
_KEYS = (
    WellKnownKey(
        "trace",
        rf"(?i)\btrace[._-]?id{_ASSIGNED}(?P<trace>[0-9a-f-]{{16,36}})",
        'normalize = { trace = "hex" }',
    ),
    WellKnownKey(
        "request",
        rf'(?i)\b(?:request|req|correlation)(?:[._-]?id{_ASSIGNED}|=)"?(?P<request>\w[\w.-]*)',
    ),
    WellKnownKey("session", rf"(?i)\bsession[._-]?id{_ASSIGNED}(?P<session>\w[\w.-]*)"),
    WellKnownKey("invocation", r"INVOCATION_ID=(?P<invocation>[0-9a-f]{32})"),
    WellKnownKey("uuid", r"(?i)\b(?P<uuid>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b"),
    WellKnownKey("mail", r"\]: (?P<queue_id>[0-9A-Za-z]{9,15}): "),
    WellKnownKey(
        "connection", rf"(?i)\b(?:conn|connection)(?:[._ -]?id)?(?:{_ASSIGNED}| )?(?P<connection>\d+)"
    ),
    WellKnownKey("process", r"(?P<program>[\w./()-]+)\[(?P<pid>\d+)\]", 'key = "pid"'),
    WellKnownKey("thread", r"\[(?P<thread>[A-Za-z][\w-]*\d)\]"),
    WellKnownKey("worker", r"\[pid (?P<pid>\d+)"),
    WellKnownKey("backend", r" \[(?P<pid>\d+)\] "),
    WellKnownKey("attempt", r"(?P<attempt>attempt_\d+_\d+_[mr]_\d+_\d+)"),
    WellKnownKey("container", r"(?P<container>container_\d+(?:_\d+)+)"),
    WellKnownKey("block", r"(?P<block>blk_-?\d+)", "each = true"),
    WellKnownKey("pod", rf"\bpod{_ASSIGNED}(?P<pod>[\w./-]+)"),
    WellKnownKey("child", r"\bchild (?P<child>\d+)"),
    WellKnownKey("mysql_connection", r" Id: +(?P<connection>\d+)"),
    WellKnownKey("client", r"\b(?P<client>\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?)\b"),
)


class FoundKey(NamedTuple):
    """A form of keys, in how many lines it was found, and with how many values."""

    form: WellKnownKey
    lines: int
    values: int


@dataclass(frozen=True, slots=True)
class FirstSource:
    """Findings in the first lines of a source.

    Attributes:
        name: Name of the source.
        paths: Its files.
        stamp: The form of its stamps.
        zone: Zone for stamps that name none; None if all do.
        stamped: Lines with such a stamp.
        bad: Lines with one that is no time.
        lines: Lines that were looked at: the first of each file.
        is_binary: True if some bytes are not UTF-8, or NUL.
        keys: The forms of keys that match.
    """

    name: str
    paths: tuple[Path, ...]
    stamp: WellKnownStamp
    zone: str | None
    stamped: int
    bad: int
    lines: int
    is_binary: bool
    keys: tuple[FoundKey, ...]


def find_first_rules(paths: Sequence[Path]) -> list[FirstSource]:
    """Look at the beginnings of files, and find the form of their stamps, and what may be keys.

    Files whose names begin equally, up to the first dot, are one source: ``app.log`` and ``app.log.1.gz``.

    Args:
        paths: Files, globs, directories, or ``-`` for standard input.

    Raises:
        LogFileError: A file cannot be found or read.
        RulesError: A file is empty, or has no stamp of a well-known form.
    """
    groups: dict[str, list[Path]] = {}
    for path in find_files(paths):
        stem = "input" if path == STANDARD_INPUT else path.name.lstrip(".").partition(".")[0]
        groups.setdefault(re.sub(r"\W+", "-", stem, flags=re.ASCII).strip("-") or "log", []).append(path)
    return [_find_source(name, tuple(files)) for name, files in groups.items()]


def write_first_rules(sources: Sequence[FirstSource], folder: Path | None = None) -> str:
    """Return the text of a rules file.

    Args:
        sources: What was found.
        folder: Folder of the rules file, to which relative paths are relative; None for the working
            directory.
    """
    lines = [line for source in sources for line in (*_source_lines(source, folder), "")]
    return "\n".join([*lines, *_key_lines(sources)]).rstrip("\n") + "\n"


def _find_source(name: str, paths: tuple[Path, ...]) -> FirstSource:
    lines, is_binary = _sample(paths)
    if not lines:
        raise RulesError(f"{paths[0]}: has no lines; give a file that has some")
    found = [_fit(stamp, lines, paths[0]) for stamp in _STAMPS]
    best = max(found, key=lambda fit: fit.stamped)
    if not best.stamped:
        best = _fit(_ANYWHERE, lines, paths[0])
    if best.stamped * _MOST_LINES_OF_A_LOG < len(lines):
        raise RulesError(
            f"{paths[0]}: no stamp of a well-known form in {len(lines):,} lines, "
            f"the first is {next(filter(str.strip, lines), '')[:80]!r}; "
            "leave the file out if it is no log, else write timestamp and format yourself, as docs/rules.md "
            "says"
        )
    return FirstSource(name, paths, *best, len(lines), is_binary, tuple(_find_keys(lines)))


def _sample(paths: Sequence[Path]) -> tuple[list[str], bool]:
    """Return the first lines of files, and whether they hold bytes that a strict reading refuses."""
    lines, characters = list[str](), 0
    for path in paths:
        read = (text for block in read_blocks(path, "utf-8", "surrogateescape") for text in block.texts)
        for text in islice(read, _SAMPLE_LINES):
            lines.append(text.lstrip("\0"))
            characters += len(text)
            if characters > _SAMPLE_CHARACTERS:
                break
    return lines, any(re.search("[\0\udc80-\udcff]", line) for line in lines)


class _Fit(NamedTuple):
    """Fit of a form of stamps: in which zone, on how many lines, and on how many it is no time."""

    stamp: WellKnownStamp
    zone: str | None
    stamped: int
    bad: int


def _fit(stamp: WellKnownStamp, lines: Sequence[str], path: Path) -> _Fit:
    if stamp.sign and not any(re.search(stamp.sign, line) for line in lines):
        return _Fit(stamp, None, 0, 0)
    regex = re.compile(stamp.timestamp)
    group = stamp_group(regex)
    texts = [match[group] for line in lines if (match := regex.search(line))]
    modified = read_head(path).modified
    fits = []
    zones: list[tuple[str | None, tzinfo | None]] = [(None, None), ("UTC", UTC)]
    if texts and "%Z" in stamp.format:
        known = available_timezones()
        zones += [(name, ZoneInfo(name)) for name in _ZONES if name in known]
    for name, zone in zones:
        clock = Clock((stamp.format,), zone)
        clock.begin(None, modified)
        stamped = sum(_is_time(clock, text) for text in texts)
        fits.append(_Fit(stamp, name, stamped, len(texts) - stamped))
    return max(fits, key=lambda fit: fit.stamped)


def _is_time(clock: Clock, text: str) -> bool:
    try:
        clock.read(text)
    except (ValueError, OverflowError):
        return False
    return True


def _find_keys(lines: Sequence[str]) -> Iterator[FoundKey]:
    """Yield the forms that match, but for one that finds only texts which forms before it have found."""
    known: set[tuple[int, int, int]] = set()
    for key in _KEYS:
        regex = re.compile(key.regex)
        group = [*regex.groupindex][-1]
        found = [(number, match) for number, line in enumerate(lines) if (match := regex.search(line))]
        places = {(number, *match.span(group)) for number, match in found}
        if not places <= known:
            yield FoundKey(key, len(found), len({match[group] for _, match in found}))
            known |= places


def _source_lines(source: FirstSource, folder: Path | None) -> Iterator[str]:
    stamp = source.stamp
    others = "; the others continue the line before" if source.stamped < source.lines else ""
    yield f"# {stamp.name}: {source.stamped:,} of {source.lines:,} lines have such a stamp{others}."
    yield f"[sources.{source.name}]"
    paths = [_relative(path, folder) for path in source.paths]
    yield f"path = {json.dumps(paths[0] if len(paths) == 1 else paths, ensure_ascii=False)}"
    yield f"timestamp = '{stamp.timestamp}'"
    yield f"format = {json.dumps(stamp.format)}"
    if source.zone is not None:
        yield f'timezone = "{source.zone}"  # of stamps that name none: set that of the host'
    if not has_year(stamp.format):
        yield "#year = 2024  # of the first line; without it, the time of the file says it"
    if source.bad:
        yield f'on_bad_stamp = "previous"  # {source.bad:,} stamps are no time'
    if source.is_binary:
        yield 'encoding_errors = "backslashreplace"  # some bytes are not UTF-8; or set encoding'
    yield from stamp.more


def _key_lines(sources: Sequence[FirstSource]) -> Iterator[str]:
    found = [(source, key) for source in sources for key in source.keys]
    if found:
        yield "# What may be keys, with the number of lines that have one, and of values. Remove the # before"
        yield "# a type if each value stands for one thing, such as a request."
    for form in _KEYS:
        here = [(source, key) for source, key in found if key.form == form]
        if here:
            yield ""
            yield f"#[fibers.{form.name}]"
            yield '#max_gap = "5m"'
        for source, key in here:
            yield f"#[[fibers.{form.name}.patterns]]  # {key.lines:,} lines, {key.values:,} values"
            yield f'#source = "{source.name}"'
            yield f"#regex = '{form.regex}'"
            if form.more:
                yield f"#{form.more}"


def _relative(path: Path, folder: Path | None) -> str:
    if path == STANDARD_INPUT or path.is_absolute() or folder is None:
        return str(path)
    return os.path.relpath(path, folder)
