"""Tables of the keys of fibers, filled from the attributes that ``ingest`` has written, and of their ends.

Those are an object whose values are all lists of texts. Where the use of a key begins is not in them: the
first line is left open, and the time is that of the fiber's first line, until ``reprocess`` writes both.
Tables that are there stay, with their rows.

Revision: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
rewrites_data = False

TEXT = sa.String().with_variant(sa.Text(collation="C"), "postgresql")

# The hash is the first 60 bits of the MD5 of "<bytes of the name>:<name><value>".
FILL = {
    "duckdb": """
INSERT INTO fiber_keys (fiber_id, name, value, hash, first_timestamp, first_log_id, starts)
WITH texts AS (
  SELECT f.fiber_id, f.first_activity, e.key AS name, x.value ->> '$' AS value,
    json_type(f.attributes) = 'OBJECT' AND e.type = 'ARRAY' AND x.type = 'VARCHAR' AS is_key
  FROM fibers AS f, json_each(f.attributes) AS e, json_each(e.value) AS x
)
SELECT DISTINCT fiber_id, name, value,
  CAST('0x' || substr(md5(strlen(name) || ':' || name || value), 1, 15) AS BIGINT),
  first_activity, CAST(NULL AS UUID), false
FROM texts WHERE name <> '' AND fiber_id NOT IN (SELECT fiber_id FROM texts WHERE is_key IS NOT true)
  AND NOT EXISTS (SELECT 1 FROM fiber_keys)
""",
    "postgresql": """
INSERT INTO fiber_keys (fiber_id, name, value, hash, first_timestamp, first_log_id, starts)
WITH texts AS MATERIALIZED (
  SELECT f.fiber_id, f.first_activity, e.key AS name, x.value #>> '{}' AS value,
    jsonb_typeof(e.value) = 'array' AND jsonb_typeof(x.value) = 'string' AS is_key
  FROM fibers AS f
  CROSS JOIN LATERAL jsonb_each(
    CASE WHEN jsonb_typeof(f.attributes) = 'object' THEN f.attributes ELSE '{}' END) AS e
  CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(e.value) = 'array' THEN e.value ELSE '[null]' END) AS x
)
SELECT DISTINCT fiber_id, name, value,
  CAST(CAST('x' || substr(md5(octet_length(name) || ':' || name || value), 1, 15) AS bit(60)) AS bigint),
  first_activity, CAST(NULL AS uuid), false
FROM texts WHERE name <> '' AND fiber_id NOT IN (SELECT fiber_id FROM texts WHERE is_key IS NOT true)
  AND NOT EXISTS (SELECT 1 FROM fiber_keys)
""",
}


def upgrade() -> None:
    """Create the tables, and fill that of the keys."""
    op.create_table(
        "fiber_keys",
        sa.Column("fiber_id", sa.Uuid(), nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("hash", sa.BigInteger(), nullable=False),
        sa.Column("first_timestamp", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("first_log_id", sa.Uuid()),
        sa.Column("starts", sa.Boolean(), nullable=False),
        if_not_exists=True,
    )
    op.execute(sa.text(FILL[op.get_context().dialect.name].replace(":", "\\:")))
    op.create_index("idx_fiber_keys_hash", "fiber_keys", ["hash"], if_not_exists=True)
    op.create_table(
        "fiber_ends",
        sa.Column("fiber_id", sa.Uuid(), primary_key=True),
        sa.Column("timestamp", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("before_log_id", sa.Uuid()),
        if_not_exists=True,
    )
    if op.get_context().dialect.name == "postgresql":
        op.create_index("idx_fiber_keys_fiber", "fiber_keys", ["fiber_id"], if_not_exists=True)
        op.create_index(
            "idx_fibers_activity",
            "fibers",
            ["config_version", "fiber_type", "closed", "last_activity"],
            if_not_exists=True,
        )


def downgrade() -> None:
    """Drop the tables with their rows."""
    op.drop_table("fiber_ends")
    op.drop_index("idx_fiber_keys_hash", "fiber_keys")
    if op.get_context().dialect.name == "postgresql":
        op.drop_index("idx_fiber_keys_fiber", "fiber_keys")
        op.drop_index("idx_fibers_activity", "fibers")
    op.drop_table("fiber_keys")
