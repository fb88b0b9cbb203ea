"""Options that commands share, and the filters that they make."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import wraps
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

import typer

from fiberstore.cli.app import print_note, with_parameters
from fiberstore.cli.lookup import (
    Key,
    check_keys,
    explain_no_fiber,
    find_fiber_id,
    find_generation,
    has_fiber,
    shown_version,
)
from fiberstore.cli.render import Shape, shape_of_output
from fiberstore.cli.times import HELP, parse_time, utc
from fiberstore.cli.where_parser import parse_fiber_condition, parse_log_condition
from fiberstore.contract.columns import TextColumn
from fiberstore.contract.conditions import And, Condition
from fiberstore.contract.queries import FiberOrder, Fibers, LogOrder, Logs
from fiberstore.contract.results import Page
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.records import FiberRecord, StoredLog, parse_duration
from fiberstore.repositories.storage import SqlStorage

T = TypeVar("T")

_PAGE_ROWS = 10_000  # of those that follow one another in a pipe
_FIRST_TIME, _LAST_TIME = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"


def parse_id(text: str) -> str:
    """Parse a fiber id, or its beginning, into hex digits."""
    return _digits(
        text, f"fiber id; give its hex digits, at least the first four, or a key such as request={text}"
    )


def parse_log_id(text: str) -> str:
    """Parse a log id, or its beginning, into hex digits."""
    return _digits(text, "log id; give its hex digits, at least the first four")


def _digits(text: str, needed: str) -> str:
    digits = text.replace("-", "").lower()
    if not re.fullmatch("[0-9a-f]{4,32}", digits):
        raise typer.BadParameter(f"{text!r} is no {needed}")
    return digits


def parse_key(text: str) -> Key:
    """Parse ``NAME=VALUE``, or ``NAME`` for any value, into the condition that a fiber has such a key."""
    name, sign, value = text.partition("=")
    try:
        named = Fibers.c.keys[name]
        return named == value if sign else named.exists()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no key: {error}; write one such as request=7f3a") from error


def parse_fiber(text: str) -> str | Key:
    """Parse a fiber id, or its beginning, into hex digits, and ``NAME=VALUE`` into the condition of a key."""
    return parse_key(text) if "=" in text else parse_id(text)


def parse_config_version(text: str | int) -> int:
    """Return the config version that these 16 hex digits are."""
    if isinstance(text, int):  # the default
        return text
    if not re.fullmatch("[0-9a-f]{16}", text.lower()):
        raise typer.BadParameter(f"{text!r} is no config version; give its 16 hex digits")
    return int(text, 16)


def parse_version(text: str) -> str:
    """Parse a config version, or its beginning, into hex digits."""
    if not re.fullmatch("[0-9a-f]{4,16}", text.lower()):
        raise typer.BadParameter(
            f"{text!r} is no config version; give its hex digits, at least the first four"
        )
    return text.lower()


def parse_generation(text: str) -> str:
    """Parse a config version, or its beginning, ``active`` or ``all``."""
    return text if text in ("active", "all") else parse_version(text)


def parse_span(text: str) -> timedelta:
    """Parse a duration > 0."""
    try:
        span = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if span <= timedelta():
        raise typer.BadParameter(f"{text!r} is not positive; give a longer one, such as '1s'")
    return span


def parse_ago(text: str) -> datetime:
    """Parse a duration > 0 into the time that long ago."""
    parse_span(text)
    return parse_time(text)


_DB = typer.Option(
    envvar="FIBERSTORE_URL",
    metavar="STORE",
    help="A DuckDB file, or a URL: postgresql+psycopg://user@host/database. Its password is best in "
    "~/.pgpass, or in FIBERSTORE_URL, where no history of a shell keeps it.",
)
Db = Annotated[str, _DB]
DbIfAny = Annotated[str | None, _DB]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; of a list, one object a line.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; print what would change.")]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="Most to print.")]
PageLimit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help=f"Most to print. By default {DEFAULT_LIMIT:,} on a terminal, and all in a pipe or a file.",
    ),
]
LogShape = Annotated[
    Shape | None,
    typer.Option(
        "--format",
        help="raw: only the texts, as for awk. By default table on a terminal, and tsv in a pipe or a file.",
    ),
]
Cursor = Annotated[
    str | None,
    typer.Option(
        metavar="CURSOR", help="Print the page after this cursor (printed at the end of each page)."
    ),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        "--start",
        "--since",
        parser=parse_time,
        metavar="TIME",
        help=f"Only logs from then on, or fibers active then or later: {HELP}",
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option("--end", "--until", parser=parse_time, metavar="TIME", help="Only up to then, inclusive."),
]
Order: TypeAlias = Annotated[LogOrder, typer.Option(help="Which come first.")]
FiberOrderName: TypeAlias = Literal["oldest", "newest", "longest", "most-logs", "most_logs"]
Sources = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="SOURCE", help="Only logs of this source; if repeated, of any of them."),
]
Contains = Annotated[str | None, typer.Option(metavar="TEXT", help="Only logs with this text in them.")]
Pattern = Annotated[str, typer.Argument(metavar="PATTERN", help="A regular expression of RE2.")]
IgnoreCase = Annotated[bool, typer.Option("--ignore-case", "-i", help="Ignore case.")]
FixedStrings = Annotated[bool, typer.Option("--fixed-strings", "-F", help="Take the pattern as plain text.")]
FiberId = Annotated[
    str | None,
    typer.Option(parser=parse_id, metavar="ID", help="Only logs of this fiber: its id, or the beginning."),
]
Keys = Annotated[
    list[Any] | None,
    typer.Option(
        "--key",
        parser=parse_key,
        metavar="NAME=VALUE",
        help="Only fibers with this key, or their logs; NAME alone is of any value; if repeated, with all.",
    ),
]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TYPE", help="Only fibers of this type; if repeated, of any of them."),
]
ConfigVersion = Annotated[
    int,
    typer.Option(
        parser=parse_config_version,
        metavar="VERSION",
        help="Stamp of the logs that bring none of their own: 16 hex digits, as generations list shows them.",
    ),
]
Version = Annotated[
    str,
    typer.Argument(
        parser=parse_version, metavar="VERSION", help="The config version: its hex digits, or the beginning."
    ),
]
Generation = Annotated[
    str | None,
    typer.Option(
        "--version",
        parser=parse_generation,
        metavar="VERSION",
        help="Only fibers of this config version, or their logs: its hex digits, or the beginning, or "
        "'active'; 'all' is of every one. By default fibers and keys are of the active one, if any.",
    ),
]
_CONDITION = """Only those of which a condition on {} is true, in the words of the API, such as '{}'."""
LogCondition = Annotated[
    Condition[StoredLog] | None,
    typer.Option(
        parser=parse_log_condition,
        metavar="EXPR",
        help=_CONDITION.format("logs", 'raw_text.regexp_match("(?i)error") and source_id != "db"'),
    ),
]
FiberCondition = Annotated[
    Condition[FiberRecord] | None,
    typer.Option(
        parser=parse_fiber_condition,
        metavar="EXPR",
        help=_CONDITION.format("fibers", 'keys["user"] == "root" and duration > "5s"'),
    ),
]


@dataclass(frozen=True, slots=True)
class LogFilter:
    """The options that choose logs; all that are given must hold."""

    start: Since = None
    end: Until = None
    source: Sources = None
    contains: Contains = None
    fiber: FiberId = None
    key: Keys = None
    version: Generation = None
    where: LogCondition = None

    def of(self, storage: SqlStorage, *, tells: bool = True) -> Logs:
        """Return the chosen logs of the store; with ``tells``, print notes on what is not in it."""
        if tells:
            check_times(self.start, self.end)
            _tell_absent("log", "source", self.source or (), storage.logs, Logs.c.source_id)
        logs: Logs = storage.logs
        if self.start is not None:
            logs = logs.where(Logs.c.timestamp >= self.start)
        if self.end is not None:
            logs = logs.where(Logs.c.timestamp <= self.end)
        if self.source:
            logs = logs.where(Logs.c.source_id.in_(self.source))
        if self.contains is not None:
            logs = logs.where(Logs.c.raw_text.contains(self.contains))
        if self.fiber is not None:
            logs = logs.where(Logs.c.fibers.contains(find_fiber_id(storage, self.fiber)))
        if self.key or self.version:
            version = find_generation(storage, self.version)
            of_version = () if version is None else (Fibers.c.config_version == version,)
            if tells:
                _tell_absent_keys(storage, self.key or (), version)
            logs = logs.where(Logs.c.fibers.any(And(FiberRecord, (*(self.key or ()), *of_version))))
        return logs if self.where is None else logs.where(self.where)


def check_times(start: datetime | None, end: datetime | None) -> None:
    """Refuse an end before the start, and tell that both are one moment, as of one day given twice."""
    if start is None or end is None or start < end:
        return
    if start > end:
        raise typer.BadParameter(
            f"{utc(start)} is after --end {utc(end)}; exchange them", param_hint="'--start'"
        )
    print_note(f"--start and --end are one moment, {utc(end)}; a date alone is its first moment")


def _tell_absent(
    record: str, kind: str, values: Sequence[str], query: Logs | Fibers, column: TextColumn[Any]
) -> None:
    for value in values:
        if not query.where(column == value).count(at_most=1):
            print_note(f"no {record} of {kind} {value!r} is stored; fiberstore stats lists the {kind}s")


def _tell_absent_keys(storage: SqlStorage, keys: Sequence[Key], version: int | None) -> None:
    check_keys(storage)
    for key in keys:
        if not has_fiber(storage, key, version):
            print_note(explain_no_fiber(storage, key, version))


def _tell_empty_generation(storage: SqlStorage, its_fibers: Fibers, version: int) -> None:
    if its_fibers.count(at_most=1) == 0 and (others := storage.fibers.count()):
        print_note(
            f"config version {shown_version(version)} is active and has no fibers, but other versions have "
            f"{others:,}: fiberstore activate VERSION lets those of one be shown, --version all shows them"
        )


@dataclass(frozen=True, slots=True)
class FiberFilter:
    """The options that choose fibers; all that are given must hold."""

    type: Types = None
    closed: Annotated[
        bool | None, typer.Option("--closed/--open", help="Only those that are closed, or open.")
    ] = None
    start: Since = None
    end: Until = None
    version: Generation = None
    key: Keys = None
    where: FiberCondition = None

    def of(self, storage: SqlStorage) -> Fibers:
        """Return the chosen fibers of the store: those of one whole generation, except with 'all'."""
        check_times(self.start, self.end)
        fibers: Fibers = storage.fibers
        version = find_generation(storage, self.version)
        if version is not None:
            fibers = fibers.where(Fibers.c.config_version == version)
            if self.version is None and not self.key:
                _tell_empty_generation(storage, fibers, version)
        if self.type:
            _tell_absent("fiber", "type", self.type, storage.fibers, Fibers.c.fiber_type)
            fibers = fibers.where(Fibers.c.fiber_type.in_(self.type))
        if self.closed is not None:
            fibers = fibers.where(Fibers.c.closed.is_(self.closed))
        if self.start is not None or self.end is not None:
            start = self.start or parse_time(_FIRST_TIME)
            fibers = fibers.where(Fibers.c.activity.overlaps(start, self.end or parse_time(_LAST_TIME)))
        if self.key:
            _tell_absent_keys(storage, self.key, version)
            fibers = fibers.where(*self.key)
        return fibers if self.where is None else fibers.where(self.where)

    @property
    def is_given(self) -> bool:
        """True if one of the options is given."""
        return any(getattr(self, option.name) not in (None, []) for option in fields(self))


def with_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the filter that is its first parameter."""
    first, *own = inspect.signature(command).parameters.values()
    shared = inspect.signature(first.annotation).parameters

    @wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401  # as typer gives them
        chosen = first.annotation(**{name: values.pop(name) for name in shared})
        command(chosen, **values)

    needed = [parameter for parameter in own if parameter.default is inspect.Parameter.empty]
    others = [parameter for parameter in own if parameter not in needed]
    return with_parameters(run, [*needed, *shared.values(), *others])


