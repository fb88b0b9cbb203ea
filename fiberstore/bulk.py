"""The fast path for many rows: records to Arrow columns to one statement.

100,000 rows into a file with all its indexes, DuckDB 2.0.0, two cores, in rows/s
(``benchmarks/write_path.py`` prints the figures of your machine): an Arrow batch 295,000, DuckDB's
appender 117,000, ``unnest`` of lists 62,000, ORM ``add_all`` 5,000, ``executemany`` 2,000. DuckDB alone, with
the Arrow table already made: 493,000.

``INSERT OR IGNORE`` decides arbitrarily between equal keys of one statement, so batches are made unique
first. SQL here is text, because the Arrow batch is no table to SQLAlchemy; it names our own columns, and
holds no values.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias, TypeVar
from uuid import UUID

import duckdb
from sqlalchemy.orm import Session

from fiberstore.dialect import dbapi_connection
from fiberstore.errors import ConflictError
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog, dump_json

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R", LogRecord, FiberRecord, FiberMembership)
Columns: TypeAlias = Mapping[str, Iterable[object]]


def checked(records: Iterable[R], kind: type[R]) -> list[R]:
    """Read the records to their end.

    Raises:
        TypeError: One of them is of another type.
    """
    found = list(records)
    for position, record in enumerate(found):
        if not isinstance(record, kind):
            raise TypeError(f"item {position} must be a {kind.__name__}, got {record!r:.200}")
    return found


def insert_logs(session: Session, logs: Iterable[LogRecord], config_version: int, now: datetime) -> int:
    """Insert the logs whose id is new, the first of equal ids. Return how many there were."""
    unique: dict[UUID, LogRecord] = {}
    for log in logs:
        unique.setdefault(log.log_id, log)
    rows = unique.values()
    columns: Columns = {
        "log_id": unique,
        "timestamp": [log.timestamp for log in rows],
        "source_id": [log.source_id for log in rows],
        "raw_text": [log.raw_text for log in rows],
        "ingestion_time": [log.ingestion_time if isinstance(log, StoredLog) else now for log in rows],
        "config_version": [
            log.config_version if isinstance(log, StoredLog) else config_version for log in rows
        ],
    }
    return _insert_new(session, "raw_logs", columns)


def insert_memberships(session: Session, memberships: Iterable[FiberMembership]) -> int:
    """Insert the memberships whose pair of ids is new, the first of equal ones. Return their number."""
    unique: dict[tuple[UUID, UUID], int] = {}
    for membership in memberships:
        unique.setdefault((membership.log_id, membership.fiber_id), membership.config_version)
    columns: Columns = {
        "log_id": [log_id for log_id, _ in unique],
        "fiber_id": [fiber_id for _, fiber_id in unique],
        "config_version": unique.values(),
    }
    return _insert_new(session, "fiber_memberships", columns)


def insert_fibers(session: Session, fibers: Sequence[FiberRecord]) -> int:
    """Insert the fibers whose id is new. Return how many there were."""
    return _insert_new(session, "fibers", _fiber_columns(fibers))


def update_fibers(session: Session, fibers: Sequence[FiberRecord]) -> int:
    """Replace every field of the fibers that are stored. Return how many there were."""
    columns = _fiber_columns(fibers)
    changes = ", ".join(f"{name} = batch.{name}" for name in columns if name != "fiber_id")
    return _write(
        session, f"UPDATE fibers SET {changes} FROM batch WHERE fibers.fiber_id = batch.fiber_id", columns
    )


def merge_fibers(session: Session, survivors: Mapping[UUID, UUID]) -> None:
    """Give the memberships of each key to the fiber of its value, and delete the fiber of the key."""
    columns: Columns = {"loser": survivors.keys(), "survivor": survivors.values()}
    _write(
        session,
        "INSERT OR IGNORE INTO fiber_memberships (log_id, fiber_id, config_version) "
        "SELECT m.log_id, batch.survivor, m.config_version "
        "FROM fiber_memberships m JOIN batch ON m.fiber_id = batch.loser",
        columns,
    )
    _write(session, "DELETE FROM fiber_memberships WHERE fiber_id IN (SELECT loser FROM batch)", columns)
    _write(session, "DELETE FROM fibers WHERE fiber_id IN (SELECT loser FROM batch)", columns)


def memberships_among(session: Session, log_ids: Iterable[UUID]) -> list[tuple[UUID, int]]:
    """Return the log id and the config version of every membership of these logs."""
    sql = "SELECT m.log_id, m.config_version FROM fiber_memberships m JOIN batch USING (log_id)"
    return [(row[0], row[1]) for row in _execute(session, sql, {"log_id": log_ids})]  # type: ignore[misc]


def _fiber_columns(fibers: Sequence[FiberRecord]) -> Columns:
    return {
        "fiber_id": [fiber.fiber_id for fiber in fibers],
        "fiber_type": [fiber.fiber_type for fiber in fibers],
        "config_version": [fiber.config_version for fiber in fibers],
        "attributes": [dump_json(fiber.attributes) for fiber in fibers],
        "first_activity": [fiber.first_activity for fiber in fibers],
        "last_activity": [fiber.last_activity for fiber in fibers],
        "closed": [fiber.closed for fiber in fibers],
    }


def _insert_new(session: Session, table: str, columns: Columns) -> int:
    names = ", ".join(columns)
    return _write(session, f"INSERT OR IGNORE INTO {table} ({names}) SELECT {names} FROM batch", columns)


def _write(session: Session, sql: str, columns: Columns) -> int:
    rows_written = _execute(session, sql, columns)[0][0]
    session.expire_all()  # objects that the application has loaded may have changed
    return int(str(rows_written))


def _execute(session: Session, sql: str, columns: Columns) -> list[tuple[object, ...]]:
    session.flush()
    try:
        return dbapi_connection(session).execute_arrow(sql, _batch(columns))
    except duckdb.ConstraintException as error:
        # OR IGNORE does not ignore a key that was committed after this transaction's snapshot.
        raise ConflictError(str(error).partition("\n")[0]) from error


def _batch(columns: Columns) -> "pa.RecordBatch":
    import pyarrow as pa

    timestamp = pa.timestamp("us", "UTC")
    types = {
        "timestamp": timestamp,
        "ingestion_time": timestamp,
        "first_activity": timestamp,
        "last_activity": timestamp,
        "config_version": pa.uint64(),
        "closed": pa.bool_(),
        "source_id": pa.large_string(),
        "raw_text": pa.large_string(),
        "fiber_type": pa.large_string(),
        "attributes": pa.large_string(),
    }
    arrays = [
        pa.array(values, types[name]) if name in types else _uuids(values) for name, values in columns.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _uuids(ids: Iterable[object]) -> "pa.Array":
    import pyarrow as pa

    data = b"".join([id_.bytes for id_ in ids if isinstance(id_, UUID)])
    storage = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(data) // 16, [None, pa.py_buffer(data)])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)
