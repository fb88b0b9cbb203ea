"""The stored fibers of one type, as correlation reads and writes them."""

from collections.abc import Collection, Sequence
from functools import cached_property
from uuid import UUID

from sqlalchemy.orm import Session

from fiberstore.ids import stable_fiber_number
from fiberstore.ingest.correlate import Changes, FiberChange, FiberStore, OpenedFiber, Use
from fiberstore.ingest.occurrences import Key, PatternSearch
from fiberstore.ingest.sweep import END_OF_TIMESTAMP, Cut, First, StoredFiber, line_item
from fiberstore.sql import bulk
from fiberstore.sql import correlation as sql
from fiberstore.sql.conditions import among
from fiberstore.sql.correlation import FiberKind, FiberRow, KeyRow


class StoredFibers(FiberStore):
    """Stored fibers of one type and config version, in a transaction that keeps others from changing them.

    Args:
        session: Its session.
        kind: Which fibers.
        search: Finds the keys of their lines.
    """

    def __init__(self, session: Session, kind: FiberKind, search: PatternSearch) -> None:
        self._session = session
        self.max_gap_us = kind.max_gap_us
        self._kind = kind
        self._search = search

    @cached_property
    def latest_us(self) -> int:
        return sql.latest_us(self._session, self._kind)

    def latest_until(self, until_us: int) -> int:
        """Return the latest last activity of the fibers that is not after a time, in µs since 1970."""
        return (
            self.latest_us
            if self.latest_us <= until_us
            else sql.latest_us(self._session, self._kind, until_us)
        )

    def new_id(self, log_id: int, match: int) -> int:
        return stable_fiber_number(self._kind.fiber_type, self._kind.config_version, log_id, match)

    def taken(self, fiber_ids: Collection[int]) -> Collection[int]:
        return sql.stored_among(self._session, fiber_ids)

    def find(self, uses: Sequence[Use], known: Collection[int]) -> list[StoredFiber]:
        found = set(sql.using_fibers(self._session, self._kind, uses)).difference(known)
        if not found:
            return []
        keys: dict[int, dict[Key, First]] = {fiber_id: {} for fiber_id in found}
        unknown = set()
        for row in sql.load_keys(self._session, found):
            place = 0
            if row.first_log_id is None:
                unknown.add(row.fiber_id)
            else:
                place = row.first_log_id << 1
            keys[row.fiber_id][Key(row.name, row.value)] = First((row.first_us, place), row.starts)
        return [
            StoredFiber(
                row.fiber_id,
                row.last_us,
                keys[row.fiber_id],
                row.attributes,
                _cut(row.end_us, row.before_log_id),
                row.fiber_id not in unknown,
            )
            for row in sql.load_fibers(self._session, found)
        ]

    def open(self, fibers: Sequence[StoredFiber]) -> dict[int, OpenedFiber]:
        by_id = {fiber.fiber_id: fiber for fiber in fibers}
        opened = {fiber_id: OpenedFiber([], []) for fiber_id in by_id}
        for row in sql.load_lines(self._session, by_id.keys()):
            opened[row.fiber_id].lines.extend(
                line_item(row.time_us, row.log_id, occurrence, by_id[row.fiber_id])
                for name, occurrence in self._search.find(row.source_id, row.raw_text)
                if name == self._kind.fiber_type
            )
        for former, fiber_id in sql.former_ids(self._session, by_id.keys()):
            opened[fiber_id].former_ids.append(former)
        return opened

    def write(self, changes: Changes, log_time_us: int) -> tuple[int, int]:
        """Write changes.

        Args:
            changes: Of these fibers.
            log_time_us: Log time, in µs since 1970.

        Returns:
            How many fibers, and how many memberships, are new.
        """
        session, kind = self._session, self._kind
        if changes.merged:
            survivors = {UUID(int=one): UUID(int=other) for one, other in changes.merged.items()}
            bulk.merge_fibers(
                session, bulk.merges_of(survivors), lambda fiber_id: among(fiber_id, list(survivors))
            )
        new = [change for change in changes.fibers if change.is_new]
        sql.forget_former(session, [change.fiber_id for change in new])
        if new:
            sql.insert_fibers(session, kind, [self._row(change, log_time_us) for change in new])
        sql.update_fibers(
            session, [self._row(change, log_time_us) for change in changes.fibers if not change.is_new]
        )
        self._write_keys(changes.fibers)
        sql.replace_ends(
            session,
            [(change.fiber_id, *_end(change.fiber.end)) for change in changes.fibers if change.is_end_new],
        )
        sql.delete_memberships(session, changes.left)
        memberships_new = sql.insert_memberships(session, changes.joined, kind.config_version)
        sql.resolve_otherwise(session, [*changes.resolved.items()])
        return len(new), memberships_new

    def close_silent(self, log_time_us: int) -> None:
        """Close the fibers whose reach is before the log time."""
        if self._kind.max_gap_us is not None:
            sql.close_silent(self._session, self._kind, log_time_us - self._kind.max_gap_us)

    def _row(self, change: FiberChange, log_time_us: int) -> FiberRow:
        fiber = change.fiber
        return FiberRow(
            change.fiber_id,
            change.attributes,
            fiber.first[0],
            fiber.last_us,
            fiber.end is not None or fiber.reach[0] < log_time_us,
        )

    def _write_keys(self, fibers: Sequence[FiberChange]) -> None:
        gone, moved, new = [], [], []
        for change in fibers:
            fiber_id = change.fiber_id
            gone += [(fiber_id, key.name, key.value) for key in change.keys_gone]
            moved += [_key_row(fiber_id, key, first) for key, first in change.keys_moved.items()]
            new += [_key_row(fiber_id, key, first) for key, first in change.keys_new.items()]
        sql.delete_keys(self._session, gone)
        sql.move_keys(self._session, moved)
        sql.insert_keys(self._session, new)


def _key_row(fiber_id: int, key: Key, first: First) -> KeyRow:
    return KeyRow(fiber_id, key.name, key.value, first.position[0], first.position[1] >> 1, first.starts)


def _cut(time_us: int | None, before_log_id: int | None) -> Cut | None:
    if time_us is None:
        return None
    return time_us, END_OF_TIMESTAMP if before_log_id is None else (before_log_id << 1) - 1


def _end(cut: Cut | None) -> tuple[int | None, int | None]:
    if cut is None:
        return None, None
    before = cut[1] + 1 >> 1
    return cut[0], before if before < 1 << 128 else None
