"""psycopg's errors as a storage's."""

import re

import psycopg
from psycopg import errors

from fiberstore.errors import (
    ConflictError,
    ConnectionLostError,
    DatabaseError,
    SerializationError,
    StorageError,
)
from fiberstore.sql.translate import first_line, register_driver

_NO_RELATION = re.compile(
    'relation "(raw_logs|fibers|fiber_memberships|fiber_config_versions|fiber_checkpoints|fiber_merges'
    '|fiber_pins|log_pins|fiber_keys|fiber_ends)" does not exist'
)
_ADVICE = {  # by SQLSTATE
    "42501": (  # insufficient_privilege
        ". The owner can GRANT the role what it needs: SELECT, INSERT, UPDATE and DELETE on all tables, "
        "and for init_schema() USAGE and CREATE on the schema"
    ),
    "3F000": ". The role needs USAGE and CREATE on a schema of its search_path",  # invalid_schema_name
    "25006": (  # read_only_sql_transaction
        ". The storage was opened with read_only=True, or the server or the role may only read"
    ),
    "53100": ". Nothing of the transaction was stored; free some space",  # disk_full
}
LONGEST_INDEXED_BYTES = 2_700


def _storage_error(error: BaseException) -> StorageError:
    message = first_line(error)
    match error:
        case errors.SerializationFailure() | errors.DeadlockDetected() | errors.LockNotAvailable():
            return ConflictError(message)
        case errors.FeatureNotSupported() if error.diag.source_function == "RevalidateCachedQuery":
            return ConflictError(f"another client has altered a table meanwhile: {message}")
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
            advice = _ADVICE.get(error.sqlstate or "", "")
        case _:
            advice = ""
    return DatabaseError(message + advice)


def _advice_on_value(error: BaseException, message: str) -> str:
    if isinstance(error, errors.InvalidRegularExpression):
        return ". PostgreSQL cannot hold the pattern; write a smaller one"
    if "index row" in message:
        return (
            f". PostgreSQL keeps at most some {LONGEST_INDEXED_BYTES:,} bytes of a source_id, a fiber_type "
            "or the name of a checkpoint; shorten it"
        )
    return ""


register_driver(psycopg.Error, _storage_error)
