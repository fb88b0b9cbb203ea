"""Measurements that need a process of their own; prints the figures that ``runtime_bench`` reads."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from benchmarks.clock import peak_mb
from benchmarks.data import Generator
from fiberstore import DuckDBStorage

_MB = 1_000_000
_BATCH_ROWS = 100_000
_SMALL_BATCH_ROWS = 100


def memory(way: str, size: str) -> None:
    """Write logs from an iterator; print the process's peak, and what of it DuckDB held at most, in MB."""
    with TemporaryDirectory() as folder, DuckDBStorage(Path(folder) / "store.duckdb") as storage:
        storage.init_schema()
        generator = Generator("v7")
        storage.write_logs(generator.logs(1000))  # everything is imported, every buffer is made
        before_mb = peak_mb()
        logs = generator.logs(int(size))
        with _watched(storage) as held_mb:
            if way == "one call":
                storage.write_logs(logs)
            else:
                while batch := list(islice(logs, _BATCH_ROWS)):
                    storage.write_logs(batch)
    print(json.dumps({"before_mb": before_mb, "peak_mb": peak_mb()} | held_mb))


@contextmanager
def _watched(storage: DuckDBStorage) -> Iterator[dict[str, float]]:
    """Look at DuckDB's own account of its memory every 20 ms of the block; keep the highest figures."""
    most_mb = {"indexes_mb": 0.0, "other_duckdb_mb": 0.0}
    done = threading.Event()

    def watch() -> None:
        with storage.engine.connect() as connection:
            while not done.wait(0.02):
                tags = connection.execute(
                    sa.text("SELECT tag, memory_usage_bytes FROM duckdb_memory()")
                ).all()
                connection.rollback()
                held_mb = {tag: used / _MB for tag, used in tags}
                indexes_mb = held_mb.pop("ART_INDEX")
                most_mb["indexes_mb"] = max(most_mb["indexes_mb"], indexes_mb)
                most_mb["other_duckdb_mb"] = max(most_mb["other_duckdb_mb"], sum(held_mb.values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most_mb
    finally:
        done.set()
        watcher.join()


def open_store(path: str) -> None:
    """Open a store that is there; print the milliseconds that it takes, and those of ``init_schema()``."""
    start_s = time.perf_counter()
    storage = DuckDBStorage(path)
    opened_s = time.perf_counter()
    storage.init_schema()
    first_s = time.perf_counter()
    storage.init_schema()
    second_s = time.perf_counter()
    storage.close()
    print(
        json.dumps(
            {
                "open": 1e3 * (opened_s - start_s),
                "init_schema(), first": 1e3 * (first_s - opened_s),
                "init_schema(), again": 1e3 * (second_s - first_s),
            }
        )
    )


def kill(path: str, wal_bytes: str) -> None:
    """Write transactions of 100 logs until the WAL has a size; print how many logs, and die."""
    storage = DuckDBStorage(f"duckdb:///{path}?checkpoint_threshold=1TB")
    storage.init_schema()
    wal = Path(path + ".wal")
    generator, logs = Generator("v7"), 0
    while not wal.exists() or wal.stat().st_size < int(wal_bytes):
        logs += storage.write_logs(list(generator.logs(_SMALL_BATCH_ROWS)))
    print(logs, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    parts: dict[str, Callable[..., None]] = {"memory": memory, "open": open_store, "kill": kill}
    parts[sys.argv[1]](*sys.argv[2:])
