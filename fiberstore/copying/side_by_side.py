"""Rows of the two stores of a copy: read in order, side by side, and in parts of limited length."""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, TypeAlias, TypeVar, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.copying.checksums import Key
from fiberstore.records import FiberKey, FiberMembership, from_epoch_us
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.conditions import KEYS, MEMBERSHIPS
from fiberstore.sql.connection import Row
from fiberstore.sql.models import check_stored_version, identity_of
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.sql.rows import columns_in_us, to_records
from fiberstore.sql.translate import translate_errors

K = TypeVar("K", str, Key)
V = TypeVar("V")
T = TypeVar("T")
Pair: TypeAlias = tuple[str, int]
"""The ids of a membership, one text after the other, and its config version."""

KEYS_AT_ONCE = 1_000
_ROWS_READ = 4_096
_ID_CHARS = 36


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of at most so many."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def membership_pairs(session: Session, on_rows: Callable[[int], None] | None = None) -> Generator[Pair]:
    """Yield memberships by ascending ids."""
    ids = sa.cast(MEMBERSHIPS.c.log_id, sa.String) + sa.cast(MEMBERSHIPS.c.fiber_id, sa.String)
    statement = sa.select(ids, MEMBERSHIPS.c.config_version).order_by(*MEMBERSHIPS.primary_key)
    with closing(_parts(session, statement, on_rows)) as parts:
        for rows in parts:
            yield from cast("list[Pair]", rows)


def key_pairs(
    session: Session, on_rows: Callable[[int], None] | None = None
) -> Generator[tuple[Key, FiberKey]]:
    """Yield the keys of fibers by what identifies them, ascending."""
    statement = sa.select(*columns_in_us(FiberKey, KEYS)).order_by(*identity_of(KEYS))
    with closing(_parts(session, statement, on_rows)) as parts:
        for rows in parts:
            for key in to_records(FiberKey, rows, from_epoch_us):
                yield (key.fiber_id, key.name, key.value), key


def _parts(
    session: Session, statement: sa.Select[Any], on_rows: Callable[[int], None] | None
) -> Generator[list[Row]]:
    """Yield the rows of a statement in lists, and tell of each once the next is asked for."""
    with translate_errors():
        batches = connection_of(session).stream_rows(*compiled(session, statement), _ROWS_READ)
        with closing(batches):
            for rows in batches:
                yield rows
                if on_rows is not None:
                    on_rows(len(rows))


def differing(
    source: Iterator[tuple[K, V]], destination: Iterator[tuple[K, V]]
) -> Iterator[tuple[K, V | None, V | None]]:
    """Yield each key whose values differ in the two, None for a missing key; both are ascending."""
    one, other = next(source, None), next(destination, None)
    while one is not None and other is not None:
        if one[0] < other[0]:
            yield one[0], one[1], None
            one = next(source, None)
        elif other[0] < one[0]:
            yield other[0], None, other[1]
            other = next(destination, None)
        else:
            if one[1] != other[1]:
                yield one[0], one[1], other[1]
            one, other = next(source, None), next(destination, None)
    while one is not None:
        yield one[0], one[1], None
        one = next(source, None)
    while other is not None:
        yield other[0], None, other[1]
        other = next(destination, None)


def stored_among(storage: SqlStorage, table: sa.Table, ids: Collection[Any]) -> set[Any]:
    """Return those of the ids that are keys of rows of a table."""
    (key,) = table.primary_key
    found: set[Any] = set()
    with translate_errors(), storage.engine.connect() as connection:
        for some in in_batches(ids, KEYS_AT_ONCE):
            found.update(connection.scalars(sa.select(key).where(key.in_(some))))
    return found


def primary_key_of(table: sa.Table, key: Key) -> Key:
    """Return the primary key at the end of what a row is ordered by."""
    columns = list(identity_of(table))
    return tuple(
        UUID(value) if isinstance(column.type, sa.Uuid) and isinstance(value, str) else value
        for column, value in zip(columns, key[-len(columns) :], strict=True)
    )


def as_membership(ids: str, version: int) -> FiberMembership:
    """Return the membership of a ``Pair``."""
    return FiberMembership.model_construct(
        log_id=UUID(ids[:_ID_CHARS]),
        fiber_id=UUID(ids[_ID_CHARS:]),
        config_version=check_stored_version(version),
    )


def moved_to(membership: FiberMembership, fiber_id: UUID) -> FiberMembership:
    """Return the membership of the same log in another fiber."""
    return membership.model_copy(update={"fiber_id": fiber_id})


def ids_of(membership: FiberMembership) -> tuple[UUID, UUID]:
    """Return the primary key of a membership."""
    return membership.log_id, membership.fiber_id
