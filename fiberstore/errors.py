"""The errors a storage raises; ``sql.translate`` makes them of the drivers' own.

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
"""

from typing import Self
from uuid import UUID


class StorageError(Exception):
    """Root of the errors of a storage."""

    _given: tuple[object, ...]

    def __new__(cls, *given: object) -> Self:
        """Keep the arguments, all by position, of which pickle makes the error anew."""
        error = super().__new__(cls, *given)
        error._given = given
        return error

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), self._given


class DatabaseError(StorageError):
    """The database failed or refused; the driver's own error is the cause."""


class StorageClosedError(DatabaseError):
    """The storage was closed before the call, of which nothing is stored; another try would fail as well."""

    def __init__(self) -> None:
        super().__init__("the storage is closed")


class ConnectionLostError(DatabaseError):
    """The connection that a call or a ``transaction()`` block used was lost. The next call opens another.

    Attributes:
        may_be_stored: Whether what was being written may be stored, which is then all of it. If not, nothing
            of it is.
    """

    def __init__(self, reason: str, may_be_stored: bool) -> None:
        self.reason = reason
        self.may_be_stored = may_be_stored
        outcome = (
            "It is not known whether what was being written is stored, all of it, or nothing; look, before "
            "you write it again"
            if may_be_stored
            else "Nothing of the transaction is stored; run it again"
        )
        super().__init__(f"the connection to the server was lost: {reason}. {outcome}")


class CannotConnectError(DatabaseError):
    """The server cannot be reached, or refuses the connection. The next call tries again."""


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
                ". Or keep what the last WAL checkpoint holds, and lose what was written since: move every "
                "file whose name begins with that of the .wal away yourself"
            )
        if path is None:
            advice += ". If a WAL checkpoint was killed, `fiberstore db rescue` makes a copy that opens"
        super().__init__(f"{path or 'the database file'} is damaged: {damage}. {advice}")


class NotFoundError(StorageError, LookupError):
    """There is no fiber of that id.

    Attributes:
        fiber_id: The id that was asked for.
    """

    def __init__(self, fiber_id: UUID) -> None:
        self.fiber_id = fiber_id
        super().__init__(f"no fiber {fiber_id}; write_fiber() creates one")


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


class CheckpointError(StorageError):
    """A checkpoint has another value than expected, and keeps it. Nothing of the call was stored.

    Attributes:
        name: Name of the checkpoint.
        expected: The value that was expected; None for no checkpoint of that name.
        found: The value it has; None if there is none of that name.
    """

    def __init__(self, name: str, expected: str | None, found: str | None) -> None:
        self.name = name
        self.expected = expected
        self.found = found
        super().__init__(
            f"checkpoint {name!r}: expected {_value(expected)}, found {_value(found)}. "
            "Another writer moved it; read it again and retry"
        )


class DuplicateError(StorageError):
    """A fiber of that id is stored already, and was left as it is.

    Attributes:
        fiber_id: The id that was to be written.
    """

    def __init__(self, fiber_id: UUID) -> None:
        self.fiber_id = fiber_id
        super().__init__(f"fiber {fiber_id} exists already; update_fiber() changes it")


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


def _value(value: str | None) -> str:
    return "no value" if value is None else f"{value!r:.200}"
