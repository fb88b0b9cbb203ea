"""Statements on the table of keys: a batch of keys, one statement."""

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Session

from fiberstore.errors import NotFoundError
from fiberstore.records import FiberKey, from_epoch_us
from fiberstore.sql.arrow import (
    Columns,
    booleans,
    column_of,
    fetch_with_batch,
    integers,
    texts,
    timestamps,
    uuids,
    values_of,
    write_with_batch,
)
from fiberstore.sql.conditions import KEYS, among
from fiberstore.sql.connection import ARROW_TABLE, Lock
from fiberstore.sql.functions import KeyHash
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.sql.rows import columns_in_us, to_records

_NO_LINE = 2**128  # after every log id
# A key begins where its earliest known line is; of equal times, a line that is known comes first.
_EARLIER = (
    "(batch.first_timestamp < fiber_keys.first_timestamp "
    "OR batch.first_timestamp = fiber_keys.first_timestamp "
    "AND (batch.first_log_id < fiber_keys.first_log_id "
    "OR batch.first_log_id IS NOT NULL AND fiber_keys.first_log_id IS NULL))"
)
_KEY_COLUMNS = "fiber_id, name, value, hash, first_timestamp, first_log_id, starts"
SAME_KEY = (
    "fiber_keys.fiber_id = batch.fiber_id AND fiber_keys.hash = batch.hash "
    "AND fiber_keys.name = batch.name AND fiber_keys.value = batch.value"
)


def insert_keys(session: Session, keys: Sequence[FiberKey]) -> int:
    """Insert keys as ``insert_key_columns`` does; their fibers need not be stored."""
    return insert_key_columns(session, key_columns(keys), of_stored=False)


def key_columns(keys: Sequence[FiberKey]) -> Columns:
    """Return keys as columns; of those with one identity, the one that begins first."""
    fiber_ids, names, values = _identities(keys)
    # The hashes rather than the tuples, of which the garbage collector would look through millions.
    if len(set(map(hash, zip(fiber_ids, names, values, strict=True)))) < len(keys):
        keys = _earliest_of_each(keys)
        fiber_ids, names, values = _identities(keys)
    return {
        "fiber_id": uuids(fiber_ids),
        "name": texts(names),
        "value": texts(values),
        "first_timestamp": timestamps(values_of(keys, "first_timestamp")),
        "first_log_id": column_of(KEYS.c.first_log_id, values_of(keys, "first_log_id")),
        "starts": booleans(values_of(keys, "starts")),
    }


def _identities(keys: Sequence[FiberKey]) -> tuple[list[int], list[str], list[str]]:
    return integers(values_of(keys, "fiber_id")), values_of(keys, "name"), values_of(keys, "value")


def _earliest_of_each(keys: Sequence[FiberKey]) -> list[FiberKey]:
    first: dict[tuple[UUID, str, str], FiberKey] = {}
    for key in keys:
        identity = (key.fiber_id, key.name, key.value)
        if identity not in first or _beginning(key) < _beginning(first[identity]):
            first[identity] = key
    return list(first.values())


def insert_key_columns(session: Session, columns: Columns, *, of_stored: bool = True) -> int:
    """Insert the keys that their fibers do not have yet; of the others, the earlier beginning stays.

    It takes ``Lock.CHANGES``: nothing else keeps two transactions from inserting one key.

    Args:
        session: The session.
        columns: The keys, without equal ones; see ``key_columns``.
        of_stored: Check first that their fibers are stored.

    Returns:
        How many are new.

    Raises:
        NotFoundError: A fiber is not stored, with ``of_stored``.
    """
    connection_of(session).take_lock(Lock.CHANGES)
    if of_stored:
        _check_stored(session, {"fiber_id": columns["fiber_id"]})
    hashed = f"(SELECT *, {key_hash_sql(session)} AS hash FROM {ARROW_TABLE})"
    inserted = _insert_new_keys(session, hashed, columns, "fiber_id")
    if inserted < len(columns["fiber_id"]):
        _move_beginnings(session, hashed, columns)
    return inserted


