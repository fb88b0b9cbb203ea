"""Repositories: the tables as records, over a session that the caller owns. They never commit."""

from fiberstore.repositories.checkpoints import CheckpointRepository
from fiberstore.repositories.fibers import FiberRepository
from fiberstore.repositories.logs import LogRepository
from fiberstore.repositories.memberships import MembershipRepository
from fiberstore.repositories.versions import VersionRepository

__all__ = [
    "CheckpointRepository",
    "FiberRepository",
    "LogRepository",
    "MembershipRepository",
    "VersionRepository",
]
