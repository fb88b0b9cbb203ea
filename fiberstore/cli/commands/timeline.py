"""The command ``fiberstore timeline``: fibers over time, in the terminal or as a page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import cycle, groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.filesize import decimal
from rich.text import Text

from fiberstore.cli.app import app, print_note
from fiberstore.cli.console import make_console, print_line
from fiberstore.cli.lookup import keys_of
from fiberstore.cli.options import Db, FiberFilter, FiberOrderName, Json, fiber_order, with_filter
from fiberstore.cli.render import Keys, Record, fiber_record, print_records, shape_of_output
from fiberstore.cli.stores import open_to_read
from fiberstore.cli.tables import counted, duration
from fiberstore.cli.times import shown_time
from fiberstore.contract.results import Timeline, TimelinePoint
from fiberstore.escaping import escape_controls
from fiberstore.records import MICROSECOND, FiberRecord
from fiberstore.repositories.storage import SqlStorage
from fiberstore.timeline.page import lane_labels

_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")
_DENSITIES = ((20, "█"), (5, "■"), (2, "●"), (1, "•"))  # from this many logs in a column on
_TYPE_WIDTH = 16
_LEAST_TRACK = 20
_TICK_COLUMNS = 18
_LEGEND_SOURCES = 12


@app.command(epilog="Example: fiberstore timeline --db store.duckdb --order longest --html timeline.html")
@with_filter
def timeline(
    chosen: FiberFilter,
    *,
    db: Db,
    order: Annotated[FiberOrderName, typer.Option(help="Which come first.")] = "oldest",
    most_fibers: Annotated[
        int, typer.Option("--fibers", min=0, metavar="N", help="Most fibers to show.")
    ] = 20,
    most_points: Annotated[
        int, typer.Option("--points", min=0, metavar="N", help="Most logs to show, evenly chosen.")
    ] = 10_000,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page for a browser instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show fibers over time: a lane each, with its logs as points, by source.

    A note on stderr counts what `--fibers` or `--points` leaves out.
    """
    if html is not None:
        _check_bokeh()
    with open_to_read(db) as storage:
        query = chosen.of(storage).order_by(fiber_order(order))
        found = query.timeline(most_fibers, most_points)
        is_cut = len(found.fibers) == most_fibers and query.count(most_fibers + 1) > most_fibers
        keys = keys_of(storage, [fiber.fiber_id for fiber in found.fibers])
        if html is not None:
            _write_page(storage, found, keys, html)
    if html is None:
        _print_timeline(found, keys, as_json=as_json)
    if len(found.points) < found.log_count:
        shown, there = len(found.points), found.log_count
        print_note(f"{shown:,} of {counted(there, 'logs')}, evenly chosen; --points {there} shows all")
    if is_cut:
        print_note(f"there is more; --fibers N shows more than {counted(most_fibers, 'fibers')}")


def _check_bokeh() -> None:
    try:
        import bokeh  # noqa: F401
    except ModuleNotFoundError:
        print_note("--html needs Bokeh: pip install 'fiberstore[html]'")
        raise typer.Exit(1) from None


def _write_page(storage: SqlStorage, found: Timeline, keys: Keys, path: Path) -> None:
    from fiberstore.timeline.page import write_timeline_page

    logs = storage.logs.get_many(dict.fromkeys(point.log_id for point in found.points)).items
    write_timeline_page(path, found, {log.log_id: log.raw_text for log in logs}, keys=keys)
    print_line(f"{path}: {decimal(path.stat().st_size)}")


def _print_timeline(found: Timeline, keys: Keys, *, as_json: bool) -> None:
    records = (
        {**fiber_record(fiber, keys), "points": [_without_fiber(point) for point in points]}
        for fiber, points in _by_fiber(found)
    )
    columns = ("fiber_id", "timestamp", "source_id", "log_id")
    shape, width = shape_of_output(as_json=as_json), make_console().width
    print_records(
        records, columns, lambda: Group(*_lanes(found, keys, width)), shape, rows=map(asdict, found.points)
    )


def _without_fiber(point: TimelinePoint) -> Record:
    return {name: value for name, value in asdict(point).items() if name != "fiber_id"}


def _by_fiber(found: Timeline) -> Iterator[tuple[FiberRecord, list[TimelinePoint]]]:
    points = {
        fiber_id: list(group) for fiber_id, group in groupby(found.points, key=lambda point: point.fiber_id)
    }
    for fiber in found.fibers:
        yield fiber, points.get(fiber.fiber_id, [])


