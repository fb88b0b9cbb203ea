"""Stores that grow side by side on the same batches, and the cost of writes and reads at each size."""

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.clock import medians_s, seconds
from benchmarks.data import LOGS_TO_A_FIBER, MILLISECOND, NOON, Batch, Generator, Ids
from benchmarks.stores import PAGE_ROWS, STORES, DuckDB, Fiberstore, Store, compact_copy_bytes
from fiberstore import FiberRecord, LogRecord

ROWS_TO_RECORDS = 10_000
_SAMPLES_OF_A_BATCH = 40
_RIVALS_UP_TO_LOGS = 1_000_000  # beyond, only DuckDB alone grows with fiberstore: others would take an hour
_FOREVER = timedelta(days=365)

Work = Callable[[Store, int], Any]


@dataclass
class Samples:
    """Rows to ask for, drawn from everything that was written."""

    logs: list[LogRecord] = field(default_factory=list)
    fibers: list[FiberRecord] = field(default_factory=list)
    fiber_logs: dict[UUID, list[UUID]] = field(default_factory=dict)

    def draw(self, batch: Batch, dice: random.Random) -> None:
        """Draw from a new batch."""
        for number in dice.sample(range(len(batch.fibers)), min(_SAMPLES_OF_A_BATCH, len(batch.fibers))):
            start = number * LOGS_TO_A_FIBER
            logs = batch.logs[start : start + LOGS_TO_A_FIBER]
            self.logs.append(dice.choice(logs))
            self.fibers.append(batch.fibers[number])
            self.fiber_logs[batch.fibers[number].fiber_id] = [log.log_id for log in logs]

    def shuffled(self, dice: random.Random) -> "Samples":
        """Return them in another order, so that what is asked for lies anywhere."""
        return Samples(
            dice.sample(self.logs, len(self.logs)),
            dice.sample(self.fibers, len(self.fibers)),
            self.fiber_logs,
        )


def grow(ids: Ids, sizes: list[int], batch_logs: int, calls: int) -> dict[str, Any]:
    """Write batch after batch into every store; at each size read from all of them, and check the answers.

    Returns:
        ``write``: for each store and batch, logs per second and memberships per second. ``read_ms``: for
        each size, read and store, the median milliseconds. ``bytes_per_log``: of each store when it is
        closed, and of a compact copy.
    """
    generator, dice, samples = Generator(ids), random.Random(11), Samples()
    found: dict[str, Any] = {"sizes": sizes, "batch_logs": batch_logs, "write": {}, "read_ms": {}}
    with _stores() as (folder, everyone):
        stores = everyone
        for store in stores:
            found["write"][store.name] = {"logs": [], "logs_per_s": [], "memberships_per_s": []}
        written = 0
        for size in sizes:
            if size > _RIVALS_UP_TO_LOGS:
                stores = [store for store in stores if isinstance(store, Fiberstore | DuckDB)]
            while written < size:
                batch = generator.batch(min(batch_logs, size - written))
                written += len(batch.logs)
                samples.draw(batch, dice)
                _write(stores, batch, written, found["write"])
            for store in stores:
                assert store.counts() == (size, size), f"{store.name} has lost rows"
            found["read_ms"][str(size)] = _read(stores, samples.shuffled(dice), size, calls)
            print(f"  {ids} ids, {size:,} logs: done", flush=True)
        found["bytes_per_log"] = _sizes(folder, everyone)
    return found


@contextmanager
def _stores() -> Iterator[tuple[Path, list[Store]]]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, stores = Path(name), []
        for kind in STORES:
            (folder / kind.name).mkdir()
            store = kind(folder / kind.name)
            stack.callback(store.close)
            stores.append(store)
        yield folder, stores


def _write(
    stores: list[Store], batch: Batch, total_logs: int, found: dict[str, dict[str, list[float]]]
) -> None:
    _ = batch.log_rows, batch.log_table, batch.membership_rows, batch.membership_table, batch.fiber_table
    for store in stores:
        logs_s = seconds(partial(store.write_logs, batch))
        memberships_s = seconds(partial(store.write_memberships, batch))
        store.write_fibers(batch)
        found[store.name]["logs"].append(total_logs)
        found[store.name]["logs_per_s"].append(len(batch.logs) / logs_s)
        found[store.name]["memberships_per_s"].append(len(batch.memberships) / memberships_s)


