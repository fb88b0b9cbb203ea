"""DuckDB's errors as a storage's.

DuckDB has few classes of errors, so some are told apart by their text, names of files apart.
"""

import errno
import os
import re

import duckdb

from fiberstore.errors import (
    ConflictError,
    DamagedFileError,
    DatabaseError,
    SerializationError,
    StorageError,
    StorageLockedError,
)
from fiberstore.sql.translate import first_line, register_driver

_LOCKED = re.compile(r'Could not set lock on file "(?P<path>[^"]*)"')
_NO_TABLE = re.compile(
    "Table with name (raw_logs|fibers|fiber_memberships|fiber_config_versions|fiber_checkpoints|fiber_merges"
    "|fiber_pins|log_pins|fiber_keys|fiber_ends) does not exist"
)
_REFERRED = re.compile(r"(?<=is still referenced by a foreign key in a different table\.) If this is .*")
_REFERRED_ADVICE = (
    " DuckDB neither deletes a row to which a table of the application refers, nor changes an indexed column "
    "of it, such as fiber_type; delete the rows that refer to it in an earlier transaction"
)
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = re.compile(r'(Could not|Cannot|Failed to) [^"]*file ""')
_DAMAGE = re.compile(
    r"Corrupt (database |WAL )?file|Could not read enough bytes from file|WAL does not match database file"
    r"|WAL checkpoint iteration does not match"
)


_INTERRUPTED = " failed: KeyboardInterrupt:"


def is_interrupt(error: BaseException) -> bool:
    """Tell Ctrl-C as DuckDB raises it: a ``RuntimeError``, or its own error about Python code it ran."""
    if type(error) is RuntimeError:
        return str(error) == "Query interrupted"
    return isinstance(error, duckdb.Error) and _INTERRUPTED in str(error)


def is_duplicate_key(error: BaseException) -> bool:
    """Tell a duplicate key, stored or within a statement, from other broken constraints.

    DuckDB has the same class for all, and words of its own for each.
    """
    return isinstance(error, duckdb.ConstraintException) and any(
        words in str(error) for words in ("Duplicate key", "constraint violation: duplicate key")
    )


def _storage_error(error: BaseException) -> StorageError:
    message = first_line(error)
    match error:
        case duckdb.ConversionException():
            return SerializationError(message)
        case duckdb.ConstraintException():  # it quotes values, which may look like any error
            return DatabaseError(_REFERRED.sub(_REFERRED_ADVICE, message))
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
        stored = "What was written" if "COMMIT succeeded" in message else "Nothing of the transaction"
        return DatabaseError(f"{message}. {stored} was stored; free some space{advice}")
    if _DAMAGE.search(unquoted):
        named = re.findall(r'file "([^"]*)"', message)  # the log it replays, then what was wrong meanwhile
        in_block = "Corrupt database file" in message  # here the log may be named, the damaged file is not
        return DamagedFileError(named[-1] if named and not in_block else None, message)
    if _REFUSED.search(unquoted):
        return DatabaseError(message)
    return None


register_driver(duckdb.Error, _storage_error, is_interrupt)
