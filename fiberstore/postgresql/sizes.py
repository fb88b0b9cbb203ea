"""Sizes of the tables.

PostgreSQL keeps the space of deleted rows for new ones, and does not tell how much that is. So what is in use
is estimated from the rows that are there.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.postgresql.citus import has_citus
from fiberstore.repositories.query import select_rows
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS
from fiberstore.sql.connection import StoreConnection
from fiberstore.sql.prepared import connection_of
from fiberstore.sql.support import StoreSize

_BLOCK_BYTES = 8_192
_TABLES = (LOGS, FIBERS, MEMBERSHIPS)
# Beside its columns, a row takes a pointer, and entries in two to four indexes that are full to two thirds:
# 88 to 104 bytes for each row of the three tables were measured on PostgreSQL 18.
_OVERHEAD_BYTES = 100


_SIZE = "pg_total_relation_size(name)"
# Of a distributed table, what lies on the coordinator is empty.
_SIZE_BY_CITUS = (
    "CASE WHEN name IN (SELECT logicalrelid FROM pg_dist_partition) "  # noqa: S608  # our own text
    f"THEN citus_total_relation_size(name) ELSE {_SIZE} END"
)


def table_bytes(connection: StoreConnection, tables: Sequence[str]) -> int:
    """Return the size of tables with their indexes, on whatever nodes of Citus they are."""
    size = _SIZE_BY_CITUS if has_citus(connection) else _SIZE
    sql = f"SELECT coalesce(sum({size}), 0)::bigint FROM unnest($1::text[]::regclass[]) AS name"  # noqa: S608  # our own text
    ((size_bytes,),) = connection.fetch_rows(sql, [list(tables)])
    return int(size_bytes)


def size_of(session: Session) -> StoreSize:
    """Return the size of the three tables with their indexes."""
    used: sa.ColumnElement[Any] = sa.literal_column("0", sa.BigInteger)
    for table in _TABLES:
        columns = sa.func.coalesce(
            sa.func.sum(sa.func.pg_column_size(sa.literal_column(f"{table.name}.*"))), 0
        )
        used += sa.select(columns + _OVERHEAD_BYTES * sa.func.count()).select_from(table).scalar_subquery()
    ((used_bytes,),) = select_rows(session, sa.select(used))
    file_bytes = table_bytes(connection_of(session), [table.name for table in _TABLES])
    used_bytes = min(int(used_bytes), file_bytes)
    return StoreSize(file_bytes, used_bytes, file_bytes - used_bytes, _BLOCK_BYTES)


def settle(session: Session) -> None:
    """Do nothing: ``size_of`` asks the rows."""
    del session


def kept_rows(session: Session) -> dict[str, int]:
    """Return no rows: those that are there are what counts."""
    del session
    return {table.name: 0 for table in _TABLES}
