"""Checks of a store, and the repair of provable damage.

An index of DuckDB may disagree with its table: DuckDB 1.x leaves secondary indexes empty when a process was
killed and the file was then opened and closed without use (#23788), and DuckDB 2 takes them as they are.
PostgreSQL has ``pg_amcheck`` for its own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fiberstore.atomic_files import leftovers
from fiberstore.errors import SerializationError
from fiberstore.json_text import load_json
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql import migrate
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS, apart
from fiberstore.sql.engine import IN_MEMORY
from fiberstore.sql.functions import KeyHash
from fiberstore.sql.models import (
    BELONGINGS,
    Base,
    Fiber,
    KeyedFiber,
    Membership,
    RawLog,
    Timestamp,
    identity_of,
)
from fiberstore.sql.translate import translate_errors

_KEYS_AT_ONCE = 1_000
_ROWS_BY_INDEX = sa.text(
    "SELECT current_setting('index_scan_max_count'), current_setting('index_scan_percentage')"
)
_FIRST_TIME, _LAST_TIME = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_SPANS = (
    sa.select(
        Membership.fiber_id,
        sa.func.min(RawLog.timestamp).label("first"),
        sa.func.max(RawLog.timestamp).label("last"),
    )
    .join(RawLog, RawLog.log_id == Membership.log_id)
    .where(sa.func.isfinite(RawLog.timestamp), RawLog.timestamp.between(_FIRST_TIME, _LAST_TIME))
    .group_by(Membership.fiber_id)
    .subquery("spans")
)
_NOT_COVERED = sa.and_(
    Fiber.fiber_id == _SPANS.c.fiber_id,
    sa.or_(Fiber.first_activity > _SPANS.c.first, Fiber.last_activity < _SPANS.c.last),
)
_WRONG_HASH = KeyedFiber.hash != KeyHash(KeyedFiber.name, KeyedFiber.value)
_WIDEN = (
    sa.update(Fiber)
    .where(_NOT_COVERED)
    .values(
        first_activity=sa.func.least(Fiber.first_activity, _SPANS.c.first),
        last_activity=sa.func.greatest(Fiber.last_activity, _SPANS.c.last),
    )
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check.

    Attributes:
        text: What was found.
        is_problem: Whether something is wrong, rather than only worth knowing.
        is_repairable: Whether ``repair`` mends it.
    """

    text: str
    is_problem: bool = True
    is_repairable: bool = False


def examine(storage: SqlStorage) -> list[Finding]:
    """Check a store without changing it; nobody should write meanwhile.

    It needs two connections of the pool. Every index of DuckDB is verified against its table, which takes
    some 15 s for each million keys. References between rows are checked only if schema and indexes are
    right, because joins use them.

    Returns:
        Findings; empty if the store is right.

    Raises:
        StorageError: The store cannot be read.
    """
    with translate_errors(), storage.engine.connect() as connection:
        about_folder = [*_about_folder(storage)]
        if about_schema := _about_schema(storage, connection):
            return about_schema + about_folder
        about_keys = [*_broken_indexes(storage, connection), *_about_primary_keys(storage, connection)]
        about_rows = about_keys or [*_about_values(connection), *_about_sense(connection)]
        return about_rows + about_folder


def repair(storage: SqlStorage) -> list[str]:
    """Repair what can be proved; nobody should write meanwhile.

    If an index is broken, all are built anew from their tables: of a column that holds one value only, DuckDB
    does not ask the index, so nobody can tell. The activity of fibers is widened until it covers their logs,
    and wrong hashes of keys are replaced.
    Each is one transaction. All else depends on what the rows should have been, and stays as it is.

    Returns:
        What was done, a sentence each.

    Raises:
        StorageError: The store cannot be read or written.
    """
    with translate_errors():
        with storage.engine.connect() as connection:
            if _about_schema(storage, connection):
                return []
            indexes = _indexes(connection) if _broken_indexes(storage, connection) else []
        for index in indexes:
            with storage.transaction() as transaction:
                index.drop(transaction.session.connection(), checkfirst=True)
                index.create(transaction.session.connection())
        with storage.transaction() as transaction:
            connection = transaction.session.connection()
            widened = connection.execute(_WIDEN).rowcount
            right = KeyHash(KeyedFiber.name, KeyedFiber.value)
            hashed = connection.execute(sa.update(KeyedFiber).where(_WRONG_HASH).values(hash=right)).rowcount
    done = [f"index {index.name} is built anew" for index in indexes]
    if widened:
        done.append(f"the activity of {widened:,} fibers is widened to that of their logs")
    if hashed:
        done.append(f"{hashed:,} keys have their right hash")
    return done


