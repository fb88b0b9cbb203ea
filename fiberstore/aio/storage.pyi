# Written by tools/write_stubs.py; not to be edited.

"""Storages in coroutines, on threads: DuckDB has no asynchronous driver."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.aio.face import Face
from fiberstore.aio.queries import AsyncFibers, AsyncLogs, AsyncMemberships
from fiberstore.aio.workers import Workers
from fiberstore.contract.conditions import Condition
from fiberstore.contract.lifecycle import CheckpointMove, LifecycleStorage
from fiberstore.contract.results import (
    BatchCounts,
    Checkpoint,
    Compacted,
    ConfigVersion,
    Deleted,
    GenerationDiff,
    Merged,
    Pruned,
    Upserted,
)
from fiberstore.contract.storage import DEFAULT_LIMIT, Storage
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.repositories.storage import SqlStorage
from fiberstore.telemetry import Call, StorageStats

class AsyncCheckpoints(Face):
    """``Checkpoints`` with coroutines."""

    async def get(self, name: str) -> Checkpoint | None:
        """Return a checkpoint, or None when there is none of that name."""

    async def all(self) -> list[Checkpoint]:
        """Return every checkpoint, by name."""

    async def set(self, name: str, value: str) -> None:
        """Give a checkpoint a value, whatever it has."""

    async def compare_and_set(self, name: str, expected: str | None, value: str) -> None:
        """Give a checkpoint a value, if nobody has changed it meanwhile.

        Args:
            name: Its name.
            expected: The value it has; None if there must be none of that name.
            value: What it gets.

        Raises:
            CheckpointError: It has another value, which stays.
        """

    async def delete(self, name: str) -> bool:
        """Delete a checkpoint; return whether there was one."""

class AsyncVersions(Face):
    """``Versions`` with coroutines."""

    async def register(self, content: bytes | str | Path, *, parent: int | None = None) -> ConfigVersion:
        """Note a configuration and its version; one that is registered with its content stays as it is.

        Args:
            content: The content, in UTF-8, or a ``Path`` to the file that holds it.
            parent: The version it was made from; None is the active one, if there is one.

        Raises:
            ValueError: The content cannot be stored as text.
            OSError: The file cannot be read.
        """

    async def get(self, config_version: int) -> ConfigVersion | None:
        """Return a registered version, or None."""

    async def all(self) -> list[ConfigVersion]:
        """Return every registered version, by ``(created_at, config_version)``."""

    async def active(self) -> ConfigVersion | None:
        """Return the active version, or None."""

    async def activate(self, config_version: int | None) -> ConfigVersion | None:
        """Make a version the active one, in one transaction: readers see one whole generation or the other.

        Args:
            config_version: The version. One that has fibers but was never registered is registered without
                its content. None: no version is active.

        Returns:
            The version that was active before, to go back to; None if none was.

        Raises:
            VersionNotFoundError: It is not registered, and has no fibers.
        """

    async def diff(self, old: int, new: int, limit: int = 1000) -> GenerationDiff:
        """Compare the fibers of two versions by the stored logs they hold, type by type.

        A fiber without stored logs is new or gone.

        Args:
            old: A version.
            new: Another.
            limit: Most changes to return, >= 0; the counts are of all.

        Raises:
            VersionNotFoundError: One of them is not registered, and has no fibers.
        """

    async def drop(self, config_version: int) -> Deleted:
        """Delete the fibers and memberships of a version; its logs, and its place in the registry, stay.

        All fibers go in one transaction, so readers see the whole generation or none of it; then their
        memberships go, in steps, or in one where that is quicker, as by ``Query.delete``. A call that was
        killed in between is finished by another. Pins do not keep them.

        Raises:
            VersionNotFoundError: It is not registered, and has no fibers.
            DatabaseError: It is active; activate another first.
        """

class AsyncStorage(Face):
    """A ``Storage`` in coroutines: same names, same arguments, same contract, for use in one event loop.

    It wraps any storage, and calls it on threads of its own. A call that is cancelled while it waits for a
    thread has not happened; one that is cancelled later continues in its thread and happens wholly or not at
    all. An iterable is read to its end first, in the calling task.

    Use it as an asynchronous context manager, or call ``close()``.

    Args:
        storage: The storage. It can be used beside this, and stays open when this is closed.
        threads: How many calls run side by side, >= 1.

    Raises:
        TypeError: The storage is not of the class that this is the face of.
        ValueError: ``threads`` is less than 1.
    """

    _workers: Workers

    def __init__(self, storage: Storage, threads: int) -> None: ...
    async def close(self) -> None:
        """Wait for the calls that run, and end half-read streams and the threads, for good.

        If this is cancelled, call it again.
        """

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    async def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """Store which logs belong to which fibers, all or none.

        Neither the logs nor the fibers need to be stored yet.

        Args:
            memberships: Any number of records; see ``write_logs`` for an iterator.

        Returns:
            How many are new: their pair of ids was not stored yet.

        Raises:
            TypeError: An item is not a ``FiberMembership``.
            ConflictError: Another transaction has written one of the pairs while an iterator was read.
        """

    async def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """Return the ids of every fiber the log belongs to, ascending, stored as fibers or not."""

    async def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the stored logs of one fiber, oldest first.

        Order: ``(timestamp, log_id)``. Memberships whose log is not stored add nothing.

        Args:
            fiber_id: The fiber; it need not be stored itself.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """

    async def write_fiber(self, fiber: FiberRecord) -> None:
        """Store a new fiber.

        Raises:
            DuplicateError: A fiber of that id is stored already; it stays as it is.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    async def update_fiber(self, fiber: FiberRecord) -> None:
        """Replace every field of the fiber with that ``fiber_id``.

        Raises:
            NotFoundError: There is no fiber of that id.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    async def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """Return one fiber, or None when there is none of that id."""

    async def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """Return the fibers of one type, in the order they began.

        Order: ``(first_activity, fiber_id)``.

        Args:
            fiber_type: The exact type.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A fiber, or the ``(first_activity, fiber_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative, or the type cannot be stored as text.
            TypeError: ``after`` is neither a fiber nor such a pair.
        """

    async def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """Store logs, all or none.

        A ``LogRecord`` is stamped with the current time and the storage's ``config_version``; a ``StoredLog``
        keeps its own.

        Args:
            logs: Any number of records. An iterator may give more than fit in memory: it is read while they
                are written. As it cannot be read twice, a conflict then ends the call.

        Returns:
            How many are new: their ``log_id`` was not stored yet.

        Raises:
            TypeError: An item is not a ``LogRecord``.
            ConflictError: Another transaction has written one of the ids while an iterator was read.
        """

    async def get_log(self, log_id: UUID) -> StoredLog | None:
        """Return one log, or None when there is none of that id."""

    async def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the logs with ``start <= timestamp <= end``, oldest first.

        Order: ``(timestamp, log_id)``.

        Args:
            start: Inclusive lower bound, timezone-aware.
            end: Inclusive upper bound, timezone-aware. Before ``start``, the answer is empty.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: A bound is naive, or limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """

    async def init_schema(self) -> None:
        """Build the tables and indexes, or bring them to the newest revision; otherwise do nothing.

        Safe from several threads at once. Tables of the same names and columns that were made without
        migrations are adopted with their rows.

        Raises:
            SchemaVersionError: The database is at a revision this release does not know.
            DatabaseError: The tables there have other columns, or the database is read-only.
        """

class AsyncQueryStorage(AsyncStorage):
    """A ``QueryStorage`` in coroutines: same names, same arguments, same contract.

    An ``on_rows`` is called in another thread.
    """

    @property
    def logs(self) -> AsyncLogs:
        """All logs, as a query."""

    @property
    def fibers(self) -> AsyncFibers:
        """All fibers, as a query."""

    @property
    def memberships(self) -> AsyncMemberships:
        """All memberships, as a query."""

    async def import_logs(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """Store the logs of a file that ``logs.export`` wrote, or of all in a folder, all or none.

        Files of others will do: ``log_id``, ``timestamp`` with a time zone, ``source_id`` and ``raw_text``
        are needed, ``ingestion_time`` and ``config_version`` are stamped where they are left out, other
        columns are refused.

        Args:
            path: A ``.parquet``, ``.csv`` or ``.jsonl`` file, or a folder of them. Names in it that begin
                with a dot or an underscore are passed over.
            on_rows: Called with the number of rows of each batch; after a conflict the files are read again.

        Returns:
            How many are new: their ``log_id`` was not stored yet.

        Raises:
            ValueError: A column is missing, unknown, or holds a value that cannot be stored; the message
                names the file.
            OSError: A file cannot be read.
        """

    async def import_fibers(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """Store the fibers of files whose id is new, all or none; see ``import_logs``."""

    async def import_memberships(
        self, path: str | Path, *, on_rows: Callable[[int], None] | None = None
    ) -> int:
        """Store the memberships of files, all or none; see ``import_logs``."""

    async def import_keys(self, path: str | Path, *, on_rows: Callable[[int], None] | None = None) -> int:
        """Store the keys of files, all or none, after their fibers; see ``import_logs`` and ``write_keys``.

        Raises:
            NotFoundError: The fiber of a key is not stored.
        """

class AsyncLifecycleStorage(AsyncQueryStorage):
    """A ``LifecycleStorage`` in coroutines: same names, same arguments, same contract.

    An ``on_step`` is called in another thread. A ``prune`` that is cancelled ends with the step that runs.
    """

    _wrapped: LifecycleStorage

    async def prune(
        self,
        *,
        fibers: Condition[FiberRecord] | None = None,
        logs: Condition[StoredLog] | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
        step_rows: int | None = None,
        max_steps: int | None = None,
        on_step: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        """Delete what is no longer to be kept, but no log that a kept fiber holds, and nothing pinned.

        The fibers that meet their condition go, with the logs that only they hold. The logs that meet theirs
        go unless a stored fiber holds them: those of fibers that go too, and those in none. A pinned fiber is
        kept, and so are its logs; a pinned log is kept.

        The set that goes is fixed before the first step, in one snapshot; a dry run counts the same set. A
        fiber that is pinned, changed or given logs between then and its step stays, with its logs. What is
        stored after the snapshot stays.

        It works in steps, the oldest first, each a transaction: whenever it stops, the store is whole.
        Another call asks the conditions anew: one that asks for rows which an unfinished call has deleted
        may find another set, so let such a call run to its end. A step does not see memberships that are
        appended while it runs. A generation that is not active is not spared. The ids of the set are kept in
        a temporary file, 49 bytes a row.

        Args:
            fibers: Which fibers may go; None is none of them, or with ``max_bytes`` all.
            logs: Which logs may go; None is only those that fibers that go hold, or with ``max_bytes`` all.
            max_bytes: Delete the oldest of what may go only until what is left takes at most this, > 0, in
                the file as ``compact()`` would write it. With ``dry_run`` the numbers are an estimate then.
            dry_run: Change nothing, and return what would go.
            step_rows: Most logs of a step, >= 1, unless one fiber has more. By default, 10,000: DuckDB lets
                nobody in while it commits a step, for up to a second. If a quarter of the logs or more goes
                in a step of at most 1,000,000 logs and 50,000 fibers, at most 1,200,000 logs and memberships
                stay in the DuckDB store, and ``max_steps`` is None, it goes as by ``Query.delete``, in less
                time, by a file of up to twice the size. With 1,000,000, steps go so whatever stays, and
                others wait for about 0.75 s for each million of it.
            max_steps: End after so many steps, >= 1; None is no end.
            on_step: Called after each step, with what has gone so far.

        Raises:
            ValueError: None of ``fibers``, ``logs`` and ``max_bytes`` is given, or a number is out of bounds.
            TypeError: A condition is not on a record of its kind.
            StorageError: The database failed; the steps before that stay.
        """

    async def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """Store the fibers whose id is new, and leave the others as they are.

        Returns:
            How many are new.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """

    async def upsert_fibers(self, fibers: Iterable[FiberRecord], *, widen: bool = False) -> Upserted:
        """Store the fibers whose id is new, and replace every field of the others.

        Several producers that each know a part of a fiber's lines give the activity of that part, with
        ``widen``: in whatever order they come, the stored activity covers all of them.

        Args:
            fibers: Each id once.
            widen: Of a stored fiber, keep the earlier ``first_activity`` and the later ``last_activity`` of
                the two. The statement that writes compares them, so concurrent calls lose nothing.
                ``fiber_type``, ``config_version``, ``attributes`` and ``closed`` are replaced all the same.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """

    async def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        """Make fibers part of others: their memberships, keys and pins move, and they are deleted.

        The activity of a survivor is widened to cover theirs; its other fields stay. The old ids lead to the
        survivor, by ``resolve_fibers``, also when it becomes part of another later. Who writes memberships
        later resolves their fibers first: what is written to an old id stays there. All happens in one
        transaction; many memberships move in a table that is written before it, as by ``Query.delete``.

        Args:
            survivors: For each fiber that ends, the one it becomes part of, which does not end itself.

        Raises:
            NotFoundError: One of the fibers is not stored.
            TypeError: It is no mapping of ids.
            ValueError: A survivor ends itself, or is of another config version.
        """

    async def write_keys(self, keys: Iterable[FiberKey]) -> int:
        """Give stored fibers keys, by which ``Fibers.c.keys`` finds them.

        A key that its fiber has already keeps the earlier beginning: the lesser ``(first_timestamp,
        first_log_id)``, of equal times one whose line is known.

        Returns:
            How many are new to their fibers.

        Raises:
            NotFoundError: One of the fibers is not stored; ``resolve_fibers`` tells where a merged one is.
            TypeError: An item is not a ``FiberKey``.
        """

    async def get_keys(self, fiber_ids: Iterable[UUID]) -> dict[UUID, list[FiberKey]]:
        """Return the keys of fibers.

        Returns:
            For each id, in the order they were given, its keys by ``(first_timestamp, first_log_id, name,
            value)``, those without a known line last; ``[]`` of a fiber without keys, or that is not stored.
        """

    async def query_fibers_by_key(
        self, name: str, value: str, limit: int = DEFAULT_LIMIT, offset: int = 0
    ) -> list[FiberRecord]:
        """Return the fibers that have a key, of every config version, by ``(first_activity, fiber_id)``.

        It takes little more than ``get_fiber``; ``Fibers.c.keys`` can be joined with other conditions.

        Args:
            name: Name of the key.
            value: Its value.
            limit: Most fibers to return, >= 0.
            offset: How many to leave out before, >= 0.
        """

    async def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """Return where fibers are now.

        Returns:
            For each id, in the order they were given, the id of the stored fiber: itself, or the one it has
            become part of. Ids that lead to none are left out.
        """

    async def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        keys: Iterable[FiberKey] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        """Store what belongs together, all or none.

        Logs alone, and memberships alone, are appended beside whoever changes rows; anything else waits for
        its turn, so that nobody deletes a stored log before the memberships are stored that hold it.

        Args:
            logs: As for ``write_logs``; an iterator is read to its end first.
            fibers: New ones, and changed ones, which replace what is stored.
            memberships: As for ``write_memberships``.
            keys: As for ``write_keys``, of fibers that are stored or in the batch.
            checkpoint: Moves with them.

        Raises:
            TypeError: An item is of a wrong type.
            ValueError: Two fibers have one id.
            CheckpointError: The checkpoint has another value than expected.
            NotFoundError: The fiber of a key is neither stored nor in the batch.
        """

    @property
    def checkpoints(self) -> AsyncCheckpoints:
        """The checkpoints."""

    @property
    def versions(self) -> AsyncVersions:
        """The config versions."""

    async def compact(self) -> Compacted:
        """Write the database file anew, without what was deleted or redacted, and put it in place of the old.

        On a server, nobody reads or writes a table while that is written anew. The rest is about DuckDB.

        It takes as long as two or three backups, and as much space beside the file as one. Others read and
        write meanwhile; what they write is in the new file. All wait while that takes the place of the old
        one: for 0.2 s, 0.1 s for each million logs and 2 s for each GB of their texts, and 1 s for each
        million rows of any other table in which rows were changed or deleted meanwhile. If others change or
        delete logs that are there or change the schema meanwhile, the file is copied anew, up to three times,
        the last time while all wait. A database that has tables, views, sequences, types or macros of an
        application is copied while all wait. Bytes of fibers that others delete or change meanwhile may stay
        in the new file.

        A call of the same thread or another storage on the file is waited for before the copy, 5 s at most.
        For the exchange, no call, stream, session or ``transaction()`` may be open. All others wait up to
        0.5 s for the end of these, then continue for as long; after 5 s of that, the call fails. In memory
        it does nothing.

        Raises:
            DatabaseError: A call, a session or another storage of this process keeps using the file; or the
                copy cannot be written, as on a full disk. The file stays as it was.
        """

class AsyncLogRepository(AsyncLogs):
    """``LogRepository`` in coroutines."""

    async def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """Store logs, all or none.

        A ``LogRecord`` is stamped with the current time and the storage's ``config_version``; a ``StoredLog``
        keeps its own.

        Args:
            logs: Any number of records. An iterator may give more than fit in memory: it is read while they
                are written. As it cannot be read twice, a conflict then ends the call.

        Returns:
            How many are new: their ``log_id`` was not stored yet.

        Raises:
            TypeError: An item is not a ``LogRecord``.
            ConflictError: Another transaction has written one of the ids while an iterator was read.
        """

    async def get_log(self, log_id: UUID) -> StoredLog | None:
        """Return one log, or None when there is none of that id."""

    async def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the logs with ``start <= timestamp <= end``, oldest first.

        Order: ``(timestamp, log_id)``.

        Args:
            start: Inclusive lower bound, timezone-aware.
            end: Inclusive upper bound, timezone-aware. Before ``start``, the answer is empty.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: A bound is naive, or limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """

