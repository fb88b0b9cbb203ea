"""On PostgreSQL, the order in which logs and fibers are stored as a column, in place of tables and triggers.

The column holds the number of the transaction that stored the row, by its default. Rows that are there get 0,
without being written: to pages and tails they come before all others. Positions and cursors made before are
refused then. The index takes one read of each table, for which reads and writes wait.

Revision: 0005
Revises: 0004
"""

from typing import Any, cast

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
rewrites_data = False

TABLES = ("raw_logs", "fibers")

# A fiber of another type is a new row to those who ask for that type.
RETYPED = """
CREATE FUNCTION fibers_arrive_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.arrived = pg_current_xact_id()::text::bigint;
  RETURN NEW;
END $$;
CREATE TRIGGER fibers_arrive_again BEFORE UPDATE OF fiber_type ON fibers FOR EACH ROW
  WHEN (OLD.fiber_type <> NEW.fiber_type) EXECUTE FUNCTION fibers_arrive_again();
"""


def upgrade() -> None:
    """Add the columns, and drop what noted the order before."""
    before = noted_before()
    if not before.is_for_this_server():
        return
    before.downgrade()
    for table in TABLES:
        # A constant takes no rewriting of rows, and the default of new ones is another.
        op.add_column(table, sa.Column("arrived", sa.BigInteger(), nullable=False, server_default="0"))
        op.alter_column(
            table, "arrived", server_default=sa.text("CAST(CAST(pg_current_xact_id() AS text) AS bigint)")
        )
        op.create_index(f"idx_{table}_arrived", table, ["arrived"])
    op.execute(RETYPED)


def downgrade() -> None:
    """Drop the columns, and note the order as before; of rows that are there, it is lost."""
    before = noted_before()
    if not before.is_for_this_server():
        return
    op.execute("DROP TRIGGER IF EXISTS fibers_arrive_again ON fibers")
    op.execute("DROP FUNCTION fibers_arrive_again()")
    for table in TABLES:
        op.drop_column(table, "arrived")
    before.upgrade()


def noted_before() -> Any:  # noqa: ANN401  # a module
    """Return the revision that made the tables and triggers."""
    return cast("Any", op.get_context().script).get_revision("0003").module
