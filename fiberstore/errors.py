"""The errors a storage raises, and the one place that makes them from a driver's.

```
StorageError
├── DatabaseError         the database failed, or refused what was asked of it
│   ├── ConnectionLostError   the server, or the network, has ended the connection that a call used
│   ├── StorageClosedError    the storage was closed before the call
│   ├── StorageLockedError    another process holds the file
│   └── DamagedFileError      the file or its write-ahead log is not what DuckDB wrote
├── NotFoundError         no such fiber (also a LookupError)
├── VersionNotFoundError  no such config version (also a LookupError)
├── DuplicateError        that fiber exists already
├── ConflictError         another transaction was first; run the whole transaction again
├── SerializationError    a value that cannot be stored or read back (also a ValueError)
├── BufferFullError       a buffered writer had no room for a record
├── UnwrittenError        a buffered writer was closed, and has records left (in ``fiberstore.writer.buffer``)
├── CheckpointError       a checkpoint that is not where it was expected
├── CursorError           a cursor that leads nowhere (also a ValueError)
└── SchemaVersionError    the database is at a revision this release does not know
```

Arguments out of bounds raise ``ValueError``, arguments of a wrong type ``TypeError``, as in any Python
function; a record with a bad field raises pydantic's ``ValidationError``, which is a ``ValueError``.

The drivers are imported where an error is translated: a program that only makes records does not need them.
"""

import errno
import os
import re
import sys
from contextlib import AbstractContextManager
from types import TracebackType
from uuid import UUID

_LOCKED = re.compile(r'Could not set lock on file "(?P<path>[^"]*)"')
_INTERRUPTED = " failed: KeyboardInterrupt:"
_NO_TABLE = re.compile(
    "Table with name (raw_logs|fibers|fiber_memberships|fiber_config_versions|fiber_checkpoints|fiber_merges"
    "|fiber_pins|log_pins) does not exist"
)
_NO_RELATION = re.compile(
    'relation "(raw_logs|fibers|fiber_memberships|fiber_config_versions|fiber_checkpoints|fiber_merges'
    '|fiber_pins|log_pins|log_arrivals|fiber_arrivals)" does not exist'
)
_POSTGRESQL_ADVICE = {  # by SQLSTATE
    "42501": (  # insufficient_privilege
        ". The owner can GRANT the role what it needs: SELECT, INSERT, UPDATE and DELETE on all tables, and "
        "for init_schema() USAGE and CREATE on the schema"
    ),
    "3F000": ". The role needs USAGE and CREATE on a schema of its search_path",  # invalid_schema_name
    "25006": (  # read_only_sql_transaction
        ". The storage was opened with read_only=True, or the server or the role may only read"
    ),
    "53100": ". Nothing of the call was stored; free some space",  # disk_full
}
LONGEST_INDEXED_BYTES = 2_700
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = re.compile(r'(Could not|Cannot|Failed to) [^"]*file ""')
_DAMAGE = re.compile(
    r"Corrupt (database |WAL )?file|Could not read enough bytes from file|WAL does not match database file"
    r"|WAL checkpoint iteration does not match"
)


class StorageError(Exception):
    """Anything that went wrong in a storage; the root of its errors."""


class DatabaseError(StorageError):
    """The database failed or refused; the driver's own error is the cause."""


class StorageClosedError(DatabaseError):
    """The storage was closed before the call, of which nothing is stored; another try would fail as well."""

    def __init__(self) -> None:
        super().__init__("the storage is closed")

    def __reduce__(self) -> tuple[type["StorageClosedError"], tuple[()]]:
        return type(self), ()


