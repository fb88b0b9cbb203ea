"""Named checkpoints."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from fiberstore.checks import check_text
from fiberstore.contract.lifecycle import Checkpoints
from fiberstore.contract.results import Checkpoint
from fiberstore.errors import CheckpointError
from fiberstore.records import from_epoch_us
from fiberstore.repositories.access import SessionAccess, session_access
from fiberstore.repositories.query import execute_write, select_rows
from fiberstore.sql.connection import Row
from fiberstore.sql.functions import TimeUs
from fiberstore.sql.models import NamedCheckpoint
from fiberstore.sql.prepared import Prepared, expire

T = TypeVar("T")

_NEW: dict[str, sa.BindParameter[object]] = {
    column.name: sa.bindparam(column.name) for column in NamedCheckpoint.__table__.c
}
_IS_NAMED = NamedCheckpoint.name == _NEW["name"]
_UPDATE = sa.update(NamedCheckpoint).values(value=_NEW["value"], updated_at=_NEW["updated_at"])
_SET = Prepared[Row](_UPDATE.where(_IS_NAMED))
_MOVE = Prepared[Row](_UPDATE.where(_IS_NAMED, NamedCheckpoint.value == sa.bindparam("expected")))
_INSERT = insert(NamedCheckpoint).values(_NEW)
# It changes nothing, but waits for others as an update does, which a mere insert would not in DuckDB.
_BEGIN = Prepared[Row](
    _INSERT.on_conflict_do_update(
        index_elements=["name"], set_={"value": _INSERT.excluded.value}, where=sa.false()
    )
)
_BEGIN_OR_SET = Prepared[Row](
    _INSERT.on_conflict_do_update(
        index_elements=["name"], set_={name: _INSERT.excluded[name] for name in ("value", "updated_at")}
    )
)
_COLUMNS: list[Any] = [NamedCheckpoint.name, NamedCheckpoint.value, TimeUs(NamedCheckpoint.updated_at)]
_ROWS = sa.select(*_COLUMNS).order_by(NamedCheckpoint.name)


class CheckpointRepository(Checkpoints):
    """The checkpoints of a database.

    Args:
        session: As for ``LogRepository``.
    """

    def __init__(self, session: Session | SessionAccess) -> None:
        self._sessions = session_access(session)

    def get(self, name: str) -> Checkpoint | None:
        check_text(name)
        with self._sessions.read("checkpoints.get") as session:
            return _get(session, name)

    def all(self) -> list[Checkpoint]:
        with self._sessions.read("checkpoints.all") as session:
            return _checkpoints(session, _ROWS)

    def set(self, name: str, value: str) -> None:
        _check_texts(name, value)
        self._change("set", lambda session: _set(session, name, value))

    def compare_and_set(self, name: str, expected: str | None, value: str) -> None:
        _check_texts(name, value)
        if expected is not None:
            check_text(expected)

        def work(session: Session) -> None:
            new = _new(name, value)
            written = (
                _BEGIN.write(session, new)
                if expected is None
                else _MOVE.write(session, {**new, "expected": expected})
            )
            if not written:
                found = _get(session, name)
                raise CheckpointError(name, expected, None if found is None else found.value)
            expire(session)

        self._change("compare_and_set", work)

    def delete(self, name: str) -> bool:
        check_text(name)
        remove = sa.delete(NamedCheckpoint).where(NamedCheckpoint.name == name)
        return self._change("delete", lambda session: execute_write(session, remove) > 0)

    def _change(self, method: str, work: Callable[[Session], T]) -> T:
        return self._sessions.write(f"checkpoints.{method}", work)


def _check_texts(name: str, value: str) -> None:
    if not check_text(name):
        raise ValueError("a checkpoint needs a name, got an empty text")
    check_text(value)


def _get(session: Session, name: str) -> Checkpoint | None:
    found = _checkpoints(session, _ROWS.where(NamedCheckpoint.name == name))
    return found[0] if found else None


def _checkpoints(session: Session, rows: sa.Select[Any]) -> list[Checkpoint]:
    return [
        Checkpoint(name, value, from_epoch_us(time_us)) for name, value, time_us in select_rows(session, rows)
    ]


def _set(session: Session, name: str, value: str) -> None:
    new = _new(name, value)
    if not _SET.write(session, new):  # in a quarter of the time that DuckDB takes to look for conflicts
        _BEGIN_OR_SET.write(session, new)
    expire(session)


def _new(name: str, value: str) -> dict[str, object]:
    return {"name": name, "value": value, "updated_at": datetime.now(UTC)}
