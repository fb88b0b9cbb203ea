"""The set of rows that retention deletes, fixed in one snapshot before any goes."""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from tempfile import SpooledTemporaryFile, gettempdir
from typing import IO, Any, Self

import sqlalchemy as sa

from fiberstore.contract.conditions import Condition, checked_condition
from fiberstore.errors import DatabaseError
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.repositories.access import SessionAccess, uncollected
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS, to_sql
from fiberstore.sql.connection import Row
from fiberstore.sql.functions import EpochMicroseconds, TextBytes
from fiberstore.sql.models import PinnedFiber, PinnedLog, Timestamp
from fiberstore.sql.prepared import compiled, connection_of

# About what a row takes beside the text of a log: its ids and times, and its places in indexes.
ROW_BYTES = 100
ID_BYTES = 16
_ROWS_AT_ONCE = 2_048
_MOST_BYTES_IN_MEMORY = 2**20

UNPINNED_FIBER = FIBERS.c.fiber_id.not_in(sa.select(PinnedFiber.fiber_id))
UNPINNED_LOG = LOGS.c.log_id.not_in(sa.select(PinnedLog.log_id))
TEXT_BYTES = TextBytes(LOGS.c.raw_text)
# All that a fiber is, by which one that has changed is told.
FIBER_FIELDS = sa.func.concat_ws(
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
_ROW = struct.Struct("<c16s16sQQ")  # kind, id, digest, memberships, weight
_FIBER, _LOG_OF_FIBER, _LOG = b"f", b"m", b"l"
_NO_DIGEST = bytes(16)


@dataclass(frozen=True, slots=True)
class Candidates:
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
                default if fibers is None else to_sql(checked_condition(fibers, FiberRecord)), UNPINNED_FIBER
            ),
            sa.and_(default if logs is None else to_sql(checked_condition(logs, StoredLog)), UNPINNED_LOG),
        )


@dataclass(slots=True)
class Unit:
    """The rows that go in one step or not at all: a fiber with logs, or a log that no stored fiber holds.

    A log that several fibers hold is in the unit of the youngest.

    Attributes:
        fiber_id: The 16 bytes of the fiber's id.
        seen: Its fields as a digest and the number of its memberships: a fiber that is not as it was stays.
        log_ids: Ids of the logs, joined.
        rows: Size, as ``step_rows`` counts.
        weight: Size, see ``weight_of``.
    """

    fiber_id: bytes | None
    seen: tuple[bytes, int]
    log_ids: bytearray
    rows: int
    weight: int


class Plan:
    """The set that goes, the oldest first, in a temporary file without a name: 49 bytes a row.

    Args:
        file: Rows as ``_packed`` makes them.
        rows: How many there are of each kind.
        weight: Their weight, see ``weight_of``.

    Attributes:
        fibers: How many fibers are left.
        logs: How many logs are left.
        weight: The weight that is left.
    """

    def __init__(self, file: IO[bytes], rows: Mapping[bytes, int], weight: int) -> None:
        file.seek(0)
        self.fibers, self.logs, self.weight = rows[_FIBER], rows[_LOG] + rows[_LOG_OF_FIBER], weight
        self._units = _units(file)
        self._next = next(self._units, None)

    @classmethod
    @contextmanager
    def of(cls, sessions: SessionAccess, candidates: Candidates) -> Iterator[Self]:
        """Fix the set, in one snapshot."""
        rows = going(candidates)
        statement = (
            sa.select(
                # As texts: an object for each id would take longer than all the rest.
                sa.cast(rows.c.fiber_id, sa.String),
                sa.cast(rows.c.log_id, sa.String),
                rows.c.place,
                FIBER_FIELDS,
                rows.c.memberships,
                weight_of(rows),
            )
            .outerjoin_from(rows, FIBERS, FIBERS.c.fiber_id == rows.c.fiber_id)
            .order_by(*in_order(rows))
        )
        kinds, weight = Counter[bytes](), 0
        with SpooledTemporaryFile(_MOST_BYTES_IN_MEMORY) as file:
            try:
                with sessions.read("prune.plan") as session:
                    connection = connection_of(session)
                    for batch in connection.stream_rows(*compiled(session, statement), _ROWS_AT_ONCE):
                        packed = [_packed(row) for row in batch]
                        kinds.update(row[0] for row in packed)
                        weight += sum(row[-1] for row in packed)
                        file.write(b"".join([_ROW.pack(*row) for row in packed]))
                file.seek(0)  # which writes what is left
            except OSError as error:
                with suppress(OSError):  # which writes what is left, and fails again
                    file.close()
                raise DatabaseError(
                    f"the ids of the rows that go cannot be kept in {gettempdir()} ({error.strerror}); free "
                    "some space there, or let TMPDIR name another folder"
                ) from error
            yield cls(file, kinds, weight)

    @property
    def is_empty(self) -> bool:
        """True when all units were taken."""
        return self._next is None

    def take(self, rows: int, weight: float) -> list[Unit]:
        """Return the next units: the first, and more up to a number of rows, until a weight is reached."""
        units: list[Unit] = []
        with uncollected():
            while self._next is not None and (not units or (self._next.rows <= rows and weight > 0)):
                units.append(self._next)
                rows -= self._next.rows
                weight -= self._next.weight
                self.fibers -= self._next.fiber_id is not None
                self.logs -= len(self._next.log_ids) // ID_BYTES
                self.weight -= self._next.weight
                self._next = next(self._units, None)
        return units


