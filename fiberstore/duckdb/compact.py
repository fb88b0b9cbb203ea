"""A database file written anew, without what was deleted from it.

A copy is written while others read and write. Then they are kept out for the moment in which it gets what has
come since (see ``catch_up``) and takes the place of the file. If too much of it has changed, another copy is
written, and the last one while they are kept out; so is the first one of a database that has something of an
application.

The rename of the copy to the store's name is the commit point: a crash before it leaves the old file whole,
after it the new one. What a kill leaves is in a hidden folder, which the next writer removes.

- The copy is verified before (see ``backup``). The old file is kept, without a name that anybody opens, until
  the new one has been opened by its name.
- The write-ahead log of the old file is gone before the rename, because everything of it is in the file. So
  it never lies beside the new one, which it does not belong to.
- Nobody can use the old file after the rename. DuckDB locks it until then; who has opened it just before, and
  gets the lock when it comes free, would take the log of the new file for its own. So the old file is spoilt
  first. Another process is told that it is no database, and looks once more (see ``fork_guard.opened``).
- DuckDB's instance does nothing more after a WAL checkpoint that fails, as on a full disk. Beside others
  there is one only if there is room for it; the last one fails while nobody else has the instance.
- Nothing is changed in DuckDB's instance before the rename, and no Ctrl-C comes between the steps (see
  ``shielding``).
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, cast

import duckdb
import sqlalchemy as sa
from sqlalchemy import event

from fiberstore.atomic_files import hidden_folder, sync
from fiberstore.contract.results import Compacted
from fiberstore.duckdb import fork_guard
from fiberstore.duckdb.backup import Copy, refuse_logs, row_counts, verify
from fiberstore.duckdb.catch_up import Snapshot, catch_up, schema_of
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.shielding import Interruption, shielded
from fiberstore.duckdb.sizes import has_room
from fiberstore.errors import DatabaseError, StorageClosedError, StorageError, StorageLockedError
from fiberstore.forks import renew_in_child
from fiberstore.sql.engine import IN_MEMORY
from fiberstore.sql.holds import Hold, Registry, wait_for_all
from fiberstore.sql.translate import first_line, translate_errors

if TYPE_CHECKING:
    from fiberstore.sql.pool import StorePool

BUSY_TIMEOUT_S = 5.0
# How long all wait for those who use the file: less than the second that a call may keep others waiting.
_HOLD_S = 0.5
_PAUSE_S = 0.005
# Copies that are written while others go on.
_COPIES_BESIDE = 2
_IN_USE = "compact() needs the file for itself, but "
_A_CALL = "a call, a stream or a transaction() of this storage is running; end it first"
_A_SESSION = "a session or a connection of this storage's engine is open; close it first"
_ANOTHER_STORAGE = "another storage, engine or session of this process has it open"
_OLD = "fiberstore_replaced"  # marks DuckDB's instance of the old file
_MAGIC, _MAGIC_OFFSET = b"DUCK", 8

_logger = logging.getLogger(__name__)


class _Call(Hold):
    """A call of a storage.

    Attributes:
        thread: Number of its thread.
    """

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class _InUseError(DatabaseError):
    """Others use the file."""


class Calls:
    """The calls of a storage that run: a compaction waits for their end, and new ones for its own.

    Neither outlives the block that it runs in, whatever interrupts that (see ``fiberstore.sql.holds``). A
    call within a call does not wait, or the compaction would wait for it in vain.
    """

    _running: Registry[_Call]
    _compactions: Registry[Hold]
    _holding_up: Registry[Hold]

    def __init__(self) -> None:
        self.renew()
        renew_in_child(self, Calls.renew)

    def renew(self) -> None:
        """Begin anew; in a forked child, where the threads of the calls do not exist."""
        self._running, self._compactions, self._holding_up = Registry(), Registry(), Registry()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note a call, for as long as the block takes, which begins when nothing holds it up."""
        call: _Call | None = None
        try:
            while call is None:
                call = self._running.add(_Call())
                if (holding_up := self._holding_up.alive()) and not self._is_within_another(call):
                    call = None
                    wait_for_all(holding_up, math.inf)
            yield
        finally:
            call = None

    def _is_within_another(self, call: _Call) -> bool:
        return len([thread for thread in self._threads() if thread == call.thread]) > 1

    def _threads(self) -> list[int | None]:
        return [getattr(call(), "thread", None) for call in self._running.alive()]

    def has_one_of(self, thread: int) -> bool:
        """Tell whether a call of a thread is running."""
        return thread in self._threads()

    @contextmanager
    def compacting(self) -> Iterator[None]:
        """Note a compaction, for as long as the block takes.

        Raises:
            DatabaseError: Another one runs.
        """
        compaction: Hold | None = None
        try:
            compaction = self._compactions.add(Hold())
            if self._compactions.alive()[0]() is not compaction:
                raise DatabaseError("the file is being compacted already")
            yield
        finally:
            compaction = None

    @contextmanager
    def held_up(self, deadline: float, interruption: Interruption) -> Iterator[None]:
        """Let no call run until the block ends.

        Raises:
            _InUseError: A call is still running at the deadline.
            KeyboardInterrupt: The wait was interrupted.
        """
        holding_up: Hold | None = None
        try:
            holding_up = self._holding_up.add(Hold())
            _wait(
                lambda: None if wait_for_all(self._running.alive(), time.monotonic() + _PAUSE_S) else _A_CALL,
                deadline,
                interruption,
            )
            yield
        finally:
            del holding_up  # the traceback of an error would keep it