def _about_folder(storage: SqlStorage) -> Iterator[Finding]:
    """Name what killed processes have left beside the file."""
    database = storage.engine.url.database or ""
    if storage.engine.dialect.name != "duckdb" or database.startswith(IN_MEMORY):
        return
    for folder in leftovers(Path(database).parent):
        yield Finding(
            f"{folder} is an unfinished copy or export of a process that was killed, and may hold log text; "
            "the next command that writes beside it removes it",
            is_problem=False,
        )


def _about_schema(storage: SqlStorage, connection: sa.Connection) -> list[Finding]:
    revision, head = migrate.current(connection), migrate.head()
    if revision is None:
        return [Finding("the tables are missing; `fiberstore db upgrade` builds them")]
    if revision != head:
        return [Finding(f"the tables are at revision {revision}, and this release expects {head}")]
    # A missing index can be repaired; it is told of with the broken ones.
    return [
        Finding(difference)
        for difference in migrate.differences(storage.engine)
        if not (difference.startswith("index ") and difference.endswith(" is missing"))
    ]


def _indexes(connection: sa.Connection) -> list[sa.Index]:
    is_there = migrate.is_of_engine(connection.dialect.name)
    found = [index for table in Base.metadata.sorted_tables for index in table.indexes if is_there(index)]
    return sorted(found, key=lambda index: str(index.name))


def _broken_indexes(storage: SqlStorage, connection: sa.Connection) -> list[Finding]:
    broken = []
    for index in _indexes(connection):
        table = str(index.table)
        what = f"index {index.name} on {table}"
        if index.name not in {found["name"] for found in sa.inspect(connection).get_indexes(table)}:
            broken.append(Finding(f"{what} is missing", is_repairable=True))
        elif _may_lose_rows(connection):
            (column,) = index.columns
            if lost := _count_lost(storage, connection, column):
                broken.append(Finding(f"{what} does not find {lost:,} rows", is_repairable=True))
    return broken


def _about_primary_keys(storage: SqlStorage, connection: sa.Connection) -> Iterator[Finding]:
    advice = "`fiberstore db backup` makes a copy with new indexes"
    for table in Base.metadata.sorted_tables:
        if table.primary_key and not _may_lose_rows(connection):
            continue
        identity = identity_of(table)
        keys = sa.select(*identity).group_by(*identity)
        twice = keys.having(sa.func.count() > 1).subquery()
        if repeated := _count(connection, twice):
            yield Finding(f"{repeated:,} keys of {table.name} are there more than once")
        if len(table.primary_key) == 1:  # DuckDB looks nothing up by a key of two columns
            (column,) = table.primary_key
            if lost := _count_lost(storage, connection, column):
                yield Finding(f"the primary key of {table.name} does not find {lost:,} rows; {advice}")


def _may_lose_rows(connection: sa.Connection) -> bool:
    """Return whether indexes are to be compared with their tables: those of PostgreSQL are its own affair."""
    return connection.dialect.name == "duckdb"


