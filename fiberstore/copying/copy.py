"""Copying a store into another one, on whatever backends they are.

```python
copied = copy_store(source, destination)
assert copied.is_equal
```

Logs are copied page by page, and the cursor of the next page is a checkpoint in the destination that moves
with each batch. So a copy that was killed resumes where it stopped, and one that is run again reads the last
page and what is new: pages tell what has come behind them. The other tables change, or have no such order:
they are compared, and what the destination lacks is written.

A store keeps no history but where merged fibers have gone. So a merge in the source is repeated in the
destination; a row that was deleted in the source looks like one that the destination got from elsewhere. It
stays and is reported, unless the destination is to be a mirror.
"""

from collections import Counter
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from fiberstore.checks import check_number
from fiberstore.contract.lifecycle import CheckpointMove
from fiberstore.contract.queries import Memberships
from fiberstore.copying.checksums import (
    COPY_PREFIX,
    ENDS,
    FIBER_PINS,
    LIFECYCLE_TABLES,
    LOG_PINS,
    MERGES,
    VERSIONS,
    Key,
    OnRows,
    TableChecksum,
    canonical_json,
    keyed_rows,
    lifecycle_rows,
    partitions,
    table_checksums,
)
from fiberstore.copying.side_by_side import (
    KEYS_AT_ONCE,
    as_membership,
    differing,
    ids_of,
    in_batches,
    key_pairs,
    membership_pairs,
    moved_to,
    primary_key_of,
    stored_among,
)
from fiberstore.errors import CursorError
from fiberstore.json_text import dump_json
from fiberstore.records import FiberMembership, FiberRecord
from fiberstore.repositories import FiberRepository
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql import key_rows
from fiberstore.sql.conditions import FIBERS, KEYS, LOGS, MEMBERSHIPS
from fiberstore.sql.models import identity_of
from fiberstore.sql.translate import translate_errors

BATCH_ROWS = 4_096  # lines may be long
MOST_PASSES = 10
_NEW = "new_"
_KEYS_SHOWN = 5

# Rows that hold others come first, so that a copy that is killed leaves none of them without the other.
_TABLES = {table.name: table for table in (MEMBERSHIPS, KEYS, ENDS, FIBER_PINS, LOG_PINS, FIBERS, LOGS)}
_TABLES |= {table.name: table for table in LIFECYCLE_TABLES}


@dataclass(frozen=True, slots=True)
class TableDifference:
    """Number of rows of one table that differ between two stores.

    Attributes:
        only_source: Rows that only the source holds.
        only_destination: Rows that only the destination holds.
        changed: Rows that both hold, with other values.
        keys: Primary keys of the first few of all these, as text.
    """

    only_source: int
    only_destination: int
    changed: int
    keys: list[str]


@dataclass(frozen=True, slots=True)
class Copied:
    """Result of a copy: the rows that it wrote, and a comparison of both stores at its end.

    Attributes:
        written: Number of rows written in the destination, new or changed, by the name of the table.
        deleted: Number of rows deleted there, by the name of the table.
        passes: Number of passes through the source.
        has_ended: True if the last pass found nothing more to write; False if the source was being written.
        source: The sum of each table of the source, by its name.
        destination: The same of the destination.
        differences: For each table that differs after the last pass, by how many rows.
    """

    written: dict[str, int]
    deleted: dict[str, int]
    passes: int
    has_ended: bool
    source: dict[str, TableChecksum]
    destination: dict[str, TableChecksum]
    differences: dict[str, TableDifference]

    @property
    def differing(self) -> list[str]:
        """The tables that differ."""
        return [table for table, held in self.source.items() if held != self.destination[table]]

    @property
    def is_equal(self) -> bool:
        """True if both stores hold the same rows."""
        return not self.differing


