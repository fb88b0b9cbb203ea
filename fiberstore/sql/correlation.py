"""Set-based reads and writes of correlation: a batch of keys or fibers, one statement.

Times are µs since 1970 here, and ids of a batch are numbers, as correlation compares and counts them.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.orm import Session

from fiberstore.json_text import load_json
from fiberstore.records import EARLIEST_US, from_epoch_us, to_epoch_us
from fiberstore.sql.arrow import (
    Columns,
    booleans,
    epoch_times,
    fetch_with_batch,
    insert_new,
    repeated,
    texts,
    unsigned,
    uuids,
    write_with_batch,
)
from fiberstore.sql.conditions import FIBERS, KEYS
from fiberstore.sql.connection import ARROW_TABLE
from fiberstore.sql.functions import TimeUs
from fiberstore.sql.key_rows import SAME_KEY, key_hash_sql
from fiberstore.sql.models import stored_time
from fiberstore.sql.prepared import compiled, connection_of, expire


class FiberKind(NamedTuple):
    """Which fibers are correlated together.

    Attributes:
        fiber_type: Their type.
        config_version: Version of their rules.
        max_gap_us: Longest silence within one, in µs; None for any.
    """

    fiber_type: str
    config_version: int
    max_gap_us: int | None


class LoadedFiber(NamedTuple):
    """The columns of ``fibers`` that correlation needs, and the end of the fiber."""

    fiber_id: int
    attributes: JsonValue
    last_us: int
    end_us: int | None
    before_log_id: int | None


class LoadedKey(NamedTuple):
    """A row of ``fiber_keys``."""

    fiber_id: int
    name: str
    value: str
    first_us: int
    first_log_id: int | None
    starts: bool


class LoadedLine(NamedTuple):
    """A log of a fiber."""

    fiber_id: int
    log_id: int
    time_us: int
    source_id: str
    raw_text: str


class FiberRow(NamedTuple):
    """A row to write to ``fibers``; ``attributes`` as JSON, None for those that are stored."""

    fiber_id: int
    attributes: str | None
    first_us: int
    last_us: int
    closed: bool


class KeyRow(NamedTuple):
    """A row to write to ``fiber_keys``."""

    fiber_id: int
    name: str
    value: str
    first_us: int
    first_log_id: int
    starts: bool


def using_fibers(
    session: Session, kind: FiberKind, uses: Sequence[tuple[tuple[str, str], int, int]]
) -> list[int]:
    """Return the fibers that use one of the keys within its times, bounds included."""
    earliest = [
        EARLIEST_US if kind.max_gap_us is None else max(from_us - kind.max_gap_us, EARLIEST_US)
        for _, from_us, _ in uses
    ]
    rows = fetch_with_batch(
        session,
        # Keys first, by OFFSET: PostgreSQL, which knows little of a batch, may join it with all fibers else.
        "SELECT DISTINCT found.fiber_id "
        "FROM (SELECT k.fiber_id, batch.fiber_type, batch.config_version, batch.earliest, batch.from_time "
        f"FROM {_hashed(session)} "
        "JOIN fiber_keys AS k ON k.hash = batch.hash AND k.first_timestamp <= batch.until_time OFFSET 0) "
        "AS found JOIN fibers AS f ON f.fiber_id = found.fiber_id AND f.last_activity >= found.earliest "
        "AND f.fiber_type = found.fiber_type AND f.config_version = found.config_version "
        "LEFT JOIN fiber_ends AS e ON e.fiber_id = f.fiber_id "
        "WHERE e.timestamp IS NULL OR e.timestamp >= found.from_time",
        {
            "name": texts([key[0] for key, _, _ in uses]),
            "value": texts([key[1] for key, _, _ in uses]),
            "from_time": epoch_times([from_us for _, from_us, _ in uses]),
            "until_time": epoch_times([until_us for _, _, until_us in uses]),
            "earliest": epoch_times(earliest),
            **_kind(kind, len(uses)),
        },
    )
    return [row[0].int for row in rows]


def load_fibers(session: Session, fiber_ids: Collection[int]) -> list[LoadedFiber]:
    """Return stored fibers."""
    rows = fetch_with_batch(
        session,
        f"SELECT f.fiber_id, f.attributes, {_us(session, 'f.last_activity')}, {_us(session, 'e.timestamp')}, "
        f"e.before_log_id FROM {ARROW_TABLE} AS batch JOIN fibers AS f ON f.fiber_id = batch.fiber_id "
        "LEFT JOIN fiber_ends AS e ON e.fiber_id = f.fiber_id",
        _ids(fiber_ids),
    )
    return [
        LoadedFiber(
            row[0].int,
            load_json(row[1]),
            _as_us(row[2]),
            None if row[3] is None else _as_us(row[3]),
            None if row[4] is None else row[4].int,
        )
        for row in rows
    ]


def load_keys(session: Session, fiber_ids: Collection[int]) -> list[LoadedKey]:
    """Return the keys of fibers."""
    rows = fetch_with_batch(
        session,
        f"SELECT k.fiber_id, k.name, k.value, {_us(session, 'k.first_timestamp')}, k.first_log_id, k.starts "
        f"FROM {ARROW_TABLE} AS batch JOIN fiber_keys AS k ON k.fiber_id = batch.fiber_id",
        _ids(fiber_ids),
    )
    return [
        LoadedKey(row[0].int, row[1], row[2], _as_us(row[3]), None if row[4] is None else row[4].int, row[5])
        for row in rows
    ]


def load_lines(session: Session, fiber_ids: Collection[int]) -> list[LoadedLine]:
    """Return the logs of fibers, once for each fiber."""
    rows = fetch_with_batch(
        session,
        f"SELECT m.fiber_id, l.log_id, {_us(session, 'l.timestamp')}, l.source_id, l.raw_text "
        f"FROM {ARROW_TABLE} AS batch JOIN fiber_memberships AS m ON m.fiber_id = batch.fiber_id "
        "JOIN raw_logs AS l ON l.log_id = m.log_id",
        _ids(fiber_ids),
    )
    return [LoadedLine(row[0].int, row[1].int, _as_us(row[2]), row[3], row[4]) for row in rows]


def former_ids(session: Session, fiber_ids: Collection[int]) -> list[tuple[int, int]]:
    """Return the ids that fibers had before they became part of one of these, each with that one."""
    rows = fetch_with_batch(
        session,
        f"SELECT m.fiber_id, m.survivor_id FROM {ARROW_TABLE} AS batch "
        "JOIN fiber_merges AS m ON m.survivor_id = batch.fiber_id",
        _ids(fiber_ids),
    )
    return [(row[0].int, row[1].int) for row in rows]


def latest_us(session: Session, kind: FiberKind, until_us: int | None = None) -> int:
    """Return the latest last activity of fibers, of those before a time if one is given.

    Returns:
        µs since 1970; ``EARLIEST_US`` if there is no such fiber.
    """
    is_one = [FIBERS.c.config_version == kind.config_version, FIBERS.c.fiber_type == kind.fiber_type]
    if until_us is not None:
        is_one.append(FIBERS.c.last_activity <= from_epoch_us(until_us))
    latest = sa.select(TimeUs(sa.func.max(FIBERS.c.last_activity))).where(*is_one)
    # Each is the end of an index of PostgreSQL's.
    both = sa.union_all(*(latest.where(FIBERS.c.closed.is_(closed)) for closed in (False, True)))
    rows = connection_of(session).fetch_rows(*compiled(session, both))
    return max((_as_us(time) for (time,) in rows if time is not None), default=EARLIEST_US)


def joined_logs(session: Session, log_ids: Collection[int], config_version: int) -> set[tuple[int, str]]:
    """Return the logs and types of the stored fibers that they are in by memberships of a version."""
    rows = fetch_with_batch(
        session,
        "SELECT m.log_id, f.fiber_type "
        f"FROM (SELECT m.* FROM {ARROW_TABLE} AS batch JOIN fiber_memberships AS m "
        "ON m.log_id = batch.log_id AND m.config_version = batch.config_version OFFSET 0) AS m "
        "JOIN fibers AS f ON f.fiber_id = m.fiber_id",
        {
            "log_id": uuids(log_ids),
            "config_version": repeated(unsigned([config_version]), len(log_ids)),
        },
    )
    return {(log_id.int, fiber_type) for log_id, fiber_type in rows}


def stored_among(session: Session, fiber_ids: Collection[int]) -> set[int]:
    """Return those of the ids that are stored fibers."""
    rows = fetch_with_batch(
        session,
        f"SELECT f.fiber_id FROM {ARROW_TABLE} AS batch JOIN fibers AS f ON f.fiber_id = batch.fiber_id",
        _ids(fiber_ids),
    )
    return {row[0].int for row in rows}


def has_unknown_firsts(session: Session, config_version: int) -> bool:
    """Return True if fibers of a config version have keys whose first line is not stored."""
    rows = fetch_with_batch(
        session,
        f"SELECT 1 FROM {ARROW_TABLE} AS batch JOIN fibers AS f ON f.config_version = batch.config_version "
        "JOIN fiber_keys AS k ON k.fiber_id = f.fiber_id WHERE k.first_log_id IS NULL LIMIT 1",
        {"config_version": unsigned([config_version])},
    )
    return bool(rows)


def settle_unknown_firsts(session: Session, config_version: int) -> None:
    """Take keys that no line shows any more as there from their fiber's first activity on."""
    of_version = sa.select(FIBERS.c.fiber_id).where(FIBERS.c.config_version == config_version)
    unknown = sa.and_(KEYS.c.first_log_id.is_(None), KEYS.c.fiber_id.in_(of_version))
    change = sa.update(KEYS).where(unknown).values(first_log_id=UUID(int=0))
    connection_of(session).write(*compiled(session, change))
    expire(session)


