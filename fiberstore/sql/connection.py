"""``StoreConnection``: what the repositories need of a database connection, whatever the engine.

``fiberstore.duckdb.connection`` has that of DuckDB, ``fiberstore.postgresql`` that of PostgreSQL.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError

from fiberstore.sql.support import BackendSupport

if TYPE_CHECKING:
    from weakref import ref

    import pyarrow as pa
    import sqlalchemy as sa

# Stands in a statement for the Arrow batch that it reads. A connection puts a name or an expression in its
# place that no table, view or schema of an application can have.
ARROW_TABLE = "fiberstore_arrow_batch"

# Execution option of statements that are in the driver's own syntax.
NATIVE = "fiberstore_native"

Row: TypeAlias = tuple[Any, ...]


class Lock(Enum):
    """Kinds of changes that a transaction keeps others from, until it ends."""

    NOTHING = 0  # it only appends
    DELETES = 1  # it relies on rows that are there
    LATEST = 6  # it does so, and changes each as it finds it, whoever has changed it before
    CHANGES = 2  # it changes or deletes rows
    LATE = 5  # it does so, and where the engine can, others append and upsert until it takes `CHANGES`
    MANY_CHANGES = 3  # so many that a table may be written anew, where the engine does that
    BESIDE = 4  # it writes tables that nobody else knows, and keeps nobody from anything


class StoreConnection(ABC):
    """One connection. Without ``begin()`` every statement is a transaction of its own.

    Statements are SQL of the engine, with ``$1`` for the first value, and so on. They raise the driver's
    errors, which ``fiberstore.errors.translate_errors`` knows.

    Attributes:
        engine_name: ``"duckdb"`` or ``"postgresql"``, as SQLAlchemy calls the dialect.
        support: What the repositories do in another way on this engine.
        statement_dialect: The dialect in which ``fiberstore.sql.prepared`` compiles statements for it.
        writes_alone: No other transaction writes rows until this one ends, see ``Lock.MANY_CHANGES``.
        rows_written: Rows inserted, updated or deleted since it was opened, committed or not.
        listened_by: The SQLAlchemy connection whose listeners are told of each statement; None without any.
    """

    engine_name: ClassVar[str]
    support: ClassVar[BackendSupport]
    statement_dialect: Dialect
    writes_alone = False
    rows_written: int
    listened_by: "ref[sa.Connection] | None" = None

    def _observed(self, sql: str, values: Iterable[object]) -> Any | None:  # noqa: ANN401  # the driver's
        """Run a statement through SQLAlchemy, which tells its listeners; return None if there are none.

        Returns:
            The DBAPI cursor, or None.
        """
        bound = None if self.listened_by is None else self.listened_by()
        if bound is None:
            return None
        try:
            result = bound.exec_driver_sql(sql, tuple(values), execution_options={NATIVE: True})
        except DBAPIError as error:
            if error.orig is None:
                raise
            raise error.orig from error.orig.__cause__
        return result.context.cursor

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """True inside an explicit transaction; False in autocommit mode."""

    @abstractmethod
    def begin(self, *, sees_latest: bool = False) -> None:
        """Begin a transaction, whose statements all see the snapshot of the first.

        Args:
            sees_latest: Each statement sees what is committed when it begins, where the engine can have it
                so: a row that another transaction stores or changes meanwhile is no conflict.
        """

    @abstractmethod
    def take_lock(self, lock: Lock) -> None:
        """Wait for a lock, as a transaction begins or after ``Lock.LATE``, and hold it to the end of it."""

    @abstractmethod
    def commit(self) -> None:
        """Commit; on return everything is on disk."""

    @abstractmethod
    def rollback(self) -> None:
        """Roll back whatever is open; without a transaction, do nothing."""

    @abstractmethod
    def reset(self) -> None:
        """Make the connection ready for its next user; for the pool that gets it back."""

    @abstractmethod
    def fetch_rows(self, sql: str, values: Sequence[object]) -> Iterator[Row]:
        """Run a statement that returns rows, which are to be read before the next statement.

        Times come as datetimes or as µs since 1970; ``models.stored_time`` knows both.
        """

    def fetch_prepared(self, sql: str, values: Sequence[object]) -> Iterator[Row]:
        """Do the same with one of the few statements that are run again and again."""
        return self.fetch_rows(sql, values)

    @abstractmethod
    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run a statement that writes, and return how many rows it has written.

        Raises:
            ConflictError: Another transaction has committed the same key after the present snapshot.
        """

    @abstractmethod
    def stream_rows(self, sql: str, values: Sequence[object], batch_rows: int) -> Generator[list[Row]]:
        """Run a SELECT whose rows are fetched as they are asked for, so many at once, from one snapshot."""

    @abstractmethod
    def stream_arrow(
        self, sql: str, values: Sequence[object], batch_rows: int, schema: "pa.Schema"
    ) -> Generator["pa.RecordBatch"]:
        """Do the same with Arrow batches of at most so many rows, whose columns can be cast to a schema."""

    @abstractmethod
    def fetch_with_batch(self, sql: str, batch: "pa.RecordBatch") -> list[Row]:
        """Run a SELECT that reads an Arrow batch, for which ``ARROW_TABLE`` stands."""

    @abstractmethod
    def write_with_batch(self, sql: str, batch: "pa.RecordBatch") -> int:
        """Do the same with a statement that writes; see ``write``."""

    def write_each(self, sql: str, batch: "pa.RecordBatch") -> int:
        """Do the same with one that does each row of the batch by itself, and may be given them in parts."""
        return self.write_with_batch(sql, batch)

    @abstractmethod
    def insert_new(self, table: str, batch: "pa.RecordBatch") -> int:
        """Insert the rows of a batch without equal keys whose key is new, and return their number."""

    @abstractmethod
    def insert_as_made(self, table: str, batches: Iterator["pa.RecordBatch"]) -> int | None:
        """Insert rows while they are made, where one statement can.

        Returns:
            Their number; None if this connection cannot now, or if a key was stored or came twice: then
            nothing was inserted.
        """