class AsyncFiberRepository(AsyncFibers):
    """``FiberRepository`` in coroutines."""

    async def write_fiber(self, fiber: FiberRecord) -> None:
        """Store a new fiber.

        Raises:
            DuplicateError: A fiber of that id is stored already; it stays as it is.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    async def update_fiber(self, fiber: FiberRecord) -> None:
        """Replace every field of the fiber with that ``fiber_id``.

        Raises:
            NotFoundError: There is no fiber of that id.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    async def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """Return one fiber, or None when there is none of that id."""

    async def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """Return the fibers of one type, in the order they began.

        Order: ``(first_activity, fiber_id)``.

        Args:
            fiber_type: The exact type.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A fiber, or the ``(first_activity, fiber_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative, or the type cannot be stored as text.
            TypeError: ``after`` is neither a fiber nor such a pair.
        """

    async def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """Store the fibers whose id is new, and leave the others as they are.

        Returns:
            How many are new.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """

    async def upsert_fibers(self, fibers: Iterable[FiberRecord], *, widen: bool = False) -> Upserted:
        """Store the fibers whose id is new, and replace every field of the others.

        Several producers that each know a part of a fiber's lines give the activity of that part, with
        ``widen``: in whatever order they come, the stored activity covers all of them.

        Args:
            fibers: Each id once.
            widen: Of a stored fiber, keep the earlier ``first_activity`` and the later ``last_activity`` of
                the two. The statement that writes compares them, so concurrent calls lose nothing.
                ``fiber_type``, ``config_version``, ``attributes`` and ``closed`` are replaced all the same.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """

    async def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        """Make fibers part of others: their memberships, keys and pins move, and they are deleted.

        The activity of a survivor is widened to cover theirs; its other fields stay. The old ids lead to the
        survivor, by ``resolve_fibers``, also when it becomes part of another later. Who writes memberships
        later resolves their fibers first: what is written to an old id stays there. All happens in one
        transaction; many memberships move in a table that is written before it, as by ``Query.delete``.

        Args:
            survivors: For each fiber that ends, the one it becomes part of, which does not end itself.

        Raises:
            NotFoundError: One of the fibers is not stored.
            TypeError: It is no mapping of ids.
            ValueError: A survivor ends itself, or is of another config version.
        """

    async def write_keys(self, keys: Iterable[FiberKey]) -> int:
        """Give stored fibers keys, by which ``Fibers.c.keys`` finds them.

        A key that its fiber has already keeps the earlier beginning: the lesser ``(first_timestamp,
        first_log_id)``, of equal times one whose line is known.

        Returns:
            How many are new to their fibers.

        Raises:
            NotFoundError: One of the fibers is not stored; ``resolve_fibers`` tells where a merged one is.
            TypeError: An item is not a ``FiberKey``.
        """

    async def get_keys(self, fiber_ids: Iterable[UUID]) -> dict[UUID, list[FiberKey]]:
        """Return the keys of fibers.

        Returns:
            For each id, in the order they were given, its keys by ``(first_timestamp, first_log_id, name,
            value)``, those without a known line last; ``[]`` of a fiber without keys, or that is not stored.
        """

    async def query_fibers_by_key(
        self, name: str, value: str, limit: int = DEFAULT_LIMIT, offset: int = 0
    ) -> list[FiberRecord]:
        """Return the fibers that have a key, of every config version, by ``(first_activity, fiber_id)``.

        It takes little more than ``get_fiber``; ``Fibers.c.keys`` can be joined with other conditions.

        Args:
            name: Name of the key.
            value: Its value.
            limit: Most fibers to return, >= 0.
            offset: How many to leave out before, >= 0.
        """

    async def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """Return where fibers are now.

        Returns:
            For each id, in the order they were given, the id of the stored fiber: itself, or the one it has
            become part of. Ids that lead to none are left out.
        """

    async def copy_to(self, config_version: int) -> int:
        """Copy the fibers of the query into another config version, with what belongs to them.

        The copies have ids of their own; their logs are the same.

        Returns:
            How many they are.
        """

