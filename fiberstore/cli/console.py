"""All that commands write, in one place, so that no text from elsewhere acts on a terminal.

The linter forbids the other ways to write in ``fiberstore``.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fiberstore.escaping import escape_controls

LAYOUT = "\t\n"
"""What a text of several lines keeps of its controls."""


def print_line(text: str = "", *, bold: bool = False, err: bool = False) -> None:
    """Print one line on stdout or stderr."""
    shown = escape_controls(text)
    typer.echo(typer.style(shown, bold=True) if bold else shown, err=err)


def print_cut(text: str) -> None:
    """Print one line on stdout, cut to the width of a terminal."""
    console = make_console()
    if console.is_terminal:
        console.print(text, no_wrap=True, overflow="ellipsis")
    else:
        print_line(text)


def print_json(value: object) -> None:
    """Print a value as one line of JSON, in ASCII; times and ids are text."""
    from pydantic_core import to_jsonable_python  # a list of commands needs none of it

    sys.stdout.write(f"{json.dumps(to_jsonable_python(value))}\n")


def print_result(line: str, values: object, *, as_json: bool) -> None:
    """Print what a command has done: a line, or the values as JSON."""
    if as_json:
        print_json(values)
    else:
        print_line(line)


def print_rows(rows: Iterable[Sequence[str]]) -> None:
    """Print tab-separated values, one row a line."""
    sys.stdout.writelines("\t".join(map(escape_controls, row)) + "\n" for row in rows)


def print_text(text: str) -> None:
    """Print a text, to a pipe exactly as it is."""
    sys.stdout.write(escape_controls(text, keep=LAYOUT) if make_console().is_terminal else text)


class _Console(Console):
    """A console whose texts steer nothing: only its own styles and movements are control codes."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401  # as rich has them
        """Make plain text of a ``str``, before its width is measured."""
        return super().render_str(escape_controls(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape what is left in texts that were made otherwise."""
        for segment in super().render(renderable, options):
            yield (
                segment
                if segment.control
                else Segment(escape_controls(segment.text, keep="\n"), segment.style)
            )


def make_console(*, stderr: bool = False) -> Console:
    """Make the console of stdout or stderr, which is a terminal only if the stream is one.

    Rich alone takes a pipe for a terminal under FORCE_COLOR, which most CI systems set. TTY_COMPATIBLE=1
    says that what reads the stream shows it as a terminal does.
    """
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = (stream is not None and stream.isatty()) or os.environ.get("TTY_COMPATIBLE") == "1"
    return _Console(stderr=stderr, force_terminal=is_terminal, markup=False, highlight=False, emoji=False)
