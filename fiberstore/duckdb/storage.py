"""``DuckDBStorage`` and ``AsyncDuckDBStorage``: the storage trait on DuckDB."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import PoolProxiedConnection

from fiberstore.atomic_files import remove_leftovers
from fiberstore.checks import check_config_version, check_seconds
from fiberstore.contract.results import Compacted
from fiberstore.duckdb.backup import write_backup
from fiberstore.duckdb.change_lock import ChangeLock
from fiberstore.duckdb.compact import Calls, compact
from fiberstore.duckdb.engine import create_engine
from fiberstore.duckdb.rebuild import drop_leftovers
from fiberstore.duckdb.support import SUPPORT
from fiberstore.errors import StorageLockedError
from fiberstore.ingest.storage import AsyncCorrelatingStorage, CorrelatingStorage
from fiberstore.repositories.access import delays_s
from fiberstore.repositories.storage import refuse_connections
from fiberstore.sql.connection import Lock
from fiberstore.sql.engine import DEFAULT_POOL_SIZE, IN_MEMORY
from fiberstore.sql.prepared import CallSession, connection_of
from fiberstore.sql.translate import translate_errors
from fiberstore.telemetry import DEFAULT_SLOW_CALL_S, Telemetry

if TYPE_CHECKING:
    from fiberstore.duckdb.connection import DuckDBConnection
    from fiberstore.sql.pool import StorePool

T = TypeVar("T")


class DuckDBStorage(CorrelatingStorage):
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

    _support = SUPPORT

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
        engine = create_engine(target, read_only=read_only, pool_size=pool_size)
        database = engine.url.database or ""
        wal = None if database.startswith(IN_MEMORY) else f"{database}.wal"
        super().__init__(engine, config_version, Telemetry(slow_call_s, wal))
        self._calls = Calls()
        # Who holds the change lock never waits for a connection that one who waits for the lock may hold.
        self._change_pool = self._new_change_pool()
        self._pid = os.getpid()
        event.listen(self.engine, "engine_disposed", self._renew_change_pool)
        self._open(lock_timeout_s)  # what is wrong with the file is said now, not at the first call
        if not read_only and not database.startswith(IN_MEMORY):
            remove_leftovers(Path(database).parent)
            with self._sessions.read(None) as session:
                drop_leftovers(session)

    def close(self) -> None:
        refuse_connections(self.engine)  # or SQLAlchemy would open the file again
        self.engine.dispose()

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the whole database, as it is at this moment, into a new file, while others read and write.

        The file has its name only once it is on disk, opens, and has the rows of the snapshot. It holds an
        application's own tables too, and indexes that are built anew. An application that has set
        ``enable_external_access=false`` cannot.

        Args:
            target: Path of a file that does not exist yet.

        Raises:
            DatabaseError: The target exists, its folder does not, or the copy failed; then there is no copy.
        """
        with self._sessions.read("backup") as session:
            write_backup(cast("DuckDBConnection", connection_of(session)), target)

    def compact(self) -> Compacted:
        with self._telemetry.running("compact"):
            return compact(self.engine, lambda: self._change_pool, self._calls)

    def _before_migrations(self, connection: sa.Connection) -> None:
        from fiberstore.duckdb.migrate import back_up_before_rewrite

        back_up_before_rewrite(connection)

    def _open(self, lock_timeout_s: float) -> None:
        deadline, waits_s = time.monotonic() + lock_timeout_s, delays_s()
        while True:
            try:
                with translate_errors(), self.engine.connect():
                    return
            except StorageLockedError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(next(waits_s))

    def _new_change_pool(self) -> "StorePool":
        # Without a bound: one at a time has the change lock, and each call takes one connection more at most.
        return cast("StorePool", self.engine.pool).sibling(pool_size=sys.maxsize)

    def _renew_change_pool(self, _engine: sa.Engine) -> None:
        pool, self._change_pool = self._change_pool, self._new_change_pool()
        if self._pid == os.getpid():  # the connections of a forked child's pool are its parent's
            pool.dispose()
        self._pid = os.getpid()

    @contextmanager
    def _bound(self) -> Iterator[sa.Connection]:
        with self._calls.running(), self._take(sa.Connection, Lock.CHANGES) as bound:
            yield bound

    @contextmanager
    def _connect(self, lock: Lock = Lock.NOTHING) -> Iterator[CallSession]:
        with self._calls.running(), self._take(CallSession, lock) as session:
            cast("DuckDBConnection", session.store_connection).autocommit = True
            yield session

    def _take(self, kind: Callable[[sa.Engine, PoolProxiedConnection], T], lock: Lock) -> T:
        """Take a connection, which has the ``ChangeLock`` until its transaction ends if it changes rows.

        One waits for the lock before taking a connection, so that those who wait leave the pool to others.
        """
        with translate_errors():
            if lock is Lock.NOTHING:
                return kind(self.engine, self.engine.raw_connection())
            if lock is Lock.BESIDE:
                return kind(self.engine, self._change_pool.connect())
            hold = ChangeLock.of(self.engine.url.database or "").acquire()
            try:
                pooled = self._change_pool.connect()
                cast("DuckDBConnection", pooled.dbapi_connection).take_over(hold)
                # Here, too, the traceback of an interrupt would hold the lock.
                return kind(self.engine, pooled)
            except BaseException:
                hold.end(changed=False)
                raise


class AsyncDuckDBStorage(AsyncCorrelatingStorage):
    """``DuckDBStorage`` in coroutines: same arguments, same contract, for use in one event loop.

    ``AsyncSqlStorage`` says what becomes of calls that are cancelled.

    Opening happens in the constructor, in the calling thread; it is quick unless the write-ahead log of a
    killed process has to be replayed.

    Args:
        target: A path, a ``duckdb:///`` URL, or ``":memory:"``; see ``DuckDBStorage``.
        config_version: What a ``LogRecord`` is stamped with, 0 to 2**64 - 1.
        read_only: Open an existing file for reading only.
        pool_size: Connections and threads, >= 1; as many calls run side by side.
        lock_timeout_s: Seconds to wait, >= 0, while another process holds the file; the loop waits too.
        slow_call_s: From how many seconds on, >= 0, the logger ``fiberstore.telemetry`` warns of a call.

    Raises:
        StorageLockedError: Another process holds the file, and has not let it go in time.
        DatabaseError: The file cannot be opened, or is no DuckDB database.
        ValueError: An argument is out of bounds.
    """

    _wrapped: DuckDBStorage

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
        storage = DuckDBStorage(
            target,
            config_version=config_version,
            read_only=read_only,
            pool_size=pool_size,
            lock_timeout_s=lock_timeout_s,
            slow_call_s=slow_call_s,
        )
        super().__init__(storage, pool_size)

    async def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the whole database, as it is at this moment, into a new file, while others read and write.

        The file has its name only once it is whole and on disk. It holds an application's own tables too, and
        indexes that are built anew. An application that has set ``enable_external_access=false`` cannot.

        Args:
            target: Path of a file that does not exist yet.

        Raises:
            DatabaseError: The target exists, its folder does not, or the copy failed; then there is no copy.
        """
        await self._threads.run(self._wrapped.backup, target)
