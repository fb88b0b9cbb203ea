"""The SQLAlchemy dialect ``duckdb+fiberstore``: duckdb-engine's, with its gaps closed.

The modules ``dialect``, ``compilers``, ``column_types`` and ``reflection`` are the only ones that know
duckdb-engine, whose 0.17 is frozen. The dialect has a name of its own, so a host application's ``duckdb://``
engines stay as they are. When upstream closes a gap, delete its part here:

| part | gap it closes |
|---|---|
| ``connect`` | all cursors share one result (duckdb-engine #1087); see ``duckdb.connection`` for the rest |
| ``preparer`` | leaves a connection open, which makes a forked child crash at its exit; forgets words |
| ``supports_statement_cache`` | every statement is compiled anew |
| ``supports_sane_rowcount`` | row counts are called unreliable, so a stale ORM update passes silently |
| ``supports_constraint_comments`` | comments on constraints are written, which DuckDB has not |
| isolation levels, savepoints, two phases | there is no AUTOCOMMIT; the rest fails in DuckDB's parser |
| ``compilers`` | SERIAL, FOR UPDATE, ``#>``, a ``~`` that matches whole texts, a FLOAT of 4 bytes |
| ``column_types`` | decimals go through float; types of the catalog that become NullType |
| ``reflection`` | it asks for PostgreSQL catalogs that DuckDB lacks (#1285, #1388), and knows no schemas |

``duckdb-sqlalchemy`` closes most of these, too, but its releases pin ``duckdb<2``. On the day that one does
not, it can take the place of duckdb-engine and of the last three parts.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any, Never, TypedDict, Unpack

import duckdb
import duckdb_engine
import sqlalchemy as sa
from duckdb_engine.datatypes import UBigInteger
from sqlalchemy.dialects.postgresql.base import PGIdentifierPreparer
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import InvalidRequestError

from fiberstore.duckdb import fork_guard, functions  # noqa: F401  # functions register themselves
from fiberstore.duckdb.column_types import ExactNumeric, InexactFloat, NativeEnum
from fiberstore.duckdb.compilers import (
    DuckDBCompiler,
    DuckDBDDLCompiler,
    DuckDBTypeCompiler,
    JsonIndex,
    JsonKey,
    JsonPath,
)
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.errors import is_interrupt
from fiberstore.duckdb.modes import make_temporary_folder
from fiberstore.duckdb.reflection import CatalogReflection
from fiberstore.duckdb.wal import check_files, has_two_logs
from fiberstore.sql.engine import FORKED, IN_MEMORY, alembic_loaders

__all__ = ["FiberstoreDialect", "UBigInteger"]

_CONFIG = {
    # Another client of this process with other settings is refused by DuckDB, so nobody changes rows of our
    # files beside the ChangeLock.
    "custom_user_agent": "fiberstore",
    # Nothing is downloaded by itself.
    "autoinstall_known_extensions": "false",
    # The texts of an Arrow batch may exceed 2 GiB.
    "arrow_large_buffer_size": "true",
    # A page looks up its wide columns after its rows are found, not before: half the time for 1,000 logs.
    "late_materialization_max_rows": "10000",
    # Every commit goes through the write-ahead log. A large one that goes around it is a checkpoint, and if
    # that finds the disk full, commits of other threads are lost that had returned (DuckDB 2.0.0).
    "auto_checkpoint_skip_wal_threshold": str(2**62),
}


class _ConnectArguments(TypedDict, total=False):
    database: str
    read_only: bool
    config: dict[str, str | bool | int | float | list[str]]
    url_config: dict[str, str]


class _Preparer(duckdb_engine.DuckDBIdentifierPreparer):  # type: ignore[misc]  # skipped by mypy
    def __init__(self, dialect: Dialect) -> None:
        PGIdentifierPreparer.__init__(self, dialect)
        self.reserved_words.update(_reserved_words())


@cache
def _reserved_words() -> list[str]:
    categories = "('reserved', 'type_function')"  # the others may be names of tables and columns
    words = f"SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN {categories}"  # noqa: S608
    with duckdb.connect(":memory:") as connection:
        return [str(word) for (word,) in connection.execute(words).fetchall()]


class FiberstoreDialect(CatalogReflection, duckdb_engine.Dialect):  # type: ignore[misc]  # skipped by mypy, see pyproject.toml
    """duckdb-engine's dialect with what it lacks; see the module."""

    name = "duckdb"
    driver = "fiberstore"
    supports_statement_cache = True
    supports_sane_rowcount = True
    supports_sane_multi_rowcount = True
    supports_sane_rowcount_returning = False
    supports_native_decimal = True
    supports_identity_columns = False
    supports_comments = True
    supports_constraint_comments = False
    supports_for_update_of = False
    inspector = sa.Inspector
    preparer = _Preparer
    statement_compiler = DuckDBCompiler
    ddl_compiler = DuckDBDDLCompiler
    type_compiler_cls = DuckDBTypeCompiler
    colspecs = {  # noqa: RUF012
        **duckdb_engine.Dialect.colspecs,
        sa.Enum: NativeEnum,
        sa.Float: InexactFloat,
        sa.Numeric: ExactNumeric,
        sa.JSON.JSONIntIndexType: JsonIndex,
        sa.JSON.JSONPathType: JsonPath,
        sa.JSON.JSONStrIndexType: JsonKey,
    }

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401  # upstream's
        super().__init__(**arguments)
        _support_alembic()

    def connect(self, **arguments: Unpack[_ConnectArguments]) -> DuckDBConnection:
        """Open a connection in UTC; settings come from the URL's query or as ``config``."""
        _support_alembic()
        try:
            return self._connect(arguments)
        except Exception as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            raise

    def _connect(self, arguments: _ConnectArguments) -> DuckDBConnection:
        database = arguments["database"]
        if fork_guard.is_inherited(database):  # DuckDB would hand out the parent's instance
            raise duckdb.InvalidInputException(FORKED)
        config = {**_CONFIG, **arguments.get("config", {}), **arguments.get("url_config", {})}
        read_only = arguments.get("read_only", False)
        with fork_guard.opening:
            fork_guard.wait_to_open(database)
            if not database.startswith(IN_MEMORY) and not fork_guard.is_open(database):
                check_files(Path(database))
                if has_two_logs(Path(database)) and not read_only:
                    _join_logs(database, config)
                make_temporary_folder(database)
            raw = fork_guard.opened(
                database, lambda: duckdb.connect(database, read_only, config), lambda opened: opened.close()
            )
            connection = DuckDBConnection(raw, database, self)
        raw.execute("SET TimeZone = 'UTC'")
        return connection

    def do_begin(self, dbapi_connection: DuckDBConnection) -> None:
        """Begin a transaction, unless each statement is to be one."""
        if not dbapi_connection.autocommit:
            dbapi_connection.begin()

    def get_isolation_level_values(self, dbapi_connection: DuckDBConnection) -> list[IsolationLevel]:
        """Return the levels there are."""
        del dbapi_connection
        return ["REPEATABLE READ", "AUTOCOMMIT"]

    def get_default_isolation_level(self, dbapi_connection: DuckDBConnection) -> IsolationLevel:
        """Return DuckDB's one level, snapshot isolation, by the name that PostgreSQL has for it."""
        del dbapi_connection
        return "REPEATABLE READ"

    def get_isolation_level(self, dbapi_connection: DuckDBConnection) -> IsolationLevel:
        """Return the level of a connection."""
        return "AUTOCOMMIT" if dbapi_connection.autocommit else "REPEATABLE READ"

    def set_isolation_level(self, dbapi_connection: DuckDBConnection, level: IsolationLevel) -> None:
        """Let each statement be a transaction, or SQLAlchemy begin them."""
        dbapi_connection.autocommit = level == "AUTOCOMMIT"

    def detect_autocommit_setting(self, dbapi_connection: DuckDBConnection) -> bool:
        """Tell whether each statement is a transaction."""
        return dbapi_connection.autocommit

    def do_savepoint(self, connection: sa.Connection, name: str) -> Never:
        """Refuse savepoints, of which DuckDB has none."""
        del connection, name
        raise InvalidRequestError(
            "DuckDB has no savepoints; leave begin_nested() out, or begin a transaction"
        )

    def do_begin_twophase(self, connection: sa.Connection, xid: object) -> Never:
        """Refuse transactions in two phases, of which DuckDB has none."""
        del connection, xid
        raise InvalidRequestError("DuckDB has no transactions in two phases; leave twophase=True out")

    def do_rollback(self, dbapi_connection: DuckDBConnection) -> None:
        """Roll back; ``DuckDBConnection`` knows whether there is something to."""
        dbapi_connection.rollback()


def _support_alembic() -> None:
    """Let Alembic know DuckDB, if a program has imported it; to import it takes longer than all the rest."""
    if "alembic.ddl.impl" in sys.modules:
        from fiberstore.duckdb import alembic_impl  # noqa: F401  # it registers itself


alembic_loaders.append(_support_alembic)


def _join_logs(database: str, config: dict[str, Any]) -> None:
    """Open a database once only for DuckDB to make one log of two, and forget what else that has made.

    A process that is killed in a checkpoint may leave two. DuckDB 2.0.0 joins and replays them, but then the
    first use of an index may fail, because a deleted key is not there to be deleted, and the next one may
    wait for ever. From the one log, the next opening makes the right indexes.
    """
    with duckdb.connect(database, config=config) as raw:
        raw.execute("PRAGMA disable_checkpoint_on_shutdown")
