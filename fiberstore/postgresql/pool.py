"""Connections for the calls of a storage.

To take one from SQLAlchemy's pool and to give it back is a quarter of a read by key.
"""

import time
from typing import cast
from weakref import ref

import sqlalchemy as sa

from fiberstore.errors import DatabaseError
from fiberstore.postgresql.connection import Connection
from fiberstore.sql.engine import POOL_TIMEOUT_S
from fiberstore.sql.holds import Hold, Registry


class CallPool:
    """Connections in autocommit mode, beside those of an engine's own pool, and made as those are.

    Args:
        engine: Of PostgreSQL.
        size: Connections at most, >= 1.

    Attributes:
        size: As given.
    """

    def __init__(self, engine: sa.Engine, size: int) -> None:
        self._engine = engine
        self.size = size
        self._used = Registry[Hold]()
        self._idle: list[Connection] = []
        self._is_closed = False

    def take(self) -> Connection:
        """Return the idle connection that was used last, if the server has not ended it, or a new one.

        Raises:
            DatabaseError: All are in use, and none has become free in ``POOL_TIMEOUT_S``.
        """
        hold = [self._used.add(Hold())]
        try:
            if not self._used.wait(ref(hold[0]), time.monotonic() + POOL_TIMEOUT_S, places=self.size):
                raise DatabaseError(
                    f"no free connection in {POOL_TIMEOUT_S:g} s: {self.size} are in use; open the storage "
                    "with a larger pool_size, or end streams that are no longer read"
                )
            connection = self._idle_one() or self._new()
            connection.hold = hold.pop()
        except BaseException:
            hold.clear()
            raise
        return connection

    def give_back(self, connection: Connection) -> None:
        """Roll back what is open, and keep the connection for another call."""
        try:
            if self._is_closed:
                connection.close()
            elif not connection.closed:
                connection.rollback()
                self._idle.append(connection)
        finally:
            connection.hold = None

    def checkedout(self) -> int:
        """Return how many connections are in use; so named in SQLAlchemy's pools."""
        return len(self._used.alive())

    def checkedin(self) -> int:
        """Return how many are idle."""
        return len(self._idle)

    def close(self) -> None:
        """Close the idle connections, and each of the others once it is given back."""
        self._is_closed = True
        while (connection := self._pop()) is not None:
            connection.close()

    def _pop(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:  # to look first is too early: another thread may take the last one meanwhile
            return None

    def _idle_one(self) -> Connection | None:
        while (connection := self._pop()) is not None:
            if not connection.is_lost:
                return connection
            connection.close()
        return None

    def _new(self) -> Connection:
        pooled = self._engine.raw_connection()
        connection = cast("Connection", pooled.dbapi_connection)
        pooled.detach()
        connection.autocommit = True
        return connection
