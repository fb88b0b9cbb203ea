"""Fibers."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from fiberstore.checks import check_id, check_page, check_text
from fiberstore.contract.lifecycle import Merged, Upserted
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import ConflictError, DuplicateError, NotFoundError
from fiberstore.json_text import dump_json
from fiberstore.records import FiberRecord, fiber_key, from_epoch_us
from fiberstore.repositories.fiber_queries import SqlFibers
from fiberstore.repositories.paging import checked_ids
from fiberstore.repositories.query import bound_to
from fiberstore.sql import bulk
from fiberstore.sql.connection import Connection, Row
from fiberstore.sql.functions import NobodyChanges
from fiberstore.sql.models import Fiber, stored_time
from fiberstore.sql.prepared import Prepared, PreparedPages
from fiberstore.sql.rows import FiberRow, fiber_columns, to_fibers
from fiberstore.sql.translate import translate_errors

_FIBERS = Fiber.metadata.tables["fibers"]
_IN_US = sa.select(*fiber_columns(_FIBERS))
_IS_OPEN = [_FIBERS.c.config_version == sa.bindparam("config_version"), ~_FIBERS.c.closed]

_BY_ID = Prepared[FiberRow[object]](
    sa.select(*_FIBERS.c).where(_FIBERS.c.fiber_id == sa.bindparam("fiber_id"))
)
_BY_TYPE = PreparedPages[FiberRow[int]](
    _IN_US.where(_FIBERS.c.fiber_type == sa.bindparam("fiber_type")),
    _FIBERS.c.first_activity,
    _FIBERS.c.fiber_id,
)
_OPEN = Prepared[FiberRow[int]](
    _IN_US.where(*_IS_OPEN).order_by(_FIBERS.c.first_activity, _FIBERS.c.fiber_id)
)
_VALUES: dict[str, sa.BindParameter[object]] = {
    column.name: sa.bindparam(column.name) for column in _FIBERS.c
}
_INSERT = Prepared[Row](insert(_FIBERS).values(_VALUES).on_conflict_do_nothing())
_UPDATE = Prepared[Row](
    sa.update(_FIBERS)
    .where(_FIBERS.c.fiber_id == _VALUES["fiber_id"], NobodyChanges())
    .values({name: value for name, value in _VALUES.items() if name != "fiber_id"})
)


class FiberRepository(SqlFibers):
    """The fibers of a session's database, to be written, and asked as ``Fibers`` describes.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``. The repository flushes it if it
            autoflushes, keeps what it holds unflushed otherwise, and never commits. On a DBAPI connection
            instead, each statement is a transaction of its own.
    """

    def __init__(self, session: Session | Connection) -> None:
        super().__init__(*bound_to(session))
        self._session = session

    def write(self, fiber: FiberRecord) -> None:
        """Store a new fiber; see ``Storage.write_fiber``."""
        values = _driver_values(_validated(fiber))
        with translate_errors():
            try:
                written = _INSERT.write(self._session, values)
            except ConflictError as error:  # committed after this transaction's snapshot
                raise DuplicateError(fiber.fiber_id) from error
        if not written:
            raise DuplicateError(fiber.fiber_id)

    def write_many(self, fibers: Iterable[FiberRecord]) -> int:
        """Store the fibers whose id is new, and leave the others as they are.

        Returns:
            How many are new.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """
        rows = _distinct(fibers)
        if not rows:
            return 0
        with translate_errors():
            return bulk.insert_fibers(self._session, rows)

    def update(self, fiber: FiberRecord) -> None:
        """Replace every field of a stored fiber; see ``Storage.update_fiber``."""
        values = _driver_values(_validated(fiber))
        with translate_errors():
            if not _UPDATE.write(self._session, values):
                raise NotFoundError(fiber.fiber_id)
            bulk.expire(self._session)

    def update_many(self, fibers: Iterable[FiberRecord]) -> int:
        """Replace every field of the fibers that are stored; the others are not created.

        Returns:
            How many are stored.

        Raises:
            TypeError: An item is not a ``FiberRecord``.
            ValueError: Two of them have one id.
        """
        rows = _distinct(fibers)
        if not rows:
            return 0
        with translate_errors():
            return bulk.update_fibers(self._session, rows)

    def upsert_many(self, fibers: Iterable[FiberRecord]) -> Upserted:
        """Store fibers, or replace those that are stored; see ``LifecycleStorage.upsert_fibers``."""
        rows = _distinct(fibers)
        if not rows:
            return Upserted(0, 0)
        with translate_errors():
            changed = bulk.update_fibers(self._session, rows)
            return Upserted(bulk.insert_fibers(self._session, rows) if changed < len(rows) else 0, changed)

    def merge(self, survivors: Mapping[UUID, UUID]) -> Merged:
        """Make fibers part of others; see ``LifecycleStorage.merge_fibers``."""
        if not isinstance(survivors, Mapping):
            raise TypeError(f"expected a mapping of fiber ids to survivors, got {survivors!r:.200}")
        for loser, survivor in survivors.items():
            check_id(loser)
            check_id(survivor)
            if survivor in survivors:
                raise ValueError(f"fiber {loser} cannot become part of {survivor}, which ends itself")
        if not survivors:
            return Merged(0, 0)
        with translate_errors():
            versions = bulk.versions_of(self._session, {*survivors.keys(), *survivors.values()})
            for loser, survivor in survivors.items():
                _check_mergeable(loser, survivor, versions)
            return bulk.merge_fibers(self._session, survivors)

    def resolve(self, fiber_ids: Iterable[UUID]) -> dict[UUID, UUID]:
        """Return where fibers are now; see ``LifecycleStorage.resolve_fibers``."""
        wanted = checked_ids(fiber_ids)
        if not wanted:
            return {}
        with translate_errors():
            places = bulk.places_of(self._session, wanted)
        return {fiber_id: places[fiber_id] for fiber_id in wanted if fiber_id in places}

    def get(self, fiber_id: UUID) -> FiberRecord | None:
        """Return one fiber or None; see ``Storage.get_fiber``."""
        check_id(fiber_id)
        with translate_errors():
            fibers = to_fibers(_BY_ID.rows(self._session, {"fiber_id": fiber_id}), stored_time)
        return fibers[0] if fibers else None

    def query_by_type(
        self,
        fiber_type: str,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        *,
        after: FiberRecord | tuple[datetime, UUID] | None = None,
    ) -> list[FiberRecord]:
        """Return the fibers of one type; see ``Storage.query_fibers_by_type``."""
        check_text(fiber_type)
        check_page(limit, offset)
        key = fiber_key(after)
        with translate_errors():
            rows = _BY_TYPE.rows(self._session, {"fiber_type": fiber_type}, limit, offset, key)
            return to_fibers(rows, from_epoch_us)

    def query_open(self, config_version: int) -> list[FiberRecord]:
        """Return every fiber of a config version that is not closed, ordered like ``query_by_type``."""
        with translate_errors():
            rows = _OPEN.rows(self._session, {"config_version": config_version})
            return to_fibers(rows, from_epoch_us)


def _validated(fiber: FiberRecord) -> FiberRecord:
    """Check a fiber again: its attributes may have been changed, and ``model_copy`` checks nothing."""
    if not isinstance(fiber, FiberRecord):
        raise TypeError(f"expected a FiberRecord, got {fiber!r:.200}")
    values = {name: value for name, value in fiber if name in FiberRecord.model_fields}
    return FiberRecord(**values)


def _distinct(fibers: Iterable[FiberRecord]) -> list[FiberRecord]:
    rows = [_validated(fiber) for fiber in bulk.checked(fibers, FiberRecord)]
    seen: set[UUID] = set()
    for fiber in rows:
        if fiber.fiber_id in seen:
            raise ValueError(f"fiber {fiber.fiber_id} is given twice")
        seen.add(fiber.fiber_id)
    return rows


def _check_mergeable(loser: UUID, survivor: UUID, versions: Mapping[UUID, int]) -> None:
    for fiber_id in (loser, survivor):
        if fiber_id not in versions:
            raise NotFoundError(fiber_id)
    if versions[loser] != versions[survivor]:
        raise ValueError(
            f"fiber {loser} of config version {versions[loser]} cannot become part of {survivor} of "
            f"{versions[survivor]}; merge fibers of one version"
        )


def _driver_values(fiber: FiberRecord) -> dict[str, object]:
    return {**dict(fiber), "attributes": dump_json(fiber.attributes)}
