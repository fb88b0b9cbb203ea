"""The common part of queries of logs, fibers and memberships: conditions, counts, streams."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import SelectBase
from sqlalchemy.sql.visitors import iterate

from fiberstore.checks import check_number
from fiberstore.contract.conditions import Condition, checked_condition, compared_as_lists
from fiberstore.contract.queries import ARROW_BATCH_ROWS, Partition, Query, R
from fiberstore.contract.results import Deleted
from fiberstore.errors import ConflictError
from fiberstore.records import from_epoch_us
from fiberstore.repositories import access
from fiberstore.repositories.access import Going, SessionAccess, session_access
from fiberstore.sql.arrow import joined_uuids
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS, all_of
from fiberstore.sql.connection import Lock
from fiberstore.sql.models import BELONGINGS, MERGES
from fiberstore.sql.prepared import compiled, connection_of, expire
from fiberstore.sql.rows import columns_in_us, to_records
from fiberstore.sql.support import GoingRows, KeptIds

if TYPE_CHECKING:
    import pyarrow as pa

    from fiberstore.exchange.schemas import Kind
    from fiberstore.exchange.writing import SortKey

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 2_048
_EXPORT_BATCH_ROWS = 4_096  # lines may be long


def select_rows(session: Session, statement: sa.Select[Any]) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a statement that is made for one call, to be read before the next statement."""
    return connection_of(session).fetch_rows(*compiled(session, statement))


def count_up_to(session: Session, rows: sa.Select[Any], most: int) -> int:
    """Count the rows of a statement, up to a number."""
    ((number,),) = select_rows(session, _counted(rows, most))
    return int(number)


def _counted(rows: sa.Select[Any], most: int) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(rows.limit(most).subquery())


def execute_write(session: Session, statement: sa.Executable) -> int:
    """Run a statement that writes, and return how many rows it has written."""
    rows = connection_of(session).write(*compiled(session, statement))
    expire(session)
    return rows


