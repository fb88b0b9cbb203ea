"""Repositories: the tables as records, over a session that the caller owns. They never commit."""

from fiberstore.repositories.fibers import FiberRepository
from fiberstore.repositories.logs import LogRepository
from fiberstore.repositories.memberships import MembershipRepository

__all__ = ["FiberRepository", "LogRepository", "MembershipRepository"]
