"""Tables and lines for a terminal, made of results; controls in texts from elsewhere are escaped."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

from pydantic import JsonValue
from rich.bar import Bar
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from fiberstore.cli.console import LAYOUT
from fiberstore.cli.lookup import Generation, Statistics, shown_version
from fiberstore.cli.times import shown_second, shown_time
from fiberstore.contract.patterns import closed
from fiberstore.contract.results import (
    Bucket,
    Checkpoint,
    FiberChange,
    FiberSummary,
    GenerationDiff,
    ValueCount,
)
from fiberstore.copying.copy import Copied
from fiberstore.escaping import escape_controls
from fiberstore.keys import key_label, key_values
from fiberstore.records import FiberKey, FiberRecord, StoredLog

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
_SOURCE_WIDTH = 20
_BEGINNING = 500
_MOST_IDS = 10
_MATCH = "bold red"
_ID_DIGITS = 32
_ID_WIDTH = 22
_LEAST_ID_DIGITS = 20  # of the time, and most of the position: those of one file differ


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


def compact(value: JsonValue) -> str:
    """Return JSON without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def logs(found: Sequence[StoredLog], highlight: str | None = None) -> RenderableType:
    """Show the beginnings of logs, or the parts around the first match of a pattern."""
    show = _beginning if highlight is None else partial(_matches, highlight)
    return _log_table(found, show) if found else "no logs"


def whole_logs(found: Sequence[StoredLog], middle: StoredLog | None = None) -> Table:
    """Show logs, whole; the one in the middle, if there is one, is marked."""
    return _log_table(found, _whole, middle)


def log_line(log: StoredLog, colours: dict[str, str]) -> Text:
    """Show a log in a line, in the colour of its source, which is added to those in use."""
    colour = colours.setdefault(log.source_id, _COLOURS[len(colours) % len(_COLOURS)])
    source = Text(escape_controls(log.source_id), style=colour)
    return Text("  ").join([Text(shown_time(log.timestamp)), source, _beginning(log.raw_text)])


def _log_table(
    found: Sequence[StoredLog], show: Callable[[str], Text], middle: StoredLog | None = None
) -> Table:
    sources = dict.fromkeys(log.source_id for log in found)
    colours = dict(zip(sources, itertools.cycle(_COLOURS), strict=False))
    digits = _distinct_digits([log.log_id.hex for log in found])
    indent = "" if middle is None else "  "
    times = [f"{'> ' if log is middle else indent}{shown_time(log.timestamp)}" for log in found]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    width = max([len(indent) + min(digits, _ID_WIDTH), *map(len, times)])
    table.add_column(f"{indent}timestamp, log_id", overflow="fold", max_width=width, min_width=width)
    table.add_column("source_id", no_wrap=True, overflow="ellipsis", max_width=_SOURCE_WIDTH)
    table.add_column("raw_text", overflow="fold")
    for log, time in zip(found, times, strict=True):
        table.add_row(
            Text.assemble(f"{time}\n{indent}", (log.log_id.hex[:digits], "not bold dim")),
            Text(escape_controls(log.source_id), style=colours[log.source_id]),
            show(log.raw_text),
            style="bold" if log is middle else None,
        )
    return table


def _distinct_digits(ids: Sequence[str]) -> int:
    """Return how many of their first digits tell ids from each other; ``context`` takes so many."""
    several = len(set(ids))
    for digits in range(_LEAST_ID_DIGITS, _ID_DIGITS):
        if len({one[:digits] for one in ids}) == several:
            return digits
    return _ID_DIGITS


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


def bars(buckets: Sequence[Bucket], group: str | None) -> RenderableType:
    """Show counts over time as bars."""
    if not buckets:
        return "nothing to count"
    table = _table("start", *([group] if group else []))
    if group:
        table.columns[1].justify = "left"
        table.columns[1].max_width = _SOURCE_WIDTH
    table.add_column("", ratio=1)
    table.add_column("count", justify="right", no_wrap=True)
    table.expand = True
    most = max(bucket.count for bucket in buckets)
    for bucket in buckets:
        name = () if bucket.group is None else (bucket.group,)
        bar = Bar(max(most, 1), 0, bucket.count, color="cyan")
        table.add_row(shown_time(bucket.start), *name, bar, f"{bucket.count:,}")
    return table


def fibers(listed: Sequence[FiberSummary], keys: Mapping[UUID, Sequence[FiberKey]]) -> RenderableType:
    """Show fibers, each in two lines."""
    return Group(*_fiber_lines(listed, keys)) if listed else "no fibers"


def _fiber_lines(listed: Sequence[FiberSummary], keys: Mapping[UUID, Sequence[FiberKey]]) -> Iterator[Text]:
    types = [escape_controls(item.fiber.fiber_type) for item in listed]
    width = max(map(len, types), default=0)
    for item, fiber_type in zip(listed, types, strict=True):
        fiber = item.fiber
        took = duration(fiber.last_activity - fiber.first_activity)
        logs = "log " if item.log_count == 1 else "logs"
        state = "closed" if fiber.closed else "open"
        yield _one_line(
            (f"{fiber_type:<{width}}", "bold"),
            f"  {shown_time(fiber.first_activity)}  {took:>9}  {item.log_count:>5,} {logs}  {state}",
        )
        its_keys = keys.get(fiber.fiber_id, ())
        rest = _beyond_keys(fiber.attributes, its_keys)
        shown = "" if its_keys and rest is None else escape_controls(compact(rest))
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


