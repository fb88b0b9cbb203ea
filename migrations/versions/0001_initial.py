"""The three tables and their indexes.

Tables that are there already, made by plain ``CREATE TABLE IF NOT EXISTS``, are kept with their rows if their
names, columns, collations and constraints are the same; otherwise the migration fails and leaves everything
as it was.

Revision: 0001
"""

import re
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from duckdb_engine.datatypes import UBigInteger
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# PostgreSQL has no unsigned integers, and orders text by the rules of a language unless told otherwise.
TEXT = sa.String().with_variant(sa.Text(collation="C"), "postgresql")
UNSIGNED = UBigInteger().with_variant(sa.Numeric(20, 0), "postgresql")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")

INDEXES = {
    "idx_raw_logs_timestamp": ("raw_logs", "timestamp"),
    "idx_raw_logs_source": ("raw_logs", "source_id"),
    "idx_fibers_type": ("fibers", "fiber_type"),
    "idx_memberships_fiber": ("fiber_memberships", "fiber_id"),
}


def tables() -> dict[str, list[sa.Column[Any]]]:
    """Return the columns of each table."""
    return {
        "raw_logs": [
            sa.Column("log_id", sa.Uuid(), nullable=False, primary_key=True),
            sa.Column("timestamp", sa.TIMESTAMP(timezone=True), nullable=False),
            sa.Column("source_id", TEXT, nullable=False),
            sa.Column("raw_text", TEXT, nullable=False),
            sa.Column("ingestion_time", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()")),
            sa.Column("config_version", UNSIGNED, nullable=False),
        ],
        "fibers": [
            sa.Column("fiber_id", sa.Uuid(), nullable=False, primary_key=True),
            sa.Column("fiber_type", TEXT, nullable=False),
            sa.Column("config_version", UNSIGNED, nullable=False),
            sa.Column("attributes", JSON),
            sa.Column("first_activity", sa.TIMESTAMP(timezone=True), nullable=False),
            sa.Column("last_activity", sa.TIMESTAMP(timezone=True), nullable=False),
            sa.Column("closed", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        ],
        "fiber_memberships": [
            sa.Column("log_id", sa.Uuid(), nullable=False, primary_key=True),
            sa.Column("fiber_id", sa.Uuid(), nullable=False, primary_key=True),
            sa.Column("config_version", UNSIGNED, nullable=False),
        ],
    }


def upgrade() -> None:
    """Create what is missing, and check what is there."""
    check = not context.is_offline_mode() and _has_tables()
    for table_name, columns in tables().items():
        if check:
            _check_spelling(table_name)
        op.create_table(table_name, *columns, if_not_exists=True)
        if check:
            _check_table(table_name, columns)
    for index_name, (table_name, column_name) in INDEXES.items():
        op.create_index(index_name, table_name, [column_name], if_not_exists=True)
        if check:
            _check_index(index_name, table_name, column_name)


def downgrade() -> None:
    """Drop the tables with their rows."""
    for index_name, (table_name, _) in INDEXES.items():
        op.drop_index(index_name, table_name)
    for table_name in tables():
        op.drop_table(table_name)


def _has_tables() -> bool:
    """Tell whether there is anything beside Alembic's own table."""
    return sa.inspect(op.get_bind()).get_table_names() != [op.get_context().version_table]


def _check_spelling(table_name: str) -> None:
    """Refuse a name that DuckDB, to which upper and lower case are the same, takes for that of the table."""
    inspector = sa.inspect(op.get_bind())
    names = [*inspector.get_table_names(), *inspector.get_view_names()]
    alike = [name for name in names if name.lower() == table_name and name != table_name]
    if alike and op.get_bind().dialect.name == "duckdb":
        raise CommandError(
            f"table {alike[0]} exists, which DuckDB takes for {table_name}; "
            f'ALTER TABLE "{alike[0]}" RENAME TO {table_name}'
        )


def _check_table(table_name: str, columns: list[sa.Column[Any]]) -> None:
    """Refuse a table that was there before with other columns or constraints."""
    bind = op.get_bind()
    inspector = sa.inspect(bind)
    collations = _collations(table_name)

    def described(
        name: str, type_: sa.types.TypeEngine[Any], nullable: bool, collation: str | None = None
    ) -> str:
        text = type_.compile(bind.dialect)
        collated = f' COLLATE "{collation}"' if collation and " COLLATE " not in text else ""
        return f"{name} {text}{collated}{'' if nullable else ' NOT NULL'}"

    expected = {described(column.name, column.type, bool(column.nullable)) for column in columns}
    found = {
        described(column["name"], column["type"], column["nullable"], collations.get(column["name"]))
        for column in inspector.get_columns(table_name)
    }
    if found != expected:
        raise CommandError(
            f"table {table_name} exists with other columns than fiberstore's: it has "
            f"{sorted(found - expected)} where {sorted(expected - found)} should be; rename it or alter it"
        )
    key = {column.name for column in columns if column.primary_key}
    if set(inspector.get_pk_constraint(table_name)["constrained_columns"]) != key:
        raise CommandError(f"table {table_name} exists without the primary key {sorted(key)}; rename it")
    if inspector.get_unique_constraints(table_name) or inspector.get_check_constraints(table_name):
        raise CommandError(f"table {table_name} exists with constraints that fiberstore's has not; rename it")
    for foreign_key in inspector.get_foreign_keys(table_name):
        raise CommandError(
            f"table {table_name} exists with a foreign key to {foreign_key['referred_table']}, and a "
            "membership may come before its log and its fiber; drop the constraint, or rename the table"
        )
    for index in inspector.get_indexes(table_name):
        if index["unique"]:
            raise CommandError(
                f"table {table_name} exists with the unique index {index['name']}, which would keep new rows "
                "out; drop it"
            )


def _collations(table_name: str) -> dict[str, str]:
    """Return the collations of columns, which are not reflected: on PostgreSQL not by SQLAlchemy 2.0."""
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        ddl = bind.scalar(
            sa.text(
                "SELECT sql FROM duckdb_tables() WHERE table_name = :name AND schema_name = current_schema() "
                "AND database_name = current_database()"
            ),
            {"name": table_name},
        )
        return dict(re.findall(r'(\w+)"? VARCHAR COLLATE "?([\w.]+)', str(ddl)))
    rows = bind.execute(
        sa.text(
            "SELECT attname, collname FROM pg_attribute JOIN pg_collation AS c ON c.oid = attcollation "
            "WHERE attrelid = to_regclass(:name) AND collname <> 'default'"
        ),
        {"name": table_name},
    )
    return {str(column): str(collation) for column, collation in rows}


def _check_index(index_name: str, table_name: str, column_name: str) -> None:
    """Refuse an index of the same name on something else."""
    found = {index["name"]: index for index in sa.inspect(op.get_bind()).get_indexes(table_name)}
    index = found.get(index_name)
    if index is None or index["column_names"] != [column_name] or index["unique"]:
        raise CommandError(
            f"index {index_name} exists, but is not a plain one on {table_name} ({column_name}) of that very "
            "spelling; drop it"
        )
