r"""Formats of results: tables on a terminal, tab-separated in a pipe, JSON where it is asked for.

A pipe gets every value whole, one record a line under a line of names, without colour. Text from logs is
never read as markup, and control characters in it are shown as ``\x1b`` and the like.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

from pydantic import JsonValue, TypeAdapter
from rich.bar import Bar
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from fiberstore.cli.console import LAYOUT, make_console, print_json, print_line, print_rows
from fiberstore.cli.lookup import Generation, Statistics, shown_version
from fiberstore.contract.lifecycle import Checkpoint, FiberChange, GenerationDiff
from fiberstore.contract.patterns import closed
from fiberstore.contract.queries import Bucket, FiberSummary, LogContext, ValueCount
from fiberstore.copying.copy import Copied
from fiberstore.escaping import escape_controls
from fiberstore.keys import key_label, key_values
from fiberstore.records import FiberKey, FiberRecord, StoredLog

if TYPE_CHECKING:
    from fiberstore.doctor import Finding

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
_SOURCE_WIDTH = 20
_BEGINNING = 500
_MOST_IDS = 10
_MATCH = "bold red"

Keys: TypeAlias = Mapping[UUID, Sequence[FiberKey]]

_summary, _bucket = TypeAdapter(FiberSummary), TypeAdapter(Bucket)


def utc(time: datetime) -> str:
    """Return the time in ISO 8601, with as many groups of three decimals as it needs."""
    decimals = "microseconds" if time.microsecond % 1000 else "milliseconds"
    timespec = decimals if time.microsecond else "seconds"
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


def duration(span: timedelta) -> str:
    """Return the duration in its one or two largest units."""
    minutes, seconds = divmod(span.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if span.days:
        return f"{span.days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {seconds} s"
    if seconds:
        return f"{span.total_seconds():.2f} s"
    return f"{span.microseconds // 1000} ms"


def counted(number: int, things: str) -> str:
    """Return a number of things, whose name is given in the plural with s."""
    return f"{number:,} {things if number != 1 else things.removesuffix('s')}"


def print_logs(logs: Sequence[StoredLog], *, as_json: bool, highlight: str | None = None) -> None:
    """Print logs, on a terminal the beginning of each; ``print_fiber`` and a pipe get the whole.

    Args:
        logs: The logs.
        as_json: Print JSON.
        highlight: A regular expression of RE2; where it matches is highlighted on a terminal, and of a long
            text, the part around the first match is shown.
    """
    console = make_console()
    if as_json:
        for log in logs:
            print_json(log.model_dump(mode="json"))
    elif console.is_terminal:
        show = _beginning if highlight is None else partial(_matches, highlight)
        console.print(_log_table(logs, show) if logs else "no logs")
    else:
        _print_tsv(_LOG_NAMES, map(_log_values, logs))


def print_context(found: LogContext, *, as_json: bool) -> None:
    """Print a log and its neighbours, with their distance from it; on a terminal, it is marked."""
    console = make_console()
    logs = [*found.before, found.log, *found.after]
    offsets = range(-len(found.before), len(found.after) + 1)
    if as_json:
        for offset, log in zip(offsets, logs, strict=True):
            print_json({"offset": offset, **log.model_dump(mode="json")})
    elif console.is_terminal:
        console.print(_log_table(logs, _whole, found.log))
    else:
        rows = ((str(offset), *_log_values(log)) for offset, log in zip(offsets, logs, strict=True))
        _print_tsv(("offset", *_LOG_NAMES), rows)


def print_histogram(buckets: Sequence[Bucket], group: str | None, *, as_json: bool) -> None:
    """Print counts over time, on a terminal as bars.

    Args:
        buckets: The counts.
        group: Column by which they are counted, too.
        as_json: Print JSON.
    """
    console = make_console()
    if as_json:
        for bucket in buckets:
            values = _bucket.dump_python(bucket, mode="json")
            by_group = {} if group is None else {group: bucket.group}
            print_json({"start": values["start"], **by_group, "count": bucket.count})
    elif console.is_terminal:
        console.print(_bars(buckets, group) if buckets else "nothing to count")
    else:
        names = ("start", "count") if group is None else ("start", group, "count")
        _print_tsv(names, map(_bucket_values, buckets))


class LogLines:
    """Prints logs one by one, as they come: on a terminal a line each, with a colour for each source.

    Args:
        as_json: Print JSON.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = make_console()
        self._colours: dict[str, str] = {}

    def begin(self) -> None:
        """Print what comes before all logs."""
        if not (self._as_json or self._console.is_terminal):
            _print_tsv(_LOG_NAMES, [])

    def print(self, log: StoredLog) -> None:
        """Print a log."""
        if self._as_json:
            print_json(log.model_dump(mode="json"))
        elif self._console.is_terminal:
            colour = self._colours.setdefault(log.source_id, _COLOURS[len(self._colours) % len(_COLOURS)])
            source = Text(escape_controls(log.source_id), style=colour)
            line = Text("  ").join([Text(utc(log.timestamp)), source, _beginning(log.raw_text)])
            self._console.print(line)
        else:
            print_rows([_log_values(log)])


