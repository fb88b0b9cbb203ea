"""``DuckDBStorage``: the storage trait on DuckDB, one transaction for each call."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from fiberstore import bulk
from fiberstore.backup import write_backup
from fiberstore.changes import ChangeLock, Turn
from fiberstore.compact import Calls, compact
from fiberstore.dbapi import Connection
from fiberstore.engine import DEFAULT_POOL_SIZE, check_seconds, create_engine
from fiberstore.errors import ConflictError, DatabaseError, StorageLockedError, translate_errors
from fiberstore.lifecycle import (
    DEFAULT_STEP_ROWS,
    BatchCounts,
    CheckpointMove,
    Compacted,
    LifecycleStorage,
    Merged,
    Pruned,
    Upserted,
)
from fiberstore.process import IN_MEMORY, is_inherited
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog, check_config_version
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
from fiberstore.storage import DEFAULT_LIMIT
from fiberstore.telemetry import DEFAULT_SLOW_CALL_S, Call, RunningCall, StorageStats, Telemetry
from fiberstore.where import Condition

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


class DuckDBStorage(LifecycleStorage):
    """A storage in one DuckDB database.

    Use it as a context manager, or call ``close()``. ``Storage`` describes the methods.

    Calls that change fibers wait for one another, because DuckDB would lose one of two such changes without
    an error; everything else runs side by side. The same holds for sessions on ``engine``: one that has read
    before it changes or deletes rows fails with a conflict if rows were changed in between. A long iterator
    that is written holds one of the connections until it ends. An import that meets a conflict reads its
    files again, and tells ``on_rows`` of them again; one that has run for 10 s by then fails.

    Args:
        target: A path, a ``duckdb:///`` URL (its query may hold DuckDB settings), or ``":memory:"`` for a
            database that ends with the storage.
        config_version: What a ``LogRecord`` is stamped with, 0 to 2**64 - 1.
        read_only: Open an existing file for reading only.
        pool_size: Connections at most, >= 1, and one more for changes; as many calls run side by side.
        lock_timeout_s: Seconds to wait, >= 0, while another process holds the file. Default: none.
        slow_call_s: From how many seconds on, >= 0, the logger ``fiberstore.telemetry`` warns of a call.

    Attributes:
        engine: The SQLAlchemy engine, see ``fiberstore.create_engine``.
        config_version: As given.

    Raises:
        StorageLockedError: Another process holds the file, and has not let it go in time.
        DatabaseError: The file cannot be opened, or is no DuckDB database.
        ValueError: An argument is out of bounds.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        config_version: int = 0,
        read_only: bool = False,
        pool_size: int = DEFAULT_POOL_SIZE,
        lock_timeout_s: float = 0.0,
        slow_call_s: float = DEFAULT_SLOW_CALL_S,
    ) -> None:
        check_config_version(config_version)
        check_seconds("lock_timeout_s", lock_timeout_s)
        check_seconds("slow_call_s", slow_call_s)
        self.config_version = config_version
        self.engine = create_engine(target, read_only=read_only, pool_size=pool_size)
        database = self.engine.url.database or ""
        self._telemetry = Telemetry(
            slow_call_s, None if database.startswith(IN_MEMORY) else f"{database}.wal"
        )
        self._calls = Calls()
        # Who holds the change lock never waits for a connection that one who waits for the lock may hold.
        self._change_pool = self.engine.pool.recreate()
        event.listen(self.engine, "engine_disposed", self._renew_change_pool)
        self._open(lock_timeout_s)  # what is wrong with the file is said now, not at the first call

    def close(self) -> None:
        """Close every connection; the storage cannot be used afterwards. Call it when no call runs."""
        event.listen(self.engine, "do_connect", _refuse)  # or SQLAlchemy would open the file again
        self.engine.dispose()

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

        An ``Exception`` of the hook is logged and changes nothing; what it waits for, the caller waits for.
        ``fiberstore.otel.instrument`` is such a hook.
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
        with self._telemetry.running("transaction") as call, self._calls.running():
            with translate_errors(), self._turn() as turn:
                bound = sa.Connection(self.engine, self._change_pool.connect())
                connection = cast("Connection", bound.connection.dbapi_connection)
                connection.take_over(turn)
            before = connection.rows_written
            with bound, Session(bound, close_resets_only=False) as session:  # of no use after the block
                yield Transaction(session, self.config_version)
                with translate_errors():
                    session.commit()
                call.rows_written = connection.rows_written - before

    def init_schema(self) -> None:
        """See ``Storage.init_schema``."""
        from fiberstore import schema

        with self._telemetry.running("init_schema"), translate_errors():
            schema.upgrade(self.engine)

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the whole database, as it is at this moment, into a new file, while others read and write.

        The file has its name only once it is whole and on disk. It holds an application's own tables too, and
        indexes that are built anew. An application that has set ``enable_external_access=false`` cannot.

        Args:
            target: Path of a file that does not exist yet.

        Raises:
            DatabaseError: The target exists, its folder does not, or the copy failed; then there is no copy.
        """
        with self._reading("backup") as connection:
            write_backup(connection, target)

    @property
    def logs(self) -> SqlLogs:
        """See ``QueryStorage.logs``."""
        return SqlLogs(self._reading, self._changing)

    @property
    def fibers(self) -> SqlFibers:
        """See ``QueryStorage.fibers``."""
        return SqlFibers(self._reading, self._changing)

    @property
    def memberships(self) -> SqlMemberships:
        """See ``QueryStorage.memberships``."""
        return SqlMemberships(self._reading, self._changing)

    @property
    def checkpoints(self) -> SqlCheckpoints:
        """See ``LifecycleStorage.checkpoints``."""
        return SqlCheckpoints(self._reading, self._changing)

    @property
    def versions(self) -> SqlVersions:
        """See ``LifecycleStorage.versions``."""
        return SqlVersions(self._reading, self._changing)

    def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        """See ``LifecycleStorage.write_batch``."""
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
        holds = bool(log_rows and membership_rows)
        return self._changing("write_batch", work, changes=holds or bool(fiber_rows or checkpoint))

    def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """See ``LifecycleStorage.write_fibers``."""
        rows = list(fibers)
        return self._write("write_fibers", lambda connection: FiberRepository(connection).write_many(rows))

    def upsert_fibers(self, fibers: Iterable[FiberRecord]) -> Upserted:
        """See ``LifecycleStorage.upsert_fibers``."""
        rows = list(fibers)
        return self._changing("upsert_fibers", lambda session: FiberRepository(session).upsert_many(rows))

    def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        """See ``LifecycleStorage.merge_fibers``."""
        return self._changing("merge_fibers", lambda session: FiberRepository(session).merge(survivors))

    def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """See ``LifecycleStorage.resolve_fibers``."""
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
        """See ``LifecycleStorage.prune``."""
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

    def compact(self) -> Compacted:
        """See ``LifecycleStorage.compact``."""
        with self._telemetry.running("compact"):
            return compact(self.engine, self._change_pool, self._calls)

    def import_logs(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """See ``QueryStorage.import_logs``."""
        return self._import("import_logs", path, StoredLog, "raw_logs", on_rows)

    def import_fibers(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """See ``QueryStorage.import_fibers``."""
        return self._import("import_fibers", path, FiberRecord, "fibers", on_rows)

    def import_memberships(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """See ``QueryStorage.import_memberships``."""
        return self._import("import_memberships", path, FiberMembership, "fiber_memberships", on_rows)

    def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """See ``Storage.write_logs``."""
        return self._write_rows(
            "write_logs",
            logs,
            lambda connection, rows: LogRepository(connection, config_version=self.config_version).write(
                rows
            ),
        )

    def get_log(self, log_id: UUID) -> StoredLog | None:
        """See ``Storage.get_log``."""
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
        """See ``Storage.query_logs_by_time``."""
        with self._reading("query_logs_by_time") as connection:
            return LogRepository(connection).query_by_time(start, end, limit, offset, after=after)

    def write_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.write_fiber``."""
        self._write("write_fiber", lambda connection: FiberRepository(connection).write(fiber))

    def update_fiber(self, fiber: FiberRecord) -> None:
        """See ``Storage.update_fiber``."""
        self._write(
            "update_fiber", lambda connection: FiberRepository(connection).update(fiber), changes=True
        )

    def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """See ``Storage.get_fiber``."""
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
        """See ``Storage.query_fibers_by_type``."""
        with self._reading("query_fibers_by_type") as connection:
            return FiberRepository(connection).query_by_type(fiber_type, limit, offset, after=after)

    def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """See ``Storage.write_memberships``."""
        return self._write_rows(
            "write_memberships",
            memberships,
            lambda connection, rows: MembershipRepository(connection).write(rows),
        )

    def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """See ``Storage.get_log_fibers``."""
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
        """See ``Storage.get_fiber_logs``."""
        with self._reading("get_fiber_logs") as connection:
            return MembershipRepository(connection).logs_of(fiber_id, limit, offset, after=after)

    def _open(self, lock_timeout_s: float) -> None:
        deadline, delays_s = time.monotonic() + lock_timeout_s, _delays_s()
        while True:
            try:
                with translate_errors(), self.engine.connect():
                    return
            except StorageLockedError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(next(delays_s))

    def _renew_change_pool(self, _engine: sa.Engine) -> None:
        pool, self._change_pool = self._change_pool, self._change_pool.recreate()
        if not is_inherited(self.engine.url.database or ""):  # the locks of such a pool may be held for ever
            pool.dispose()

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

    def _write(self, method: str, work: Callable[[Connection], T], *, changes: bool = False) -> T:
        """Run the work, again and again while it conflicts, up to ``RETRY_TIMEOUT_S``."""
        deadline, delays_s = time.monotonic() + RETRY_TIMEOUT_S, _delays_s()
        with self._telemetry.running(method) as call:
            while True:
                try:
                    with self._connection(call, changes=changes) as connection:
                        return work(connection)
                except ConflictError:
                    if time.monotonic() >= deadline:
                        raise
                call.retries += 1
                _logger.info("%s met a conflict and is run again (%d)", method, call.retries)
                time.sleep(next(delays_s))

    def _changing(self, method: str, work: Callable[[Session | Connection], T], *, changes: bool = True) -> T:
        """Do something in one transaction, again and again while it conflicts."""

        def in_one_transaction(connection: Connection) -> T:
            with translate_errors():
                connection.begin()
                result = work(connection)
                connection.commit()
            return result

        return self._write(method, in_one_transaction, changes=changes)

    @contextmanager
    def _reading(self, method: str | None) -> Iterator[Connection]:
        """Give a connection to a call, or without a name to a stream, whose time is that of its reader."""
        running = nullcontext() if method is None else self._telemetry.running(method)
        with running as call, self._connection(call) as connection:
            yield connection

    @contextmanager
    def _connection(self, call: RunningCall | None, *, changes: bool = False) -> Iterator[Connection]:
        """Give a connection of the pool, on which every statement is a transaction of its own.

        That saves a session, a BEGIN and a ROLLBACK, which together take as long as a read by key.
        """
        with self._calls.running():
            with translate_errors(), self._turn() if changes else nullcontext() as turn:
                pooled = self._change_pool.connect() if changes else self.engine.raw_connection()
                connection = cast("Connection", pooled.dbapi_connection)
                if turn is not None:
                    connection.take_over(turn)
            before = connection.rows_written
            try:
                yield connection
                if call is not None:
                    call.rows_written = connection.rows_written - before
            finally:
                pooled.close()

    @contextmanager
    def _turn(self) -> Iterator[Turn]:
        """Wait for the right to change rows, for the block to hand it to a connection.

        One waits before taking a connection, so that those who wait leave the pool to others.
        """
        turn = ChangeLock.of(self.engine.url.database or "").acquire()
        try:
            yield turn
        except BaseException:
            turn.end(changed=False)
            raise


def _write_in_one_transaction(
    connection: Connection, batches: Iterable[T], write: Callable[[Connection, T], int]
) -> int:
    written = 0
    with translate_errors():
        connection.begin()
    for batch in batches:
        written += write(connection, batch)
    with translate_errors():
        connection.commit()
    return written


def _delays_s() -> Iterator[float]:
    longest_s = _FIRST_DELAY_S
    while True:
        yield random.uniform(0, longest_s)  # noqa: S311  # jitter, no secret
        longest_s = min(2 * longest_s, _LONGEST_DELAY_S)


def _refuse(*_arguments: object) -> None:
    raise DatabaseError("the storage is closed")
