"""The SQLAlchemy dialect ``postgresql+fiberstore``: psycopg's, with connections for the repositories."""

from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGExecutionContext_psycopg

from fiberstore.errors import DatabaseError
from fiberstore.postgresql import arrays, errors, functions, loaders  # noqa: F401  # two register themselves
from fiberstore.postgresql.connect_errors import Target, connect_error, target_of
from fiberstore.postgresql.connection import LEAST_VERSION, PostgresConnection
from fiberstore.postgresql.engine import READ_ONLY
from fiberstore.sql.connection import NATIVE
from fiberstore.sql.models import Json

# What the server has acknowledged is to be on its disk, who waits for a lock is to be told in time, and the
# locks of a client whose machine is gone are not to be kept for hours. A temporary table that an application
# leaves on a connection is not to hide one of ours: pg_temp comes first unless it is named. (Not where it
# would be the only schema there is, or tables would be made in it.)
_SETTINGS = """
SELECT pg_backend_pid(), current_setting('default_transaction_read_only') = 'on',
  set_config('TimeZone', 'UTC', false), set_config('lock_timeout', '10s', false),
  set_config('search_path', concat_ws(', ', current_setting('search_path'),
    CASE WHEN current_schema() <> '' THEN 'pg_temp' END), false),
  set_config('tcp_keepalives_idle', '60', false), set_config('tcp_keepalives_interval', '10', false),
  set_config('tcp_keepalives_count', '3', false),
  set_config('synchronous_commit', CASE current_setting('synchronous_commit')
    WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)
"""
# What nobody has set otherwise: to compile a plan of prune's takes longer than it saves; for many ids,
# the planner would read a whole table, as if the disk had to turn for each of them; a statement whose client
# has gone would run on, with its locks (the server looks for that on Linux).
_OTHER_DEFAULTS = """
SELECT set_config(name, value, false)
FROM pg_settings JOIN (VALUES ('jit', 'off'), ('random_page_cost', '1.1'),
  ('client_connection_check_interval', CASE WHEN version() LIKE '%linux%' THEN '1s' END)
) AS ours (name, value) USING (name)
WHERE source = 'default' AND value IS NOT NULL
"""
_MARK = "SELECT set_config('fiberstore.client', %s, false)"
_MARKED = "SELECT current_setting('fiberstore.client', true)"
_LOOKS_AT_POOLER = 10


class _ExecutionContext(PGExecutionContext_psycopg):
    def create_default_cursor(self) -> Any:  # noqa: ANN401  # as SQLAlchemy has it
        connection: Any = self._dbapi_connection.dbapi_connection
        return connection.native_cursor() if NATIVE in self.execution_options else connection.cursor()


class FiberstorePostgresDialect(PGDialect_psycopg):
    """psycopg's dialect, whose connections the repositories can use."""

    driver = "fiberstore"
    supports_statement_cache = True
    execution_ctx_cls = _ExecutionContext
    _has_sessions = False  # a pooler before the server was seen to keep a session for each connection
    colspecs = {**PGDialect_psycopg.colspecs, Json: Json}  # noqa: RUF012  # our JSON is text to the driver

    def connect(self, *arguments: Any, **options: Any) -> PostgresConnection:  # type: ignore[override]  # noqa: ANN401  # as SQLAlchemy has them
        """Open a connection in UTC.

        Raises:
            DatabaseError: The server cannot be reached or refuses the connection, is too old, does not keep
                its text in UTF-8, or is behind a pooler that shares sessions or ignores ``read_only``.
        """
        target = target_of(options)
        try:
            connection = PostgresConnection.connect(*arguments, **options)
        except (psycopg.Error, UnicodeError) as error:  # the latter where the name of a host is none
            raise connect_error(error, target) from error
        try:
            _check_server(connection, target)
            loaders.register(connection)
            arrays.register(connection)
            backend_pid, is_read_only, *_ = connection.execute(_SETTINGS).fetchone() or ()
            connection.execute(_OTHER_DEFAULTS)
            connection.commit()
            if READ_ONLY in str(options.get("options")) and not is_read_only:
                raise DatabaseError(
                    f"{target} would take changes, though it was opened with read_only=True: a pooler before "
                    "the server has ignored the parameter options; connect to the server itself"
                )
            if backend_pid != connection.info.backend_pid and not self._has_sessions:
                with PostgresConnection.connect(*arguments, **options) as other:
                    _check_sessions(connection, other, target)
                self._has_sessions = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _get_server_version_info(self, connection: Any) -> Any:  # noqa: ANN401  # as SQLAlchemy has it
        """Return PostgreSQL's version, or the one that a server claims to be like."""
        return tuple(map(int, divmod(connection.connection.dbapi_connection.info.server_version, 10_000)))

    def do_ping(self, dbapi_connection: Any) -> bool:  # noqa: ANN401  # as SQLAlchemy has it
        """Return whether a connection of a pool can be used, without asking the server."""
        return not dbapi_connection.is_lost


def _check_sessions(
    connection: psycopg.Connection[Any], other: psycopg.Connection[Any], target: Target
) -> None:
    """Refuse a pooler that shares sessions between clients, as PgBouncer does in transaction mode.

    Then a client loses what it has set, or another sees it, sooner or later: at once in a pool that is quiet.
    """
    for _ in range(_LOOKS_AT_POOLER):
        mark = uuid4().hex
        connection.execute(_MARK, (mark,))
        connection.commit()
        seen = [each.execute(_MARKED).fetchone() for each in (other, connection)]
        other.commit()
        connection.commit()
        if seen[0] == (mark,) or seen[1] != (mark,):
            raise DatabaseError(
                f"a pooler before {target} shares its sessions, which locks, settings and prepared "
                "statements do not survive; let it pool sessions (pool_mode=session), or connect to the "
                "server itself"
            )


def _check_server(connection: psycopg.Connection[Any], target: Target) -> None:
    version = connection.info.server_version // 10_000
    if version < LEAST_VERSION:
        raise DatabaseError(
            f"the server of {target} is PostgreSQL {version}, and fiberstore needs {LEAST_VERSION} or newer; "
            "upgrade it"
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise DatabaseError(
            f"{target} keeps its text in {encoding}, and fiberstore needs UTF8; make another with "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
