"""The fast path for many rows: records to Arrow columns to one statement.

100,000 logs into a file with all its indexes, DuckDB 2.0.0, two cores, in rows/s (``python -m benchmarks``
prints the figures of your machine): an Arrow batch 409,000, DuckDB's appender 209,000, ``unnest`` of lists
87,000, ``executemany`` 13,000, ORM ``add_all`` 9,000. DuckDB alone, from a ready Arrow table: 600,000.

``INSERT OR IGNORE`` decides arbitrarily between equal keys of one statement, so batches are made unique
before it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeAlias, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.results import Merged, Upserted
from fiberstore.errors import ConflictError
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord, StoredLog, to_epoch_us
from fiberstore.sql.arrow import (
    Columns,
    column_of,
    epoch_times,
    fetch_with_batch,
    insert_as_made,
    insert_new,
    integers,
    repeated,
    texts,
    timestamps,
    unsigned,
    uuids,
    values_of,
    write_each,
    write_with_batch,
)
from fiberstore.sql.conditions import FIBERS, KEYS, MEMBERSHIPS
from fiberstore.sql.connection import ARROW_TABLE
from fiberstore.sql.key_rows import insert_key_columns, move_to_survivors
from fiberstore.sql.models import BELONGINGS
from fiberstore.sql.prepared import connection_of

if TYPE_CHECKING:
    import pyarrow as pa  # takes longer to import than all the rest, so each function that needs it does

R = TypeVar("R", LogRecord, FiberRecord, FiberMembership, FiberKey)
T = TypeVar("T")

_TABLES: dict[type[object], str] = {
    LogRecord: "raw_logs",
    FiberRecord: "fibers",
    FiberMembership: "fiber_memberships",
}
_PART_ROWS = 5_000  # are converted while the part before them is inserted

NewLog: TypeAlias = tuple[int, int, str, str]
"""A log to be stored: its time in µs since 1970, the 128 bits of its id, its source and its text.