class ConnectionLostError(DatabaseError):
    """The connection that a call or a ``transaction()`` block used was lost. The next call opens another.

    Attributes:
        may_be_stored: Whether what was being written may be stored, which is then all of it. If not, nothing
            of it is.
    """

    def __init__(self, reason: str, may_be_stored: bool) -> None:  # by position, for pickle
        self.reason = reason
        self.may_be_stored = may_be_stored
        outcome = (
            "It is not known whether what was being written is stored, all of it, or nothing; look, before "
            "you write it again"
            if may_be_stored
            else "Nothing of the transaction is stored; run it again"
        )
        super().__init__(f"the connection to the server was lost: {reason}. {outcome}")

    def __reduce__(self) -> tuple[type["ConnectionLostError"], tuple[str, bool]]:
        return type(self), (self.reason, self.may_be_stored)


class StorageLockedError(DatabaseError):
    """Another process holds the database file.

    Attributes:
        path: The file, as the database names it.
        owner_pid: Process id of the owner, or None where the database does not say.
    """

    def __init__(self, path: str, owner_pid: int | None) -> None:
        self.path = path
        self.owner_pid = owner_pid
        owner = "another process" if owner_pid is None else f"process {owner_pid}"
        super().__init__(
            f"{path} is held by {owner}; DuckDB lets one process write a file, and none beside it read it. "
            "Close it there, or send the work to that process"
        )

    def __reduce__(self) -> tuple[type["StorageLockedError"], tuple[str, int | None]]:
        return type(self), (self.path, self.owner_pid)


class DamagedFileError(DatabaseError):
    """The database file or a write-ahead log beside it is damaged. Both were left as they are.

    Attributes:
        path: What is damaged, or None where DuckDB does not say which file.
        damage: What is wrong with it.
    """

    def __init__(self, path: str | None, damage: str) -> None:
        self.path = path
        self.damage = damage
        advice = "Keep copies of the file and of its .wal as they are now, and restore a backup of both"
        if path is not None and path.endswith((".wal", ".wal.checkpoint")):
            advice += (
                ". Or go on with what the last checkpoint holds, without what was written since: move every "
                "file whose name begins with that of the .wal away yourself"
            )
        if path is None:
            advice += (
                ". If it was a checkpoint that was killed, `fiberstore db rescue` makes a copy that opens"
            )
        super().__init__(f"{path or 'the database file'} is damaged: {damage}. {advice}")

    def __reduce__(self) -> tuple[type["DamagedFileError"], tuple[str | None, str]]:
        return type(self), (self.path, self.damage)


class NotFoundError(StorageError, LookupError):
    """There is no fiber of that id.

    Attributes:
        fiber_id: The id that was asked for.
    """

    def __init__(self, fiber_id: UUID) -> None:
        self.fiber_id = fiber_id
        super().__init__(f"no fiber {fiber_id}; write_fiber() creates one")

    def __reduce__(self) -> tuple[type["NotFoundError"], tuple[UUID]]:
        return type(self), (self.fiber_id,)


class VersionNotFoundError(StorageError, LookupError):
    """There is no such config version, neither in the registry nor among the fibers.

    Attributes:
        config_version: The version that was asked for.
    """

    def __init__(self, config_version: int) -> None:
        self.config_version = config_version
        super().__init__(
            f"no config version {config_version:016x} ({config_version}); versions.register() notes one"
        )

    def __reduce__(self) -> tuple[type["VersionNotFoundError"], tuple[int]]:
        return type(self), (self.config_version,)


class CheckpointError(StorageError):
    """A checkpoint has another value than expected, and keeps it. Nothing of the call was stored.

    Attributes:
        name: Of the checkpoint.
        expected: The value that was expected; None for no checkpoint of that name.
        found: The value it has; None if there is none of that name.
    """

    def __init__(self, name: str, expected: str | None, found: str | None) -> None:
        self.name = name
        self.expected = expected
        self.found = found
        super().__init__(
            f"checkpoint {name!r} is {_place(found)}, not {_place(expected)}: somebody else has moved it; "
            "read it again, and go on from there"
        )

    def __reduce__(self) -> tuple[type["CheckpointError"], tuple[str, str | None, str | None]]:
        return type(self), (self.name, self.expected, self.found)


