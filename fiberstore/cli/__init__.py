"""The ``fiberstore`` command.

It loads all else inside ``main``, which takes most of the time of a short command: Ctrl-C may strike there.
The garbage collector would look through all of that again and again, and twice more at the end.
"""

import atexit
import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INTERRUPTED", "main"]

INTERRUPTED = 130
_OBJECTS_BETWEEN_LOOKS = 50_000


def main(args: "Sequence[str] | None" = None) -> None:
    """Run the command line and exit; the entry point of the script ``fiberstore``.

    Args:
        args: Arguments of the command line, instead of the process's own.
    """
    if args is None:  # the process has nothing else to do
        atexit.register(gc.freeze)
        gc.set_threshold(_OBJECTS_BETWEEN_LOOKS)
    try:
        from fiberstore.cli.app import run

        run(args)
    except KeyboardInterrupt:
        print("fiberstore: interrupted", file=sys.stderr)  # noqa: T201  # nothing need be loaded yet
        sys.exit(INTERRUPTED)
