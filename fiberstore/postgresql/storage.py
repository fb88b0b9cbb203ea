"""``PostgresStorage`` and ``AsyncPostgresStorage``: the storage trait on PostgreSQL."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL

from fiberstore.checks import check_config_version, check_seconds
from fiberstore.contract.results import Compacted
from fiberstore.errors import DatabaseError
from fiberstore.ingest.storage import AsyncCorrelatingStorage, CorrelatingStorage
from fiberstore.postgresql.arrival_order import renumber_restored
from fiberstore.postgresql.engine import create_engine
from fiberstore.postgresql.support import SUPPORT
from fiberstore.postgresql.vacuum import compact
from fiberstore.repositories.storage import refuse_connections
from fiberstore.sql.connection import Lock, StoreConnection
from fiberstore.sql.engine import DEFAULT_POOL_SIZE
from fiberstore.sql.prepared import CallSession, connection_of
from fiberstore.sql.translate import translate_errors
from fiberstore.telemetry import DEFAULT_SLOW_CALL_S, Telemetry

if TYPE_CHECKING:
    from fiberstore.postgresql.connection import PostgresConnection
    from fiberstore.sql.pool import StorePool


class PostgresStorage(CorrelatingStorage):
    """A storage in one PostgreSQL database, which any number of processes on any machines may use at once.

    Use it as a context manager, or call ``close()``. ``Storage`` describes the methods.

    Calls that delete or merge rows wait for one another, as do ``transaction()`` blocks. Everything else runs
    side by side, and what conflicts is run again: upserts and batches also beside deletions and merges, but
    for the end of one and for rows that it has deleted. Sessions on ``engine`` wait for nobody: of two
    transactions that change one row, the second fails with a conflict. A long iterator that is written holds
    one of the connections until it ends.

    A connection that the server has ended while nobody used it is replaced. A call that was using it raises
    ``ConnectionLostError``, which says whether what it wrote may be stored; logs, memberships and upserts may
    be written again in any case. A forked child opens connections of its own; what was begun before the fork
    is its parent's.

    Args:
        url: ``postgresql+psycopg://user:password@host:port/database``; see ``create_engine`` beside it.
        config_version: What a ``LogRecord`` is stamped with, 0 to 2**64 - 1.
        read_only: Let the server refuse what writes.
        pool_size: Connections at most, >= 1, for calls that read or append, and as many more for those that
            change rows, for ``transaction()`` blocks, and for sessions; they are opened when they are needed.
        slow_call_s: From how many seconds on, >= 0, the logger ``fiberstore.telemetry`` warns of a call.

    Attributes:
        engine: The SQLAlchemy engine.
        config_version: As given.

    Raises:
        DatabaseError: The server cannot be reached or refuses the connection, is older than PostgreSQL 14, or
            has no such database.
        ValueError: An argument is out of bounds.
    """

    _support = SUPPORT

    def __init__(
        self,
        url: str | URL,
        *,
        config_version: int = 0,
        read_only: bool = False,
        pool_size: int = DEFAULT_POOL_SIZE,
        slow_call_s: float = DEFAULT_SLOW_CALL_S,
    ) -> None:
        check_config_version(config_version)
        check_seconds("slow_call_s", slow_call_s)
        engine = create_engine(url, read_only=read_only, pool_size=pool_size)
        super().__init__(engine, config_version, Telemetry(slow_call_s, None))
        # Who holds the lock never waits for a connection that one who waits for the lock may hold.
        self._call_pool, self._change_pool, self._block_pool = self._new_pools()
        self._pid = os.getpid()
        event.listen(self.engine, "engine_disposed", self._renew_pools)
        with self._sessions.read(None) as session:  # what is wrong with the server is said now
            _check_server(connection_of(session))

    def close(self) -> None:
        refuse_connections(self.engine)
        self.engine.dispose()

    def init_schema(self) -> None:
        super().init_schema()
        with self._sessions.read(None) as session:
            renumber_restored(connection_of(session))

    def compact(self) -> Compacted:
        with self._sessions.read("compact") as session:
            return compact(cast("PostgresConnection", connection_of(session)))

    def _new_pools(self) -> "tuple[StorePool, StorePool, StorePool]":
        pool = cast("StorePool", self.engine.pool)
        return pool.sibling(), pool.sibling(), pool.sibling()

    def _renew_pools(self, _engine: sa.Engine) -> None:
        pools = self._call_pool, self._change_pool, self._block_pool
        self._call_pool, self._change_pool, self._block_pool = self._new_pools()
        if self._pid == os.getpid():  # the locks of a parent's pool may be held for ever
            for pool in pools:
                pool.dispose()
        self._pid = os.getpid()

    @contextmanager
    def _bound(self) -> Iterator[sa.Connection]:
        with translate_errors():
            bound = sa.Connection(self.engine, self._block_pool.connect())
        with bound:
            yield bound

    def _connect(self, lock: Lock = Lock.NOTHING) -> CallSession:
        pool = self._call_pool if lock is Lock.NOTHING else self._change_pool
        with translate_errors():
            pooled = pool.lend()
            connection = cast("PostgresConnection", pooled.dbapi_connection)
            if not connection.autocommit:
                connection.commit()  # what listeners have done
                connection.autocommit = True
            return CallSession(self.engine, pooled)


def _check_server(connection: StoreConnection) -> None:
    ((version,),) = connection.fetch_rows("SELECT version()", ())
    if version.startswith("CockroachDB"):
        raise DatabaseError(
            f"{version.partition(' (')[0]} cannot hold a store yet: it has no table locks, and compares no "
            "text that is ordered by its code points with other text; use PostgreSQL or Citus"
        )


class AsyncPostgresStorage(AsyncCorrelatingStorage):
    """``PostgresStorage`` in coroutines: same arguments, same contract, for use in one event loop.

    ``AsyncSqlStorage`` says what becomes of calls that are cancelled. Opening connects to the server, in the
    constructor and the calling thread.

    Args:
        url: See ``PostgresStorage``.
        config_version: What a ``LogRecord`` is stamped with, 0 to 2**64 - 1.
        read_only: Let the server refuse what writes.
        pool_size: Threads, >= 1, and connections as ``PostgresStorage`` has them.
        slow_call_s: From how many seconds on, >= 0, the logger ``fiberstore.telemetry`` warns of a call.

    Raises:
        DatabaseError: See ``PostgresStorage``.
        ValueError: An argument is out of bounds.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        config_version: int = 0,
        read_only: bool = False,
        pool_size: int = DEFAULT_POOL_SIZE,
        slow_call_s: float = DEFAULT_SLOW_CALL_S,
    ) -> None:
        storage = PostgresStorage(
            url,
            config_version=config_version,
            read_only=read_only,
            pool_size=pool_size,
            slow_call_s=slow_call_s,
        )
        super().__init__(storage, pool_size)
