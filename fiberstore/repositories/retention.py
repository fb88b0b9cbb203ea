"""Retention: the set that goes is fixed first, then deleted in steps."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from itertools import count
from math import inf
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.checks import check_number
from fiberstore.contract.conditions import Condition
from fiberstore.contract.lifecycle import DEFAULT_STEP_ROWS, LifecycleStorage
from fiberstore.contract.results import Pruned
from fiberstore.errors import DatabaseError
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.repositories.access import Going, SessionAccess
from fiberstore.repositories.prune_plan import (
    FIBER_FIELDS,
    ID_BYTES,
    ROW_BYTES,
    TEXT_BYTES,
    UNPINNED_FIBER,
    UNPINNED_LOG,
    Candidates,
    Plan,
    Unit,
    bytes_of,
    counted_by,
    digest_of,
    going,
    in_order,
    weight_of,
)
from fiberstore.repositories.query import (
    belongings_of,
    delete_rows,
    given,
    kept_ids,
    one_snapshot,
    select_rows,
)
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS, apart
from fiberstore.sql.prepared import connection_of
from fiberstore.sql.support import GoingRows, KeptIds, StoreSize
from fiberstore.telemetry import Telemetry

# Safety margin: delete 90 % of the estimated excess, then run a WAL checkpoint and measure again.
_MARGIN = 0.1
# From this share of the logs on, tables are written anew in less time than rows are deleted.
_LEAST_SHARE = 0.25
# Without ``step_rows``: most logs of a step; most of its fibers, which are deleted row by row; and most logs
# and memberships that stay, for each of which others wait for about 0.75 µs.
_MOST_STEP_ROWS = 1_000_000
_MOST_QUICK_FIBERS = 50_000
_MOST_STAYING_ROWS = 1_200_000


class Pruning(LifecycleStorage):
    """``LifecycleStorage.prune`` through sessions.

    One statement, ``going``, says which rows go. A dry run counts them. A run keeps their ids in a ``Plan``
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
        step_rows: int | None = None,
        max_steps: int | None = None,
        on_step: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        with self._telemetry.running("prune"):
            candidates = Candidates.of(fibers, logs, every=max_bytes is not None)
            if step_rows is not None:
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


