"""PostgreSQL connections, as SQLAlchemy and as the repositories need them."""

import os
import select
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from psycopg import abc, errors, generators, pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.rows import TupleRow
from psycopg.types.datetime import TimestamptzBinaryLoader
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine import Dialect

from fiberstore.errors import SerializationError
from fiberstore.postgresql.arrays import LARGEST_BYTES, MOST_BYTES, BinaryArray, array_of
from fiberstore.postgresql.support import SUPPORT
from fiberstore.sql.connection import ARROW_TABLE, Lock, Row, StoreConnection
from fiberstore.sql.models import Base, Json
from fiberstore.sql.support import BackendSupport

if TYPE_CHECKING:
    import pyarrow as pa

LEAST_VERSION = 14
_COPY_ROWS = 10  # from so many rows on, COPY is faster than a statement with arrays
_FEW_ROWS, _MOST_CURSORS = 100, 50
_LONG_ARRAY_BYTES = 2**12  # 200 ids
_CANCEL_S = 5.0  # as psycopg waits for it
# Who changes rows keeps out who relies on them, by a table that nobody else locks; reading it goes on. The
# lock protects what no row can be locked for: a key is not there twice, a log is not deleted while a batch
# gives it to a fiber, a fiber is not pinned while it is deleted, and what a `transaction()` has read stays.
# By `Lock.LATE`, a call keeps out who changes rows from the beginning, and who relies on them at its end. Who
# waits for it to end does so by the same mode first: behind one that waits for `EXCLUSIVE`, all would queue.
_LOCKS = {
    Lock.DELETES: ["ROW SHARE"],
    Lock.LATEST: ["ROW SHARE"],
    Lock.LATE: ["SHARE ROW EXCLUSIVE"],
    Lock.CHANGES: ["SHARE ROW EXCLUSIVE", "EXCLUSIVE"],
}
_PREPARED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")  # by psycopg, at the sixth time
_JSON_COLUMNS = frozenset(
    column.name
    for table in Base.metadata.tables.values()
    for column in table.c
    if isinstance(column.type, Json)
)


