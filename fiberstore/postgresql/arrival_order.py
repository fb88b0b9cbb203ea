"""The order in which rows were stored, by the number of their transaction.

Triggers note it for each new row in ``log_arrivals`` and ``fiber_arrivals``. A snapshot of PostgreSQL has
seen the transactions before some number, but for those that were running: that is a ``Watermark``. Of the
transaction with the number of a mark that has an id, it has seen the rows up to that one.

Followed: https://www.postgresql.org/docs/current/functions-info.html, on transaction ids and snapshots.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.cursors import NOTHING_SEEN, Watermark
from fiberstore.errors import CursorError, DatabaseError
from fiberstore.repositories.query import one_snapshot
from fiberstore.sql.arrival_order import CommitOrder, NewRows
from fiberstore.sql.prepared import Prepared

_ROWS_AT_ONCE = 10_000
_POLL_S = 0.1
_NOT_NOTED = (
    "pages and tails go by the order in which rows arrive, which this server does not note: the triggers are "
    "missing, as on distributed tables; use query_logs_by_time(after=…), query_fibers_by_type(after=…) or "
    "iter_records()"
)
_AFTER_ALL = 2**63 - 1


def _number(transaction: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.cast(sa.cast(transaction, sa.Text), sa.BigInteger)


_SNAPSHOT = sa.func.pg_current_snapshot()
_RUNNING = sa.func.pg_snapshot_xip(_SNAPSHOT).column_valued("running")
_TRIGGERS = sa.table("pg_trigger", sa.column("tgname"), sa.column("tgrelid"))
_IS_NOTED = Prepared[tuple[bool]](
    sa.select(
        sa.exists().where(
            _TRIGGERS.c.tgname == sa.bindparam("trigger"),
            _TRIGGERS.c.tgrelid == sa.func.to_regclass(sa.bindparam("table")),
        )
    )
)
_SEEN = Prepared[tuple[int, int, int | None, list[int]]](
    sa.select(
        _number(sa.func.pg_snapshot_xmin(_SNAPSHOT)),
        _number(sa.func.pg_snapshot_xmax(_SNAPSHOT)),
        _number(sa.func.pg_current_xact_id_if_assigned()),
        sa.select(
            sa.func.coalesce(sa.func.array_agg(_number(_RUNNING)), sa.literal_column("'{}'"))
        ).scalar_subquery(),
    )
)

_CLUSTER = Prepared[tuple[int]](
    sa.select(sa.column("system_identifier", sa.BigInteger)).select_from(sa.func.pg_control_system())
)


class TransactionOrder(CommitOrder):
    """The order of transactions, by their numbers.

    Args:
        arrivals: Name of the table that notes it.
        id_: The key of the table whose rows it notes.
    """

    def __init__(self, arrivals: str, id_: sa.Column[UUID]) -> None:
        self._id = id_
        self._trigger = {"trigger": f"{arrivals}_add", "table": id_.table.name}
        noted = sa.column(id_.name, id_.type)
        xid, place = sa.column("xid", sa.BigInteger), sa.column("place", sa.BigInteger)
        table = sa.table(arrivals, noted, xid, place)
        self._noted, self._xid, self._place = table.c[id_.name], table.c.xid, table.c.place
        self.number, of_row = (
            sa.select(column).where(self._noted == id_).correlate(id_.table).scalar_subquery()
            for column in (self._xid, self._place)
        )
        self.order = (self.number, of_row)
        self._places = Prepared[tuple[int, int]](
            sa.select(self._xid, self._place).where(self._noted == sa.bindparam("id"))
        )
        after = sa.tuple_(self._xid, self._place) > sa.tuple_(sa.bindparam("xid"), sa.bindparam("place"))
        self._next = Prepared[tuple[int, UUID]](
            sa.select(self._xid, self._noted)
            .where(after, self._xid < sa.bindparam("running"))
            .order_by(self._xid, self._place)
            .offset(sa.bindparam("rows"))
            .limit(sa.bindparam("limit"))
        )

    @contextmanager
    def snapshot(self, session: Session, since: Watermark | None) -> Iterator[Watermark]:
        del since
        self._check_noted(session)
        with one_snapshot(session):
            ((_, end, own, running),) = _SEEN.rows(session, {})
            if own is not None and own >= end:  # its rows are seen, those of later ones are not
                running, end = [*running, *range(end, own)], own + 1
            newest = end - 1
            holes = tuple((newest - xid, newest - xid) for xid in sorted(running))
            yield Watermark(None, newest, holes, _cluster(session))

    @contextmanager
    def new_rows(self, session: Session, since: Watermark | None) -> Iterator[NewRows]:
        """Yield what is new; what has begun after a transaction that still runs is told after its end."""
        self._check_noted(session)
        with one_snapshot(session):
            ((first_running, *_),) = _SEEN.rows(session, {})
            now = Watermark(None, first_running - 1, cluster=_cluster(session))
            if since is None:
                yield NewRows(sa.false(), now, _wait)
                return
            _check_of_here(session, since, first_running - 1)
            xid, place = self._place_of(session, since)
            window = {"xid": xid, "place": place, "running": first_running}
            ends = list(self._next.rows(session, {**window, "rows": _ROWS_AT_ONCE - 1, "limit": 1}))
            mark = replace(now, newest_id=ends[0][1], number=ends[0][0]) if ends else now
            is_news = sa.and_(self._after(session, since), sa.not_(self._after(session, mark)))
            ids = sa.select(self._noted).where(is_news)
            yield NewRows(self._id.in_(ids), mark, _go_on if ends else _wait)

    def watermark_at(self, session: Session, id_: UUID) -> Watermark:
        ((xid, _),) = self._places.rows(session, {"id": id_})
        return Watermark(id_, xid, cluster=_cluster(session))

    def is_new(self, session: Session, since: Watermark) -> sa.ColumnElement[bool]:
        ((_, end, own, _),) = _SEEN.rows(session, {})
        end = max(end, own or 0)
        _check_of_here(session, since, end)
        holes = [since.number - last for last, _ in since.holes]
        # Larger numbers than those to come are of another cluster, see ``renumber_restored``.
        is_new = sa.or_(sa.and_(self._after(session, since), self._xid <= end), self._xid.in_(holes))
        return self._id.in_(sa.select(self._noted).where(is_new))

    def _check_noted(self, session: Session) -> None:
        """Refuse to tell what is new on a server where nothing notes it."""
        ((is_noted,),) = _IS_NOTED.rows(session, self._trigger)
        if not is_noted:
            raise DatabaseError(_NOT_NOTED)

    def _after(self, session: Session, mark: Watermark) -> sa.ColumnElement[bool]:
        xid, place = self._place_of(session, mark)
        # The first alone is one for the index.
        return sa.and_(self._xid >= xid, sa.or_(self._xid > xid, self._place > place))

    def _place_of(self, session: Session, mark: Watermark) -> tuple[int, int]:
        if mark.newest_id is None:
            return mark.number, _AFTER_ALL
        for xid, place in self._places.rows(session, {"id": mark.newest_id}):
            if xid == mark.number:
                return xid, place
        raise CursorError(
            f"{mark.newest_id} was the last row when the cursor was made, and has been changed or deleted: "
            "what came after it is not known any more; start again without the cursor"
        )


def _cluster(session: Session) -> int:
    """Return the identity of the cluster, which a connection asks once."""
    known = session.connection().info
    if "cluster" not in known:
        ((known["cluster"],),) = _CLUSTER.rows(session, {})
    cluster: int = known["cluster"]
    return cluster


def _check_of_here(session: Session, mark: Watermark, newest: int) -> None:
    """Refuse a mark whose number another cluster has given, or this one after it was set back to a backup."""
    if mark != NOTHING_SEEN and (mark.cluster != _cluster(session) or mark.number > newest):
        raise CursorError(
            "the cursor is of another database, whose transactions had other numbers; start again without it"
        )


def _wait(timeout_s: float) -> None:
    """Let some time pass: nobody tells what other processes write."""
    time.sleep(min(timeout_s, _POLL_S))


def _go_on(_timeout_s: float) -> None:
    """Do not wait, there is more."""
