"""Rows that a store has got since it was copied, put into the copy: others may write while it is copied.

Nobody writes meanwhile, and nothing is trusted. The rows that were there when the copy was made are as they
were if their number and the sum of their hashes are, up to the newest ``rowid`` of then; all later ones are
added, in their order. Of tables whose rows change every day, those that differ are exchanged. If anything
else has changed, the copy is of no use.
"""

from dataclasses import dataclass
from typing import Self

import duckdb

from fiberstore.duckdb.backup import Copy, store_tables
from fiberstore.errors import DatabaseError
from fiberstore.repositories.access import LEAST_SHARE, MANY_ROWS
from fiberstore.sql.conditions import LOGS
from fiberstore.sql.models import Base

_OURS = {f'"main"."{name}"' for name in Base.metadata.tables}
# Text that was deleted or redacted would stay in the file of the copy, and a changed log would be a new one.
_CHANGING = _OURS - {f'"main"."{LOGS.name}"'}
_CATALOG = {  # what changes of itself is left out
    "schemas": "*",
    "tables": "* EXCLUDE (estimated_size)",
    "columns": "*",
    "constraints": "*",
    "views": "* EXCLUDE (is_bound, column_count)",
    "indexes": "*",
    "sequences": "*",
    "types": "*",
    "functions": "*",
    "triggers": "*",
}

Digest = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table as it was.

    Attributes:
        newest: ``rowid`` of its newest row, -1 without any; None of a table of an application.
        digest: See ``_digest``.
    """

    newest: int | None
    digest: Digest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A database as it was copied.

    Attributes:
        catalog: All that the database has but rows.
        tables: Its tables, by their quoted names.
    """

    catalog: list[tuple[object, ...]]
    tables: dict[str, _Table]

    @classmethod
    def of(cls, raw: duckdb.DuckDBPyConnection) -> Self:
        """Look at a database, in a transaction."""
        tables = {}
        for name in store_tables(raw):
            newest = None
            if name in _OURS:
                ((newest,),) = raw.execute(f"SELECT coalesce(max(rowid), -1) FROM {name}").fetchall()  # noqa: S608  # quoted
            tables[name] = _Table(newest, _digest(raw, name))
        return cls(_catalog(raw), tables)

    def check(self, raw: duckdb.DuckDBPyConnection, copy: Copy) -> None:
        """Compare the copy.

        Raises:
            DatabaseError: Its rows are not those of the snapshot.
        """
        for name, table in self.tables.items():
            if _digest(raw, f"{copy.alias}.{name}") != table.digest:
                raise DatabaseError(f"the copy does not hold what the store does, in {name}; try again")


def catch_up(raw: duckdb.DuckDBPyConnection, copy: Copy, before: Snapshot) -> dict[str, int] | None:
    """Put into a copy what the database has got since.

    Args:
        raw: A connection to the database, into which nobody writes meanwhile.
        copy: The copy, attached.
        before: What it was made of.

    Returns:
        How many rows its tables have now; None if it is of no use.
    """
    if _catalog(raw) != before.catalog:
        return None
    rows = {}
    for name, table in before.tables.items():
        target = f"{copy.alias}.{name}"
        rows[name], _ = table.digest
        if _digest(raw, name, table.newest) == table.digest:
            if table.newest is not None:
                rows[name] += _write(
                    raw, f"INSERT INTO {target} FROM {name} WHERE rowid > {table.newest} ORDER BY rowid"
                )
        elif name in _CHANGING and _exchange(raw, name, target):
            rows[name], _ = _digest(raw, name)
        else:
            return None
    return rows


def _exchange(raw: duckdb.DuckDBPyConnection, name: str, target: str) -> bool:
    """Exchange the rows of a copied table that differ; return whether it is as the other then.

    It is not if so many go that the file would have to keep their space, or if a table of an application
    refers to one.
    """

    def others(table: str, other: str) -> str:
        hashes = f"SELECT hash(each) FROM {other} AS each"  # noqa: S608  # quoted
        return f"FROM {table} AS each WHERE hash(each) NOT IN ({hashes})"

    try:
        gone = _write(
            raw,
            f"DELETE FROM {target} WHERE rowid IN (SELECT rowid {others(target, name)})",  # noqa: S608
        )
        _write(raw, f"INSERT INTO {target} {others(name, target)} ORDER BY rowid")
    except duckdb.ConstraintException:
        return False
    rows, _ = digest = _digest(raw, name)
    return (gone < MANY_ROWS or gone < LEAST_SHARE * rows) and _digest(raw, target) == digest


def _digest(raw: duckdb.DuckDBPyConnection, table: str, newest: int | None = None) -> Digest:
    """Return the number of rows and the sum of their hashes, up to a ``rowid``."""
    which = "true" if newest is None else f"rowid <= {newest}"
    ((rows, hashes),) = raw.execute(
        f"SELECT count(*), sum(hash(each)) FROM {table} AS each WHERE {which}"  # noqa: S608  # quoted
    ).fetchall()
    return rows, hashes


def _catalog(raw: duckdb.DuckDBPyConnection) -> list[tuple[object, ...]]:
    """Return all that DuckDB's functions of the catalog tell of the current database."""
    found = []
    for kind, columns in _CATALOG.items():
        statement = f"SELECT {columns} FROM duckdb_{kind}() WHERE database_name = current_database()"  # noqa: S608
        found += raw.execute(f"{statement} ORDER BY ALL").fetchall()
    return found


def _write(raw: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((rows,),) = raw.execute(sql).fetchall()
    return int(rows)
