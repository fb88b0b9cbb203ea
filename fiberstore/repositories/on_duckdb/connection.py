"""DuckDB's own connection."""

from typing import cast

from sqlalchemy.orm import Session

from fiberstore.duckdb.connection import Connection
from fiberstore.sql.prepared import connection_of


def duckdb_connection(session: Session) -> Connection:
    """Return the connection of a session that is known to be on DuckDB."""
    return cast("Connection", connection_of(session))