def expression_of(pattern: str, *, fixed_strings: bool, ignore_case: bool) -> str:
    """Return the regular expression of a pattern."""
    expression = re.escape(pattern) if fixed_strings else pattern
    return f"(?i){expression}" if ignore_case else expression


@contextmanager
def refusing_pattern() -> Iterator[None]:
    """Refuse the pattern by the error of what looks at its expression."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(f"{error}; -F takes it as plain text", param_hint="PATTERN") from error


def fiber_order(name: FiberOrderName) -> FiberOrder:
    """Convert an order to its name in the API."""
    return cast("FiberOrder", name.replace("-", "_"))


def chosen_shape(shape: Shape | None, *, as_json: bool) -> Shape:
    """Return the shape that ``--format`` or ``--json`` names, else the one for what stdout is."""
    if as_json and shape not in (None, "json"):
        raise typer.BadParameter(
            f"contradicts --format {shape}; leave one of them out", param_hint="'--json'"
        )
    return shape or shape_of_output(as_json=as_json)


def print_pages(
    read: Callable[[int, str | None], Page[T]],
    show: Callable[[list[T], bool], None],
    chosen: LogFilter | FiberFilter,
    *,
    limit: int | None,
    cursor: str | None,
    shape: Shape,
) -> None:
    """Print a page, or without a limit and in a pipe one after the other, and on stderr what was cut.

    Args:
        read: Reads the page of a size and a cursor.
        show: Prints rows, and whether they are the first.
        chosen: The options that choose rows; the cursor continues them with the same times.
        limit: Most rows; None if none is given.
        cursor: Where to begin.
        shape: Of what is printed.
    """
    page = read(limit or DEFAULT_LIMIT, cursor)
    show([*page.late, *page.items], True)
    late = len(page.late)
    while page.next is not None and limit is None and shape != "table":
        page = read(_PAGE_ROWS, page.next)
        show([*page.late, *page.items], False)
        late += len(page.late)
    if late:
        print_note(f"{late:,} were stored meanwhile, and begin a page; their place is on an earlier page")
    if page.next is not None:
        times = {"--start": chosen.start, "--end": chosen.end}
        same = "".join(f"{name} {utc(time)} " for name, time in times.items() if time is not None)
        print_note(
            f"there is more; --limit N shows more, the same command with {same}--cursor {page.next} continues"
        )
