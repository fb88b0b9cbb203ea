"""The order in which rows were stored: DuckDB's ``rowid``.

A row that is stored later has a larger ``rowid``, also one that is changed in an indexed column, for then
DuckDB deletes it and appends it again. A backup closes the gaps that deleted rows leave, which keeps the
order. So a place in it is known by the id of the last row before it and its ``rowid`` then, as long as that
row is there. Rows of a commit that is on its way may be missing before it (see ``fiberstore.appends``); a
``Mark`` knows where.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore import connections
from fiberstore.cursors import Mark
from fiberstore.dbapi import Connection
from fiberstore.errors import ConflictError, CursorError
from fiberstore.prepared import Prepared
from fiberstore.repositories.arrival import Arrival, News
from fiberstore.repositories.on_duckdb.connection import duckdb_connection

_BEFORE_ALL = -1
_MOST_HOLES = 100
_WAIT_S = 10.0
# DuckDB's MAX_ROW_ID: from here on, rows of a transaction that has not committed.
_FIRST_UNCOMMITTED: sa.ColumnElement[int] = sa.literal_column("36028797018960000", sa.BigInteger)


class RowidArrival(Arrival):
    """See ``Arrival``."""

    def __init__(self, table: sa.FromClause, id_: sa.ColumnElement[UUID]) -> None:
        rowid: sa.ColumnElement[int] = sa.literal_column(f"{table.description}.rowid", sa.BigInteger)
        self.number = rowid
        self.order = (rowid,)
        self._is_committed = rowid < _FIRST_UNCOMMITTED
        after = sa.and_(rowid > sa.bindparam("after"), self._is_committed)
        self._ids = Prepared[tuple[UUID]](sa.select(id_).where(rowid == sa.bindparam("rowid")))
        self._rowids = Prepared[tuple[int]](
            sa.select(rowid).select_from(table).where(id_ == sa.bindparam("id"))
        )
        self._seen = Prepared[tuple[int, int | None]](
            sa.select(sa.func.count(), sa.func.max(rowid)).select_from(table).where(after)
        )
        before = sa.func.coalesce(sa.func.lag(rowid).over(order_by=rowid), sa.bindparam("after"))
        steps = (
            sa.select(before.label("before"), rowid.label("here")).select_from(table).where(after).subquery()
        )
        self._holes = Prepared[tuple[int, int]](
            sa.select(steps.c.before, steps.c.here)
            .where(steps.c.here - steps.c.before > sa.literal_column("1"))
            .order_by(steps.c.here)
            .limit(sa.bindparam("limit"))
        )

    @contextmanager
    def snapshot(self, session: Session | connections.Connection, since: Mark | None) -> Iterator[Mark]:
        """See ``Arrival.snapshot``."""
        if not isinstance(session, Connection) or session.in_transaction:
            yield self._mark(session, self._settled_by(session, since))
            return
        session.begin()
        try:
            settled = self._settled_by(session, since)
            try:
                mark = self._mark(session, settled)
            except ConflictError:
                settled, _ = self._seen_after(session, settled)
                _begin_again(session)
                mark = self._mark(session, settled)
            yield mark
        finally:
            session.rollback()

    @contextmanager
    def news(self, connection: connections.Connection, since: Mark) -> Iterator[News]:
        """See ``Arrival.news``."""
        duckdb = duckdb_connection(connection)
        written = duckdb.appends.listen()
        duckdb.begin()
        try:
            after = self._rowid_of(duckdb, since)
            newest, count = self._seen_after(duckdb, after)
            mark = Mark(self._id_at(duckdb, newest), newest) if newest > after else since
            if count < newest - after and duckdb.unsettled:
                _begin_again(duckdb)
            condition = self.number.between(after + 1, newest)
            yield News(condition, mark, partial(_wait_for, written))
        finally:
            duckdb.rollback()

    def mark_at(self, session: Session | connections.Connection, id_: UUID) -> Mark:
        """See ``Arrival.mark_at``."""
        ((rowid,),) = self._rowids.rows(session, {"id": id_})
        return Mark(id_, rowid)

    def is_new(self, session: Session | connections.Connection, since: Mark) -> sa.ColumnElement[bool]:
        """See ``Arrival.is_new``."""
        newest = self._rowid_of(session, since)
        in_holes = [self.number.between(newest - first, newest - last) for first, last in since.holes]
        if not in_holes:  # alone, this lets DuckDB pass over whole row groups
            return sa.and_(self.number > newest, self._is_committed)
        return sa.and_(sa.or_(self.number > newest, *in_holes), self._is_committed)

    def _mark(self, session: Session | connections.Connection, settled: int) -> Mark:
        """Return the mark of the present snapshot; all rows up to ``settled`` are known to be seen."""
        newest, count = self._seen_after(session, settled)
        holes: list[tuple[int, int]] = []
        if count < newest - settled and duckdb_connection(session).unsettled:
            holes = list(self._holes.rows(session, {"after": settled, "limit": _MOST_HOLES + 1}))
            if len(holes) > _MOST_HOLES:
                raise ConflictError("many writes are on their way, and many rows were deleted; run it again")
        return Mark(
            self._id_at(session, newest),
            newest,
            tuple((newest - before - 1, newest - here + 1) for before, here in holes),
        )

    def _settled_by(self, session: Session | connections.Connection, since: Mark | None) -> int:
        """Return up to where a snapshot has seen all rows that will ever be there."""
        if since is None:
            return _BEFORE_ALL
        newest = self._rowid_of(session, since)
        return newest - since.holes[0][0] - 1 if since.holes else newest

    def _seen_after(self, session: Session | connections.Connection, after: int) -> tuple[int, int]:
        """Return the newest rowid of the present snapshot, and how many rows there are from ``after`` on."""
        ((count, newest),) = self._seen.rows(session, {"after": after})
        return after if newest is None else newest, count

    def _id_at(self, session: Session | connections.Connection, rowid: int) -> UUID | None:
        ids = list(self._ids.rows(session, {"rowid": rowid}))
        return ids[0][0] if ids else None

    def _rowid_of(self, session: Session | connections.Connection, mark: Mark) -> int:
        if mark.newest_id is None:
            return _BEFORE_ALL
        for (rowid,) in self._rowids.rows(session, {"id": mark.newest_id}):
            return min(rowid, mark.number)  # a row that was changed since has moved to the end
        raise CursorError(
            f"{mark.newest_id} was the newest row when the cursor was made, and has been deleted: what came "
            "after it is not known any more; start again without the cursor"
        )


def _wait_for(written: "SimpleQueue[None]", timeout_s: float) -> None:
    with suppress(Empty):
        written.get(timeout=timeout_s)


def _begin_again(connection: Connection) -> None:
    """Take another snapshot once all writes have ended that were on their way at the present one.

    What is missing before the newest row of the present one is seen then, or will never be there.
    """
    unsettled = connection.unsettled
    connection.rollback()
    if not connection.appends.wait_for(unsettled, _WAIT_S):
        raise ConflictError(f"a write has been on its way for {_WAIT_S:g} s; run it again")
    connection.begin()
