"""The ``fiberstore`` command. A module that is imported here adds its commands to the application."""

from fiberstore.cli import context, db, doctor, fibers, histogram, ingest, logs, stats, tail, transfer  # noqa: F401
from fiberstore.cli.app import main

__all__ = ["main"]
