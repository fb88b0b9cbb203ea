"""Rows that a store has got since it was copied, put into the copy: others may write while it is copied.

Nobody writes meanwhile, and nothing is trusted. The rows that were there when the copy was made are as they
were, each in its place, if their number and the sum of their hashes are, up to the newest ``rowid`` of then;
all later ones are added, in their order. Of tables whose rows change every day, those that differ are
changed. If anything else has changed, the copy is of no use. Nor is it of a database that has something of an
application, whose values DuckDB's ``hash`` may not tell apart.
"""

# ruff: noqa: S608  # the names are our own

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import duckdb
import sqlalchemy as sa

from fiberstore.duckdb.backup import Copy, row_counts
from fiberstore.duckdb.row_hash import exact, row_hash
from fiberstore.errors import DatabaseError
from fiberstore.repositories.access import LEAST_SHARE, MANY_ROWS
from fiberstore.sql.conditions import LOGS
from fiberstore.sql.models import TABLES_BESIDE, Base, Text, identity_of
from fiberstore.sql.revisions import VERSION_TABLE

# Text that was deleted or redacted would stay in the file of the copy, and a changed log would be a new one.
_CHANGING = [table for table in Base.metadata.sorted_tables if table is not LOGS]
_VERSION = sa.Table(VERSION_TABLE, sa.MetaData(), sa.Column("version_num", Text))
_TABLES = [*_CHANGING, LOGS, _VERSION]
_COLUMNS = {(table.name, column.name) for table in _TABLES for column in table.c}
_NOT_OURS = {
    "schemas": "NOT internal",
    "views": "NOT internal",
    "types": "NOT internal",
    "functions": "NOT internal",
    "sequences": "true",
    "triggers": "true",
}
_OURS = {
    "tables": "table_name, sql, comment",
    "columns": "table_name, column_name, comment",
    "indexes": "table_name, sql, comment",
}

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table as it was.

    Attributes:
        newest: ``rowid`` of its newest row, -1 without any.
        digest: See ``_digest``.
    """

    newest: int
    digest: Rows


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A database as it was copied.

    Attributes:
        schema: See ``schema_of``.
        tables: Its tables by their names; empty without a schema.
    """

    schema: list[Rows] | None
    tables: dict[str, _Table]

    @classmethod
    def of(cls, raw: duckdb.DuckDBPyConnection) -> Self:
        """Look at a database, in a transaction."""
        schema, tables = schema_of(raw), {}
        for table in _TABLES if schema is not None else ():
            ((newest,),) = _rows(raw, f"SELECT coalesce(max(rowid), -1) FROM {_named(table)}")
            tables[table.name] = _Table(newest, _digest(raw, table, _named(table), newest))
        return cls(schema, tables)

    def check(self, raw: duckdb.DuckDBPyConnection, copy: Copy) -> None:
        """Compare the copy.

        Raises:
            DatabaseError: Its rows are not those of the snapshot.
        """
        for table in _TABLES if self.tables else ():
            (copied,), (there,) = _digest(raw, table, _named(table, copy)), self.tables[table.name].digest
            if copied[:-1] != there[:-1]:  # it has no gaps
                raise DatabaseError(f"the copy does not hold what the store does, in {table.name}; try again")


def schema_of(raw: duckdb.DuckDBPyConnection) -> list[Rows] | None:
    """Return the tables of a database, their columns and indexes; None if it has what is not ours."""
    here = "WHERE database_name = current_database()"
    for kind, which in _NOT_OURS.items():
        if _rows(raw, f"SELECT 1 FROM duckdb_{kind}() {here} AND {which}"):
            return None
    here += f" AND table_name NOT IN {(*TABLES_BESIDE.values(),)} ORDER BY ALL"
    schema = {
        kind: _rows(raw, f"SELECT {names} FROM duckdb_{kind}() {here}") for kind, names in _OURS.items()
    }
    return [*schema.values()] if {column[:2] for column in schema["columns"]} == _COLUMNS else None


