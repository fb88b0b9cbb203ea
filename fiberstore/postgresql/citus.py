"""Citus: several servers, whose coordinator answers as one PostgreSQL."""

from fiberstore.sql.connection import StoreConnection


def has_citus(connection: StoreConnection) -> bool:
    """Return whether the database is a coordinator's, or a worker's."""
    return bool(list(connection.fetch_rows("SELECT 1 FROM pg_extension WHERE extname = 'citus'", ())))
