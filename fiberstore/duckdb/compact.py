"""A database file written anew, without what was deleted from it.

The rename of the copy to the store's name is the commit point: a crash before it leaves the old file whole,
after it the new one. What a kill leaves is in a hidden folder, which the next writer removes.

- The copy is verified before (see ``backup``). The old file is kept, without a name that anybody opens, until
  the new one has been opened by its name.
- The write-ahead log of the old file is gone before the rename, because everything of it is in the file. So
  it never lies beside the new one, which it does not belong to.
- Nobody can use the old file after the rename. DuckDB locks it until then; who has opened it just before, and
  gets the lock when it comes free, would take the log of the new file for its own. So the old file is spoilt
  first. Another process is told that it is no database, and looks once more (see ``fork_guard.opened``).
- Nothing is changed in DuckDB's instance before the rename, and no Ctrl-C comes between the steps (see
  ``shielding``).
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import sqlalchemy as sa
from sqlalchemy import event

from fiberstore.atomic_files import hidden_folder, sync
from fiberstore.contract.results import Compacted
from fiberstore.duckdb import fork_guard
from fiberstore.duckdb.backup import refuse_logs, write_backup
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.shielding import Interruption, shielded
from fiberstore.errors import DatabaseError, StorageError, StorageLockedError
from fiberstore.forks import renew_in_child
from fiberstore.sql.engine import IN_MEMORY
from fiberstore.sql.holds import Hold, Registry, wait_for_all
from fiberstore.sql.translate import translate_errors

BUSY_TIMEOUT_S = 5.0
_PAUSE_S = 0.005
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


class Calls:
    """The calls of a storage that run: a compaction waits for their end, and new ones for its own.

    Neither outlives the block that it runs in, whatever interrupts that (see ``fiberstore.sql.holds``). A
    call within a call does not wait, or the compaction would wait for it in vain.
    """

    _running: Registry[_Call]
    _compactions: Registry[Hold]

    def __init__(self) -> None:
        self.renew()
        renew_in_child(self, Calls.renew)

    def renew(self) -> None:
        """Begin anew; in a forked child, where the threads of the calls do not exist."""
        self._running, self._compactions = Registry(), Registry()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note a call, for as long as the block takes, which begins when no compaction runs."""
        call: _Call | None = None
        try:
            while call is None:
                call = self._running.add(_Call())
                if (compactions := self._compactions.alive()) and not self._is_within_another(call):
                    call = None
                    wait_for_all(compactions, math.inf)
            yield
        finally:
            call = None

    def _is_within_another(self, call: _Call) -> bool:
        """Tell whether another call of the same thread runs."""
        threads = (getattr(other(), "thread", None) for other in self._running.alive() if other() is not call)
        return call.thread in threads

    @contextmanager
    def held_up(self, deadline: float, interruption: Interruption) -> Iterator[None]:
        """Let no call run until the block ends.

        Raises:
            DatabaseError: A call is still running at the deadline, or another compaction is.
            KeyboardInterrupt: The wait was interrupted.
        """
        compaction: Hold | None = None
        try:
            compaction = self._compactions.add(Hold())
            if self._compactions.alive()[0]() is not compaction:
                raise DatabaseError("the file is being compacted already")
            while not wait_for_all(self._running.alive(), min(deadline, time.monotonic() + _PAUSE_S)):
                interruption.check()
                if time.monotonic() >= deadline:
                    raise DatabaseError(
                        f"a call, a stream or a transaction() of this storage has been running for "
                        f"{BUSY_TIMEOUT_S:g} s; compact() needs the file for itself, so end it first"
                    )
            yield
        finally:
            compaction = None


def compact(engine: sa.Engine, change_pool: sa.Pool, calls: Calls) -> Compacted:
    """Write the database file anew, and replace the old one by it.

    Args:
        engine: Engine of the storage.
        change_pool: Pool of connections for changes, which is renewed when the engine is disposed.
        calls: Running calls of the storage.

    Returns:
        Sizes of the old and the new file; zeros in memory.

    Raises:
        DatabaseError: Others kept using the file, or it cannot be replaced; the old file stays.
    """
    if (engine.url.database or "").startswith(IN_MEMORY):
        return Compacted(0, 0)
    compacted = shielded(lambda interruption: _compact(engine, change_pool, calls, interruption))
    _logger.info("compacted from %d to %d bytes", compacted.bytes_before, compacted.bytes_after)
    return compacted


