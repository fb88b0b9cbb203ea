"""``StorePool``: a pool of connections without a counter or a lock that Ctrl-C can leave wrong."""

import time
from typing import Any
from weakref import ref

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection

from fiberstore.sql.holds import Hold, Registry


class StorePool(Pool):
    """At most so many connections in use, the one that was used last first: it knows the statements.

    SQLAlchemy's ``QueuePool`` counts connections and guards them by Python's ``Condition``. An interrupt in
    the wrong place makes it smaller, or locks it, for ever. Here a connection counts as in use while its
    record has a ``Hold``, and a record that is lost is one no more.

    Args:
        creator: Opens a connection.
        pool_size: Connections in use at most, >= 1.
        timeout: Seconds to wait for one.
        arguments: Those of SQLAlchemy's ``Pool``.
    """

    def __init__(self, creator: Any, pool_size: int = 5, timeout: float = 30.0, **arguments: Any) -> None:  # noqa: ANN401  # as SQLAlchemy has it
        super().__init__(creator, **arguments)
        self._size = pool_size
        self._timeout = timeout
        self._idle: list[ConnectionPoolEntry] = []
        self._used = Registry[Hold]()
        self._is_disposed = False

    def checkedout(self) -> int:
        """Return how many connections are in use or waited for."""
        return len(self._used.alive())

    def checkedin(self) -> int:
        """Return how many connections are idle."""
        return len(self._idle)

    def status(self) -> str:
        """Describe the pool in a line."""
        return (
            f"Pool size: {self._size}  Connections in pool: {self.checkedin()} "
            f"Current Checked out connections: {self.checkedout()}"
        )

    def recreate(self) -> "StorePool":
        """Return an empty pool of the same kind."""
        return type(self)(
            self._creator,
            self._size,
            self._timeout,
            pre_ping=self._pre_ping,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def sibling(self, pool_size: int | None = None) -> "StorePool":
        """Return an empty pool of the same kind with the same listeners, whenever they are added.

        Args:
            pool_size: Connections in use at most; None: as many as of this pool.
        """
        pool = self.recreate()
        pool._size = self._size if pool_size is None else pool_size
        pool.dispatch = self.dispatch
        return pool

    def lend(self) -> PoolProxiedConnection:
        """Give a connection as ``connect`` does; in a quarter of the time if nobody listens to the pool."""
        events = self.dispatch
        return self.connect() if events.checkout or events.checkin or events.reset else Lent(self)

    def dispose(self) -> None:
        """Close the idle connections, and each of the others once it is given back."""
        self._is_disposed = True
        while (record := self._pop()) is not None:
            record.close()

    def _do_get(self) -> ConnectionPoolEntry:
        hold = [self._used.add(Hold())]
        try:
            if not self._used.wait(ref(hold[0]), time.monotonic() + self._timeout, places=self._size):
                raise PoolTimeoutError(
                    f"none came free in {self._timeout:g} s: {self._size} are in use; open the "
                    "storage with a larger pool_size, or end streams that are no longer read",
                    code="3o7r",
                )
            record = self._pop() or self._create_connection()
            record.__dict__["hold"] = hold.pop()
        except BaseException:
            hold.clear()
            raise
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        # Once the record is idle, another thread may take it, and gives it a hold of its own.
        hold = record.__dict__.pop("hold")
        try:
            if self._is_disposed:
                record.close()
            elif record.dbapi_connection is not None:
                # SQLAlchemy takes a transaction for ended whose COMMIT was interrupted before it began.
                record.dbapi_connection.reset()
                self._idle.append(record)
        except BaseException as error:  # SQLAlchemy's own pools do the same
            self.logger.exception("Exception during reset or similar")
            record.invalidate(error)
            if not isinstance(error, Exception):
                raise
        finally:
            del hold

    def _pop(self) -> ConnectionPoolEntry | None:
        try:
            return self._idle.pop()
        except IndexError:  # to look first is too early: another thread may take the last one meanwhile
            return None


class Lent(PoolProxiedConnection):
    """A connection that is in use until it is closed, or until nothing refers to this.

    Args:
        pool: Where it comes from, and goes back to.
    """

    _connection_record: ConnectionPoolEntry | None = None

    def __init__(self, pool: StorePool) -> None:
        self._pool = pool
        record: Any = pool._do_get()
        self._connection_record = record
        dialect: Any = pool._dialect
        try:
            self.dbapi_connection = record.get_connection()
            if not dialect.do_ping(self.dbapi_connection):
                record.invalidate()
                self.dbapi_connection = record.get_connection()
        except BaseException:
            self.close()
            raise

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]  # noqa: ANN401  # as SQLAlchemy has it
        """The connection, which is the driver's own."""
        return self.dbapi_connection

    @property
    def info(self) -> dict[Any, Any]:
        """Values that are kept with the connection, for as long as it is open."""
        assert self._connection_record is not None  # noqa: S101  # SQLAlchemy asks while it is in use
        return self._connection_record.info

    @property
    def is_valid(self) -> bool:
        """True until it is closed."""
        return self._connection_record is not None

    @property
    def is_detached(self) -> bool:
        """False: it always goes back to its pool."""
        return False

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Let the connection be closed, and another be opened in its place."""
        if self._connection_record is not None:
            self._connection_record.invalidate(e, soft)
            self.close()

    def close(self) -> None:
        """Give the connection back."""
        record, self._connection_record = self._connection_record, None
        if record is not None:
            self._pool._do_return_conn(record)

    def _close_special(self, transaction_reset: bool = False) -> None:  # SQLAlchemy closes it so, too
        del transaction_reset
        self.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # of the connection
        return getattr(self.dbapi_connection, name)

    def __del__(self) -> None:
        self.close()
