"""DuckDB connections as SQLAlchemy expects a DBAPI to have them.

They differ from duckdb-engine's in four things: a result belongs to its cursor, a transaction that DuckDB has
aborted takes no more statements and no commit, transactions that change rows wait for each other
(see ``fiberstore.duckdb.change_lock``), and a statement is parsed once.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Never
from uuid import uuid4

import duckdb
from sqlalchemy.engine import Dialect

from fiberstore.duckdb import fork_guard
from fiberstore.duckdb.change_lock import ChangeLock, LockHold
from fiberstore.duckdb.cursor import Cursor
from fiberstore.duckdb.errors import is_duplicate_key, is_interrupt
from fiberstore.duckdb.modes import limit_log_modes, make_log, remove_temporary_folder
from fiberstore.duckdb.shadows import place, undo_shadows
from fiberstore.duckdb.statements import ParsedStatements, effects_of
from fiberstore.duckdb.support import SUPPORT
from fiberstore.duckdb.transaction_state import Begun, TransactionState
from fiberstore.duckdb.write_signal import WriteSignal
from fiberstore.errors import ConflictError
from fiberstore.sql.connection import ARROW_TABLE, Lock, Row, StoreConnection
from fiberstore.sql.engine import FORKED
from fiberstore.sql.holds import Hold
from fiberstore.sql.support import BackendSupport

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 512
_IF_NEW = " ON CONFLICT DO NOTHING"


class DuckDBConnection(StoreConnection):
    """One DuckDB connection, as a DBAPI connection and as the repositories need one.

    It knows the cursor whose result is still open, and takes part in the database's ``ChangeLock``.
    Without ``begin()`` every statement is a transaction of its own.

    Attributes:
        write_signal: Tells tails that a write has ended.
        autocommit: Isolation level AUTOCOMMIT, until it goes back to the pool.
        is_read_only: The database cannot be written.
        file_number: See ``fork_guard.Handle``.
        rows_written: Rows inserted, updated or deleted since it was opened, committed or not; without those
            of statements that return rows, which DuckDB does not count.
    """

    engine_name: ClassVar[str] = "duckdb"
    support: ClassVar[BackendSupport] = SUPPORT
    closed = False

    def __init__(self, raw: duckdb.DuckDBPyConnection, database: str, dialect: Dialect) -> None:
        self.statement_dialect = dialect
        self.database_key = fork_guard.database_key(database)
        self.file_number: tuple[int, int] | None = None
        self.rows_written = 0
        self.autocommit = False
        self.notices: list[str] = []
        self._raw: duckdb.DuckDBPyConnection | _Inherited = raw
        # DuckDB takes the look at a variable for access to the outside.
        ((scans_variables, self._has_file, self.is_read_only),) = raw.execute(
            "SELECT current_setting('enable_external_access'), path IS NOT NULL, readonly "
            "FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchall()
        self._view = None if scans_variables else f"fiberstore_{uuid4().hex}"
        self._home = place(raw.execute)
        self._parsed = ParsedStatements()
        self.write_signal = WriteSignal.of(database)
        self._change_lock = ChangeLock.of(database)
        self._lock_hold: LockHold | None = None
        self._append_hold: Hold | None = None
        self._transaction = TransactionState()
        self._reader: Cursor | None = None
        self._unread = False
        self._stream: pa.RecordBatchReader | None = None
        self._arrow_batch_rows: int | None = None  # for a statement of which the rows are to come as batches
        self._arrow_batches: Iterator[pa.RecordBatch] = iter(())
        fork_guard.register(self)

    @property
    def in_transaction(self) -> bool:
        """True inside an explicit transaction; False in autocommit mode."""
        return self._transaction.is_open

    def cursor(self) -> Cursor:
        """Return a new cursor with a result of its own."""
        return Cursor(self)

    def sibling(self) -> "duckdb.DuckDBPyConnection":
        """Return another connection to the same instance, beside the ``ChangeLock``; its caller closes it."""
        return self._raw.cursor()

    def file_mode(self) -> int | None:
        """Return the mode of the database's file; None in memory."""
        return Path(self.database_key).stat().st_mode if self._has_file else None

    def begin(self, *, sees_latest: bool = False) -> None:
        """Begin a transaction; DuckDB takes its snapshot at the first statement, also for appends."""
        del sees_latest
        self._keep_open_result()
        self._transaction = TransactionState(Begun.YES)
        with self._driver():
            self._raw.begin()

    def commit(self) -> None:
        """Commit; results that are still open stay readable.

        Raises:
            duckdb.InvalidInputException: A statement of the transaction failed; it was rolled back. DuckDB
                itself would commit, keep nothing, and say nothing.
        """
        if not self._transaction.is_open:
            return
        try:
            self._keep_open_result()
            self._refuse_if_failed()
            with self._logging(self._transaction.writes), self._driver():
                self._raw.commit()
            self._transaction.begun = Begun.NO
        finally:
            self._end()

    def rollback(self) -> None:
        """Roll back whatever is open; without a transaction, do nothing."""
        self._end()

    def reset(self) -> None:
        """Make the connection ready for its next user."""
        self.rollback()
        self.autocommit, self.listened_by = False, None

    def close(self) -> None:
        """Roll back what is open and close."""
        try:
            self.rollback()
        finally:
            with (
                fork_guard.opening
            ):  # nobody looks at the file while DuckDB gives up its lock, or has not yet
                try:
                    self._raw.close()
                finally:
                    self.closed = True
                if self._has_file and not fork_guard.is_open(self.database_key):
                    remove_temporary_folder(self.database_key)

    def lock_changes(self) -> None:
        """Take the database's ``ChangeLock`` until the transaction ends.

        Raises:
            duckdb.TransactionException: Rows were changed since this transaction's snapshot, or the lock did
                not come free.
        """
        if self._lock_hold is not None:
            return
        self._lock_hold = self._change_lock.acquire()
        transaction, changes = self._transaction, self._change_lock.changes
        if transaction.begun is Begun.SNAPSHOT and transaction.changes_at_snapshot != changes:
            self._end_lock_hold(changed=False)
            raise duckdb.TransactionException(
                "rows were changed by another transaction after this one had begun to read; roll back and "
                "run it again"
            )

    def take_lock(self, lock: Lock) -> None:
        # What relies on rows waits like what changes them.
        if lock is Lock.NOTHING:
            return
        if lock is Lock.BESIDE:
            self._append_hold = Hold()  # which nobody waits for
            return
        self.lock_changes()
        # A listener might append, in this thread or by another that it waits for.
        if lock is Lock.MANY_CHANGES and self._lock_hold is not None and self.listened_by is None:
            self._lock_hold.keep_appends_out()

    @property
    def writes_alone(self) -> bool:  # type: ignore[override]  # an attribute of other engines
        """True if no other transaction writes rows until this one ends."""
        return self._lock_hold is not None and self._lock_hold.is_alone

    def take_over(self, hold: LockHold) -> None:
        """Hold the ``ChangeLock`` by a hold that the caller has waited for, until the transaction ends."""
        self._lock_hold = hold

    def abandon(self) -> None:
        """Leave the database to the parent process; for a forked child."""
        fork_guard.keep_forever(self._raw)
        fork_guard.keep_forever(self._parsed)
        fork_guard.keep_forever(self._stream)
        self._raw, self._parsed = _Inherited(), ParsedStatements()
        self._lock_hold = self._append_hold = self._reader = self._stream = None
        self._unread = False

    def fetch_with_batch(self, sql: str, batch: "pa.RecordBatch | pa.RecordBatchReader") -> list[Row]:
        if (cursor := self._observed(sql, [batch])) is not None:
            rows = [(cursor.rowcount,)] if cursor.rowcount >= 0 else list(cursor.fetchall())
        else:
            with self._statement(sql):
                try:
                    self._execute_with_batch(sql, batch)
                    rows = self._raw.fetchall()
                finally:
                    if self._view is not None:
                        self._raw.unregister(self._view)
        return rows

    def _execute_with_batch(self, sql: str, batch: object) -> None:
        if self._view is not None:  # which takes 1 ms longer
            self._raw.register(self._view, batch)
            self._raw.execute(
                self._parsed.get(self._raw, sql.replace(ARROW_TABLE, f"temp.main.{self._view}"))
            )
            return
        # DuckDB looks for a variable of that name because no table has it ("replacement scan"), and none ever
        # will have: nobody can create anything in the catalog "system".
        table = f"system.main.{ARROW_TABLE}"
        sql = sql.replace(ARROW_TABLE, table)
        fiberstore_arrow_batch = batch
        try:
            self._raw.execute(self._parsed.get(self._raw, sql))
        except duckdb.CatalogException as error:
            if ARROW_TABLE not in str(error).partition("\n")[0]:
                raise  # about another table
            # DuckDB drops what Python raises while it looks for the variable. If it is found now, that was
            # Ctrl-C; if not, the error says something else.
            with suppress(duckdb.Error), self._raw.cursor() as cursor:
                cursor.execute(f"SELECT 1 FROM {table} LIMIT 0")  # noqa: S608  # our own name
                raise KeyboardInterrupt from error
            raise
        finally:
            del fiberstore_arrow_batch

    def write_with_batch(self, sql: str, batch: "pa.RecordBatch") -> int:
        with _conflicts():
            return _count(self.fetch_with_batch(sql, batch))

    def insert_new(self, table: str, batch: "pa.RecordBatch") -> int:
        return self.write_with_batch(f"{_insert(table, batch.schema)}{_IF_NEW}", batch)

    def insert_as_made(self, table: str, batches: Iterator["pa.RecordBatch"]) -> int | None:
        # To look for known keys takes up to half of the time, and there are rarely any. In a transaction, the
        # error of a known key or of a bad value would be its end.
        if self.in_transaction or self.listened_by is not None:
            return None
        import pyarrow as pa

        begun = list(islice(batches, 2))
        errors: list[BaseException] = []  # DuckDB would tell of them by their text alone

        def every() -> Iterator[pa.RecordBatch]:
            yield from begun
            try:
                yield from batches
            except BaseException as error:
                errors.append(error)
                raise

        schema = begun[0].schema
        rows = begun[0] if len(begun) == 1 else pa.RecordBatchReader.from_batches(schema, every())
        try:
            return _count(self.fetch_with_batch(_insert(table, schema), rows))
        except duckdb.ConstraintException as error:
            if not is_duplicate_key(error):
                raise
            return None
        except (duckdb.Error, KeyboardInterrupt):  # also an error whose text looks like that of Ctrl-C
            if errors:
                raise errors[0] from errors[0].__cause__
            raise

    def fetch_rows(self, sql: str, values: Sequence[object]) -> Iterator[Row]:
        # Without a cursor, and row by row: a list gives Python's garbage collector a fifth more to do.
        if (cursor := self._observed(sql, values)) is not None:
            return chain.from_iterable(iter(partial(cursor.fetchmany, _ROWS_AT_ONCE), []))
        with self._statement(sql):
            self._raw.execute(self._parsed.get(self._raw, sql), values)
        self._unread = True
        return self._unread_rows()

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        with _conflicts():
            if (cursor := self._observed(sql, values)) is not None:
                return max(int(cursor.rowcount), 0)
            # To look for a known key takes half of the time; in a transaction its error would be the end.
            is_tried = not self.in_transaction and sql.endswith(_IF_NEW)
            try:
                rows = list(self.fetch_rows(sql.removesuffix(_IF_NEW) if is_tried else sql, values))
            except duckdb.ConstraintException as error:
                if not (is_tried and is_duplicate_key(error)):
                    raise
                rows = list(self.fetch_rows(sql, values))  # it may have other rows
        return _count(rows) if rows else 0  # DDL has none

    def stream_rows(self, sql: str, values: Sequence[object], batch_rows: int) -> Generator[list[Row]]:
        cursor = self._observed(sql, values)
        if cursor is None:
            cursor = self.cursor()
            cursor.execute(sql, values)
        try:
            while rows := cursor.fetchmany(batch_rows):
                yield rows
        finally:
            cursor.close()

    def _unread_rows(self) -> Iterator[Row]:
        while rows := self.fetch(_ROWS_AT_ONCE):
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                break
        self._unread = False

    def stream_arrow(
        self, sql: str, values: Sequence[object], batch_rows: int, schema: "pa.Schema"
    ) -> Generator["pa.RecordBatch"]:
        # No other statement runs meanwhile. So in a transaction all rows are fetched first.
        del schema
        self._arrow_batch_rows = batch_rows
        try:
            if self._observed(sql, values) is None:
                self.cursor().execute(sql, values)
        finally:
            self._arrow_batch_rows = None
        batches, self._arrow_batches = self._arrow_batches, iter(())
        yield from batches

    def _stream_arrow(self, sql: str, values: list[object], batch_rows: int) -> None:
        relation = self._raw.sql(sql, params=values)
        if self.in_transaction:
            self._arrow_batches = iter(relation.to_arrow_table().to_batches(max_chunksize=batch_rows))
        else:
            self._stream = relation.to_arrow_reader(batch_rows)
            self._arrow_batches = self._streamed(self._stream)

    def _streamed(self, stream: "pa.RecordBatchReader") -> Iterator["pa.RecordBatch"]:
        while True:
            with self._driver():
                try:
                    batch = stream.read_next_batch()
                except StopIteration:
                    return
                except OSError as error:  # an Arrow stream tells of DuckDB's errors by their text alone
                    raise duckdb.DatabaseError(str(error)) from error
            yield batch

    def run(self, cursor: Cursor, sql: str, parameters: Sequence[object] | None, *, many: bool) -> None:
        """Execute a statement for a cursor, which becomes the reader of its result."""
        with self._statement(sql):
            if many:
                self._raw.executemany(sql, parameters)
            elif self._arrow_batch_rows is not None:
                self._stream_arrow(sql, list(parameters or ()), self._arrow_batch_rows)
                return
            elif parameters and ARROW_TABLE in sql:
                self._execute_with_batch(sql, parameters[0])
            else:
                self._raw.execute(self._parsed.get(self._raw, sql), parameters)
        self._reader, self._unread = cursor, True

    def result(self) -> tuple[int, Sequence[Row] | None]:
        """Return the row count (-1 unless rows were changed) and the columns of the open result."""
        return self._raw.rowcount, self._raw.description

    def refuse_shadows(self, sql: str) -> None:
        """Undo a statement that lets the names of the store's tables lead to other ones; see ``shadows``."""
        if effects_of(sql).may_shadow:
            self._keep_open_result()
            with self._driver():
                undo_shadows(self._raw.execute, self._home)

    def is_read_by(self, cursor: Cursor) -> bool:
        """Tell whether the open result is that cursor's."""
        return self._reader is cursor

    def fetch(self, size: int | None) -> list[Row]:
        """Return the next rows of the open result, all if ``size`` is None."""
        with self._driver():
            return self._raw.fetchall() if size is None else self._raw.fetchmany(size)

    def done_with(self, cursor: Cursor) -> None:
        """Forget a cursor that has read or dropped its result."""
        if self._reader is cursor:
            self._reader = None

    def _end(self) -> None:
        changed = self._transaction.changes_rows  # a commit that raised (Ctrl-C) may have happened
        if self._reader is not None:
            self._reader.close()
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        try:
            if self._transaction.is_open:
                with self._driver():
                    self._raw.rollback()
                changed = False
            elif self._unread:
                with self._driver():
                    self._raw.execute("SELECT 1").fetchall()  # drops the result, and with it its snapshot
            self._unread = False
        except duckdb.TransactionException:
            pass  # a COMMIT that failed has ended the transaction already
        finally:
            self._end_owned(changed=changed)
        self._transaction.begun = Begun.NO

    @contextmanager
    def _statement(self, sql: str) -> Iterator[None]:
        self._keep_open_result()
        self._refuse_if_failed()
        effects = effects_of(sql)
        if effects.changes_rows:
            self.lock_changes()
        elif effects.appends_rows and self._lock_hold is None and self._append_hold is None:
            self._append_hold = self._change_lock.begin_append()
        creates = sql.lstrip()[:6].lower() == "create"
        writes = self._transaction.note(effects, creates=creates, changes=self._change_lock.changes)
        changed = True  # unless DuckDB says otherwise: after Ctrl-C it may have happened
        try:
            with self._logging(writes and not self._transaction.is_open), self._driver():
                yield
            self.rows_written += max(self._raw.rowcount, 0)
        except duckdb.Error:
            changed = False
            raise
        finally:
            if not self._transaction.is_open:  # it was a transaction of its own
                self._end_owned(changed=changed)

    @contextmanager
    def _driver(self) -> Iterator[None]:
        """Note an aborted transaction; raise what Python raises for Ctrl-C, where DuckDB does not."""
        try:
            yield
        except BaseException as error:
            self._transaction.is_aborted = True
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            if isinstance(error, duckdb.Error) and self._transaction.is_open:
                self._transaction.is_aborted = self._is_aborted()
            raise

    def _is_aborted(self) -> bool:
        """Ask DuckDB after an error: a value that its driver cannot take, for example, ends nothing."""
        try:
            self._raw.execute("SELECT 1").fetchall()
        except (duckdb.Error, RuntimeError) as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            return True
        return False

    @contextmanager
    def _logging(self, writes: bool) -> Iterator[None]:
        """Keep the write-ahead log from who may not read the database, while the block writes to it."""
        if not (writes and self._has_file and not self.is_read_only):
            yield
            return
        make_log(self.database_key)
        try:
            yield
        finally:
            limit_log_modes(self.database_key)

    def _refuse_if_failed(self) -> None:
        if self._transaction.is_aborted and self._transaction.is_open:
            raise duckdb.InvalidInputException(
                "a statement of this transaction failed, so nothing of it can be kept; roll back first"
            )

    def _keep_open_result(self) -> None:
        if self._reader is not None:
            self._reader.keep_rest()

    def _end_owned(self, *, changed: bool) -> None:
        """End the lock hold and the write; after an interrupt the pool's rollback does, or its own end."""
        self._append_hold = None
        if self._transaction.appends_rows:
            self._transaction.appends_rows = False
            self.write_signal.note_end()
        self._end_lock_hold(changed=changed)

    def _end_lock_hold(self, *, changed: bool) -> None:
        if self._lock_hold is not None:
            self._lock_hold.end(changed=changed)
            self._lock_hold = None
        self._transaction.changes_rows = False


@contextmanager
def _conflicts() -> Iterator[None]:
    """Tell a key that was committed after this transaction's snapshot, which DuckDB does not pass over."""
    try:
        yield
    except duckdb.ConstraintException as error:
        if is_duplicate_key(error):
            raise ConflictError(str(error).partition("\n")[0]) from error
        raise


def _insert(table: str, schema: "pa.Schema") -> str:
    names = ", ".join(schema.names)
    return f"INSERT INTO {table} ({names}) SELECT {names} FROM {ARROW_TABLE}"  # noqa: S608  # our own names


def _count(rows: Sequence[Row]) -> int:
    ((count,),) = rows
    return int(count)


class _Inherited:
    """Stands in a forked child where the parent's connection was: it ends quietly, and does nothing else."""

    def __getattr__(self, name: str) -> Never:
        raise duckdb.InvalidInputException(FORKED)

    def rollback(self) -> None:
        """Do nothing: the transaction is the parent's."""

    def close(self) -> None:
        """Do nothing: the connection is the parent's."""
