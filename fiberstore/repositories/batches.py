"""Logs, fibers and memberships that are written together."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache, partial

from sqlalchemy.orm import Session

from fiberstore.contract.lifecycle import BatchStorage, CheckpointMove
from fiberstore.contract.results import BatchCounts
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord
from fiberstore.repositories.access import session_access
from fiberstore.repositories.checkpoints import CheckpointRepository
from fiberstore.repositories.fibers import FiberMethods, FiberRepository, distinct_fibers
from fiberstore.repositories.logs import LogMethods, LogRepository
from fiberstore.repositories.memberships import MembershipMethods, MembershipRepository
from fiberstore.repositories.versions import VersionRepository
from fiberstore.sql.arrow import Columns, insert_new
from fiberstore.sql.bulk import (
    checked,
    distinct_logs,
    distinct_memberships,
    fiber_columns,
    log_columns,
    log_stamps,
    membership_columns,
    upsert_fibers,
)
from fiberstore.sql.connection import Lock
from fiberstore.sql.key_rows import insert_key_columns, key_columns


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

        distinct = cache(partial(distinct_logs, log_rows))

        @cache
        def columns() -> list[Columns]:
            return [
                log_columns(distinct()),
                fiber_columns(distinct_fibers(fiber_rows)),
                membership_columns(distinct_memberships(membership_rows)),
                key_columns(checked(key_rows, FiberKey)),
            ]

        def work(session: Session) -> BatchCounts:
            new_logs, new_fibers, new_memberships, new_keys = columns()
            if checkpoint is not None:
                CheckpointRepository(session).compare_and_set(
                    checkpoint.name, checkpoint.expected, checkpoint.value
                )
            new_logs = new_logs | log_stamps(distinct(), config_version, datetime.now(UTC))
            return BatchCounts(
                insert_new(session, "raw_logs", new_logs) if log_rows else 0,
                upsert_fibers(session, new_fibers),
                insert_new(session, "fiber_memberships", new_memberships) if membership_rows else 0,
                insert_key_columns(session, new_keys) if key_rows else 0,
            )

        # Appends alone need not wait for who changes rows; but a log that is stored already is not written
        # again, so nobody may delete it before the memberships are stored that hold it.
        holds = bool(log_rows and membership_rows) or bool(fiber_rows or checkpoint)
        lock = Lock.CHANGES if key_rows else Lock.DELETES if holds else Lock.NOTHING
        return self._sessions.write("write_batch", work, lock=lock, before=columns)


class Transaction(StoreMethods):
    """One unit of work: the trait and its repositories on one session, committed together or not at all.

    Attributes:
        session: The ORM session that they share.
    """

    def __init__(self, session: Session, config_version: int | None = None) -> None:
        self.session = session
        self._sessions = session_access(session, config_version)