def print_fibers(listed: Sequence[FiberSummary], keys: Keys, *, as_json: bool) -> None:
    """Print fibers, on a terminal each as two lines: what it is, and how to find it.

    Args:
        listed: The fibers.
        keys: The keys of each that has some.
        as_json: Print JSON.
    """
    console = make_console()
    if as_json:
        for item in listed:
            print_json(_fiber_json(item, keys))
    elif console.is_terminal:
        console.print(Group(*_fiber_lines(listed, keys)) if listed else "no fibers")
    else:
        _print_tsv(_FIBER_NAMES, (_fiber_values(item, keys) for item in listed))


def print_fiber(
    listed: FiberSummary, keys: Keys, logs: Sequence[StoredLog], *, as_json: bool, is_first: bool = True
) -> None:
    """Print one fiber and its logs, on a terminal with a colour for each source.

    Args:
        listed: The fiber.
        keys: Its keys.
        logs: Its logs.
        as_json: Print JSON.
        is_first: No other was printed before it.
    """
    console = make_console()
    if not (is_first or as_json):
        print_line()
    if as_json:
        print_json({**_fiber_json(listed, keys), "logs": [log.model_dump(mode="json") for log in logs]})
    elif console.is_terminal:
        console.print(Group(_fiber_grid(listed.fiber, keys), "", _log_table(logs, _whole)))
    else:
        _print_tsv(_FIBER_NAMES, [_fiber_values(listed, keys)])
        print_line()
        _print_tsv(_LOG_NAMES, map(_log_values, logs))


def print_value_counts(found: Sequence[ValueCount[str]], name: str, *, as_json: bool) -> None:
    """Print values and the number of fibers that have each.

    Args:
        found: The values.
        name: Of the values.
        as_json: Print JSON.
    """
    console = make_console()
    if as_json:
        for count in found:
            print_json(
                {
                    name: count.value,
                    "fibers": count.count,
                    "first_seen": utc(count.first_seen),
                    "last_seen": utc(count.last_seen),
                }
            )
    elif console.is_terminal:
        console.print(_value_table(found, name) if found else f"no {name}s of keys")
    else:
        _print_tsv(
            (name, "fibers", "first_seen", "last_seen"),
            ((one.value, str(one.count), utc(one.first_seen), utc(one.last_seen)) for one in found),
        )


def print_findings(repaired: Iterable[str], findings: Iterable["Finding"]) -> None:
    """Print repairs and findings, a line each."""
    lines = [f"repaired: {text}" for text in repaired]
    for finding in findings:
        kind = "problem" if finding.is_problem else "remark"
        hint = " (--repair mends it)" if finding.is_repairable else ""
        lines.append(f"{kind}: {finding.text}{hint}")
    for line in lines or ["ok"]:
        print_line(line)


def print_statistics(statistics: Statistics, *, as_json: bool) -> None:
    """Print the content of a store."""
    console = make_console()
    if as_json:
        print_json(TypeAdapter(Statistics).dump_python(statistics, mode="json"))
    elif console.is_terminal:
        console.print(Group(*_statistics_tables(statistics)))
    else:
        _print_tsv(("what", "name", "value"), _statistics_values(statistics))


