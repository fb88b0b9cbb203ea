"""The fast path for many rows: records to Arrow columns to one statement.

100,000 logs into a file with all its indexes, DuckDB 2.0.0, two cores, in rows/s (``python -m benchmarks``
prints the figures of your machine): an Arrow batch 409,000, DuckDB's appender 209,000, ``unnest`` of lists
87,000, ``executemany`` 13,000, ORM ``add_all`` 9,000. DuckDB alone, from a ready Arrow table: 600,000.

``INSERT OR IGNORE`` decides arbitrarily between equal keys of one statement, so batches are made unique
first. SQL here is text, because the Arrow batch is no table to SQLAlchemy; it names our own columns, and
holds no values.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Session

from fiberstore.checks import as_utc, check_config_version, check_id, check_text
from fiberstore.contract.lifecycle import Merged
from fiberstore.errors import NotFoundError
from fiberstore.json_text import dump_json
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.sql.conditions import KEYS, among
from fiberstore.sql.connection import ARROW_TABLE, Lock, Row
from fiberstore.sql.functions import KeyHash
from fiberstore.sql.models import BELONGINGS, stored_time
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.sql.rows import key_columns, to_keys

if TYPE_CHECKING:
    import pyarrow as pa  # takes longer to import than all the rest, so each function that needs it does

R = TypeVar("R", LogRecord, FiberRecord, FiberMembership, FiberKey)
T = TypeVar("T")
Columns: TypeAlias = "dict[str, pa.Array]"

_NO_LINE = 2**128  # after every log id
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC) - _EPOCH
_LAST = datetime.max.replace(tzinfo=UTC) - _EPOCH


def checked(records: Iterable[R], kind: type[R]) -> list[R]:
    """Read the records to their end.

    Raises:
        TypeError: One of them is of another type.
    """
    found = list(records)
    if all(issubclass(other, kind) for other in set(map(type, found))):
        return found
    position, record = next(item for item in enumerate(found) if not isinstance(item[1], kind))
    raise TypeError(f"item {position} must be a {kind.__name__}, got {record!r:.200}")


def insert_logs(session: Session, logs: Sequence[LogRecord], config_version: int, now: datetime) -> int:
    """Insert the logs whose id is new, the first of equal ids. Return how many there were."""
    ids = _integers(_values(logs, "log_id"))
    if len(set(ids)) < len(ids):
        return insert_logs(session, _first_of_each(logs, ids), config_version, now)
    columns = {
        "log_id": _uuids(ids),
        "timestamp": _timestamps(_values(logs, "timestamp")),
        "source_id": _texts(_values(logs, "source_id")),
        "raw_text": _texts(_values(logs, "raw_text")),
    }
    if any(issubclass(kind, StoredLog) for kind in set(map(type, logs))):
        stamp = SimpleNamespace(ingestion_time=now, config_version=config_version)
        stamped = [log if isinstance(log, StoredLog) else stamp for log in logs]
        columns["ingestion_time"] = _timestamps(_values(stamped, "ingestion_time"))
        columns["config_version"] = _unsigned(_values(stamped, "config_version"))
    else:
        columns["ingestion_time"] = _repeated(_timestamps([now]), len(logs))
        columns["config_version"] = _repeated(_unsigned([config_version]), len(logs))
    return _insert_new(session, "raw_logs", columns)


def insert_memberships(session: Session, memberships: Sequence[FiberMembership]) -> int:
    """Insert the memberships whose pair of ids is new, the first of equal ones. Return their number."""
    log_ids = _integers(_values(memberships, "log_id"))
    fiber_ids = _integers(_values(memberships, "fiber_id"))
    pairs = [log_id << 128 | fiber_id for log_id, fiber_id in zip(log_ids, fiber_ids, strict=True)]
    if len(set(pairs)) < len(pairs):
        return insert_memberships(session, _first_of_each(memberships, pairs))
    columns = {
        "log_id": _uuids(log_ids),
        "fiber_id": _uuids(fiber_ids),
        "config_version": _unsigned(_values(memberships, "config_version")),
    }
    return _insert_new(session, "fiber_memberships", columns)


def insert_fibers(session: Session, fibers: Sequence[FiberRecord]) -> int:
    """Insert the fibers whose id is new. Return how many there were."""
    return _insert_new(session, "fibers", _fiber_columns(fibers))


def update_fibers(session: Session, fibers: Sequence[FiberRecord], *, widen: bool = False) -> int:
    """Replace every field of the fibers that are stored. Return how many there were.

    Args:
        session: Where.
        fibers: Of different ids.
        widen: Let the stored activity cover theirs, rather than replace it.
    """
    columns = _fiber_columns(fibers)
    values = {name: f"batch.{name}" for name in columns if name not in ("fiber_id", "fiber_type")}
    if widen:
        values["first_activity"] = "least(fibers.first_activity, batch.first_activity)"
        values["last_activity"] = "greatest(fibers.last_activity, batch.last_activity)"
    changes = ", ".join(f"{name} = {value}" for name, value in values.items())

    def update(changes: str, condition: str) -> int:
        return _write(
            session,
            f"UPDATE fibers SET {changes} FROM {ARROW_TABLE} AS batch "
            f"WHERE fibers.fiber_id = batch.fiber_id AND {condition}",
            columns,
        )

    # A fiber rarely changes its type, and only this column is indexed: DuckDB would write the whole row anew.
    found = update(changes, "fibers.fiber_type = batch.fiber_type")
    if found < len(fibers):
        found += update(f"fiber_type = batch.fiber_type, {changes}", "fibers.fiber_type <> batch.fiber_type")
    return found


# A key begins where its earliest known line is; of equal times, a line that is known comes first.
_EARLIER = (
    "(batch.first_timestamp < fiber_keys.first_timestamp "
    "OR batch.first_timestamp = fiber_keys.first_timestamp "
    "AND (batch.first_log_id < fiber_keys.first_log_id "
    "OR batch.first_log_id IS NOT NULL AND fiber_keys.first_log_id IS NULL))"
)
_KEY_COLUMNS = "fiber_id, name, value, hash, first_timestamp, first_log_id, starts"
_SAME_KEY = (
    "fiber_keys.fiber_id = batch.fiber_id AND fiber_keys.hash = batch.hash "
    "AND fiber_keys.name = batch.name AND fiber_keys.value = batch.value"
)


def insert_keys(session: Session, keys: Sequence[FiberKey], *, of_stored: bool = False) -> int:
    """Insert the keys that their fibers do not have yet; of the others, the earlier beginning stays.

    It takes ``Lock.CHANGES``: nothing else keeps two transactions from inserting one key.

    Args:
        session: The session.
        keys: The keys; an identity may be there several times.
        of_stored: Check first that their fibers are stored.

    Returns:
        How many are new.

    Raises:
        NotFoundError: A fiber is not stored, with ``of_stored``.
    """
    fiber_ids, names, values = _identities(keys)
    # The hashes rather than the tuples, of which the garbage collector would look through millions.
    if len(set(map(hash, zip(fiber_ids, names, values, strict=True)))) < len(keys):
        keys = _earliest_of_each(keys)
        fiber_ids, names, values = _identities(keys)
    columns = {
        "fiber_id": _uuids(fiber_ids),
        "name": _texts(names),
        "value": _texts(values),
        "first_timestamp": _timestamps(_values(keys, "first_timestamp")),
        "first_log_id": _optional_uuids(_values(keys, "first_log_id")),
        "starts": _booleans(_values(keys, "starts")),
    }
    return _insert_key_columns(session, columns, of_stored=of_stored)


def _identities(keys: Sequence[FiberKey]) -> tuple[list[int], list[str], list[str]]:
    return _integers(_values(keys, "fiber_id")), _values(keys, "name"), _values(keys, "value")


def _earliest_of_each(keys: Sequence[FiberKey]) -> list[FiberKey]:
    first: dict[tuple[UUID, str, str], FiberKey] = {}
    for key in keys:
        identity = (key.fiber_id, key.name, key.value)
        if identity not in first or _beginning(key) < _beginning(first[identity]):
            first[identity] = key
    return list(first.values())


def _insert_key_columns(session: Session, columns: Columns, *, of_stored: bool = True) -> int:
    connection_of(session).take_lock(Lock.CHANGES)
    if of_stored:
        _check_stored(session, {"fiber_id": columns["fiber_id"]})
    hashed = f"(SELECT *, {_key_hash(session)} AS hash FROM {ARROW_TABLE})"
    inserted = _insert_new_keys(session, hashed, columns)
    if inserted < len(columns["fiber_id"]):
        _move_beginnings(session, hashed, columns)
    return inserted


def _check_stored(session: Session, fiber_ids: Columns) -> None:
    """Raise ``NotFoundError`` if one of the fibers is not stored."""
    unknown = _rows(
        session,
        f"SELECT batch.fiber_id FROM {ARROW_TABLE} AS batch "
        "LEFT JOIN fibers AS f ON f.fiber_id = batch.fiber_id WHERE f.fiber_id IS NULL LIMIT 1",
        fiber_ids,
    )
    if unknown:
        raise NotFoundError(unknown[0][0])


def _insert_new_keys(session: Session, rows: str, columns: Columns) -> int:
    """Insert rows that a subquery selects, if the fiber does not have the key."""
    return _write(
        session,
        f"INSERT INTO fiber_keys ({_KEY_COLUMNS}) SELECT {_KEY_COLUMNS} FROM {rows} AS batch "
        f"WHERE NOT EXISTS (SELECT 1 FROM fiber_keys WHERE {_SAME_KEY})",
        columns,
    )


def _move_beginnings(session: Session, rows: str, columns: Columns) -> int:
    """Let keys that fibers have begin where rows that a subquery selects do, if that is earlier."""
    return _write(
        session,
        "UPDATE fiber_keys SET first_timestamp = batch.first_timestamp, "
        "first_log_id = batch.first_log_id, starts = batch.starts "
        f"FROM {rows} AS batch WHERE {_SAME_KEY} AND {_EARLIER}",
        columns,
    )


def keys_of(session: Session, fiber_ids: Collection[UUID]) -> list[FiberKey]:
    """Return the keys of these fibers, by ``(fiber_id, first_timestamp, first_log_id, name, value)``.

    It reads no batch, which a store that is opened without access to the outside cannot.
    """
    wanted = among(KEYS.c.fiber_id, list(fiber_ids))
    statement = sa.select(*key_columns(KEYS)).where(wanted)
    keys = to_keys(connection_of(session).fetch_rows(*compiled(session, statement)), stored_time)
    return sorted(keys, key=lambda key: (key.fiber_id, *_beginning(key), key.name, key.value))


def delete_keys(session: Session, fiber_ids: Collection[UUID]) -> int:
    """Delete the keys of these fibers. Return how many there were."""
    sql = f"DELETE FROM fiber_keys WHERE fiber_id IN (SELECT fiber_id FROM {ARROW_TABLE})"
    return _write(session, sql, {"fiber_id": _uuids(_integers(fiber_ids))})


def _beginning(key: FiberKey) -> tuple[datetime, int]:
    return key.first_timestamp, _NO_LINE if key.first_log_id is None else key.first_log_id.int


def _key_hash(session: Session) -> str:
    """Return the SQL of the hash of columns ``name`` and ``value``."""
    return _key_hash_in(connection_of(session).statement_dialect)


@cache
def _key_hash_in(dialect: Dialect) -> str:
    return str(KeyHash(sa.column("name", sa.String), sa.column("value", sa.String)).compile(dialect=dialect))


def versions_of(session: Session, fiber_ids: Collection[UUID]) -> dict[UUID, int]:
    """Return the config version of each of these fibers that is stored."""
    sql = f"SELECT f.fiber_id, f.config_version FROM fibers AS f JOIN {ARROW_TABLE} USING (fiber_id)"
    rows = _rows(session, sql, {"fiber_id": _uuids(_integers(fiber_ids))})
    return {fiber_id: int(str(version)) for fiber_id, version in rows if isinstance(fiber_id, UUID)}


def places_of(session: Session, fiber_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """Return the fiber that is stored for each of these ids: its own, or the one it has become part of."""
    rows = _rows(
        session,
        "SELECT batch.fiber_id, coalesce(own.fiber_id, survivor.fiber_id) AS place "
        f"FROM {ARROW_TABLE} AS batch "
        "LEFT JOIN fibers AS own ON own.fiber_id = batch.fiber_id "
        "LEFT JOIN fiber_merges AS m ON m.fiber_id = batch.fiber_id "
        "LEFT JOIN fibers AS survivor ON survivor.fiber_id = m.survivor_id "
        "WHERE coalesce(own.fiber_id, survivor.fiber_id) IS NOT NULL",
        {"fiber_id": _uuids(_integers(fiber_ids))},
    )
    return {
        fiber_id: place for fiber_id, place in rows if isinstance(fiber_id, UUID) and isinstance(place, UUID)
    }


def merge_fibers(session: Session, survivors: Mapping[UUID, UUID]) -> Merged:
    """Make the fiber of each key part of the fiber of its value; all are stored, and no value is a key."""
    columns = {
        "loser": _uuids(_integers(survivors.keys())),
        "survivor": _uuids(_integers(survivors.values())),
    }

    def write(sql: str) -> int:
        return _write(session, sql, columns)

    write(
        "UPDATE fibers SET first_activity = least(fibers.first_activity, lost.first), "
        "last_activity = greatest(fibers.last_activity, lost.last) "
        "FROM (SELECT batch.survivor, min(f.first_activity) AS first, max(f.last_activity) AS last "
        f"FROM {ARROW_TABLE} AS batch JOIN fibers AS f ON f.fiber_id = batch.loser GROUP BY batch.survivor) "
        "AS lost WHERE fibers.fiber_id = lost.survivor "
        "AND (lost.first < fibers.first_activity OR lost.last > fibers.last_activity)"
    )
    memberships = write(
        "INSERT INTO fiber_memberships (log_id, fiber_id, config_version) "
        "SELECT m.log_id, batch.survivor, min(m.config_version) "
        f"FROM fiber_memberships AS m JOIN {ARROW_TABLE} AS batch ON m.fiber_id = batch.loser "
        "GROUP BY m.log_id, batch.survivor ON CONFLICT DO NOTHING"
    )
    write(
        "INSERT INTO fiber_pins (fiber_id) SELECT DISTINCT batch.survivor FROM fiber_pins AS p "
        f"JOIN {ARROW_TABLE} AS batch ON p.fiber_id = batch.loser ON CONFLICT DO NOTHING"
    )
    moved = (
        "(SELECT survivor AS fiber_id, name, value, hash, first_timestamp, first_log_id, starts "
        "FROM (SELECT batch.survivor, k.name, k.value, k.hash, k.first_timestamp, k.first_log_id, k.starts, "
        "row_number() OVER (PARTITION BY batch.survivor, k.hash, k.name, k.value "
        "ORDER BY k.first_timestamp, k.first_log_id NULLS LAST) AS place "
        f"FROM fiber_keys AS k JOIN {ARROW_TABLE} AS batch ON k.fiber_id = batch.loser) AS ranked "
        "WHERE place = 1)"
    )
    _move_beginnings(session, moved, columns)
    _insert_new_keys(session, moved, columns)
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
    gone = {
        table: write(f"DELETE FROM {table} WHERE fiber_id IN (SELECT loser FROM {ARROW_TABLE})")
        for table in ("fiber_memberships", *(model.__tablename__ for model in BELONGINGS), "fibers")
    }
    return Merged(gone["fibers"], memberships)


def update_texts(session: Session, texts: Mapping[UUID, str]) -> int:
    """Replace the texts of logs. Return how many of them are stored."""
    columns = {"log_id": _uuids(_integers(texts.keys())), "raw_text": _texts(list(texts.values()))}
    return _write(
        session,
        f"UPDATE raw_logs SET raw_text = batch.raw_text FROM {ARROW_TABLE} AS batch "
        "WHERE raw_logs.log_id = batch.log_id",
        columns,
    )


def memberships_among(session: Session, log_ids: Collection[UUID]) -> list[Row]:
    """Return log id, fiber type and config version of every membership of these logs in stored fibers."""
    sql = (
        "SELECT m.log_id, f.fiber_type, m.config_version FROM fiber_memberships AS m "
        f"JOIN {ARROW_TABLE} USING (log_id) JOIN fibers AS f ON f.fiber_id = m.fiber_id"
    )
    return list(_rows(session, sql, {"log_id": _uuids(_integers(log_ids))}))


def insert_batch(session: Session, table: str, batch: "pa.RecordBatch") -> int:
    """Insert the rows of a batch without equal keys whose key is new. Return how many there were."""
    if table == KEYS.name:
        return _insert_key_columns(session, dict(zip(batch.schema.names, batch.columns, strict=True)))
    return _insert_new(session, table, dict(zip(batch.schema.names, batch.columns, strict=True)))


def write_ids(session: Session, table: str, column: str, ids: bytes) -> None:
    """Insert ids, joined, into a temporary table of one column."""
    sql = f"INSERT INTO {table} ({column}) SELECT {column} FROM {ARROW_TABLE}"
    connection_of(session).write_with_batch(sql, _batch({column: _joined_uuids(ids)}))


def _first_of_each(records: Sequence[T], keys: Sequence[int]) -> list[T]:
    first: dict[int, T] = {}
    for key, record in zip(keys, records, strict=True):
        first.setdefault(key, record)
    return list(first.values())


def _fiber_columns(fibers: Sequence[FiberRecord]) -> Columns:
    return {
        "fiber_id": _uuids(_integers([fiber.fiber_id for fiber in fibers])),
        "fiber_type": _texts([fiber.fiber_type for fiber in fibers]),
        "config_version": _unsigned([fiber.config_version for fiber in fibers]),
        "attributes": _json([fiber.attributes for fiber in fibers]),
        "first_activity": _timestamps([fiber.first_activity for fiber in fibers]),
        "last_activity": _timestamps([fiber.last_activity for fiber in fibers]),
        "closed": _booleans([fiber.closed for fiber in fibers]),
    }


def _insert_new(session: Session, table: str, columns: Columns) -> int:
    inserted = connection_of(session).insert_new(table, _batch(columns))
    expire(session)
    return inserted


def _write(session: Session, sql: str, columns: Columns) -> int:
    written = connection_of(session).write_with_batch(sql, _batch(columns))
    expire(session)
    return written


def expire(session: Session) -> None:
    """Let a session load its objects again, after a statement it did not see, and keep what is unflushed.

    A changed attribute stays, and the next flush writes it over what the statement wrote. An object that is
    to be deleted stays as it is.
    """
    changed, deleted = session.dirty, session.deleted
    if not changed and not deleted:
        session.expire_all()
        return
    for held in session.identity_map.values():
        if held in changed:
            if unchanged := sa.inspect(held).unmodified:
                session.expire(held, unchanged)
        elif held not in deleted:
            session.expire(held)


def _rows(session: Session, sql: str, columns: Columns) -> list[Row]:
    return connection_of(session).fetch_with_batch(sql, _batch(columns))


def _batch(columns: Columns) -> "pa.RecordBatch":
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


# Records may have skipped their validation (`model_copy` and `model_construct` do), so values are checked:
# all at once, and one by one only if that fails, for the error that names the value.


def _values(records: Iterable[object], field: str) -> list[Any]:
    """Return one field of each record."""
    try:
        return list(map(attrgetter(field), records))
    except AttributeError as error:
        raise TypeError(f"a record has no {field}; make it with all its fields") from error


def _integers(ids: Collection[UUID]) -> list[int]:
    """Return the 128 bits of each id: unlike the ids, they are compared without running any Python."""
    if set(map(type, ids)) - {UUID}:
        for id_ in ids:
            check_id(id_)
    return [id_.int for id_ in ids]


def _uuids(ids: Collection[int]) -> "pa.Array":
    return _joined_uuids(b"".join([id_.to_bytes(16, "big") for id_ in ids]))


def _optional_uuids(ids: Sequence[UUID | None]) -> "pa.Array":
    import pyarrow as pa

    known = _uuids(_integers([id_ for id_ in ids if id_ is not None]))
    if len(known) == len(ids):
        return known
    places = itertools.count()
    indices = pa.array([None if id_ is None else next(places) for id_ in ids], pa.int64())
    return pa.ExtensionArray.from_storage(pa.uuid(), known.storage.take(indices))


def _joined_uuids(ids: bytes) -> "pa.Array":
    import pyarrow as pa

    storage = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids) // 16, [None, pa.py_buffer(ids)])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _timestamps(times: Sequence[datetime]) -> "pa.Array":
    import pyarrow as pa

    if set(map(type, times)) - {datetime}:
        times = [as_utc(time) for time in times]  # a subclass may be finer than Arrow is told
    # Arrow asks every aware datetime for its offset; it takes differences four times as fast.
    try:
        since_epoch = [time - _EPOCH for time in times]
    except TypeError:
        since_epoch = [as_utc(time) - _EPOCH for time in times]
    if not _FIRST <= min(since_epoch, default=_FIRST) <= max(since_epoch, default=_LAST) <= _LAST:
        for time in times:
            as_utc(time)
    return pa.array(since_epoch, pa.duration("us")).view(pa.int64()).view(pa.timestamp("us", "UTC"))


def _texts(values: Sequence[str]) -> "pa.Array":
    import pyarrow as pa

    try:
        texts = pa.array(values, pa.large_string())  # a batch may hold more than 2 GiB
    except (TypeError, ValueError):
        texts = pa.array([check_text(value) for value in values], pa.large_string())
    characters = texts.buffers()[2]
    all_text = all(issubclass(kind, str) for kind in set(map(type, values)))  # Arrow takes bytes too
    if not all_text or (characters is not None and b"\0" in characters.to_pybytes()):
        for value in values:
            check_text(value)
    return texts


def _json(values: Sequence[JsonValue]) -> "pa.Array":
    import pyarrow as pa

    return pa.array([dump_json(value) for value in values], pa.large_string())


def _unsigned(values: Sequence[int]) -> "pa.Array":
    import pyarrow as pa

    if set(map(type, values)) - {int} or not 0 <= min(values, default=0) <= max(values, default=0) < 2**64:
        for value in values:
            check_config_version(value)
    return pa.array(values, pa.uint64())


def _booleans(values: Sequence[bool]) -> "pa.Array":
    import pyarrow as pa

    return pa.array(values, pa.bool_())


def _repeated(values: "pa.Array", count: int) -> "pa.Array":
    import pyarrow as pa

    return pa.repeat(values[0], count)