def forget_firsts(session: Session, fiber_ids: Collection[int], log_id: int | None) -> None:
    """Have fibers made anew of their lines by the next batch that meets them.

    If a log id is given, only those to which it may matter: a key begins with it, or the fiber has an end.
    """
    if fiber_ids and log_id is None:
        write_with_batch(
            session,
            f"UPDATE fiber_keys SET first_log_id = NULL FROM {ARROW_TABLE} AS batch "
            "WHERE fiber_keys.fiber_id = batch.fiber_id",
            _ids(fiber_ids),
        )
    elif fiber_ids and log_id is not None:
        write_with_batch(
            session,
            f"UPDATE fiber_keys SET first_log_id = NULL FROM {ARROW_TABLE} AS batch "
            "WHERE fiber_keys.fiber_id = batch.fiber_id AND (fiber_keys.first_log_id = batch.log_id "
            "OR batch.fiber_id IN (SELECT e.fiber_id FROM fiber_ends AS e))",
            {**_ids(fiber_ids), "log_id": repeated(uuids([log_id]), len(fiber_ids))},
        )


def insert_fibers(session: Session, kind: FiberKind, fibers: Sequence[FiberRow]) -> int:
    """Insert fibers whose id is new. Return how many there were."""
    return insert_new(
        session,
        "fibers",
        {
            **_fiber_columns(fibers),
            "attributes": texts([fiber.attributes or "{}" for fiber in fibers]),
            **_kind(kind, len(fibers)),
        },
    )


