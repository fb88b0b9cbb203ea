"""Interface of the compared stores, and the tables they all have."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

from benchmarks.data import Batch
from fiberstore import FiberRecord

LOGS = "log_id, timestamp, source_id, raw_text, ingestion_time, config_version"
MEMBERSHIPS = "log_id, fiber_id, config_version"
FIBERS = "fiber_id, fiber_type, config_version, attributes, first_activity, last_activity, closed"
PAGE_ROWS = 1_000

Key = tuple[datetime, UUID]
Rows = Sequence[Any]


def ddl(uuid: str, time: str, text: str, number: str, json: str) -> list[str]:
    """Return the statements that make tables and indexes, with a store's names of the types."""
    return [
        f"CREATE TABLE raw_logs (log_id {uuid} PRIMARY KEY, timestamp {time} NOT NULL, "
        f"source_id {text} NOT NULL, raw_text {text} NOT NULL, ingestion_time {time}, "
        f"config_version {number} NOT NULL)",
        f"CREATE TABLE fibers (fiber_id {uuid} PRIMARY KEY, fiber_type {text} NOT NULL, "
        f"config_version {number} NOT NULL, attributes {json}, first_activity {time} NOT NULL, "
        f"last_activity {time} NOT NULL, closed BOOLEAN NOT NULL)",
        f"CREATE TABLE fiber_memberships (log_id {uuid}, fiber_id {uuid}, config_version {number} NOT NULL, "
        "PRIMARY KEY (log_id, fiber_id))",
        "CREATE INDEX idx_raw_logs_timestamp ON raw_logs (timestamp)",
        "CREATE INDEX idx_raw_logs_source ON raw_logs (source_id)",
        "CREATE INDEX idx_fibers_type ON fibers (fiber_type)",
        "CREATE INDEX idx_memberships_fiber ON fiber_memberships (fiber_id)",
    ]


class Store(ABC):
    """One store, new and empty. What it reads it returns as its users get it.

    Args:
        folder: An empty folder of its own.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def write_logs(self, batch: Batch) -> None:
        """Store the batch's logs in one transaction."""

    @abstractmethod
    def write_memberships(self, batch: Batch) -> None:
        """Store the batch's memberships in one transaction."""

    @abstractmethod
    def write_fibers(self, batch: Batch) -> None:
        """Store the batch's fibers in one transaction."""

    @abstractmethod
    def get_log(self, log_id: UUID) -> Rows:
        """Return a log."""

    @abstractmethod
    def get_fiber(self, fiber_id: UUID) -> Rows:
        """Return a fiber."""

    @abstractmethod
    def get_log_fibers(self, log_id: UUID) -> Rows:
        """Return the ids of a log's fibers."""

    @abstractmethod
    def get_fiber_logs(self, fiber_id: UUID) -> Rows:
        """Return a fiber's logs."""

    @abstractmethod
    def page(self, start: datetime, end: datetime, limit: int, offset: int) -> Rows:
        """Return logs of a range."""

    @abstractmethod
    def page_after(self, start: datetime, end: datetime, limit: int, key: Key) -> Rows:
        """Return logs of a range that follow a key."""

    @abstractmethod
    def update_fiber(self, fiber: FiberRecord) -> None:
        """Replace a fiber's fields in one transaction."""

    @abstractmethod
    def id_of(self, row: Any) -> UUID:  # noqa: ANN401  # each store has rows of its own
        """Return the id that a row of this store begins with."""

    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """Return the number of logs and of memberships."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Return the size on disk."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""


def files_bytes(*paths: Path) -> int:
    """Return the size of those of the files that exist."""
    return sum(path.stat().st_size for path in paths if path.exists())