def _read(stores: list[Store], samples: Samples, size: int, calls: int) -> dict[str, dict[str, float]]:
    """Time every read on every store in turn, after checking that all give the same answers."""
    end = NOON + _FOREVER
    rows = min(ROWS_TO_RECORDS, size)
    half = size // 2
    key = _key_at(stores, half)
    logs, fibers = samples.logs, samples.fibers
    first = [min(log.timestamp, NOON + (size - PAGE_ROWS) * MILLISECOND) for log in logs]
    changed = [fiber.model_copy(update={"closed": True, "attributes": {"n": 0}}) for fiber in fibers]
    reads: dict[str, tuple[Work, int]] = {
        "get_log": (lambda store, n: store.get_log(logs[n % len(logs)].log_id), calls),
        "get_fiber": (lambda store, n: store.get_fiber(fibers[n % len(fibers)].fiber_id), calls),
        "get_log_fibers": (lambda store, n: store.get_log_fibers(logs[n % len(logs)].log_id), calls),
        "get_fiber_logs": (lambda store, n: store.get_fiber_logs(fibers[n % len(fibers)].fiber_id), calls),
        "first page": (lambda store, n: store.page(first[n % len(first)], end, PAGE_ROWS, 0), calls // 4),
        "page after a key": (lambda store, _: store.page_after(NOON, end, PAGE_ROWS, key), calls // 4),
        "page at an offset": (lambda store, _: store.page(NOON, end, PAGE_ROWS, half), 3),
        "10,000 rows": (lambda store, _: store.page(NOON, end, rows, 0), max(3, calls // 10)),
        "update_fiber": (lambda store, n: store.update_fiber(changed[n % len(changed)]), calls // 2),
    }
    _check(stores, reads, samples)
    times_ms = {}
    for name, (work, rounds) in reads.items():
        ways = {store.name: partial(work, store) for store in stores}
        if name == "get_fiber_logs":
            ways["DuckDB alone, plain join"] = partial(_by_plain_join, stores, fibers)
        times_ms[name] = {way: 1e3 * time_s for way, time_s in medians_s(ways, rounds).items()}
    return times_ms


def _by_plain_join(stores: list[Store], fibers: list[FiberRecord], number: int) -> None:
    (alone,) = (store for store in stores if isinstance(store, DuckDB))
    alone.get_fiber_logs_by_join(fibers[number % len(fibers)].fiber_id)


def _key_at(stores: list[Store], position: int) -> tuple[Any, UUID]:
    (ours,) = (store for store in stores if isinstance(store, Fiberstore))
    (log,) = ours.storage.query_logs_by_time(NOON, NOON + _FOREVER, 1, position - 1)
    return log.timestamp, log.log_id


def _check(stores: list[Store], reads: dict[str, tuple[Work, int]], samples: Samples) -> None:
    for name, (work, _) in reads.items():
        if name == "update_fiber":
            continue
        answers = [[store.id_of(row) for row in work(store, 0)] for store in stores]
        for store, answer in zip(stores, answers, strict=True):
            assert answer, f"{name} on {store.name} is empty"
            assert answer == answers[0], f"{name} on {store.name} differs from {stores[0].name}"
        if name == "get_fiber_logs":
            assert answers[0] == samples.fiber_logs[samples.fibers[0].fiber_id], "a fiber has other logs"


def _sizes(folder: Path, stores: list[Store]) -> dict[str, float]:
    """Close the stores that are files and return bytes per log."""
    sizes = {}
    for store in stores:
        logs, _ = store.counts()
        if isinstance(store, Fiberstore | DuckDB):
            store.close()
        sizes[store.name] = store.size_bytes() / logs
        if isinstance(store, DuckDB):
            sizes["DuckDB, compact copy"] = compact_copy_bytes(store.path, folder / "copy.duckdb") / logs
    return sizes
