"""DuckDB alone, by its Python client. It is the floor.

Arrow tables are in memory already, statements are parsed already, and results are fetched by ``fetchall()``.
Its settings are DuckDB's own.
"""

from datetime import datetime
from pathlib import Path
from uuid import UUID

import duckdb

from benchmarks.data import Batch, fiber_row
from benchmarks.stores.store import FIBERS, LOGS, MEMBERSHIPS, Key, Rows, Store, ddl, files_bytes
from fiberstore import FiberRecord

DDL = ddl(uuid="UUID", time="TIMESTAMPTZ", text="VARCHAR", number="UBIGINT", json="JSON")


class DuckDB(Store):
    """DuckDB alone."""

    name = "DuckDB alone"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "alone.duckdb"
        self.connection = duckdb.connect(self.path)
        self.connection.execute("SET TimeZone = 'UTC'")
        for statement in DDL:
            self.connection.execute(statement)
        in_order = f"SELECT {LOGS} FROM raw_logs WHERE timestamp BETWEEN $1 AND $2"
        self._get_log = self._prepare(f"SELECT {LOGS} FROM raw_logs WHERE log_id = $1")
        self._get_fiber = self._prepare(f"SELECT {FIBERS} FROM fibers WHERE fiber_id = $1")
        self._get_log_fibers = self._prepare(
            "SELECT fiber_id FROM fiber_memberships WHERE log_id = $1 ORDER BY fiber_id"
        )
        # The fastest of the plans that were tried: the plain join takes ten times as long with random ids.
        self._get_fiber_logs = self._prepare(
            "WITH found AS MATERIALIZED (SELECT r.* FROM fiber_memberships JOIN raw_logs AS r USING (log_id) "
            f"WHERE fiber_id = $1) SELECT {LOGS} FROM found ORDER BY timestamp, log_id LIMIT 1000"
        )
        self._get_fiber_logs_by_join = self._prepare(
            "SELECT r.* FROM fiber_memberships JOIN raw_logs AS r USING (log_id) WHERE fiber_id = $1 "
            "ORDER BY timestamp, r.log_id LIMIT 1000"
        )
        self._page = self._prepare(f"{in_order} ORDER BY timestamp, log_id LIMIT $3 OFFSET $4")
        self._page_after = self._prepare(
            f"{in_order} AND (timestamp, log_id) > ($3, $4) ORDER BY timestamp, log_id LIMIT $5"
        )
        self._update_fiber = self._prepare(
            "UPDATE fibers SET fiber_type = $2, config_version = $3, attributes = $4, first_activity = $5, "
            "last_activity = $6, closed = $7 WHERE fiber_id = $1"
        )

    def write_logs(self, batch: Batch) -> None:
        rows = batch.log_table  # noqa: F841  # DuckDB finds it by its name
        self.connection.execute(f"INSERT INTO raw_logs ({LOGS}) SELECT {LOGS} FROM rows")

    def write_memberships(self, batch: Batch) -> None:
        rows = batch.membership_table  # noqa: F841
        self.connection.execute(
            f"INSERT INTO fiber_memberships ({MEMBERSHIPS}) SELECT {MEMBERSHIPS} FROM rows"
        )

    def write_fibers(self, batch: Batch) -> None:
        rows = batch.fiber_table  # noqa: F841
        self.connection.execute(f"INSERT INTO fibers ({FIBERS}) SELECT {FIBERS} FROM rows")

    def get_log(self, log_id: UUID) -> Rows:
        return self._rows(self._get_log, log_id)

    def get_fiber(self, fiber_id: UUID) -> Rows:
        return self._rows(self._get_fiber, fiber_id)

    def get_log_fibers(self, log_id: UUID) -> Rows:
        return self._rows(self._get_log_fibers, log_id)

    def get_fiber_logs(self, fiber_id: UUID) -> Rows:
        return self._rows(self._get_fiber_logs, fiber_id)

    def get_fiber_logs_by_join(self, fiber_id: UUID) -> Rows:
        """Return a fiber's logs by the statement that comes to mind first."""
        return self._rows(self._get_fiber_logs_by_join, fiber_id)

    def page(self, start: datetime, end: datetime, limit: int, offset: int) -> Rows:
        return self._rows(self._page, start, end, limit, offset)

    def page_after(self, start: datetime, end: datetime, limit: int, key: Key) -> Rows:
        return self._rows(self._page_after, start, end, *key, limit)

    def update_fiber(self, fiber: FiberRecord) -> None:
        self._rows(self._update_fiber, *fiber_row(fiber))

    def id_of(self, row: tuple[UUID, ...]) -> UUID:
        return row[0]

    def counts(self) -> tuple[int, int]:
        (counts,) = self.connection.execute(
            "SELECT (SELECT count(*) FROM raw_logs), (SELECT count(*) FROM fiber_memberships)"
        ).fetchall()
        return counts[0], counts[1]

    def size_bytes(self) -> int:
        return files_bytes(self.path, self.path.with_name(self.path.name + ".wal"))

    def close(self) -> None:
        self.connection.close()

    def _prepare(self, sql: str) -> duckdb.Statement:
        return self.connection.extract_statements(sql)[0]

    def _rows(self, statement: duckdb.Statement, *values: object) -> Rows:
        return self.connection.execute(statement, list(values)).fetchall()


def compact_copy_bytes(path: Path, copy: Path) -> int:
    """Return the size of the smallest file that DuckDB makes of the same rows: loaded at once, in order."""
    connection = duckdb.connect(copy, config={"checkpoint_threshold": "1TB"})
    connection.execute(f"ATTACH '{path}' AS source (READ_ONLY)")
    for statement in DDL:
        connection.execute(statement)
    for table, order in (
        ("raw_logs", "timestamp, log_id"),
        ("fibers", "first_activity, fiber_id"),
        ("fiber_memberships", "log_id, fiber_id"),
    ):
        connection.execute(f"INSERT INTO {table} SELECT * FROM source.{table} ORDER BY {order}")
    connection.execute("CHECKPOINT")
    connection.close()
    return copy.stat().st_size