def copy_store(
    source: SqlStorage,
    destination: SqlStorage,
    *,
    batch_rows: int = BATCH_ROWS,
    max_passes: int = MOST_PASSES,
    mirror: bool = False,
    on_rows: OnRows | None = None,
) -> Copied:
    """Copy all that a store holds into another one, and compare them.

    What the destination lacks is written, and what may change is made as it is in the source: fibers,
    checkpoints, the registry of config versions and which one is active, and where merged fibers have gone.
    A fiber that was merged in the source since it was copied is merged in the destination. Nothing else is
    deleted there: what only the destination holds stays, and so does a log or a membership that it holds with
    other values, for their first write wins. The tables differ then, and the result counts the rows.

    With ``mirror``, these rows are deleted or replaced in the destination. The two stores are equal once the
    source is quiet, whatever was deleted, pruned, redacted or unpinned there.

    The source may be read-only, and may be written meanwhile: passes follow until one finds nothing more. It
    may be stopped at any moment and called again, whatever the stores have been through since. Memory is
    that of some batches.

    Args:
        source: The store to read. Its pool has two connections or more.
        destination: The store to write, with its tables; it need not be empty. Its pool has two connections
            or more.
        batch_rows: Most rows of a transaction, >= 1.
        max_passes: Most passes, >= 1, while the source is being written.
        mirror: Delete what only the destination holds, and replace what it holds with other values.
        on_rows: Called with the name of a step, such as ``"copy raw_logs"`` or ``"check fibers"``, and how
            many more rows it has gone through.

    Raises:
        ValueError: Both are the same database, or a number is out of bounds.
        CheckpointError: Another copy between the two is running.
        StorageError: A database failed; what was written until then stays, and another call resumes.
    """
    check_number("batch_rows", batch_rows, least=1)
    check_number("max_passes", max_passes, least=1)
    _refuse_one_database(source, destination)
    copy = _Copy(source, destination, batch_rows, on_rows)
    passes, compared = 0, None  # the last comparison, if nothing was written since
    while passes < max_passes:
        passes += 1
        if copy.run_pass():  # and more may have come meanwhile
            compared = None
        elif compared is None:
            compared = copy.compare()
            if compared.is_equal:
                break
            if copy.reconcile(compared.differing, mirror=mirror):
                compared = None
        else:
            break
    found = compared or copy.compare()
    return replace(found, passes=passes, has_ended=compared is not None, differences=copy.differences)


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
    """One run of a copy: what it has written, and how far it has come in the logs.

    Attributes:
        differences: Result of ``reconcile`` since the last comparison.
    """

    def __init__(
        self, source: SqlStorage, destination: SqlStorage, batch_rows: int, on_rows: OnRows | None
    ) -> None:
        self._source = source
        self._destination = destination
        self._batch_rows = batch_rows
        self._on_rows = on_rows
        self._written: Counter[str] = Counter()
        self._deleted: Counter[str] = Counter()
        self.differences: dict[str, TableDifference] = {}
        self._checkpoint = f"{COPY_PREFIX}from {_identity(source)}"
        known = destination.checkpoints.get(self._checkpoint)
        self._cursor = self._noted = None if known is None else known.value

    def run_pass(self) -> bool:
        """Go through the source once; return whether there may be more to write."""
        before = self._changes
        has_all_logs = self._copy_logs()
        with self._source.session() as snapshot:  # in which every membership and every pin has its fiber
            self._copy_fibers(snapshot)
            self._copy_keys(snapshot)
            self._copy_memberships(snapshot)
            self._end_merged_fibers(snapshot)
            for table in LIFECYCLE_TABLES:
                self._copy_rows(snapshot, table)
        return self._changes > before or not has_all_logs

    def compare(self) -> Copied:
        """Compare the two stores, and report what was written so far."""
        source, destination = (
            table_checksums(storage, on_rows=partial(self._tell, "check"))
            for storage in (self._source, self._destination)
        )
        written, deleted = (
            {table: counts[table] for table in source} for counts in (self._written, self._deleted)
        )
        self.differences = {}
        return Copied(written, deleted, 0, False, source, destination, {})

    def reconcile(self, names: Collection[str], *, mirror: bool) -> bool:
        """Compare tables row by row; return True if rows were written or deleted.

        Logs that the destination lacks are written: they have been deleted there since they were copied.
        """
        before = self._changes
        for name, table in _TABLES.items():
            if name in names:
                self.differences[name] = self._reconcile(table, mirror=mirror)
        return self._changes > before

    @property
    def _changes(self) -> int:
        return self._written.total() + self._deleted.total()

    def _copy_logs(self) -> bool:
        """Copy the new logs; return False if the next pass has to begin again."""
        try:
            self._copy_new_logs()
        except CursorError:  # the newest log that was known is deleted, and with it what came after it
            self._cursor = None
            return False
        return True

    def _copy_new_logs(self) -> None:
        """Copy page by page, up to the last one, which the next pass reads again: more may come there."""
        while True:
            page = self._source.logs.page(self._batch_rows, self._cursor)
            for late in in_batches(page.late, self._batch_rows):  # of which there may be more than of others
                written = self._destination.write_logs(late)
                self._note(LOGS.name, read=len(late), written=written)
            move = None if page.next is None else CheckpointMove(self._checkpoint, self._noted, page.next)
            counts = self._destination.write_batch(logs=page.items, checkpoint=move)
            self._note(LOGS.name, read=len(page.items), written=counts.logs)
            if move is None:
                return
            self._cursor = self._noted = move.value

    def _copy_fibers(self, snapshot: Session) -> None:
        for some in in_batches(FiberRepository(snapshot).iter_records(), self._batch_rows):
            found = self._destination.fibers.get_many([fiber.fiber_id for fiber in some]).items
            held = {fiber.fiber_id: _values(fiber) for fiber in found}
            changed = [fiber for fiber in some if held.get(fiber.fiber_id) != _values(fiber)]
            if changed:
                self._destination.upsert_fibers(changed)
            self._note(FIBERS.name, read=len(some), written=len(changed))

    def _copy_keys(self, snapshot: Session) -> None:
        """Give the fibers of the source the keys that they have there; the other fibers keep theirs."""
        tell = partial(self._tell, "copy", KEYS.name)
        with (
            self._destination.session() as reader,
            closing(key_pairs(snapshot, tell)) as keys,
            closing(key_pairs(reader)) as held,
        ):
            for some in in_batches(differing(keys, held), self._batch_rows):
                wanted = [new for _, new, _ in some if new is not None]
                replaced = [key for key, new, old in some if new is not None and old is not None]
                extra = [key for key, new, _ in some if new is None]
                alive = stored_among(self._source, FIBERS, {fiber_id for fiber_id, _, _ in extra})
                gone = [key for key in extra if key[0] in alive]
                if wanted or gone:
                    with self._destination.transaction() as transaction, translate_errors():
                        self._delete(transaction.session, KEYS, [*replaced, *gone])
                        written = key_rows.insert_keys(transaction.session, wanted) if wanted else 0
                    self._deleted[KEYS.name] -= len(replaced)
                    self._note(KEYS.name, read=0, written=written)

    def _end_merged_fibers(self, snapshot: Session) -> None:
        """Delete in the destination the fibers that were merged in the source, and move their pins.

        Most of their memberships have moved before; the last go with them, so that a copy that is killed
        leaves none without its fiber.
        """
        is_ended = FIBERS.c.fiber_id.is_(None).label("is_ended")
        merged = sa.select(*MERGES.c, is_ended).outerjoin(FIBERS, FIBERS.c.fiber_id == MERGES.c.fiber_id)
        for rows in partitions(snapshot.connection(), merged, KEYS_AT_ONCE):
            survivors: dict[UUID, UUID] = {row.fiber_id: row.survivor_id for row in rows}
            ended = {row.fiber_id for row in rows if row.is_ended}
            left = stored_among(self._destination, FIBERS, ended)
            if left:
                query = self._destination.memberships.where(Memberships.c.fiber_id.in_(list(left)))
                rest = {ids_of(old): moved_to(old, survivors[old.fiber_id]) for old in query.iter_records()}
                held = self._held(rest)
                moves = {old: new for old, new in rest.items() if old not in held}
                kept = self._only_here(moves.values())
                with self._destination.transaction() as transaction, translate_errors():
                    for loser in left:
                        others = sa.update(MERGES).where(MERGES.c.survivor_id == loser)
                        transaction.session.execute(others.values(survivor_id=survivors[loser]))
                    written = transaction.memberships.write_memberships(kept)
                    self._delete(transaction.session, MEMBERSHIPS, list(moves))
                    self._deleted[KEYS.name] += key_rows.delete_keys(transaction.session, left)
                    for table in (ENDS, FIBERS):
                        self._delete(transaction.session, table, [(loser,) for loser in left])
                self._note(MEMBERSHIPS.name, read=0, written=written)
            self._move_pins(survivors, ended)

    def _move_pins(self, survivors: dict[UUID, UUID], ended: Collection[UUID]) -> None:
        """Move pins to the survivors; of a fiber that is stored again, if its pin has moved in the source."""
        pinned = stored_among(self._destination, FIBER_PINS, survivors)
        there = stored_among(self._source, FIBER_PINS, [*pinned, *(survivors[loser] for loser in pinned)])
        moved = [loser for loser in pinned - there if loser in ended or survivors[loser] in there]
        if moved:
            rows = [{"fiber_id": survivor} for survivor in {survivors[loser] for loser in moved}]
            with self._destination.transaction() as transaction, translate_errors():
                transaction.session.execute(insert(FIBER_PINS).values(rows).on_conflict_do_nothing())
                self._delete(transaction.session, FIBER_PINS, [(loser,) for loser in moved])

    def _copy_memberships(self, snapshot: Session) -> None:
        tell = partial(self._tell, "copy", MEMBERSHIPS.name)
        with (
            self._destination.session() as reader,
            closing(membership_pairs(snapshot, tell)) as pairs,
            closing(membership_pairs(reader)) as held,
        ):
            for some in in_batches(differing(pairs, held), self._batch_rows):
                lacking = [
                    as_membership(ids, new) for ids, new, old in some if new is not None and old is None
                ]
                if lacking:
                    written = self._destination.write_memberships(lacking)
                    self._note(MEMBERSHIPS.name, read=0, written=written)
                extra = [as_membership(ids, old) for ids, new, old in some if old is not None and new is None]
                for part in in_batches(extra, KEYS_AT_ONCE):
                    self._move_memberships(part)

    def _move_memberships(self, memberships: list[FiberMembership]) -> None:
        """Take memberships that the source does not hold from the fibers that were merged there.

        They go to the survivor if only the destination has their log. Those of other fibers stay.
        """
        survivors = self._survivors({membership.fiber_id for membership in memberships})
        stored = stored_among(self._destination, FIBERS, set(survivors.values()))
        moves = {
            ids_of(old): moved_to(old, survivors[old.fiber_id])
            for old in memberships
            if survivors.get(old.fiber_id) in stored
        }
        if not moves:
            return
        alive = stored_among(self._source, FIBERS, {fiber_id for _, fiber_id in moves})
        held = self._held([ids_of(new) for new in moves.values()])
        # The source has moved those of a fiber that is stored again if it holds them at the survivor.
        moved = {old: new for old, new in moves.items() if old[1] not in alive or ids_of(new) in held}
        kept = self._only_here(moved.values())
        if moved:
            with self._destination.transaction() as transaction, translate_errors():
                written = transaction.memberships.write_memberships(kept)
                self._delete(transaction.session, MEMBERSHIPS, list(moved))
            self._note(MEMBERSHIPS.name, read=0, written=written)

    def _only_here(self, memberships: Collection[FiberMembership]) -> list[FiberMembership]:
        """Return the memberships that the source lacks, of logs that it lacks."""
        held = self._held(list(map(ids_of, memberships)))
        known = stored_among(self._source, LOGS, {membership.log_id for membership in memberships})
        return [new for new in memberships if new.log_id not in known and ids_of(new) not in held]

    def _survivors(self, fiber_ids: Collection[UUID]) -> dict[UUID, UUID]:
        """Return where fibers have gone in the source; those that were never merged are left out."""
        statement = sa.select(MERGES.c.fiber_id, MERGES.c.survivor_id)
        found: dict[UUID, UUID] = {}
        with translate_errors(), self._source.engine.connect() as connection:
            for some in in_batches(fiber_ids, KEYS_AT_ONCE):
                rows = connection.execute(statement.where(MERGES.c.fiber_id.in_(some)))
                found.update((loser, survivor) for loser, survivor in rows)
        return found

    def _held(self, pairs: Collection[Key]) -> set[Key]:
        """Return the ids of those memberships that the source holds."""
        if not pairs:
            return set()
        log_ids, fiber_ids = (list(set(ids)) for ids in zip(*pairs, strict=True))
        query = self._source.memberships.where(
            Memberships.c.fiber_id.in_(fiber_ids), Memberships.c.log_id.in_(log_ids)
        )
        return set(map(ids_of, query.iter_records())).intersection(pairs)

    def _copy_rows(self, snapshot: Session, table: sa.Table) -> None:
        """Write the rows of a table of the lifecycle that the destination lacks or has otherwise."""
        (key,) = table.primary_key
        for rows in lifecycle_rows(snapshot.connection(), table, KEYS_AT_ONCE):
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

    def _reconcile(self, table: sa.Table, *, mirror: bool) -> TableDifference:
        lacking = extra = changed = 0
        shown: list[str] = []
        tell = partial(self._tell, "compare")
        with (
            closing(keyed_rows(self._source, table.name, on_rows=tell)) as rows,
            closing(keyed_rows(self._destination, table.name, on_rows=tell)) as held,
        ):
            for some in in_batches(differing(rows, held), KEYS_AT_ONCE):
                keys = [primary_key_of(table, key) for key, _, _ in some]
                new = [key for key, row in zip(keys, some, strict=True) if row[2] is None]
                old = [key for key, row in zip(keys, some, strict=True) if row[1] is None]
                other = [key for key, row in zip(keys, some, strict=True) if None not in row]
                self._mend(table, new, old, other, mirror=mirror)
                lacking, extra, changed = lacking + len(new), extra + len(old), changed + len(other)
                shown += [" ".join(map(str, key)) for key in keys[: _KEYS_SHOWN - len(shown)]]
        return TableDifference(lacking, extra, changed, shown)

    def _mend(
        self, table: sa.Table, lacking: list[Key], extra: list[Key], changed: list[Key], *, mirror: bool
    ) -> None:
        """Delete and write rows, as far as a pass does not do it."""
        gone: list[Key] = []
        if mirror:
            gone = [*extra, *changed] if table in (LOGS, MEMBERSHIPS) else extra
        elif table is MERGES:  # a fiber that is stored again, and is a survivor itself now
            stored = stored_among(self._source, FIBERS, [fiber_id for (fiber_id,) in extra])
            gone = [key for key in extra if key[0] in stored]
        wanted = [*lacking, *(changed if mirror else [])] if table is LOGS else []
        logs = self._source.logs.get_many([log_id for (log_id,) in wanted]).items if wanted else []
        if gone or logs:
            with self._destination.transaction() as transaction, translate_errors():
                self._delete(transaction.session, table, gone)
                written = transaction.logs.write_logs(logs)
            self._note(table.name, read=0, written=written)

    def _delete(self, session: Session, table: sa.Table, keys: list[Key]) -> None:
        """Delete rows of one table by their primary keys."""
        columns = sa.tuple_(*identity_of(table))
        for some in in_batches(keys, KEYS_AT_ONCE):
            deleted = session.connection().execute(sa.delete(table).where(columns.in_(some)))
            self._deleted[table.name] += deleted.rowcount

    def _note(self, table: str, *, read: int, written: int) -> None:
        self._written[table] += written
        if read:
            self._tell("copy", table, read)

    def _tell(self, step: str, table: str, rows: int) -> None:
        if self._on_rows is not None:
            self._on_rows(f"{step} {table}", rows)


def _identity(storage: SqlStorage) -> str:
    """Return an opaque text that identifies the database, without a password."""
    url = storage.engine.url.set(password=None).difference_update_query(["password"])
    return sha256(url.render_as_string().encode()).hexdigest()[:16]


def _values(fiber: FiberRecord) -> tuple[object, ...]:
    """Return the values by which fibers are compared; JSON as text, in which 1 and true differ."""
    return tuple({**dict(fiber), "attributes": canonical_json(dump_json(fiber.attributes))}.values())


def _update(table: sa.Table) -> sa.Update:
    """Return a statement that takes what ``_prefixed`` gives; SQLAlchemy keeps the plain names to itself."""
    (key,) = table.primary_key
    values: dict[str, sa.BindParameter[object]] = {
        column.name: sa.bindparam(f"{_NEW}{column.name}") for column in table.c if column is not key
    }
    return sa.update(table).where(key == sa.bindparam(f"{_NEW}{key.name}")).values(values)


def _prefixed(row: sa.Row[Any]) -> dict[str, object]:
    return {f"{_NEW}{name}": value for name, value in row._asdict().items()}
