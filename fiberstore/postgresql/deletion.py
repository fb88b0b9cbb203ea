"""Deletion of rows."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import BooleanClauseList
from sqlalchemy.sql.operators import or_

from fiberstore.repositories.query import delete as delete_at_once


def delete(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """Delete rows of a table; see ``BackendSupport.delete``.

    Of alternatives, each by itself: for all of them together, the planner rarely takes the indexes.
    """
    return sum(delete_at_once(session, table, alternative) for alternative in _alternatives(which))


def _alternatives(which: sa.ColumnElement[bool]) -> Sequence[sa.ColumnElement[Any]]:
    is_or = isinstance(which, BooleanClauseList) and which.operator is or_
    return which.clauses if is_or else [which]
