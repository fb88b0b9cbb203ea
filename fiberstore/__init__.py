"""Storage for log correlation: logs, and the fibers that join them, in DuckDB or PostgreSQL.

Each public name is imported when it is first used: SQLAlchemy and DuckDB alone take 0.4 s. Type checkers read
the stub beside this file, which ``tools/write_stubs.py`` writes.
"""

from importlib import import_module

_HOMES = {
    "AsyncBufferedWriter": "writer.tasks",
    "AsyncDuckDBStorage": "duckdb.storage",
    "AsyncLifecycleStorage": "aio.storage",
    "AsyncPostgresStorage": "postgresql.storage",
    "AsyncQueryStorage": "aio.storage",
    "AsyncSqlStorage": "aio.storage",
    "AsyncStorage": "aio.storage",
    "AsyncTransaction": "aio.storage",
    "Base": "sql.models",
    "BufferFullError": "errors",
    "BufferedWriter": "writer.threaded",
    "Checkpoint": "contract.results",
    "CheckpointError": "errors",
    "CheckpointMove": "contract.lifecycle",
    "CheckpointRepository": "repositories.checkpoints",
    "Condition": "contract.conditions",
    "ConfigVersion": "contract.results",
    "ConflictError": "errors",
    "ConnectionLostError": "errors",
    "Copied": "copying.copy",
    "CursorError": "errors",
    "DamagedFileError": "errors",
    "DatabaseError": "errors",
    "DuckDBStorage": "duckdb.storage",
    "DuplicateError": "errors",
    "Fiber": "sql.models",
    "FiberKey": "records",
    "FiberMembership": "records",
    "FiberRecord": "records",
    "FiberRepository": "repositories.fibers",
    "Fibers": "contract.queries",
    "KeyedFiber": "sql.models",
    "LifecycleStorage": "contract.lifecycle",
    "LogRecord": "records",
    "LogRepository": "repositories.logs",
    "Logs": "contract.queries",
    "Membership": "sql.models",
    "MembershipRepository": "repositories.memberships",
    "Memberships": "contract.queries",
    "NotFoundError": "errors",
    "Page": "contract.results",
    "PostgresStorage": "postgresql.storage",
    "QueryStorage": "contract.queries",
    "RawLog": "sql.models",
    "SchemaVersionError": "errors",
    "SerializationError": "errors",
    "SqlStorage": "repositories.storage",
    "Storage": "contract.storage",
    "StorageClosedError": "errors",
    "StorageError": "errors",
    "StorageLockedError": "errors",
    "StoredLog": "records",
    "Transaction": "repositories.batches",
    "UnwrittenError": "writer.buffer",
    "VersionNotFoundError": "errors",
    "VersionRepository": "repositories.versions",
    "config_version": "versioning",
    "copy_store": "copying.copy",
    "create_engine": "duckdb.engine",
    "is_host_object": "sql.migrate",
    "new_log_id": "ids",
    "open_async_storage": "opening",
    "open_storage": "opening",
    "stable_fiber_id": "ids",
    "stable_log_id": "ids",
}
_MODULES = ("doctor", "errors")  # modules with a public name of their own

__all__ = [*_HOMES]  # noqa: PLE0604  # texts


def __getattr__(name: str) -> object:
    """Import a public name or module (PEP 562), or return the version that is installed."""
    if name in _HOMES:
        found = globals()[name] = _imported(name)
        return found
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("fiberstore")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _imported(name: str) -> object:
    home = _HOMES[name]
    if home.startswith("postgresql."):
        from fiberstore import postgresql
        from fiberstore.errors import DatabaseError

        try:
            postgresql.check_driver()
        except DatabaseError:
            # The name is there for `import *`, help() and editors; to use it says what to install.
            return type(name, (), {"__new__": _refuse, "__doc__": "Needs ``fiberstore[postgresql]``."})
    return getattr(import_module(f"{__name__}.{home}"), name)


def _refuse(*_arguments: object, **_options: object) -> None:
    from fiberstore.postgresql import check_driver

    check_driver()


def __dir__() -> list[str]:
    return [*globals(), *__all__]
