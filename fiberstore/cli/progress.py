"""Progress bars, which commands that take long show on a terminal and erase at their end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from fiberstore.cli.console import make_console
from fiberstore.cli.tables import counted


@contextmanager
def progress_bars(*columns: ProgressColumn) -> Iterator[Progress]:
    """Show bars with these columns and the time that is left; none where stderr is no terminal."""
    console = make_console(stderr=True)
    columns = (*columns, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def counting_bars(unit: str) -> Iterator["CountingBars"]:
    """Yield bars that count things, whose plural is given; none is shown where stderr is no terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}")
    with progress_bars(*columns) as progress:
        yield CountingBars(progress, unit)


class CountingBars:
    """A bar for each step, with the count so far and its rate.

    Args:
        progress: Its display, with columns for the description and for ``done``.
        unit: The plural of the things that are counted.
    """

    def __init__(self, progress: Progress, unit: str) -> None:
        self._progress, self._unit = progress, unit
        self._begun: dict[str, tuple[TaskID, float]] = {}

    def begin(self, step: str, total: Callable[[], int] | None = None, done: str = "") -> None:
        """Show the bar of a step; ``done`` stands there before the first count.

        Args:
            step: Its name; the bar of a step that has begun stays as it is.
            total: Counts the things, for which nobody waits unless a bar is shown.
            done: A text.
        """
        if step not in self._begun:
            count = None if total is None or self._progress.disable else total()
            self._begun[step] = self._progress.add_task(step, total=count, done=done), time.monotonic()

    def advance(self, step: str, count: int) -> None:
        """Move the bar of a step that has begun by so many things."""
        bar, begin = self._begun[step]
        self._progress.advance(bar, count)
        done = int(self._progress.tasks[bar].completed)
        self._progress.update(
            bar, done=f"{counted(done, self._unit)}, {rate(done, time.monotonic() - begin, self._unit)}"
        )


def rate(count: int, seconds: float, unit: str) -> str:
    """Describe how many things a second were done."""
    return f"{count / max(seconds, 0.001):,.0f} {unit}/s"
