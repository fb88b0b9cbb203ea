"""Alembic from Python, on an engine that is open already."""

import logging
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.ddl.impl import DefaultImpl
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from fiberstore.errors import DatabaseError, SchemaVersionError
from fiberstore.models import Base

VERSION_TABLE = "fiberstore_alembic_version"

_alembic_lock = threading.Lock()
_logger = logging.getLogger(__name__)


class DuckDBImpl(DefaultImpl):
    """What Alembic must know of DuckDB: DDL is transactional. Upstream gap: Alembic has no DuckDB at all."""

    __dialect__ = "duckdb"
    transactional_ddl = True


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Tell Alembic to leave alone the tables that an application keeps beside ours."""
    return kind != "table" or name in Base.metadata.tables


def head() -> str:
    """Return the newest revision of this release."""
    return str(_scripts().get_current_head())


def current(connection: sa.Connection) -> str | None:
    """Return the revision the database is at; None before the first migration.

    Raises:
        DatabaseError: The version table does not hold one revision.
    """
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    try:
        return context.get_current_revision()
    except CommandError as error:
        raise DatabaseError(f"table {VERSION_TABLE}: {error}") from error


def upgrade(engine: sa.Engine) -> None:
    """Bring the database to the newest revision, in one transaction; do nothing if it is there.

    Alembic keeps the migration that runs in globals of its modules: it must not run in other threads of the
    process meanwhile.

    Raises:
        SchemaVersionError: The database is at a revision this release does not know; it is left alone.
        DatabaseError: Tables or indexes of the same names are others; they are left alone.
    """
    with _alembic_lock, engine.connect() as connection:
        scripts = _scripts()
        found, newest = current(connection), str(scripts.get_current_head())
        if found == newest:
            return
        if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
            raise SchemaVersionError(found, newest)
        connection.rollback()
        try:
            with connection.begin():
                command.upgrade(_config(connection), "head")
        except CommandError as error:
            raise DatabaseError(str(error)) from error
        _logger.info("the database is migrated from revision %s to %s", found, newest)


def differences(engine: sa.Engine) -> list[str]:
    """Return how the database differs from the models, a sentence each; empty if it does not."""
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "compare_server_default": True,
                "include_name": is_ours,
            },
        )
        return [
            _sentence(difference)
            for found in compare_metadata(context, Base.metadata)
            for difference in (found if isinstance(found, list) else [found])
        ]


def _sentence(difference: tuple[Any, ...]) -> str:
    match difference:
        case ("add_table", table):
            thing, what = f"table {table.name}", "is missing"
        case ("add_index", index):
            thing, what = f"index {index.name} on {index.table.name}", "is missing"
        case ("remove_index", index):
            thing, what = f"index {index.name} on {index.table.name}", "is not fiberstore's"
        case ("add_column", _, table, column):
            thing, what = f"column {table}.{column.name}", "is missing"
        case ("remove_column", _, table, column):
            thing, what = f"column {table}.{column.name}", "is not fiberstore's"
        case (change, _, table, column, _, found, expected):
            what = f"has {change.removeprefix('modify_')} {found!r}, and should have {expected!r}"
            thing = f"column {table}.{column}"
        case _:
            thing, what = "something else", f"differs: {difference}"
    return f"{thing} {what}"


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_migrations()))


def _migrations() -> Path:
    package = Path(str(files("fiberstore")))
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
