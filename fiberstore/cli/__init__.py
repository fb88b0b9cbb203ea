"""The ``fiberstore`` command."""

from fiberstore.cli import timeline  # noqa: F401  # registers its command
from fiberstore.cli.commands import main

__all__ = ["main"]
