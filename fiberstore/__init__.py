"""Storage for log correlation: logs, and the fibers that join them, in DuckDB."""

from fiberstore.aio import AsyncDuckDBStorage, AsyncTransaction
from fiberstore.duckdb import DuckDBStorage, Transaction
from fiberstore.engine import create_engine
from fiberstore.errors import (
    ConflictError,
    DatabaseError,
    DuplicateError,
    NotFoundError,
    SchemaVersionError,
    SerializationError,
    StorageError,
    StorageLockedError,
)
from fiberstore.ids import new_log_id, stable_fiber_id, stable_log_id
from fiberstore.models import Base, Fiber, Membership, RawLog
from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.repositories import FiberRepository, LogRepository, MembershipRepository
from fiberstore.storage import AsyncStorage, Storage
from fiberstore.versioning import config_version

__all__ = [
    "AsyncDuckDBStorage",
    "AsyncStorage",
    "AsyncTransaction",
    "Base",
    "ConflictError",
    "DatabaseError",
    "DuckDBStorage",
    "DuplicateError",
    "Fiber",
    "FiberMembership",
    "FiberRecord",
    "FiberRepository",
    "LogRecord",
    "LogRepository",
    "Membership",
    "MembershipRepository",
    "NotFoundError",
    "RawLog",
    "SchemaVersionError",
    "SerializationError",
    "Storage",
    "StorageError",
    "StorageLockedError",
    "StoredLog",
    "Transaction",
    "config_version",
    "create_engine",
    "new_log_id",
    "stable_fiber_id",
    "stable_log_id",
]
