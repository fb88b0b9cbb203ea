"""What queries of logs, fibers and memberships have in common: conditions, counts, streams."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable, DropTable

from fiberstore.checks import check_number
from fiberstore.contract.conditions import Condition, checked_condition
from fiberstore.contract.queries import ARROW_BATCH_ROWS, Deleted, Partition, Query, R
from fiberstore.sql.bulk import expire, write_ids
from fiberstore.sql.conditions import all_of
from fiberstore.sql.connection import Connection
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.sql.translate import translate_errors

if TYPE_CHECKING:
    import pyarrow as pa

    from fiberstore.exchange.writing import SortKey

T = TypeVar("T")

Reading: TypeAlias = Callable[[str | None], AbstractContextManager[Session | Connection]]
"""Gives what a method of that name reads with; at the end of the block, that is given back.

Without a name, it is for a part of a call that is counted already.
"""


class Streaming(Protocol):
    """Counts the parts that a generator yields as one call of a method of that name."""

    def __call__(self, method: str, parts: Generator[T], /) -> Generator[T]:
        """Return a generator of the same parts, which closes the other."""


class Changing(Protocol):
    """Does what a method of that name changes, in one transaction, and translates errors.

    Where the transaction is its own, it does it again after a conflict.
    """

    def __call__(self, method: str, work: Callable[[Session | Connection], T]) -> T:
        """Do it, and return what it returns."""


_ROWS_AT_ONCE = 2_048
_EXPORT_BATCH_ROWS = 4_096  # lines may be long


def uncounted(_method: str, parts: Generator[T]) -> Generator[T]:
    """Return the parts of a stream in a transaction, which is a call itself."""
    return parts


def bound_to(session: Session | Connection) -> tuple[Reading, Changing]:
    """Return what reads and changes within the transaction of a session that the caller owns."""

    def changing(method: str, work: Callable[[Session | Connection], T]) -> T:
        del method
        with translate_errors():
            return work(session)

    def reading(_method: str | None) -> AbstractContextManager[Session | Connection]:
        return nullcontext(session)

    return reading, changing


def select_rows(session: Session | Connection, statement: sa.Select[Any]) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a statement that is made for one call, to be read before the next statement."""
    return connection_of(session).fetch_rows(*compiled(session, statement))


def written(session: Session | Connection, statement: sa.Executable) -> int:
    """Run a statement that writes, and return how many rows it has written."""
    rows = connection_of(session).write(*compiled(session, statement))
    expire(session)
    return rows


@contextmanager
def chosen(session: Session | Connection, ids: sa.Select[Any]) -> Iterator[sa.Select[Any]]:
    """Keep the ids that a statement selects, for a block that changes what the statement depends on.

    Yields:
        A statement that selects them, whatever happens to the tables. Its transaction has to be open.
    """
    (column,) = ids.selected_columns
    (column,) = ids.selected_columns
    with _temporary_table(session, "fiberstore_chosen", sa.Column(column.key, column.type)) as kept:
        connection_of(session).write(*compiled(session, sa.insert(kept).from_select(kept.c.keys(), ids)))
        yield sa.select(*kept.c)


@contextmanager
def given(session: Session | Connection, name: str, ids: bytes) -> Iterator[sa.Select[Any]]:
    """Keep ids for a block, in an open transaction.

    Args:
        session: Where the transaction is open.
        name: ``"fiber_id"`` or ``"log_id"``; one block for each may be open at once.
        ids: All of them, joined.

    Yields:
        A statement that selects them.
    """
    with _temporary_table(session, "fiberstore_given", sa.Column(name, sa.Uuid)) as kept:
        write_ids(session, kept.fullname, name, ids)
        yield sa.select(*kept.c)


@contextmanager
def _temporary_table(
    session: Session | Connection, prefix: str, column: sa.Column[Any]
) -> Iterator[sa.Table]:
    name = f"{prefix}_{column.name}"  # so that ids of fibers and of logs can be kept at once
    connection = connection_of(session)
    # PostgreSQL looks for temporary tables where the search path says; DuckDB always looks for them first.
    schema = "pg_temp" if connection.engine_name == "postgresql" else None
    kept = sa.Table(name, sa.MetaData(), column, prefixes=["TEMPORARY"], schema=schema)
    connection.write(_ddl(connection, CreateTable(kept)))
    yield kept
    connection.write(_ddl(connection, DropTable(kept)))  # a rollback drops it too


@contextmanager
def one_snapshot(session: Session | Connection) -> Iterator[None]:
    """Let all statements of the block see the same; in a transaction they do anyway."""
    if isinstance(session, Connection) and not session.in_transaction:
        session.begin()
        try:
            yield
            session.commit()  # psycopg forgets all prepared statements at a rollback
        finally:
            session.rollback()
    else:
        yield


