"""The errors a storage raises, and the one place that makes them from a driver's.

```
StorageError
├── DatabaseError         the database failed, or refused what was asked of it
│   └── StorageLockedError    another process holds the file
├── NotFoundError         no such fiber (also a LookupError)
├── DuplicateError        that fiber exists already
├── ConflictError         another transaction was first; run the whole transaction again
├── SerializationError    a value that cannot be stored or read back (also a ValueError)
└── SchemaVersionError    the database is at a revision this release does not know
```

Arguments out of bounds raise ``ValueError``, arguments of a wrong type ``TypeError``, as in any Python
function; a record with a bad field raises pydantic's ``ValidationError``, which is a ``ValueError``.

The drivers are imported where an error is translated: a program that only makes records does not need them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID


class StorageError(Exception):
    """Anything that went wrong in a storage; the root of its errors."""


class DatabaseError(StorageError):
    """The database failed or refused; the driver's own error is the cause."""


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


class SerializationError(StorageError, ValueError):
    """A value has no form in the database, or a stored value has none in a record."""


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


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the storage's errors instead of SQLAlchemy's and DuckDB's, each with its cause chained."""
    try:
        yield
    except Exception as error:
        import duckdb
        from sqlalchemy import exc

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
        raise


def is_duplicate_key(error: BaseException) -> bool:
    """Tell a duplicate key from other broken constraints, for which DuckDB has the same class."""
    import duckdb

    return isinstance(error, duckdb.ConstraintException) and "Duplicate key" in str(error)


def _storage_error(error: BaseException) -> StorageError:
    import duckdb

    message = _first_line(error)
    if isinstance(error, duckdb.TransactionException):
        return ConflictError(message)
    if isinstance(error, duckdb.ConversionException):
        return SerializationError(message)
    # DuckDB has one class for every trouble with a file, so a held lock is known by its text only.
    locked = isinstance(error, duckdb.IOException) and re.search(
        r'Could not set lock on file "(?P<path>[^"]*)"', message
    )
    if locked:
        owner = re.search(r"\(PID (\d+)\)", message)
        return StorageLockedError(locked["path"], int(owner[1]) if owner else None)
    return DatabaseError(message)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
