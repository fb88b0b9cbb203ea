"""The whole program. A module that is imported here adds its commands to the application."""

from fiberstore.cli import (  # noqa: F401
    actions,
    checkpoints,
    context,
    copying,
    db,
    doctor,
    fibers,
    generations,
    histogram,
    ingest,
    logs,
    prune,
    redact,
    stats,
    tail,
    timeline,
    transfer,
)
from fiberstore.cli.app import run

__all__ = ["run"]
