"""DuckDB's own connection."""

from typing import TYPE_CHECKING, cast

from sqlalchemy.orm import Session

from fiberstore.sql.prepared import connection_of

if TYPE_CHECKING:
    from fiberstore.duckdb.connection import DuckDBConnection


def duckdb_connection(session: Session) -> "DuckDBConnection":
    """Return the connection of a session that is known to be on DuckDB."""
    return cast("DuckDBConnection", connection_of(session))