class CountingCursor(psycopg.Cursor[TupleRow]):
    """A cursor that adds the rows it writes to those of its connection."""

    def execute(self, *arguments: Any, **options: Any) -> "CountingCursor":  # noqa: ANN401  # as psycopg has them
        """Execute a statement."""
        super().execute(*arguments, **options)
        self._count()
        return self

    def executemany(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Execute a statement once for each set of values."""
        super().executemany(*arguments, **options)
        self._count()

    def _count(self) -> None:
        connection = self.connection
        if isinstance(connection, PostgresConnection) and _writes(self):
            connection.rows_written += self.rowcount


class NativeCursor(psycopg.RawCursor[TupleRow]):
    """A cursor for statements with ``$1``, one of which may read Arrow batches.

    Attributes:
        written: How many rows the statement has written.
    """

    written = 0

    def execute(self, sql: str, values: Iterable[Any] = (), **_options: Any) -> "NativeCursor":  # type: ignore[override]  # noqa: ANN401
        """Execute a statement; one with ``ARROW_TABLE`` has a batch for its value, and COPY any number."""
        if sql.startswith("COPY"):
            self._copy(sql, values)
        else:
            statement, arrays = _with_arrays(sql, *values) if ARROW_TABLE in sql else (sql, values)
            arguments = list(arrays)
            prepare = _may_prepare(arguments) if statement.startswith(_PREPARED) else False
            super().execute(statement.encode(), arguments or None, prepare=prepare, binary=True)
        self.written = self.rowcount if _writes(self) else 0
        return self

    def _copy(self, sql: str, batches: "Iterable[pa.RecordBatch]") -> None:
        from fiberstore.postgresql.copy_format import encoded

        with self.copy(sql.encode()) as copy:
            for part in encoded(batches, _JSON_COLUMNS):
                copy.write(part)


class PostgresConnection(psycopg.Connection[TupleRow], StoreConnection):
    """One connection to a server, as a DBAPI connection and as the repositories need one.

    It is in psycopg's autocommit mode for calls of a storage, and not for SQLAlchemy's sessions.

    Attributes:
        rows_written: See ``sql.connection.StoreConnection``; also by the statements of sessions.
    """

    engine_name: ClassVar[str] = "postgresql"
    support: ClassVar[BackendSupport] = SUPPORT
    statement_dialect: Dialect = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # as psycopg has them
        self._pid = os.getpid()
        super().__init__(*arguments, **options)
        self.rows_written = 0
        self.cursor_factory = CountingCursor
        self._numbers = count()
        self._transactions_ended = 0
        self._prepared_names: dict[tuple[str, tuple[int, ...] | None], bytes] = {}
        self._cursors: dict[str, psycopg.RawCursor[TupleRow]] = {}  # the one that was used last is the last

    @property
    def in_transaction(self) -> bool:
        return not self.autocommit or self.pgconn.transaction_status != pq.TransactionStatus.IDLE

    @property
    def closed(self) -> bool:
        """True if it cannot be used any more; in a forked child, it is the parent's."""
        return super().closed or self._pid != os.getpid()

    @property
    def is_lost(self) -> bool:
        """True if it is closed, or idle and ended by the server, as far as this end has heard."""
        # To an idle connection the server says nothing but why it ends it.
        return self.closed or _is_readable(self.pgconn.socket)

    def wait(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # as psycopg has them
        """Let something go over the connection, and wait for what comes back.

        Raises:
            TransactionResolutionUnknown: The connection was lost, maybe after the server had committed.
            ConnectionFailure: The connection was lost within a transaction, of which nothing is stored.
        """
        if self._pid != os.getpid():
            raise psycopg.InterfaceError(
                "the connection was opened before this process was forked, and is its parent's"
            )
        in_transaction = self.in_transaction
        try:
            return super().wait(*arguments, **options)
        except psycopg.Error as error:  # the end of an idle transaction is no OperationalError
            if not self.closed:
                raise
            lost = errors.ConnectionFailure if in_transaction else errors.TransactionResolutionUnknown
            raise lost(str(error)) from error

    def begin(self, *, sees_latest: bool = False) -> None:
        level = "READ COMMITTED" if sees_latest else "REPEATABLE READ"
        self._run(f"BEGIN ISOLATION LEVEL {level}".encode())

    def take_lock(self, lock: Lock) -> None:
        # PostgreSQL takes the snapshot after it.
        for mode in _LOCKS.get(lock, ()):
            self._execute(f"LOCK TABLE fiber_merges IN {mode} MODE")

    def commit(self) -> None:
        """Commit; on return everything is on disk."""
        self._transactions_ended += 1
        if self.pgconn.transaction_status == pq.TransactionStatus.INERROR:
            # PostgreSQL would roll back, and say nothing.
            raise psycopg.errors.InFailedSqlTransaction(
                "a statement of this transaction failed, so nothing of it can be kept; roll back first"
            )
        try:
            if self.autocommit and self.in_transaction:
                self._run(b"COMMIT")
            else:
                super().commit()
        except errors.ConnectionFailure as error:
            raise errors.TransactionResolutionUnknown(str(error)) from error

    def rollback(self) -> None:
        """Roll back whatever is open; without a transaction, or if the connection was lost, do nothing.

        An interrupt may leave it amid a statement, where it takes no other; then it is closed.
        """
        status = self.pgconn.transaction_status
        if status == pq.TransactionStatus.IDLE or self.closed:
            return
        self._transactions_ended += 1
        try:
            if status == pq.TransactionStatus.ACTIVE:
                self._break_off()
            elif self.autocommit and self.in_transaction:
                self._run(b"ROLLBACK")
            else:
                super().rollback()
        except psycopg.Error:
            if not self.closed:
                raise

    def _break_off(self) -> None:
        try:
            self.cancel_safe(timeout=_CANCEL_S)  # else the server notices the end after the statement
        finally:
            self.close()

    def reset(self) -> None:
        """Make the connection ready for its next user, in the mode of its pool."""
        self.listened_by = None
        if not self.closed:
            self.rollback()

    def fetch_rows(self, sql: str, values: Sequence[object]) -> Iterator[Row]:
        try:
            return self._fetch_rows(sql, values)
        except errors.FeatureNotSupported:  # in a prepared statement: a column has another type now
            if self.in_transaction:
                raise
            self._forget_prepared()
            return self._fetch_rows(sql, values)

    def _fetch_rows(self, sql: str, values: Sequence[object]) -> Iterator[Row]:
        if self.listened_by is not None:
            return iter(self._execute(sql, values).fetchall())
        # A cursor that gets the same object again knows how to make its rows: a fifth of a read by key.
        cursor = self._cursors.pop(sql, None) or psycopg.RawCursor(self)
        cursor.execute(sql, list(values) or None, prepare=_may_prepare(values), binary=True)
        rows = cursor.fetchall()
        if len(rows) <= _FEW_ROWS:  # it holds them until it is used again
            self._cursors[sql] = cursor
            if len(self._cursors) > _MOST_CURSORS:
                del self._cursors[next(iter(self._cursors))]
        return iter(rows)

    def fetch_prepared(self, sql: str, values: Sequence[object]) -> Iterator[Row]:
        if self.listened_by is None and not self.in_transaction:
            try:
                with self.lock:
                    return iter(self._fetch_prepared(sql, values))
            except errors.InvalidSqlStatementName:  # after a rollback psycopg may send DEALLOCATE ALL
                self._prepared_names.clear()
            except errors.FeatureNotSupported:
                self._forget_prepared()
            except errors.DataError:  # a time that no datetime holds comes as a number, or None
                pass
        return self.fetch_rows(sql, values)

    def _fetch_prepared(self, sql: str, values: Sequence[object]) -> list[Row]:
        # What a cursor of psycopg's does besides takes half of the client's part in a read by key.
        transformer = self._transformer
        parameters = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        types, formats = transformer.types, transformer.formats
        name = self._prepared_names.get((sql, types)) or self._prepare(sql, types)
        self.pgconn.send_query_prepared(name, parameters, formats, pq.Format.BINARY)
        result = self.wait(self._result())
        transformer.set_pgresult(result)
        rows = transformer.load_rows(0, result.ntuples, tuple)
        if len(rows) > _FEW_ROWS:
            transformer.set_pgresult(None)
        return rows

    def _prepare(self, sql: str, types: tuple[int, ...] | None) -> bytes:
        name = f"fiberstore_{next(self._numbers)}".encode()
        self.pgconn.send_prepare(name, sql.encode(), types)
        self.wait(self._result())
        self._prepared_names[sql, types] = name
        return name

    def _forget_prepared(self) -> None:
        self.begin()
        super().rollback()  # at which psycopg forgets its own
        self._prepared_names.clear()
        self._run(b"DEALLOCATE ALL")

    def _result(self) -> abc.PQGen[Any]:
        (result,) = yield from generators.execute(self.pgconn)
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result, encoding=self.info.encoding)
        return result

    @cached_property
    def _transformer(self) -> abc.Transformer:
        context = psycopg.RawCursor(self)
        context.adapters.register_loader("timestamptz", TimestamptzBinaryLoader)  # which is written in C
        return Transformer(context)

    def fetch_once(self, sql: str, values: Sequence[object]) -> list[Row]:
        """Return the rows of a statement as ``fetch_rows`` does, and keep none of them."""
        return self._execute(sql, values).fetchall()

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        written = self._execute(sql, values).written
        self.rows_written += written
        return written

    def stream_rows(self, sql: str, values: Sequence[object], batch_rows: int) -> Generator[list[Row]]:
        # It is a cursor of the server's.
        name = f"fiberstore_stream_{next(self._numbers)}"  # a transaction may read several at once
        fetch = f"FETCH {batch_rows} FROM {name}"
        with self._snapshot():
            self._execute(f"DECLARE {name} NO SCROLL CURSOR FOR {sql}", values)
            ended = self._transactions_ended
            try:
                while rows := self._execute(fetch).fetchall():
                    yield rows
                    if ended != self._transactions_ended:
                        raise psycopg.InterfaceError("the transaction of this stream has ended")
            finally:  # psycopg's own cursor would close it in whatever transaction is open by then
                is_usable = not self.closed and self.pgconn.transaction_status == pq.TransactionStatus.INTRANS
                if is_usable and ended == self._transactions_ended:
                    self._execute(f"CLOSE {name}")

    def stream_arrow(
        self, sql: str, values: Sequence[object], batch_rows: int, schema: "pa.Schema"
    ) -> Generator["pa.RecordBatch"]:
        import pyarrow as pa

        for rows in self.stream_rows(sql, values, batch_rows):
            try:
                columns = [
                    pa.array(column, pa.int64()).view(field.type)
                    if pa.types.is_timestamp(field.type)
                    else pa.array(column, field.type)
                    for field, column in zip(schema, zip(*rows, strict=True), strict=True)
                ]
            except OverflowError as error:
                raise SerializationError(
                    f"a stored config_version is outside 0 to 2**64 - 1; another client wrote it ({error})"
                ) from error
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def fetch_with_batch(self, sql: str, batch: "pa.RecordBatch") -> list[Row]:
        return self.fetch_once(sql, [batch])

    def write_with_batch(self, sql: str, batch: "pa.RecordBatch") -> int:
        return self.write(sql, [batch])

    def insert_as_made(self, table: str, batches: Iterator["pa.RecordBatch"]) -> int | None:
        first = next(batches)
        if first.num_rows < _COPY_ROWS:
            return self.insert_new(table, first)
        try:
            with self._savepoint():
                copied = self._copy(table, first.schema.names, chain([first], batches))
        except errors.UniqueViolation:
            return None
        self.rows_written += copied
        return copied

    def insert_new(self, table: str, batch: "pa.RecordBatch") -> int:
        names = ", ".join(batch.schema.names)
        sql = (
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {ARROW_TABLE} "  # noqa: S608  # our own names
            "ON CONFLICT DO NOTHING RETURNING 1"  # by which Citus counts what is inserted, not what is read
        )
        return self.write_each(sql, batch)

    def write_each(self, sql: str, batch: "pa.RecordBatch") -> int:
        parts = _parts(batch)
        with self._own_transaction() if len(parts) > 1 else nullcontext():
            return sum(self.write_with_batch(sql, part) for part in parts)

    def native_cursor(self) -> NativeCursor:
        """Return a cursor for one statement of the repositories."""
        return NativeCursor(self)

    def _execute(self, sql: str, values: Iterable[object] = ()) -> NativeCursor:
        return self._observed(sql, values) or self.native_cursor().execute(sql, values)

    def _run(self, command: bytes) -> None:
        psycopg.RawCursor(self).execute(command, prepare=False)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let a cursor of the server's, which needs a transaction, have one."""
        if self.in_transaction:
            yield
            return
        self.begin()
        try:
            yield
            self.commit()  # psycopg forgets all prepared statements at a rollback
        finally:
            self.rollback()

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        """Let an error undo this alone, and not the transaction in which it is."""
        if not self.in_transaction:
            try:
                yield
            except errors.ConnectionFailure as error:  # COPY had begun, and maybe the server has committed it
                raise errors.TransactionResolutionUnknown(str(error)) from error
            return
        self._execute("SAVEPOINT fiberstore")
        try:
            yield
        except BaseException:
            if self.pgconn.transaction_status == pq.TransactionStatus.INERROR:
                self._execute("ROLLBACK TO fiberstore")
                self._execute("RELEASE fiberstore")  # else each one that failed is kept to the end
            raise
        self._execute("RELEASE fiberstore")

    @contextmanager
    def _own_transaction(self) -> Iterator[None]:
        """Let several statements be one transaction, if none is open."""
        if self.in_transaction:
            yield
            return
        self.begin(sees_latest=True)
        try:
            yield
            self.commit()
        finally:
            self.rollback()

    def _copy(self, table: str, names: list[str], batches: "Iterable[pa.RecordBatch]") -> int:
        sql = f"COPY {table} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)"
        try:
            return self._execute(sql, batches).written
        except errors.InternalError_ as error:
            if not str(error).startswith("duplicate key value"):
                raise
            raise errors.UniqueViolation(str(error)) from error  # Citus has no code for it


def _parts(batch: "pa.RecordBatch") -> "list[pa.RecordBatch]":
    """Return a batch in parts that a statement can read."""
    if batch.nbytes <= MOST_BYTES or batch.num_rows == 1:
        return [batch]
    half = batch.num_rows // 2
    return [*_parts(batch.slice(0, half)), *_parts(batch.slice(half))]


def _may_prepare(values: Sequence[object]) -> bool | None:
    """Return None if psycopg may prepare a statement, else False.

    The plan of a prepared one may be for arrays of any length, of which it expects ten values.
    """
    is_long = any(isinstance(value, BinaryArray) and len(value) > _LONG_ARRAY_BYTES for value in values)
    return False if is_long else None


def _is_readable(socket: int) -> bool:
    if not hasattr(select, "poll"):  # on Windows
        return bool(select.select([socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


def _with_arrays(sql: str, batch: "pa.RecordBatch") -> tuple[str, list[BinaryArray]]:
    """Return a statement that reads a batch from arrays, and these."""
    if batch.nbytes > LARGEST_BYTES:
        raise SerializationError(
            f"a statement cannot take {batch.nbytes:,} bytes at once; write them in batches of less than 1 GB"
        )
    arrays = ", ".join(f"${number}::{_sql_type(field)}[]" for number, field in enumerate(batch.schema, 1))
    names = ", ".join(batch.schema.names)
    rows = f"WITH {ARROW_TABLE} ({names}) AS (SELECT * FROM unnest({arrays}))"  # noqa: S608  # our own names
    with_rows = f"{rows}, {sql.removeprefix('WITH ')}" if sql.startswith("WITH ") else f"{rows} {sql}"
    return with_rows, [
        array_of(column, _sql_type(field)) for field, column in zip(batch.schema, batch.columns, strict=True)
    ]


def _sql_type(field: "pa.Field") -> str:
    import pyarrow as pa

    if field.name in _JSON_COLUMNS:
        return "jsonb"
    if isinstance(field.type, pa.UuidType):
        return "uuid"
    if pa.types.is_timestamp(field.type):
        return "timestamptz"
    if pa.types.is_boolean(field.type):
        return "boolean"
    return "numeric" if pa.types.is_integer(field.type) else "text"


def _writes(cursor: psycopg.Cursor[TupleRow]) -> bool:
    command = (cursor.statusmessage or "").partition(" ")[0]
    return command in ("INSERT", "UPDATE", "DELETE", "MERGE", "COPY") and cursor.rowcount > 0
