r"""The rules file: which log files are read, how their stamps are written, and which lines belong together.

```toml
[sources.sshd]
path = "auth.log"                                 # relative to the rules file
timestamp = '^(?P<ts>\w{3} +\d+ [\d:]{8})'        # group "ts", else group 1, else the whole match
format = "%b %d %H:%M:%S"                         # of datetime.strptime
timezone = "Europe/Berlin"                        # needed if the format has no %z
year = 2024                                       # needed if the format has no %Y: year of the first line
encoding = "utf-8"                                # any that writes a line feed as one byte
encoding_errors = "strict"                        # or "backslashreplace"

[fibers.login]
max_gap = "60s"                                   # s, m, h, d or "infinite"
[[fibers.login.patterns]]
source = "sshd"
regex = 'sshd\[(?P<pid>\d+)\]'                    # named groups are the keys that join lines
close = false                                     # true: such a line is the last of its fiber
```
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Literal, Self
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

from fiberstore.records import Text, VersionNumber
from fiberstore.versioning import config_version

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SAMPLE = datetime(2024, 11, 23, 10, 20, 30, tzinfo=UTC)


class RulesError(ValueError):
    """Invalid rules. Each line of the message names the file, the key and the fix."""


def format_has(stamp_format: str, directives: str) -> bool:
    """Return whether a format of ``datetime.strptime`` has one of the directives, given by their letters."""
    return any(letter in directives for letter in re.findall("%(.)", stamp_format))


def _compile(value: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"'{value}' is no regular expression ({error}); correct it") from error


def _check_keys(value: re.Pattern[str]) -> re.Pattern[str]:
    if not value.groupindex:
        raise ValueError(f"'{value.pattern}' has no named group; name the part that joins lines: (?P<id>...)")
    return value


def _check_format(value: str) -> str:
    if format_has(value, "Z"):
        raise ValueError(
            "%Z knows only the machine's own zones; leave the zone's name out of the stamp and set timezone"
        )
    full = value if format_has(value, "YyGcx") else f"%Y {value}"
    try:
        parsed = datetime.strptime(_SAMPLE.strftime(full), full)  # noqa: DTZ007 - only its date is looked at
    except (ValueError, re.error) as error:
        raise ValueError(f"{error}; use the directives of Python's datetime.strptime") from error
    if parsed.date() != _SAMPLE.date():
        raise ValueError(f"{value!r} has no full date; it needs the day and the month, as in '%b %d'")
    return value


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
        keeps_lines = b"a\n".decode(value) == "a\n"
    except LookupError as error:
        raise ValueError(f"{value!r} is no text encoding of Python; use for example 'latin-1'") from error
    except ValueError:
        keeps_lines = False
    if not keeps_lines:
        raise ValueError(f"{value!r} does not write a line feed as one byte; convert the file to UTF-8")
    return value


def _gap(value: object) -> timedelta | None:
    if value is None or isinstance(value, timedelta):
        return value
    if value == "infinite":
        return None
    parts = re.fullmatch("([0-9]+)([smhd])", str(value))
    try:
        if parts:
            return timedelta(**{_UNITS[parts[2]]: int(parts[1])})
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{value!r} is no duration; give one such as '60s', '5m', '2h', '1d', or 'infinite'")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Source(_Model):
    """One log file, and how its lines are read; the module's example explains the fields."""

    path: Path
    timestamp: Annotated[re.Pattern[str], BeforeValidator(_compile)]
    format: Annotated[str, AfterValidator(_check_format)]
    timezone: Annotated[InstanceOf[tzinfo] | None, BeforeValidator(_zone)] = Field(
        None, validate_default=True
    )
    year: int | None = Field(None, ge=1, le=9999, validate_default=True)
    encoding: Annotated[str, AfterValidator(_check_encoding)] = "utf-8"
    encoding_errors: Literal["strict", "backslashreplace"] = "strict"

    @property
    def has_year(self) -> bool:
        """True if the stamps carry their year."""
        return format_has(self.format, "YyGcx")

    @field_validator("timezone")
    @classmethod
    def _zone_known(cls, value: tzinfo | None, info: ValidationInfo) -> tzinfo | None:
        if value is None and not format_has(info.data.get("format", "%z"), "z"):
            raise ValueError('missing, and the format has no %z; add for example timezone = "UTC"')
        return value

    @field_validator("year")
    @classmethod
    def _year_known(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and not format_has(info.data.get("format", "%Y"), "YyGcx"):
            raise ValueError("missing, and the format has no %Y; add the year of the first line: year = 2024")
        return value


class Pattern(_Model):
    """Expression that a line of one source must match to join a fiber; its named groups are the keys."""

    source: str
    regex: Annotated[re.Pattern[str], BeforeValidator(_compile), AfterValidator(_check_keys)]
    close: bool = False


class FiberType(_Model):
    """One kind of fiber. ``max_gap`` is the longest silence within a fiber, None for any."""

    max_gap: Annotated[timedelta | None, BeforeValidator(_gap)]
    patterns: list[Pattern] = Field(min_length=1)


class Rules(_Model):
    """A rules file.

    Attributes:
        sources: The log files by name; their paths are ready to be opened.
        fibers: The fiber types by name.
        config_version: Version of the file: changes with its content.
        content: What the file holds, for the registry of versions; None if the rules come from no file.
    """

    sources: dict[Text, Source] = Field(min_length=1)
    fibers: dict[Text, FiberType] = Field(default_factory=dict)
    config_version: VersionNumber
    content: str | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _sources_declared(self) -> Self:
        problems = [
            f"fibers.{name}.patterns.{number}.source: {pattern.source!r} is not a declared source; "
            f"use one of {', '.join(self.sources)}, or add [sources.{pattern.source}]"
            for name, fiber_type in self.fibers.items()
            for number, pattern in enumerate(fiber_type.patterns)
            if pattern.source not in self.sources
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_rules(path: Path, overrides: Mapping[str, Path] | None = None, *, check_files: bool = True) -> Rules:
    """Read a rules file, and check it and that the log files it names can be read.

    Args:
        path: The rules file.
        overrides: Log files by source name, instead of those in the rules file; relative paths are relative
            to the current directory.
        check_files: Whether the log files are needed; for ``reprocess`` they may be missing, or not named.

    Raises:
        RulesError: The file cannot be read, is no TOML, or holds a rule that makes no sense; or a log file is
            missing. The message names all problems, one a line.
    """
    overrides = overrides or {}
    data, content = _read_toml(path)
    problems = [
        f"{key}: is computed from the file's content; remove it"
        for key in ("config_version", "content")
        if key in data
    ]
    _set_paths(data, path.parent, overrides, check_files=check_files)
    try:
        rules = Rules.model_validate({**data, "config_version": config_version(content), "content": content})
    except ValidationError as error:
        problems += [line for problem in error.errors() for line in _explain(problem).splitlines()]
    else:
        for name in overrides.keys() - rules.sources.keys():
            declared = ", ".join(rules.sources)
            problems.append(f"sources.{name}: given as {name}=FILE, but not declared; use one of {declared}")
        for name, source in rules.sources.items() if check_files else ():
            problems += _unreadable(name, source.path)
        if not problems:
            return rules
    raise RulesError("\n".join(f"{path}: {problem}" for problem in problems))


def _read_toml(path: Path) -> tuple[dict[str, object], str]:
    try:
        content = path.read_bytes().decode()
        return tomllib.loads(content), content
    except OSError as error:
        raise RulesError(f"{path}: {error.strerror}; give the path of a rules file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RulesError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RulesError(f"{path}: {error}; correct the TOML there") from error


def _set_paths(
    data: dict[str, object], folder: Path, overrides: Mapping[str, Path], *, check_files: bool
) -> None:
    sources = data.get("sources")
    for name, source in sources.items() if isinstance(sources, dict) else ():
        if isinstance(source, dict):
            if name in overrides:
                source["path"] = Path(overrides[name])
            elif isinstance(source.get("path"), str):
                source["path"] = folder / source["path"]
            elif "path" not in source and not check_files:
                source["path"] = folder


def _unreadable(name: str, path: Path) -> list[str]:
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            what = "is a directory"
        elif not os.access(path, os.R_OK):
            what = "may not be read"
        else:
            return []
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
    return [f"sources.{name}.path: {path}: {what}; correct it, or give {name}=FILE on the command line"]


def _explain(problem: ErrorDetails) -> str:
    place = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "value_error":
            what = str(problem["ctx"]["error"])
        case "missing" if place.endswith(".path"):
            what = f"missing; add it, or give {problem['loc'][1]}=FILE on the command line"
        case "missing":
            what = "missing; add it"
        case "extra_forbidden":
            what = "unknown key; correct its spelling, or remove it"
        case _:
            what = f"{problem['msg']}, got {problem['input']!r:.80}; correct it"
    return f"{place}: {what}" if place else what
