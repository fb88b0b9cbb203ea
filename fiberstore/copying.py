"""Copying a store into another one, on whatever backends they are.

```python
copied = copy_store(source, destination)
assert copied.is_equal
```

Logs are copied page by page, and the cursor of the next page is a checkpoint in the destination that moves
with each batch. So a copy that was killed goes on where it stopped, and one that is run again reads the last
page and what is new: pages tell what has come behind them. The other tables change, or have no such order:
they are compared, and what the destination lacks is written.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from typing import Any, TypeAlias, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa

from fiberstore.contents import (
    COPY_PREFIX,
    LIFECYCLE_TABLES,
    MERGES,
    VERSIONS,
    OnRows,
    TableSum,
    canonical_json,
    lifecycle_rows,
    record_batches,
    table_sums,
)
from fiberstore.errors import CursorError, translate_errors
from fiberstore.lifecycle import CheckpointMove
from fiberstore.models import Fiber, Membership, RawLog
from fiberstore.queries import Memberships
from fiberstore.records import FiberMembership, FiberRecord, check_number, dump_json
from fiberstore.storages import SqlStorage

T = TypeVar("T")

BATCH_ROWS = 4_096  # lines may be long
MOST_PASSES = 10
_KEYS_AT_ONCE = 1_000
_ID_CHARS = 36
_NEW = "new_"
_Pair: TypeAlias = tuple[str, int]
"""The ids of a membership, one text after the other, and its config version."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy has done, and how the two stores compare at its end.

    Attributes:
        written: How many rows were written in the destination, new or changed, by the name of the table.
        passes: How often the source was gone through.
        has_ended: Whether the last pass found nothing more to write; if not, the source was being written.
        source: The sum of each table of the source, by its name.
        destination: The same of the destination.
    """

    written: dict[str, int]
    passes: int
    has_ended: bool
    source: dict[str, TableSum]
    destination: dict[str, TableSum]

    @property
    def differing(self) -> list[str]:
        """The tables that differ."""
        return [table for table, held in self.source.items() if held != self.destination[table]]

    @property
    def is_equal(self) -> bool:
        """Whether both hold the same."""
        return not self.differing


def copy_store(
    source: SqlStorage,
    destination: SqlStorage,
    *,
    batch_rows: int = BATCH_ROWS,
    max_passes: int = MOST_PASSES,
    on_rows: OnRows | None = None,
) -> Copied:
    """Copy all that a store holds into another one, and compare them.

    What the destination lacks is written, and what may change is made as it is in the source: fibers,
    checkpoints, the registry of config versions and which one is active, and where merged fibers have gone.
    A fiber that was merged in the source since it was copied is merged in the destination. Nothing else is
    deleted there: what only the destination holds stays, and so does a log or a membership that it holds with
    other values, for their first write wins. The tables differ then, and the result says which.

    The source may be read-only, and may be written meanwhile: passes follow until one finds nothing more. It
    may be stopped at any moment and called again, whatever the stores have been through since. Memory is
    that of some batches.

    Args:
        source: Where from.
        destination: Where to, with its tables; it need not be empty. Its pool has two connections or
            more.
        batch_rows: Most rows of a transaction, >= 1.
        max_passes: Most passes, >= 1, while the source is being written.
        on_rows: Called with the name of a step, such as ``"copy raw_logs"`` or ``"check fibers"``, and how
            many more rows it has gone through.

    Raises:
        ValueError: Both are the same database, or a number is out of bounds.
        CheckpointError: Another copy between the two is running.
        StorageError: A database failed; what was written until then stays, and another call goes on.
    """
    check_number("batch_rows", batch_rows, least=1)
    check_number("max_passes", max_passes, least=1)
    _refuse_one_database(source, destination)
    copy = _Copy(source, destination, batch_rows, on_rows)
    passes, compared = 0, None  # what a comparison has found, if nothing was written since
    while passes < max_passes:
        passes += 1
        if copy.run_pass():  # and more may have come meanwhile
            compared = None
        elif compared is None:
            compared = copy.compare()
            if compared.is_equal:
                break
        elif RawLog.__tablename__ not in compared.differing or not copy.read_logs_again():
            break
    found = compared or copy.compare()
    return replace(found, passes=passes, has_ended=compared is not None)


def _refuse_one_database(source: SqlStorage, destination: SqlStorage) -> None:
    """Raise ``ValueError`` if what is written into one can be read from the other."""
    name = f"{COPY_PREFIX}{uuid4().hex}"
    destination.checkpoints.set(name, "")
    try:
        if source.checkpoints.get(name) is not None:
            raise ValueError("source and destination are the same database; give another destination")
    finally:
        destination.checkpoints.delete(name)


class _Copy:
    """One run of a copy: what it has written, and how far it has come in the logs."""

    def __init__(
        self, source: SqlStorage, destination: SqlStorage, batch_rows: int, on_rows: OnRows | None
    ) -> None:
        self._source = source
        self._destination = destination
        self._batch_rows = batch_rows
        self._on_rows = on_rows
        self._written: Counter[str] = Counter()
        self._checkpoint = f"{COPY_PREFIX}from {_identity(source)}"
        known = destination.checkpoints.get(self._checkpoint)
        self._cursor = self._noted = None if known is None else known.value
        self._is_resumed = known is not None

    def run_pass(self) -> bool:
        """Go through the source once; return whether there may be more to write."""
        before = self._written.total()
        has_all_logs = self._copy_logs()
        self._copy_fibers()
        self._copy_memberships()
        self._copy_merged()
        for table in LIFECYCLE_TABLES:
            self._copy_rows(table)
        return self._written.total() > before or not has_all_logs

    def read_logs_again(self) -> bool:
        """Let the next pass read the logs from the beginning; return False if this run has done so."""
        was_resumed, self._is_resumed = self._is_resumed, False
        self._cursor = None
        return was_resumed

    def compare(self) -> Copied:
        """Return what was written until now, and what both stores hold."""
        sums = [
            table_sums(storage, on_rows=lambda table, rows: self._tell("check", table, rows))
            for storage in (self._source, self._destination)
        ]
        written = {table: self._written[table] for table in sums[0]}
        return Copied(written, 0, False, *sums)

    def _copy_logs(self) -> bool:
        """Copy the new logs; return False if the next pass has to begin again."""
        try:
            self._copy_new_logs()
        except CursorError:  # the newest log that was known is deleted, and with it what came after it
            self.read_logs_again()
            return False
        return True

    def _copy_new_logs(self) -> None:
        """Copy page by page, up to the last one, which the next pass reads again: more may come there."""
        while True:
            page = self._source.logs.page(self._batch_rows, self._cursor)
            for late in _batches(page.late, self._batch_rows):  # of which there may be more than of others
                written = self._destination.write_logs(late)
                self._note(RawLog.__tablename__, read=len(late), written=written)
            move = None if page.next is None else CheckpointMove(self._checkpoint, self._noted, page.next)
            counts = self._destination.write_batch(logs=page.items, checkpoint=move)
            self._note(RawLog.__tablename__, read=len(page.items), written=counts.logs)
            if move is None:
                return
            self._cursor = self._noted = move.value

    def _copy_fibers(self) -> None:
        for some in _batches(self._source.fibers.iter_records(), self._batch_rows):
            found = self._destination.fibers.get_many([fiber.fiber_id for fiber in some]).items
            held = {fiber.fiber_id: _values(fiber) for fiber in found}
            changed = [fiber for fiber in some if held.get(fiber.fiber_id) != _values(fiber)]
            if changed:
                self._destination.upsert_fibers(changed)
            self._note(Fiber.__tablename__, read=len(some), written=len(changed))

    def _copy_memberships(self) -> None:
        table = Membership.__tablename__
        with (
            closing(_pairs(self._source.memberships, lambda rows: self._tell("copy", table, rows))) as pairs,
            closing(_pairs(self._destination.memberships)) as held,
        ):
            for some in _batches(_missing(pairs, held), self._batch_rows):
                written = self._destination.write_memberships(list(map(_membership, some)))
                self._note(table, read=0, written=written)

    def _copy_merged(self) -> None:
        """Merge in the destination what was merged in the source after it was copied."""
        for rows in lifecycle_rows(self._source, MERGES, _KEYS_AT_ONCE):
            survivors: dict[UUID, UUID] = {row.fiber_id: row.survivor_id for row in rows}
            ended = self._source.fibers.get_many(survivors).missing
            left = {fiber.fiber_id: fiber for fiber in self._destination.fibers.get_many(ended).items}
            if not left:
                continue
            stored = self._source.fibers.get_many({survivors[fiber_id] for fiber_id in left}).items
            there = self._destination.fibers.get_many([fiber.fiber_id for fiber in stored]).items
            versions = {fiber.fiber_id: fiber.config_version for fiber in there}
            merged = self._destination.merge_fibers(
                {
                    fiber_id: survivors[fiber_id]
                    for fiber_id, fiber in left.items()
                    if versions.get(survivors[fiber_id]) == fiber.config_version
                }
            )
            self._note(Fiber.__tablename__, read=0, written=merged.fibers)

    def _copy_rows(self, table: sa.Table) -> None:
        """Write the rows of a table of the lifecycle that the destination lacks or has otherwise."""
        (key,) = table.primary_key
        for rows in lifecycle_rows(self._source, table, _KEYS_AT_ONCE):
            with self._destination.transaction() as transaction, translate_errors():
                session = transaction.session
                found = session.execute(sa.select(table).where(key.in_([row[0] for row in rows])))
                held = {row[0]: row for row in found}
                new = [row for row in rows if row[0] not in held]
                changed = [row for row in rows if row != held.get(row[0], row)]
                if table is VERSIONS and any(row.active for row in (*new, *changed)):
                    session.execute(sa.update(table).where(table.c.active.is_(True)).values(active=None))
                if changed:
                    session.execute(_update(table), [_prefixed(row) for row in changed])
                if new:
                    session.execute(sa.insert(table), [row._asdict() for row in new])
            self._note(table.name, read=len(rows), written=len(new) + len(changed))

    def _note(self, table: str, *, read: int, written: int) -> None:
        self._written[table] += written
        if read:
            self._tell("copy", table, read)

    def _tell(self, step: str, table: str, rows: int) -> None:
        if self._on_rows is not None:
            self._on_rows(f"{step} {table}", rows)


def _identity(storage: SqlStorage) -> str:
    """Return a text for the database that tells nothing of it, least of all a password."""
    url = storage.engine.url.set(password=None).difference_update_query(["password"])
    return sha256(url.render_as_string().encode()).hexdigest()[:16]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def _values(fiber: FiberRecord) -> tuple[object, ...]:
    """Return what tells fibers apart; unlike values, texts of JSON tell 1 and true apart."""
    return (
        fiber.fiber_type,
        fiber.config_version,
        canonical_json(dump_json(fiber.attributes)),
        fiber.first_activity,
        fiber.last_activity,
        fiber.closed,
    )


def _pairs(memberships: Memberships, on_rows: Callable[[int], None] | None = None) -> Generator[_Pair]:
    """Give memberships by their ids, ascending."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in record_batches(memberships):
        ids = pc.binary_join_element_wise(
            batch["log_id"], batch["fiber_id"], pa.scalar("", pa.large_string())
        )
        yield from zip(ids.to_pylist(), batch["config_version"].to_pylist(), strict=True)
        if on_rows is not None:
            on_rows(batch.num_rows)


def _missing(pairs: Iterable[_Pair], held: Iterator[_Pair]) -> Iterator[_Pair]:
    """Give the pairs whose ids are not among those that are held; both are ascending."""
    other = next(held, None)
    for pair in pairs:
        while other is not None and other[0] < pair[0]:
            other = next(held, None)
        if other is None or other[0] != pair[0]:
            yield pair


def _membership(pair: _Pair) -> FiberMembership:
    ids, version = pair
    return FiberMembership.model_construct(
        log_id=UUID(ids[:_ID_CHARS]), fiber_id=UUID(ids[_ID_CHARS:]), config_version=version
    )


def _update(table: sa.Table) -> sa.Update:
    """Return a statement that takes what ``_prefixed`` gives; SQLAlchemy keeps the plain names to itself."""
    (key,) = table.primary_key
    values: dict[str, sa.BindParameter[object]] = {
        column.name: sa.bindparam(f"{_NEW}{column.name}") for column in table.c if column is not key
    }
    return sa.update(table).where(key == sa.bindparam(f"{_NEW}{key.name}")).values(values)


def _prefixed(row: sa.Row[Any]) -> dict[str, object]:
    return {f"{_NEW}{name}": value for name, value in row._asdict().items()}
