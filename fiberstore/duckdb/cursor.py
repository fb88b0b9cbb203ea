"""DBAPI cursors, each with a result of its own."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import duckdb

from fiberstore.sql.connection import Row

if TYPE_CHECKING:
    from fiberstore.duckdb.connection import DuckDBConnection


class Cursor:
    """A DBAPI cursor with a result of its own.

    Rows are fetched from DuckDB as they are asked for; when the connection is needed for something else, the
    rest of them is kept here first.
    """

    arraysize = 1

    def __init__(self, connection: "DuckDBConnection") -> None:
        self.connection = connection
        self.description: Sequence[Row] | None = None
        self.rowcount = -1
        self._rest: Iterator[Row] | None = None

    def execute(self, statement: str, parameters: Sequence[object] | None = None) -> None:
        """Execute a statement."""
        self._run(statement, parameters, many=False)

    def executemany(self, statement: str, parameters: Sequence[object]) -> None:
        """Execute a statement once for each set of parameters."""
        self._run(statement, list(parameters), many=True)

    def fetchone(self) -> Row | None:
        """Return the next row, or None."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """Return the next ``size`` rows, or what is left of them."""
        size = self.arraysize if size is None else size
        if self.connection.is_read_by(self):
            return self.connection.fetch(size)
        return list(islice(self._kept(), size))

    def fetchall(self) -> list[Row]:
        """Return the rows that are left."""
        if not self.connection.is_read_by(self):
            return list(self._kept())
        self.connection.done_with(self)
        self._rest = iter(())
        return self.connection.fetch(None)

    def keep_rest(self) -> None:
        """Fetch what is left, so that the connection can run another statement."""
        self._rest = iter(self.fetchall())

    def close(self) -> None:
        """Drop the result."""
        self.connection.done_with(self)
        self._rest = None

    def _run(self, statement: str, parameters: Sequence[object] | None, *, many: bool) -> None:
        self.close()
        self.connection.run(self, statement, parameters, many=many)
        self.rowcount, self.description = self.connection.result()
        if self.rowcount >= 0:  # a count of changed rows, which DuckDB also offers as a result
            self.description = None
            self.close()
        self.connection.refuse_shadows(statement)

    def _kept(self) -> Iterator[Row]:
        if self._rest is None:
            raise duckdb.InvalidInputException("this result was closed by a rollback or by the cursor")
        return self._rest
