# Written by tools/write_stubs.py; not to be edited.

from fiberstore import doctor as doctor
from fiberstore import errors as errors
from fiberstore.aio.storage import AsyncLifecycleStorage as AsyncLifecycleStorage
from fiberstore.aio.storage import AsyncQueryStorage as AsyncQueryStorage
from fiberstore.aio.storage import AsyncSqlStorage as AsyncSqlStorage
from fiberstore.aio.storage import AsyncStorage as AsyncStorage
from fiberstore.aio.storage import AsyncTransaction as AsyncTransaction
from fiberstore.contract.conditions import Condition as Condition
from fiberstore.contract.lifecycle import CheckpointMove as CheckpointMove
from fiberstore.contract.lifecycle import LifecycleStorage as LifecycleStorage
from fiberstore.contract.queries import Fibers as Fibers
from fiberstore.contract.queries import Logs as Logs
from fiberstore.contract.queries import Memberships as Memberships
from fiberstore.contract.queries import QueryStorage as QueryStorage
from fiberstore.contract.results import Checkpoint as Checkpoint
from fiberstore.contract.results import ConfigVersion as ConfigVersion
from fiberstore.contract.results import Page as Page
from fiberstore.contract.storage import Storage as Storage
from fiberstore.copying.copy import Copied as Copied
from fiberstore.copying.copy import copy_store as copy_store
from fiberstore.duckdb.engine import create_engine as create_engine
from fiberstore.duckdb.storage import AsyncDuckDBStorage as AsyncDuckDBStorage
from fiberstore.duckdb.storage import DuckDBStorage as DuckDBStorage
from fiberstore.errors import BufferFullError as BufferFullError
from fiberstore.errors import CheckpointError as CheckpointError
from fiberstore.errors import ConflictError as ConflictError
from fiberstore.errors import ConnectionLostError as ConnectionLostError
from fiberstore.errors import CursorError as CursorError
from fiberstore.errors import DamagedFileError as DamagedFileError
from fiberstore.errors import DatabaseError as DatabaseError
from fiberstore.errors import DuplicateError as DuplicateError
from fiberstore.errors import NotFoundError as NotFoundError
from fiberstore.errors import SchemaVersionError as SchemaVersionError
from fiberstore.errors import SerializationError as SerializationError
from fiberstore.errors import StorageClosedError as StorageClosedError
from fiberstore.errors import StorageError as StorageError
from fiberstore.errors import StorageLockedError as StorageLockedError
from fiberstore.errors import VersionNotFoundError as VersionNotFoundError
from fiberstore.ids import new_log_id as new_log_id
from fiberstore.ids import stable_fiber_id as stable_fiber_id
from fiberstore.ids import stable_log_id as stable_log_id
from fiberstore.opening import open_async_storage as open_async_storage
from fiberstore.opening import open_storage as open_storage
from fiberstore.postgresql.storage import AsyncPostgresStorage as AsyncPostgresStorage
from fiberstore.postgresql.storage import PostgresStorage as PostgresStorage
from fiberstore.records import FiberKey as FiberKey
from fiberstore.records import FiberMembership as FiberMembership
from fiberstore.records import FiberRecord as FiberRecord
from fiberstore.records import LogRecord as LogRecord
from fiberstore.records import StoredLog as StoredLog
from fiberstore.repositories.batches import Transaction as Transaction
from fiberstore.repositories.checkpoints import CheckpointRepository as CheckpointRepository
from fiberstore.repositories.fibers import FiberRepository as FiberRepository
from fiberstore.repositories.logs import LogRepository as LogRepository
from fiberstore.repositories.memberships import MembershipRepository as MembershipRepository
from fiberstore.repositories.storage import SqlStorage as SqlStorage
from fiberstore.repositories.versions import VersionRepository as VersionRepository
from fiberstore.sql.migrate import is_host_object as is_host_object
from fiberstore.sql.models import Base as Base
from fiberstore.sql.models import Fiber as Fiber
from fiberstore.sql.models import KeyedFiber as KeyedFiber
from fiberstore.sql.models import Membership as Membership
from fiberstore.sql.models import RawLog as RawLog
from fiberstore.versioning import config_version as config_version
from fiberstore.writer.buffer import UnwrittenError as UnwrittenError
from fiberstore.writer.tasks import AsyncBufferedWriter as AsyncBufferedWriter
from fiberstore.writer.threaded import BufferedWriter as BufferedWriter

__version__: str

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
    "FiberKey",
    "FiberMembership",
    "FiberRecord",
    "FiberRepository",
    "Fibers",
    "KeyedFiber",
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
    "is_host_object",
    "new_log_id",
    "open_async_storage",
    "open_storage",
    "stable_fiber_id",
    "stable_log_id",
]
