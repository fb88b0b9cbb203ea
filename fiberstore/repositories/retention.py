"""Retention: the set that goes is fixed first, then deleted in steps."""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import count
from math import inf
from tempfile import SpooledTemporaryFile, gettempdir
from typing import IO, Any, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.checks import check_number
from fiberstore.contract.conditions import Condition, checked_condition
from fiberstore.contract.lifecycle import DEFAULT_STEP_ROWS, LifecycleStorage, Pruned
from fiberstore.errors import DatabaseError
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.repositories.access import SessionAccess
from fiberstore.repositories.query import (
    delete_belongings,
    execute_write,
    given,
    one_snapshot,
    select_rows,
    temp_id_table,
)
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS, to_sql
from fiberstore.sql.connection import Row
from fiberstore.sql.functions import EpochMicroseconds, TextBytes
from fiberstore.sql.models import PinnedFiber, PinnedLog, Timestamp
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.sql.sizes import ROW_BYTES, StoreSize
from fiberstore.telemetry import Telemetry

# Safety margin: delete 90 % of the estimated excess, then run a WAL checkpoint and measure again.
_MARGIN = 0.1
_ROWS_AT_ONCE = 2_048
_MOST_BYTES_IN_MEMORY = 2**20

_UNPINNED_FIBER = FIBERS.c.fiber_id.not_in(sa.select(PinnedFiber.fiber_id))
_UNPINNED_LOG = LOGS.c.log_id.not_in(sa.select(PinnedLog.log_id))
_TEXT_BYTES = TextBytes(LOGS.c.raw_text)
_FIELDS = sa.func.concat_ws(
    sa.literal_column("'|'"),
    *(
        sa.func.coalesce(
            sa.cast(EpochMicroseconds(column) if isinstance(column.type, Timestamp) else column, sa.String),
            sa.literal_column("''"),
        )
        for column in FIBERS.c
        if not column.primary_key
    ),
)


