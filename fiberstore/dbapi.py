"""DuckDB connections and cursors as SQLAlchemy expects a DBAPI to have them.

They differ from duckdb-engine's in three things: a result belongs to its cursor, a failed transaction cannot
be committed, and transactions that change rows wait for each other (see ``ChangeLock``).
"""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakValueDictionary

import duckdb

if TYPE_CHECKING:
    import pyarrow as pa

LOCK_TIMEOUT_S = 30.0

_CHANGES = {
    duckdb.StatementType.UPDATE,
    duckdb.StatementType.DELETE,
    duckdb.StatementType.MERGE_INTO,
    duckdb.StatementType.EXECUTE,
}
_UPSERT = re.compile(r"\bon\s+conflict\b.*\bdo\s+update\b|\bor\s+replace\b", re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=4096)
def changes_rows(sql: str) -> bool:
    """Tell whether a statement may change or delete rows that are there, rather than only append."""
    try:
        statements = _parser().cursor().extract_statements(sql)
    except duckdb.Error:
        return False  # it will fail when it is executed, with DuckDB's own message
    return any(
        statement.type in _CHANGES or (statement.type == duckdb.StatementType.INSERT and _UPSERT.search(sql))
        for statement in statements
    )


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:", config={"threads": 1})


class ChangeLock:
    """Lets one transaction at a time change rows of a database; appends and reads go beside it.

    DuckDB lets two transactions that change one row both commit, and drops one of the changes, when one
    updates an indexed column and the other a plain one, or when one updates and the other deletes (DuckDB
    #17223). The cure: whoever changes rows holds this lock to the end of the transaction, and its snapshot
    must not be older than the last change. One that read first and finds a change since gets the same
    error class as DuckDB's own write-write conflict, and has to start again.

    Attributes:
        changes: How many transactions that changed rows have been committed.
    """

    _by_database: ClassVar[WeakValueDictionary[str, "ChangeLock"]] = WeakValueDictionary()
    _registry_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner_thread: int | None = None
        self.changes = 0

    @classmethod
    def of(cls, database: str) -> "ChangeLock":
        """Return the lock that all connections of this process to one database share."""
        key = database if database.startswith(":memory:") else os.path.realpath(database)
        with cls._registry_lock:
            lock = cls._by_database.get(key)
            if lock is None:
                lock = cls._by_database[key] = ChangeLock()
            return lock

    def acquire(self) -> None:
        """Wait for the lock.

        Raises:
            duckdb.InvalidInputException: This thread has it in another transaction.
            duckdb.TransactionException: It did not come free within ``LOCK_TIMEOUT_S``.
        """
        if self._lock.acquire(blocking=False):
            pass
        elif self._owner_thread == threading.get_ident():
            raise duckdb.InvalidInputException(  # it would wait for itself, so trying again cannot help
                "this thread has another open transaction that changes rows; commit it first, or use it for "
                "this change too"
            )
        elif not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise duckdb.TransactionException(
                f"another open transaction has been changing rows for {LOCK_TIMEOUT_S:g} s; commit it, or "
                "roll it back"
            )
        self._owner_thread = threading.get_ident()

    def release(self) -> None:
        """Give the lock back."""
        self._owner_thread = None
        self._lock.release()


class _Begun(Enum):
    NO = 0
    YES = 1  # no snapshot yet: DuckDB takes it at the first statement
    SNAPSHOT = 2