def _count_lost(storage: SqlStorage, connection: sa.Connection, column: sa.ColumnElement[Any]) -> int:
    """Count the rows that a scan finds and the index does not, or the other way round.

    DuckDB asks an index, and takes its answer if it has no more than so many rows; else it scans the table.
    So keys are looked up together that have no more. One that has more alone is looked up until there is one
    row too many: then its answer comes from a scan, and is right.
    """
    as_driven = sa.type_coerce(column, sa.types.NullType())  # rows of other clients may hold any value
    keys = sa.select(as_driven, sa.func.count()).group_by(as_driven)  # without a condition DuckDB scans
    rows = _count(connection, column.table)
    most, share = connection.execute(_ROWS_BY_INDEX).one()
    most = max(int(most), int(share * rows))
    lost = 0
    with storage.engine.connect() as lookups:
        found = ((key, rows) for key, rows in connection.execute(keys) if not _is_beyond_python(key, column))
        for rows_of in _chunks(found, most):
            wanted = sa.select(sa.literal(1)).where(as_driven.in_(rows_of)).limit(most + 1).subquery()
            counted = _count(lookups, wanted)
            if counted <= most:
                lost += abs(sum(rows_of.values()) - counted)
    return lost


def _chunks(found: Iterable[tuple[object, int]], most: int) -> Iterator[dict[object, int]]:
    """Put keys together whose rows are no more than so many, or one key."""
    chunk: dict[object, int] = {}
    together = 0
    for key, rows in found:
        if chunk and (len(chunk) == _KEYS_AT_ONCE or together + rows > most):
            yield chunk
            chunk, together = {}, 0
        chunk[key] = rows
        together += rows
    if chunk:
        yield chunk


def _is_beyond_python(key: object, column: sa.ColumnElement[Any]) -> bool:
    """Tell a time that the driver hands out as text, or as a naive datetime for infinity."""
    return isinstance(column.type, Timestamp) and getattr(key, "tzinfo", None) is None


def _about_values(connection: sa.Connection) -> Iterator[Finding]:
    for table in (LOGS, FIBERS):
        bad = sa.or_(*(_is_no_time(column) for column in table.c if isinstance(column.type, Timestamp)))
        if rows := _count(connection, table, bad):
            yield Finding(f"{rows:,} rows of {table.name} have times that no record can hold")
    texts = sa.select(sa.type_coerce(Fiber.attributes, sa.String))
    if rows := sum(not _is_json(text) for text in connection.scalars(texts)):
        yield Finding(f"{rows:,} rows of fibers have attributes that are not JSON")


def _is_no_time(column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    in_range = column.between(_FIRST_TIME, _LAST_TIME)
    return sa.or_(column.is_(None), ~sa.func.isfinite(column), ~in_range)


def _is_json(text: str | None) -> bool:
    try:
        load_json(text)
    except SerializationError:
        return False
    return True


def _about_sense(connection: sa.Connection) -> Iterator[Finding]:
    if rows := _count(connection, FIBERS.join(_SPANS, _NOT_COVERED)):
        yield Finding(f"{rows:,} fibers have logs outside their activity", is_repairable=True)
    if rows := _count(connection, Fiber, Fiber.first_activity > Fiber.last_activity):
        yield Finding(f"{rows:,} fibers end before they begin")
    for name, column, id_ in (
        ("log", MEMBERSHIPS.c.log_id, LOGS.c.log_id),
        ("fiber", MEMBERSHIPS.c.fiber_id, FIBERS.c.fiber_id),
    ):
        if rows := _count_without(connection, column, id_):
            yield Finding(f"{rows:,} memberships have no {name} (it may come later)", is_problem=False)
    if rows := _count(connection, KeyedFiber, _WRONG_HASH):
        yield Finding(f"{rows:,} keys have a wrong hash, and are not found", is_repairable=True)
    for table in BELONGINGS:
        if rows := _count_without(connection, table.c.fiber_id, FIBERS.c.fiber_id):
            yield Finding(f"{rows:,} rows of {table.name} have no fiber", is_problem=False)


def _count_without(connection: sa.Connection, column: sa.Column[Any], id_: sa.Column[Any]) -> int:
    """Count the rows of one table whose ids another table does not have."""
    known = apart(sa.select(id_))
    both = column.table.outerjoin(known, known.c[id_.name] == column)
    return _count(connection, both, known.c[id_.name].is_(None))


def _count(
    connection: sa.Connection, rows: sa.FromClause | type[Base], where: sa.ColumnElement[bool] | None = None
) -> int:
    statement = sa.select(sa.func.count()).select_from(rows)
    return int(connection.scalars(statement if where is None else statement.where(where)).one())
