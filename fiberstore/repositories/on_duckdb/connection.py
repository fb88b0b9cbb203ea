"""DuckDB's own connection."""

from typing import cast

from sqlalchemy.orm import Session

from fiberstore import connections
from fiberstore.dbapi import Connection
from fiberstore.prepared import connection_of


def duckdb_connection(session: Session | connections.Connection) -> Connection:
    """Return the connection of a session that is known to be on DuckDB."""
    return cast("Connection", connection_of(session))