def _ddl(connection: Connection, statement: sa.DDLElement) -> str:
    return str(statement.compile(dialect=connection.statement_dialect))


def _as_arrow(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the column as text, if it is of a type that Arrow does not have."""
    is_foreign = isinstance(column.type, sa.Uuid | sa.JSON)
    return sa.cast(column, sa.String).label(column.key) if is_foreign else column


class SqlQuery(Query[R], Generic[R]):
    """A query on one table.

    Args:
        reading: Gives what its methods read with.
        changing: Does what its methods change.
        streaming: Counts what its methods stream.
    """

    _record: type[R]
    _table: ClassVar[sa.FromClause]
    _name: ClassVar[str]

    def __init__(self, reading: Reading, changing: Changing, streaming: Streaming = uncounted) -> None:
        self._reading = reading
        self._changing = changing
        self._streaming = streaming
        self._conditions: tuple[Condition[R], ...] = ()

    def where(self, *conditions: Condition[R]) -> Self:
        query = copy(self)
        query._conditions += tuple(checked_condition(condition, self._record) for condition in conditions)
        return query

    def count(self, at_most: int | None = None) -> int:
        if at_most is None:
            statement = self._select(sa.func.count())
        else:
            check_number("at_most", at_most)
            some = self._select(sa.literal(1).label("one")).limit(at_most).subquery()
            statement = sa.select(sa.func.count()).select_from(some)
        with self._asking("count") as session:
            ((number,),) = select_rows(session, statement)
        return int(number)

    def iter_records(self) -> Iterator[R]:
        with closing(self._streaming(f"{self._name}.iter_records", self._record_batches())) as batches:
            for records in batches:
                yield from records

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> "pa.RecordBatchReader":
        from fiberstore.exchange import closing_reader, schema_of

        check_number("batch_rows", batch_rows, least=1)
        batches = self._streaming(f"{self._name}.to_arrow", self._batches(None, batch_rows))
        return closing_reader(schema_of(self._record), batches)

    def export(
        self,
        path: str | Path,
        *,
        partition_by: Partition | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> int:
        from fiberstore.exchange import write_records

        batches = self._batches("export", _EXPORT_BATCH_ROWS)
        with closing(batches):
            return write_records(
                batches,
                self._record,
                path,
                sorted_by=self._sort_keys(),
                partition_by=partition_by,
                on_rows=on_rows,
            )

    def delete(self) -> Deleted:
        return self._change("delete", self._delete)

    def __repr__(self) -> str:
        conditions = ", ".join(map(repr, self._conditions))
        return f"{self._name}.where({conditions})" if conditions else self._name

    def _select(self, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        return sa.select(*columns).select_from(self._table).where(*all_of(self._conditions))

    @contextmanager
    def _asking(self, method: str | None) -> Iterator[Session | Connection]:
        name = None if method is None else f"{self._name}.{method}"
        with self._reading(name) as session, translate_errors():
            yield session

    def _change(self, method: str, work: Callable[[Session | Connection], T]) -> T:
        return self._changing(f"{self._name}.{method}", work)

    def _record_batches(self) -> Generator[list[R]]:
        statement = self._ordered(self._select(*self._columns()))
        with self._asking(None) as session:
            connection = connection_of(session)
            batches = connection.stream_rows(*compiled(session, statement), _ROWS_AT_ONCE)
            with closing(batches):
                for rows in batches:
                    yield self._records(rows)

    def _batches(self, method: str | None, batch_rows: int) -> "Generator[pa.RecordBatch]":
        from fiberstore.exchange.schemas import as_stored, schema_of

        schema = schema_of(self._record)
        statement = self._ordered(self._select(*(_as_arrow(self._table.c[name]) for name in schema.names)))
        with self._asking(method) as session:
            connection = connection_of(session)
            batches = connection.stream_arrow(*compiled(session, statement), batch_rows, schema)
            with closing(batches):
                for batch in batches:
                    yield as_stored(batch, self._record)

    @abstractmethod
    def _delete(self, session: Session | Connection) -> Deleted:
        """Delete everything, in an open transaction."""

    @abstractmethod
    def _columns(self) -> Sequence[sa.ColumnElement[Any]]:
        """Return what ``_records`` needs."""

    @abstractmethod
    def _ordered(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """Return the statement in the order of the query."""

    @abstractmethod
    def _sort_keys(self) -> "Sequence[SortKey]":
        """Return the columns that the order goes by; none if it goes by what is no column."""

    @abstractmethod
    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[R]:
        """Make records of rows of ``_columns``."""
