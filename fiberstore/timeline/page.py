"""A timeline as one HTML file, which opens from disk and asks the network for nothing; needs Bokeh.

Bokeh draws on a plain canvas: 10,000 points stay fluid also where there is no WebGL.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from types import MappingProxyType
from typing import TypeAlias
from uuid import UUID

from fiberstore.atomic_files import new_file
from fiberstore.contract.results import Timeline
from fiberstore.escaping import escape_controls
from fiberstore.keys import key_label
from fiberstore.records import FiberKey, FiberRecord

Keys: TypeAlias = Mapping[UUID, Sequence[FiberKey]]

_KEY_CHARACTERS = 32
_GROUPS_OF_DIGITS = (8, 13, 18, 23, 36)


def write_timeline_page(
    target: str | os.PathLike[str],
    timeline: Timeline,
    texts: Mapping[UUID, str],
    *,
    keys: Keys = MappingProxyType({}),
    title: str = "Fibers over time",
) -> None:
    """Write a page that shows fibers as lanes and logs as points.

    Args:
        target: Path of a file that does not exist yet; see ``fiberstore.atomic_files.new_file``.
        timeline: What to show.
        texts: The text of each log, by its id; the beginning of it is shown. Where
            there is none, the page says so.
        keys: The keys of each fiber that has some (``storage.get_keys``), which name its lane.
        title: Heads the page.

    Raises:
        ModuleNotFoundError: Bokeh is not installed.
        DatabaseError: The target exists, its folder does not, or it cannot be written.
    """
    page = timeline_page(timeline, texts, keys=keys, title=title)
    with new_file(target) as path:
        path.write_text(page, encoding="utf-8")


def timeline_page(
    timeline: Timeline,
    texts: Mapping[UUID, str],
    *,
    keys: Keys = MappingProxyType({}),
    title: str = "Fibers over time",
) -> str:
    """Render the page that ``write_timeline_page`` writes."""
    try:
        from bokeh.embed import file_html
        from bokeh.resources import INLINE
        from jinja2 import Template

        from fiberstore.timeline.plot import plot_layout
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timeline pages need Bokeh: pip install 'fiberstore[html]'") from error
    template = Template((files("fiberstore.timeline") / "page.html").read_text(encoding="utf-8"))
    shown = escape_controls(title)
    variables = {"lines": _headlines(timeline)}
    if not timeline.fibers:
        return str(template.render(title=shown, **variables))
    layout = plot_layout(timeline, texts, keys)
    page: str = file_html(layout, INLINE, shown, template=template, template_variables=variables)
    return page


def lane_labels(fibers: Sequence[FiberRecord], keys: Keys) -> list[str]:
    """Return a label for each fiber: its keys, or the beginning of its id; both if others have its keys."""
    labels = [cut(key_label(keys.get(fiber.fiber_id, ())), _KEY_CHARACTERS) for fiber in fibers]
    counts = Counter((fiber.fiber_type, label) for fiber, label in zip(fibers, labels, strict=True))
    return [
        " ".join(filter(None, [label, "" if label and counts[fiber.fiber_type, label] == 1 else short]))
        for fiber, label, short in zip(fibers, labels, short_ids(fibers), strict=True)
    ]


def short_ids(fibers: Sequence[FiberRecord]) -> list[str]:
    """Return of each id the first groups of digits, as many as tell all of them apart."""
    texts = [str(fiber.fiber_id) for fiber in fibers]
    shortened = ([text[:digits] for text in texts] for digits in _GROUPS_OF_DIGITS)
    return next(short for short in shortened if len(set(short)) == len(texts))


def _headlines(timeline: Timeline) -> list[str]:
    fibers, points = timeline.fibers, timeline.points
    if not fibers:
        return ["No fibers: there is nothing to show."]
    times = _times(timeline)
    still_open = sum(not fiber.closed for fiber in fibers)
    logs = count(timeline.log_count, "log")
    if len(points) < timeline.log_count:
        logs = f"{len(points):,} of {logs} shown, evenly chosen"
    state = f" ({still_open:,} open, with \u25b7 at the end)" if still_open else ""
    return [f"{count(len(fibers), 'fiber')}{state}, {logs}, {exact(min(times))} to {exact(max(times))}"]


def count(number: int, what: str) -> str:
    """Return a number with what it counts, in the plural unless it is 1."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def cut(text: str, most: int) -> str:
    """Return a text, or its beginning if it has more characters than so many."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _times(timeline: Timeline) -> list[datetime]:
    times = [time for fiber in timeline.fibers for time in (fiber.first_activity, fiber.last_activity)]
    return times + [point.timestamp for point in timeline.points]


def exact(time: datetime) -> str:
    """Return a time to the µs."""
    return f"{time.replace(tzinfo=None).isoformat(' ', 'microseconds')} UTC"
