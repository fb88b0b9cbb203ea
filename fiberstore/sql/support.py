"""The part of the repositories that each engine does in its own way."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.sql.arrival_order import CommitOrder

if TYPE_CHECKING:
    from fiberstore.sql.arrow import Columns


class Others(NamedTuple):
    """The rows of a table without those that go.

    Attributes:
        source: All that they depend on.
        rows: Selects them.
    """

    source: sa.FromClause
    rows: sa.Select[Any]


class GoingRows(NamedTuple):
    """Rows of a table that go.

    Attributes:
        table: The table.
        which: Is true of them.
        others: Makes the others of the rows of which a condition is true; by default, those that stay.
    """

    table: sa.Table
    which: sa.ColumnElement[bool]
    others: Callable[[sa.ColumnElement[bool]], Others] | None = None


FindGoing: TypeAlias = Callable[[Session], AbstractContextManager[Iterable[GoingRows]]]
"""Finds them in an open transaction; the conditions hold as long as the block."""


class KeptIds(NamedTuple):
    """Rows of ids that are kept for a block.

    Attributes:
        rows: Has them.
        hold: Makes of a column the condition that it has one of the ids of the first column.
    """

    rows: sa.FromClause
    hold: Callable[[sa.ColumnElement[Any]], sa.ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class StoreSize:
    """Size of a store on disk; zeros in memory.

    Attributes:
        file_bytes: All of it.
        used_bytes: What is in use.
        free_bytes: What new rows can take.
        block_bytes: The least that is taken at once.
    """

    file_bytes: int
    used_bytes: int
    free_bytes: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class BackendSupport:
    """The part of the repositories that is an engine's own; its connections hand it out.

    Attributes:
        membership_id: Columns that tell the rows of ``fiber_memberships`` apart, within one statement.
        keep: Keeps the rows that a statement selects for a block, in an open transaction, whatever happens
            to the tables. All its columns are ids.
        given: Does the same with rows of ids that come from the client; of two blocks that are open at once,
            the first columns have different names.
        log_commit_order: Order in which logs were stored.
        fiber_commit_order: Order in which fibers were stored.
        sets_arrival: True if a statement that gives fibers another type has to set their column ``arrived``
            to its default, for them to come in ``fiber_commit_order`` as new ones do.
        to_time: Makes a datetime of what ``StoreConnection.fetch_prepared`` gives for a time in µs.
        locks_late: True if others append and upsert beside a transaction that has begun with ``Lock.LATE``.
        delete: Deletes the rows of a table of which a condition is true, in an open transaction; returns how
            many they were.
        replace: Puts a new table in the place of one from which rows go, in an open transaction; returns how
            many rows fewer there are, or None if it is not worth it, or others write.
        prepared: Prepares ``delete`` and ``replace`` for a block, on a connection with ``Lock.BESIDE``; None
            where tables are not written anew.
        has_room: True if tables can be written anew beside the old ones: the disk has room for them.
        redact: Replaces what a pattern matches in the texts of the logs of which conditions are true by a
            literal text, in an open transaction; returns how many it changed.
        redacted_at_once: Most logs of one transaction of a call, beside which others change rows; infinite
            where nobody waits for it.
        size_of: Returns the size of the store.
        settle: Makes the space of deleted rows known to ``size_of``, if nobody is in its way.
        kept_rows: Returns how many rows there are of each table, with deleted ones that still take space.
    """

    membership_id: Sequence[sa.ColumnElement[Any]]
    keep: Callable[[Session, sa.Select[Any]], AbstractContextManager[KeptIds]]
    given: Callable[[Session, "Columns"], AbstractContextManager[KeptIds]]
    log_commit_order: CommitOrder
    fiber_commit_order: CommitOrder
    sets_arrival: Callable[[Session], bool]
    to_time: Callable[[Any], datetime]
    locks_late: bool
    delete: Callable[[Session, sa.Table, sa.ColumnElement[bool]], int]
    replace: Callable[[Session, GoingRows], int | None]
    prepared: Callable[[Session, FindGoing], AbstractContextManager[None]] | None
    has_room: Callable[[Session], bool]
    redact: Callable[[Session, list[sa.ColumnElement[bool]], str, str], int]
    redacted_at_once: float
    size_of: Callable[[Session], StoreSize]
    settle: Callable[[Session], None]
    kept_rows: Callable[[Session], dict[str, int]]