class AsyncMembershipRepository(AsyncMemberships):
    """``MembershipRepository`` in coroutines."""

    async def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """Store which logs belong to which fibers, all or none.

        Neither the logs nor the fibers need to be stored yet.

        Args:
            memberships: Any number of records; see ``write_logs`` for an iterator.

        Returns:
            How many are new: their pair of ids was not stored yet.

        Raises:
            TypeError: An item is not a ``FiberMembership``.
            ConflictError: Another transaction has written one of the pairs while an iterator was read.
        """

    async def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """Return the ids of every fiber the log belongs to, ascending, stored as fibers or not."""

    async def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the stored logs of one fiber, oldest first.

        Order: ``(timestamp, log_id)``. Memberships whose log is not stored add nothing.

        Args:
            fiber_id: The fiber; it need not be stored itself.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """

class AsyncTransaction(Face):
    """``Transaction`` in coroutines; use it from one task at a time."""

    async def write_memberships(self, memberships: Iterable[FiberMembership]) -> int:
        """Store which logs belong to which fibers, all or none.

        Neither the logs nor the fibers need to be stored yet.

        Args:
            memberships: Any number of records; see ``write_logs`` for an iterator.

        Returns:
            How many are new: their pair of ids was not stored yet.

        Raises:
            TypeError: An item is not a ``FiberMembership``.
            ConflictError: Another transaction has written one of the pairs while an iterator was read.
        """

    async def get_log_fibers(self, log_id: UUID) -> list[UUID]:
        """Return the ids of every fiber the log belongs to, ascending, stored as fibers or not."""

    async def get_fiber_logs(
        self,
        fiber_id: UUID,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the stored logs of one fiber, oldest first.

        Order: ``(timestamp, log_id)``. Memberships whose log is not stored add nothing.

        Args:
            fiber_id: The fiber; it need not be stored itself.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """

    async def write_fiber(self, fiber: FiberRecord) -> None:
        """Store a new fiber.

        Raises:
            DuplicateError: A fiber of that id is stored already; it stays as it is.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    async def update_fiber(self, fiber: FiberRecord) -> None:
        """Replace every field of the fiber with that ``fiber_id``.

        Raises:
            NotFoundError: There is no fiber of that id.
            SerializationError: ``attributes`` was changed into something that is not JSON.
        """

    async def get_fiber(self, fiber_id: UUID) -> FiberRecord | None:
        """Return one fiber, or None when there is none of that id."""

    async def query_fibers_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """Return the fibers of one type, in the order they began.

        Order: ``(first_activity, fiber_id)``.

        Args:
            fiber_type: The exact type.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A fiber, or the ``(first_activity, fiber_id)`` of one: only rows that follow it.

        Raises:
            ValueError: limit or offset is negative, or the type cannot be stored as text.
            TypeError: ``after`` is neither a fiber nor such a pair.
        """

    async def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """Store the fibers whose id is new, and leave the others as they are.

        Returns:
            How many are new.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """

    async def upsert_fibers(self, fibers: Iterable[FiberRecord], *, widen: bool = False) -> Upserted:
        """Store the fibers whose id is new, and replace every field of the others.

        Several producers that each know a part of a fiber's lines give the activity of that part, with
        ``widen``: in whatever order they come, the stored activity covers all of them.

        Args:
            fibers: Each id once.
            widen: Of a stored fiber, keep the earlier ``first_activity`` and the later ``last_activity`` of
                the two. The statement that writes compares them, so concurrent calls lose nothing.
                ``fiber_type``, ``config_version``, ``attributes`` and ``closed`` are replaced all the same.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """

    async def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
        """Make fibers part of others: their memberships, keys and pins move, and they are deleted.

        The activity of a survivor is widened to cover theirs; its other fields stay. The old ids lead to the
        survivor, by ``resolve_fibers``, also when it becomes part of another later. Who writes memberships
        later resolves their fibers first: what is written to an old id stays there. All happens in one
        transaction; many memberships move in a table that is written before it, as by ``Query.delete``.

        Args:
            survivors: For each fiber that ends, the one it becomes part of, which does not end itself.

        Raises:
            NotFoundError: One of the fibers is not stored.
            TypeError: It is no mapping of ids.
            ValueError: A survivor ends itself, or is of another config version.
        """

    async def write_keys(self, keys: Iterable[FiberKey]) -> int:
        """Give stored fibers keys, by which ``Fibers.c.keys`` finds them.

        A key that its fiber has already keeps the earlier beginning: the lesser ``(first_timestamp,
        first_log_id)``, of equal times one whose line is known.

        Returns:
            How many are new to their fibers.

        Raises:
            NotFoundError: One of the fibers is not stored; ``resolve_fibers`` tells where a merged one is.
            TypeError: An item is not a ``FiberKey``.
        """

    async def get_keys(self, fiber_ids: Iterable[UUID]) -> dict[UUID, list[FiberKey]]:
        """Return the keys of fibers.

        Returns:
            For each id, in the order they were given, its keys by ``(first_timestamp, first_log_id, name,
            value)``, those without a known line last; ``[]`` of a fiber without keys, or that is not stored.
        """

    async def query_fibers_by_key(
        self, name: str, value: str, limit: int = DEFAULT_LIMIT, offset: int = 0
    ) -> list[FiberRecord]:
        """Return the fibers that have a key, of every config version, by ``(first_activity, fiber_id)``.

        It takes little more than ``get_fiber``; ``Fibers.c.keys`` can be joined with other conditions.

        Args:
            name: Name of the key.
            value: Its value.
            limit: Most fibers to return, >= 0.
            offset: How many to leave out before, >= 0.
        """

    async def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """Return where fibers are now.

        Returns:
            For each id, in the order they were given, the id of the stored fiber: itself, or the one it has
            become part of. Ids that lead to none are left out.
        """

    async def write_logs(self, logs: Iterable[LogRecord]) -> int:
        """Store logs, all or none.

        A ``LogRecord`` is stamped with the current time and the storage's ``config_version``; a ``StoredLog``
        keeps its own.

        Args:
            logs: Any number of records. An iterator may give more than fit in memory: it is read while they
                are written. As it cannot be read twice, a conflict then ends the call.

        Returns:
            How many are new: their ``log_id`` was not stored yet.

        Raises:
            TypeError: An item is not a ``LogRecord``.
            ConflictError: Another transaction has written one of the ids while an iterator was read.
        """

    async def get_log(self, log_id: UUID) -> StoredLog | None:
        """Return one log, or None when there is none of that id."""

    async def query_logs_by_time(
        self,
        start: datetime,
        end: datetime,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: LogRecord | tuple[datetime, UUID] | None = None,
    ) -> list[StoredLog]:
        """Return the logs with ``start <= timestamp <= end``, oldest first.

        Order: ``(timestamp, log_id)``.

        Args:
            start: Inclusive lower bound, timezone-aware.
            end: Inclusive upper bound, timezone-aware. Before ``start``, the answer is empty.
            limit: Most rows to return, >= 0.
            offset: Rows to skip, >= 0.
            after: A log, or the ``(timestamp, log_id)`` of one: only rows that follow it.

        Raises:
            ValueError: A bound is naive, or limit or offset is negative.
            TypeError: ``after`` is neither a log nor such a pair.
        """

    async def write_batch(
        self,
        *,
        logs: Iterable[LogRecord] = (),
        fibers: Iterable[FiberRecord] = (),
        memberships: Iterable[FiberMembership] = (),
        keys: Iterable[FiberKey] = (),
        checkpoint: CheckpointMove | None = None,
    ) -> BatchCounts:
        """Store what belongs together, all or none.

        Logs alone, and memberships alone, are appended beside whoever changes rows; anything else waits for
        its turn, so that nobody deletes a stored log before the memberships are stored that hold it.

        Args:
            logs: As for ``write_logs``; an iterator is read to its end first.
            fibers: New ones, and changed ones, which replace what is stored.
            memberships: As for ``write_memberships``.
            keys: As for ``write_keys``, of fibers that are stored or in the batch.
            checkpoint: Moves with them.

        Raises:
            TypeError: An item is of a wrong type.
            ValueError: Two fibers have one id.
            CheckpointError: The checkpoint has another value than expected.
            NotFoundError: The fiber of a key is neither stored nor in the batch.
        """

    @property
    def logs(self) -> AsyncLogRepository:
        """The logs."""

    @property
    def fibers(self) -> AsyncFiberRepository:
        """The fibers."""

    @property
    def memberships(self) -> AsyncMembershipRepository:
        """Which log belongs to which fiber."""

    @property
    def checkpoints(self) -> AsyncCheckpoints:
        """The checkpoints."""

    @property
    def versions(self) -> AsyncVersions:
        """The config versions."""

class AsyncSqlStorage(AsyncLifecycleStorage):
    """A ``SqlStorage`` in coroutines.

    A cancelled ``transaction()`` is rolled back, unless it was committing already.

    Args:
        storage: The storage, which is closed with this.
        threads: How many calls run side by side, >= 1.
    """

    _wrapped: SqlStorage

    @property
    def engine(self) -> sa.Engine:
        """The SQLAlchemy engine; it blocks, so use it in a thread."""

    @property
    def config_version(self) -> int:
        """The stamp of a ``LogRecord``."""

    async def close(self) -> None:
        """Wait for the calls that run, end half-read streams, and close every connection, for good.

        If this is cancelled, call it again.
        """

    def __getstate__(self) -> NoReturn: ...
    def stats(self) -> StorageStats:
        """Return counts since the storage was opened: calls, rows, conflicts, WAL checkpoints."""

    def on_call(self, hook: Callable[[Call], None]) -> None:
        """Have a hook called after each call and each ``transaction()`` block, in the thread of the call.

        An ``Exception`` of the hook is logged and changes nothing; what it waits for, the caller waits for.
        The thread has the context variables of the task. ``fiberstore.otel.instrument`` is such a hook.
        """

    def session(self) -> Session:
        """Return a new ORM session on the engine; it blocks, so use it in a thread."""

    @asynccontextmanager
    def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """Begin a unit of work; commit it at the end of the block, roll it back if the block raises.

        It may change anything without a conflict over changed rows: it has waited until no other transaction
        changes any, and others wait for it. So keep it short, and use only its repositories inside the block:
        the storage's own methods would wait for it too. Two units that write the same new key still conflict.

        Raises:
            ConflictError: Another transaction kept the store for too long, or wrote the same new key first;
                run the block again.
        """
