"""PostgreSQL's part of the repositories."""

import sqlalchemy as sa

from fiberstore.postgresql.arrival_order import TransactionOrder
from fiberstore.postgresql.redaction import redact
from fiberstore.postgresql.sizes import kept_rows, settle, size_of
from fiberstore.repositories.query import delete
from fiberstore.sql.conditions import FIBERS, LOGS
from fiberstore.sql.support import BackendSupport

SUPPORT = BackendSupport(
    row_id=sa.literal_column("ctid"),
    temporary_schema="pg_temp",  # PostgreSQL looks for temporary tables where the search path says
    log_commit_order=TransactionOrder(LOGS.c.log_id),
    fiber_commit_order=TransactionOrder(FIBERS.c.fiber_id),
    delete=delete,
    replace=lambda _session, _going: None,
    prepared=None,
    has_room=lambda _: False,
    redact=redact,
    size_of=size_of,
    settle=settle,
    kept_rows=kept_rows,
)
