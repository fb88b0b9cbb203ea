"""Statements as the driver takes them; most are compiled once and run many times.

A read by key takes DuckDB 0.5 ms, and SQLAlchemy's own ``execute`` another 0.4 ms, most of it to find out
that it has compiled the statement before. So the repositories keep their statements in compiled form and give
them to the driver: directly, or through SQLAlchemy while ``echo`` is on or somebody listens to its events.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, TypeVar, cast
from uuid import UUID
from weakref import ref

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import LRUCache

from fiberstore.checks import MAX_ROWS
from fiberstore.sql.connection import StoreConnection
from fiberstore.sql.models import RawLog

R = TypeVar("R")


class CallSession(Session):
    """The session of one call of a storage: a connection, and an ORM session once something asks for one.

    To make and close an ORM session takes a fifth of a read by key, and few calls need it.

    Args:
        engine: Of the storage.
        pooled: The connection, which goes back to its pool when the session is closed.

    Attributes:
        store_connection: The connection as the repositories need it.
    """

    def __init__(self, engine: sa.Engine, pooled: PoolProxiedConnection) -> None:
        self.store_connection = cast("StoreConnection", pooled.dbapi_connection)
        self._rows_before = self.store_connection.rows_written
        self._engine = engine
        self._pooled = pooled

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # an attribute of SQLAlchemy's
        if self._is_made:
            raise AttributeError(f"a session has no {name}")
        super().__init__(self.bound, autoflush=False, expire_on_commit=False)
        return getattr(self, name)

    @property
    def _is_made(self) -> bool:
        return "identity_map" in self.__dict__

    @property
    def rows_written(self) -> int:
        """Rows written so far."""
        return self.store_connection.rows_written - self._rows_before

    @cached_property
    def bound(self) -> sa.Connection:
        """The connection as SQLAlchemy needs it."""
        return sa.Connection(self._engine, self._pooled)

    @property
    def listener(self) -> "ref[sa.Connection] | None":
        """The connection whose listeners are told of each statement; None without any."""
        return ref(self.bound) if _is_listened_to(self._engine, self._engine.dispatch) else None

    def close(self) -> None:
        """Give the connection back."""
        try:
            if self._is_made:
                super().close()
        finally:
            if "bound" in self.__dict__:
                self.bound.close()
            else:
                self._pooled.close()


def connection_of(session: Session) -> StoreConnection:
    """Return the connection of a session's present transaction, after an autoflush.

    Raises:
        TypeError: The session's engine is another's.
    """
    if isinstance(session, CallSession):
        session.store_connection.listened_by = session.listener
        return session.store_connection
    if session.autoflush:
        session.flush()
    bound = session.connection(bind_arguments={"mapper": RawLog})  # a session may have several engines
    found: object = bound.connection.dbapi_connection
    if not isinstance(found, StoreConnection):
        raise TypeError("the session's engine must come from fiberstore.create_engine()")
    found.listened_by = ref(bound) if _is_listened_to(bound.engine, bound.dispatch) else None
    return found


def expire(session: Session) -> None:
    """Let a session load its objects again, after a statement it did not see, and keep what is unflushed.

    A changed attribute stays, and the next flush writes it over what the statement wrote. An object that is
    to be deleted stays as it is.
    """
    if isinstance(session, CallSession):  # which holds none
        return
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


def _is_listened_to(engine: sa.Engine, events: Any) -> bool:  # noqa: ANN401  # without types in SQLAlchemy
    """Tell whether ``echo`` is on, or somebody listens to the statements of a connection."""
    return bool(
        events.before_cursor_execute
        or events.after_cursor_execute
        or engine.dialect.dispatch.handle_error
        or engine.logger.isEnabledFor(logging.INFO)
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
        return cast("Iterator[R]", connection.fetch_prepared(*self._of(connection, values)))

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
