"""``SqlStorage``: the contract on a SQL database, one transaction for each call.

What is an engine's own is in ``fiberstore.duckdb`` and ``fiberstore.postgresql``: how it is opened, which
connection a call gets, and what keeps it from others.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, NoReturn, Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from fiberstore.errors import StorageClosedError
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, StoredLog
from fiberstore.repositories.access import CallSessions
from fiberstore.repositories.batches import StoreMethods, Transaction
from fiberstore.repositories.retention import Pruning
from fiberstore.sql import bulk
from fiberstore.sql.connection import Lock
from fiberstore.sql.prepared import CallSession, connection_of
from fiberstore.sql.revisions import is_newest
from fiberstore.sql.rows import MODELS
from fiberstore.sql.support import BackendSupport
from fiberstore.sql.translate import translate_errors
from fiberstore.telemetry import Call, StorageStats, Telemetry

__all__ = ["SqlStorage", "Transaction"]


if TYPE_CHECKING:
    from fiberstore.exchange.schemas import Kind


class SqlStorage(StoreMethods, Pruning):
    """A storage in one SQL database; ``Storage`` describes the methods.

    Attributes:
        engine: The SQLAlchemy engine.
        config_version: What a ``LogRecord`` is stamped with.
    """

    _support: ClassVar[BackendSupport]
    _sessions: CallSessions

    def __init__(self, engine: sa.Engine, config_version: int, telemetry: Telemetry) -> None:
        self.engine = engine
        self.config_version = config_version
        # For repositories on sessions of the engine.
        engine.dialect.__dict__["config_version"] = config_version
        self._telemetry = telemetry
        self._sessions = CallSessions(self._connect, self._support, telemetry, config_version)

    @abstractmethod
    def _connect(self, lock: Lock = Lock.NOTHING) -> AbstractContextManager[CallSession]:
        """Give a session on a connection in AUTOCOMMIT isolation; translate errors on the way to it.

        Args:
            lock: Lock of the statements of the block.
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
        """Return counts since the storage was opened: calls, rows, conflicts, WAL checkpoints."""
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
        with self._telemetry.running("init_schema"), translate_errors():
            if is_newest(self.engine):
                return
            from fiberstore.sql import migrate

            migrate.upgrade(self.engine, self._before_migrations)

    def import_logs(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self._import("import_logs", path, StoredLog, on_rows)

    def import_fibers(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self._import("import_fibers", path, FiberRecord, on_rows)

    def import_memberships(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self._import("import_memberships", path, FiberMembership, on_rows)

    def import_keys(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        return self._import("import_keys", path, FiberKey, on_rows)

    def _import(
        self, method: str, path: str | Path, kind: "Kind", on_rows: Callable[[int], None] | None
    ) -> int:
        """Write the batches of files, which are read again after a conflict."""
        from fiberstore.exchange import Stamp, read_records

        stamp = Stamp(datetime.now(UTC), self.config_version)
        return self._sessions.write_batches(
            method,
            lambda: read_records(path, kind, stamp, on_rows=on_rows),
            lambda session, batch: bulk.insert_batch(session, MODELS[kind].__tablename__, batch),
        )


def refuse_connections(engine: sa.Engine) -> None:
    """Let an engine open no more connections, as it would after it was disposed."""
    event.listen(engine, "do_connect", _refuse)


def _refuse(*_arguments: object) -> None:
    raise StorageClosedError
