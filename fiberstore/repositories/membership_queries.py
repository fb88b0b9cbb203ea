"""Queries of memberships."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.queries import Deleted, Memberships
from fiberstore.records import FiberMembership
from fiberstore.repositories.query import SqlQuery, written
from fiberstore.sql.conditions import MEMBERSHIPS, all_of
from fiberstore.sql.connection import Connection
from fiberstore.sql.models import check_stored_version

if TYPE_CHECKING:
    from fiberstore.exchange.writing import SortKey


class SqlMemberships(SqlQuery[FiberMembership], Memberships):
    """``Memberships`` on a connection or a session."""

    _record = FiberMembership
    _name = "memberships"
    _table = MEMBERSHIPS

    def _delete(self, session: Session | Connection) -> Deleted:
        return Deleted(0, 0, written(session, sa.delete(MEMBERSHIPS).where(*all_of(self._conditions))))

    def _columns(self) -> Sequence[sa.ColumnElement[Any]]:
        return list(MEMBERSHIPS.c)

    def _ordered(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        return statement.order_by(MEMBERSHIPS.c.log_id, MEMBERSHIPS.c.fiber_id)

    def _sort_keys(self) -> "Sequence[SortKey]":
        return [("log_id", "ascending"), ("fiber_id", "ascending")]

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[FiberMembership]:
        return [
            FiberMembership.model_construct(
                log_id=log_id, fiber_id=fiber_id, config_version=check_stored_version(config_version)
            )
            for log_id, fiber_id, config_version in rows
        ]
