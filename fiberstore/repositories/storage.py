"""``SqlStorage``: the contract on a SQL database, one transaction for each call.

What is an engine's own is in ``fiberstore.duckdb`` and ``fiberstore.postgresql``: how it is opened, which
connection a call gets, and what keeps it from others.
"""

import logging
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from fiberstore.contract.conditions import Condition
from fiberstore.contract.lifecycle import (
    DEFAULT_STEP_ROWS,
    BatchCounts,
    CheckpointMove,
    LifecycleStorage,
    Merged,
    Pruned,
    Upserted,
)
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import ConflictError, StorageClosedError
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.repositories import (
    CheckpointRepository,
    FiberRepository,
    LogRepository,
    MembershipRepository,
    VersionRepository,
    retention,
)
from fiberstore.repositories.checkpoints import SqlCheckpoints
from fiberstore.repositories.fiber_queries import SqlFibers
from fiberstore.repositories.log_queries import SqlLogs
from fiberstore.repositories.membership_queries import SqlMemberships
from fiberstore.repositories.versions import SqlVersions
from fiberstore.sql import bulk
from fiberstore.sql.connection import Connection, Lock
from fiberstore.sql.prepared import connection_of
from fiberstore.sql.translate import translate_errors
from fiberstore.telemetry import Call, RunningCall, StorageStats, Telemetry

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R")
T = TypeVar("T")

BATCH_ROWS = 100_000
RETRY_TIMEOUT_S = 10.0
_FIRST_DELAY_S = 0.001
_LONGEST_DELAY_S = 0.1

_logger = logging.getLogger(__name__)


class Transaction:
    """One unit of work: repositories on one session, committed together or not at all.

    Attributes:
        session: The ORM session they share.
        logs: The logs.
        fibers: The fibers.
        memberships: Which log belongs to which fiber.
        checkpoints: The checkpoints.
        versions: The config versions.
    """

    def __init__(self, session: Session, config_version: int) -> None:
        self.session = session
        self.logs = LogRepository(session, config_version=config_version)
        self.fibers = FiberRepository(session)
        self.memberships = MembershipRepository(session)
        self.checkpoints = CheckpointRepository(session)
        self.versions = VersionRepository(session)


