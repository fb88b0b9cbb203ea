"""${message}.

One concern per revision; import nothing from fiberstore; never edit a released one. DuckDB alters no table while
it has an index: drop the index, alter, create it again, with no UPDATE of the table in between.

Revision: ${up_revision}
Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
additive = False  # True if releases without it can read and write beside what it adds
rewrites_data = False  # True if it changes or drops what is stored: a backup is taken first


def upgrade() -> None:
    """Upgrade."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Downgrade."""
    ${downgrades if downgrades else "pass"}
