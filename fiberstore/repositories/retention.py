"""Retention: what may go, in steps."""

from collections.abc import Callable

from fiberstore.lifecycle import Pruned
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.repositories.queries import Changing, Reading
from fiberstore.where import Condition


def prune(
    reading: Reading,
    changing: Changing,
    *,
    fibers: Condition[FiberRecord] | None,
    logs: Condition[StoredLog] | None,
    max_bytes: int | None,
    dry_run: bool,
    step_rows: int,
    max_steps: int | None,
    on_step: Callable[[Pruned], None] | None,
) -> Pruned:
    """See ``LifecycleStorage.prune``."""
    raise NotImplementedError
