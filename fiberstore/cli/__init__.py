"""The ``fiberstore`` command."""

import fiberstore.cli.transfer  # noqa: F401  # its commands join the others
from fiberstore.cli.commands import main

__all__ = ["main"]