def _check_stored(session: Session, fiber_ids: Columns) -> None:
    """Raise ``NotFoundError`` if one of the fibers is not stored."""
    unknown = fetch_with_batch(
        session,
        f"SELECT batch.fiber_id FROM {ARROW_TABLE} AS batch "
        "LEFT JOIN fibers AS f ON f.fiber_id = batch.fiber_id WHERE f.fiber_id IS NULL LIMIT 1",
        fiber_ids,
    )
    if unknown:
        raise NotFoundError(unknown[0][0])


def _insert_new_keys(session: Session, rows: str, columns: Columns, owner: str) -> int:
    """Insert rows that a subquery selects, if the fiber does not have the key; a column names the fibers."""
    # By OFFSET, Citus looks the keys of the fibers up first, and can join what it has found to anything.
    stored = (
        "(SELECT fiber_id, hash, name, value FROM fiber_keys "
        f"WHERE fiber_id IN (SELECT {owner} FROM {ARROW_TABLE}) OFFSET 0)"
    )
    return write_with_batch(
        session,
        f"INSERT INTO fiber_keys ({_KEY_COLUMNS}) SELECT {_KEY_COLUMNS} FROM {rows} AS batch "
        f"WHERE NOT EXISTS (SELECT 1 FROM {stored} AS fiber_keys WHERE {SAME_KEY})",
        columns,
    )


def _move_beginnings(session: Session, rows: str, columns: Columns) -> int:
    """Let keys that fibers have begin where rows that a subquery selects do, if that is earlier."""
    return write_with_batch(
        session,
        "UPDATE fiber_keys SET first_timestamp = batch.first_timestamp, "
        "first_log_id = batch.first_log_id, starts = batch.starts "
        f"FROM {rows} AS batch WHERE {SAME_KEY} AND {_EARLIER}",
        columns,
    )


def keys_of(session: Session, fiber_ids: Collection[UUID]) -> list[FiberKey]:
    """Return the keys of these fibers, by ``(fiber_id, first_timestamp, first_log_id, name, value)``.

    It reads no batch, which a store that is opened without access to the outside cannot.
    """
    wanted = among(KEYS.c.fiber_id, list(fiber_ids))
    statement = sa.select(*columns_in_us(FiberKey, KEYS)).where(wanted)
    keys = to_records(
        FiberKey, connection_of(session).fetch_rows(*compiled(session, statement)), from_epoch_us
    )
    return sorted(keys, key=lambda key: (key.fiber_id, *_beginning(key), key.name, key.value))


def delete_keys(session: Session, fiber_ids: Collection[UUID]) -> int:
    """Delete the keys of these fibers. Return how many there were."""
    sql = f"DELETE FROM fiber_keys WHERE fiber_id IN (SELECT fiber_id FROM {ARROW_TABLE})"
    return write_with_batch(session, sql, {"fiber_id": uuids(integers(fiber_ids))})


def _beginning(key: FiberKey) -> tuple[datetime, int]:
    return key.first_timestamp, _NO_LINE if key.first_log_id is None else key.first_log_id.int


def key_hash_sql(session: Session) -> str:
    """Return the SQL of the hash of columns ``name`` and ``value``."""
    return _key_hash_in(connection_of(session).statement_dialect)


@cache
def _key_hash_in(dialect: Dialect) -> str:
    return str(KeyHash(sa.column("name", sa.String), sa.column("value", sa.String)).compile(dialect=dialect))


def move_to_survivors(session: Session, columns: Columns) -> None:
    """Give the keys of merged fibers to their survivors.

    Args:
        session: The session.
        columns: The fibers as ``loser``, and for each the ``survivor``.
    """
    moved = (
        "(SELECT survivor AS fiber_id, name, value, hash, first_timestamp, first_log_id, starts "
        "FROM (SELECT batch.survivor, k.name, k.value, k.hash, k.first_timestamp, k.first_log_id, k.starts, "
        "row_number() OVER (PARTITION BY batch.survivor, k.hash, k.name, k.value "
        "ORDER BY k.first_timestamp, k.first_log_id NULLS LAST) AS place "
        f"FROM fiber_keys AS k JOIN {ARROW_TABLE} AS batch ON k.fiber_id = batch.loser) AS ranked "
        "WHERE place = 1)"
    )
    _move_beginnings(session, moved, columns)
    _insert_new_keys(session, moved, columns, "survivor")
