"""psycopg over a PostgreSQL server, see ``server``.

Rows go by binary COPY straight into the tables, which refuses duplicates instead of passing over them.
"""

from datetime import datetime
from pathlib import Path
from uuid import UUID

from benchmarks.data import Batch, fiber_row
from benchmarks.stores import server
from benchmarks.stores.store import FIBERS, LOGS, MEMBERSHIPS, Key, Rows, Store, ddl
from fiberstore import FiberRecord
from fiberstore.postgresql import PostgresStorage


class PostgreSQL(Store):
    """psycopg, with the same tables, keys and indexes."""

    name = "PostgreSQL"

    def __init__(self, folder: Path) -> None:
        """Make a database; the folder stays empty."""
        del folder
        self.database = server.new_database()
        self.connection = server.connect(self.database)
        self.connection.execute("SET TimeZone = 'UTC'")
        self._create_tables()

    def _create_tables(self) -> None:
        for statement in ddl(uuid="uuid", time="timestamptz", text="text", number="numeric", json="json"):
            self.connection.execute(statement.encode())

    def write_logs(self, batch: Batch) -> None:
        types = ["uuid", "timestamptz", "text", "text", "timestamptz", "numeric"]
        self._copy("raw_logs", LOGS, types, batch.log_rows)

    def write_memberships(self, batch: Batch) -> None:
        self._copy("fiber_memberships", MEMBERSHIPS, ["uuid", "uuid", "numeric"], batch.membership_rows)

    def write_fibers(self, batch: Batch) -> None:
        types = [
            "uuid",
            "text",
            "numeric",
            "text",
            "timestamptz",
            "timestamptz",
            "bool",
        ]  # JSON travels as text
        self._copy("fibers", FIBERS, types, batch.fiber_rows)

    def get_log(self, log_id: UUID) -> Rows:
        return self._rows(f"SELECT {LOGS} FROM raw_logs WHERE log_id = %s", log_id)

    def get_fiber(self, fiber_id: UUID) -> Rows:
        return self._rows(f"SELECT {FIBERS} FROM fibers WHERE fiber_id = %s", fiber_id)

    def get_log_fibers(self, log_id: UUID) -> Rows:
        return self._rows(
            "SELECT fiber_id FROM fiber_memberships WHERE log_id = %s ORDER BY fiber_id", log_id
        )

    def get_fiber_logs(self, fiber_id: UUID) -> Rows:
        columns = ", ".join(f"r.{name}" for name in LOGS.split(", "))
        return self._rows(
            f"SELECT {columns} FROM fiber_memberships JOIN raw_logs AS r USING (log_id) WHERE fiber_id = %s "
            "ORDER BY r.timestamp, r.log_id LIMIT 1000",
            fiber_id,
        )

    def page(self, start: datetime, end: datetime, limit: int, offset: int) -> Rows:
        return self._rows(
            f"SELECT {LOGS} FROM raw_logs WHERE timestamp BETWEEN %s AND %s ORDER BY timestamp, log_id "
            "LIMIT %s OFFSET %s",
            start, end, limit, offset,
        )  # fmt: skip

    def page_after(self, start: datetime, end: datetime, limit: int, key: Key) -> Rows:
        return self._rows(
            f"SELECT {LOGS} FROM raw_logs WHERE timestamp BETWEEN %s AND %s "
            "AND (timestamp, log_id) > (%s, %s) ORDER BY timestamp, log_id LIMIT %s",
            start, end, *key, limit,
        )  # fmt: skip

    def update_fiber(self, fiber: FiberRecord) -> None:
        fiber_id, *values = fiber_row(fiber)
        self.connection.execute(
            b"UPDATE fibers SET fiber_type = %s, config_version = %s, attributes = %s, first_activity = %s, "
            b"last_activity = %s, closed = %s WHERE fiber_id = %s",
            [*values, fiber_id],
        )

    def id_of(self, row: tuple[UUID, ...]) -> UUID:
        return row[0]

    def counts(self) -> tuple[int, int]:
        (counts,) = self._rows(
            "SELECT (SELECT count(*) FROM raw_logs), (SELECT count(*) FROM fiber_memberships)"
        )
        return counts[0], counts[1]

    def size_bytes(self) -> int:
        return server.tables_bytes(self.database)

    def close(self) -> None:
        self.connection.close()
        server.drop(self.database)

    def _copy(self, table: str, columns: str, types: list[str], rows: list[tuple[object, ...]]) -> None:
        statement = f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)".encode()
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def _rows(self, statement: str, *values: object) -> Rows:
        return self.connection.execute(statement.encode(), values).fetchall()


class PostgreSQLOfOurs(PostgreSQL):
    """psycopg, with fiberstore's own tables, which note the order of arrival; it only writes."""

    name = "PostgreSQL, fiberstore's tables"

    def _create_tables(self) -> None:
        with PostgresStorage(self.database) as storage:
            storage.init_schema()
