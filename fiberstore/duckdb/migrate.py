"""Migrations of a DuckDB file, with a backup before those that rewrite data."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import sqlalchemy as sa

from fiberstore.duckdb.backup import write_backup
from fiberstore.sql import migrate
from fiberstore.sql.engine import IN_MEMORY

if TYPE_CHECKING:
    from fiberstore.duckdb.connection import DuckDBConnection


def back_up_before_rewrite(connection: sa.Connection) -> Path | None:
    """Copy the database, if a migration is pending that rewrites rows.

    Args:
        connection: One outside a transaction.

    Returns:
        The copy, beside the database: its name and ``.before-``, the newest revision and the time. None if
        there is no need of one, or the database is in memory.

    Raises:
        DatabaseError: The copy cannot be written; the database should be left as it is.
    """
    database = connection.engine.url.database or ""
    if database.startswith(IN_MEMORY) or not migrate.rewrites_rows(connection):
        return None
    copy = Path(f"{database}.before-{migrate.head()}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    write_backup(cast("DuckDBConnection", connection.connection.dbapi_connection), copy)
    return copy