class Connection:
    """One DuckDB connection, as a DBAPI connection.

    It knows the cursor whose result is still open, and takes part in the database's ``ChangeLock``.
    """

    autocommit = None  # SQLAlchemy asks; DuckDB has no such switch
    closed = False

    def __init__(self, raw: duckdb.DuckDBPyConnection, change_lock: ChangeLock) -> None:
        self.notices: list[str] = []
        self._raw = raw
        self._change_lock = change_lock
        self._holds_lock = False
        self._changes_at_snapshot = 0
        self._begun = _Begun.NO
        self._failed = False
        self._reader: Cursor | None = None

    def cursor(self) -> "Cursor":
        """Return a new cursor with a result of its own."""
        return Cursor(self)

    def begin(self) -> None:
        """Begin a transaction; DuckDB takes its snapshot at the first statement."""
        self._release_reader()
        self._raw.begin()
        self._begun, self._failed = _Begun.YES, False

    def commit(self) -> None:
        """Commit; results that are still open stay readable.

        Raises:
            duckdb.TransactionException: A statement of the transaction failed, so DuckDB keeps nothing of it.
        """
        if self._begun is _Begun.NO:
            return
        try:
            self._release_reader()
            if self._failed:
                self._raw.execute("SELECT 1")  # raises if the failure aborted the transaction
            with self.interruptible():
                self._raw.commit()
            self._begun = _Begun.NO
        finally:
            if self._holds_lock:  # an interrupted commit may have happened
                self._change_lock.changes += 1
            self.rollback()

    def rollback(self) -> None:
        """Roll back whatever is open; without a transaction, do nothing."""
        if self._reader is not None:
            self._reader.close()
        try:
            if self._begun is not _Begun.NO:
                self._begun = _Begun.NO
                self._raw.rollback()
        except duckdb.TransactionException:
            pass  # a COMMIT that failed has ended the transaction already
        finally:
            if self._holds_lock:
                self._holds_lock = False
                self._change_lock.release()

    def close(self) -> None:
        """Roll back what is open and close."""
        self.closed = True
        try:
            self.rollback()
        finally:
            self._raw.close()

    def interrupt(self) -> None:
        """Stop the statement that another thread runs on this connection."""
        self._raw.interrupt()

    def lock_changes(self) -> None:
        """Take the database's ``ChangeLock`` until the transaction ends.

        Called before a transaction's first statement it never conflicts; later it may.

        Raises:
            duckdb.TransactionException: Rows were changed since this transaction's snapshot.
        """
        if self._holds_lock:
            return
        self._change_lock.acquire()
        if self._begun is _Begun.SNAPSHOT and self._changes_at_snapshot != self._change_lock.changes:
            self._change_lock.release()
            raise duckdb.TransactionException(
                "rows were changed by another transaction after this one had begun to read; roll back and "
                "run it again"
            )
        self._holds_lock = True

    def execute_arrow(self, sql: str, batch: "pa.RecordBatch") -> list[tuple[object, ...]]:  # noqa: ARG002
        """Run a statement that reads an Arrow batch under the table name ``batch``.

        Returns:
            Its rows; a statement that writes has one, the number of rows written.
        """
        self._prepare(sql)
        with self._statement():
            # DuckDB finds the argument `batch` by the table's name (a "replacement scan").
            return self._raw.execute(sql).fetchall()

    def run(self, cursor: "Cursor", sql: str, parameters: Sequence[object] | None, *, many: bool) -> None:
        """Execute a statement for a cursor, which becomes the reader of its result."""
        self._prepare(sql)
        with self._statement():
            if many:
                self._raw.executemany(sql, parameters)
            else:
                self._raw.execute(sql, parameters)
        self._reader = cursor

    def read_by(self, cursor: "Cursor") -> duckdb.DuckDBPyConnection | None:
        """Return the connection to fetch from, or None if the cursor's result is not the open one."""
        return self._raw if self._reader is cursor else None

    def result(self) -> tuple[int, Sequence[tuple[object, ...]] | None]:
        """Return the row count (-1 unless rows were changed) and the columns of the open result."""
        return self._raw.rowcount, self._raw.description

    def done_with(self, cursor: "Cursor") -> None:
        """Forget a cursor that has read or dropped its result."""
        if self._reader is cursor:
            self._reader = None

    def _prepare(self, sql: str) -> None:
        self._release_reader()
        if changes_rows(sql):
            self.lock_changes()
        if self._begun is _Begun.YES:
            self._changes_at_snapshot = self._change_lock.changes
            self._begun = _Begun.SNAPSHOT

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise ``KeyboardInterrupt`` when Ctrl-C ends a statement, where DuckDB raises ``RuntimeError``."""
        try:
            yield
        except RuntimeError as error:
            if str(error) == "Query interrupted":
                raise KeyboardInterrupt from error
            raise

    @contextmanager
    def _statement(self) -> Iterator[None]:
        try:
            with self.interruptible():
                yield
        except BaseException:
            self._failed = True
            raise
        finally:
            if self._begun is _Begun.NO and self._holds_lock:  # it was a transaction of its own
                self._change_lock.changes += 1
                self.rollback()

    def _release_reader(self) -> None:
        if self._reader is not None:
            self._reader.keep_rest()


class Cursor:
    """A DBAPI cursor with a result of its own.

    Rows are fetched from DuckDB as they are asked for; when the connection is needed for something else, the
    rest of them is kept here first.
    """

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.description: Sequence[tuple[object, ...]] | None = None
        self.rowcount = -1
        self._rest: Iterator[tuple[object, ...]] | None = None

    def execute(self, statement: str, parameters: Sequence[object] | None = None) -> None:
        """Execute a statement."""
        self._run(statement, parameters, many=False)

    def executemany(self, statement: str, parameters: Sequence[object]) -> None:
        """Execute a statement once for each set of parameters."""
        self._run(statement, list(parameters), many=True)

    def fetchone(self) -> tuple[object, ...] | None:
        """Return the next row, or None."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[object, ...]]:
        """Return the next ``size`` rows, or what is left of them."""
        size = self.arraysize if size is None else size
        raw = self.connection.read_by(self)
        if raw is not None:
            with self.connection.interruptible():
                return raw.fetchmany(size)
        return list(islice(self._kept(), size))

    def fetchall(self) -> list[tuple[object, ...]]:
        """Return the rows that are left."""
        raw = self.connection.read_by(self)
        if raw is None:
            return list(self._kept())
        self.connection.done_with(self)
        self._rest = iter(())
        with self.connection.interruptible():
            return raw.fetchall()

    def keep_rest(self) -> None:
        """Fetch what is left, so that the connection can run another statement."""
        self._rest = iter(self.fetchall())

    def close(self) -> None:
        """Drop the result."""
        self.connection.done_with(self)
        self._rest = None

    def _run(self, statement: str, parameters: Sequence[object] | None, *, many: bool) -> None:
        self.close()
        self.connection.run(self, statement, parameters, many=many)
        self.rowcount, self.description = self.connection.result()
        if self.rowcount >= 0:  # a count of changed rows, which DuckDB also offers as a result
            self.description = None
            self.close()

    def _kept(self) -> Iterator[tuple[object, ...]]:
        if self._rest is None:
            raise duckdb.InvalidInputException("this result was closed by a rollback or by the cursor")
        return self._rest
