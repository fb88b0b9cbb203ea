"""The tables of the lifecycle: config versions, checkpoints, merged fibers, pins; those that are there stay.

Revision: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from duckdb_engine.datatypes import UBigInteger

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
rewrites_data = False

# PostgreSQL has no unsigned integers, and orders text by the rules of a language unless told otherwise.
TEXT = sa.String().with_variant(sa.Text(collation="C"), "postgresql")
UNSIGNED = UBigInteger().with_variant(sa.Numeric(20, 0), "postgresql")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "fiber_config_versions",
        sa.Column("config_version", UNSIGNED, primary_key=True, autoincrement=False),
        sa.Column("content_hash", TEXT),
        sa.Column("content", TEXT),
        sa.Column("parent", UNSIGNED),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("active", sa.Boolean()),
        # At most one is active: true is there once, NULL as often as needed, false never.
        sa.UniqueConstraint("active"),
        sa.CheckConstraint("active"),
        if_not_exists=True,
    )
    op.create_table(
        "fiber_checkpoints",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "fiber_merges",
        sa.Column("fiber_id", sa.Uuid(), primary_key=True),
        sa.Column("survivor_id", sa.Uuid(), nullable=False),
        if_not_exists=True,
    )
    op.create_table("fiber_pins", sa.Column("fiber_id", sa.Uuid(), primary_key=True), if_not_exists=True)
    op.create_table("log_pins", sa.Column("log_id", sa.Uuid(), primary_key=True), if_not_exists=True)


def downgrade() -> None:
    """Drop the tables with their rows."""
    for table_name in (
        "fiber_config_versions",
        "fiber_checkpoints",
        "fiber_merges",
        "fiber_pins",
        "log_pins",
    ):
        op.drop_table(table_name)
