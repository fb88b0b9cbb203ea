"""Statements as the driver takes them; most are compiled once and run many times.

A read by key takes DuckDB 0.5 ms, and SQLAlchemy's own ``execute`` another 0.4 ms, most of it to find out
that it has compiled the statement before. So the repositories keep their statements in compiled form and give
them to the driver: directly, or through SQLAlchemy while ``echo`` is on or somebody listens to its events.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar, cast
from uuid import UUID
from weakref import ref

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import LRUCache

from fiberstore.checks import MAX_ROWS
from fiberstore.sql.connection import StoreConnection
from fiberstore.sql.models import RawLog

R = TypeVar("R")


class CallSession(Session):
    """The session of one call of a storage, which knows its connection.

    Attributes:
        bound: The connection to which it is bound.
        store_connection: The same, as the repositories need it.
    """

    bound: sa.Connection
    store_connection: StoreConnection


def connection_of(session: Session) -> StoreConnection:
    """Return the connection of a session's present transaction, after an autoflush.

    Raises:
        TypeError: The session's engine is another's.
    """
    if isinstance(session, CallSession):
        connection, bound = session.store_connection, session.bound
        connection.listened_by = ref(bound) if _is_listened_to(bound, bound.engine.dispatch) else None
        return connection
    if session.autoflush:
        session.flush()
    bound = session.connection(bind_arguments={"mapper": RawLog})  # a session may have several engines
    found: object = bound.connection.dbapi_connection
    if not isinstance(found, StoreConnection):
        raise TypeError("the session's engine must come from fiberstore.create_engine()")
    found.listened_by = ref(bound) if _is_listened_to(bound, bound.dispatch) else None
    return found


def expire(session: Session) -> None:
    """Let a session load its objects again, after a statement it did not see, and keep what is unflushed.

    A changed attribute stays, and the next flush writes it over what the statement wrote. An object that is
    to be deleted stays as it is.
    """
    changed, deleted = session.dirty, session.deleted
    if not changed and not deleted:
        session.expire_all()
        return
    for held in session.identity_map.values():
        if held in changed:
            if unchanged := sa.inspect(held).unmodified:
                session.expire(held, unchanged)
        elif held not in deleted:
            session.expire(held)


def _is_listened_to(bound: sa.Connection, events: Any) -> bool:  # noqa: ANN401  # without types in SQLAlchemy
    """Tell whether ``echo`` is on, or somebody listens to the statements of a connection."""
    return bool(
        events.before_cursor_execute
        or events.after_cursor_execute
        or bound.dialect.dispatch.handle_error
        or bound.engine.logger.isEnabledFor(logging.INFO)
    )


@dataclass(frozen=True)
class _Compiled:
    """The compiled form of all statements that differ from one another in values only."""

    sql: str
    compiler: SQLCompiler

    def with_values(self, values: Sequence[sa.BindParameter[Any]]) -> tuple[str, list[Any]]:
        """Return the SQL of a statement and its values, in order; they are those of its cache key."""
        compiler = self.compiler
        names = compiler.positiontup or ()
        params = compiler.construct_params(extracted_parameters=values, escape_names=False)
        if not compiler.post_compile_params:
            return self.sql, [params[name] for name in names]
        expanded = compiler.construct_expanded_state(params)  # each value of a list is a parameter
        return expanded.statement, _in_order(expanded.positiontup or (), expanded.parameters, compiler)


_MOST_COMPILED = 500  # as many as SQLAlchemy keeps for an engine
_LARGEST_KEPT = 1_000
_COMPILED: LRUCache[tuple[str, object], _Compiled] = LRUCache(_MOST_COMPILED)


def compiled(session: Session, statement: sa.Executable) -> tuple[str, list[Any]]:
    """Return the SQL and the values of a statement that is made for one call, as the driver takes them.

    A statement is compiled unless an earlier one differed from it in values only. SQLAlchemy's cache key
    tells: it holds everything that the SQL depends on, and the values apart.
    """
    connection = connection_of(session)
    found, dialect = cast("Any", statement), connection.statement_dialect
    cache_key = found._generate_cache_key()  # of which `sqlalchemy.Connection.execute` makes the same use
    if cache_key is None:
        compiler = found.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        return str(compiler), _in_order(compiler.positiontup, compiler.params, compiler)
    key = connection.engine_name, cache_key.key
    known = _COMPILED.get(key)
    if known is None:
        compiler = found.compile(dialect=dialect, cache_key=cache_key)
        known = _Compiled(str(compiler), compiler)
        if not any(map(_is_large, cache_key.bindparams)):  # they would live as long as it
            _COMPILED[key] = known
    return known.with_values(cache_key.bindparams)


def _in_order(names: Sequence[str], values: Mapping[str, Any], compiler: SQLCompiler) -> list[Any]:
    escaped = compiler.escaped_bind_names  # SQLAlchemy 2.0 may rename those with a dot
    return [values[name if name in values else escaped[name]] for name in names]


def _is_large(parameter: sa.BindParameter[Any]) -> bool:
    value = parameter.effective_value
    return isinstance(value, str | bytes | list | tuple) and len(value) > _LARGEST_KEPT


class Prepared(Generic[R]):
    """A statement with named ``sqlalchemy.bindparam``s, and with rows ``R`` of the driver's own values.

    Args:
        statement: A SELECT for ``rows``, or an INSERT or UPDATE without RETURNING for ``write``.
    """

    def __init__(self, statement: sa.Executable) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, list[str]]] = {}

    def rows(self, session: Session, values: Mapping[str, object]) -> Iterator[R]:
        """Return the rows, to be read before the next statement.

        Args:
            session: On an engine of ``fiberstore.create_engine``.
            values: The value of each parameter, as the driver takes it.
        """
        connection = connection_of(session)
        return cast("Iterator[R]", connection.fetch_rows(*self._of(connection, values)))

    def write(self, session: Session, values: Mapping[str, object]) -> int:
        """Return how many rows were written; the arguments are those of ``rows``."""
        connection = connection_of(session)
        return connection.write(*self._of(connection, values))

    def _of(self, connection: StoreConnection, values: Mapping[str, object]) -> tuple[str, list[object]]:
        known = self._compiled.get(connection.engine_name)
        if known is None:
            found = cast("Any", self._statement).compile(dialect=connection.statement_dialect)
            known = self._compiled[connection.engine_name] = (str(found), found.positiontup)
        sql, names = known
        return sql, [values[name] for name in names]


class PreparedPages(Generic[R]):
    """A SELECT that is read in pages, in the total order of a time and an id.

    Args:
        statement: The SELECT, without order and bounds.
        time: What comes first in the order.
        id_: What decides between equal times.
    """

    def __init__(
        self, statement: sa.Select[Any], time: sa.ColumnElement[datetime], id_: sa.ColumnElement[UUID]
    ) -> None:
        page = statement.order_by(time, id_).limit(sa.bindparam("limit")).offset(sa.bindparam("offset"))
        after_time: sa.BindParameter[datetime] = sa.bindparam("after_time")
        rest = page.where(
            time >= after_time,  # by this alone DuckDB passes over whole row groups
            sa.or_(time > after_time, id_ > sa.bindparam("after_id")),
        )
        self._first, self._after = Prepared[R](page), Prepared[R](rest)

    def rows(
        self,
        session: Session,
        values: Mapping[str, object],
        limit: int,
        offset: int,
        after: tuple[datetime, UUID] | None,
    ) -> Iterator[R]:
        """Return at most ``limit`` rows after the first ``offset`` ones, counted from the key if given."""
        values = {**values, "limit": min(limit, MAX_ROWS - offset), "offset": offset}  # Citus adds them
        if after is None:
            return self._first.rows(session, values)
        return self._after.rows(session, {**values, "after_time": after[0], "after_id": after[1]})
