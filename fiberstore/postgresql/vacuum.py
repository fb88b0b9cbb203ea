"""Tables written anew, without what was deleted from them."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.errors import Diagnostic

from fiberstore.contract.results import Compacted
from fiberstore.errors import DatabaseError
from fiberstore.postgresql.connection import PostgresConnection
from fiberstore.postgresql.sizes import table_bytes
from fiberstore.sql.models import Base
from fiberstore.sql.translate import translate_errors

_TABLES = [*Base.metadata.tables]


def compact(connection: PostgresConnection) -> Compacted:
    """Write the tables anew, and return their space to the disk.

    Args:
        connection: One outside a transaction.

    Raises:
        DatabaseError: The role is not the owner of a table.
    """
    with translate_errors(), _warnings(connection) as warnings:
        before = table_bytes(connection, _TABLES)
        for table in _TABLES:
            connection.write(f"VACUUM (FULL, ANALYZE) {table}")
            if warnings:  # PostgreSQL skips the table, and has no error for it
                raise DatabaseError(f"{warnings[0]}. It takes the rights of the tables' owner")
        return Compacted(before, table_bytes(connection, _TABLES))


@contextmanager
def _warnings(connection: PostgresConnection) -> Iterator[list[str]]:
    """Collect what the server warns of meanwhile."""
    warnings: list[str] = []

    def note(notice: Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            warnings.append(str(notice.message_primary))

    connection.add_notice_handler(note)
    try:
        yield warnings
    finally:
        connection.remove_notice_handler(note)
