"""Redaction in one statement: DuckDB has RE2."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.duckdb.regex import to_duckdb
from fiberstore.repositories.query import execute_write
from fiberstore.sql.conditions import LOGS
from fiberstore.sql.functions import RegexpMatches


def redact(session: Session, conditions: list[sa.ColumnElement[bool]], pattern: str, replacement: str) -> int:
    """Replace what the pattern matches in the texts of the logs; see ``Engine.redact``."""
    literal = replacement.replace("\\", "\\\\")  # to RE2 it begins the number of a group
    text: sa.ColumnElement[str] = sa.func.regexp_replace(LOGS.c.raw_text, to_duckdb(pattern), literal, "g")
    change = (
        sa.update(LOGS)
        .values(raw_text=text)
        .where(
            RegexpMatches(LOGS.c.raw_text, pattern), sa.func.encode(text) != sa.func.encode(LOGS.c.raw_text)
        )
        .where(*conditions)
    )
    return execute_write(session, change)
