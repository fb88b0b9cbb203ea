"""Storage for log correlation: logs, and the fibers that join them, in DuckDB or PostgreSQL.

Each public name is imported when it is first used: SQLAlchemy and DuckDB alone take 0.4 s.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiberstore.aio.storage import (
        AsyncLifecycleStorage,
        AsyncQueryStorage,
        AsyncSqlStorage,
        AsyncStorage,
        AsyncTransaction,
    )
    from fiberstore.contract.conditions import Condition
    from fiberstore.contract.lifecycle import (
        Checkpoint,
        CheckpointMove,
        ConfigVersion,
        LifecycleStorage,
    )
    from fiberstore.contract.queries import Fibers, Logs, Memberships, Page, QueryStorage
    from fiberstore.contract.storage import Storage
    from fiberstore.copying.copy import Copied, copy_store
    from fiberstore.duckdb.engine import create_engine
    from fiberstore.duckdb.storage import AsyncDuckDBStorage, DuckDBStorage
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
    from fiberstore.opening import open_async_storage, open_storage
    from fiberstore.postgresql import AsyncPostgresStorage, PostgresStorage
    from fiberstore.records import FiberMembership, FiberRecord, LogRecord, StoredLog
    from fiberstore.repositories import (
        CheckpointRepository,
        FiberRepository,
        LogRepository,
        MembershipRepository,
        VersionRepository,
    )
    from fiberstore.repositories.storage import SqlStorage, Transaction
    from fiberstore.sql.models import Base, Fiber, Membership, RawLog
    from fiberstore.versioning import config_version
    from fiberstore.writer.buffer import UnwrittenError
    from fiberstore.writer.tasks import AsyncBufferedWriter
    from fiberstore.writer.threaded import BufferedWriter

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
    "contract.storage",
    "contract.conditions",
    "contract.queries",
    "contract.lifecycle",
    "writer.buffer",
    "writer.threaded",
    "writer.tasks",
    "duckdb.engine",
    "sql.models",
    "repositories",
    "repositories.storage",
    "aio.storage",
    "copying.copy",
    "duckdb.storage",
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