class Pruning(LifecycleStorage):
    """``LifecycleStorage.prune`` through sessions.

    One statement, ``_going``, says which rows go. A dry run counts them. A run keeps their ids in a ``_Plan``
    and asks the conditions no more.
    """

    _sessions: SessionAccess
    _telemetry: Telemetry

    def prune(
        self,
        *,
        fibers: Condition[FiberRecord] | None = None,
        logs: Condition[StoredLog] | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
        step_rows: int = DEFAULT_STEP_ROWS,
        max_steps: int | None = None,
        on_step: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        with self._telemetry.running("prune"):
            candidates = _Candidates.of(fibers, logs, every=max_bytes is not None)
            check_number("step_rows", step_rows, least=1)
            if max_bytes is not None:
                check_number("max_bytes", max_bytes, least=1)
            if max_steps is not None:
                check_number("max_steps", max_steps, least=1)
            if dry_run:
                with self._sessions.read("prune.dry_run") as session, one_snapshot(session):
                    return _foreseen(session, candidates, max_bytes)
            run = _Run(self._sessions, candidates, step_rows, max_steps, on_step)
            is_complete = run.all() if max_bytes is None else run.down_to(max_bytes)
            with self._sessions.read(None) as session:
                size = _settled_size(session) if run.gone != _Gone() else _size_of(session)
            return run.gone.report(size, is_complete=is_complete)


@dataclass(frozen=True, slots=True)
class _Gone:
    """Rows that one step or several have deleted."""

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


def _size_of(session: Session) -> StoreSize:
    return connection_of(session).support.size_of(session)


def _settled_size(session: Session) -> StoreSize:
    """Return the size once the space of deleted rows is known, which takes time."""
    connection_of(session).support.settle(session)
    return _size_of(session)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Conditions of the rows that may go; pinned rows stay, and logs that a stored fiber holds.

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


@dataclass(slots=True)
class _Unit:
    """The rows that go in one step or not at all: a fiber with logs, or a log that no stored fiber holds.

    A log that several fibers hold is in the unit of the youngest.

    Attributes:
        fiber_id: Id of the fiber.
        seen: Its fields as a digest and the number of its memberships: a fiber that is not as it was stays.
        log_ids: Ids of the logs, joined.
        rows: Size, as ``step_rows`` counts.
        weight: Size, see ``_Gone``.
    """

    fiber_id: UUID | None
    seen: tuple[bytes, int]
    log_ids: bytearray
    rows: int
    weight: int


_ROW = struct.Struct("<c16s16sQQ")  # kind, id, digest, memberships, weight
_FIBER, _LOG_OF_FIBER, _LOG = b"f", b"m", b"l"
_NO_DIGEST = bytes(16)


class _Plan:
    """The set that goes, the oldest first, in a temporary file without a name: 49 bytes a row.

    Args:
        file: Rows as ``_packed`` writes them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._units = _units(file)
        self._next = next(self._units, None)

    @classmethod
    @contextmanager
    def of(cls, sessions: SessionAccess, candidates: _Candidates) -> Iterator[Self]:
        """Fix the set, in one snapshot."""
        rows = _going(candidates)
        statement = (
            sa.select(
                rows.c.fiber_id, rows.c.log_id, rows.c.place, _FIELDS, rows.c.memberships, _weight(rows)
            )
            .outerjoin_from(rows, FIBERS, FIBERS.c.fiber_id == rows.c.fiber_id)
            .order_by(*_in_order(rows))
        )
        with SpooledTemporaryFile(_MOST_BYTES_IN_MEMORY) as file:
            try:
                with sessions.read("prune.plan") as session:
                    connection = connection_of(session)
                    for batch in connection.stream_rows(*compiled(session, statement), _ROWS_AT_ONCE):
                        file.write(_packed(batch))
                file.seek(0)
            except OSError as error:
                with suppress(OSError):  # which writes what is left, and fails again
                    file.close()
                raise DatabaseError(
                    f"the ids of the rows that go cannot be kept in {gettempdir()} ({error.strerror}); free "
                    "some space there, or let TMPDIR name another folder"
                ) from error
            yield cls(file)

    @property
    def is_empty(self) -> bool:
        """True when all units were taken."""
        return self._next is None

    def take(self, rows: int, weight: float) -> list[_Unit]:
        """Return the next units: the first, and more up to a number of rows, until a weight is reached."""
        units: list[_Unit] = []
        while self._next is not None and (not units or (self._next.rows <= rows and weight > 0)):
            units.append(self._next)
            rows -= self._next.rows
            weight -= self._next.weight
            self._next = next(self._units, None)
        return units


def _packed(rows: Iterable[Row]) -> bytes:
    packed = bytearray()
    for fiber_id, log_id, place, fields_text, memberships, weight in rows:
        if fiber_id is not None:
            row = _FIBER, fiber_id.bytes, _digest(fields_text), int(memberships), int(weight)
        else:
            kind = _LOG if place is None else _LOG_OF_FIBER
            row = kind, log_id.bytes, _NO_DIGEST, int(memberships), int(weight)
        packed += _ROW.pack(*row)
    return bytes(packed)


def _digest(fields_text: str) -> bytes:
    return blake2b(fields_text.encode(), digest_size=len(_NO_DIGEST)).digest()


def _units(file: IO[bytes]) -> Iterator[_Unit]:
    unit: _Unit | None = None
    while row := file.read(_ROW.size):
        kind, id_, digest, memberships, weight = _ROW.unpack(row)
        if kind == _LOG_OF_FIBER and unit is not None:
            unit.log_ids += id_
            unit.weight += weight
            continue
        if unit is not None:
            yield unit
        if kind == _FIBER:
            rows = max(memberships, 1)
            unit = _Unit(UUID(bytes=id_), (digest, memberships), bytearray(), rows, weight)
        else:
            unit = _Unit(None, (digest, 0), bytearray(id_), 1, weight)
    if unit is not None:
        yield unit


class _Run:
    """The steps of one call.

    Attributes:
        gone: What they have deleted.
    """

    def __init__(
        self,
        sessions: SessionAccess,
        candidates: _Candidates,
        step_rows: int,
        max_steps: int | None,
        on_step: Callable[[Pruned], None] | None,
    ) -> None:
        self.gone = _Gone()
        self._sessions = sessions
        self._candidates = candidates
        self._step_rows = step_rows
        self._steps = count() if max_steps is None else iter(range(max_steps))
        self._on_step = on_step

    def all(self) -> bool:
        """Delete the set; return False if steps are left."""
        with _Plan.of(self._sessions, self._candidates) as plan:
            while not plan.is_empty:
                if not self._may_step():
                    return False
                self._step(plan.take(self._step_rows, inf))
        return True

    def down_to(self, max_bytes: int) -> bool:
        """Delete until what is there takes so many bytes; return False if more steps could come nearer.

        Only a checkpoint tells how much that is, and it takes time; so most of what is too much is deleted by
        an estimate between two of them.
        """
        excess = self._excess(max_bytes)
        if excess is None:
            return True
        with _Plan.of(self._sessions, self._candidates) as plan:
            while excess is not None:
                end = self.gone.weight + excess
                while self.gone.weight < end:
                    if plan.is_empty:
                        return True
                    if not self._may_step():
                        return self._excess(max_bytes) is None
                    self._step(plan.take(self._step_rows, end - self.gone.weight))
                excess = self._excess(max_bytes)
        return True

    def _excess(self, max_bytes: int) -> float | None:
        """Return the weight to delete before the next look, see ``_Gone``, or None if there is no need to."""
        with self._sessions.read(None) as session:
            size, content = _of_file(session, settled=True), _Content.of(session)
        if content.bytes_of(size) <= max_bytes:
            return None
        excess_bytes = max((1 - _MARGIN) * (content.bytes_of(size) - max_bytes), size.block_bytes)
        return excess_bytes * content.weight_with_dead / size.used_bytes

    def _may_step(self) -> bool:
        return next(self._steps, None) is not None

    def _step(self, units: list[_Unit]) -> None:
        gone = self._sessions.write("prune.step", lambda session: _delete(session, units))
        self.gone += gone
        if self._on_step is not None and gone != _Gone():
            with self._sessions.read(None) as session:
                size = _size_of(session)
            self._on_step(self.gone.report(size, is_complete=False))


@dataclass(frozen=True, slots=True)
class _Content:
    """Numbers of rows in the tables.

    Deleted rows that still take space count as gone, or a small store would be emptied for space that does
    not come.

    Attributes:
        rows: How many rows there are.
        weight_with_dead: Their weight with that of the deleted rows that are still in the file.
    """

    rows: _Gone
    weight_with_dead: float

    @classmethod
    def of(cls, session: Session) -> Self:
        """Count them."""
        numbers = sa.select(
            *(
                sa.select(sa.func.count()).select_from(table).scalar_subquery()
                for table in (FIBERS, MEMBERSHIPS, LOGS)
            ),
            sa.select(sa.func.coalesce(sa.func.sum(_TEXT_BYTES), 0)).scalar_subquery(),
        )
        ((*counts,),) = select_rows(session, numbers)
        kept = connection_of(session).support.kept_rows(session)
        rows = _Gone(*map(int, counts))
        logs = max(kept[LOGS.name], rows.logs)
        others = max(kept[FIBERS.name], rows.fibers) + max(kept[MEMBERSHIPS.name], rows.memberships)
        text_bytes = rows.text_bytes * logs / max(rows.logs, 1)
        return cls(rows, text_bytes + ROW_BYTES * (logs + others))

    def bytes_of(self, size: StoreSize) -> float:
        """Return about how many bytes of the file they take."""
        return size.used_bytes * self.rows.weight / max(self.weight_with_dead, 1)


def _of_file(session: Session, *, settled: bool) -> StoreSize:
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


def _delete(session: Session, units: Sequence[_Unit]) -> _Gone:
    """Delete the units whose fiber is as it was, but no log that is pinned or held by another fiber."""
    unchanged = _unchanged(session, [unit.fiber_id for unit in units if unit.fiber_id is not None])
    going = [unit for unit in units if unit.fiber_id is None or unchanged.get(unit.fiber_id) == unit.seen]
    fibers = b"".join(unit.fiber_id.bytes for unit in going if unit.fiber_id is not None)
    logs = b"".join(unit.log_ids for unit in going)
    with (
        given(session, "fiber_id", fibers) as fiber_ids,
        given(session, "log_id", logs) as planned,
    ):
        held = _held_by(FIBERS.c.fiber_id.not_in(fiber_ids)).where(MEMBERSHIPS.c.log_id.in_(planned))
        may_go = sa.and_(LOGS.c.log_id.in_(planned), LOGS.c.log_id.not_in(held), _UNPINNED_LOG)
        with temp_id_table(session, sa.select(LOGS.c.log_id).where(may_go)) as log_ids:
            is_going = LOGS.c.log_id.in_(log_ids)
            of_text = sa.select(sa.func.coalesce(sa.func.sum(_TEXT_BYTES), 0)).where(is_going)
            ((text_bytes,),) = select_rows(session, of_text)
            delete_belongings(session, fiber_ids)
            either = sa.or_(MEMBERSHIPS.c.fiber_id.in_(fiber_ids), MEMBERSHIPS.c.log_id.in_(log_ids))
            return _Gone(
                memberships=execute_write(session, sa.delete(MEMBERSHIPS).where(either)),
                fibers=execute_write(session, sa.delete(FIBERS).where(FIBERS.c.fiber_id.in_(fiber_ids))),
                logs=execute_write(session, sa.delete(LOGS).where(is_going)),
                text_bytes=int(text_bytes),
            )


def _unchanged(session: Session, fiber_ids: Sequence[UUID]) -> dict[UUID, tuple[bytes, int]]:
    """Return how fibers are now, see ``_Unit.seen``, without those that are pinned or not stored."""
    if not fiber_ids:
        return {}
    with given(session, "fiber_id", b"".join(id_.bytes for id_ in fiber_ids)) as ids:
        sizes = _counted(MEMBERSHIPS.c.fiber_id, MEMBERSHIPS.c.fiber_id.in_(ids))
        now = (
            sa.select(FIBERS.c.fiber_id, _FIELDS, sa.func.coalesce(sizes.c.rows, 0))
            .outerjoin_from(FIBERS, sizes, sizes.c.fiber_id == FIBERS.c.fiber_id)
            .where(FIBERS.c.fiber_id.in_(ids), _UNPINNED_FIBER)
        )
        return {id_: (_digest(text), int(rows)) for id_, text, rows in select_rows(session, now)}


def _foreseen(session: Session, candidates: _Candidates, max_bytes: int | None) -> Pruned:
    """Count what would go, in one statement."""
    rows = _going(candidates)
    counted: sa.ColumnElement[bool] = sa.true()
    if max_bytes is not None:
        size, content = _of_file(session, settled=False), _Content.of(session)
        excess = max(content.bytes_of(size) - max_bytes, 0)
        weight = _weight(rows)
        before = sa.func.sum(weight).over(order_by=_in_order(rows)) - weight
        rows = sa.select(*rows.c, before.label("before")).subquery("weighed")
        counted = rows.c.before < excess * content.weight_with_dead / max(size.used_bytes, 1)
    names = (field.name for field in fields(_Gone))
    sums = (sa.func.coalesce(sa.func.sum(rows.c[name]).filter(counted), 0) for name in names)
    ((*numbers,),) = select_rows(session, sa.select(*sums))
    return _Gone(*map(int, numbers)).report(_size_of(session), is_complete=True)


def _going(candidates: _Candidates) -> sa.Subquery:
    """Select what goes, a row for each fiber and log.

    A log goes if all the fibers that hold it do, with the youngest of them, whose ``place`` it has; the
    ``place`` of a log that no stored fiber holds is NULL. Memberships are counted with their fiber, or with
    their log if the fiber is not stored.
    """
    none, no_id = sa.literal_column("0", sa.BigInteger), sa.cast(sa.null(), sa.Uuid)
    one = sa.literal_column("1", sa.BigInteger)
    fibers = sa.select(
        FIBERS.c.fiber_id,
        FIBERS.c.last_activity.label("time"),
        sa.func.row_number().over(order_by=(FIBERS.c.last_activity, FIBERS.c.fiber_id)).label("place"),
        candidates.fibers.label("goes"),
    ).cte("all_fibers")
    held = (
        sa.select(
            MEMBERSHIPS.c.log_id,
            sa.func.max(fibers.c.time).label("time"),
            sa.func.max(fibers.c.place).label("place"),
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
            fibers.c.place,
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
            held.c.place,
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
    return sa.union_all(going_fibers, going_logs).subquery("going")


def _in_order(rows: sa.FromClause) -> tuple[sa.ColumnElement[Any], ...]:
    """Return the order of ``_going``: the oldest first, a fiber before its logs."""
    return rows.c.time, rows.c.place.nulls_last(), rows.c.log_id.nulls_first()


def _weight(rows: sa.FromClause) -> sa.ColumnElement[int]:
    """Return the weight of a row of ``_going``, see ``_Gone``."""
    return rows.c.text_bytes + ROW_BYTES * (rows.c.fibers + rows.c.memberships + rows.c.logs)


def _counted(column: sa.ColumnElement[Any], which: sa.ColumnElement[bool]) -> sa.Subquery:
    return sa.select(column, sa.func.count().label("rows")).where(which).group_by(column).subquery()
