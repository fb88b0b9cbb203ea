"""Storage for log correlation: logs, and the fibers that join them, in DuckDB or PostgreSQL.

Each public name is imported when it is first used: SQLAlchemy and DuckDB alone take 0.4 s.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiberstore.aio import AsyncSqlStorage, AsyncTransaction
    from fiberstore.aio_writer import AsyncBufferedWriter
    from fiberstore.buffer import UnwrittenError
    from fiberstore.copying import Copied, copy_store
    from fiberstore.duckdb import AsyncDuckDBStorage, DuckDBStorage
    from fiberstore.engine import create_engine
    from fiberstore.errors import (
        BufferFullError,
        CheckpointError,
        ConflictError,
        ConnectionLostError,
        CursorError,
        DamagedFileError,
        DatabaseError,
        DuplicateError,
        NotFoundError,
        SchemaVersionError,
        SerializationError,
        StorageClosedError,
        StorageError,
        StorageLockedError,
        VersionNotFoundError,
    )
    from fiberstore.ids import new_log_id, stable_fiber_id, stable_log_id
    from fiberstore.lifecycle import (
        AsyncLifecycleStorage,
        Checkpoint,
        CheckpointMove,
        ConfigVersion,
        LifecycleStorage,
    )
    from fiberstore.models import Base, Fiber, Membership, RawLog
    from fiberstore.opening import open_async_storage, open_storage
    from fiberstore.postgresql import AsyncPostgresStorage, PostgresStorage
    from fiberstore.queries import AsyncQueryStorage, Fibers, Logs, Memberships, Page, QueryStorage
    from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog
    from fiberstore.repositories import (
        CheckpointRepository,
        FiberRepository,
        LogRepository,
        MembershipRepository,
        VersionRepository,
    )
    from fiberstore.storage import AsyncStorage, Storage
    from fiberstore.storages import SqlStorage, Transaction
    from fiberstore.versioning import config_version
    from fiberstore.where import Condition
    from fiberstore.writer import BufferedWriter

__all__ = [
    "AsyncBufferedWriter",
    "AsyncDuckDBStorage",
    "AsyncLifecycleStorage",
    "AsyncPostgresStorage",
    "AsyncQueryStorage",
    "AsyncSqlStorage",
    "AsyncStorage",
    "AsyncTransaction",
    "Base",
    "BufferFullError",
    "BufferedWriter",
    "Checkpoint",
    "CheckpointError",
    "CheckpointMove",
    "CheckpointRepository",
    "Condition",
    "ConfigVersion",
    "ConflictError",
    "ConnectionLostError",
    "Copied",
    "CursorError",
    "DamagedFileError",
    "DatabaseError",
    "DuckDBStorage",
    "DuplicateError",
    "Fiber",
    "FiberMembership",
    "FiberRecord",
    "FiberRepository",
    "Fibers",
    "LifecycleStorage",
    "LogRecord",
    "LogRepository",
    "Logs",
    "Membership",
    "MembershipRepository",
    "Memberships",
    "NotFoundError",
    "Page",
    "PostgresStorage",
    "QueryStorage",
    "RawLog",
    "SchemaVersionError",
    "SerializationError",
    "SqlStorage",
    "Storage",
    "StorageClosedError",
    "StorageError",
    "StorageLockedError",
    "StoredLog",
    "Transaction",
    "UnwrittenError",
    "VersionNotFoundError",
    "VersionRepository",
    "config_version",
    "copy_store",
    "create_engine",
    "new_log_id",
    "open_async_storage",
    "open_storage",
    "stable_fiber_id",
    "stable_log_id",
]

_MODULES = (  # what imports the least comes first
    "versioning",
    "ids",
    "errors",
    "records",
    "storage",
    "where",
    "queries",
    "lifecycle",
    "buffer",
    "writer",
    "aio_writer",
    "engine",
    "models",
    "repositories",
    "storages",
    "aio",
    "copying",
    "duckdb",
    "opening",
    "postgresql",
)

if not TYPE_CHECKING:  # or a type checker would take any name for public

    def __getattr__(name: str) -> object:
        """Import a public name or a module (PEP 562)."""
        if name in __all__:
            for module in _MODULES:
                found: object = getattr(import_module(f"{__name__}.{module}"), name, None)
                if found is not None:
                    globals()[name] = found
                    return found
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
