"""A database file written anew, without what was deleted from it.

The new file takes the place of the old one by a rename. Until then the old one is whole and locked, and a
kill leaves a hidden ``.partial`` beside it; from then on, the new one is. In between there is no moment:

- The write-ahead log of the old file is gone before the rename, because everything of it is in the file. So
  it never lies beside the new one, which it does not belong to.
- Another process cannot write into the old file after the rename: DuckDB locks it until then, and who has
  opened it just before looks once more which file the path leads to (see ``process.opened``).
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from uuid import uuid4
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy import event

from fiberstore import process
from fiberstore.backup import write_backup
from fiberstore.dbapi import Connection
from fiberstore.errors import DatabaseError, StorageLockedError, translate_errors
from fiberstore.holds import Hold, Registry, wait_for_all
from fiberstore.lifecycle import Compacted

BUSY_TIMEOUT_S = 5.0
_PAUSE_S = 0.005
_OLD = "fiberstore_replaced"  # marks DuckDB's instance of the old file
_LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")

_logger = logging.getLogger(__name__)
_all: "WeakSet[Calls]" = WeakSet()


class Calls:
    """The calls of a storage that run: a compaction waits for their end, and new ones for its own.

    Neither outlives the block that it runs in, whatever interrupts that (see ``fiberstore.holds``).
    """

    _running: Registry[Hold]
    _compactions: Registry[Hold]

    def __init__(self) -> None:
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Begin anew; in a forked child, where the threads of the calls do not exist."""
        self._running, self._compactions = Registry(), Registry()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note a call, for as long as the block takes, which begins when no compaction runs."""
        call: Hold | None = None
        try:
            while call is None:
                call = self._running.add(Hold())
                if compactions := self._compactions.alive():
                    call = None
                    wait_for_all(compactions, math.inf)
            yield
        finally:
            call = None

    @contextmanager
    def held_up(self, deadline: float) -> Iterator[None]:
        """Let no call run until the block ends.

        Raises:
            DatabaseError: A call is still running at the deadline, or another compaction is.
        """
        compaction: Hold | None = None
        try:
            compaction = self._compactions.add(Hold())
            if self._compactions.alive()[0]() is not compaction:
                raise DatabaseError("the file is being compacted already")
            if not wait_for_all(self._running.alive(), deadline):
                raise DatabaseError(
                    f"a call, a stream or a transaction() of this storage has been running for "
                    f"{BUSY_TIMEOUT_S:g} s; compact() needs the file for itself, so end it first"
                )
            yield
        finally:
            compaction = None


def compact(engine: sa.Engine, change_pool: sa.Pool, calls: Calls) -> Compacted:
    """See ``LifecycleStorage.compact``.

    Args:
        engine: The storage's.
        change_pool: Its other pool, which is renewed when the engine is disposed.
        calls: Those of the storage.
    """
    database = engine.url.database or ""
    if database.startswith(process.IN_MEMORY):
        return Compacted(0, 0)
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    with calls.held_up(deadline):
        with _only_connection(engine, change_pool, deadline) as connection:
            compacted = _replace(connection, Path(database))
        _take_again(engine)
    _logger.info("compacted from %d to %d bytes", compacted.bytes_before, compacted.bytes_after)
    return compacted


@contextmanager
def _only_connection(engine: sa.Engine, change_pool: sa.Pool, deadline: float) -> Iterator[Connection]:
    """Give the block the only connection of this process, and let no other be opened meanwhile.

    DuckDB's lock on the file is kept all the time. If the block replaces the file, it is closed afterwards.
    """
    with translate_errors():
        pooled = engine.raw_connection()
    connection = cast("Connection", pooled.dbapi_connection)
    pooled.detach()
    database = connection.database_key
    number = process.file_number(database)
    try:
        pools = engine.pool, change_pool
        _wait(
            lambda: not any(pool.checkedout() for pool in pools),  # type: ignore[attr-defined]  # QueuePool's
            deadline,
            "a session or a connection of this storage's engine is open; close it first",
        )
        with process.closed_off(database):
            engine.dispose()

            def is_alone() -> bool:
                for pool in pools:
                    pool.dispose()  # of a connection that came back only now
                return process.open_handles(database) == {connection}

            _wait(is_alone, deadline, "another storage, engine or session of this process has it open")
            try:
                yield connection
            finally:
                if process.file_number(database) != number:
                    connection.close()
    finally:
        if process.file_number(database) == number:
            with translate_errors(), engine.connect():
                pass  # back to the pool, where it keeps the lock
        pooled.close()


def _wait(is_ready: Callable[[], bool], deadline: float, otherwise: str) -> None:
    while not is_ready():
        if time.monotonic() >= deadline:
            raise DatabaseError(f"compact() needs the file for itself, but {otherwise}")
        time.sleep(_PAUSE_S)


def _replace(connection: Connection, path: Path) -> Compacted:
    """Put a copy in the place of the file; the connection is of no use afterwards but to be closed."""
    bytes_before = sum(file.stat().st_size for file in (path, _beside(path, ".wal")) if file.exists())
    with translate_errors():
        cursor = connection.cursor()
        cursor.execute("SELECT readonly FROM duckdb_databases() WHERE database_name = current_database()")
        if cursor.fetchall() != [(False,)]:
            raise DatabaseError(f"{path} is open for reading only; open it without read_only to compact it")
        cursor.execute("CHECKPOINT")
    copy = path.with_name(f".{uuid4().hex}.partial")
    try:
        write_backup(connection, copy)
        if left := [log for log in (_beside(path, suffix) for suffix in _LOGS) if log.exists()]:
            raise DatabaseError(f"{left[0]} is there after a checkpoint, so {path} stays as it is")
        bytes_after = copy.stat().st_size
        _keep_owner(path, copy)
        with translate_errors():
            # By its name, what is written to the log of the old file would be for the new one.
            cursor.execute("PRAGMA disable_checkpoint_on_shutdown")
            cursor.execute(f"ATTACH IF NOT EXISTS ':memory:' AS {_OLD}")
        _sync_folder(path.parent)  # the log is gone on disk, too
        copy.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be replaced: {error.strerror}") from error
    finally:
        copy.unlink(missing_ok=True)
    return Compacted(bytes_before, bytes_after)


def _take_again(engine: sa.Engine) -> None:
    """Open the file at once, so that no process takes it meanwhile; one that waits for it may be faster."""
    try:
        with translate_errors(), engine.connect() as connection:
            attached = connection.exec_driver_sql("SELECT database_name FROM duckdb_databases()")
            if _OLD not in attached.scalars().all():
                return
    except StorageLockedError as error:
        _logger.warning("compacted, but %s", error)
        return
    event.listen(engine, "do_connect", _refuse)
    engine.dispose()
    _refuse()


def _refuse(*_arguments: object) -> None:
    """Refuse to write into the file that was there before, which has no name any more."""
    raise DatabaseError(
        "the file is compacted, but something in this process still holds the old one, such as a connection "
        "of DuckDB's own; what is stored is safe, but this process has to end before it opens the file again"
    )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _keep_owner(path: Path, copy: Path) -> None:
    old, new = path.stat(), copy.stat()
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.chown(copy, old.st_uid, old.st_gid)
        copy.chmod(old.st_mode)  # a change of the owner may take bits of it


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _renew_all() -> None:
    for calls in list(_all):
        calls.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