class DuplicateError(StorageError):
    """A fiber of that id is stored already, and was left as it is.

    Attributes:
        fiber_id: The id that was to be written.
    """

    def __init__(self, fiber_id: UUID) -> None:
        self.fiber_id = fiber_id
        super().__init__(f"fiber {fiber_id} exists already; update_fiber() changes it")

    def __reduce__(self) -> tuple[type["DuplicateError"], tuple[UUID]]:
        return type(self), (self.fiber_id,)


class ConflictError(StorageError):
    """Another transaction changed the same data first. Nothing was stored: run the transaction again."""


class BufferFullError(StorageError):
    """A buffered writer had no room for a record, and has not taken it.

    Attributes:
        records: How many were waiting to be stored.
        size_bytes: How much memory they needed.
    """

    def __init__(self, records: int, size_bytes: int) -> None:
        self.records = records
        self.size_bytes = size_bytes
        super().__init__(
            f"no room for the record: {records} others, of {size_bytes} bytes, wait to be stored; wait, or "
            "make the writer with a larger buffer_bytes"
        )

    def __reduce__(self) -> tuple[type["BufferFullError"], tuple[int, int]]:
        return type(self), (self.records, self.size_bytes)


class SerializationError(StorageError, ValueError):
    """A value has no form in the database, or a stored value has none in a record."""


class CursorError(StorageError, ValueError):
    """A cursor is damaged, belongs to another query, or its place is not known any more."""


class SchemaVersionError(StorageError):
    """The database is at a revision this release does not know, and was left alone.

    Attributes:
        found: The revision the database is at.
        known: The newest revision of this release.
    """

    def __init__(self, found: str, known: str) -> None:
        self.found = found
        self.known = known
        super().__init__(
            f"the database is at revision {found!r}, which this release does not know (its newest is "
            f"{known!r}); install the release of fiberstore that wrote it"
        )

    def __reduce__(self) -> tuple[type["SchemaVersionError"], tuple[str, str]]:
        return type(self), (self.found, self.known)


class _Translation:
    """See ``translate_errors``; a generator would take longer, and every call of a storage needs several."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            _raise_translated(error)


_TRANSLATION = _Translation()


def translate_errors() -> AbstractContextManager[None]:
    """Raise the storage's errors instead of SQLAlchemy's and the drivers', each with its cause chained."""
    return _TRANSLATION


def _raise_translated(error: Exception) -> None:
    import duckdb
    from sqlalchemy import exc

    if is_interrupt(error):
        raise KeyboardInterrupt from error
    match error:
        case exc.DBAPIError():
            raise _storage_error(error.orig or error) from error
        case exc.StatementError(orig=StorageError() | ValueError() | TypeError() as refused):
            raise refused from refused.__cause__  # a column type has refused a value
        case exc.TimeoutError():
            raise DatabaseError(f"no free connection in the pool: {_first_line(error)}") from error
        case exc.SQLAlchemyError():
            raise DatabaseError(_first_line(error)) from error
        case duckdb.Error():
            raise _storage_error(error) from error
    if is_postgresql_error(error):
        raise _storage_error(error) from error


def is_interrupt(error: BaseException) -> bool:
    """Tell Ctrl-C as DuckDB raises it: a ``RuntimeError``, or its own error about Python code it ran."""
    if type(error) is RuntimeError:
        return str(error) == "Query interrupted"
    duckdb = sys.modules.get("duckdb")
    return duckdb is not None and isinstance(error, duckdb.Error) and _INTERRUPTED in str(error)


def is_postgresql_error(error: BaseException) -> bool:
    """Tell an error of psycopg, which need not be installed, from others."""
    psycopg = sys.modules.get("psycopg")
    return psycopg is not None and isinstance(error, psycopg.Error)