def _lanes(found: Timeline, keys: Keys, width: int) -> Iterator[Text]:
    if not found.fibers:
        yield Text("no fibers")
        return
    times = [time for fiber in found.fibers for time in (fiber.first_activity, fiber.last_activity)]
    times += [point.timestamp for point in found.points]
    first, last = min(times), max(times)
    sources = Counter(point.source_id for point in found.points)
    colours = dict(zip((source for source, _ in sources.most_common()), cycle(_COLOURS), strict=False))
    labels = _labels(found.fibers, keys)
    indent = max(map(len, labels)) + 1
    scale = _Scale(
        first, last, max(width - indent - 1, _LEAST_TRACK)
    )  # at the end, room for the mark of open ones
    yield Text(_headline(found, first, last), style="bold")
    for label, (fiber, points) in zip(labels, _by_fiber(found), strict=True):
        yield Text(f"{label:<{indent}}") + _track(fiber, points, scale, colours)
    yield Text(" " * indent) + Text(scale.axis(), style="dim")
    yield from _legend(sources, colours)


class _Scale:
    """The columns of a track, each a slice of the time.

    Attributes:
        first: The time at which the first column begins.
        last: The last time in the last column.
        columns: How many there are.
    """

    def __init__(self, first: datetime, last: datetime, columns: int) -> None:
        self.first, self.last, self.columns = first, last, columns

    def column(self, time: datetime) -> int:
        """Return the column that a time is in."""
        span = (self.last - self.first) // MICROSECOND + 1
        return (time - self.first) // MICROSECOND * self.columns // span

    def axis(self) -> str:
        """Return a line of times, each where its column begins."""
        span = self.last - self.first
        line = ""
        for column in range(0, self.columns, _TICK_COLUMNS):
            tick = f"│{_tick(self.first + span * column / self.columns, span)}"
            if column + len(tick) <= self.columns:
                line = line.ljust(column) + tick
        return line


def _tick(time: datetime, span: timedelta) -> str:
    if span >= timedelta(days=3):
        return f"{time:%Y-%m-%d %H}h"
    if span >= timedelta(minutes=5):
        return f"{time:%H:%M:%S}"
    return f"{time:%H:%M:%S.%f}"[: -3 if span >= timedelta(milliseconds=100) else None]


def _labels(fibers: Sequence[FiberRecord], keys: Keys) -> list[str]:
    types = [escape_controls(fiber.fiber_type) for fiber in fibers]
    cut = [name if len(name) <= _TYPE_WIDTH else name[: _TYPE_WIDTH - 1] + "…" for name in types]
    width = max(map(len, cut))
    return [f"{name:<{width}} {short}" for name, short in zip(cut, lane_labels(fibers, keys), strict=True)]


def _headline(found: Timeline, first: datetime, last: datetime) -> str:
    shown, there = len(found.points), found.log_count
    logs = counted(there, "logs")
    if shown != there:
        logs = f"{shown:,} of {logs}, evenly chosen"
    fibers = f"{counted(len(found.fibers), 'fibers')}, {logs}"
    return f"{shown_time(first)} to {shown_time(last)}, {duration(last - first)}: {fibers}"


def _track(
    fiber: FiberRecord, points: Sequence[TimelinePoint], scale: _Scale, colours: dict[str, str]
) -> Text:
    times = [fiber.first_activity, fiber.last_activity, *(point.timestamp for point in points)]
    begin, end = scale.column(min(times)), scale.column(max(times))
    track = [(" ", "")] * scale.columns
    track[begin : end + 1] = [("─", "dim")] * (end + 1 - begin)
    by_column: dict[int, Counter[str]] = {}
    for point in points:
        by_column.setdefault(scale.column(point.timestamp), Counter())[point.source_id] += 1
    for column, sources in by_column.items():
        ((source, _),) = sources.most_common(1)
        glyph = next(glyph for least, glyph in _DENSITIES if sources.total() >= least)
        track[column] = (glyph, colours[source])
    track[end + 1 :] = [] if fiber.closed else [("▷", "dim")]
    runs = groupby(track, key=lambda cell: cell[1])
    return Text.assemble(*(("".join(glyph for glyph, _ in run), style) for style, run in runs))


def _legend(sources: Counter[str], colours: dict[str, str]) -> Iterator[Text]:
    named = sources.most_common(_LEGEND_SOURCES)
    parts = [(f"• {escape_controls(source)} {count:,}", colours[source]) for source, count in named]
    if len(sources) > len(named):
        parts.append((f"and {len(sources) - len(named):,} other sources", ""))
    yield Text("   ").join(Text(*part) for part in parts)
    steps = "  ".join(f"{glyph} {least:,}+" for least, glyph in reversed(_DENSITIES))
    yield Text(f"logs in a column: {steps}; coloured by the most frequent source; ▷ open", style="dim")
