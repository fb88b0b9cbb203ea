"""Fibers as lanes and logs as points, drawn by Bokeh."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from bokeh.core.properties import value
from bokeh.layouts import column
from bokeh.models import (
    BooleanFilter,
    BoxZoomTool,
    CDSView,
    ColumnDataSource,
    CustomJS,
    DatetimeAxis,
    DatetimeTickFormatter,
    FactorRange,
    HoverTool,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)
from bokeh.models.annotations.legends import Legend, LegendItem
from bokeh.models.ui.ui_element import UIElement
from bokeh.models.widgets.groups import CheckboxGroup
from bokeh.models.widgets.sliders import Slider
from bokeh.plotting import figure

from fiberstore.contract.results import Timeline, TimelinePoint
from fiberstore.escaping import escape_controls
from fiberstore.keys import key_label
from fiberstore.records import FiberRecord, to_epoch_us
from fiberstore.timeline.page import Keys, count, cut, exact, lane_labels

Span: TypeAlias = tuple[float, float]  # in ms since 1970, both included

_LINE_CHARACTERS = 300
_NAME_CHARACTERS = 24
_LANES_AT_ONCE = 50
_LANES_OF_ONE_AXIS = 25
_FEW_LANES = 10
_LEGEND_COLUMNS = 6
_TOOLTIPS = 3
_POINTS_WHILE_MOVING = 10_000  # of more, Bokeh draws a tenth until the zoom has come to rest
_LEAST_SPAN_MS = 0.02
_MARGIN = 0.02
_MARGIN_OF_NOTHING_MS = 500.0

_TIMES_OF_DAY: dict[str, Any] = {
    "microseconds": "%H:%M:%S.%f",
    "milliseconds": "%H:%M:%S.%3N",
    **dict.fromkeys(("seconds", "minsec"), "%H:%M:%S"),
    **dict.fromkeys(("minutes", "hourmin", "hours"), "%H:%M"),
}
_THEIR_DATES: dict[str, Any] = dict.fromkeys(_TIMES_OF_DAY, "%Y-%m-%d")

# Okabe and Ito's colours, which colour-blind people can tell apart, without the yellow that paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("circle", "square", "triangle")
_STYLES = [(colour, marker) for marker in _MARKERS for colour in _COLOURS]
_OTHER_STYLE = ("#888888", "x")
_POINT_TOOLTIP = """
<div style="max-width: 60em; padding: 2px 0 5px; font: 12px/1.4 system-ui, sans-serif">
<b>@time</b> &middot; <span>@source</span><br>
<span style="color: #555">@lane</span>
<div style="font: 12px/1.4 monospace; white-space: pre-wrap; overflow-wrap: anywhere">@line</div>
</div>
"""
_BAR_TOOLTIP = """
<div style="max-width: 60em; font: 12px/1.4 system-ui, sans-serif">
<b>@type</b> <span>@keys</span>, <span>@state</span><br>
<span style="color: #555">@id</span><br>
<span style="color: #555">@first to @last, @logs</span>
<div style="font: 12px/1.4 monospace; white-space: pre-wrap; overflow-wrap: anywhere">@attributes</div>
</div>
"""
_SHOW_LANES = """
const wanted = new Set(types.active.map(index => names[index]))
const lanes = all.filter((_, index) => wanted.has(kinds[index]))
const last_first = Math.max(1, lanes.length - most + 1)
slider.visible = last_first > 1
slider.end = Math.max(2, last_first)
if (cb_obj === types || slider.value > last_first) slider.value = 1
const shown = lanes.slice(slider.value - 1, slider.value - 1 + most)
plot.y_range.factors = shown.reverse()
plot.frame_height = heights[shown.length]
if (all.length > most && shown.length > 0) {
  const places = shown.map(lane => all.indexOf(lane))
  const start = Math.min(...places.map(place => spans[place][0]))
  const end = Math.max(...places.map(place => spans[place][1]))
  const space = margin * (end - start) || margin_of_nothing
  plot.x_range.setv({start: start - space, end: end + space})
}
"""
_SHOW_SOURCES = """
shown.booleans = Array.from(source.data.group, number => samples[number].visible)
"""


def plot_layout(timeline: Timeline, texts: Mapping[UUID, str], keys: Keys) -> UIElement:
    """Draw fibers and logs, with the controls that choose among them; see ``write_timeline_page``."""
    lanes = _lanes(timeline.fibers, keys)
    labels, spans = list(lanes.values()), _spans(timeline)
    plot = _plot(labels, spans)
    _add_bars(plot, timeline, lanes, keys)
    _add_points(plot, timeline.points, lanes, texts)
    types, slider = _controls(plot, timeline.fibers, labels, spans)
    return column(types, slider, plot, sizing_mode="stretch_width")


def _plot(labels: Sequence[str], spans: Sequence[Span]) -> figure:
    first, last = _padded(spans[:_LANES_AT_ONCE])
    least, most = _padded(spans)
    wheel, pan = WheelZoomTool(dimensions="width"), PanTool(dimensions="width")
    plot = figure(
        name="timeline",
        tools=[pan, BoxZoomTool(dimensions="width"), wheel, ResetTool(), SaveTool()],
        active_drag=pan,
        active_scroll=wheel,
        x_axis_type="datetime",
        x_range=Range1d(start=first, end=last, bounds=(least, most), min_interval=_LEAST_SPAN_MS),
        y_range=FactorRange(factors=labels[:_LANES_AT_ONCE][::-1]),
        frame_height=_frame_height(min(len(labels), _LANES_AT_ONCE)),
        sizing_mode="stretch_width",
        toolbar_location="above",
        lod_threshold=_POINTS_WHILE_MOVING,
    )
    plot.toolbar.logo = None
    formatter = DatetimeTickFormatter(
        **_TIMES_OF_DAY,
        days="%Y-%m-%d",
        months="%Y-%m",
        years="%Y",
        context=DatetimeTickFormatter(**_THEIR_DATES),
        context_which="start",
    )
    plot.xaxis.formatter = formatter
    plot.xaxis.axis_label = "UTC"
    if len(labels) > _LANES_OF_ONE_AXIS:
        plot.add_layout(DatetimeAxis(formatter=formatter), "above")
    plot.yaxis.major_label_text_font = "monospace"
    plot.yaxis.major_label_text_font_size = "11px"
    plot.ygrid.grid_line_color = None
    legend = Legend(
        click_policy="hide", location="left", ncols=_LEGEND_COLUMNS, border_line_color=None, margin=0
    )
    plot.add_layout(legend, "above")
    return plot


def _add_bars(plot: figure, timeline: Timeline, lanes: Mapping[UUID, str], keys: Keys) -> None:
    counts = Counter(point.fiber_id for point in timeline.points)
    whole = len(timeline.points) == timeline.log_count
    fibers = timeline.fibers
    bars = ColumnDataSource(
        {
            "lane": list(lanes.values()),
            "left": [_ms(fiber.first_activity) for fiber in fibers],
            "right": [_ms(fiber.last_activity) for fiber in fibers],
            "type": [escape_controls(fiber.fiber_type) for fiber in fibers],
            "id": [str(fiber.fiber_id) for fiber in fibers],
            "keys": [cut(key_label(keys.get(fiber.fiber_id, ())), _LINE_CHARACTERS) for fiber in fibers],
            "state": ["closed" if fiber.closed else "open" for fiber in fibers],
            "first": [exact(fiber.first_activity) for fiber in fibers],
            "last": [exact(fiber.last_activity) for fiber in fibers],
            "logs": [count(counts[fiber.fiber_id], "log") + ("" if whole else " shown") for fiber in fibers],
            "attributes": [
                cut(
                    escape_controls(json.dumps(fiber.attributes, ensure_ascii=False, sort_keys=True)),
                    _LINE_CHARACTERS,
                )
                for fiber in fibers
            ],
        }
    )
    drawn = plot.hbar(
        y="lane",
        left="left",
        right="right",
        height=0.5,
        source=bars,
        fill_color="#DDE2E8",
        line_color="#8C96A3",
    )
    still_open = [number for number, fiber in enumerate(fibers) if not fiber.closed]
    if still_open:
        ends = ColumnDataSource(
            {name: [bars.data[name][number] for number in still_open] for name in ("lane", "right")}
        )
        plot.text(
            x="right",
            y="lane",
            text=value("\u25b7"),
            source=ends,
            x_offset=5,
            y_offset=-1,
            text_baseline="middle",
            text_font_size="14px",
            text_color="#5A6472",
        )
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=_BAR_TOOLTIP, attachment="above"))


def _add_points(
    plot: figure, points: Sequence[TimelinePoint], lanes: Mapping[UUID, str], texts: Mapping[UUID, str]
) -> None:
    groups = list(_groups(points))
    in_order = [point for _, _, group in groups for point in group]
    styles = [style for _, style, group in groups for _ in group]
    source = ColumnDataSource(
        {
            "ms": [_ms(point.timestamp) for point in in_order],
            "lane": [lanes[point.fiber_id] for point in in_order],
            "time": [exact(point.timestamp) for point in in_order],
            "source": [escape_controls(point.source_id) for point in in_order],
            "line": [_line(texts, point.log_id) for point in in_order],
            "colour": [colour for colour, _ in styles],
            "marker": [marker for _, marker in styles],
            "group": [number for number, (_, _, group) in enumerate(groups) for _ in group],
        }
    )
    # All sources are one renderer, which gives one tooltip for all points at a place. The legend hides and
    # shows others that look like a source, their only point being in no lane; these decide which are shown.
    shown = BooleanFilter(booleans=[True] * len(in_order))
    drawn = plot.scatter(
        name="points",
        x="ms",
        y="lane",
        source=source,
        view=CDSView(filter=shown),
        marker="marker",
        size=8,
        fill_color="colour",
        fill_alpha=0.8,
        line_color="colour",
        line_alpha=0.8,
    )
    samples = [
        plot.scatter(x=[0], y=[""], marker=marker, size=8, color=colour) for _, (colour, marker), _ in groups
    ]
    (legend,) = plot.legend
    legend.items = [
        LegendItem(label=value(name), renderers=[sample])  # type: ignore[list-item]  # a Scatter is a Glyph
        for (name, _, _), sample in zip(groups, samples, strict=True)
    ]
    show = CustomJS(args={"source": source, "shown": shown, "samples": samples}, code=_SHOW_SOURCES)
    for sample in samples:
        sample.js_on_change("visible", show)
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=_POINT_TOOLTIP, attachment="below", limit=_TOOLTIPS))


def _groups(points: Sequence[TimelinePoint]) -> Iterator[tuple[str, tuple[str, str], list[TimelinePoint]]]:
    """Yield a name, a colour with a marker, and points: for each frequent source, and for all the others."""
    by_source: dict[str, list[TimelinePoint]] = {}
    for point in points:
        by_source.setdefault(point.source_id, []).append(point)
    sources = sorted(by_source, key=lambda source: (-len(by_source[source]), source))
    own, others = sources, list[str]()
    if len(sources) > len(_STYLES):
        own, others = sources[: len(_STYLES)], sources[len(_STYLES) :]
    names = _distinct([cut(escape_controls(source), _NAME_CHARACTERS) for source in own])
    for source, name, style in zip(own, names, _STYLES, strict=False):
        yield name, style, by_source[source]
    if others:
        rest = [point for source in others for point in by_source[source]]
        yield f"{len(others):,} other sources", _OTHER_STYLE, rest


def _controls(
    plot: figure, fibers: Sequence[FiberRecord], labels: Sequence[str], spans: Sequence[Span]
) -> tuple[UIElement, UIElement]:
    counts = Counter(fiber.fiber_type for fiber in fibers)
    names = sorted(counts)
    types = CheckboxGroup(
        name="types",
        labels=[f"{cut(escape_controls(name), _NAME_CHARACTERS)} ({counts[name]:,})" for name in names],
        active=list(range(len(names))),
        inline=True,
        styles={"max-height": "6em", "overflow-y": "auto"},
    )
    most_first = max(2, len(labels) - _LANES_AT_ONCE + 1)
    slider = Slider(
        name="lanes",
        title=f"{_LANES_AT_ONCE} lanes from number",
        start=1,
        end=most_first,
        value=1,
        visible=len(labels) > _LANES_AT_ONCE,
        max_width=500,
    )
    show = CustomJS(
        args={
            "plot": plot,
            "types": types,
            "slider": slider,
            "names": names,
            "all": labels,
            "kinds": [fiber.fiber_type for fiber in fibers],
            "spans": spans,
            "margin": _MARGIN,
            "margin_of_nothing": _MARGIN_OF_NOTHING_MS,
            "most": _LANES_AT_ONCE,
            "heights": [_frame_height(number) for number in range(_LANES_AT_ONCE + 1)],
        },
        code=_SHOW_LANES,
    )
    types.js_on_change("active", show)
    slider.js_on_change("value", show)
    return types, slider


def _lanes(fibers: Sequence[FiberRecord], keys: Keys) -> dict[UUID, str]:
    """Return the name of each lane."""
    names = [
        f"{cut(escape_controls(fiber.fiber_type), _NAME_CHARACTERS)} {label}"
        for fiber, label in zip(fibers, lane_labels(fibers, keys), strict=True)
    ]
    return dict(zip((fiber.fiber_id for fiber in fibers), _distinct(names), strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with a number behind each that is there already."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} #{number}" for number, name in enumerate(names, start=1)]


def _frame_height(lanes: int) -> int:
    height = 32 if lanes <= _FEW_LANES else 22 if lanes <= _LANES_OF_ONE_AXIS else 16
    return max(lanes, 2) * height


def _line(texts: Mapping[UUID, str], log_id: UUID) -> str:
    if log_id not in texts:
        return "(the log is not there any more)"
    return escape_controls(cut(texts[log_id], _LINE_CHARACTERS), keep="\t\n")


def _spans(timeline: Timeline) -> list[Span]:
    """Return the first and the last time of each fiber, be it of its activity or of a log."""
    spans = {
        fiber.fiber_id: (_ms(fiber.first_activity), _ms(fiber.last_activity)) for fiber in timeline.fibers
    }
    for point in timeline.points:
        first, last = spans[point.fiber_id]
        time = _ms(point.timestamp)
        spans[point.fiber_id] = min(first, time), max(last, time)
    return list(spans.values())


def _padded(spans: Sequence[Span]) -> Span:
    first, last = min(first for first, _ in spans), max(last for _, last in spans)
    margin = _MARGIN * (last - first) or _MARGIN_OF_NOTHING_MS
    return first - margin, last + margin


def _ms(time: datetime) -> float:
    return to_epoch_us(time) / 1000