def fiber(found: FiberRecord, keys: Mapping[UUID, Sequence[FiberKey]]) -> Table:
    """Show what a fiber is, without its logs."""
    grid = Table.grid(Column(style="bold", no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    took = duration(found.last_activity - found.first_activity)
    its_keys = keys.get(found.fiber_id, ())
    if its_keys:
        grid.add_row("keys", key_label(its_keys))
    grid.add_row("fiber_id", str(found.fiber_id))
    grid.add_row("type", f"{found.fiber_type}, {'closed' if found.closed else 'open'}")
    grid.add_row(
        "activity", f"{shown_time(found.first_activity)} to {shown_time(found.last_activity)}, {took}"
    )
    rest = _beyond_keys(found.attributes, its_keys)
    if rest is not None or not its_keys:
        grid.add_row("attributes", compact(rest))
    return grid


def value_counts(found: Sequence[ValueCount[str]], name: str) -> RenderableType:
    """Show values and how many fibers have each."""
    if not found:
        return f"no {name}s of keys"
    table = _table(name, "fibers", "first_seen", "last_seen")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for one in found:
        seen = map(shown_second, (one.first_seen, one.last_seen))
        table.add_row(escape_controls(one.value), f"{one.count:,}", *seen)
    return table


def statistics(found: Statistics) -> RenderableType:
    """Show the content of a store."""
    tables = _counts(("table", "rows"), found.tables.items())
    sources = _counts(("source", "logs"), found.sources.items())
    types = _counts(
        ("fiber type", "open", "closed"),
        ((one.fiber_type, one.open, one.closed) for one in found.fiber_types),
    )
    versions = _counts(
        ("config version", "logs", "fibers"),
        (
            (f"{one.config_version}{' (active)' if one.active else ''}", one.logs, one.fibers)
            for one in found.config_versions
        ),
    )
    where = [found.file, decimal(found.file_bytes)] if found.file else ["in memory"]
    times = [f"{shown_time(found.first)} to {shown_time(found.last)}"] if found.first and found.last else []
    return Group(
        Text(", ".join([*where, f"revision {found.revision or 'none'}"])),
        *map(Text, times),
        "",
        Columns([tables, sources, types], padding=(0, 3)),
        "",
        versions,
    )


def _counts(names: Sequence[str], rows: Iterable[tuple[str, *tuple[int, ...]]]) -> Table:
    table = _table(*names)
    for name, *counts in rows:
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def generations(found: Sequence[Generation]) -> RenderableType:
    """Show config versions."""
    if not found:
        return "no config versions"
    table = _table("config_version", "fibers", "active", "created_at", "parent")
    for column in table.columns[2:]:
        column.justify = "left"
    for column in table.columns[3:]:
        column.no_wrap = False  # on a narrow terminal these are cut, before the others
    for generation in found:
        known = generation.registered
        table.add_row(
            shown_version(generation.config_version),
            f"{generation.fibers:,}",
            "active" if known is not None and known.active else "",
            "not registered" if known is None else shown_second(known.created_at),
            "" if known is None or known.parent is None else shown_version(known.parent),
            style="bold" if known is not None and known.active else None,
        )
    return table


def diff(old: int, new: int, counts: Mapping[str, int], found: GenerationDiff) -> RenderableType:
    """Show how many fibers of two versions differ, and which."""
    return Group(
        Text(f"{shown_version(old)} to {shown_version(new)}", style="bold"),
        ", ".join(f"{count:,} {kind}" for kind, count in counts.items()),
        *_change_lines(found.changes),
    )


def _change_lines(changes: Sequence[FiberChange]) -> Iterator[Text]:
    for change in changes:
        yield _one_line((f"{change.kind:<6}", "bold"), f"  {escape_controls(change.fiber_type)}")
        for sign, ids, colour in (("-", change.old, "red"), ("+", change.new, "green")):
            for fiber_id in ids[:_MOST_IDS]:
                yield Text(f"  {sign} {fiber_id}", style=colour)
            if len(ids) > _MOST_IDS:
                yield Text(f"  {sign} and {len(ids) - _MOST_IDS:,} more", style=colour)


def checkpoints(found: Sequence[Checkpoint]) -> RenderableType:
    """Show named checkpoints, and the beginnings of their values."""
    if not found:
        return "no checkpoints"
    table = _table("name", "updated_at")
    table.add_column("value", overflow="fold")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # the value is to be seen, too
    for checkpoint in found:
        table.add_row(checkpoint.name, shown_second(checkpoint.updated_at), _beginning(checkpoint.value))
    return table


def copied(found: Copied, seconds: float) -> RenderableType:
    """Show how many rows of each table a copy has written, and how many there are."""
    table = _table("table", "written", "source", "destination", "checksum")
    for name_or_checksum in (table.columns[0], table.columns[-1]):
        name_or_checksum.no_wrap = False  # so on a narrow terminal they give way to the counts
    for name, held in found.source.items():
        written, rows = found.written.get(name, 0), found.destination[name].rows
        checksum = "differs" if name in found.differing else held.checksum
        table.add_row(name, f"{written:,}", f"{held.rows:,}", f"{rows:,}", checksum)
    return Group(table, f"{'equal' if found.is_equal else 'not equal'}; {seconds:.2f} s")


def _table(*names: str) -> Table:
    """Return a table without lines, whose first column is text and the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(names):
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if position else "left")
    return table


def _one_line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
