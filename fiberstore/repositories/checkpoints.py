"""Named checkpoints."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from fiberstore.checks import check_text
from fiberstore.contract.lifecycle import Checkpoint, Checkpoints
from fiberstore.errors import CheckpointError
from fiberstore.records import from_epoch_us
from fiberstore.repositories.query import Changing, Reading, bound_to, select_rows, written
from fiberstore.sql.connection import Connection
from fiberstore.sql.functions import TimeUs
from fiberstore.sql.models import NamedCheckpoint
from fiberstore.sql.translate import translate_errors

T = TypeVar("T")

_COLUMNS: list[Any] = [
    NamedCheckpoint.name,
    NamedCheckpoint.value,
    TimeUs(NamedCheckpoint.updated_at),
]
_ROWS = sa.select(*_COLUMNS).order_by(NamedCheckpoint.name)


class SqlCheckpoints(Checkpoints):
    """``Checkpoints`` on a connection or a session.

    Args:
        reading: Gives what its methods read with.
        changing: Does what its methods change.
    """

    def __init__(self, reading: Reading, changing: Changing) -> None:
        self._reading = reading
        self._changing = changing

    def get(self, name: str) -> Checkpoint | None:
        check_text(name)
        with self._reading("checkpoints.get") as session, translate_errors():
            return _get(session, name)

    def all(self) -> list[Checkpoint]:
        with self._reading("checkpoints.all") as session, translate_errors():
            return _checkpoints(session, _ROWS)

    def set(self, name: str, value: str) -> None:
        _check_texts(name, value)
        self._change("set", lambda session: _set(session, name, value))

    def compare_and_set(self, name: str, expected: str | None, value: str) -> None:
        _check_texts(name, value)
        if expected is not None:
            check_text(expected)

        def work(session: Session | Connection) -> None:
            found = _get(session, name)
            found_value = None if found is None else found.value
            if found_value != expected:
                raise CheckpointError(name, expected, found_value)
            _set(session, name, value)

        self._change("compare_and_set", work)

    def delete(self, name: str) -> bool:
        check_text(name)
        remove = sa.delete(NamedCheckpoint).where(NamedCheckpoint.name == name)
        return self._change("delete", lambda session: written(session, remove) > 0)

    def _change(self, method: str, work: Callable[[Session | Connection], T]) -> T:
        return self._changing(f"checkpoints.{method}", work)


class CheckpointRepository(SqlCheckpoints):
    """The checkpoints of a session's database.

    Args:
        session: Any session on an engine of ``fiberstore.create_engine``. The repository flushes it if it
            autoflushes, keeps what it holds unflushed otherwise, and never commits.
    """

    def __init__(self, session: Session | Connection) -> None:
        super().__init__(*bound_to(session))


def _check_texts(name: str, value: str) -> None:
    if not check_text(name):
        raise ValueError("a checkpoint needs a name, got an empty text")
    check_text(value)


def _get(session: Session | Connection, name: str) -> Checkpoint | None:
    found = _checkpoints(session, _ROWS.where(NamedCheckpoint.name == name))
    return found[0] if found else None


def _checkpoints(session: Session | Connection, rows: sa.Select[Any]) -> list[Checkpoint]:
    return [
        Checkpoint(name, value, from_epoch_us(time_us)) for name, value, time_us in select_rows(session, rows)
    ]


def _set(session: Session | Connection, name: str, value: str) -> None:
    row = insert(NamedCheckpoint).values(name=name, value=value, updated_at=datetime.now(UTC))
    changed = {"value": row.excluded.value, "updated_at": row.excluded.updated_at}
    written(session, row.on_conflict_do_update(index_elements=["name"], set_=changed))
