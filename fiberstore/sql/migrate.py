"""Alembic from Python, on an engine that is open already."""

import logging
import threading
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from fiberstore.errors import DatabaseError, SchemaVersionError
from fiberstore.sql import revisions
from fiberstore.sql.engine import alembic_loaders
from fiberstore.sql.models import TABLES_BESIDE, Base
from fiberstore.sql.revisions import VERSION_TABLE

# A column of PostgreSQL's with its indexes, which the models have not: rows are written without it.
_NOTES_ARRIVAL = ("arrived", "idx_raw_logs_arrived", "idx_fibers_arrived")

_USABLE = "revision {revision}: releases with revision {oldest} can use it"
_alembic_lock = threading.Lock()
_logger = logging.getLogger(__name__)

for _load in alembic_loaders:  # of engines that were there before Alembic
    _load()


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Tell Alembic to leave alone the tables that an application keeps beside ours."""
    return kind != "table" or name in Base.metadata.tables


def is_host_object(
    thing: sa.schema.SchemaItem, name: str | None, kind: str, *_comparison: object
) -> bool:  # fmt: skip
    """Tell Alembic to leave the store's tables out of an application's migrations.

    It stands in the application's ``env.py``, as ``context.configure(…, include_object=is_host_object)``.

    Args:
        thing: A table, a column or another part of the database or of the metadata.
        name: Its name.
        kind: ``"table"``, ``"column"``, …

    Returns:
        False for the store's tables, and that of its revision; True for everything else.
    """
    del thing
    if kind != "table" or name is None:
        return True
    return name not in {*Base.metadata.tables, *TABLES_BESIDE.values(), VERSION_TABLE}


def is_of_engine(name: str) -> Callable[..., bool]:
    """Return the filter by which Alembic leaves out the indexes of the other engine, and PostgreSQL's order.

    Args:
        name: Name of the dialect.
    """
    unmapped = _NOTES_ARRIVAL if name == "postgresql" else ()

    def is_included(thing: sa.schema.SchemaItem, *_others: object) -> bool:
        return str(thing.info.get("engine", name)) == name and getattr(thing, "name", None) not in unmapped

    return is_included


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


def upgrade(engine: sa.Engine, before: Callable[[sa.Connection], object] | None = None) -> None:
    """Bring the database to the newest revision, in one transaction; do nothing if it is there or newer.

    Alembic keeps the migration that runs in globals of its modules: it must not run in other threads of the
    process meanwhile.

    Args:
        engine: The engine.
        before: Called with a connection outside a transaction, before the first migration runs.

    Raises:
        SchemaVersionError: The database is at a revision that this release does not know, and that has done
            more than add to it; it is left alone.
        DatabaseError: Tables or indexes of the same names are others; they are left alone.
    """
    with _alembic_lock, _connected(engine) as connection:
        scripts = _scripts()
        found, newest = current(connection), str(scripts.get_current_head())
        if found == newest:
            return
        if not is_known(found):
            if is_usable(connection, found):
                return
            raise SchemaVersionError(str(found), newest)
        connection.rollback()
        if before is not None:
            before(connection)
        try:
            with connection.begin():
                _keep_others_out(connection)
                adopts = found is None and not Base.metadata.tables.keys().isdisjoint(
                    sa.inspect(connection).get_table_names()
                )
                _run_migrations(connection, scripts)
                if adopts and (others := _differences(connection)):
                    raise DatabaseError(
                        f"tables that were there before are others: {'; '.join(others)}; rename or drop them"
                    )
        except CommandError as error:
            raise DatabaseError(str(error)) from error
        _logger.info("the database is migrated from revision %s to %s", found, newest)


def _connected(engine: sa.Engine) -> sa.Connection:
    """Return a connection that sees what another process has committed while this one waited for it."""
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    return engine.connect()


def _keep_others_out(connection: sa.Connection) -> None:
    """Wait until no other process migrates the database; only one at a time has a DuckDB file."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(VERSION_TABLE))))


