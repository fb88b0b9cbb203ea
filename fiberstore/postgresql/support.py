"""PostgreSQL's part of the repositories."""

from fiberstore.postgresql.arrival_order import TransactionOrder, sets_arrival
from fiberstore.postgresql.deletion import delete
from fiberstore.postgresql.kept_ids import given, keep
from fiberstore.postgresql.redaction import redact
from fiberstore.postgresql.sizes import kept_rows, settle, size_of
from fiberstore.sql.conditions import FIBERS, LOGS, MEMBERSHIPS
from fiberstore.sql.models import stored_time
from fiberstore.sql.support import BackendSupport

SUPPORT = BackendSupport(
    membership_id=(MEMBERSHIPS.c.log_id, MEMBERSHIPS.c.fiber_id),  # each shard of Citus has the same ctids
    keep=keep,
    given=given,
    log_commit_order=TransactionOrder(LOGS.c.log_id),
    fiber_commit_order=TransactionOrder(FIBERS.c.fiber_id),
    sets_arrival=sets_arrival,
    to_time=stored_time,
    locks_late=True,
    delete=delete,
    replace=lambda _session, _going: None,
    prepared=None,
    has_room=lambda _: False,
    redact=redact,
    redacted_at_once=5_000,
    size_of=size_of,
    settle=settle,
    kept_rows=kept_rows,
)
