"""Redaction in the client, by RE2: PostgreSQL would match other parts of a text.

It takes the longest of several matches, and RE2 the first.
"""

from contextlib import closing

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.contract.patterns import closed
from fiberstore.sql import bulk
from fiberstore.sql.conditions import LOGS
from fiberstore.sql.connection import Connection
from fiberstore.sql.functions import RegexpMatches
from fiberstore.sql.prepared import compiled, connection_of

_ROWS_AT_ONCE = 10_000


def redact(
    session: Session | Connection, conditions: list[sa.ColumnElement[bool]], pattern: str, replacement: str
) -> int:
    """See ``engines.Engine.redact``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    literal = replacement.replace("\\", "\\\\")  # to RE2 it begins the number of a group
    matching = sa.select(LOGS.c.log_id, LOGS.c.raw_text).where(
        RegexpMatches(LOGS.c.raw_text, pattern), *conditions
    )
    changed = 0
    batches = connection_of(session).stream_rows(*compiled(session, matching), _ROWS_AT_ONCE)
    with closing(batches):
        for rows in batches:
            before = [text for _, text in rows]
            after = pc.replace_substring_regex(
                pa.array(before, pa.large_string()), closed(pattern), literal
            ).to_pylist()
            changes = {row[0]: new for row, new in zip(rows, after, strict=True) if row[1] != new}
            if changes:
                changed += bulk.update_texts(session, changes)
    return changed
