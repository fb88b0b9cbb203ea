"""Alembic's environment on the command line: the database of `-x url=…` or FIBERSTORE_URL."""

import os
from typing import Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError

from fiberstore.duckdb.migrate import back_up_before_rewrite
from fiberstore.errors import StorageError
from fiberstore.opening import create_engine
from fiberstore.sql import models
from fiberstore.sql.engine import is_postgresql
from fiberstore.sql.migrate import is_of_engine, is_ours, note_usable
from fiberstore.sql.revisions import VERSION_TABLE
from fiberstore.sql.translate import translate_errors

# A migration must not import fiberstore: its types are written as the ones below them.
_RENDERED = {
    models.Timestamp: "sa.TIMESTAMP(timezone=True)",
    models.UnsignedBigInt: 'UBigInteger().with_variant(sa.Numeric(20, 0), "postgresql")',
    models.Text: 'sa.String().with_variant(sa.Text(collation="C"), "postgresql")',
    models.Json: 'sa.JSON().with_variant(JSONB(), "postgresql")',
}


def render_item(kind: str, item: object, autogen_context: AutogenContext) -> str | Literal[False]:
    """Render fiberstore's column types; leave the rest to Alembic."""
    if kind != "type" or type(item) not in _RENDERED:
        return False
    if isinstance(item, models.UnsignedBigInt):
        autogen_context.imports.add("from duckdb_engine.datatypes import UBigInteger")
    if isinstance(item, models.Json):
        autogen_context.imports.add("from sqlalchemy.dialects.postgresql import JSONB")
    return _RENDERED[type(item)]


def named_database() -> str | None:
    """Return the database that the command line or the environment names."""
    return context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("FIBERSTORE_URL")


def offline_dialect() -> str:
    """Return the dialect to write SQL text in."""
    return "postgresql" if is_postgresql(named_database() or "") else "duckdb"


def database_url() -> str:
    """Return the database that is named, as there must be one."""
    url = named_database()
    if not url:
        raise CommandError("no database given: use `alembic -x url=store.duckdb …` or set FIBERSTORE_URL")
    return url


def moves_the_database() -> bool:
    """Tell a command that has a revision to go to from one that only looks."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def run(connection: sa.Connection | None) -> None:
    """Run the migrations, on a connection or (None) as SQL text."""
    context.configure(
        connection=connection,
        dialect_name=None if connection else offline_dialect(),
        dialect_opts={} if connection else {"paramstyle": "named"},
        literal_binds=connection is None,
        target_metadata=models.Base.metadata,
        version_table=VERSION_TABLE,
        render_item=render_item,
        include_name=is_ours,
        include_object=is_of_engine(connection.dialect.name if connection else offline_dialect()),
        compare_server_default=True,
        transaction_per_migration=False,
        on_version_apply=note_usable,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run(None)
else:
    try:
        engine = create_engine(database_url())
        try:
            with translate_errors(), engine.connect() as opened:
                if opened.dialect.name == "duckdb" and moves_the_database():
                    back_up_before_rewrite(opened)
                run(opened)
        finally:
            engine.dispose()
    except StorageError as error:
        raise CommandError(str(error)) from error  # which the command line prints in a line
