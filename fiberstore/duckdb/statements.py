"""Statements of a connection, parsed once, and classified by their words, wherever these stand.

A CTE or EXPLAIN ANALYZE may hold an UPDATE, so the first word does not tell. Where words mislead, they err to
the harmless side. Values do not matter: they are bound.
"""

import re
from functools import lru_cache
from typing import NamedTuple, Protocol

import duckdb

_STATEMENTS_KEPT = 256
_LONGEST_KEPT_CHARS = 10_000
_CHANGES = re.compile(
    r"\b(update|delete|merge|truncate|execute)\b|\binsert\b.*\breplace\b", re.IGNORECASE | re.DOTALL
)
_APPENDS = re.compile(r"\b(insert|copy|merge|update|execute|import)\b", re.IGNORECASE)
_MAY_SHADOW = re.compile(
    r"(?:^|;|\n|\*/)\s*(?:create\b.*\btemp(?:orary)?|alter|use|set(?!\s+enable_external_access))\b",
    re.IGNORECASE | re.DOTALL,
)


class Effects(NamedTuple):
    """Possible effects of a statement.

    Attributes:
        changes_rows: It may change or delete rows that are there, rather than only append.
        appends_rows: It may append rows; an update of an indexed column does.
        may_shadow: It may let the names of the store's tables lead to other ones.
    """

    changes_rows: bool
    appends_rows: bool
    may_shadow: bool


def effects_of(sql: str) -> Effects:
    """Return the possible effects of a statement."""
    return _effects_of(sql) if len(sql) <= _LONGEST_KEPT_CHARS else _effects_of.__wrapped__(sql)


@lru_cache(maxsize=_STATEMENTS_KEPT)
def _effects_of(sql: str) -> Effects:
    return Effects(*(words.search(sql) is not None for words in (_CHANGES, _APPENDS, _MAY_SHADOW)))


class Parser(Protocol):
    """The part of a DuckDB connection that parses."""

    def extract_statements(self, query: str, /) -> list[duckdb.Statement]:
        """Return the statements of a text."""


class ParsedStatements:
    """Statements as DuckDB has parsed them before, which saves a quarter of a read by key.

    Settings of the parser, such as ``integer_division``, count as they were then.
    """

    def __init__(self) -> None:
        self._kept: dict[str, duckdb.Statement] = {}

    def get(self, parser: Parser, sql: str) -> duckdb.Statement | str:
        """Return a parsed statement, or the text of several or of one that is too long to be kept."""
        statement = self._kept.get(sql)
        if statement is None:
            if len(sql) > _LONGEST_KEPT_CHARS:
                return sql
            found = parser.extract_statements(sql)
            if len(found) != 1:
                return sql
            if len(self._kept) == _STATEMENTS_KEPT:
                self._kept.clear()
            statement = self._kept[sql] = found[0]
        return statement
