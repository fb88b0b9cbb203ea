"""The SQLAlchemy dialect ``duckdb+fiberstore``: duckdb-engine's, with its gaps closed.

This is the only module that knows duckdb-engine, whose 0.17 is frozen. The dialect has a name of its own, so
a host application's ``duckdb://`` engines stay as they are. When upstream closes a gap, delete its part here:

| part | gap it closes |
|---|---|
| ``connect`` | all cursors share one result (duckdb-engine #1087); see ``duckdb.connection`` for the rest |
| ``colspecs`` | keys of JSON objects are taken for paths and wildcards, if they look like it |
| ``preparer`` | leaves a connection of DuckDB's open, which makes a forked child crash at its exit |
| ``supports_statement_cache`` | every statement is compiled anew |
| ``supports_sane_rowcount`` | row counts are called unreliable, so a stale ORM update passes silently |
| ``get_*`` | reflection asks for PostgreSQL catalogs that DuckDB lacks (#1285, #1388) |
| ``has_multi_table`` | the same |
| ``get_multi_*`` | the same; SQLAlchemy's own default is one call of ``get_*`` for each table |
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypedDict, Unpack

import duckdb
import duckdb_engine
import sqlalchemy as sa
from duckdb_engine.datatypes import UBigInteger
from sqlalchemy.dialects.postgresql.base import PGIdentifierPreparer
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.interfaces import (
    IsolationLevel,
    ReflectedCheckConstraint,
    ReflectedColumn,
    ReflectedForeignKeyConstraint,
    ReflectedIndex,
    ReflectedPrimaryKeyConstraint,
    ReflectedTableComment,
    ReflectedUniqueConstraint,
)
from sqlalchemy.exc import NoSuchTableError

from fiberstore.duckdb import fork_guard, functions  # noqa: F401  # functions register themselves
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.duckdb.errors import is_interrupt
from fiberstore.duckdb.modes import make_temporary_folder
from fiberstore.duckdb.wal import check_files, has_two_logs
from fiberstore.sql.engine import FORKED, IN_MEMORY

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


_TYPES = {"ubigint": UBigInteger, "decimal": sa.Numeric}  # missing from upstream's ischema_names


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
    words = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
    with duckdb.connect(":memory:") as connection:
        return [str(word) for (word,) in connection.execute(words).fetchall()]


class _JsonKey(sa.JSON.JSONStrIndexType):
    """A key of a JSON object, as a JSON pointer: DuckDB takes some other texts for paths and wildcards."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        del dialect
        return lambda key: "/" + key.replace("~", "~0").replace("/", "~1")


