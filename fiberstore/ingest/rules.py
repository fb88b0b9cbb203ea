"""The rules file: which log files are read, how their stamps are written, and which lines belong together.

``docs/rules.md`` has every key, each with an example.
"""

import codecs
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from fiberstore.escaping import escape_controls
from fiberstore.ingest.files import STANDARD_INPUT, LogFileError, find_files
from fiberstore.ingest.stamps import check_format, has_year, has_zone
from fiberstore.records import Text, VersionNumber, parse_duration
from fiberstore.versioning import config_version

_Place: TypeAlias = tuple[str | int, ...]

_FIXES = {  # by pydantic's name of the problem, and the key, "" for any other
    ("bool_type", ""): "write true or false, without quotes",
    ("dict_type", "normalize"): 'write a spelling for each group, such as { request = "lower" }',
    ("dict_type", ""): "write a table, such as [sources.web]",
    ("model_type", ""): "write a table, such as [sources.web]",
    ("model_type", "pattern"): "write [[fibers.NAME.patterns]], and below it regex = '…'",
    ("list_type", "patterns"): "write [[fibers.NAME.patterns]], with two brackets, before each pattern",
    ("too_short", "patterns"): "add [[fibers.NAME.patterns]], with a regex",
    ("int_type", ""): "write a number, without quotes",
    ("string_type", ""): "write a text, in quotes",
}


class RulesError(ValueError):
    """Invalid rules. Each line of the message names the file, its line, the key and the fix."""


class _KeysError(ValueError):
    """Problems of several keys, each with its place below the model that found them."""

    def __init__(self, problems: Sequence[tuple[_Place, str]]) -> None:
        super().__init__("\n".join(f"{_dotted(place)}: {what}" for place, what in problems))
        self.problems = problems


def _dotted(place: _Place) -> str:
    return escape_controls(".".join(map(str, place)))


def _compile(value: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"'{value}' is no regular expression ({error}); correct it") from error


def _check_keys(value: re.Pattern[str]) -> re.Pattern[str]:
    if not value.groupindex:
        raise ValueError(f"'{value.pattern}' has no named group; name the part that joins lines: (?P<id>...)")
    return value


def _names(value: object) -> object:
    """Make a list of one name, or of several; the model checks that they are texts."""
    if not isinstance(value, list | tuple):
        return value if value is None else (value,)
    if not value:
        raise ValueError("is an empty list; name at least one, or remove the key")
    twice = [name for name in value if value.count(name) > 1]
    if twice:
        raise ValueError(f"names {twice[0]!r} twice; name it once")
    return tuple(value)


def _expressions(value: object) -> object:
    found = _names(value)
    return tuple(map(_compile, found)) if isinstance(found, tuple) else found


def _formats(value: object) -> object:
    formats = _names(value)
    for each in formats if isinstance(formats, tuple) else ():
        if isinstance(each, str):
            check_format(each)
    return formats


def _zone(value: object) -> object:
    if value is None or isinstance(value, tzinfo):
        return value
    if value == "UTC":
        return UTC
    try:
        return ZoneInfo(str(value))
    except (LookupError, ValueError, OSError) as error:
        raise ValueError(
            f"{value!r} is no time zone that this machine knows; give an IANA name such as 'Europe/Berlin' "
            "(Python's tzdata package brings them all)"
        ) from error


def _check_encoding(value: str) -> str:
    try:
        lines = "a\nb".encode(value).decode(value)
        keeps_lines = (
            codecs.lookup(value).name.startswith(("utf-16", "utf-32")) or b"a\n".decode(value) == "a\n"
        )
    except LookupError as error:
        raise ValueError(f"{value!r} is no text encoding of Python; use for example 'latin-1'") from error
    except ValueError:
        lines, keeps_lines = "", False
    if not keeps_lines or not lines:
        raise ValueError(f"{value!r} does not write a line feed as one byte; convert the file to UTF-8")
    return value


