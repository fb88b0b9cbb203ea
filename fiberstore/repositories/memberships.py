"""Which log belongs to which fiber."""

from collections.abc import Iterable
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore import bulk
from fiberstore.errors import translate_errors
from fiberstore.models import Membership, RawLog
from fiberstore.records import FiberMembership, StoredLog, check_id, check_page
from fiberstore.repositories.logs import SELECT_LOGS, to_logs
from fiberstore.storage import DEFAULT_LIMIT


class MembershipRepository:
    """The memberships of a session's database.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``. The repository flushes it and never
            commits.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def write(self, memberships: Iterable[FiberMembership]) -> int:
        """Store memberships; see ``Storage.write_memberships``."""
        rows = bulk.checked(memberships, FiberMembership)
        if not rows:
            return 0
        with translate_errors():
            return bulk.insert_memberships(self._session, rows)

    def fibers_of(self, log_id: UUID) -> list[UUID]:
        """Return the fibers of a log; see ``Storage.get_log_fibers``."""
        check_id(log_id)
        statement = (
            sa.select(Membership.fiber_id).where(Membership.log_id == log_id).order_by(Membership.fiber_id)
        )
        with translate_errors():
            return list(self._session.scalars(statement))

    def logs_of(self, fiber_id: UUID, limit: int = DEFAULT_LIMIT, offset: int = 0) -> list[StoredLog]:
        """Return the stored logs of a fiber; see ``Storage.get_fiber_logs``."""
        check_id(fiber_id)
        check_page(limit, offset)
        statement = (
            SELECT_LOGS.join(Membership, Membership.log_id == RawLog.log_id)
            .where(Membership.fiber_id == fiber_id)
            .order_by(RawLog.timestamp, RawLog.log_id)
            .limit(limit)
            .offset(offset)
        )
        with translate_errors():
            return to_logs(self._session.execute(statement))

    def joined(self, log_ids: Iterable[UUID], config_version: int) -> set[UUID]:
        """Return which of the logs belong to a fiber of a config version, in any number of fibers."""
        with translate_errors():
            found = bulk.memberships_among(self._session, set(log_ids))
        return {log_id for log_id, version in found if version == config_version and isinstance(log_id, UUID)}
