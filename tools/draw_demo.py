"""Draw the picture of the README, the demo's timeline on a terminal: `python tools/draw_demo.py`.

The picture asks the network for no font.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from fiberstore.cli import main as fiberstore

PICTURE = Path(__file__).resolve().parent.parent / "docs/pictures/demo.svg"
STORE = "fiberstore-demo.duckdb"
COMMAND = ("timeline", "--db", STORE, "--fibers", "16")
COLUMNS = 96
FORMAT = """\
<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg" role="img"
     aria-label="fibers of the demo over time, as fiberstore timeline draws them">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
<rect fill="#0d1117" width="100%" height="100%" rx="6" />
<g clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run(*arguments: str) -> str:
    """Run a command as on a terminal. Return its output."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        fiberstore(arguments)
    return printed.getvalue()


def draw() -> str:
    """Return the picture, of a demo that is made for it."""
    os.environ |= {"COLUMNS": str(COLUMNS), "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run("demo")
        timeline = run(*COMMAND)
    console = Console(record=True, width=COLUMNS + 2, file=io.StringIO(), force_terminal=True)
    command = Text(f"$ fiberstore {' '.join(COMMAND)}\n", style="bold")
    console.print(Padding(command + Text.from_ansi(timeline), (0, 1)))
    return console.export_svg(code_format=FORMAT, unique_id="demo")


if __name__ == "__main__":
    PICTURE.write_text(draw())
