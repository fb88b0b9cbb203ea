"""A table written anew without the rows that go, in the transaction that deletes them.

While DuckDB commits the deletion of rows, nobody can read or write, some 10 µs for each row. A new table in
the place of the old one takes a tenth of that for each row that stays, and readers continue; they see the old
table until the commit, and after a crash either is there whole. What others had appended between the snapshot
and the commit would be gone with the old table, so appends are kept out before the snapshot (see
``ChangeLock``). A transaction that began to read before, and appends after, meets a conflict.
"""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.duckdb.session_connection import duckdb_connection
from fiberstore.repositories import access
from fiberstore.repositories.query import execute_write, rows_worth_a_new_table
from fiberstore.sql.conditions import FIBERS
from fiberstore.sql.prepared import compiled, connection_of, expire

_NEW = "fiberstore_anew"

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


def delete(session: Session, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """Delete rows of a table; see ``BackendSupport.delete``."""
    # A place in the order of fibers is known by a row that may move, see `arrival_order`.
    if table is not FIBERS and duckdb_connection(session).writes_alone:
        going = rows_worth_a_new_table(session, table, which)
        if going >= access.MANY_ROWS and (creation := _creation(session, table)):
            before = connection_of(session).rows_written
            _write_anew(session, table, which, creation)
            connection_of(session).rows_written = before + going  # the others are as they were
            return going
    return execute_write(session, sa.delete(table).where(which))


def _creation(session: Session, table: sa.Table) -> str | None:
    """Return the statement that creates the table by its new name.

    Returns:
        None if an application has given the table columns, comments or triggers, or refers to it by a foreign
        key: a new table would be without them.
    """
    found = connection_of(session).fetch_rows(_TABLE, [table.name])
    ((sql, is_plain, names, *additions),) = found
    head = f"CREATE TABLE {table.name}("
    is_ours = is_plain and names == [column.name for column in table.c] and not any(additions)
    if not is_ours or not sql.startswith(head):
        return None
    return f"CREATE TABLE {_NEW}({sql.removeprefix(head)}"


def _write_anew(session: Session, table: sa.Table, which: sa.ColumnElement[bool], creation: str) -> None:
    connection = connection_of(session)
    indexes = [sql for (sql,) in connection.fetch_rows(_INDEXES, [table.name])]
    # The order in which rows were stored is that of `rowid`, see `arrival_order`.
    rowid: sa.ColumnElement[int] = sa.literal_column(f"{table.name}.rowid", sa.BigInteger)
    stays = sa.select(*table.c).where(which.is_not(sa.true())).order_by(rowid)
    new = sa.table(_NEW, *(sa.column(column.name) for column in table.c))
    connection.write(creation)
    connection.write(*compiled(session, sa.insert(new).from_select(table.c.keys(), stays)))
    connection.write(f"DROP TABLE {table.name}")
    connection.write(f"ALTER TABLE {_NEW} RENAME TO {table.name}")
    for sql in indexes:
        connection.write(sql)
    expire(session)