def _compact(engine: sa.Engine, change_pool: sa.Pool, calls: Calls, interruption: Interruption) -> Compacted:
    path, deadline = Path(engine.url.database or ""), time.monotonic() + BUSY_TIMEOUT_S
    try:
        with calls.held_up(deadline, interruption), hidden_folder(path.parent) as folder:
            old = folder / "old"
            with _only_connection(engine, change_pool, deadline, interruption) as connection:
                compacted = _replace(connection, path, folder / "new", old)
            _take_again(engine, path, old)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be replaced: {error.strerror}") from error
    return compacted


@contextmanager
def _only_connection(
    engine: sa.Engine, change_pool: sa.Pool, deadline: float, interruption: Interruption
) -> Iterator[DuckDBConnection]:
    """Yield the only connection of this process; no other is opened during the block.

    DuckDB's lock on the file is kept all the time. If the block replaces the file, it is closed afterwards.
    """
    with translate_errors():
        pooled = engine.raw_connection()
    connection = cast("DuckDBConnection", pooled.dbapi_connection)
    pooled.detach()
    database = connection.database_key
    number = fork_guard.file_number(database)
    try:
        pools = engine.pool, change_pool
        _wait(
            lambda: not any(pool.checkedout() for pool in pools),  # type: ignore[attr-defined]  # QueuePool's
            deadline,
            interruption,
            "a session or a connection of this storage's engine is open; close it first",
        )
        with fork_guard.closed_off(database):
            engine.dispose()

            def is_alone() -> bool:
                for pool in pools:
                    pool.dispose()  # of a connection that came back only now
                return (
                    fork_guard.open_handles(database) == {connection} and _connection_count(connection) == 1
                )

            _wait(
                is_alone,
                deadline,
                interruption,
                "another storage, engine or session of this process has it open",
            )
            try:
                yield connection
            finally:
                if fork_guard.file_number(database) != number:
                    connection.close()
    finally:
        try:
            if fork_guard.file_number(database) == number:
                with translate_errors(), engine.connect():
                    pass  # back to the pool, where it keeps the lock
        finally:
            pooled.close()


def _connection_count(connection: DuckDBConnection) -> int:
    """Count the connections to the instance, those of DuckDB's own included."""
    cursor = connection.cursor()
    cursor.execute("SELECT count FROM duckdb_connection_count()")
    ((count,),) = cursor.fetchall()
    return int(count)


def _wait(is_ready: Callable[[], bool], deadline: float, interruption: Interruption, otherwise: str) -> None:
    while not is_ready():
        interruption.check()
        if time.monotonic() >= deadline:
            raise DatabaseError(f"compact() needs the file for itself, but {otherwise}")
        time.sleep(_PAUSE_S)


def _replace(connection: DuckDBConnection, path: Path, new: Path, old: Path) -> Compacted:
    """Put a copy in the place of the file, and link the old one to another name.

    Afterwards the connection is of no use but to be closed.
    """
    log = path.with_name(path.name + ".wal")
    bytes_before = sum(file.stat().st_size for file in (path, log) if file.exists())
    with translate_errors():
        cursor = connection.cursor()
        cursor.execute("SELECT readonly FROM duckdb_databases() WHERE database_name = current_database()")
        if cursor.fetchall() != [(False,)]:
            raise DatabaseError(f"{path} is open for reading only; open it without read_only to compact it")
        cursor.execute("CHECKPOINT")
    if path.stat().st_nlink > 1:
        raise DatabaseError(
            f"{path} has a second name (a hard link), which would keep the old file; remove one of them"
        )
    write_backup(connection, new)
    refuse_logs(path)
    bytes_after = new.stat().st_size
    _keep_owner(path, new)
    sync(new)
    sync(path.parent)  # the log is gone on disk, too
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
    with translate_errors():
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