class FiberstoreDialect(duckdb_engine.Dialect):  # type: ignore[misc]  # skipped by mypy, see pyproject.toml
    """duckdb-engine's dialect with what it lacks; see the module."""

    name = "duckdb"
    driver = "fiberstore"
    supports_statement_cache = True
    supports_sane_rowcount = True
    supports_sane_multi_rowcount = True
    supports_sane_rowcount_returning = False
    inspector = sa.Inspector
    preparer = _Preparer
    colspecs = {**duckdb_engine.Dialect.colspecs, sa.JSON.JSONStrIndexType: _JsonKey}  # noqa: RUF012

    def connect(self, **arguments: Unpack[_ConnectArguments]) -> DuckDBConnection:
        """Open a connection in UTC; settings come from the URL's query or as ``config``."""
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

    def reset_isolation_level(self, dbapi_connection: DuckDBConnection) -> None:
        """Let SQLAlchemy begin transactions."""
        dbapi_connection.autocommit = False

    def detect_autocommit_setting(self, dbapi_connection: DuckDBConnection) -> bool:
        """Tell whether each statement is a transaction."""
        return dbapi_connection.autocommit

    def do_rollback(self, dbapi_connection: DuckDBConnection) -> None:
        """Roll back; ``DuckDBConnection`` knows whether there is something to."""
        dbapi_connection.rollback()

    def get_columns(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedColumn]:
        """Reflect the columns, in the order of the table."""
        rows = _catalog(
            connection,
            "SELECT column_name, data_type, is_nullable, column_default, comment FROM duckdb_columns() "
            "WHERE table_name = :table AND schema_name = :schema AND database_name = current_database() "
            "ORDER BY column_index",
            table_name,
            schema,
        )
        if not rows:
            raise NoSuchTableError(table_name)
        return [
            ReflectedColumn(
                name=row.column_name,
                type=self._type_of(row.data_type),
                nullable=row.is_nullable,
                default=row.column_default,
                comment=row.comment,
            )
            for row in rows
        ]

    def get_pk_constraint(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> ReflectedPrimaryKeyConstraint:
        """Reflect the primary key."""
        for name, columns in _constraints(connection, table_name, schema, "PRIMARY KEY"):
            return ReflectedPrimaryKeyConstraint(name=name, constrained_columns=columns)
        return ReflectedPrimaryKeyConstraint(name=None, constrained_columns=[])

    def get_unique_constraints(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedUniqueConstraint]:
        """Reflect the unique constraints."""
        found = _constraints(connection, table_name, schema, "UNIQUE")
        return [ReflectedUniqueConstraint(name=name, column_names=columns) for name, columns in found]

    def get_indexes(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedIndex]:
        """Reflect the secondary indexes; an expression stands where a column's name would."""
        columns = {column["name"] for column in self.get_columns(connection, table_name, schema)}
        rows = _catalog(
            connection,
            "SELECT index_name, is_unique, expressions::VARCHAR[] AS expressions FROM duckdb_indexes() "
            "WHERE table_name = :table AND schema_name = :schema AND database_name = current_database() "
            "ORDER BY index_name",
            table_name,
            schema,
        )
        return [_index(row.index_name, row.is_unique, row.expressions, columns) for row in rows]

    def get_foreign_keys(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedForeignKeyConstraint]:
        """Reflect the foreign keys."""
        rows = _catalog(
            connection,
            "SELECT constraint_name, constraint_column_names, referenced_table, referenced_column_names "
            "FROM duckdb_constraints() WHERE table_name = :table AND schema_name = :schema "
            "AND database_name = current_database() AND constraint_type = 'FOREIGN KEY' "
            "ORDER BY constraint_index",
            table_name,
            schema,
        )
        return [
            ReflectedForeignKeyConstraint(
                name=row.constraint_name,
                constrained_columns=list(row.constraint_column_names),
                referred_schema=schema,
                referred_table=row.referenced_table,
                referred_columns=list(row.referenced_column_names),
                options={},
            )
            for row in rows
        ]

    def get_check_constraints(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> list[ReflectedCheckConstraint]:
        """Reflect the check constraints."""
        rows = _catalog(
            connection,
            "SELECT constraint_name, expression FROM duckdb_constraints() "
            "WHERE table_name = :table AND schema_name = :schema AND database_name = current_database() "
            "AND constraint_type = 'CHECK' ORDER BY constraint_index",
            table_name,
            schema,
        )
        return [ReflectedCheckConstraint(name=row.constraint_name, sqltext=row.expression) for row in rows]

    def get_table_comment(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> ReflectedTableComment:
        """Reflect the comment on a table."""
        rows = _catalog(
            connection,
            "SELECT comment FROM duckdb_tables() WHERE table_name = :table AND schema_name = :schema "
            "AND database_name = current_database()",
            table_name,
            schema,
        )
        return ReflectedTableComment(text=rows[0].comment if rows else None)

    def get_table_options(
        self, connection: sa.Connection, table_name: str, schema: str | None = None, **_kw: object
    ) -> dict[str, object]:
        """Return nothing: DuckDB's tables have no options."""
        del connection, table_name, schema
        return {}

    def has_multi_table(
        self, connection: sa.Connection, table_names: Sequence[str], schema: str | None = None, **_kw: object
    ) -> list[tuple[tuple[str | None, str], bool]]:
        """Tell of each table whether it is there."""
        return [((schema, name), self.has_table(connection, name, schema)) for name in table_names]

    get_multi_columns = DefaultDialect.get_multi_columns
    get_multi_pk_constraint = DefaultDialect.get_multi_pk_constraint
    get_multi_unique_constraints = DefaultDialect.get_multi_unique_constraints
    get_multi_indexes = DefaultDialect.get_multi_indexes
    get_multi_foreign_keys = DefaultDialect.get_multi_foreign_keys
    get_multi_check_constraints = DefaultDialect.get_multi_check_constraints
    get_multi_table_comment = DefaultDialect.get_multi_table_comment
    get_multi_table_options = DefaultDialect.get_multi_table_options

    def _type_of(self, data_type: str) -> sa.types.TypeEngine[Any]:
        if data_type.endswith("[]"):
            return sa.ARRAY(self._type_of(data_type[:-2]))
        name, _, arguments = data_type.lower().partition("(")
        numbers = [int(number) for number in arguments.rstrip(")").split(",") if number.strip().isdigit()]
        if name == "timestamp with time zone":
            return sa.TIMESTAMP(timezone=True)
        known = _TYPES.get(name) or self.ischema_names.get(name, sa.types.NullType)
        reflected: sa.types.TypeEngine[Any] = known(*numbers)
        return reflected


def _join_logs(database: str, config: dict[str, Any]) -> None:
    """Open a database once only for DuckDB to make one log of two, and forget what else that has made.

    A process that is killed in a checkpoint may leave two. DuckDB 2.0.0 joins and replays them, but then the
    first use of an index may fail, because a deleted key is not there to be deleted, and the next one may
    wait for ever. From the one log, the next opening makes the right indexes.
    """
    with duckdb.connect(database, config=config) as raw:
        raw.execute("PRAGMA disable_checkpoint_on_shutdown")


def _catalog(
    connection: sa.Connection, query: str, table_name: str, schema: str | None
) -> Sequence[sa.Row[*tuple[object, ...]]]:
    return connection.execute(sa.text(query), {"table": table_name, "schema": schema or "main"}).all()


def _constraints(
    connection: sa.Connection, table_name: str, schema: str | None, kind: str
) -> list[tuple[str, list[str]]]:
    query = (
        "SELECT constraint_name, constraint_column_names FROM duckdb_constraints() "
        "WHERE table_name = :table AND schema_name = :schema AND database_name = current_database() "
        "AND constraint_type = :kind ORDER BY constraint_index"
    )
    parameters = {"table": table_name, "schema": schema or "main", "kind": kind}
    return [(name, list(columns)) for name, columns in connection.execute(sa.text(query), parameters)]


def _index(name: str, unique: bool, expressions: list[str], columns: set[str]) -> ReflectedIndex:
    names = [text.strip("'").strip('"') for text in expressions]  # DuckDB quotes reserved words twice
    plain: list[str | None] = [text if text in columns else None for text in names]
    index = ReflectedIndex(name=name, unique=unique, column_names=plain)
    if None in plain:
        index["expressions"] = names
    return index