class SqlStorage(LifecycleStorage):
    """A storage in one SQL database; ``Storage`` describes the methods.

    Attributes:
        engine: The SQLAlchemy engine.
        config_version: What a ``LogRecord`` is stamped with.
    """

    engine: sa.Engine
    config_version: int
    _telemetry: Telemetry

    @abstractmethod
    def _connection(
        self, call: RunningCall | None, lock: Lock = Lock.NOTHING
    ) -> AbstractContextManager[Connection]:
        """Give a connection of the pool, on which every statement is a transaction of its own.

        Args:
            call: What is to know how many rows were written.
            lock: What the statements of the block need.
        """

    def _before_migrations(self, connection: sa.Connection) -> None:
        """Prepare the database for migrations, on a connection outside a transaction."""

    @abstractmethod
    def _bound(self) -> AbstractContextManager[sa.Connection]:
        """Give a connection for a session that may change anything; translate errors on the way to it."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection; the storage cannot be used afterwards. Call it when no call runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> NoReturn:
        raise TypeError("a storage cannot be sent to another process; open it there, when it is closed here")

    def stats(self) -> StorageStats:
        """Return what this storage has done since it was opened: calls, rows, conflicts, checkpoints."""
        return self._telemetry.stats()

    def on_call(self, hook: Callable[[Call], None]) -> None:
        """Have a hook called after each call and each ``transaction()`` block, in the thread of the call.

        A stream is one call, which ends when it is read out, closed or dropped; a tail is one for each look
        at the store. An ``Exception`` of the hook is logged and changes nothing; what it waits for, the
        caller waits for. A hook that is given twice is called once. ``fiberstore.otel.instrument`` is such a
        hook.
        """
        if not callable(hook):
            raise TypeError(f"expected a function of one Call, got {hook!r}")
        self._telemetry.add_hook(hook)

    def session(self) -> Session:
        """Return a new ORM session on the engine; the caller commits and closes it."""
        return Session(self.engine)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin a unit of work; commit it at the end of the block, roll it back if the block raises.

        It may change anything without a conflict over changed rows: it has waited until no other transaction
        changes any, and others wait for it. So keep it short, and use only its repositories inside the block:
        the storage's own methods would wait for it too. Two units that write the same new key still conflict.

        Raises:
            ConflictError: Another transaction kept the store for too long, or wrote the same new key first;
                run the block again.
        """
        with (
            self._telemetry.running("transaction") as call,
            self._bound() as bound,
            Session(bound, close_resets_only=False) as session,  # of no use after the block
        ):
            with translate_errors():
                connection = connection_of(session)
                connection.take_lock(Lock.CHANGES)
            before = connection.rows_written
            yield Transaction(session, self.config_version)
            with translate_errors():
                session.commit()
            call.rows_written = connection.rows_written - before

    def init_schema(self) -> None:
        from fiberstore.sql import migrate

        with self._telemetry.running("init_schema"), translate_errors():
            migrate.upgrade(self.engine, self._before_migrations)

    @property
    def logs(self) -> SqlLogs:
        return SqlLogs(self._reading, self._changing, self._telemetry.stream)

    @property
    def fibers(self) -> SqlFibers:
        return SqlFibers(self._reading, self._changing, self._telemetry.stream)

    @property
    def memberships(self) -> SqlMemberships:
        return SqlMemberships(self._reading, self._changing, self._telemetry.stream)

    @property
    def checkpoints(self) -> SqlCheckpoints:
        return SqlCheckpoints(self._reading, self._changing)

    @property
    def versions(self) -> SqlVersions:
        return SqlVersions(self._reading, self._changing)

    def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        log_rows, fiber_rows, membership_rows = list(logs), list(fibers), list(memberships)
        if not isinstance(checkpoint, CheckpointMove | None):
            raise TypeError(f"checkpoint must be a CheckpointMove, got {checkpoint!r:.200}")

        def work(session: Session | Connection) -> BatchCounts:
            if checkpoint is not None:
                CheckpointRepository(session).compare_and_set(
                    checkpoint.name, checkpoint.expected, checkpoint.value
                )
            return BatchCounts(
                LogRepository(session, config_version=self.config_version).write(log_rows),
                FiberRepository(session).upsert_many(fiber_rows),
                MembershipRepository(session).write(membership_rows),
            )

        # Appends alone need not wait for who changes rows; but a log that is stored already is not written
        # again, so nobody may delete it before the memberships are stored that hold it.
        holds = bool(log_rows and membership_rows) or bool(fiber_rows or checkpoint)
        return self._changing("write_batch", work, lock=Lock.DELETES if holds else Lock.NOTHING)

    def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        rows = list(fibers)
        return self._write("write_fibers", lambda connection: FiberRepository(connection).write_many(rows))

    def upsert_fibers(self, fibers: Iterable[FiberRecord]) -> Upserted:
        rows = list(fibers)
        return self._changing(
            "upsert_fibers", lambda session: FiberRepository(session).upsert_many(rows), lock=Lock.DELETES
        )

    def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        return self._changing("merge_fibers", lambda session: FiberRepository(session).merge(survivors))

    def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        with self._reading("resolve_fibers") as connection:
            return FiberRepository(connection).resolve(fiber_ids)

    def prune(
        self,
        *,
        fibers: Condition[FiberRecord] | None = None,
        logs: Condition[StoredLog] | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
        step_rows: int = DEFAULT_STEP_ROWS,
        max_steps: int | None = None,
        on_step: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        with self._telemetry.running("prune"):
            return retention.prune(
                self._reading,
                self._changing,
                fibers=fibers,
                logs=logs,
                max_bytes=max_bytes,
                dry_run=dry_run,
                step_rows=step_rows,
                max_steps=max_steps,
                on_step=on_step,
            )

    def import_logs(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self._import("import_logs", path, StoredLog, "raw_logs", on_rows)

    def import_fibers(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self._import("import_fibers", path, FiberRecord, "fibers", on_rows)

    def import_memberships(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self._import("import_memberships", path, FiberMembership, "fiber_memberships", on_rows)

    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        return self._write_rows(
            "write_logs",
            logs,
            lambda connection, rows: LogRepository(connection, config_version=self.config_version).write(
                rows
            ),
        )

    def get_log(self, log_id: UUID) -> StoredLog | None:
        with self._reading("get_log") as connection:
            return LogRepository(connection).get(log_id)

    def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        with self._reading("query_logs_by_time") as connection:
            return LogRepository(connection).query_by_time(start, end, limit, offset, after=after)

    def write_fiber(self, fiber: FiberRecord) -> None:
        self._write("write_fiber", lambda connection: FiberRepository(connection).write(fiber))

    def update_fiber(self, fiber: FiberRecord) -> None:
        self._write(
            "update_fiber", lambda connection: FiberRepository(connection).update(fiber), lock=Lock.CHANGES
        )

    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        with self._reading("get_fiber") as connection:
            return FiberRepository(connection).get(fiber_id)

    def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        with self._reading("query_fibers_by_type") as connection:
            return FiberRepository(connection).query_by_type(fiber_type, limit, offset, after=after)

    def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        return self._write_rows(
            "write_memberships",
            memberships,
            lambda connection, rows: MembershipRepository(connection).write(rows),
        )

    def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        with self._reading("get_log_fibers") as connection:
            return MembershipRepository(connection).fibers_of(log_id)

    def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        with self._reading("get_fiber_logs") as connection:
            return MembershipRepository(connection).logs_of(fiber_id, limit, offset, after=after)

    def _write_rows(
        self, method: str, records: Iterable[R], write: Callable[[Connection, list[R]], int]
    ) -> int:
        """Write all in one statement, or what a long iterator gives in one transaction, batch by batch."""
        rest = iter(records)
        is_collection = rest is not records
        batch = list(rest if is_collection else islice(rest, BATCH_ROWS))
        if is_collection or len(batch) < BATCH_ROWS:
            return self._write(method, lambda connection: write(connection, batch))
        batches = chain([batch], iter(lambda: list(islice(rest, BATCH_ROWS)), []))
        return self._write_batches(method, batches, write)

    def _write_batches(self, method: str, batches: Iterable[T], write: Callable[[Connection, T], int]) -> int:
        """Write batches of an iterator, which cannot be read again after a conflict."""
        with self._telemetry.running(method) as call, self._connection(call) as connection:
            return _write_in_one_transaction(connection, batches, write)

    def _import(
        self,
        method: str,
        path: str | Path,
        kind: type[StoredLog] | type[FiberRecord] | type[FiberMembership],
        table: str,
        on_rows: Callable[[int], None] | None,
    ) -> int:
        """Write the batches of files, which are read again after a conflict."""
        from fiberstore.exchange import Stamp, read_records

        stamp = Stamp(datetime.now(UTC), self.config_version)

        def write(connection: Connection, batch: "pa.RecordBatch") -> int:
            with translate_errors():
                return bulk.insert_batch(connection, table, batch)

        def work(connection: Connection) -> int:
            return _write_in_one_transaction(
                connection, read_records(path, kind, stamp, on_rows=on_rows), write
            )

        return self._write(method, work)

    def _write(self, method: str, work: Callable[[Connection], T], *, lock: Lock = Lock.NOTHING) -> T:
        """Run the work, again and again while it conflicts, up to ``RETRY_TIMEOUT_S``."""
        deadline, waits_s = time.monotonic() + RETRY_TIMEOUT_S, delays_s()
        with self._telemetry.running(method) as call:
            while True:
                try:
                    with self._connection(call, lock) as connection:
                        return work(connection)
                except ConflictError:
                    if time.monotonic() >= deadline:
                        raise
                call.retries += 1
                _logger.info("%s met a conflict and is run again (%d)", method, call.retries)
                time.sleep(next(waits_s))

    def _changing(
        self, method: str, work: Callable[[Session | Connection], T], *, lock: Lock = Lock.CHANGES
    ) -> T:
        """Do something in one transaction, again and again while it conflicts."""

        def in_one_transaction(connection: Connection) -> T:
            with translate_errors():
                connection.begin()
                connection.take_lock(lock)
                result = work(connection)
                connection.commit()
            return result

        return self._write(method, in_one_transaction, lock=lock)

    @contextmanager
    def _reading(self, method: str | None) -> Iterator[Connection]:
        """Give a connection to a call, or without a name to a part of a call that is counted already."""
        running = nullcontext() if method is None else self._telemetry.running(method)
        with running as call, self._connection(call) as connection:
            yield connection


def _write_in_one_transaction(
    connection: Connection, batches: Iterable[T], write: Callable[[Connection, T], int]
) -> int:
    written = 0
    with translate_errors():
        connection.begin(only_appends=True)
    for batch in batches:
        written += write(connection, batch)
    with translate_errors():
        connection.commit()
    return written


def delays_s() -> Iterator[float]:
    """Return how long to wait before each further try: jittered, and longer each time, up to 0.1 s."""
    longest_s = _FIRST_DELAY_S
    while True:
        yield random.uniform(0, longest_s)  # noqa: S311  # jitter, no secret
        longest_s = min(2 * longest_s, _LONGEST_DELAY_S)


def refuse_connections(engine: sa.Engine) -> None:
    """Let an engine open no more connections, as it would after it was disposed."""
    event.listen(engine, "do_connect", _refuse)


def _refuse(*_arguments: object) -> None:
    raise StorageClosedError