def catch_up(raw: duckdb.DuckDBPyConnection, copy: Copy, before: Snapshot) -> dict[str, int] | None:
    """Put into a copy what the database has got since.

    Args:
        raw: A connection to the database, into which nobody writes meanwhile.
        copy: The copy, attached.
        before: What it was made of.

    Returns:
        How many rows its tables have now; None if it is of no use.
    """
    if before.schema is None or schema_of(raw) != before.schema:
        return None
    for table in _TABLES:
        source, target, was = _named(table), _named(table, copy), before.tables[table.name]
        is_as_it_was = _digest(raw, table, source, was.newest) == was.digest
        if not is_as_it_was and table not in _CHANGING:
            return None
        first = was.newest + 1 if is_as_it_was else _change(raw, table, target)
        if first is None:
            return None
        raw.execute(f"INSERT INTO {target} FROM {source} WHERE rowid >= {first} ORDER BY rowid")
        if not is_as_it_was and _ordered(raw, table, source) != _ordered(raw, table, target):
            return None
    return row_counts(raw)


def _change(raw: duckdb.DuckDBPyConnection, table: sa.Table, target: str) -> int | None:
    """Change the rows of a copied table whose place is as it was, and delete those that have none any more.

    DuckDB gives a new place, after all others, to a row of which an indexed column is set.

    Returns:
        ``rowid`` of the first row that is new or has moved; None if so many rows have gone from their places
        that the file would have to keep their space.
    """
    keys = identity_of(table)
    indexed = [*keys, *(column for index in _indexes(table) for column in index.columns)]
    plain = [column for column in table.c if column.name not in {one.key for one in indexed}]
    same = " AND ".join(f"{exact(key, 'new.')} = {exact(key, 'old.')}" for key in keys)
    source = f"{_named(table)} AS new"
    places = (
        f"SELECT new.rowid AS place, old.rowid AS was, {_differ(indexed)} AS differs, max(old.rowid) OVER "
        "(ORDER BY new.rowid ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newest "
        f"FROM {source} LEFT JOIN {target} AS old ON {same}"
    )
    first_moved = f"SELECT min(place) FROM ({places}) WHERE was IS NULL OR was < newest OR differs"
    ((rows, first),) = _rows(
        raw, f"SELECT count(*), coalesce(({first_moved}), max(rowid) + 1, 0) FROM {_named(table)}"
    )
    stays = f"{source} WHERE new.rowid < {first} AND {same}"
    ((gone,),) = _rows(raw, f"DELETE FROM {target} AS old WHERE NOT EXISTS (FROM {stays})")
    if plain:
        values = ", ".join(f'"{column.name}" = new."{column.name}"' for column in plain)
        raw.execute(f"UPDATE {target} AS old SET {values} FROM {stays} AND {_differ(plain)}")
    return int(first) if gone < MANY_ROWS or gone < LEAST_SHARE * rows else None


def _differ(columns: Sequence[sa.ColumnElement[Any]]) -> str:
    return f"{row_hash(columns, 'new.')} <> {row_hash(columns, 'old.')}"


def _indexes(table: sa.Table) -> list[sa.Index | sa.UniqueConstraint]:
    unique = [constraint for constraint in table.constraints if isinstance(constraint, sa.UniqueConstraint)]
    return [*unique, *(index for index in table.indexes if index.info.get("engine") != "postgresql")]


def _digest(raw: duckdb.DuckDBPyConnection, table: sa.Table, name: str, newest: int | None = None) -> Rows:
    """Return the number of rows, and the sums of their hashes without and with their places."""
    which = "true" if newest is None else f"rowid <= {newest}"
    hashes = f"SELECT rowid AS place, {row_hash(table.c)} AS each FROM {name} WHERE {which}"
    return _rows(raw, f"SELECT count(*), sum(each), sum(hash(place, each)) FROM ({hashes})")


def _ordered(raw: duckdb.DuckDBPyConnection, table: sa.Table, name: str) -> Rows:
    """Return the number of rows, and the sum of their hashes with their numbers in the order of places."""
    hashes = f"SELECT row_number() OVER (ORDER BY rowid) AS number, {row_hash(table.c)} AS each FROM {name}"
    return _rows(raw, f"SELECT count(*), sum(hash(number, each)) FROM ({hashes})")


def _named(table: sa.Table, copy: Copy | None = None) -> str:
    return f"main.{table.name}" if copy is None else f"{copy.alias}.main.{table.name}"


def _rows(raw: duckdb.DuckDBPyConnection, sql: str) -> Rows:
    return raw.execute(sql).fetchall()
