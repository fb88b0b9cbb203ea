"""Retention: what may go, in steps."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import count
from math import ceil
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.connections import Connection
from fiberstore.errors import DatabaseError, translate_errors
from fiberstore.functions import TextBytes
from fiberstore.lifecycle import Pruned
from fiberstore.models import MergedFiber, PinnedFiber, PinnedLog
from fiberstore.records import FiberRecord, StoredLog, check_number
from fiberstore.repositories.conditions import FIBERS, LOGS, MEMBERSHIPS, to_sql
from fiberstore.repositories.engines import engine_of
from fiberstore.repositories.queries import Changing, Reading, chosen, one_snapshot, select_rows, written
from fiberstore.repositories.sizes import ROW_BYTES, StoreSize
from fiberstore.where import Condition, checked_condition

# What is left when it is time to look how much has come free; the estimate may be wrong by as much.
_MARGIN = 0.1

_UNPINNED_FIBER = FIBERS.c.fiber_id.not_in(sa.select(PinnedFiber.fiber_id))
_UNPINNED_LOG = LOGS.c.log_id.not_in(sa.select(PinnedLog.log_id))
_TEXT_BYTES = TextBytes(LOGS.c.raw_text)


def prune(
    reading: Reading,
    changing: Changing,
    *,
    fibers: Condition[FiberRecord] | None,
    logs: Condition[StoredLog] | None,
    max_bytes: int | None,
    dry_run: bool,
    step_rows: int,
    max_steps: int | None,
    on_step: Callable[[Pruned], None] | None,
) -> Pruned:
    """See ``LifecycleStorage.prune``.

    Each step looks anew for what may go, so pins and changes between two steps count. Therefore a condition
    that asks for other rows (fibers with logs that other fibers hold) is asked of what is there by then, and
    a dry run, which asks all at one moment, may find more.
    """
    candidates = _Candidates.of(fibers, logs, every=max_bytes is not None)
    check_number("step_rows", step_rows, least=1)
    if max_bytes is not None:
        check_number("max_bytes", max_bytes, least=1)
    if max_steps is not None:
        check_number("max_steps", max_steps, least=1)
    if dry_run:
        with reading("prune.dry_run") as session, translate_errors(), one_snapshot(session):
            return _foreseen(session, candidates, max_bytes)
    run = _Run(reading, changing, candidates, step_rows=step_rows, max_steps=max_steps, on_step=on_step)
    is_complete = run.all() if max_bytes is None else run.down_to(max_bytes)
    with reading(None) as session:
        size = _settled_size(session) if run.gone != _Gone() else _size_of(session)
    return run.gone.report(size, is_complete=is_complete)


@dataclass(frozen=True, slots=True)
class _Gone:
    """What a step has deleted, or several."""

    fibers: int = 0
    memberships: int = 0
    logs: int = 0
    text_bytes: int = 0

    def __add__(self, other: "_Gone") -> "_Gone":
        return _Gone(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(_Gone)))

    @property
    def weight(self) -> int:
        """About how many bytes that was, before compression."""
        return self.text_bytes + ROW_BYTES * (self.fibers + self.memberships + self.logs)

    def report(self, size: StoreSize, *, is_complete: bool) -> Pruned:
        return Pruned(
            self.fibers,
            self.memberships,
            self.logs,
            self.text_bytes,
            size.file_bytes,
            size.free_bytes,
            is_complete,
        )


def _size_of(session: Session | Connection) -> StoreSize:
    with translate_errors():
        return engine_of(session).size_of(session)


def _settled_size(session: Session | Connection) -> StoreSize:
    """Return it when the space of deleted rows is known, which takes time."""
    with translate_errors():
        engine_of(session).settle(session)
    return _size_of(session)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """What may go; pinned rows may not, nor logs that a stored fiber holds.

    Attributes:
        fibers: Is true of the fibers.
        logs: Is true of the logs, if no stored fiber holds them.
    """

    fibers: sa.ColumnElement[bool]
    logs: sa.ColumnElement[bool]

    @classmethod
    def of(
        cls, fibers: Condition[FiberRecord] | None, logs: Condition[StoredLog] | None, *, every: bool
    ) -> Self:
        """Make them of conditions; with ``every``, None is all rows, otherwise none."""
        if fibers is None and logs is None and not every:
            raise ValueError(
                "nothing says what may go; give fibers=, logs= or max_bytes=, "
                "such as fibers=Fibers.c.last_activity < a_month_ago"
            )
        default = sa.true() if every else sa.false()
        return cls(
            sa.and_(
                default if fibers is None else to_sql(checked_condition(fibers, FiberRecord)), _UNPINNED_FIBER
            ),
            sa.and_(default if logs is None else to_sql(checked_condition(logs, StoredLog)), _UNPINNED_LOG),
        )

    def oldest(self, most: int) -> sa.Subquery:
        """Select the oldest as ``fiber_id`` or ``log_id``, of which the other is NULL.

        Their logs and memberships are at most so many, unless the first has more.
        """
        no_id = sa.cast(sa.null(), sa.Uuid)
        fibers = (
            sa.select(FIBERS.c.last_activity.label("time"), FIBERS.c.fiber_id, no_id.label("log_id"))
            .where(self.fibers)
            .order_by(FIBERS.c.last_activity, FIBERS.c.fiber_id)
            .limit(most)
            .subquery()
        )
        logs = (
            sa.select(LOGS.c.timestamp.label("time"), no_id.label("fiber_id"), LOGS.c.log_id)
            .where(self.logs, LOGS.c.log_id.not_in(_held_by(sa.true())))
            .order_by(LOGS.c.timestamp, LOGS.c.log_id)
            .limit(most)
            .subquery()
        )
        found = sa.union_all(fibers.select(), logs.select()).cte("found")
        sizes = (
            sa.select(MEMBERSHIPS.c.fiber_id, sa.func.count().label("logs"))
            .where(MEMBERSHIPS.c.fiber_id.in_(sa.select(found.c.fiber_id)))
            .group_by(MEMBERSHIPS.c.fiber_id)
            .subquery()
        )
        rows = sa.func.greatest(sa.func.coalesce(sizes.c.logs, 1), 1)
        in_order = (found.c.time, found.c.fiber_id, found.c.log_id)
        placed = (
            sa.select(
                found.c.fiber_id,
                found.c.log_id,
                sa.func.sum(rows).over(order_by=in_order).label("rows"),
                sa.func.row_number().over(order_by=in_order).label("place"),
            )
            .outerjoin_from(found, sizes, sizes.c.fiber_id == found.c.fiber_id)
            .subquery()
        )
        return (
            sa.select(placed.c.fiber_id, placed.c.log_id)
            .where(sa.or_(placed.c.rows <= most, placed.c.place == 1))
            .subquery("oldest")
        )


class _Run:
    """The steps of one call.

    Attributes:
        gone: What they have deleted.
    """

    def __init__(
        self,
        reading: Reading,
        changing: Changing,
        candidates: _Candidates,
        *,
        step_rows: int,
        max_steps: int | None,
        on_step: Callable[[Pruned], None] | None,
    ) -> None:
        self.gone = _Gone()
        self._reading = reading
        self._changing = changing
        self._candidates = candidates
        self._step_rows = step_rows
        self._steps = count() if max_steps is None else iter(range(max_steps))
        self._on_step = on_step

    def all(self) -> bool:
        """Delete all that may go; return whether nothing is left of it."""
        while self._may_step():
            if self._step(self._step_rows) == _Gone():
                return True
        return self._nothing_is_left()

    def down_to(self, max_bytes: int) -> bool:
        """Delete until what is there takes so many bytes; return False if more steps could come nearer.

        Only a checkpoint tells how much that is, and it takes time; so most of what is too much is deleted by
        an estimate between two of them.
        """
        while (excess := self._excess(max_bytes)) is not None:
            end = self.gone.weight + excess.weight
            while self.gone.weight < end:
                rows = ceil((end - self.gone.weight) / excess.weight_per_log)
                if not self._may_step():
                    return self._nothing_is_left() or self._excess(max_bytes) is None
                if self._step(min(rows, self._step_rows)) == _Gone():
                    return True
        return True

    def _excess(self, max_bytes: int) -> "_Excess | None":
        """Return what to delete before the next look, or None if there is no need to."""
        with self._reading(None) as session:
            size, content = _of_file(session, settled=True), _Content.of(session)
        if content.bytes_of(size) <= max_bytes:
            return None
        excess_bytes = max((1 - _MARGIN) * (content.bytes_of(size) - max_bytes), size.block_bytes)
        weight = excess_bytes * content.weight_with_dead / size.used_bytes
        return _Excess(weight, max(content.rows.weight / max(content.rows.logs, 1), ROW_BYTES))

    def _may_step(self) -> bool:
        return next(self._steps, None) is not None

    def _step(self, rows: int) -> _Gone:
        gone = self._changing("prune.step", lambda session: _delete_oldest(session, self._candidates, rows))
        self.gone += gone
        if self._on_step is not None and gone != _Gone():
            with self._reading(None) as session:
                size = _size_of(session)
            self._on_step(self.gone.report(size, is_complete=False))
        return gone

    def _nothing_is_left(self) -> bool:
        with self._reading(None) as session, translate_errors():
            return not list(select_rows(session, self._candidates.oldest(1).select()))


class _Excess(NamedTuple):
    """What to delete: the weight, see ``_Gone``, and how much of it a log takes with its memberships."""

    weight: float
    weight_per_log: float


@dataclass(frozen=True, slots=True)
class _Content:
    """What is in the tables.

    Deleted rows that still take space count as gone, or a small store would be emptied for space that does
    not come.

    Attributes:
        rows: How many rows there are.
        weight_with_dead: Their weight with that of the deleted rows that are still in the file.
    """

    rows: _Gone
    weight_with_dead: float

    @classmethod
    def of(cls, session: Session | Connection) -> Self:
        """Count them."""
        numbers = sa.select(
            *(
                sa.select(sa.func.count()).select_from(table).scalar_subquery()
                for table in (FIBERS, MEMBERSHIPS, LOGS)
            ),
            sa.select(sa.func.coalesce(sa.func.sum(_TEXT_BYTES), 0)).scalar_subquery(),
        )
        with translate_errors():
            ((*counts,),) = select_rows(session, numbers)
            kept = engine_of(session).kept_rows(session)
        rows = _Gone(*map(int, counts))
        logs = max(kept[LOGS.name], rows.logs)
        others = max(kept[FIBERS.name], rows.fibers) + max(kept[MEMBERSHIPS.name], rows.memberships)
        text_bytes = rows.text_bytes * logs / max(rows.logs, 1)
        return cls(rows, text_bytes + ROW_BYTES * (logs + others))

    def bytes_of(self, size: StoreSize) -> float:
        """Return about how many bytes of the file they take."""
        return size.used_bytes * self.rows.weight / max(self.weight_with_dead, 1)


def _of_file(session: Session | Connection, *, settled: bool) -> StoreSize:
    size = _settled_size(session) if settled else _size_of(session)
    if not size.block_bytes:
        raise DatabaseError("max_bytes is about a database file, and this database is in memory")
    return size


def _held_by(which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Select the ids of the logs that stored fibers hold; what is not stored holds nothing."""
    return (
        sa.select(MEMBERSHIPS.c.log_id)
        .join(FIBERS, FIBERS.c.fiber_id == MEMBERSHIPS.c.fiber_id)
        .where(which)
        .correlate(None)
    )