def _packed(row: Row) -> tuple[bytes, bytes, bytes, int, int]:
    """Return a row as it is in the file."""
    fiber_id, log_id, place, fields_text, memberships, weight = row
    if fiber_id is not None:
        return _FIBER, bytes_of(fiber_id), digest_of(fields_text), int(memberships), int(weight)
    kind = _LOG if place is None else _LOG_OF_FIBER
    return kind, bytes_of(log_id), _NO_DIGEST, int(memberships), int(weight)


def bytes_of(id_: str) -> bytes:
    """Return the 16 bytes of an id."""
    return bytes.fromhex(id_.replace("-", ""))


def digest_of(fields_text: str) -> bytes:
    """Return the digest of ``FIBER_FIELDS``."""
    return blake2b(fields_text.encode(), digest_size=len(_NO_DIGEST)).digest()


def _units(file: IO[bytes]) -> Iterator[Unit]:
    unit: Unit | None = None
    chunks = iter(lambda: file.read(_ROWS_AT_ONCE * _ROW.size), b"")
    for kind, id_, digest, memberships, weight in chain.from_iterable(map(_ROW.iter_unpack, chunks)):
        if kind == _LOG_OF_FIBER and unit is not None:
            unit.log_ids += id_
            unit.weight += weight
            continue
        if unit is not None:
            yield unit
        if kind == _FIBER:
            rows = max(memberships, 1)
            unit = Unit(id_, (digest, memberships), bytearray(), rows, weight)
        else:
            unit = Unit(None, (digest, 0), bytearray(id_), 1, weight)
    if unit is not None:
        yield unit


def going(candidates: Candidates) -> sa.Subquery:
    """Select what goes, a row for each fiber and log.

    A log goes if all the fibers that hold it do, with the youngest of them, whose ``place`` it has; the
    ``place`` of a log that no stored fiber holds is NULL. Memberships are counted with their fiber, or with
    their log if the fiber is not stored.
    """
    none, no_id = sa.literal_column("0", sa.BigInteger), sa.cast(sa.null(), sa.Uuid)
    one = sa.literal_column("1", sa.BigInteger)
    # Conditions stand in a WHERE alone: Citus takes few subqueries among the columns of a SELECT.
    chosen = sa.select(FIBERS.c.fiber_id).where(candidates.fibers).subquery("chosen")
    fibers = (
        sa.select(
            FIBERS.c.fiber_id,
            FIBERS.c.last_activity.label("time"),
            sa.func.row_number().over(order_by=(FIBERS.c.last_activity, FIBERS.c.fiber_id)).label("place"),
            chosen.c.fiber_id.is_not(None).label("goes"),
        )
        .outerjoin_from(FIBERS, chosen, chosen.c.fiber_id == FIBERS.c.fiber_id)
        .cte("all_fibers")
    )
    held = (
        sa.select(
            MEMBERSHIPS.c.log_id,
            sa.func.max(fibers.c.time).label("time"),
            sa.func.max(fibers.c.place).label("place"),
            sa.func.bool_and(fibers.c.goes).label("goes"),
            sa.func.count().filter(fibers.c.fiber_id.is_(None)).label("strays"),
        )
        .outerjoin_from(MEMBERSHIPS, fibers, fibers.c.fiber_id == MEMBERSHIPS.c.fiber_id)
        .group_by(MEMBERSHIPS.c.log_id)
        .subquery("held")
    )
    sizes = counted_by(MEMBERSHIPS.c.fiber_id, sa.true())
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
            sa.func.coalesce(held.c.strays, 0),
            one,
            TEXT_BYTES,
        )
        .outerjoin_from(LOGS, held, held.c.log_id == LOGS.c.log_id)
        .where(UNPINNED_LOG, sa.or_(held.c.goes.is_(True), sa.and_(held.c.goes.is_(None), candidates.logs)))
    )
    return sa.union_all(going_fibers, going_logs).subquery("going")


def in_order(rows: sa.FromClause) -> tuple[sa.ColumnElement[Any], ...]:
    """Return the order of ``going``: the oldest first, a fiber before its logs."""
    return rows.c.time, rows.c.place.nulls_last(), rows.c.log_id.nulls_first()


def weight_of(rows: sa.FromClause) -> sa.ColumnElement[int]:
    """Return about how many bytes a row of ``going`` takes, before compression."""
    return rows.c.text_bytes + ROW_BYTES * (rows.c.fibers + rows.c.memberships + rows.c.logs)


def counted_by(column: sa.ColumnElement[Any], which: sa.ColumnElement[bool]) -> sa.Subquery:
    """Select how many memberships there are of each value of a column."""
    return sa.select(column, sa.func.count().label("rows")).where(which).group_by(column).subquery()