def is_duplicate_key(error: BaseException) -> bool:
    """Tell a duplicate key from other broken constraints, for which DuckDB has the same class."""
    import duckdb

    return isinstance(error, duckdb.ConstraintException) and "Duplicate key" in str(error)


def _place(value: str | None) -> str:
    return "unset" if value is None else f"{value!r:.200}"


def _storage_error(error: BaseException) -> StorageError:
    return _postgresql_error(error) if is_postgresql_error(error) else _duckdb_error(error)


def _postgresql_error(error: BaseException) -> StorageError:
    from psycopg import errors

    message = _first_line(error)
    match error:
        case errors.SerializationFailure() | errors.DeadlockDetected() | errors.LockNotAvailable():
            return ConflictError(message)
        case errors.TransactionResolutionUnknown() | errors.ConnectionFailure():
            return ConnectionLostError(message, isinstance(error, errors.TransactionResolutionUnknown))
        case errors.DataError() | errors.ProgramLimitExceeded():
            return SerializationError(message + _advice_on_value(error, message))
        case errors.UndefinedTable() if _NO_RELATION.search(message):
            advice = (
                ". init_schema() builds the tables; if they are there, the role needs USAGE on their schema, "
                "and that in its search_path"
            )
        case errors.Error():
            advice = _POSTGRESQL_ADVICE.get(error.sqlstate or "", "")
        case _:
            advice = ""
    return DatabaseError(message + advice)


def _advice_on_value(error: BaseException, message: str) -> str:
    from psycopg import errors

    if isinstance(error, errors.InvalidRegularExpression):
        return ". PostgreSQL cannot hold the pattern; write a smaller one"
    if "index row" in message:
        return (
            f". PostgreSQL keeps at most some {LONGEST_INDEXED_BYTES:,} bytes of a source_id, a fiber_type "
            "or the name of a checkpoint; shorten it"
        )
    return ""


def _duckdb_error(error: BaseException) -> StorageError:
    import duckdb

    message = _first_line(error)
    match error:
        case duckdb.ConversionException():
            return SerializationError(message)
        case duckdb.ConstraintException():  # it quotes values, which may look like any error
            return DatabaseError(message)
        case duckdb.TransactionException() if "duplicate key" in message:
            return ConflictError(message)
    advice = ""
    if isinstance(error, duckdb.FatalException):
        advice = ". DuckDB does nothing more with it until you close the storage and open it again"
    if trouble := _file_trouble(str(error), message, advice):
        return trouble
    if isinstance(error, duckdb.TransactionException):
        return ConflictError(message)
    if isinstance(error, duckdb.CatalogException) and _NO_TABLE.search(message):
        advice = " init_schema() builds the tables"
    if isinstance(error, duckdb.InvalidInputException) and "read-only mode" in message:
        advice = " Open the storage without read_only=True to change it"
    return DatabaseError(message + advice)


def _file_trouble(text: str, message: str, advice: str) -> DatabaseError | None:
    """Recognise trouble with a file by DuckDB's text, names of files apart.

    It has one class for all of it, none for damage, and that of a conflict for whatever happens in a commit.
    """
    if locked := _LOCKED.search(text):
        owner = re.search(r"\(PID (\d+)\)", text)
        return StorageLockedError(locked["path"], int(owner[1]) if owner else None)
    unquoted = re.sub(r'"[^"]*"', '""', message)
    if any(os.strerror(code) in unquoted for code in _FULL_DISK):
        stored = "What the call wrote" if "COMMIT succeeded" in message else "Nothing of the call"
        return DatabaseError(f"{message}. {stored} was stored; free some space{advice}")
    if _DAMAGE.search(unquoted):
        named = re.findall(r'file "([^"]*)"', message)  # the log it replays, then what was wrong meanwhile
        in_block = "Corrupt database file" in message  # here the log may be named, the damaged file is not
        return DamagedFileError(named[-1] if named and not in_block else None, message)
    if _REFUSED.search(unquoted):
        return DatabaseError(message)
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