def _delete_oldest(session: Session | Connection, candidates: _Candidates, rows: int) -> _Gone:
    """Delete the oldest that may go, with the logs that only they hold, in an open transaction."""
    oldest = candidates.oldest(rows)
    going_fibers = sa.select(oldest.c.fiber_id).where(oldest.c.fiber_id.is_not(None))
    with chosen(session, going_fibers) as fiber_ids:
        theirs = sa.and_(
            LOGS.c.log_id.in_(sa.select(MEMBERSHIPS.c.log_id).where(MEMBERSHIPS.c.fiber_id.in_(fiber_ids))),
            LOGS.c.log_id.not_in(_held_by(FIBERS.c.fiber_id.not_in(fiber_ids))),
            _UNPINNED_LOG,
        )
        in_none = LOGS.c.log_id.in_(sa.select(oldest.c.log_id).where(oldest.c.log_id.is_not(None)))
        with chosen(session, sa.select(LOGS.c.log_id).where(sa.or_(theirs, in_none))) as log_ids:
            is_going = LOGS.c.log_id.in_(log_ids)
            of_text = sa.select(sa.func.coalesce(sa.func.sum(_TEXT_BYTES), 0)).where(is_going)
            ((text_bytes,),) = select_rows(session, of_text)
            merges = sa.or_(MergedFiber.fiber_id.in_(fiber_ids), MergedFiber.survivor_id.in_(fiber_ids))
            written(session, sa.delete(MergedFiber).where(merges))
            either = sa.or_(MEMBERSHIPS.c.fiber_id.in_(fiber_ids), MEMBERSHIPS.c.log_id.in_(log_ids))
            return _Gone(
                memberships=written(session, sa.delete(MEMBERSHIPS).where(either)),
                fibers=written(session, sa.delete(FIBERS).where(FIBERS.c.fiber_id.in_(fiber_ids))),
                logs=written(session, sa.delete(LOGS).where(is_going)),
                text_bytes=int(text_bytes),
            )


