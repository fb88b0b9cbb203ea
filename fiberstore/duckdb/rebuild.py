"""Tables written anew without the rows that go, which take the place of the old ones in one transaction.

While DuckDB commits the deletion of rows, nobody can read or write, some 10 µs for each row. A new table in
the place of the old one takes a tenth of that for each row that stays, and readers continue; they see the old
table until the commit, and after a crash either is there whole. What others had appended between the snapshot
and the commit would be gone with the old table, so appends are kept out before the snapshot (see
``ChangeLock``). A transaction that began to read before, and appends after, meets a conflict.

Most of a new table is written before, while everybody reads, appends and changes rows (``prepared``). The
transaction that deletes trusts nothing of it. If its rows are the ones that stay, of those up to the newest
row that was there then, by their number and the sum of their hashes, it is taken, and all later rows that
stay are added. Otherwise the table is written anew under the lock. Prepared tables have names of their own;
the next that opens the store drops those that a killed process has left.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.duckdb import sizes
from fiberstore.duckdb.fork_guard import PerDatabase
from fiberstore.duckdb.row_hash import row_hash
from fiberstore.duckdb.session_connection import duckdb_connection
from fiberstore.repositories import access
from fiberstore.repositories.query import execute_write, rows_worth_a_new_table, select_rows
from fiberstore.sql.conditions import FIBERS
from fiberstore.sql.connection import Lock, Row
from fiberstore.sql.engine import IN_MEMORY
from fiberstore.sql.holds import Hold, Registry
from fiberstore.sql.models import TABLES_BESIDE
from fiberstore.sql.prepared import compiled, connection_of, expire
from fiberstore.sql.support import FindGoing, GoingRows, Others

_logger = logging.getLogger(__name__)

_NEW = "fiberstore_anew"  # which is never committed by this name
_BEFORE_ALL = -1

_IS_HERE = "database_name = current_database() AND schema_name = current_schema() AND table_name = $1"
_TABLE = (
    "SELECT sql, comment IS NULL, "  # noqa: S608  # our own text
    f"(SELECT list(column_name ORDER BY column_index) FROM duckdb_columns() WHERE {_IS_HERE}), "
    "(SELECT count(comment) FROM duckdb_columns() WHERE table_name = $1), "
    "(SELECT count(comment) FROM duckdb_indexes() WHERE table_name = $1), "
    "(SELECT count(*) FROM duckdb_triggers() WHERE table_name = $1), "
    "(SELECT count(*) FROM duckdb_constraints() WHERE referenced_table = $1) "
    f"FROM duckdb_tables() WHERE {_IS_HERE}"
)
_INDEXES = f"SELECT sql FROM duckdb_indexes() WHERE {_IS_HERE} ORDER BY index_oid"  # noqa: S608  # our own text
_LEFT = (
    "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() "
    "AND schema_name = current_schema() AND list_contains($1, table_name)"
)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A table that has been written beside another.

    Attributes:
        table: The new table.
        statement: See ``_statement``.
        newest: ``rowid`` of the newest row that the other had.
        rows: Number of its rows.
        digest: See ``_digest``.
    """

    table: sa.TableClause
    statement: str | None
    newest: int
    rows: int
    digest: Row


