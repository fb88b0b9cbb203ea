"""The whole program. A module that is imported here adds its commands to the application."""

from fiberstore.cli.app import run
from fiberstore.cli.commands import (  # noqa: F401
    actions,
    checkpoints,
    context,
    copy,
    db,
    doctor,
    fibers,
    generations,
    histogram,
    ingest,
    keys,
    logs,
    prune,
    redact,
    rules,
    stats,
    tail,
    timeline,
    transfer,
)

__all__ = ["run"]
