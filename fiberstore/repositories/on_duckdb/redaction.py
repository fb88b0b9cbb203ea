"""Redaction in one statement: DuckDB has RE2."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.duckdb.regex import to_duckdb
from fiberstore.repositories.query import written
from fiberstore.sql.conditions import LOGS
from fiberstore.sql.connection import Connection
from fiberstore.sql.functions import RegexpMatches


def redact(
    session: Session | Connection, conditions: list[sa.ColumnElement[bool]], pattern: str, replacement: str
) -> int:
    """See ``engines.Engine.redact``."""
    literal = replacement.replace("\\", "\\\\")  # to RE2 it begins the number of a group
    text: sa.ColumnElement[str] = sa.func.regexp_replace(LOGS.c.raw_text, to_duckdb(pattern), literal, "g")
    change = (
        sa.update(LOGS)
        .values(raw_text=text)
        .where(RegexpMatches(LOGS.c.raw_text, pattern), text != LOGS.c.raw_text)
        .where(*conditions)
    )
    return written(session, change)