def print_generations(generations: Sequence[Generation], *, as_json: bool) -> None:
    """Print config versions and the number of fibers of each; the active one is marked."""
    console = make_console()
    if as_json:
        for generation in generations:
            print_json(generation_json(generation))
    elif console.is_terminal:
        console.print(_generation_table(generations) if generations else "no config versions")
    else:
        _print_tsv(
            ("version", "active", "created_at", "parent", "fibers", "content_hash"),
            map(_generation_values, generations),
        )


def fiber_json(fiber: FiberRecord) -> dict[str, JsonValue]:
    """Return a fiber with the keys of its attributes sorted: not every database keeps the order of keys."""
    attributes = json.loads(json.dumps(fiber.attributes, sort_keys=True))
    return {**fiber.model_dump(mode="json"), "attributes": attributes}


def keys_json(keys: Sequence[FiberKey]) -> dict[str, JsonValue]:
    """Return the values of the keys of each name."""
    return {name: [*values] for name, values in key_values(keys).items()}


def version_json(config_version: int) -> dict[str, JsonValue]:
    """Return a config version as it is shown, and as the number that fibers have."""
    return {"version": shown_version(config_version), "config_version": config_version}


def generation_json(generation: Generation) -> dict[str, JsonValue]:
    """Convert a config version, without its content."""
    known = generation.registered
    parent = None if known is None or known.parent is None else version_json(known.parent)
    return {
        **version_json(generation.config_version),
        "active": known is not None and known.active,
        "created_at": None if known is None else utc(known.created_at),
        "parent": parent,
        "fibers": generation.fibers,
        "content_hash": None if known is None else known.content_hash,
    }


def print_diff(old: int, new: int, found: GenerationDiff, *, as_json: bool) -> None:
    """Print the differences between the fibers of two versions: the counts, then the changes."""
    console = make_console()
    counts = [("unchanged", found.unchanged), *found.counts.items()]
    if as_json:
        values = TypeAdapter(GenerationDiff).dump_python(found, mode="json")
        print_json({"old": version_json(old), "new": version_json(new), **values})
    elif console.is_terminal:
        console.print(f"{shown_version(old)} to {shown_version(new)}", style="bold")
        console.print(", ".join(f"{count:,} {kind}" for kind, count in counts))
        for line in _change_lines(found.changes):
            console.print(line)
    else:
        _print_tsv(("change", "fibers"), ((kind, str(count)) for kind, count in counts))
        print_line()
        _print_tsv(("change", "fiber_type", "old", "new"), map(_change_values, found.changes))


def print_checkpoints(checkpoints: Sequence[Checkpoint], *, as_json: bool) -> None:
    """Print named checkpoints."""
    console = make_console()
    if as_json:
        for checkpoint in checkpoints:
            print_json(checkpoint_json(checkpoint))
    elif console.is_terminal:
        console.print(_checkpoint_table(checkpoints) if checkpoints else "no checkpoints")
    else:
        _print_tsv(("name", "updated_at", "value"), map(_checkpoint_values, checkpoints))


