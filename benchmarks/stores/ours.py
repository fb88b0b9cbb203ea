"""This library, on both databases."""

from datetime import datetime
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from benchmarks.data import Batch
from benchmarks.stores import server
from benchmarks.stores.store import Key, Rows, Store, files_bytes
from fiberstore import DuckDBStorage, FiberRecord, StoredLog
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage


class Ours(Store):
    """This library."""

    storage: SqlStorage

    def write_logs(self, batch: Batch) -> None:
        self.storage.write_logs(batch.logs)

    def write_memberships(self, batch: Batch) -> None:
        self.storage.write_memberships(batch.memberships)

    def write_fibers(self, batch: Batch) -> None:
        with self.storage.transaction() as transaction:
            transaction.fibers.write_fibers(batch.fibers)

    def get_log(self, log_id: UUID) -> Rows:
        return [self.storage.get_log(log_id)]

    def get_fiber(self, fiber_id: UUID) -> Rows:
        return [self.storage.get_fiber(fiber_id)]

    def get_log_fibers(self, log_id: UUID) -> Rows:
        return self.storage.get_log_fibers(log_id)

    def get_fiber_logs(self, fiber_id: UUID) -> Rows:
        return self.storage.get_fiber_logs(fiber_id)

    def page(self, start: datetime, end: datetime, limit: int, offset: int) -> Rows:
        return self.storage.query_logs_by_time(start, end, limit, offset)

    def page_after(self, start: datetime, end: datetime, limit: int, key: Key) -> Rows:
        return self.storage.query_logs_by_time(start, end, limit, after=key)

    def update_fiber(self, fiber: FiberRecord) -> None:
        self.storage.update_fiber(fiber)

    def id_of(self, row: StoredLog | FiberRecord | UUID) -> UUID:
        if isinstance(row, UUID):
            return row
        return row.fiber_id if isinstance(row, FiberRecord) else row.log_id

    def counts(self) -> tuple[int, int]:
        with self.storage.session() as session:
            one, other = (
                session.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
                for table in ("raw_logs", "fiber_memberships")
            )
        return one, other

    def close(self) -> None:
        self.storage.close()


class Fiberstore(Ours):
    """On DuckDB."""

    name = "fiberstore"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fiberstore.duckdb"
        self.storage = DuckDBStorage(self.path)
        self.storage.init_schema()

    def size_bytes(self) -> int:
        return files_bytes(self.path, self.path.with_name(self.path.name + ".wal"))


class FiberstorePostgreSQL(Ours):
    """On the server on which psycopg alone is measured."""

    name = "fiberstore on PostgreSQL"

    def __init__(self, folder: Path) -> None:
        """Make a database; the folder stays empty."""
        del folder
        self.database = server.new_database()
        self.storage = PostgresStorage(self.database)
        self.storage.init_schema()

    def size_bytes(self) -> int:
        return server.tables_bytes(self.database)

    def close(self) -> None:
        super().close()
        server.drop(self.database)