def compact(engine: sa.Engine, change_pool: Callable[[], sa.Pool], calls: Calls) -> Compacted:
    """Write the database file anew, and replace the old one by it.

    Args:
        engine: Engine of the storage.
        change_pool: Gives the pool of connections for changes, which is another once the engine is disposed.
        calls: Running calls of the storage.

    Returns:
        Sizes of the old and the new file; zeros in memory.

    Raises:
        DatabaseError: Others kept using the file, or it cannot be replaced; the old file stays.
    """
    if (engine.url.database or "").startswith(IN_MEMORY):
        return Compacted(0, 0)
    compaction = _Compaction(engine, change_pool, calls, threading.get_ident())
    compacted = shielded(compaction.run)
    _logger.info("compacted from %d to %d bytes", compacted.bytes_before, compacted.bytes_after)
    return compacted


class _Compaction:
    """One call of ``compact``."""

    _interruption: Interruption

    def __init__(
        self, engine: sa.Engine, change_pool: Callable[[], sa.Pool], calls: Calls, thread: int
    ) -> None:
        self._engine = engine
        self._change_pool = change_pool
        self._calls = calls
        self._thread = thread
        self._path = Path(engine.url.database or "")
        self._pools: set[StorePool] = set()  # of which a connection may be in use

    def run(self, interruption: Interruption) -> Compacted:
        """Write copies until one is good, and replace the file by it."""
        self._interruption = interruption
        try:
            with (
                self._calls.compacting(),
                hidden_folder(self._path.parent) as folder,
                translate_errors(),
                self._own_connection() as connection,
            ):
                _refuse_read_only(connection, self._path)
                _refuse_second_name(self._path)
                self._wait_for_who_may_stay(connection)
                for _ in range(_COPIES_BESIDE):
                    if not _is_all_ours(connection):
                        break
                    if (compacted := self._from_copy_beside(connection, folder)) is not None:
                        return compacted
                    _logger.info("what had been copied was changed, so the file is copied again")
                return self._from_copy_alone(connection, folder)
        except _InUseError as error:
            raise DatabaseError(str(error)) from None
        except OSError as error:
            raise DatabaseError(f"{self._path} cannot be replaced: {error.strerror}") from error

    @contextmanager
    def _own_connection(self) -> Iterator[DuckDBConnection]:
        """Yield a connection that no pool has.

        DuckDB's lock on the file is kept all the time, and afterwards. If the block replaces the file, it
        closes the connection.
        """
        pooled = self._change_pool().connect()
        connection = cast("DuckDBConnection", pooled.dbapi_connection)
        pooled.detach()
        try:
            yield connection
        finally:
            try:
                if not connection.closed:
                    self._change_pool().connect().close()  # it is idle in the pool, and keeps the lock
            finally:
                pooled.close()

    def _from_copy_beside(self, connection: DuckDBConnection, folder: Path) -> Compacted | None:
        """Write a copy while others continue; return None if they have made it useless."""
        self._checkpoint_beside(connection)  # which may give new numbers to the rows after deleted ones
        with Copy.attached(connection, folder) as copy:
            before = copy.fill(self._interruption, Snapshot.of)
            with closing(connection.sibling()) as raw, self._interruption.calling(raw.interrupt):
                before.check(raw, copy)
            self._checkpoint_beside(connection)  # which leaves little to the one for which all wait
            with self._alone(connection) as alone:
                with closing(connection.sibling()) as raw, self._interruption.calling(raw.interrupt):
                    rows = catch_up(raw, copy, before)
                if rows is not None:
                    copy.checkpoint(self._interruption)
                    return self._replaced(connection, copy, rows, alone)
        copy.path.unlink()
        return None

    def _from_copy_alone(self, connection: DuckDBConnection, folder: Path) -> Compacted:
        """Write a copy while all others are kept out."""
        with self._alone(connection) as alone, Copy.attached(connection, folder) as copy:
            return self._replaced(connection, copy, copy.fill(self._interruption, row_counts), alone)

    @contextmanager
    def _alone(self, connection: DuckDBConnection) -> Iterator[ExitStack]:
        """Keep all others out until the block ends, calls of the storage at last.

        If those who use the file do not end within ``_HOLD_S``, all continue for as long before the next try.

        Yields:
            What keeps the others out of the file; to be closed when it may be opened again.

        Raises:
            _InUseError: Others have been using the file for ``BUSY_TIMEOUT_S``.
        """
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        # Who has a connection may need another one to end. Who opens one after the other ends only without.
        for may_open_more in cycle([True, False]):
            until = time.monotonic() + _HOLD_S
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._calls.held_up(until, self._interruption))
                    if may_open_more:
                        self._note_pools()
                        _wait(self._session, until, self._interruption)
                    keeping_out = stack.enter_context(ExitStack())
                    self._close_off(connection, keeping_out, until)
                except _InUseError:
                    if time.monotonic() >= deadline:
                        raise
                else:
                    yield keeping_out
                    return
            time.sleep(_HOLD_S)
            self._interruption.check()

    def _checkpoint_beside(self, connection: DuckDBConnection) -> None:
        """Run a WAL checkpoint, if nobody is in its way, and the disk has room for all that it might write.

        After one that fails, DuckDB's instance does nothing more for anybody.
        """
        if has_room(connection.database_key):
            with closing(connection.sibling()) as raw, suppress(duckdb.TransactionException):
                raw.execute("CHECKPOINT")

    def _close_off(self, connection: DuckDBConnection, keeping_out: ExitStack, deadline: float) -> None:
        """Close all other connections to the database; nobody opens one until ``keeping_out`` is closed."""
        self._note_pools()
        self._change_pool().connect().close()  # a storage that was closed meanwhile says so
        keeping_out.enter_context(fork_guard.closed_off(connection.database_key))
        self._engine.dispose()

        def user() -> str | None:
            for pool in self._pools:
                pool.dispose()  # of a connection that came back only now
            if _is_alone(connection):
                return None
            return self._session() or _ANOTHER_STORAGE

        _wait(user, deadline, self._interruption)

    def _session(self) -> str | None:
        return _A_SESSION if any(pool.checkedout() for pool in self._pools) else None

    def _note_pools(self) -> None:
        self._pools |= {cast("StorePool", self._engine.pool), cast("StorePool", self._change_pool())}

    def _wait_for_who_may_stay(self, connection: DuckDBConnection) -> None:
        """Wait for those who use the file and may not end before the copy has been written in vain.

        Raises:
            _InUseError: They have been using it for ``BUSY_TIMEOUT_S``.
        """
        self._note_pools()

        def user() -> str | None:
            if self._calls.has_one_of(self._thread):
                return _A_CALL
            others = fork_guard.open_handles(connection.database_key) - {connection}
            ours = sum(pool.checkedin() + pool.checkedout() for pool in self._pools)
            return _ANOTHER_STORAGE if len(others) > ours else None

        _wait(user, time.monotonic() + BUSY_TIMEOUT_S, self._interruption)

    def _replaced(
        self, connection: DuckDBConnection, copy: Copy, rows: dict[str, int], keeping_out: ExitStack
    ) -> Compacted:
        """Put a finished copy in the place of the file, and open that; see ``_alone``."""
        copy.detach()
        refuse_logs(copy.path)
        verify(copy.path, rows)
        old, number = copy.path.with_name("old"), fork_guard.file_number(connection.database_key)
        try:
            compacted = _replace(connection, self._path, copy.path, old)
        except duckdb.FatalException as error:  # DuckDB's instance does nothing more
            copy.path.unlink()  # the next one needs room to read the log
            connection.close()
            raise DatabaseError(
                f"{self._path} stays as it was, because its WAL checkpoint failed: {first_line(error)}"
            ) from error
        finally:
            if fork_guard.file_number(connection.database_key) != number:
                connection.close()
        keeping_out.close()
        _take_again(self._engine, self._path, old)
        return compacted


