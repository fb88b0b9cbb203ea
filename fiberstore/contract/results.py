"""Results of the methods of the contract that are no records; no logic."""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeAlias, TypeVar
from uuid import UUID

from fiberstore.records import FiberRecord, StoredLog

T = TypeVar("T")
V_co = TypeVar("V_co", covariant=True)

ChangeKind: TypeAlias = Literal["split", "merged", "moved", "new", "gone"]


@dataclass(frozen=True, slots=True)
class Deleted:
    """Numbers of deleted rows.

    Attributes:
        logs: Deleted logs.
        fibers: Deleted fibers.
        memberships: Deleted memberships, those of the deleted logs and fibers included.
    """

    logs: int
    fibers: int
    memberships: int


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a query, with the cursors of its neighbours.

    Attributes:
        items: Rows of the page, in the order of the query.
        next: Cursor of the following page; None on the last page.
        previous: Cursor of the preceding page; None on the first page.
        late: Late rows: stored since the first page was read, with a place before this page. They come in the
            order they were stored, each once; those of one call or transaction in any order. A fiber counts
            as stored when it is written, and when its type changes.
    """

    items: list[T]
    next: str | None
    previous: str | None
    late: list[T]


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """Result of a lookup by ids.

    Attributes:
        items: Records in the order of their ids in the call; an id that was given twice has its record twice.
        missing: Ids without a record, each once, in the order of the call.
    """

    items: list[T]
    missing: list[UUID]


@dataclass(frozen=True, slots=True)
class ValueCount(Generic[V_co]):
    """Frequency of one value.

    Attributes:
        value: The value.
        count: Number of logs or fibers that have it.
        first_seen: Earliest timestamp of these logs, or first activity of these fibers.
        last_seen: Latest timestamp, or last activity.
    """

    value: V_co
    count: int
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class Bucket:
    """One histogram bucket.

    Attributes:
        start: Beginning of the bucket, inclusive; its end is the beginning of the next.
        group: Source or type that is counted; None if all are counted together.
        count: Number of records in the bucket.
    """

    start: datetime
    group: str | None
    count: int


@dataclass(frozen=True, slots=True)
class FiberSummary:
    """A fiber with the number, sources and times of its stored logs.

    Attributes:
        fiber: The fiber.
        log_count: How many stored logs it has.
        source_ids: Where they were logged, ascending.
        first_log: Time of the first; None without logs.
        last_log: Time of the last.
    """

    fiber: FiberRecord
    log_count: int
    source_ids: list[str]
    first_log: datetime | None
    last_log: datetime | None


@dataclass(frozen=True, slots=True)
class LogContext:
    """A log and its neighbours, oldest first.

    Attributes:
        before: The logs right before it.
        log: The log.
        after: The logs right after it.
    """

    before: list[StoredLog]
    log: StoredLog
    after: list[StoredLog]


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """A log as a point: when and where. The text is left out; ``logs.get_many`` gives it."""

    fiber_id: UUID
    timestamp: datetime
    source_id: str
    log_id: UUID


@dataclass(frozen=True, slots=True)
class Timeline:
    """Fibers over time.

    Attributes:
        fibers: The fibers, in the order of the query.
        points: Logs of them, fiber by fiber in that order, oldest first.
        log_count: How many logs they have; if it is more than there are points, these are evenly chosen.
    """

    fibers: list[FiberRecord]
    points: list[TimelinePoint]
    log_count: int


@dataclass(frozen=True, slots=True)
class Upserted:
    """Result of an upsert of fibers.

    Attributes:
        new: How many were not stored yet.
        changed: How many were stored, and are replaced.
    """

    new: int
    changed: int


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """Numbers of rows that a batch has stored.

    Attributes:
        logs: Logs that are new.
        fibers: Fibers that are new or replaced.
        memberships: Memberships that are new.
        keys: Keys that are new to their fibers.
    """

    logs: int
    fibers: Upserted
    memberships: int
    keys: int = 0


@dataclass(frozen=True, slots=True)
class Merged:
    """Result of a merge of fibers.

    Attributes:
        fibers: How many are no more.
        memberships: How many memberships the survivors have gained.
    """

    fibers: int
    memberships: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """Rows that retention has deleted, or with ``dry_run`` would delete.

    Attributes:
        fibers: Fibers.
        memberships: Memberships of those fibers and logs.
        logs: Logs.
        text_bytes: Bytes of UTF-8 in the text of those logs.
        file_bytes: Size of the database file afterwards; 0 in memory.
        free_bytes: How much of the file is unused: what is written next uses it first, and only
            ``compact()`` gives it back to the disk.
        is_complete: False if it ended because of ``max_steps``; call it again then.
    """

    fibers: int
    memberships: int
    logs: int
    text_bytes: int
    file_bytes: int
    free_bytes: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Compacted:
    """Result of a compaction.

    Attributes:
        bytes_before: Size of the file before, with its write-ahead log.
        bytes_after: Size of the file now.
    """

    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A named place that an application has come to.

    Attributes:
        name: Its name.
        value: What the application has set: any text, for example JSON.
        updated_at: When, in UTC.
    """

    name: str
    value: str
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ConfigVersion:
    """A configuration by which fibers were made.

    Attributes:
        config_version: Its number, as ``fiberstore.config_version`` computes it and fibers have it.
        content_hash: SHA-256 of its content, in hex; None if the content is not known.
        content: Its content; None if it is not known, for fibers that no one has registered.
        parent: The version that was active when it was registered, or that was given.
        created_at: When it was registered, in UTC.
        active: Whether it is the active one.
    """

    config_version: int
    content_hash: str | None
    content: str | None
    parent: int | None
    created_at: datetime
    active: bool


@dataclass(frozen=True, slots=True)
class FiberChange:
    """A difference between the fibers of two versions, of one type, that hold the same logs.

    Fibers that are unchanged are left out of the comparison.

    Attributes:
        kind: ``"split"``: the logs of one old fiber are in several new ones. ``"merged"``: one new fiber has
            logs of several old ones. ``"moved"``: one old and one new fiber share logs with no other, but
            logs came in or went. ``"new"``, ``"gone"``: a fiber that shares no log with one of the
            other version.
        fiber_type: Their type.
        old: The old fibers, ascending.
        new: The new fibers, ascending.
    """

    kind: ChangeKind
    fiber_type: str
    old: list[UUID]
    new: list[UUID]


@dataclass(frozen=True, slots=True)
class GenerationDiff:
    """Differences between the fibers of two versions.

    Attributes:
        unchanged: How many old fibers have a new one with exactly the same logs.
        counts: How many changes of each kind there are, those without any too.
        changes: The first of them: by kind in the order split, merged, moved, new, gone, then by the first
            old id (the first new id for those that have none). A fiber may be in several.
    """

    unchanged: int
    counts: dict[ChangeKind, int]
    changes: list[FiberChange]
