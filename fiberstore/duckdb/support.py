"""DuckDB's part of the repositories."""

from math import inf

import sqlalchemy as sa

from fiberstore.duckdb.arrival_order import RowidOrder
from fiberstore.duckdb.kept_ids import given, keep
from fiberstore.duckdb.rebuild import delete, has_room, prepared, replace
from fiberstore.duckdb.redaction import redact
from fiberstore.duckdb.sizes import kept_rows, settle, size_of
from fiberstore.records import from_epoch_us
from fiberstore.sql.conditions import FIBERS, LOGS
from fiberstore.sql.support import BackendSupport

SUPPORT = BackendSupport(
    membership_id=(sa.literal_column("rowid"),),
    keep=keep,
    given=given,
    log_commit_order=RowidOrder(LOGS, LOGS.c.log_id),
    fiber_commit_order=RowidOrder(FIBERS, FIBERS.c.fiber_id),
    sets_arrival=lambda _: False,
    to_time=from_epoch_us,
    locks_late=False,
    delete=delete,
    replace=replace,
    prepared=prepared,
    has_room=has_room,
    redact=redact,
    redacted_at_once=inf,
    size_of=size_of,
    settle=settle,
    kept_rows=kept_rows,
)