It is a plain tuple, which Python's garbage collector soon leaves alone: to look through millions of records
again and again would take as long as to store them.
"""


def new_logs(logs: Sequence[LogRecord]) -> list[NewLog]:
    """Return records as tuples."""
    ids = integers(values_of(logs, "log_id"))
    return [
        (to_epoch_us(log.timestamp), log_id, log.source_id, log.raw_text)
        for log, log_id in zip(logs, ids, strict=True)
    ]


def checked(records: Sequence[R], kind: type[R], first: int = 0) -> Sequence[R]:
    """Return the records.

    Args:
        records: What may be something else.
        kind: Their type.
        first: Position of the first one, for the error.

    Raises:
        TypeError: One of them is of another type.
    """
    if all(issubclass(other, kind) for other in set(map(type, records))):
        return records
    wrong = next(item for item in enumerate(records, first) if not isinstance(item[1], kind))
    raise TypeError(f"item {wrong[0]} must be a {kind.__name__}, got {wrong[1]!r:.200}")


def insert_logs(session: Session, logs: Sequence[LogRecord], config_version: int, now: datetime) -> int:
    """Insert the logs whose id is new, the first of equal ids. Return how many there were."""

    def columns(part: Sequence[LogRecord]) -> Columns:
        return log_columns(part) | log_stamps(part, config_version, now)

    return _insert(session, LogRecord, logs, columns, distinct_logs)


def distinct_logs(logs: Sequence[LogRecord]) -> Sequence[LogRecord]:
    """Return the first log of each id."""
    return first_of_each(logs, _log_ids(checked(logs, LogRecord)))


def log_columns(logs: Sequence[LogRecord]) -> Columns:
    """Return logs as columns, without their stamps."""
    return {
        "log_id": uuids(_log_ids(logs)),
        "timestamp": timestamps(values_of(logs, "timestamp")),
        "source_id": texts(values_of(logs, "source_id")),
        "raw_text": texts(values_of(logs, "raw_text")),
    }


def log_stamps(logs: Sequence[LogRecord], config_version: int, now: datetime) -> Columns:
    """Return the stamps of logs as columns, this one for those that have none."""
    if any(issubclass(kind, StoredLog) for kind in set(map(type, logs))):
        stamp = SimpleNamespace(ingestion_time=now, config_version=config_version)
        stamped = [log if isinstance(log, StoredLog) else stamp for log in logs]
        return {
            "ingestion_time": timestamps(values_of(stamped, "ingestion_time")),
            "config_version": unsigned(values_of(stamped, "config_version")),
        }
    return {
        "ingestion_time": repeated(epoch_times([to_epoch_us(now)]), len(logs)),
        "config_version": repeated(unsigned([config_version]), len(logs)),
    }


def insert_new_logs(session: Session, logs: Sequence[NewLog], config_version: int, now: datetime) -> int:
    """Insert checked logs whose id is new, the first of equal ids. Return how many there were."""
    if not logs:
        return 0
    logs = first_of_each(logs, [log_id for _, log_id, _, _ in logs])
    times_us, ids, source_ids, raw_texts = zip(*logs, strict=True)
    columns = {
        "log_id": uuids(ids),
        "timestamp": epoch_times(times_us),
        "source_id": texts(source_ids),
        "raw_text": texts(raw_texts),
        "ingestion_time": repeated(epoch_times([to_epoch_us(now)]), len(logs)),
        "config_version": repeated(unsigned([config_version]), len(logs)),
    }
    return insert_new(session, "raw_logs", columns)


def insert_memberships(session: Session, memberships: Sequence[FiberMembership]) -> int:
    """Insert the memberships whose pair of ids is new, the first of equal ones. Return their number."""
    return _insert(session, FiberMembership, memberships, membership_columns, distinct_memberships)


def distinct_memberships(memberships: Sequence[FiberMembership]) -> Sequence[FiberMembership]:
    """Return the first membership of each pair of ids."""
    ids = zip(*_ids_of(checked(memberships, FiberMembership)), strict=True)
    return first_of_each(memberships, [log_id << 128 | fiber_id for log_id, fiber_id in ids])


def membership_columns(memberships: Sequence[FiberMembership]) -> Columns:
    """Return memberships as columns."""
    log_ids, fiber_ids = _ids_of(memberships)
    return {
        "log_id": uuids(log_ids),
        "fiber_id": uuids(fiber_ids),
        "config_version": unsigned(values_of(memberships, "config_version")),
    }


def insert_fibers(session: Session, fibers: Sequence[FiberRecord]) -> int:
    """Insert the fibers, of different ids, whose id is new. Return how many there were."""
    return _insert(session, FiberRecord, fibers, fiber_columns, lambda fibers: fibers)


def upsert_fibers(session: Session, fibers: Columns, *, widen: bool = False) -> Upserted:
    """Insert the fibers whose id is new, and replace every field of the others.

    Args:
        session: Where.
        fibers: Of different ids; see ``fiber_columns``.
        widen: Let the stored activity cover theirs, rather than replace it.

    Raises:
        ConflictError: Another transaction has stored one, or changed its type, between two statements.
    """
    rows = len(fibers["fiber_id"])
    changed = _update_fibers(session, fibers, widen=widen) if rows else 0
    new = insert_new(session, "fibers", fibers) if changed < rows else 0
    if changed + new < rows:
        raise ConflictError("another transaction has written a fiber while it was upserted; run it again")
    return Upserted(new, changed)


def _update_fibers(session: Session, columns: Columns, *, widen: bool) -> int:
    values = {name: f"batch.{name}" for name in columns if name not in ("fiber_id", "fiber_type")}
    if widen:
        values["first_activity"] = "least(fibers.first_activity, batch.first_activity)"
        values["last_activity"] = "greatest(fibers.last_activity, batch.last_activity)"

    def update(condition: str) -> int:
        changes = ", ".join(f"{name} = {value}" for name, value in values.items())
        return write_each(
            session,
            f"UPDATE fibers SET {changes} FROM {ARROW_TABLE} AS batch "
            f"WHERE fibers.fiber_id = batch.fiber_id AND {condition}",
            columns,
        )

    # A fiber rarely changes its type, and only this column is indexed: DuckDB would write the whole row anew.
    found = update("fibers.fiber_type = batch.fiber_type")
    if found < len(columns["fiber_id"]):
        values["fiber_type"] = "batch.fiber_type"
        if connection_of(session).support.sets_arrival(session):
            values["arrived"] = "DEFAULT"
        found += update("fibers.fiber_type <> batch.fiber_type")
    return found


def places_of(session: Session, fiber_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """Return the fiber that is stored for each of these ids: its own, or the one it has become part of."""
    rows = fetch_with_batch(
        session,
        "SELECT batch.fiber_id, coalesce(own.fiber_id, survivor.fiber_id) AS place "
        f"FROM {ARROW_TABLE} AS batch "
        "LEFT JOIN fibers AS own ON own.fiber_id = batch.fiber_id "
        "LEFT JOIN fiber_merges AS m ON m.fiber_id = batch.fiber_id "
        "LEFT JOIN fibers AS survivor ON survivor.fiber_id = m.survivor_id "
        "WHERE coalesce(own.fiber_id, survivor.fiber_id) IS NOT NULL",
        {"fiber_id": uuids(integers(fiber_ids))},
    )
    return {
        fiber_id: place for fiber_id, place in rows if isinstance(fiber_id, UUID) and isinstance(place, UUID)
    }


def unmergeable(session: Session, merges: Columns) -> tuple[UUID, UUID, int | None, int | None] | None:
    """Return a loser and a survivor that are not of one config version, with theirs; None if all are.

    The version of one that is not stored is None.
    """
    rows = fetch_with_batch(
        session,
        "SELECT batch.loser, batch.survivor, l.config_version, s.config_version "
        f"FROM {ARROW_TABLE} AS batch LEFT JOIN fibers AS l ON l.fiber_id = batch.loser "
        "LEFT JOIN fibers AS s ON s.fiber_id = batch.survivor "
        "WHERE l.config_version IS NULL OR s.config_version IS NULL OR l.config_version <> s.config_version "
        "ORDER BY batch.loser LIMIT 1",
        merges,
    )
    for loser, survivor, *versions in rows:
        first, second = (None if version is None else int(version) for version in versions)
        return loser, survivor, first, second
    return None


def merges_of(survivors: Mapping[UUID, UUID]) -> Columns:
    """Return fibers that end and their survivors as the columns ``loser`` and ``survivor``."""
    return {
        "loser": uuids(integers(survivors.keys())),
        "survivor": uuids(integers(survivors.values())),
    }


_WIDEN = (
    "UPDATE fibers SET first_activity = least(fibers.first_activity, lost.first), "
    "last_activity = greatest(fibers.last_activity, lost.last) "
    "FROM (SELECT survivor, min(first_activity) AS first, max(last_activity) AS last "
    "FROM {losers} GROUP BY survivor) AS lost WHERE fibers.fiber_id = lost.survivor "
    "AND (lost.first < fibers.first_activity OR lost.last > fibers.last_activity)"
)
_GIVE_TO_SURVIVORS = (
    "INSERT INTO fiber_memberships (log_id, fiber_id, config_version) "
    "SELECT log_id, survivor, min(config_version) FROM {losers} "
    "GROUP BY log_id, survivor ON CONFLICT DO NOTHING"
)


def move_memberships(session: Session, columns: Columns) -> int:
    """Make the memberships of fibers those of their survivors, beside others who write; see ``merges_of``.

    Returns:
        How many the survivors have got.
    """
    return _from_losers(session, "fiber_memberships", _GIVE_TO_SURVIVORS, columns)[1]


def end_fibers(session: Session, columns: Columns) -> int:
    """Delete fibers, and let the activity of their survivors cover theirs, beside others who write.

    Returns:
        How many were deleted.
    """
    return _from_losers(session, "fibers", _WIDEN, columns)[0]


def _from_losers(session: Session, table: str, change: str, columns: Columns) -> tuple[int, int]:
    """Delete rows of fibers that end, and give survivors what these were; return both numbers."""
    sql = (
        f"WITH losers AS (DELETE FROM {table} USING {ARROW_TABLE} AS batch "
        f"WHERE {table}.fiber_id = batch.loser RETURNING batch.survivor, {table}.*), "
        f"changed AS ({change.format(losers='losers')} RETURNING 1) "
        "SELECT (SELECT count(*) FROM losers), (SELECT count(*) FROM changed)"
    )
    ((gone, changed),) = fetch_with_batch(session, sql, columns)
    connection_of(session).rows_written += gone + changed
    return gone, changed


def merge_fibers(
    session: Session,
    columns: Columns,
    is_loser: Callable[[sa.ColumnElement[UUID]], sa.ColumnElement[bool]],
    moved: int | None = None,
) -> Merged:
    """Make each fiber part of its survivor; all are stored, and no survivor ends itself.

    Args:
        session: Where.
        columns: See ``merges_of``.
        is_loser: Makes of a column the condition that it is the id of a fiber that ends.
        moved: How many memberships their survivors have got already; None to move them.
    """

    def write(change: str, table: str) -> int:
        losers = (
            f"(SELECT batch.survivor, own.* FROM {ARROW_TABLE} AS batch "
            f"JOIN {table} AS own ON own.fiber_id = batch.loser) AS losers"
        )
        return write_with_batch(session, change.format(losers=losers), columns)

    write(_WIDEN, "fibers")
    delete = connection_of(session).support.delete
    if moved is None:
        moved = write(_GIVE_TO_SURVIVORS, "fiber_memberships")
        delete(session, MEMBERSHIPS, is_loser(MEMBERSHIPS.c.fiber_id))
    merge_belongings(session, columns, is_loser)
    return Merged(delete(session, FIBERS, is_loser(FIBERS.c.fiber_id)), moved)


def merge_belongings(
    session: Session,
    columns: Columns,
    is_loser: Callable[[sa.ColumnElement[UUID]], sa.ColumnElement[bool]],
) -> None:
    """Give survivors what belongs to fibers that end, except for memberships; see ``merge_fibers``."""

    def write(sql: str) -> int:
        return write_with_batch(session, sql, columns)

    write(
        "INSERT INTO fiber_pins (fiber_id) SELECT DISTINCT batch.survivor FROM fiber_pins AS p "
        f"JOIN {ARROW_TABLE} AS batch ON p.fiber_id = batch.loser ON CONFLICT DO NOTHING"
    )
    move_to_survivors(session, columns)
    # A survivor may have been merged before, and stored again.
    write(f"DELETE FROM fiber_merges WHERE fiber_id IN (SELECT survivor FROM {ARROW_TABLE})")
    write(
        "UPDATE fiber_merges SET survivor_id = batch.survivor "
        f"FROM {ARROW_TABLE} AS batch WHERE fiber_merges.survivor_id = batch.loser"
    )
    write(
        f"INSERT INTO fiber_merges (fiber_id, survivor_id) SELECT loser, survivor FROM {ARROW_TABLE} "
        "ON CONFLICT (fiber_id) DO UPDATE SET survivor_id = excluded.survivor_id"
    )
    delete = connection_of(session).support.delete
    for table in BELONGINGS:
        delete(session, table, is_loser(table.c.fiber_id))


def update_texts(session: Session, changes: Mapping[UUID, str]) -> int:
    """Replace the texts of logs. Return how many of them are stored."""
    columns = {"log_id": uuids(integers(changes.keys())), "raw_text": texts(list(changes.values()))}
    return write_each(
        session,
        f"UPDATE raw_logs SET raw_text = batch.raw_text FROM {ARROW_TABLE} AS batch "
        "WHERE raw_logs.log_id = batch.log_id",
        columns,
    )


def insert_batch(session: Session, table: str, batch: "pa.RecordBatch") -> int:
    """Insert the rows of a batch without equal keys whose key is new. Return how many there were."""
    if table == KEYS.name:
        return insert_key_columns(session, dict(zip(batch.schema.names, batch.columns, strict=True)))
    return insert_new(session, table, dict(zip(batch.schema.names, batch.columns, strict=True)))


def first_of_each(records: Sequence[T], keys: Sequence[int]) -> Sequence[T]:
    """Return the first record of each key."""
    if len(set(keys)) == len(keys):
        return records
    first: dict[int, T] = {}
    for key, record in zip(keys, records, strict=True):
        first.setdefault(key, record)
    return list(first.values())


def _insert(
    session: Session,
    kind: type[R],
    records: Sequence[R],
    columns_of: Callable[[Sequence[R]], Columns],
    distinct: Callable[[Sequence[R]], Sequence[R]],
) -> int:
    """Insert the records whose key is new, the first of equal keys. Return how many there were."""
    if not records:
        return 0
    starts = range(0, len(records), _PART_ROWS)
    parts = (columns_of(checked(records[start : start + _PART_ROWS], kind, start)) for start in starts)
    return insert_as_made(session, _TABLES[kind], parts, lambda: columns_of(distinct(records)))


def _log_ids(records: Iterable[LogRecord | FiberMembership]) -> list[int]:
    return integers(values_of(records, "log_id"))


def _ids_of(memberships: Sequence[FiberMembership]) -> tuple[list[int], list[int]]:
    return _log_ids(memberships), integers(values_of(memberships, "fiber_id"))


def fiber_columns(fibers: Sequence[FiberRecord]) -> Columns:
    """Return fibers as columns, which takes longer than to write them."""
    return {column.name: column_of(column, values_of(fibers, column.name)) for column in FIBERS.c}