def delete(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """Delete the rows of a table of which a condition is true; return how many they were."""
    return execute_write(session, sa.delete(table).where(which))


def delete_rows(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """Do the same as the engine does it best; see ``BackendSupport.delete``."""
    return connection_of(session).support.delete(session, table, which)


def rows_worth_a_new_table(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """Count the rows that go; return 0 if so few do that a table without them takes longer to write."""
    counts: list[sa.ColumnElement[Any]] = [sa.func.count(), sa.func.count().filter(which)]
    numbers = sa.select(*counts).select_from(table)
    ((rows, going),) = select_rows(session, numbers)
    return int(going) if going >= access.LEAST_SHARE * rows else 0


def belongings_of(
    are_going: Callable[[sa.ColumnElement[Any]], sa.ColumnElement[bool]],
) -> Iterator[GoingRows]:
    """Return the rows that belong to fibers and go with them, except for their memberships.

    Args:
        are_going: Makes of a column the condition that it has the id of one of the fibers.
    """
    yield GoingRows(MERGES, sa.or_(are_going(MERGES.c.fiber_id), are_going(MERGES.c.survivor_id)))
    for table in BELONGINGS:
        yield GoingRows(table, are_going(table.c.fiber_id))


@contextmanager
def kept_ids(session: Session, ids: sa.Select[Any]) -> Iterator[KeptIds]:
    """Keep the ids that a statement selects, for a block that changes what the statement depends on.

    The transaction of the session has to be open.
    """
    with connection_of(session).support.keep(session, ids) as kept:
        yield kept


@contextmanager
def given(session: Session, name: str, ids: bytes) -> Iterator[KeptIds]:
    """Keep ids for a block, in an open transaction.

    Args:
        session: Where the transaction is open.
        name: ``"fiber_id"`` or ``"log_id"``; one block for each may be open at once.
        ids: All of them, joined.
    """
    with connection_of(session).support.given(session, {name: joined_uuids(ids)}) as kept:
        yield kept


@contextmanager
def one_snapshot(session: Session) -> Iterator[None]:
    """Let all statements of the block see the same; in a transaction they do anyway."""
    connection = connection_of(session)
    if connection.in_transaction:
        yield
        return
    connection.begin()
    try:
        yield
        connection.commit()  # psycopg forgets all prepared statements at a rollback
    finally:
        connection.rollback()


def as_arrow(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the column as text, if it is of a type that Arrow does not have."""
    is_foreign = isinstance(column.type, sa.Uuid | sa.JSON)
    return sa.cast(column, sa.String).label(column.key) if is_foreign else column


class SqlQuery(Query[R], Generic[R]):
    """A query on one table; as it is made, of all its rows.

    Args:
        session: One that the caller owns, or the session factory of a storage.
    """

    _record: type[R]
    _table: ClassVar[sa.FromClause]
    _name: ClassVar[str]
    _delete_lock: ClassVar = Lock.CHANGES  # of deletion by conditions on columns of the table alone

    def __init__(self, session: Session | SessionAccess) -> None:
        self._sessions = session_access(session)
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
            statement = _counted(self._select(sa.literal(1).label("one")), at_most)
        with self._read("count") as session:
            ((number,),) = select_rows(session, statement)
            if not number and at_most != 0:
                self._warn_of_lists(session)
        return int(number)

    def iter_records(self) -> Iterator[R]:
        with closing(self._sessions.stream(f"{self._name}.iter_records", self._record_batches())) as batches:
            for records in batches:
                yield from records

    def to_arrow(self, batch_rows: int = ARROW_BATCH_ROWS) -> "pa.RecordBatchReader":
        from fiberstore.exchange import closing_reader, schema_of

        check_number("batch_rows", batch_rows, least=1)
        batches = self._sessions.stream(f"{self._name}.to_arrow", self._batches(None, batch_rows))
        return closing_reader(schema_of(self._record), batches)

    def export(
        self,
        path: str | Path,
        *,
        partition_by: Partition | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> int:
        from fiberstore.exchange import write_records

        self._check_partition(partition_by)
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

    def _check_partition(self, partition_by: Partition | None) -> None:
        """Raise ``ValueError`` unless the query has an order by which its file can be split."""

    def delete(self) -> Deleted:
        going = Going(self._count_to_delete, self._going)
        asks_others = any(
            isinstance(part, SelectBase) for own in all_of(self._conditions) for part in iterate(own)
        )
        lock, delete = (
            (Lock.CHANGES, self._delete) if asks_others else (self._delete_lock, self._delete_beside)
        )
        return self._sessions.write(f"{self._name}.delete", delete, lock=lock, going=going)

    def __repr__(self) -> str:
        conditions = ", ".join(map(repr, self._conditions))
        return f"{self._name}.where({conditions})" if conditions else self._name

    def _select(self, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        return sa.select(*columns).select_from(self._table).where(*all_of(self._conditions))

    def _columns(self) -> list[sa.ColumnElement[Any]]:
        """Return the columns that ``_records`` needs."""
        return columns_in_us(self._record, self._table)

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[R]:
        """Make records of rows that begin with ``_columns``."""
        return to_records(self._record, rows, from_epoch_us)

    def _warn_of_lists(self, session: Session) -> None:
        """Warn that a query that found nothing has compared lists with values, which are never equal."""
        turned = [compared_as_lists(condition) for condition in self._conditions]
        compared = [part for _, parts in turned for part in parts]
        if not compared:
            return
        query = copy(self)
        query._conditions = tuple(condition for condition, _ in turned)
        ((rows,),) = select_rows(session, query._select(sa.func.count()))
        if rows:
            first = compared[0]
            _logger.warning(
                "nothing is found: %r is true of no list, and %d of the %s would be found by lists there; "
                "write attributes[%r].contains(…) for an item of a list, keys[…] == … for a key",
                first,
                rows,
                self._name,
                first.pointer,
            )

    def _read(self, method: str | None) -> AbstractContextManager[Session]:
        return self._sessions.read(None if method is None else f"{self._name}.{method}")

    def _change(self, method: str, work: Callable[[Session], T]) -> T:
        return self._sessions.write(f"{self._name}.{method}", work)

    def _record_batches(self) -> Generator[list[R]]:
        statement = self._ordered(self._select(*self._columns()))
        with self._read(None) as session:
            connection = connection_of(session)
            batches = connection.stream_rows(*compiled(session, statement), _ROWS_AT_ONCE)
            is_empty = True
            with closing(batches):
                for rows in batches:
                    is_empty = False
                    yield self._records(rows)
            if is_empty:
                self._warn_of_lists(session)

    def _batches(self, method: str | None, batch_rows: int) -> "Generator[pa.RecordBatch]":
        from fiberstore.exchange.schemas import schema_of

        names = schema_of(self._record).names
        statement = self._ordered(self._select(*(as_arrow(self._table.c[name]) for name in names)))
        return self._stream(method, statement, self._record, batch_rows)

    def _stream(
        self, method: str | None, statement: sa.Select[Any], kind: "Kind", batch_rows: int | None = None
    ) -> "Generator[pa.RecordBatch]":
        """Yield the rows of a statement as batches of a kind of records."""
        from fiberstore.exchange.schemas import as_stored, schema_of

        with self._read(method) as session:
            connection = connection_of(session)
            rows = batch_rows or _EXPORT_BATCH_ROWS
            batches = connection.stream_arrow(*compiled(session, statement), rows, schema_of(kind))
            with closing(batches):
                for batch in batches:
                    yield as_stored(batch, kind)

    def _count_to_delete(self, session: Session) -> int:
        """Count the rows of the table that go, up to ``MANY_ROWS``; memberships of logs are about as many."""
        return count_up_to(session, self._select(sa.literal(1).label("one")), access.MANY_ROWS)

    def _delete(self, session: Session) -> Deleted:
        with self._going(session) as going:
            gone = {table: delete_rows(session, table, which) for table, which, _ in going}
        return Deleted(*(gone.get(table, 0) for table in (LOGS, FIBERS, MEMBERSHIPS)))

    def _delete_beside(self, session: Session) -> Deleted:
        """Do the same by conditions on the rows alone, while others may change other rows."""
        return self._delete(session)

    def _delete_found(self, session: Session, ids: KeptIds, id_: sa.Column[UUID]) -> int:
        """Delete the rows that the query has found, if it still finds them; return their number.

        Raises:
            ConflictError: One has been changed or deleted since.
        """
        ((found,),) = select_rows(session, sa.select(sa.func.count()).select_from(ids.rows))
        which = sa.and_(ids.hold(id_), *all_of(self._conditions))
        gone = delete_rows(session, id_.table, which)
        if gone < found:
            raise ConflictError(f"another transaction has changed {self._name} that were to be deleted")
        return gone

    @abstractmethod
    def _going(self, session: Session) -> AbstractContextManager[Iterable[GoingRows]]:
        """Find what is deleted, in an open transaction: the rows of the query, and what goes with them."""

    @abstractmethod
    def _ordered(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """Return the statement in the order of the query."""

    @abstractmethod
    def _sort_keys(self) -> "Sequence[SortKey]":
        """Return the columns that the order goes by; none if it goes by what is no column."""