def _is_all_ours(connection: DuckDBConnection) -> bool:
    with closing(connection.sibling()) as raw:
        return schema_of(raw) is not None


def _is_alone(connection: DuckDBConnection) -> bool:
    """Tell whether nobody else in this process has the file open, connections of DuckDB's own included."""
    if fork_guard.open_handles(connection.database_key) != {connection}:
        return False
    with closing(connection.sibling()) as raw:
        ((count,),) = raw.execute("SELECT count FROM duckdb_connection_count()").fetchall()
    return bool(count - 1 == 1)  # without this one


def _wait(user: Callable[[], str | None], deadline: float, interruption: Interruption) -> None:
    """Wait until nobody is said to use the file."""
    while (who := user()) is not None:
        interruption.check()
        if time.monotonic() >= deadline:
            raise _InUseError(_IN_USE + who)
        time.sleep(_PAUSE_S)


def _refuse_read_only(connection: DuckDBConnection, path: Path) -> None:
    if connection.is_read_only:
        raise DatabaseError(f"{path} is open for reading only; open it without read_only to compact it")


def _refuse_second_name(path: Path) -> None:
    if path.stat().st_nlink > 1:
        raise DatabaseError(
            f"{path} has a second name (a hard link), which would keep the old file; remove one of them"
        )


