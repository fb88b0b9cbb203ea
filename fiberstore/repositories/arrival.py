"""The order in which rows were stored: DuckDB's ``rowid``.

A row that is stored later has a larger ``rowid``, also one that is changed in an indexed column, for then
DuckDB deletes it and appends it again. A backup closes the gaps that deleted rows leave, which keeps the
order. So a place in it is known by the id of the last row before it and its ``rowid`` then, as long as that
row is there. Rows of a commit that is on its way may be missing before it (see ``fiberstore.appends``); a
``Mark`` knows where.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.cursors import Mark
from fiberstore.dbapi import Connection
from fiberstore.errors import ConflictError, CursorError
from fiberstore.prepared import Prepared, dbapi_connection

_BEFORE_ALL = -1
_MOST_HOLES = 100
_WAIT_S = 10.0
# DuckDB's MAX_ROW_ID: from here on, rows of a transaction that has not committed.
_FIRST_UNCOMMITTED: sa.ColumnElement[int] = sa.literal_column("36028797018960000", sa.BigInteger)


class Arrival:
    """The order in which the rows of a table were stored.

    Attributes:
        rowid: The column to order by.
    """

    def __init__(self, table: sa.FromClause, id_: sa.ColumnElement[UUID]) -> None:
        rowid: sa.ColumnElement[int] = sa.literal_column(f"{table.description}.rowid", sa.BigInteger)
        self.rowid = rowid
        self._is_committed = rowid < _FIRST_UNCOMMITTED
        after = sa.and_(rowid > sa.bindparam("after"), self._is_committed)
        self._id_at = Prepared[tuple[UUID]](sa.select(id_).where(rowid == sa.bindparam("rowid")))
        self._rowid_of = Prepared[tuple[int]](
            sa.select(rowid).select_from(table).where(id_ == sa.bindparam("id"), self._is_committed)
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
    def snapshot(self, session: Session | Connection, since: Mark | None) -> Iterator[Mark]:
        """Let all statements of the block see the same, and tell what that is in the order of arrival.

        Args:
            session: In a transaction, its snapshot is that of the block.
            since: The mark that an earlier snapshot has left, or None.

        Raises:
            CursorError: The newest row of ``since`` is not there any more.
            ConflictError: In a transaction: too much was on its way when it began; run it again.
        """
        if not isinstance(session, Connection) or session.in_transaction:
            yield self._mark(session, self._settled_by(session, since))
            return
        session.begin()
        try:
            settled = self._settled_by(session, since)
            try:
                mark = self._mark(session, settled)
            except ConflictError:
                # What is missing up to here is seen or will never be there, once these writes have ended.
                settled = self._newest(session, settled)
                unsettled = session.unsettled
                session.rollback()
                session.appends.wait_for(unsettled, _WAIT_S)
                session.begin()
                mark = self._mark(session, settled)
            yield mark
        finally:
            session.rollback()

    def mark_at(self, session: Session | Connection, id_: UUID) -> Mark:
        """Return the mark of who has seen all up to a row, which is there, and nothing after it."""
        ((rowid,),) = self._rowid_of.rows(session, {"id": id_})
        return Mark(id_, rowid)

    def is_new(self, session: Session | Connection, since: Mark) -> sa.ColumnElement[bool]:
        """Return what is true of rows that a snapshot has not seen.

        Raises:
            CursorError: The newest row it saw is not there any more.
        """
        newest = self._rowid_of_newest(session, since)
        in_holes = [self.rowid.between(newest - first, newest - last) for first, last in since.holes]
        if not in_holes:  # alone, this lets DuckDB pass over whole row groups
            return sa.and_(self.rowid > newest, self._is_committed)
        return sa.and_(sa.or_(self.rowid > newest, *in_holes), self._is_committed)

    def _mark(self, session: Session | Connection, settled: int) -> Mark:
        """Return the mark of the present snapshot; all rows up to ``settled`` are known to be seen."""
        holes: list[tuple[int, int]] = []
        ((count, newest),) = self._seen.rows(session, {"after": settled})
        if newest is None:
            newest = settled
        elif count < newest - settled and dbapi_connection(session).unsettled:
            holes = list(self._holes.rows(session, {"after": settled, "limit": _MOST_HOLES + 1}))
            if len(holes) > _MOST_HOLES:
                raise ConflictError("many writes are on their way, and many rows were deleted; run it again")
        ids = list(self._id_at.rows(session, {"rowid": newest}))
        return Mark(
            ids[0][0] if ids else None,
            newest,
            tuple((newest - before - 1, newest - here + 1) for before, here in holes),
        )

    def _settled_by(self, session: Session | Connection, since: Mark | None) -> int:
        """Return up to where a snapshot has seen all rows that will ever be there."""
        if since is None:
            return _BEFORE_ALL
        newest = self._rowid_of_newest(session, since)
        return newest - since.holes[0][0] - 1 if since.holes else newest

    def _newest(self, session: Session | Connection, settled: int) -> int:
        ((_, newest),) = self._seen.rows(session, {"after": settled})
        return settled if newest is None else newest

    def _rowid_of_newest(self, session: Session | Connection, mark: Mark) -> int:
        if mark.newest_id is None:
            return _BEFORE_ALL
        for (rowid,) in self._rowid_of.rows(session, {"id": mark.newest_id}):
            return min(rowid, mark.number)  # a row that was changed since has moved to the end
        raise CursorError(
            f"{mark.newest_id} was the newest row when the cursor was made, and has been deleted: what came "
            "after it is not known any more; start again without the cursor"
        )