def rewrites_rows(connection: sa.Connection) -> bool:
    """Tell whether a migration that the database has not had yet says ``rewrites_data = True``.

    Args:
        connection: One outside a transaction.
    """
    found, scripts = current(connection), _scripts()
    connection.rollback()
    if not is_known(found):
        return False
    pending = scripts.iterate_revisions(head(), found or "base")
    if not any(getattr(script.module, "rewrites_data", False) for script in pending):
        return False
    has_tables = bool(sa.inspect(connection).get_table_names())
    connection.rollback()
    return has_tables


def differences(engine: sa.Engine) -> list[str]:
    """Return how the database differs from the models, a sentence each; empty if it does not."""
    with engine.connect() as connection:
        return _differences(connection)


def _differences(connection: sa.Connection) -> list[str]:
    context = MigrationContext.configure(
        connection,
        opts={
            "version_table": VERSION_TABLE,
            "compare_server_default": True,
            "include_name": is_ours,
            "include_object": is_of_engine(connection.dialect.name),
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
        case ("remove_fk", foreign_key):
            referred = foreign_key.elements[0].target_fullname.partition(".")[0]
            thing, what = f"foreign key from {foreign_key.table.name} to {referred}", "is not fiberstore's"
        case ("add_column", _, table, column):
            thing, what = f"column {table}.{column.name}", "is missing"
        case ("remove_column", _, table, column):
            thing, what = f"column {table}.{column.name}", "is not fiberstore's"
        case ("modify_default", _, table, column, _, found, expected):
            found, expected = (default and str(default.arg) for default in (found, expected))
            thing, what = f"column {table}.{column}", f"has default {found}, and should have {expected}"
        case (change, _, table, column, _, found, expected):
            what = f"has {change.removeprefix('modify_')} {found!r}, and should have {expected!r}"
            thing = f"column {table}.{column}"
        case _:
            thing, what = "something else", f"differs: {difference}"
    return f"{thing} {what}"


def is_known(revision: str | None) -> bool:
    """Tell whether this release has such a revision; None, before the first, is known."""
    return revision is None or revision in {script.revision for script in _scripts().walk_revisions()}


def _run_migrations(connection: sa.Connection, scripts: ScriptDirectory) -> None:
    """Run what the database has not had yet, as ``alembic upgrade head`` does.

    That command loads ``env.py`` and every migration anew, which takes longer than the migrations. Of what
    ``env.py`` says, only the version table and the one transaction, which is the caller's, matter here.
    """

    def pending(found: tuple[str, ...], _context: MigrationContext) -> list[Any]:
        return scripts._upgrade_revs("head", cast("str", found))  # Alembic has no public way

    with EnvironmentContext(Config(), scripts, fn=pending) as environment:
        environment.configure(connection, version_table=VERSION_TABLE, on_version_apply=note_usable)
        environment.run_migrations()


def _scripts() -> ScriptDirectory:
    return _scripts_in(revisions.migrations())


def note_usable(ctx: MigrationContext, step: object, heads: Collection[str], run_args: object) -> None:
    """Note beside a revision from which one on releases can use it, as migrations say by ``additive = True``.

    It is for releases that do not know the revision; see ``is_usable``. Alembic calls it after each step.
    """
    del step, run_args
    assert ctx.script is not None  # noqa: S101  # a migration has come from it
    for head in heads:
        script = ctx.script.get_revision(head)
        while getattr(script.module, "additive", False):
            script = ctx.script.get_revision(cast("str", script.down_revision))
        comment = _USABLE.format(revision=head, oldest=script.revision)
        ctx.impl.execute(sa.text(f"COMMENT ON TABLE {VERSION_TABLE} IS '{comment}'"))


def is_usable(connection: sa.Connection, revision: str | None) -> bool:
    """Tell whether this release can read and write a database, though it may be at a newer revision."""
    if is_known(revision):
        return revision in (None, head())
    comment = sa.inspect(connection).get_table_comment(VERSION_TABLE)["text"] or ""
    known = (
        _USABLE.format(revision=revision, oldest=script.revision) for script in _scripts().walk_revisions()
    )
    return comment in known


@cache
def _scripts_in(folder: Path) -> ScriptDirectory:
    """Load the migrations, once for all databases of the process."""
    scripts = ScriptDirectory(str(folder))
    scripts.get_current_head()  # loads them; from then on, threads only read
    return scripts
