r"""Abstract store-level operations: batches, checkpoints, config versions, retention, compaction; no logic.

Rows are changed by actions on queries, after the filter that selects them (``fiberstore.contract.queries``):

```python
storage.fibers.where(Fibers.c.last_activity < an_hour_ago).close()
storage.logs.where(Logs.c.source_id == "vpn").redact(r"password=\S+", "password=***")
```
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import QueryStorage
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
from fiberstore.contract.storage import DEFAULT_LIMIT, FiberStorage, LogStorage, MembershipStorage
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord, StoredLog

DEFAULT_STEP_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class CheckpointMove:
    """A checkpoint that moves with a batch; see ``Checkpoints.compare_and_set``.

    Attributes:
        name: Of the checkpoint.
        expected: The value it has now; None if there must be none yet.
        value: The value it gets.
    """

    name: str
    expected: str | None
    value: str


class Checkpoints(ABC):
    """Named places, such as how far a file was read, that move only from where they are known to be."""

    @abstractmethod
    def get(self, name: str) -> Checkpoint | None:
        """Return a checkpoint, or None when there is none of that name."""

    @abstractmethod
    def all(self) -> list[Checkpoint]:
        """Return every checkpoint, by name."""

    @abstractmethod
    def set(self, name: str, value: str) -> None:
        """Give a checkpoint a value, whatever it has."""

    @abstractmethod
    def compare_and_set(self, name: str, expected: str | None, value: str) -> None:
        """Give a checkpoint a value, if nobody has changed it meanwhile.

        Args:
            name: Its name.
            expected: The value it has; None if there must be none of that name.
            value: What it gets.

        Raises:
            CheckpointError: It has another value, which stays.
        """

    @abstractmethod
    def delete(self, name: str) -> bool:
        """Delete a checkpoint; return whether there was one."""


class Versions(ABC):
    """The registry of config versions, and the generations of fibers that were made by them.

    The fibers of several versions may stand side by side over the same logs. At most one version is active:
    ``Fibers.c.config_version.is_active()`` is true of its fibers, at the moment of each statement.
    """

    @abstractmethod
    def register(self, content: bytes | str | Path, *, parent: int | None = None) -> ConfigVersion:
        """Note a configuration and its version; one that is registered with its content stays as it is.

        Args:
            content: The content, in UTF-8, or a ``Path`` to the file that holds it.
            parent: The version it was made from; None is the active one, if there is one.

        Raises:
            ValueError: The content cannot be stored as text.
            OSError: The file cannot be read.
        """

    @abstractmethod
    def get(self, config_version: int) -> ConfigVersion | None:
        """Return a registered version, or None."""

    @abstractmethod
    def all(self) -> list[ConfigVersion]:
        """Return every registered version, by ``(created_at, config_version)``."""

    @abstractmethod
    def active(self) -> ConfigVersion | None:
        """Return the active version, or None."""

    @abstractmethod
    def activate(self, config_version: int | None) -> ConfigVersion | None:
        """Make a version the active one, in one transaction: readers see one whole generation or the other.

        Args:
            config_version: The version. One that has fibers but was never registered is registered without
                its content. None: no version is active.

        Returns:
            The version that was active before, to go back to; None if none was.

        Raises:
            VersionNotFoundError: It is not registered, and has no fibers.
        """

    @abstractmethod
    def diff(self, old: int, new: int, limit: int = 1_000) -> GenerationDiff:
        """Compare the fibers of two versions by the stored logs they hold, type by type.

        A fiber without stored logs is new or gone.

        Args:
            old: A version.
            new: Another.
            limit: Most changes to return, >= 0; the counts are of all.

        Raises:
            VersionNotFoundError: One of them is not registered, and has no fibers.
        """

    @abstractmethod
    def drop(self, config_version: int) -> Deleted:
        """Delete the fibers and memberships of a version; its logs, and its place in the registry, stay.

        All fibers go in one transaction, so readers see the whole generation or none of it; then their
        memberships go, in steps, or in one where that is quicker, as by ``Query.delete``. A call that was
        killed in between is finished by another. Pins do not keep them.

        Raises:
            VersionNotFoundError: It is not registered, and has no fibers.
            DatabaseError: It is active; activate another first.
        """


class FiberBatchStorage(FiberStorage):
    """The part of ``LifecycleStorage`` that writes many fibers at once."""

    @abstractmethod
    def write_fibers(self, fibers: Iterable[FiberRecord]) -> int:
        """Store the fibers whose id is new, and leave the others as they are.

        Returns:
            How many are new.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """

    @abstractmethod
    def upsert_fibers(self, fibers: Iterable[FiberRecord], *, widen: bool = False) -> Upserted:
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

    @abstractmethod
    def merge_fibers(self, survivors: Mapping[UUID, UUID]) -> Merged:
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

    @abstractmethod
    def write_keys(self, keys: Iterable[FiberKey]) -> int:
        """Give stored fibers keys, by which ``Fibers.c.keys`` finds them.

        A key that its fiber has already keeps the earlier beginning: the lesser ``(first_timestamp,
        first_log_id)``, of equal times one whose line is known.

        Returns:
            How many are new to their fibers.

        Raises:
            NotFoundError: One of the fibers is not stored; ``resolve_fibers`` tells where a merged one is.
            TypeError: An item is not a ``FiberKey``.
        """

    @abstractmethod
    def get_keys(self, fiber_ids: Iterable[UUID]) -> dict[UUID, list[FiberKey]]:
        """Return the keys of fibers.

        Returns:
            For each id, in the order they were given, its keys by ``(first_timestamp, first_log_id, name,
            value)``, those without a known line last; ``[]`` of a fiber without keys, or that is not stored.
        """

    @abstractmethod
    def query_fibers_by_key(
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

    @abstractmethod
    def resolve_fibers(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """Return where fibers are now.

        Returns:
            For each id, in the order they were given, the id of the stored fiber: itself, or the one it has
            become part of. Ids that lead to none are left out.
        """


class BatchStorage(LogStorage, FiberBatchStorage, MembershipStorage):
    """The part of ``LifecycleStorage`` that writes logs, fibers and memberships together."""

    @abstractmethod
    def write_batch(
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


class LifecycleStorage(QueryStorage, BatchStorage):
    """A storage to live with for years."""

    @property
    @abstractmethod
    def checkpoints(self) -> Checkpoints:
        """The checkpoints."""

    @property
    @abstractmethod
    def versions(self) -> Versions:
        """The config versions."""

    @abstractmethod
    def prune(
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

    @abstractmethod
    def compact(self) -> Compacted:
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