def _foreseen(session: Session | Connection, candidates: _Candidates, max_bytes: int | None) -> Pruned:
    """Count what would go, in one statement."""
    rows = _going(candidates)
    counted: sa.ColumnElement[bool] = rows.c.before.is_not(None)
    if max_bytes is not None:
        size, content = _of_file(session, settled=False), _Content.of(session)
        excess = max(content.bytes_of(size) - max_bytes, 0)
        counted = rows.c.before < excess * content.weight_with_dead / max(size.used_bytes, 1)
    names = (field.name for field in fields(_Gone))
    sums = (sa.func.coalesce(sa.func.sum(rows.c[name]).filter(counted), 0) for name in names)
    with translate_errors():
        ((*numbers,),) = select_rows(session, sa.select(*sums))
    return _Gone(*map(int, numbers)).report(_size_of(session), is_complete=True)


def _going(candidates: _Candidates) -> sa.Subquery:
    """Select what would go, a row for each fiber and log, and how much goes ``before`` it.

    A log goes with the last of the fibers that hold it. Memberships are counted with their fiber, or with
    their log if the fiber is not stored.
    """
    none, no_id = sa.literal_column("0", sa.BigInteger), sa.cast(sa.null(), sa.Uuid)
    one = sa.literal_column("1", sa.BigInteger)
    fibers = sa.select(
        FIBERS.c.fiber_id, FIBERS.c.last_activity.label("time"), candidates.fibers.label("goes")
    ).cte("all_fibers")
    held = (
        sa.select(
            MEMBERSHIPS.c.log_id,
            sa.func.max(fibers.c.time).label("time"),
            sa.func.bool_and(fibers.c.goes).label("goes"),
        )
        .join(fibers, fibers.c.fiber_id == MEMBERSHIPS.c.fiber_id)
        .group_by(MEMBERSHIPS.c.log_id)
        .subquery("held")
    )
    sizes = _counted(MEMBERSHIPS.c.fiber_id, sa.true())
    strays = _counted(MEMBERSHIPS.c.log_id, MEMBERSHIPS.c.fiber_id.not_in(sa.select(FIBERS.c.fiber_id)))
    going_fibers = (
        sa.select(
            fibers.c.time,
            fibers.c.fiber_id,
            no_id.label("log_id"),
            one.label("fibers"),
            sa.func.coalesce(sizes.c.rows, 0).label("memberships"),
            none.label("logs"),
            none.label("text_bytes"),
        )
        .outerjoin_from(fibers, sizes, sizes.c.fiber_id == fibers.c.fiber_id)
        .where(fibers.c.goes)
    )
    going_logs = (
        sa.select(
            sa.func.coalesce(held.c.time, LOGS.c.timestamp),
            no_id,
            LOGS.c.log_id,
            none,
            sa.func.coalesce(strays.c.rows, 0),
            one,
            _TEXT_BYTES,
        )
        .outerjoin_from(LOGS, held, held.c.log_id == LOGS.c.log_id)
        .outerjoin(strays, strays.c.log_id == LOGS.c.log_id)
        .where(
            _UNPINNED_LOG, sa.or_(held.c.goes.is_(True), sa.and_(held.c.log_id.is_(None), candidates.logs))
        )
    )
    rows = sa.union_all(going_fibers, going_logs).subquery("going")
    weight = rows.c.text_bytes + ROW_BYTES * (rows.c.fibers + rows.c.memberships + rows.c.logs)
    so_far = sa.func.sum(weight).over(order_by=(rows.c.time, rows.c.fiber_id, rows.c.log_id))
    return sa.select(*rows.c, (so_far - weight).label("before")).subquery("in_order")


def _counted(column: sa.ColumnElement[Any], which: sa.ColumnElement[bool]) -> sa.Subquery:
    return sa.select(column, sa.func.count().label("rows")).where(which).group_by(column).subquery()