def checkpoint_json(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    """Return a checkpoint."""
    return {
        "name": checkpoint.name,
        "value": checkpoint.value,
        "updated_at": utc(checkpoint.updated_at),
    }


def print_copied(copied: Copied, seconds: float, *, as_json: bool) -> None:
    """Print the rows that a copy has written, and the rows of both stores at its end."""
    console = make_console()
    if as_json:
        values = TypeAdapter(Copied).dump_python(copied, mode="json")
        print_json({"equal": copied.is_equal, **values, "seconds": round(seconds, 3)})
    elif console.is_terminal:
        console.print(_copied_table(copied))
        console.print(f"{'equal' if copied.is_equal else 'not equal'}; {seconds:.2f} s")
    else:
        names = ("table", "written", "source_rows", "destination_rows")
        checksums = ("source_checksum", "destination_checksum")
        _print_tsv((*names, *checksums), map(partial(_copied_values, copied), copied.source))


def _print_tsv(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print_rows([names])
    print_rows(rows)


_LOG_NAMES = ("log_id", "timestamp", "source_id", "raw_text")


def _log_values(log: StoredLog) -> tuple[str, ...]:
    return str(log.log_id), utc(log.timestamp), log.source_id, log.raw_text


def _log_table(
    logs: Sequence[StoredLog], show: Callable[[str], Text], middle: StoredLog | None = None
) -> Table:
    sources = dict.fromkeys(log.source_id for log in logs)
    colours = dict(zip(sources, itertools.cycle(_COLOURS), strict=False))
    table = _table("timestamp" if middle is None else "  timestamp")
    table.add_column("source_id", no_wrap=True, overflow="ellipsis", max_width=_SOURCE_WIDTH)
    table.add_column("raw_text", overflow="fold")
    for log in logs:
        mark = "" if middle is None else "> " if log is middle else "  "
        table.add_row(
            f"{mark}{utc(log.timestamp)}",
            Text(escape_controls(log.source_id), style=colours[log.source_id]),
            show(log.raw_text),
            style="bold" if log is middle else None,
        )
    return table


def _whole(text: str) -> Text:
    return Text(escape_controls(text, keep=LAYOUT))


def _beginning(text: str) -> Text:
    return _whole(text[:_BEGINNING]).append("…" if len(text) > _BEGINNING else "")


def _matches(pattern: str, text: str) -> Text:
    """Highlight the matches, found by RE2, whose time no pattern lets grow beyond measure."""
    import pyarrow as pa
    from pyarrow import compute

    marks = "\0\\0\0"  # a text has no NUL
    (marked,) = compute.replace_substring_regex(pa.array([text.encode()]), closed(pattern), marks).to_pylist()
    # Empty matches, which there are within a character, too, show nothing.
    shown = escape_controls(marked.replace(b"\0\0", b"").decode(), keep=f"{LAYOUT}\0")
    whole = Text()
    first = None
    for number, piece in enumerate(shown.split("\0")):
        if number % 2 and first is None:
            first = len(whole)
        whole.append(piece, style=_MATCH if number % 2 else None)
    begin = 0 if first is None or first < _BEGINNING // 2 else first - _BEGINNING // 5
    end = begin + _BEGINNING
    return Text("…" if begin else "") + whole[begin:end] + Text("…" if end < len(whole) else "")


def _bars(buckets: Sequence[Bucket], group: str | None) -> Table:
    table = _table("start", *([group] if group else []))
    if group:
        table.columns[1].justify = "left"
        table.columns[1].max_width = _SOURCE_WIDTH
    table.add_column("", ratio=1)
    table.add_column("count", justify="right", no_wrap=True)
    table.expand = True
    most = max(bucket.count for bucket in buckets)
    for bucket in buckets:
        start, *name, _count = _bucket_values(bucket)
        bar = Bar(max(most, 1), 0, bucket.count, color="cyan")
        table.add_row(start, *name, bar, f"{bucket.count:,}")
    return table


def _bucket_values(bucket: Bucket) -> tuple[str, ...]:
    group = () if bucket.group is None else (bucket.group,)
    return utc(bucket.start), *group, str(bucket.count)


_FIBER_NAMES = (
    "fiber_id", "fiber_type", "first_activity", "last_activity", "duration_s", "closed", "logs", "sources",
    "attributes", "keys",
)  # fmt: skip


def _fiber_values(listed: FiberSummary, keys: Keys) -> tuple[str, ...]:
    fiber = listed.fiber
    return (
        str(fiber.fiber_id),
        fiber.fiber_type,
        utc(fiber.first_activity),
        utc(fiber.last_activity),
        str((fiber.last_activity - fiber.first_activity).total_seconds()),
        str(fiber.closed).lower(),
        str(listed.log_count),
        _compact([*listed.source_ids]),
        _compact(fiber.attributes),
        _compact(keys_json(keys.get(fiber.fiber_id, ()))),
    )


def _fiber_json(listed: FiberSummary, keys: Keys) -> dict[str, JsonValue]:
    values = _summary.dump_python(listed, mode="json", exclude={"fiber"})
    its_keys = keys.get(listed.fiber.fiber_id, ())
    return {**fiber_json(listed.fiber), "keys": keys_json(its_keys), **values}


def _fiber_lines(listed: Sequence[FiberSummary], keys: Keys) -> Iterator[Text]:
    types = [escape_controls(item.fiber.fiber_type) for item in listed]
    width = max(map(len, types), default=0)
    for item, fiber_type in zip(listed, types, strict=True):
        fiber = item.fiber
        took = duration(fiber.last_activity - fiber.first_activity)
        logs = "log " if item.log_count == 1 else "logs"
        state = "closed" if fiber.closed else "open"
        yield _one_line(
            (f"{fiber_type:<{width}}", "bold"),
            f"  {utc(fiber.first_activity)}  {took:>9}  {item.log_count:>5,} {logs}  {state}",
        )
        its_keys = keys.get(fiber.fiber_id, ())
        rest = _beyond_keys(fiber.attributes, its_keys)
        shown = "" if its_keys and rest is None else escape_controls(_compact(rest))
        yield _one_line(f"  {key_label(its_keys) or fiber.fiber_id}", (f"  {shown}" if shown else "", "dim"))


def _beyond_keys(attributes: JsonValue, keys: Sequence[FiberKey]) -> JsonValue:
    """Return the attributes without the lists that hold what the keys are; None if nothing is left."""
    if not isinstance(attributes, dict):
        return attributes
    same = {name: sorted(values) for name, values in key_values(keys).items()}
    rest = {
        name: value
        for name, value in attributes.items()
        if not (isinstance(value, list) and name in same and same[name] == sorted(map(str, value)))
    }
    return rest or None


def _value_table(found: Sequence[ValueCount[str]], name: str) -> Table:
    table = _table(name, "fibers", "first_seen", "last_seen")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for one in found:
        seen = (utc(time.replace(microsecond=0)) for time in (one.first_seen, one.last_seen))
        table.add_row(escape_controls(one.value), f"{one.count:,}", *seen)
    return table


def _fiber_grid(fiber: FiberRecord, keys: Keys) -> Table:
    grid = Table.grid(Column(style="bold", no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    took = duration(fiber.last_activity - fiber.first_activity)
    its_keys = keys.get(fiber.fiber_id, ())
    if its_keys:
        grid.add_row("keys", key_label(its_keys))
    grid.add_row("fiber_id", str(fiber.fiber_id))
    grid.add_row("type", f"{fiber.fiber_type}, {'closed' if fiber.closed else 'open'}")
    grid.add_row("activity", f"{utc(fiber.first_activity)} to {utc(fiber.last_activity)}, {took}")
    rest = _beyond_keys(fiber.attributes, its_keys)
    if rest is not None or not its_keys:
        grid.add_row("attributes", _compact(rest))
    return grid


def _statistics_tables(statistics: Statistics) -> Iterator[RenderableType]:
    revision = f"revision {statistics.revision or 'none'}"
    where = [statistics.file, decimal(statistics.file_bytes)] if statistics.file else ["in memory"]
    yield ", ".join([*where, revision])
    if statistics.first and statistics.last:
        yield Text(f"{utc(statistics.first)} to {utc(statistics.last)}")
    yield ""
    tables = _table("table", "rows")
    for name, rows in statistics.tables.items():
        tables.add_row(name, f"{rows:,}")
    sources = _table("source", "logs")
    for name, logs in statistics.sources.items():
        sources.add_row(name, f"{logs:,}")
    types = _table("fiber type", "open", "closed")
    for count in statistics.fiber_types:
        types.add_row(count.fiber_type, f"{count.open:,}", f"{count.closed:,}")
    versions = _table("config version", "logs", "fibers")
    for version in statistics.config_versions:
        name = f"{version.version}{' (active)' if version.active else ''}"
        versions.add_row(name, f"{version.logs:,}", f"{version.fibers:,}")
    yield Columns([tables, sources, types], padding=(0, 3))
    yield ""
    yield versions


def _statistics_values(statistics: Statistics) -> Iterator[tuple[str, str, str]]:
    if statistics.file:
        yield "file_bytes", statistics.file, str(statistics.file_bytes)
    yield "revision", "", statistics.revision or ""
    for name, rows in statistics.tables.items():
        yield "rows", name, str(rows)
    if statistics.first and statistics.last:
        yield "time", "first", utc(statistics.first)
        yield "time", "last", utc(statistics.last)
    for name, logs in statistics.sources.items():
        yield "source_logs", name, str(logs)
    for count in statistics.fiber_types:
        yield "open_fibers", count.fiber_type, str(count.open)
        yield "closed_fibers", count.fiber_type, str(count.closed)
    for version in statistics.config_versions:
        yield "config_version_logs", version.version, str(version.logs)
        yield "config_version_fibers", version.version, str(version.fibers)
        yield "config_version_active", version.version, str(version.active).lower()


def _generation_table(generations: Sequence[Generation]) -> Table:
    table = _table("version", "fibers", "active", "created_at", "parent")
    for column in table.columns[2:]:
        column.justify = "left"
    for column in table.columns[3:]:
        column.no_wrap = False  # on a narrow terminal these are cut, before the others
    for generation in generations:
        known = generation.registered
        table.add_row(
            shown_version(generation.config_version),
            f"{generation.fibers:,}",
            "active" if known is not None and known.active else "",
            "not registered" if known is None else utc(known.created_at.replace(microsecond=0)),
            "" if known is None or known.parent is None else shown_version(known.parent),
            style="bold" if known is not None and known.active else None,
        )
    return table


def _generation_values(generation: Generation) -> tuple[str, ...]:
    known = generation.registered
    return (
        shown_version(generation.config_version),
        str(known is not None and known.active).lower(),
        "" if known is None else utc(known.created_at),
        "" if known is None or known.parent is None else shown_version(known.parent),
        str(generation.fibers),
        "" if known is None else known.content_hash or "",
    )


def _change_values(change: FiberChange) -> tuple[str, ...]:
    return change.kind, change.fiber_type, *(_compact([*map(str, ids)]) for ids in (change.old, change.new))


def _change_lines(changes: Sequence[FiberChange]) -> Iterator[Text]:
    for change in changes:
        yield _one_line((f"{change.kind:<6}", "bold"), f"  {escape_controls(change.fiber_type)}")
        for sign, ids, colour in (("-", change.old, "red"), ("+", change.new, "green")):
            for fiber_id in ids[:_MOST_IDS]:
                yield Text(f"  {sign} {fiber_id}", style=colour)
            if len(ids) > _MOST_IDS:
                yield Text(f"  {sign} and {len(ids) - _MOST_IDS:,} more", style=colour)


def _checkpoint_table(checkpoints: Sequence[Checkpoint]) -> Table:
    table = _table("name", "updated_at")
    table.add_column("value", overflow="fold")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # the value is to be seen, too
    for checkpoint in checkpoints:
        table.add_row(
            checkpoint.name,
            utc(checkpoint.updated_at.replace(microsecond=0)),
            _beginning(checkpoint.value),
        )
    return table


def _checkpoint_values(checkpoint: Checkpoint) -> tuple[str, ...]:
    return checkpoint.name, utc(checkpoint.updated_at), checkpoint.value


def _copied_table(copied: Copied) -> Table:
    table = _table("table", "written", "source", "destination", "checksum")
    for name_or_checksum in (table.columns[0], table.columns[-1]):
        name_or_checksum.no_wrap = False  # so on a narrow terminal they give way to the counts
    for name, held in copied.source.items():
        written, rows = copied.written.get(name, 0), copied.destination[name].rows
        checksum = "differs" if name in copied.differing else held.checksum
        table.add_row(name, f"{written:,}", f"{held.rows:,}", f"{rows:,}", checksum)
    return table


def _copied_values(copied: Copied, table: str) -> tuple[str, ...]:
    ours, theirs = copied.source[table], copied.destination[table]
    rows = (copied.written.get(table, 0), ours.rows, theirs.rows)
    return (table, *map(str, rows), ours.checksum, theirs.checksum)


def _table(*names: str) -> Table:
    """Return a table without lines, whose first column is text and the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(names):
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if position else "left")
    return table


def _one_line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _compact(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
