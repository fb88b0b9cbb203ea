"""Storage for log correlation: logs, and the fibers that join them, in DuckDB or PostgreSQL.

Each public name is imported when it is first used: SQLAlchemy and DuckDB alone take 0.4 s. Type checkers read
the stub beside this file, which ``tools/write_stubs.py`` writes.
"""

from importlib import import_module

_NAMES = {
    "aio.storage": "AsyncLifecycleStorage AsyncQueryStorage AsyncSqlStorage AsyncStorage AsyncTransaction",
    "contract.conditions": "Condition",
    "contract.lifecycle": "CheckpointMove LifecycleStorage",
    "contract.queries": "Fibers Logs Memberships QueryStorage",
    "contract.results": "Checkpoint ConfigVersion Page",
    "contract.storage": "Storage",
    "copying.copy": "Copied copy_store",
    "duckdb.engine": "create_engine",
    "duckdb.storage": "AsyncDuckDBStorage DuckDBStorage",
    "errors": (
        "BufferFullError CheckpointError ConflictError ConnectionLostError CursorError DamagedFileError "
        "DatabaseError DuplicateError NotFoundError SchemaVersionError SerializationError "
        "StorageClosedError StorageError StorageLockedError VersionNotFoundError"
    ),
    "ids": "new_log_id stable_fiber_id stable_log_id",
    "opening": "open_async_storage open_storage",
    "postgresql.storage": "AsyncPostgresStorage PostgresStorage",
    "records": "FiberKey FiberMembership FiberRecord LogRecord StoredLog",
    "repositories.batches": "Transaction",
    "repositories.checkpoints": "CheckpointRepository",
    "repositories.fibers": "FiberRepository",
    "repositories.logs": "LogRepository",
    "repositories.memberships": "MembershipRepository",
    "repositories.storage": "SqlStorage",
    "repositories.versions": "VersionRepository",
    "sql.migrate": "is_host_object",
    "sql.models": "Base Fiber KeyedFiber Membership RawLog",
    "versioning": "config_version",
    "writer.buffer": "UnwrittenError",
    "writer.tasks": "AsyncBufferedWriter",
    "writer.threaded": "BufferedWriter",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
_MODULES = ("doctor", "errors")  # modules with a public name of their own

__all__ = [*sorted(_HOMES)]  # noqa: PLE0604  # texts


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
