"""What is done to databases between two tests."""

import sqlalchemy as sa

from fiberstore import Base

_TABLES = Base.metadata.sorted_tables
_FILLED = sa.select(*(sa.exists(sa.select(sa.literal(1)).select_from(table)) for table in _TABLES))


def empty(engine: sa.Engine) -> None:
    """Delete all rows. Most tables have none, and to ask for it costs less than to delete nothing."""
    with engine.begin() as connection:
        for table, filled in zip(_TABLES, connection.execute(_FILLED).one(), strict=True):
            if filled:
                connection.execute(sa.delete(table))
