"""The order in which rows were stored, by the number of their transaction.

The column ``arrived`` holds it, by its default; what was there before the column has 0. A snapshot of
PostgreSQL has seen the transactions before some number, but for those that were running: that is a
``Watermark``. Rows of one transaction are in the order of their ids.

Followed: https://www.postgresql.org/docs/current/functions-info.html, on transaction ids and snapshots.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.cursors import NOTHING_SEEN, Watermark
from fiberstore.errors import CursorError, DatabaseError
from fiberstore.postgresql.citus import has_citus
from fiberstore.repositories.query import one_snapshot
from fiberstore.sql.arrival_order import CommitOrder, NewRows
from fiberstore.sql.connection import StoreConnection
from fiberstore.sql.prepared import Prepared

_ROWS_AT_ONCE = 10_000
_POLL_S = 0.1
_NOT_NOTED = (
    "pages and tails go by the order in which rows arrive, and {0} has no column arrived with its default; "
    "before revision 0005 `fiberstore db upgrade` adds it; who has dropped it runs: "
    "ALTER TABLE {0} ADD COLUMN IF NOT EXISTS arrived bigint NOT NULL DEFAULT 0, "
    "ALTER COLUMN arrived SET DEFAULT pg_current_xact_id()::text::bigint; "
    "CREATE INDEX IF NOT EXISTS idx_{0}_arrived ON {0} (arrived)"
)
_FROM_ELSEWHERE = (
    "the store holds rows of another cluster, whose transactions had larger numbers, and a tail would miss "
    "them; after a restore run `fiberstore db upgrade`, and leave the column arrived out of a publication"
)
_NOTES = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = 'arrived' AND atthasdef"
_ONE = sa.literal_column("1", sa.Integer)
_HAS_NO_TRIGGER = Prepared[tuple[int]](
    sa.text(
        "SELECT 1 FROM pg_extension, pg_attribute WHERE extname = 'citus' "
        "AND attrelid = to_regclass('fibers') AND attname = 'arrived' AND atthasdef"
    )
)


def _number(transaction: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.cast(sa.cast(transaction, sa.Text), sa.BigInteger)


_SNAPSHOT = sa.func.pg_current_snapshot()
_RUNNING = sa.func.pg_snapshot_xip(_SNAPSHOT).column_valued("running")
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

# Of two stores in one cluster, or of one whose column was made anew, the numbers are not comparable either.
_IDENTITY = Prepared[tuple[int, bool]](
    sa.text(
        "SELECT hashint8extended(system_identifier, d.oid::bigint), "
        "EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') "
        "FROM pg_control_system() CROSS JOIN pg_attrdef AS d "
        "JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum "
        "WHERE attname = 'arrived' AND attrelid = to_regclass(:table)"
    )
)
# A coordinator of Citus commits before its workers do, and holds the lock of the transaction until they have.
# Locks have the last 32 bits of its number.
_HELD = Prepared[tuple[int]](
    sa.text(
        "SELECT seen + ((transactionid::text::bigint - seen + 2147483648) & 4294967295) - 2147483648 "
        "FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS seen) AS now, pg_locks "
        "WHERE locktype = 'transactionid' AND granted AND mode = 'ExclusiveLock' AND pid <> pg_backend_pid()"
    )
)


class _Source(NamedTuple):
    """The origin of the numbers.

    Attributes:
        identity: Of the cluster and the column.
        is_citus: True if others may not see yet what has committed here.
    """

    identity: int
    is_citus: bool


class TransactionOrder(CommitOrder):
    """The order of transactions, by their numbers.

    Args:
        id_: The key of the table.
    """

    def __init__(self, id_: sa.Column[UUID]) -> None:
        self._id = id_
        self._table = id_.table.name
        self.number = sa.literal_column(f"{self._table}.arrived", sa.BigInteger)
        self.order = (self.number, id_)
        xid, place = sa.bindparam("xid", type_=sa.BigInteger), sa.bindparam("place", type_=id_.type)
        running = sa.bindparam("running", type_=sa.BigInteger)
        number = sa.select(self.number).select_from(id_.table)
        self._number_of = Prepared[tuple[int]](number.where(id_ == sa.bindparam("id")))
        self._from_elsewhere = Prepared[tuple[int]](number.where(self.number >= running).limit(_ONE))
        later = number.where(self.number > xid, self.number < running).order_by(self.number)
        self._next = Prepared[tuple[int]](later.limit(_ONE))
        self._later = Prepared[tuple[int]](later.offset(sa.bindparam("skipped")).limit(_ONE))
        rest = sa.select(self.number).select_from(id_.table).where(self.number == xid, id_ > place)
        self._rest = Prepared[tuple[int]](rest.limit(_ONE))

    @contextmanager
    def snapshot(self, session: Session, since: Watermark | None) -> Iterator[Watermark]:
        del since
        with one_snapshot(session):
            identity = self._source(session).identity
            _, end, own, running = self._seen(session)
            if own is not None and own >= end:  # its rows are seen, those of later ones are not
                running, end = [*running, *range(end, own)], own + 1
            newest = end - 1
            holes = tuple((newest - xid, newest - xid) for xid in sorted(running))
            yield Watermark(None, newest, holes, identity)

    @contextmanager
    def new_rows(self, session: Session, since: Watermark | None) -> Iterator[NewRows]:
        """Yield what is new; what has begun after a transaction that still runs is told after its end."""
        with one_snapshot(session):
            identity, is_citus = self._source(session)
            first_running, end, *_ = self._seen(session)
            # Of Citus, a statement may see what has begun after the snapshot.
            if not is_citus and list(self._from_elsewhere.rows(session, {"running": end})):
                raise DatabaseError(_FROM_ELSEWHERE)
            now = Watermark(None, first_running - 1, cluster=identity)
            if since is None:
                yield NewRows(sa.false(), now, _wait)
                return
            self._check_known(session, since, first_running - 1)
            is_new, mark = self._window(session, since, now)
            yield NewRows(is_new, mark, _wait if mark == now else _go_on)

    def watermark_at(self, session: Session, id_: UUID) -> Watermark:
        ((number,),) = self._number_of.rows(session, {"id": id_})
        return Watermark(id_, number, cluster=self._source(session).identity)

    def is_new(self, session: Session, since: Watermark) -> sa.ColumnElement[bool]:
        _, end, own, _ = self._seen(session)
        end = max(end, own or 0)
        self._check_known(session, since, end)
        holes = [since.number - last for last, _ in since.holes]
        after = self.number > since.number
        if since.newest_id is not None:  # the first alone is one for the index
            after = sa.and_(self.number >= since.number, sa.or_(after, self._id > since.newest_id))
        # Larger numbers than those to come are of another cluster, see ``renumber_restored``.
        return sa.or_(sa.and_(after, self.number <= end), self.number.in_(holes))

    def _window(
        self, session: Session, since: Watermark, now: Watermark
    ) -> tuple[sa.ColumnElement[bool], Watermark]:
        """Return a condition of the next rows, and the mark behind them.

        They are of several transactions with not many rows, or of one: only its rows have to be sorted.
        """
        if since.newest_id is not None and list(
            self._rest.rows(session, {"xid": since.number, "place": since.newest_id})
        ):
            is_rest = sa.and_(self.number == since.number, self._id > since.newest_id)
            return is_rest, replace(now, number=since.number)
        window = {"xid": since.number, "running": now.number + 1}
        is_later = self.number > since.number
        for (end,) in self._later.rows(session, {**window, "skipped": _ROWS_AT_ONCE - 1}):
            ((first,),) = self._next.rows(session, window)
            if first == end:
                return self.number == first, replace(now, number=first)
            return sa.and_(is_later, self.number < end), replace(now, number=end - 1)
        return sa.and_(is_later, self.number <= now.number), now

    def _seen(self, session: Session) -> tuple[int, int, int | None, list[int]]:
        """Return the first running transaction, the end of what is seen, the own one, and those that run."""
        ((first_running, end, own, running),) = _SEEN.rows(session, {})
        if self._source(session).is_citus:
            held = [number for (number,) in _HELD.rows(session, {})]
            first_running = min([first_running, *held])
            running = sorted({*running, *(number for number in held if number < end)})
        return first_running, end, own, running

    def _source(self, session: Session) -> _Source:
        """Return who gives the numbers, which a connection asks once.

        Raises:
            DatabaseError: Nobody gives any.
        """
        known: dict[object, _Source] = session.connection().info
        if self not in known:
            found = list(_IDENTITY.rows(session, {"table": self._table}))
            if not found:
                raise DatabaseError(_NOT_NOTED.format(self._table))
            known[self] = _Source(*found[0])
        return known[self]

    def _check_known(self, session: Session, mark: Watermark, newest: int) -> None:
        """Refuse a mark whose number others have given, or whose row is gone."""
        if mark == NOTHING_SEEN:
            return
        # A cluster that was set back to a backup gives numbers again.
        if mark.cluster != self._source(session).identity or mark.number > newest:
            raise CursorError(
                "the cursor is of another database, of a server ahead of this standby, or from before "
                "`fiberstore db upgrade`: its transactions have other numbers; start again without it"
            )
        if mark.newest_id is not None and (mark.number,) not in list(
            self._number_of.rows(session, {"id": mark.newest_id})
        ):
            raise CursorError(
                f"{mark.newest_id} was the last row when the cursor was made, and has been changed or "
                "deleted: what came after it is not known any more; start again without the cursor"
            )


def sets_arrival(session: Session) -> bool:
    """Return whether statements do what elsewhere a trigger does, which tables of Citus cannot have."""
    known: dict[object, bool] = session.connection().info
    if _HAS_NO_TRIGGER not in known:
        known[_HAS_NO_TRIGGER] = bool(list(_HAS_NO_TRIGGER.rows(session, {})))
    return known[_HAS_NO_TRIGGER]


def _wait(timeout_s: float) -> None:
    """Let some time pass: nobody tells what other processes write."""
    time.sleep(min(timeout_s, _POLL_S))


def _go_on(_timeout_s: float) -> None:
    """Do not wait, there is more."""


def renumber_restored(connection: StoreConnection) -> None:
    """Let the rows of a dump that was restored in another cluster come before all that is stored since.

    A dump keeps the numbers of the transactions that stored the rows, and another cluster counts its own.
    Rows that a statement sees have smaller numbers than the next transaction of their cluster. That does not
    hold for Citus, of which a worker would compare them with numbers of its own; nothing is done there.

    Args:
        connection: One outside a transaction.

    Raises:
        DatabaseError: The tables do not note the numbers.
    """
    if has_citus(connection):
        return
    for table in ("raw_logs", "fibers"):
        if not list(connection.fetch_rows(_NOTES, (table,))):
            raise DatabaseError(_NOT_NOTED.format(table))
        rows = f"{table} WHERE arrived >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        if list(connection.fetch_rows(f"SELECT 1 FROM {rows} LIMIT 1", ())):  # noqa: S608  # our own names
            connection.write(f"UPDATE {rows.replace('WHERE', 'SET arrived = 0 WHERE')}")
