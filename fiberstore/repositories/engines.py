"""What the repositories do in another way on each engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from fiberstore.repositories.arrival import Arrival
from fiberstore.repositories.on_duckdb import redaction as duckdb_redaction
from fiberstore.repositories.on_duckdb import sizes as duckdb_sizes
from fiberstore.repositories.on_duckdb.arrival import RowidArrival
from fiberstore.repositories.on_postgresql import redaction as postgresql_redaction
from fiberstore.repositories.on_postgresql import sizes as postgresql_sizes
from fiberstore.repositories.on_postgresql.arrival import TransactionArrival
from fiberstore.repositories.sizes import StoreSize
from fiberstore.sql.conditions import FIBERS, LOGS
from fiberstore.sql.prepared import connection_of


@dataclass(frozen=True, slots=True)
class Engine:
    """What is an engine's own.

    Attributes:
        row_id: Where a row is, for one statement.
        log_arrival: The order in which logs were stored.
        fiber_arrival: The order in which fibers were stored.
        redact: Replaces what a pattern matches in the texts of the logs of which conditions are true by a
            literal text, in an open transaction; returns how many it changed.
        size_of: Returns the size of the store.
        settle: Makes the space of deleted rows known to ``size_of``, if nobody is in its way.
        kept_rows: Returns how many rows there are of each table, with deleted ones that still take space.
    """

    row_id: sa.ColumnElement[Any]
    log_arrival: Arrival
    fiber_arrival: Arrival
    redact: Callable[[Session, list[sa.ColumnElement[bool]], str, str], int]
    size_of: Callable[[Session], StoreSize]
    settle: Callable[[Session], None]
    kept_rows: Callable[[Session], dict[str, int]]


_ENGINES = {
    "duckdb": Engine(
        row_id=sa.literal_column("rowid"),
        log_arrival=RowidArrival(LOGS, LOGS.c.log_id),
        fiber_arrival=RowidArrival(FIBERS, FIBERS.c.fiber_id),
        redact=duckdb_redaction.redact,
        size_of=duckdb_sizes.size_of,
        settle=duckdb_sizes.settle,
        kept_rows=duckdb_sizes.kept_rows,
    ),
    "postgresql": Engine(
        row_id=sa.literal_column("ctid"),
        log_arrival=TransactionArrival("log_arrivals", LOGS.c.log_id),
        fiber_arrival=TransactionArrival("fiber_arrivals", FIBERS.c.fiber_id),
        redact=postgresql_redaction.redact,
        size_of=postgresql_sizes.size_of,
        settle=postgresql_sizes.settle,
        kept_rows=postgresql_sizes.kept_rows,
    ),
}


def engine_of(session: Session) -> Engine:
    """Return what is own to the engine of a session."""
    return _ENGINES[connection_of(session).engine_name]
