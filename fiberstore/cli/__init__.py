"""The ``fiberstore`` command."""

from fiberstore.cli.commands import main

__all__ = ["main"]