def _replace(connection: DuckDBConnection, path: Path, new: Path, old: Path) -> Compacted:
    """Put a copy in the place of the file, and link the old one to another name.

    Afterwards the connection is of no use but to be closed.
    """
    log = path.with_name(path.name + ".wal")
    bytes_before = sum(file.stat().st_size for file in (path, log) if file.exists())
    with closing(connection.sibling()) as raw:
        raw.execute("CHECKPOINT")
    refuse_logs(path)
    _refuse_second_name(path)
    bytes_after = new.stat().st_size
    _keep_owner(path, new)
    sync(new)
    sync(path.parent)  # the log is gone on disk, too
    if not _is_alone(connection):
        raise _InUseError(_IN_USE + _ANOTHER_STORAGE)
    os.link(path, old)
    new.replace(path)
    try:
        _retire(connection, old)
    finally:
        sync(path.parent)
    return Compacted(bytes_before, bytes_after)


def _retire(connection: DuckDBConnection, old: Path) -> None:
    """Make the old file unusable, in this process and in others."""
    _write_magic(old, bytes(len(_MAGIC)))
    cursor = connection.cursor()
    # By its name, what is written to the log of the old file would be for the new one.
    cursor.execute("PRAGMA disable_checkpoint_on_shutdown")
    cursor.execute(f"ATTACH ':memory:' AS {_OLD}")


def _write_magic(file: Path, magic: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(_MAGIC_OFFSET)
        opened.write(magic)


def _take_again(engine: sa.Engine, path: Path, old: Path) -> None:
    """Open the file at once, so that no process takes it meanwhile; one that waits for it may be faster."""
    try:
        with translate_errors(), engine.connect() as connection:
            attached = connection.exec_driver_sql("SELECT database_name FROM duckdb_databases()")
            if _OLD not in attached.scalars().all():
                return
    except StorageLockedError as error:
        _logger.warning("compacted, but %s", error)
        return
    except StorageClosedError:
        return
    except StorageError as error:
        kept = path.with_name(f"{path.name}.before-compact-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        _write_magic(old, _MAGIC)
        old.rename(kept)
        raise DatabaseError(
            f"{path} is compacted, but does not open; what it was before is kept as {kept}"
        ) from error
    event.listen(engine, "do_connect", _refuse)
    engine.dispose()
    _refuse()


def _refuse(*_arguments: object) -> None:
    """Refuse to write into the file that was there before, which has no name any more."""
    raise DatabaseError(
        "the file is compacted, but something in this process still holds the old one, such as a connection "
        "of DuckDB's own; what is stored is safe, but this process has to end before it opens the file again"
    )


def _keep_owner(path: Path, copy: Path) -> None:
    old, new = path.stat(), copy.stat()
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.chown(copy, old.st_uid, old.st_gid)
        copy.chmod(old.st_mode)  # a change of the owner may take bits of it