def update_fibers(session: Session, fibers: Iterable[FiberRow]) -> None:
    """Update stored fibers; their attributes only if there are some."""
    changed: dict[bool, list[FiberRow]] = {False: [], True: []}
    for fiber in fibers:
        changed[fiber.attributes is not None].append(fiber)
    for has_attributes, rows in changed.items():
        if not rows:
            continue
        columns = _fiber_columns(rows)
        if has_attributes:
            columns["attributes"] = texts([fiber.attributes or "{}" for fiber in rows])
        values = ", ".join(f"{name} = batch.{name}" for name in columns if name != "fiber_id")
        write_with_batch(
            session,
            f"UPDATE fibers SET {values} FROM {ARROW_TABLE} AS batch WHERE fibers.fiber_id = batch.fiber_id",
            columns,
        )


def close_silent(session: Session, kind: FiberKind, before_us: int) -> None:
    """Close the fibers whose last activity is before a time."""
    if before_us <= EARLIEST_US:
        return
    write_with_batch(
        session,
        f"UPDATE fibers SET closed = true FROM {ARROW_TABLE} AS batch "
        "WHERE fibers.config_version = batch.config_version AND fibers.fiber_type = batch.fiber_type "
        "AND fibers.closed = false AND fibers.last_activity < batch.before_time",
        {**_kind(kind, 1), "before_time": epoch_times([before_us])},
    )


def insert_keys(session: Session, keys: Sequence[KeyRow]) -> None:
    """Insert keys that their fibers do not have."""
    if keys:
        write_with_batch(
            session,
            "INSERT INTO fiber_keys (fiber_id, name, value, hash, first_timestamp, first_log_id, starts) "
            f"SELECT fiber_id, name, value, {key_hash_sql(session)}, first_timestamp, first_log_id, starts "
            f"FROM {ARROW_TABLE}",
            _key_columns(keys),
        )


def move_keys(session: Session, keys: Sequence[KeyRow]) -> None:
    """Write another first line of keys that their fibers have."""
    if keys:
        write_with_batch(
            session,
            "UPDATE fiber_keys SET first_timestamp = batch.first_timestamp, "
            "first_log_id = batch.first_log_id, starts = batch.starts "
            f"FROM {_hashed(session)} WHERE {SAME_KEY}",
            _key_columns(keys),
        )


def delete_keys(session: Session, keys: Sequence[tuple[int, str, str]]) -> None:
    """Delete keys of fibers."""
    if keys:
        write_with_batch(
            session,
            f"DELETE FROM fiber_keys USING {_hashed(session)} WHERE {SAME_KEY}",
            {
                "fiber_id": uuids([fiber_id for fiber_id, _, _ in keys]),
                "name": texts([name for _, name, _ in keys]),
                "value": texts([value for _, _, value in keys]),
            },
        )


