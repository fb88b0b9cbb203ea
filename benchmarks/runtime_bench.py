"""Benchmarks of a program that uses a store: tasks and threads, memory, import, open, recovery."""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.clock import medians_s, seconds
from benchmarks.data import NOON, Batch, Generator
from fiberstore import AsyncDuckDBStorage, DuckDBStorage, Storage

READERS = 8
_MB = 1_000_000


def tasks_and_threads(logs: int, calls: int, rounds: int) -> dict[str, dict[str, float]]:
    """Read from 8 tasks of the async face and from 8 threads, in turn; return calls per second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.duckdb"
        batch = Generator("v7").batch(logs)
        with DuckDBStorage(path) as storage:
            storage.init_schema()
            with storage.transaction() as transaction:
                transaction.logs.write_logs(batch.logs)
                transaction.fibers.write_fibers(batch.fibers)
                transaction.memberships.write_memberships(batch.memberships)
            return asyncio.run(_race(storage, path, batch, calls, rounds))


async def _race(
    storage: DuckDBStorage, path: Path, batch: Batch, calls: int, rounds: int
) -> dict[str, dict[str, float]]:
    log_ids = [log.log_id for log in batch.logs]
    fiber_ids = [fiber.fiber_id for fiber in batch.fibers]
    times = [log.timestamp for log in batch.logs]
    hour = timedelta(hours=1)
    reads: dict[str, tuple[Callable[[Any, int], Any], int]] = {
        "get_log": (lambda store, n: store.get_log(log_ids[n * 7919 % len(log_ids)]), calls),
        "get_fiber_logs": (
            lambda store, n: store.get_fiber_logs(fiber_ids[n * 7919 % len(fiber_ids)]),
            calls // 2,
        ),
        "first page": (
            lambda store, n: store.query_logs_by_time(times[n * 7919 % len(times)], NOON + hour),
            calls // 8,
        ),
    }
    found: dict[str, dict[str, float]] = {}
    async with AsyncDuckDBStorage(path, pool_size=READERS) as store:
        for name, (read, count) in reads.items():
            rates: dict[str, list[float]] = {"threads": [], "tasks": []}
            for _ in range(rounds):
                threads_s = seconds(lambda: _threads(storage, read, count))  # noqa: B023  # called at once
                rates["threads"].append(READERS * count / threads_s)
                loop = asyncio.get_running_loop()
                start_s = loop.time()
                await asyncio.gather(*(_task(store, read, number, count) for number in range(READERS)))
                rates["tasks"].append(READERS * count / (loop.time() - start_s))
            found[name] = {kind: statistics.median(values) for kind, values in rates.items()}
    return found


def _threads(storage: Storage, read: Callable[[Any, int], Any], count: int) -> None:
    def reader(number: int) -> None:
        for call in range(count):
            read(storage, number * count + call)

    with ThreadPoolExecutor(READERS) as executor:
        list(executor.map(reader, range(READERS)))


async def _task(
    store: AsyncDuckDBStorage,
    read: Callable[[Any, int], Coroutine[object, object, object]],
    number: int,
    count: int,
) -> None:
    for call in range(count):
        await read(store, number * count + call)


def memory(sizes: list[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Write logs from an iterator, in one call and in one for each 100,000; return MB.

    Each runs in a process of its own (on Linux): its peak, what was there before, and what of it DuckDB held
    at most for indexes and for everything else.
    """
    return {
        way: {str(size): json.loads(_child("memory", way, str(size))) for size in sizes}
        for way in ("one call", "batches")
    }


def startup(logs: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds to import, to open a store that is there, and to find its schema up to date."""
    statements = {
        "import fiberstore": "import fiberstore",
        "import its libraries": "import duckdb, duckdb_engine, pydantic, sqlalchemy.orm",
        "import DuckDBStorage": "from fiberstore import DuckDBStorage",
        "import nothing": "pass",
    }
    ways = {
        name: lambda _, statement=statement: subprocess.run([sys.executable, "-c", statement], check=True)
        for name, statement in statements.items()
    }
    found_ms = {name: 1e3 * time_s for name, time_s in medians_s(ways, rounds).items()}
    nothing_ms = found_ms.pop("import nothing")
    found_ms = {name: time_ms - nothing_ms for name, time_ms in found_ms.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.duckdb"
        with DuckDBStorage(path) as storage:
            storage.init_schema()
            storage.write_logs(Generator("v7").logs(logs))
        opened = [json.loads(_child("open", str(path))) for _ in range(rounds)]
    return found_ms | {name: statistics.median(one[name] for one in opened) for name in opened[0]}


def recovery(wal_mbs: list[int]) -> dict[str, dict[str, float]]:
    """Kill a writer when its WAL has a size; return how long the next open takes, in milliseconds."""
    found = {}
    for wal_mb in wal_mbs:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store.duckdb"
            logs = int(_child("kill", str(path), str(wal_mb * _MB), returncode=-9))
            size_mb = path.with_name(path.name + ".wal").stat().st_size / _MB
            open_s = seconds(lambda: DuckDBStorage(path).close())  # noqa: B023  # called at once
            with DuckDBStorage(path) as storage:
                last = storage.query_logs_by_time(NOON, NOON + timedelta(days=365), 1, logs - 1)
                assert len(last) == 1, "an acknowledged log is gone"
        found[str(wal_mb)] = {"wal_mb": size_mb, "logs": logs, "open_ms": 1e3 * open_s}
    return found


def _child(*arguments: str, returncode: int = 0) -> str:
    command = [sys.executable, "-m", "benchmarks.child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == returncode, f"{arguments} ended with {done.returncode}"
    return done.stdout
