"""On PostgreSQL, the order in which logs and fibers are stored; DuckDB has it without any table.

A trigger notes for each new row the number of the transaction that stores it, and forgets it with the row.

Revision: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
rewrites_data = False

KEYS = {"log_arrivals": ("raw_logs", "log_id"), "fiber_arrivals": ("fibers", "fiber_id")}

# A fiber of another type is a new row to those who ask for that type.
RETYPED = """
CREATE FUNCTION fiber_arrivals_renew() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE fiber_arrivals SET xid = pg_current_xact_id()::text::bigint, place = DEFAULT
    WHERE fiber_id = NEW.fiber_id;
  RETURN NULL;
END $$;
CREATE TRIGGER fiber_arrivals_renew AFTER UPDATE OF fiber_type ON fibers FOR EACH ROW
  WHEN (OLD.fiber_type <> NEW.fiber_type) EXECUTE FUNCTION fiber_arrivals_renew();
"""

FUNCTIONS = """
CREATE FUNCTION {arrivals}_add() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO {arrivals} ({key}, xid) SELECT {key}, pg_current_xact_id()::text::bigint FROM arrived;
  RETURN NULL;
END $$;
CREATE FUNCTION {arrivals}_remove() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM {arrivals} USING gone WHERE {arrivals}.{key} = gone.{key};
  RETURN NULL;
END $$;
CREATE FUNCTION {arrivals}_clear() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM {arrivals};
  RETURN NULL;
END $$;
CREATE TRIGGER {arrivals}_clear AFTER TRUNCATE ON {table}
  FOR EACH STATEMENT EXECUTE FUNCTION {arrivals}_clear();
CREATE TRIGGER {arrivals}_add AFTER INSERT ON {table} REFERENCING NEW TABLE AS arrived
  FOR EACH STATEMENT EXECUTE FUNCTION {arrivals}_add();
CREATE TRIGGER {arrivals}_remove AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION {arrivals}_remove();
INSERT INTO {arrivals} ({key}, xid) SELECT {key}, pg_current_xact_id()::text::bigint FROM {table};
"""


def is_for_this_server() -> bool:
    """Tell PostgreSQL from DuckDB, and from servers of its protocol that do not number transactions as it."""
    if op.get_context().dialect.name != "postgresql":
        return False
    if context.is_offline_mode():
        return True
    version = str(op.get_bind().scalar(sa.text("SELECT version()")))
    return not version.startswith("CockroachDB") and "-YB-" not in version


def upgrade() -> None:
    """Create the tables and the triggers that fill them."""
    if not is_for_this_server():
        return
    for arrivals, (table, key) in KEYS.items():
        op.create_table(
            arrivals,
            sa.Column(key, sa.Uuid(), primary_key=True),
            sa.Column("xid", sa.BigInteger(), nullable=False),
            sa.Column("place", sa.BigInteger(), sa.Identity(), nullable=False),
        )
        op.create_index(f"idx_{arrivals}_xid", arrivals, ["xid", "place"])
        op.execute(FUNCTIONS.format(arrivals=arrivals, table=table, key=key))
    op.execute(RETYPED)


def downgrade() -> None:
    """Drop the triggers and the tables."""
    if not is_for_this_server():
        return
    op.execute("DROP TRIGGER IF EXISTS fiber_arrivals_renew ON fibers")
    op.execute("DROP FUNCTION fiber_arrivals_renew()")
    for arrivals, (table, _) in KEYS.items():
        for event in ("add", "remove", "clear"):
            op.execute(f"DROP TRIGGER IF EXISTS {arrivals}_{event} ON {table}")
            op.execute(f"DROP FUNCTION {arrivals}_{event}()")
        op.drop_table(arrivals)