class _Run:
    """The steps of one call.

    Attributes:
        gone: What they have deleted.
    """

    def __init__(
        self,
        sessions: SessionAccess,
        candidates: Candidates,
        step_rows: int | None,
        max_steps: int | None,
        on_step: Callable[[Pruned], None] | None,
    ) -> None:
        self.gone = _Gone()
        self._sessions = sessions
        self._candidates = candidates
        self._step_rows = DEFAULT_STEP_ROWS if step_rows is None and max_steps is not None else step_rows
        self._most_fibers = _MOST_QUICK_FIBERS if step_rows is None else inf
        self._most_staying = _MOST_STAYING_ROWS if step_rows is None else inf
        self._steps = count() if max_steps is None else iter(range(max_steps))
        self._on_step = on_step

    def all(self) -> bool:
        """Delete the set; return False if steps are left."""
        with Plan.of(self._sessions, self._candidates) as plan:
            while not plan.is_empty:
                if not self._may_step():
                    return False
                self._step(self._take(plan, inf))
        return True

    def down_to(self, max_bytes: int) -> bool:
        """Delete until what is there takes so many bytes; return False if more steps could come nearer.

        Only a checkpoint tells how much that is, and it takes time; so most of what is too much is deleted by
        an estimate between two of them.
        """
        excess = self._excess(max_bytes)
        if excess is None:
            return True
        with Plan.of(self._sessions, self._candidates) as plan:
            while excess is not None:
                end = self.gone.weight + excess
                while self.gone.weight < end:
                    if plan.is_empty:
                        return True
                    if not self._may_step():
                        return self._excess(max_bytes) is None
                    self._step(self._take(plan, end - self.gone.weight))
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

    def _take(self, plan: Plan, weight: float) -> list[Unit]:
        """Return the units of the next step, of about so much weight at most."""
        if self._step_rows is not None:
            return plan.take(self._step_rows, weight)
        # Of a large step that would not be quick, a million units would lie in memory until they are split.
        share = min(1.0, weight / max(plan.weight, 1), _MOST_STEP_ROWS / max(plan.logs, 1))
        with self._sessions.read(None) as session:
            is_quick = self._is_quick(session, share * plan.logs, share * plan.fibers)
        return plan.take(_MOST_STEP_ROWS if is_quick else DEFAULT_STEP_ROWS, weight)

    def _step(self, units: list[Unit]) -> None:
        rows, together = sum(unit.rows for unit in units), _Units(units)
        is_large = len(units) > 1 and rows > DEFAULT_STEP_ROWS

        def count(session: Session) -> int:
            logs, fibers = len(together.logs) // ID_BYTES, len(together.seen)
            return rows if not is_large or self._is_quick(session, logs, fibers) else 0

        def delete(session: Session) -> _Gone | None:
            may_be_large = connection_of(session).writes_alone  # as tables are written anew then
            return _delete(session, together) if may_be_large or not is_large else None

        def find(session: Session) -> AbstractContextManager[list[GoingRows]]:
            return _going(session, together)

        gone = self._sessions.write("prune.step", delete, going=Going(count, find))
        if gone is None:
            for some in _split(units, DEFAULT_STEP_ROWS):
                self._step(some)
            return
        self.gone += gone
        if self._on_step is not None and gone != _Gone():
            with self._sessions.read(None) as session:
                size = _size_of(session)
            self._on_step(self.gone.report(size, is_complete=False))

    def _is_quick(self, session: Session, going_logs: float, going_fibers: float) -> bool:
        """Tell whether tables without the rows that go are written in less time than rows are deleted.

        Without ``step_rows``, nobody may have to wait for a second for it either.
        """
        support = connection_of(session).support
        if support.prepared is None:
            return False
        tables = (LOGS, MEMBERSHIPS)
        counts = (sa.select(sa.func.count()).select_from(table).scalar_subquery() for table in tables)
        ((logs, memberships),) = select_rows(session, sa.select(*counts))
        staying_share = 1 - going_logs / max(logs, 1)
        return (
            staying_share <= 1 - _LEAST_SHARE
            and going_fibers <= self._most_fibers
            and staying_share * (logs + memberships) <= self._most_staying
            and support.has_room(session)
        )


