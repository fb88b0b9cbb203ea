"""``python -m fiberstore``: the command line, where the script ``fiberstore`` is not on the path."""

from fiberstore.cli import main

main()
