"""The order in which rows were stored: DuckDB's ``rowid``.

A row that is stored later has a larger ``rowid``, also one that is changed in an indexed column, for then
DuckDB deletes it and appends it again. A backup closes the gaps that deleted rows leave, which keeps the
order. So a place in it is known by the id of the last row before it and its ``rowid`` then, as long as that
row is there. A snapshot that sees a row sees all before it (see ``fiberstore.duckdb.write_signal``).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.cursors import Watermark
from fiberstore.duckdb.session_connection import duckdb_connection
from fiberstore.errors import CursorError
from fiberstore.repositories.query import one_snapshot
from fiberstore.sql.arrival_order import CommitOrder, NewRows
from fiberstore.sql.prepared import Prepared

_BEFORE_ALL = -1
# DuckDB's MAX_ROW_ID: from here on, rows of a transaction that has not committed.
_FIRST_UNCOMMITTED: sa.ColumnElement[int] = sa.literal_column("36028797018960000", sa.BigInteger)


class RowidOrder(CommitOrder):
    """The order of ``rowid``."""

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
        self._newest = Prepared[tuple[int | None]](
            sa.select(sa.func.max(rowid)).select_from(table).where(after)
        )

    @contextmanager
    def snapshot(self, session: Session, since: Watermark | None) -> Iterator[Watermark]:
        with one_snapshot(session):
            yield self._mark(session, _BEFORE_ALL if since is None else self._rowid_of(session, since))

    @contextmanager
    def new_rows(self, session: Session, since: Watermark | None) -> Iterator[NewRows]:
        written = duckdb_connection(session).write_signal.listen()
        with one_snapshot(session):
            after = _BEFORE_ALL if since is None else self._rowid_of(session, since)
            mark = self._mark(session, after)
            condition = sa.false() if since is None else self.number.between(after + 1, mark.number)
            yield NewRows(condition, mark, partial(_wait_for, written))

    def watermark_at(self, session: Session, id_: UUID) -> Watermark:
        ((rowid,),) = self._rowids.rows(session, {"id": id_})
        return Watermark(id_, rowid)

    def is_new(self, session: Session, since: Watermark) -> sa.ColumnElement[bool]:
        return sa.and_(self.number > self._rowid_of(session, since), self._is_committed)

    def _mark(self, session: Session, after: int) -> Watermark:
        """Return the mark of the present snapshot, which has seen all rows up to ``after``."""
        ((newest,),) = self._newest.rows(session, {"after": after})
        if newest is None:
            newest = after
        return Watermark(self._id_at(session, newest), newest)

    def _id_at(self, session: Session, rowid: int) -> UUID | None:
        ids = list(self._ids.rows(session, {"rowid": rowid}))
        return ids[0][0] if ids else None

    def _rowid_of(self, session: Session, mark: Watermark) -> int:
        if mark.holes or mark.cluster is not None:
            raise CursorError(
                "the cursor is of another database or another release of fiberstore; start again without it"
            )
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