class Preparations(PerDatabase):
    """The tables of a database that are prepared.

    Attributes:
        calls: The call that prepares or drops tables, then those that have come meanwhile and do not.
        tables: What it has prepared, by the thread of the call and the name of the old table.
    """

    def __init__(self) -> None:
        self.calls = Registry[Hold]()
        self.tables: dict[tuple[int, str], _Prepared] = {}

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Yield whether the block may prepare or drop tables; no other may until it ends."""
        call: Hold | None = self.calls.add(Hold())
        try:
            yield self.calls.alive()[0]() is call
        finally:
            call = None  # the traceback of an error would keep it


def delete(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """Delete rows of a table; see ``BackendSupport.delete``."""
    gone = replace(session, GoingRows(table, which))
    return execute_write(session, sa.delete(table).where(which)) if gone is None else gone


def replace(session: Session, going: GoingRows) -> int | None:
    """Put a new table in the place of one from which rows go; see ``BackendSupport.replace``."""
    connection = duckdb_connection(session)
    if not connection.writes_alone:
        return None
    known = _verified(session, going)
    if known is None and not _is_worth_it(session, going):
        return None
    before = connection.rows_written
    fewer = _put_in_place(session, going, known)
    connection.rows_written = before + fewer  # the others are as they were
    return fewer


@contextmanager
def prepared(session: Session, find: FindGoing) -> Iterator[None]:
    """Write tables without the rows that go for ``delete``; see ``BackendSupport.prepared``.

    One call does so at a time; another does all its work under the lock.
    """
    connection = duckdb_connection(session)
    preparations, thread = Preparations.of(connection.database_key), threading.get_ident()
    with preparations.turn() as is_mine:
        if not is_mine or connection.listened_by is not None:
            yield
            return
        try:
            _drop_left(session)
            connection.begin()
            connection.take_lock(Lock.BESIDE)
            with find(session) as parts:
                found = {(thread, part.table.name): _prepare(session, part) for part in parts}
            connection.commit()
            preparations.tables = {key: table for key, table in found.items() if table is not None}
            yield
        finally:
            preparations.tables = {}
            connection.rollback()
            _drop_left(session)


def drop_leftovers(session: Session) -> None:
    """Drop the tables that a killed process has prepared, if the connection may write."""
    connection = duckdb_connection(session)
    if connection.is_read_only:
        return
    preparations = Preparations.of(connection.database_key)
    with preparations.turn() as is_mine:
        if is_mine:
            _drop_left(session)


def _drop_left(session: Session) -> None:
    connection = connection_of(session)
    try:
        for (name,) in list(connection.fetch_rows(_LEFT, [list(TABLES_BESIDE.values())])):
            connection.write(f"DROP TABLE IF EXISTS {name}")
    except duckdb.Error as error:  # the call has ended as it has
        _logger.warning("a table that was written beside another is left for the next to drop: %s", error)


def has_room(session: Session) -> bool:
    """Tell whether the disk has room for the file once more; see ``BackendSupport.has_room``."""
    database = duckdb_connection(session).database_key
    return database.startswith(IN_MEMORY) or sizes.has_room(database)


def _is_worth_it(session: Session, going: GoingRows) -> bool:
    # A place in the order of fibers is known by a row that may move, see `arrival_order`.
    return (
        going.table is not FIBERS
        and rows_worth_a_new_table(session, going.table, going.which) >= access.MANY_ROWS
        and _statement(session, going.table) is not None
        and has_room(session)
    )


def _statement(session: Session, table: sa.Table) -> str | None:
    """Return the statement that has created a table, without its head.

    Returns:
        None if it would not make all of the table: an application has given it columns, comments or triggers,
        or refers to it by a foreign key.
    """
    ((sql, is_plain, names, *additions),) = connection_of(session).fetch_rows(_TABLE, [table.name])
    head = f"CREATE TABLE {table.name}("
    is_ours = is_plain and names == [column.name for column in table.c] and not any(additions)
    return sql.removeprefix(head) if is_ours and sql.startswith(head) else None


def _prepare(session: Session, going: GoingRows) -> _Prepared | None:
    if not _is_worth_it(session, going):
        return None
    table = going.table
    ((newest,),) = select_rows(session, sa.select(sa.func.max(_rowid_of(table))).select_from(table))
    new = _create(session, table, TABLES_BESIDE[table.name])
    rows = _fill(session, new, going, _BEFORE_ALL)
    return _Prepared(new, _statement(session, table), newest, rows, _digest(session, going, newest))


def _verified(session: Session, going: GoingRows) -> _Prepared | None:
    """Return the table that this call has prepared, if it has the right ones of the rows of then."""
    tables = Preparations.of(duckdb_connection(session).database_key).tables
    known = tables.get((threading.get_ident(), going.table.name))
    if (
        known is None
        or known.statement != _statement(session, going.table)
        or known.digest != _digest(session, going, known.newest)
        or _is_there(session, known, going)
    ):
        return None
    return known


def _is_there(session: Session, known: _Prepared, going: GoingRows) -> bool:
    """Tell whether a later row would be made one with a row of the prepared table."""
    if going.others is None:
        return False
    later = going.others(_rowid_of(going.table) > known.newest).rows.subquery("later")
    keys = [column.name for column in going.table.primary_key]
    same = sa.and_(*(later.c[key] == known.table.c[key] for key in keys))
    ((rows,),) = select_rows(session, sa.select(sa.func.count()).select_from(later.join(known.table, same)))
    return bool(rows)


def _put_in_place(session: Session, going: GoingRows, known: _Prepared | None) -> int:
    """Put the new table in the place of the old one; return how many rows fewer it has."""
    connection, table = connection_of(session), going.table
    indexes = [sql for (sql,) in connection.fetch_rows(_INDEXES, [table.name])]
    ((rows,),) = select_rows(session, sa.select(sa.func.count()).select_from(table))
    if known is None:
        new, newest, written = _create(session, table, _NEW), _BEFORE_ALL, 0
    else:
        new, newest, written = known.table, known.newest, known.rows
    written += _fill(session, new, going, newest)
    connection.write(f"DROP TABLE {table.name}")
    connection.write(f"ALTER TABLE {new.name} RENAME TO {table.name}")
    for sql in indexes:
        connection.write(sql)
    expire(session)
    return int(rows - written)


def _create(session: Session, table: sa.Table, name: str) -> sa.TableClause:
    """Create an empty table with the columns and the primary key of another."""
    connection_of(session).write(f"CREATE TABLE {name}({_statement(session, table)}")
    return sa.table(name, *(sa.column(column.name) for column in table.c))


def _fill(session: Session, new: sa.TableClause, going: GoingRows, after: int) -> int:
    """Insert the rows that are made of those after a ``rowid``; return how many they are."""
    table = going.table
    # The order in which rows were stored is that of `rowid`, see `arrival_order`.
    rowid = _rowid_of(table)
    others = _others(going, rowid > after)
    rows: sa.Select[Any] = others.rows if going.others is not None else others.rows.order_by(rowid)
    return connection_of(session).write(*compiled(session, sa.insert(new).from_select(table.c.keys(), rows)))


def _others(going: GoingRows, some: sa.ColumnElement[bool]) -> Others:
    if going.others is not None:
        return going.others(some)
    rows: sa.Select[Any] = sa.select(*going.table.c).where(going.which.is_not(sa.true()), some)
    return Others(rows.subquery("others"), rows)


def _digest(session: Session, going: GoingRows, newest: int) -> Row:
    """Return the number and the sum of hashes of what the new table depends on, up to a ``rowid``."""
    source = _others(going, _rowid_of(going.table) <= newest).source
    each: sa.ColumnElement[int] = sa.literal_column(row_hash(source.c))
    sums: list[sa.ColumnElement[Any]] = [sa.func.count(), sa.func.sum(each)]
    (digest,) = select_rows(session, sa.select(*sums).select_from(source))
    return digest


def _rowid_of(table: sa.Table) -> sa.ColumnElement[int]:
    return sa.literal_column(f"{table.name}.rowid", sa.BigInteger)
