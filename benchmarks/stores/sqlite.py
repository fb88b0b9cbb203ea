"""SQLAlchemy Core over SQLite, in WAL mode, one transaction for a batch."""

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from benchmarks.data import EPOCH, MICROSECOND, Batch, fiber_row
from benchmarks.stores.store import PAGE_ROWS, Key, Rows, Store, files_bytes
from fiberstore import FiberRecord


def tables(uuid: sa.types.TypeEngine[Any], time: sa.types.TypeEngine[Any]) -> sa.MetaData:
    """Return the tables, with these types for ids and times."""
    metadata = sa.MetaData()
    sa.Table(
        "raw_logs",
        metadata,
        sa.Column("log_id", uuid, primary_key=True),
        sa.Column("timestamp", time, nullable=False),
        sa.Column("source_id", sa.String, nullable=False),
        sa.Column("raw_text", sa.String, nullable=False),
        sa.Column("ingestion_time", time),
        sa.Column("config_version", sa.BigInteger, nullable=False),
        sa.Index("idx_raw_logs_timestamp", "timestamp"),
        sa.Index("idx_raw_logs_source", "source_id"),
    )
    sa.Table(
        "fibers",
        metadata,
        sa.Column("fiber_id", uuid, primary_key=True),
        sa.Column("fiber_type", sa.String, nullable=False),
        sa.Column("config_version", sa.BigInteger, nullable=False),
        sa.Column("attributes", sa.String),
        sa.Column("first_activity", time, nullable=False),
        sa.Column("last_activity", time, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Index("idx_fibers_type", "fiber_type"),
    )
    sa.Table(
        "fiber_memberships",
        metadata,
        sa.Column("log_id", uuid, primary_key=True),
        sa.Column("fiber_id", uuid, primary_key=True),
        sa.Column("config_version", sa.BigInteger, nullable=False),
        sa.Index("idx_memberships_fiber", "fiber_id"),
    )
    return metadata


class SQLite(Store):
    """Columns of SQLAlchemy's own types for ids and times."""

    name = "SQLite"
    metadata = tables(sa.Uuid(), sa.DateTime())

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.sqlite"
        self.engine = sa.create_engine(f"sqlite:///{self.path}")
        sa.event.listen(self.engine, "connect", _use_wal)
        self.metadata.create_all(self.engine)
        self.connection = self.engine.connect()
        self._logs, self._fibers, self._memberships = (
            self.metadata.tables[name] for name in ("raw_logs", "fibers", "fiber_memberships")
        )

    def write_logs(self, batch: Batch) -> None:
        self._insert(self._logs, batch.log_rows)

    def write_memberships(self, batch: Batch) -> None:
        self._insert(self._memberships, batch.membership_rows)

    def write_fibers(self, batch: Batch) -> None:
        self._insert(self._fibers, batch.fiber_rows)

    def get_log(self, log_id: UUID) -> Rows:
        return self._rows(sa.select(self._logs).where(self._logs.c.log_id == log_id))

    def get_fiber(self, fiber_id: UUID) -> Rows:
        return self._rows(sa.select(self._fibers).where(self._fibers.c.fiber_id == fiber_id))

    def get_log_fibers(self, log_id: UUID) -> Rows:
        pairs = self._memberships.c
        return self._rows(sa.select(pairs.fiber_id).where(pairs.log_id == log_id).order_by(pairs.fiber_id))

    def get_fiber_logs(self, fiber_id: UUID) -> Rows:
        joined = self._logs.join(self._memberships, self._memberships.c.log_id == self._logs.c.log_id)
        return self._rows(
            sa.select(self._logs)
            .select_from(joined)
            .where(self._memberships.c.fiber_id == fiber_id)
            .order_by(self._logs.c.timestamp, self._logs.c.log_id)
            .limit(PAGE_ROWS)
        )

    def page(self, start: datetime, end: datetime, limit: int, offset: int) -> Rows:
        return self._rows(self._range(start, end).limit(limit).offset(offset))

    def page_after(self, start: datetime, end: datetime, limit: int, key: Key) -> Rows:
        columns = sa.tuple_(self._logs.c.timestamp, self._logs.c.log_id)
        return self._rows(self._range(start, end).where(columns > sa.tuple_(*key)).limit(limit))

    def update_fiber(self, fiber: FiberRecord) -> None:
        values = dict(zip(self._fibers.c.keys(), fiber_row(fiber), strict=True))
        fiber_id = values.pop("fiber_id")
        self.connection.execute(
            sa.update(self._fibers).where(self._fibers.c.fiber_id == fiber_id).values(values)
        )
        self.connection.commit()

    def id_of(self, row: tuple[UUID, ...]) -> UUID:
        return row[0]

    def counts(self) -> tuple[int, int]:
        one, other = (
            self._rows(sa.select(sa.func.count()).select_from(table))[0][0]
            for table in (self._logs, self._memberships)
        )
        return one, other

    def size_bytes(self) -> int:
        return files_bytes(self.path, self.path.with_name(self.path.name + "-wal"))

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()

    def _range(self, start: datetime, end: datetime) -> sa.Select[Any]:
        time = self._logs.c.timestamp
        return sa.select(self._logs).where(time.between(start, end)).order_by(time, self._logs.c.log_id)

    def _insert(self, table: sa.Table, rows: list[tuple[object, ...]]) -> None:
        names = table.c.keys()
        values = [dict(zip(names, row, strict=True)) for row in rows]
        self.connection.execute(insert(table).on_conflict_do_nothing(), values)
        self.connection.commit()

    def _rows(self, statement: sa.Select[Any]) -> Rows:
        rows = self.connection.execute(statement).all()
        self.connection.rollback()
        return rows


class SQLiteOfBytes(SQLite):
    """Ids as 16 bytes and times as integers, which is the least that SQLite can be given; it only writes."""

    name = "SQLite, bytes and integers"
    metadata = tables(sa.LargeBinary(16), sa.BigInteger())

    def _insert(self, table: sa.Table, rows: list[tuple[object, ...]]) -> None:
        super()._insert(table, [tuple(map(_least, row)) for row in rows])


def _least(value: object) -> object:
    if isinstance(value, UUID):
        return value.bytes
    return (value - EPOCH) // MICROSECOND if isinstance(value, datetime) else value


def _use_wal(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
