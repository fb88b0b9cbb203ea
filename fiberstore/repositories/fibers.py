"""Fibers."""

from collections.abc import Iterable, Mapping
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fiberstore import bulk
from fiberstore.errors import DuplicateError, NotFoundError, is_duplicate_key, translate_errors
from fiberstore.models import Fiber
from fiberstore.records import FiberRecord, check_id, check_page, check_text
from fiberstore.storage import DEFAULT_LIMIT

_SELECT_FIBERS = sa.select(
    Fiber.fiber_id,
    Fiber.fiber_type,
    Fiber.config_version,
    Fiber.attributes,
    Fiber.first_activity,
    Fiber.last_activity,
    Fiber.closed,
)


class FiberRepository:
    """The fibers of a session's database.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``. The repository flushes it and never
            commits.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def write(self, fiber: FiberRecord) -> None:
        """Store a new fiber; see ``Storage.write_fiber``."""
        fiber = _validated(fiber)
        statement = insert(Fiber).values(dict(fiber)).on_conflict_do_nothing().returning(Fiber.fiber_id)
        with translate_errors():
            try:
                written = self._session.execute(statement).one_or_none()
            except IntegrityError as error:
                if is_duplicate_key(error):  # committed after this transaction's snapshot
                    raise DuplicateError(fiber.fiber_id) from error
                raise
        if written is None:
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
        fiber = _validated(fiber)
        values = {name: value for name, value in fiber if name != "fiber_id"}
        statement = sa.update(Fiber).where(Fiber.fiber_id == fiber.fiber_id).values(values)
        with translate_errors():
            result = self._session.execute(statement)
        if result.rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE gives a CursorResult
            raise NotFoundError(fiber.fiber_id)

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

    def merge(self, survivors: Mapping[UUID, UUID]) -> None:
        """Merge fibers: memberships move to the survivor, and the merged fibers are deleted.

        The fields of the survivors stay as they are; ``update_many`` changes them.

        Args:
            survivors: For each fiber that ends, the one it becomes part of, which does not end itself.

        Raises:
            ValueError: A survivor ends itself.
        """
        for loser, survivor in survivors.items():
            check_id(loser)
            check_id(survivor)
            if survivor in survivors:
                raise ValueError(f"fiber {loser} cannot become part of {survivor}, which ends itself")
        if survivors:
            with translate_errors():
                bulk.merge_fibers(self._session, survivors)

    def get(self, fiber_id: UUID) -> FiberRecord | None:
        """Return one fiber or None; see ``Storage.get_fiber``."""
        check_id(fiber_id)
        with translate_errors():
            fibers = _to_fibers(self._session.execute(_SELECT_FIBERS.where(Fiber.fiber_id == fiber_id)))
        return fibers[0] if fibers else None

    def query_by_type(
        self, fiber_type: str, limit: int = DEFAULT_LIMIT, offset: int = 0
    ) -> list[FiberRecord]:
        """Return the fibers of one type; see ``Storage.query_fibers_by_type``."""
        check_text(fiber_type)
        check_page(limit, offset)
        statement = (
            _SELECT_FIBERS.where(Fiber.fiber_type == fiber_type)
            .order_by(Fiber.first_activity, Fiber.fiber_id)
            .limit(limit)
            .offset(offset)
        )
        with translate_errors():
            return _to_fibers(self._session.execute(statement))

    def query_open(self, config_version: int) -> list[FiberRecord]:
        """Return every fiber of a config version that is not closed, ordered like ``query_by_type``."""
        statement = _SELECT_FIBERS.where(Fiber.config_version == config_version, ~Fiber.closed).order_by(
            Fiber.first_activity, Fiber.fiber_id
        )
        with translate_errors():
            return _to_fibers(self._session.execute(statement))


def _validated(fiber: FiberRecord) -> FiberRecord:
    """Check a fiber again: its attributes may have been changed, and ``model_copy`` checks nothing."""
    if not isinstance(fiber, FiberRecord):
        raise TypeError(f"expected a FiberRecord, got {fiber!r:.200}")
    values = {name: getattr(fiber, name) for name in FiberRecord.model_fields}
    return FiberRecord(**values)


def _distinct(fibers: Iterable[FiberRecord]) -> list[FiberRecord]:
    rows = [_validated(fiber) for fiber in bulk.checked(fibers, FiberRecord)]
    seen: set[UUID] = set()
    for fiber in rows:
        if fiber.fiber_id in seen:
            raise ValueError(f"fiber {fiber.fiber_id} is given twice")
        seen.add(fiber.fiber_id)
    return rows


def _to_fibers(rows: Iterable[sa.Row[tuple[object, ...]]]) -> list[FiberRecord]:
    return [FiberRecord.model_construct(**row._mapping) for row in rows]