class _Units:
    """Units that go in one step.

    Attributes:
        seen: Their fibers as they were, see ``Unit.seen``.
        fibers: Ids of the fibers, joined.
        logs: Ids of the logs, joined.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = units
        self.seen = {unit.fiber_id: unit.seen for unit in units if unit.fiber_id is not None}
        self.fibers = b"".join(self.seen)
        self.logs = b"".join([unit.log_ids for unit in units])

    def without(self, fiber_ids: Collection[bytes]) -> "_Units":
        """Return the units of other fibers and of none."""
        stay = set(fiber_ids)
        return _Units([unit for unit in self._units if unit.fiber_id not in stay])


def _split(units: Sequence[Unit], rows: int) -> Iterator[list[Unit]]:
    """Yield the units in parts of so many rows, at least one unit each."""
    some: list[Unit] = []
    left = rows
    for unit in units:
        if some and unit.rows > left:
            yield some
            some, left = [], rows
        some.append(unit)
        left -= unit.rows
    yield some


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
            sa.select(sa.func.coalesce(sa.func.sum(TEXT_BYTES), 0)).scalar_subquery(),
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


def _held(log_ids: KeptIds, going: KeptIds) -> sa.Select[Any]:
    """Select those of the ids of logs that stored fibers hold which stay; others hold nothing."""
    stays = MEMBERSHIPS.c.fiber_id.not_in(sa.select(*going.rows.c))
    of_others = sa.and_(log_ids.hold(MEMBERSHIPS.c.log_id), stays)
    held = apart(sa.select(*MEMBERSHIPS.c).where(of_others))
    return sa.select(held.c.log_id).join(FIBERS, FIBERS.c.fiber_id == held.c.fiber_id)


def _delete(session: Session, units: "_Units") -> _Gone:
    """Delete the units whose fiber is as it was, but no log that is pinned or held by another fiber."""
    with _going(session, units) as going:
        *_, of_logs = going
        of_text = sa.select(sa.func.coalesce(sa.func.sum(TEXT_BYTES), 0)).where(of_logs.which)
        ((text_bytes,),) = select_rows(session, of_text)
        gone = {table: delete_rows(session, table, which) for table, which, _ in going}
        return _Gone(gone[FIBERS], gone[MEMBERSHIPS], gone[LOGS], int(text_bytes))


@contextmanager
def _going(session: Session, units: "_Units") -> Iterator[list[GoingRows]]:
    """Yield the rows that go, those of the logs at last."""
    unchanged = _unchanged(session, units.fibers)
    changed = [id_ for id_, seen in units.seen.items() if unchanged.get(id_) != seen]
    going = units.without(changed) if changed else units
    with (
        given(session, "fiber_id", going.fibers) as fiber_ids,
        given(session, "log_id", going.logs) as planned,
    ):
        is_held = LOGS.c.log_id.in_(_held(planned, fiber_ids))
        may_go = sa.and_(planned.hold(LOGS.c.log_id), sa.not_(is_held), UNPINNED_LOG)
        with kept_ids(session, sa.select(LOGS.c.log_id).where(may_go)) as log_ids:
            either = sa.or_(fiber_ids.hold(MEMBERSHIPS.c.fiber_id), log_ids.hold(MEMBERSHIPS.c.log_id))
            yield [
                *belongings_of(fiber_ids.hold),
                GoingRows(MEMBERSHIPS, either),
                GoingRows(FIBERS, fiber_ids.hold(FIBERS.c.fiber_id)),
                GoingRows(LOGS, log_ids.hold(LOGS.c.log_id)),
            ]


def _unchanged(session: Session, fiber_ids: bytes) -> dict[bytes, tuple[bytes, int]]:
    """Return how fibers are now, see ``Unit.seen``, without those that are pinned or not stored."""
    if not fiber_ids:
        return {}
    with given(session, "fiber_id", fiber_ids) as ids:
        sizes = counted_by(MEMBERSHIPS.c.fiber_id, ids.hold(MEMBERSHIPS.c.fiber_id))
        now = (
            sa.select(sa.cast(FIBERS.c.fiber_id, sa.String), FIBER_FIELDS, sa.func.coalesce(sizes.c.rows, 0))
            .outerjoin_from(FIBERS, sizes, sizes.c.fiber_id == FIBERS.c.fiber_id)
            .where(ids.hold(FIBERS.c.fiber_id), UNPINNED_FIBER)
        )
        return {bytes_of(id_): (digest_of(text), int(rows)) for id_, text, rows in select_rows(session, now)}


def _foreseen(session: Session, candidates: Candidates, max_bytes: int | None) -> Pruned:
    """Count what would go, in one statement."""
    rows = going(candidates)
    counted: sa.ColumnElement[bool] = sa.true()
    if max_bytes is not None:
        size, content = _of_file(session, settled=False), _Content.of(session)
        excess = max(content.bytes_of(size) - max_bytes, 0)
        weight = weight_of(rows)
        before = sa.func.sum(weight).over(order_by=in_order(rows)) - weight
        rows = sa.select(*rows.c, before.label("before")).subquery("weighed")
        counted = rows.c.before < excess * content.weight_with_dead / max(size.used_bytes, 1)
    names = (field.name for field in fields(_Gone))
    sums = (sa.func.coalesce(sa.func.sum(rows.c[name]).filter(counted), 0) for name in names)
    ((*numbers,),) = select_rows(session, sa.select(*sums))
    return _Gone(*map(int, numbers)).report(_size_of(session), is_complete=True)