def _duration(value: object) -> timedelta | None:
    if value is None or isinstance(value, timedelta):
        return value
    duration = parse_duration(str(value))
    if duration < timedelta():
        raise ValueError(f"{value!r} is negative; give the duration without a sign")
    return duration


def _gap(value: object) -> timedelta | None:
    if value == "infinite":
        return None
    try:
        gap = _duration(value)
    except ValueError as error:
        raise ValueError(f"{error}; or 'infinite'") from error
    if gap == timedelta():
        raise ValueError(f"{value!r} joins only lines of the very same time; give a longer one")
    return gap


def _offset(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    text = str(value)
    try:
        duration = parse_duration(text[1:] if text[:1] in {"+", "-"} else "")
    except ValueError:
        raise ValueError(
            f"{value!r} is no offset; give sign, number and unit: '+5m' for a clock that is 5 minutes ahead, "
            "'-30s' for one that is 30 seconds behind"
        ) from None
    return -duration if text[0] == "-" else duration


_Names: TypeAlias = Annotated[tuple[str, ...] | None, BeforeValidator(_names)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def stamp_group(timestamp: re.Pattern[str]) -> str | int:
    """Return the group of an expression that is the stamp: ``ts``, else the first, else the whole match."""
    return "ts" if "ts" in timestamp.groupindex else min(timestamp.groups, 1)


class Source(_Model):
    """Log lines of one origin, and how their files are read.

    Attributes:
        path: The log files: files, globs, directories, or ``-`` for standard input; None if the lines come
            from a live producer, or the files are named elsewhere.
        timestamp: Expression of the stamp: its group ``ts``, else group 1, else the whole match.
        format: Formats of the stamp, tried one after the other: directives of ``datetime.strptime``,
            ``"iso8601"``, ``"epoch_s"``, ``"epoch_ms"``, ``"epoch_us"`` or ``"epoch_ns"``.
        timezone: Zone of stamps without one.
        year: Year of the first stamp, if stamps have none; None if a file's own time says it.
        on_bad_stamp: ``"previous"`` gives a line whose stamp is no time the one of the line before.
        record_start: Expression of lines that begin a record, besides those with a stamp.
        drop: Expressions of lines that are left out.
        join: ``"cri"`` joins the parts of long lines that container runtimes write.
        encoding: Text encoding; a byte order mark in the file comes before it.
        encoding_errors: ``"backslashreplace"`` admits bytes that are not in the encoding, and NUL.
        clock_offset: How far the host's clock is ahead; stamps are moved back by so much.
    """

    path: Annotated[tuple[Path, ...] | None, BeforeValidator(_names)] = None
    timestamp: Annotated[re.Pattern[str], BeforeValidator(_compile)] | None = None
    format: Annotated[tuple[str, ...] | None, BeforeValidator(_formats)] = None
    timezone: Annotated[InstanceOf[tzinfo] | None, BeforeValidator(_zone)] = Field(
        None, validate_default=True
    )
    year: int | None = Field(None, ge=1, le=9999)
    on_bad_stamp: Literal["error", "previous"] = "error"
    record_start: Annotated[re.Pattern[str], BeforeValidator(_compile)] | None = None
    drop: Annotated[tuple[re.Pattern[str], ...], BeforeValidator(_expressions)] = ()
    join: Literal["cri"] | None = None
    encoding: Annotated[str, AfterValidator(_check_encoding)] = "utf-8"
    encoding_errors: Literal["strict", "backslashreplace"] = "strict"
    clock_offset: Annotated[timedelta, BeforeValidator(_offset)] = timedelta(0)

    @property
    def has_year(self) -> bool:
        """True if the stamps carry their year."""
        return all(map(has_year, self.format or ()))

    @field_validator("timezone")
    @classmethod
    def _zone_known(cls, value: tzinfo | None, info: ValidationInfo) -> tzinfo | None:
        if value is None and not all(map(has_zone, info.data.get("format") or ())):
            raise ValueError('missing, and the format has no %z; add for example timezone = "UTC"')
        return value

    @model_validator(mode="after")
    def _stamps_readable(self) -> Self:
        needed = {"timestamp": self.timestamp, "format": self.format}
        missing = [(key,) for key, value in needed.items() if value is None]
        if missing and (self.path is not None or len(missing) < len(needed)):
            raise _KeysError([(place, "missing; add it") for place in missing])
        return self


class Pattern(_Model):
    """Expression that a line must match to join a fiber.

    Attributes:
        source: Names of the sources whose lines are searched; None for all.
        regex: The expression; it has at least one named group.
        key: Groups that are together one key; the other named groups are attributes, which join nothing. None
            if every named group is a key of its own.
        each: True if every match on the line counts, and each for a fiber of its own.
        normalize: Spelling of groups: ``"lower"`` ignores case, ``"hex"`` also hyphens.
        start: True if a matching line begins a new fiber.
        close: True if a matching line is the last of its fiber.
        close_grace: Time after a closing line in which lines still join its fiber; None for none at all, not
            even for later lines of the same time.
    """

    source: _Names = None
    regex: Annotated[re.Pattern[str], BeforeValidator(_compile), AfterValidator(_check_keys)]
    key: _Names = None
    each: bool = False
    normalize: dict[str, Literal["lower", "hex"]] = Field(default_factory=dict)
    start: bool = False
    close: bool = False
    close_grace: Annotated[timedelta | None, BeforeValidator(_duration)] = None

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """The keys of a match, each as its groups."""
        return tuple((name,) for name in self.regex.groupindex) if self.key is None else (self.key,)

    def reads(self, source: str) -> bool:
        """Return True if lines of the source are searched."""
        return self.source is None or source in self.source

    @field_validator("normalize", mode="before")
    @classmethod
    def _spelling_known(cls, value: object) -> object:
        for group, spelling in value.items() if isinstance(value, dict) else ():
            if spelling not in {"lower", "hex"}:
                raise _KeysError([((group,), f"{spelling!r} is no spelling; use 'lower' or 'hex'")])
        return value

    @model_validator(mode="after")
    def _groups_named(self) -> Self:
        groups = self.regex.groupindex
        named = [("key", name) for name in self.key or ()] + [("normalize", name) for name in self.normalize]
        problems: list[tuple[_Place, str]] = [
            ((place,), f"{name!r} is no group of the regex; use one of {', '.join(groups)}")
            for place, name in named
            if name not in groups
        ]
        if self.close_grace is not None and not self.close:
            problems.append((("close_grace",), "needs close = true; add it, or remove close_grace"))
        if problems:
            raise _KeysError(problems)
        return self


class FiberType(_Model):
    """One kind of fiber. ``max_gap`` is the longest silence within a fiber, None for any."""

    max_gap: Annotated[timedelta | None, BeforeValidator(_gap)]
    patterns: list[Pattern] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_order_of_groups(self) -> Self:
        orders: dict[frozenset[str], tuple[int, tuple[str, ...]]] = {}
        problems: list[tuple[_Place, str]] = []
        for number, pattern in enumerate(self.patterns):
            for key in pattern.keys:
                first, order = orders.setdefault(frozenset(key), (number, key))
                if order != key:
                    what = f"{list(key)} is another key than {list(order)} of patterns.{first}; use one order"
                    problems.append((("patterns", number, "key"), what))
        if problems:
            raise _KeysError(problems)
        return self


class Rules(_Model):
    """Rules of a file or a text.

    Attributes:
        sources: The origins of lines by name; the paths of their files are ready to be opened.
        fibers: The fiber types by name.
        config_version: Version of the rules: changes with their text.
        content: The text, for the registry of versions; None if the rules were made in Python.
    """

    sources: dict[Text, Source] = Field(default_factory=dict)
    fibers: dict[Text, FiberType] = Field(default_factory=dict)
    config_version: VersionNumber
    content: str | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _sources_declared(self) -> Self:
        declared = f"use one of {', '.join(self.sources)}, or add" if self.sources else "add"
        problems: list[tuple[_Place, str]] = [
            (
                ("fibers", name, "patterns", number, "source"),
                f"{source!r} is not a declared source; {declared} [sources.{source}]",
            )
            for name, fiber_type in self.fibers.items()
            for number, pattern in enumerate(fiber_type.patterns)
            for source in pattern.source or ()
            if source not in self.sources
        ]
        if not self.sources and not self.fibers:
            problems = [(("sources",), "missing, and so is fibers; add [sources.NAME] or [fibers.NAME]")]
        if problems:
            raise _KeysError(problems)
        return self


def load_rules(
    path: Path, overrides: Mapping[str, Path | Sequence[Path]] | None = None, *, check_files: bool = True
) -> Rules:
    """Read a rules file, and check it and that the log files it names can be read.

    A source without a path is for lines that a program hands over; ``ingest`` refuses such rules.

    Args:
        path: The rules file.
        overrides: One or several log files by source name, instead of those in the rules file; relative paths
            are relative to the current directory.
        check_files: False if the log files are not needed, as for ``reprocess``: they may be missing.

    Raises:
        RulesError: The file cannot be read, is no TOML, or holds a rule that makes no sense; or a log file is
            missing. The message names all problems, one a line.
    """
    try:
        content = path.read_bytes().decode()
    except OSError as error:
        raise RulesError(f"{path}: {error.strerror}; give the path of a rules file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RulesError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error
    rules = _parse(content, str(path), path.parent, overrides or {})
    if check_files:
        problems = [
            problem
            for name, source in rules.sources.items()
            if source.path is not None
            for problem in _unreadable(name, source.path)
        ]
        if problems:
            raise RulesError(_located(problems, content, str(path)))
    return rules


def parse_rules(content: str, *, name: str = "rules") -> Rules:
    """Read rules from a text of a rules file, for programs that hand lines over themselves.

    Log files that the rules name are not looked at; relative paths are relative to the current directory.

    Args:
        content: The text, in TOML.
        name: Name of the text in messages.

    Raises:
        TypeError: ``content`` is no text, but the path of a file, for example.
        RulesError: The text is no TOML, or holds a rule that makes no sense.
    """
    if not isinstance(content, str):
        raise TypeError(f"expected the text of a rules file, got {content!r:.200}; load_rules reads a file")
    return _parse(content, name, Path(), {})


def require_files(rules: Rules) -> None:
    """Check that there is a log file to read for every source that has stamps.

    A source without path, timestamp and format is for live lines only, and is passed over.

    Raises:
        RulesError: A source has none, or no source at all has one. The message names source and fix.
    """
    missing = [
        f"sources.{name}.path: missing, so there is no file to read; "
        f"add it, or give {name}=FILE on the command line"
        for name, source in rules.sources.items()
        if source.path is None and source.timestamp is not None
    ]
    if not missing and all(source.path is None for source in rules.sources.values()):
        missing = ["sources: no source has a file to read; add path, timestamp and format to [sources.NAME]"]
    if missing:
        raise RulesError("\n".join(missing))


def _parse(content: str, file: str, folder: Path, overrides: Mapping[str, Path | Sequence[Path]]) -> Rules:
    try:
        data = tomllib.loads(content)
    except (ValueError, RecursionError) as error:
        raise RulesError(f"{file}: {error}; correct the TOML there") from error
    problems: list[tuple[_Place, str]] = [
        ((key,), "is computed from the file's content; remove it")
        for key in ("config_version", "content")
        if key in data
    ]
    _set_paths(data, folder, overrides)
    try:
        rules = Rules.model_validate({**data, "config_version": config_version(content), "content": content})
    except ValidationError as error:
        problems += [found for problem in error.errors() for found in _explain(problem)]
    else:
        for name in overrides.keys() - rules.sources.keys():
            declared = ", ".join(rules.sources)
            what = f"given as {name}=FILE, but not declared; use one of {declared}"
            problems.append((("sources", name), what))
        if not problems:
            return rules
    raise RulesError(_located(problems, content, file))


def _set_paths(data: dict[str, object], folder: Path, overrides: Mapping[str, Path | Sequence[Path]]) -> None:
    sources = data.get("sources")
    for name, source in sources.items() if isinstance(sources, dict) else ():
        if isinstance(source, dict):
            given = source.get("path")
            if name in overrides:
                paths = overrides[name]
                source["path"] = (paths,) if isinstance(paths, Path) else tuple(paths)
            elif isinstance(given, str):
                source["path"] = _inside_folder(folder, given)
            elif isinstance(given, list):
                source["path"] = [
                    _inside_folder(folder, path) if isinstance(path, str) else path for path in given
                ]


def _inside_folder(folder: Path, path: str) -> Path:
    return Path(path) if path == str(STANDARD_INPUT) else folder / path


def _unreadable(name: str, paths: Sequence[Path]) -> list[tuple[_Place, str]]:
    try:
        find_files(paths)
    except LogFileError as error:
        fix = f"correct it, or give {name}=FILE on the command line"
        return [(("sources", name, "path"), f"{error}; {fix}")]
    return []


def _explain(problem: ErrorDetails) -> list[tuple[_Place, str]]:
    place = problem["loc"]
    match problem["type"]:
        case "value_error":
            error = problem["ctx"]["error"]
            if isinstance(error, _KeysError):
                return [(place + below, what) for below, what in error.problems]
            what = str(error)
        case "missing":
            what = "missing; add it"
        case "extra_forbidden":
            what = "unknown key; correct its spelling, or remove it"
        case kind:
            key = "pattern" if isinstance(place[-1], int) else place[-1]
            fix = _FIXES.get((kind, key), _FIXES.get((kind, ""), "correct it"))
            what = f"{problem['msg']}, got {problem['input']!r:.80}; {fix}"
    return [(place, what)]


def _located(problems: Sequence[tuple[_Place, str]], content: str, file: str) -> str:
    """Return the message of problems, one a line, each with the line of its key or of its table."""
    lines: dict[_Place, int] = {}
    for key, line in _key_lines(content):
        lines.setdefault(key, line)
    located = []
    for place, what in problems:
        known = [lines[place[:size]] for size in range(len(place), 0, -1) if place[:size] in lines]
        located.append(f"{file}{f':{known[0]}' if known else ''}: {_dotted(place)}: {what}")
    return "\n".join(located)


def _key_lines(content: str) -> Iterator[tuple[_Place, int]]:
    """Yield the place and the line of each table and key of a TOML document, which is known to be valid.

    A statement is the fewest lines that are TOML by themselves, so values may span lines.
    """
    table: _Place = ()
    counts: dict[_Place, int] = {}
    begin, statement = 1, ""
    for number, line in enumerate(content.split("\n"), 1):
        statement += f"{line}\n"
        try:
            data: object = tomllib.loads(statement)
        except ValueError:
            continue
        is_table = statement.lstrip().startswith("[")
        place: _Place = () if is_table else table
        while isinstance(data, dict) and len(data) == 1:
            ((key, data),) = data.items()
            place = _inside(place, key, counts)
            if is_table and isinstance(data, list):
                counts[place] = counts.get(place, 0) + 1
                place += (counts[place] - 1,)
                data = data[0]
            yield place, begin
        if is_table:
            table = place
        begin, statement = number + 1, ""


def _inside(place: _Place, key: str, counts: Mapping[_Place, int]) -> _Place:
    """Return the place of a key; ``[a.b]`` below ``[[a]]`` is of the last ``a``."""
    return (*place, counts[place] - 1, key) if place in counts else (*place, key)