def replace_ends(session: Session, ends: Sequence[tuple[int, int | None, int | None]]) -> None:
    """Write where fibers end: a time, and the log id before which; no time for fibers that none ends."""
    if not ends:
        return
    write_with_batch(
        session,
        f"DELETE FROM fiber_ends WHERE fiber_id IN (SELECT fiber_id FROM {ARROW_TABLE})",
        {"fiber_id": uuids([fiber_id for fiber_id, _, _ in ends])},
    )
    for is_whole in (True, False):
        rows = [end for end in ends if end[1] is not None and (end[2] is None) == is_whole]
        if rows:
            columns = {
                "fiber_id": uuids([fiber_id for fiber_id, _, _ in rows]),
                "timestamp": epoch_times([time_us or 0 for _, time_us, _ in rows]),
            }
            if not is_whole:
                columns["before_log_id"] = uuids([before or 0 for _, _, before in rows])
            insert_new(session, "fiber_ends", columns)


def insert_memberships(session: Session, pairs: Sequence[tuple[int, int]], config_version: int) -> int:
    """Insert the pairs of a log and a fiber that are new. Return how many there were."""
    if not pairs:
        return 0
    return insert_new(
        session,
        "fiber_memberships",
        {**_pairs(pairs), "config_version": repeated(unsigned([config_version]), len(pairs))},
    )


def delete_memberships(session: Session, pairs: Sequence[tuple[int, int]]) -> None:
    """Delete pairs of a log and a fiber."""
    if pairs:
        write_with_batch(
            session,
            f"DELETE FROM fiber_memberships USING {ARROW_TABLE} AS batch "
            "WHERE fiber_memberships.log_id = batch.log_id AND fiber_memberships.fiber_id = batch.fiber_id",
            _pairs(pairs),
        )


def forget_former(session: Session, fiber_ids: Sequence[int]) -> None:
    """Let ids stand for new fibers: not for others, nor for a dropped one whose memberships are there yet."""
    for table in ("fiber_merges", "fiber_memberships") if fiber_ids else ():
        write_with_batch(
            session,
            f"DELETE FROM {table} WHERE fiber_id IN (SELECT fiber_id FROM {ARROW_TABLE})",
            {"fiber_id": uuids(fiber_ids)},
        )


def resolve_otherwise(session: Session, survivors: Sequence[tuple[int, int]]) -> None:
    """Let former ids stand for other fibers."""
    if survivors:
        write_with_batch(
            session,
            f"UPDATE fiber_merges SET survivor_id = batch.survivor FROM {ARROW_TABLE} AS batch "
            "WHERE fiber_merges.fiber_id = batch.former",
            {
                "former": uuids([former for former, _ in survivors]),
                "survivor": uuids([survivor for _, survivor in survivors]),
            },
        )


def _kind(kind: FiberKind, rows: int) -> Columns:
    return {
        "fiber_type": repeated(texts([kind.fiber_type]), rows),
        "config_version": repeated(unsigned([kind.config_version]), rows),
    }


def _ids(fiber_ids: Collection[int]) -> Columns:
    return {"fiber_id": uuids(fiber_ids)}


def _pairs(pairs: Sequence[tuple[int, int]]) -> Columns:
    return {
        "log_id": uuids([log_id for log_id, _ in pairs]),
        "fiber_id": uuids([fiber_id for _, fiber_id in pairs]),
    }


def _fiber_columns(fibers: Sequence[FiberRow]) -> Columns:
    return {
        "fiber_id": uuids([fiber.fiber_id for fiber in fibers]),
        "first_activity": epoch_times([fiber.first_us for fiber in fibers]),
        "last_activity": epoch_times([fiber.last_us for fiber in fibers]),
        "closed": booleans([fiber.closed for fiber in fibers]),
    }


def _key_columns(keys: Sequence[KeyRow]) -> Columns:
    return {
        "fiber_id": uuids([key.fiber_id for key in keys]),
        "name": texts([key.name for key in keys]),
        "value": texts([key.value for key in keys]),
        "first_timestamp": epoch_times([key.first_us for key in keys]),
        "first_log_id": uuids([key.first_log_id for key in keys]),
        "starts": booleans([key.starts for key in keys]),
    }


def _hashed(session: Session) -> str:
    return f"(SELECT *, {key_hash_sql(session)} AS hash FROM {ARROW_TABLE}) AS batch"


def _as_us(time: object) -> int:
    """Return a fetched time in µs since 1970."""
    return time if isinstance(time, int) else to_epoch_us(stored_time(time))


def _us(session: Session, column: str) -> str:
    """Return the SQL of a time to be fetched."""
    dialect = connection_of(session).statement_dialect
    return str(TimeUs(sa.literal_column(column, sa.TIMESTAMP(timezone=True))).compile(dialect=dialect))
