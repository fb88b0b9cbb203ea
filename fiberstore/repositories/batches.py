"""Logs, fibers and memberships that are written together."""

from collections.abc import Iterable

from sqlalchemy.orm import Session

from fiberstore.contract.lifecycle import BatchStorage, CheckpointMove
from fiberstore.contract.results import BatchCounts
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord
from fiberstore.repositories.access import session_access
from fiberstore.repositories.checkpoints import CheckpointRepository
from fiberstore.repositories.fibers import FiberMethods, FiberRepository
from fiberstore.repositories.logs import LogMethods, LogRepository
from fiberstore.repositories.memberships import MembershipMethods, MembershipRepository
from fiberstore.repositories.versions import VersionRepository
from fiberstore.sql.connection import Lock


class StoreMethods(LogMethods, FiberMethods, MembershipMethods, BatchStorage):
    """The methods of the trait that a storage and a unit of work share, through sessions.

    Each repository has the methods of its own part from the same class.
    """

    @property
    def logs(self) -> LogRepository:
        """The logs."""
        return LogRepository(self._sessions)

    @property
    def fibers(self) -> FiberRepository:
        """The fibers."""
        return FiberRepository(self._sessions)

    @property
    def memberships(self) -> MembershipRepository:
        """Which log belongs to which fiber."""
        return MembershipRepository(self._sessions)

    @property
    def checkpoints(self) -> CheckpointRepository:
        """The checkpoints."""
        return CheckpointRepository(self._sessions)

    @property
    def versions(self) -> VersionRepository:
        """The config versions."""
        return VersionRepository(self._sessions)

    def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        keys: Iterable[FiberKey] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        log_rows, fiber_rows, membership_rows = list(logs), list(fibers), list(memberships)
        key_rows = list(keys)
        if not isinstance(checkpoint, CheckpointMove | None):
            raise TypeError(f"checkpoint must be a CheckpointMove, got {checkpoint!r:.200}")
        config_version = self._sessions.config_version

        def work(session: Session) -> BatchCounts:
            unit = Transaction(session, config_version)
            if checkpoint is not None:
                unit.checkpoints.compare_and_set(checkpoint.name, checkpoint.expected, checkpoint.value)
            return BatchCounts(
                unit.write_logs(log_rows),
                unit.upsert_fibers(fiber_rows),
                unit.write_memberships(membership_rows),
                unit.write_keys(key_rows),
            )

        # Appends alone need not wait for who changes rows; but a log that is stored already is not written
        # again, so nobody may delete it before the memberships are stored that hold it.
        holds = bool(log_rows and membership_rows) or bool(fiber_rows or checkpoint)
        lock = Lock.CHANGES if key_rows else Lock.DELETES if holds else Lock.NOTHING
        return self._sessions.write("write_batch", work, lock=lock)


class Transaction(StoreMethods):
    """One unit of work: the trait and its repositories on one session, committed together or not at all.

    Attributes:
        session: The ORM session that they share.
    """

    def __init__(self, session: Session, config_version: int | None = None) -> None:
        self.session = session
        self._sessions = session_access(session, config_version)
