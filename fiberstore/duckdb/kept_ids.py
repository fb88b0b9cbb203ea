"""Ids that are kept for a block in a temporary table."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable, DropTable

from fiberstore.sql.arrow import Columns, batch_of
from fiberstore.sql.connection import ARROW_TABLE, StoreConnection
from fiberstore.sql.prepared import compiled, connection_of
from fiberstore.sql.support import KeptIds


@contextmanager
def keep(session: Session, rows: sa.Select[Any]) -> Iterator[KeptIds]:
    """Keep rows of ids; see ``BackendSupport.keep``."""
    with _table(session, "fiberstore_chosen", *(str(column.key) for column in rows.selected_columns)) as kept:
        with _uncounted(connection_of(session)) as connection:
            connection.write(*compiled(session, sa.insert(kept).from_select(kept.c.keys(), rows)))
        yield _ids_of(kept)


@contextmanager
def given(session: Session, ids: Columns) -> Iterator[KeptIds]:
    """Give ids; see ``BackendSupport.given``."""
    with _table(session, "fiberstore_given", *ids) as kept:
        names = ", ".join(ids)
        sql = f"INSERT INTO {kept.name} ({names}) SELECT {names} FROM {ARROW_TABLE}"  # noqa: S608  # our own names
        with _uncounted(connection_of(session)) as connection:
            connection.write_with_batch(sql, batch_of(ids))
        yield _ids_of(kept)


def _ids_of(kept: sa.Table) -> KeptIds:
    return KeptIds(kept, lambda column: column.in_(sa.select(kept.c[0])))


@contextmanager
def _table(session: Session, prefix: str, *names: str) -> Iterator[sa.Table]:
    kept = _made(f"{prefix}_{names[0]}", names)  # so that ids of fibers and of logs can be kept at once
    connection = connection_of(session)
    connection.write(_ddl(connection, CreateTable(kept)))
    yield kept
    connection.write(_ddl(connection, DropTable(kept)))  # a rollback drops it too


@contextmanager
def _uncounted(connection: StoreConnection) -> Iterator[StoreConnection]:
    """Let rows be written for a block that are none of the store's."""
    before = connection.rows_written
    yield connection
    connection.rows_written = before


@lru_cache(50)
def _made(table: str, names: tuple[str, ...]) -> sa.Table:
    """Return the same table for the same columns, so that its statements are compiled once."""
    columns = [sa.Column(name, sa.Uuid) for name in names]
    return sa.Table(table, sa.MetaData(), *columns, prefixes=["TEMPORARY"])


def _ddl(connection: StoreConnection, statement: sa.DDLElement) -> str:
    return str(statement.compile(dialect=connection.statement_dialect))
