"""Cost of a record to the thread that logs it: `python -m benchmarks.live`."""

import logging
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from fiberstore import BufferedWriter, DuckDBStorage
from fiberstore.logging import DEFAULT_FORMAT, Handler

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDS = 20_000
RUNS = 7
PAUSE_S = 0.0001


def measure(handler: logging.Handler, pause_s: float) -> tuple[float, float]:
    """Return the CPU time and the time that a record takes in the caller's thread, in µs; pauses left out."""
    logger = logging.getLogger("shop.cart")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    records = RECORDS if not pause_s else RECORDS // 10
    cpu_s = elapsed_s = 0.0
    if pause_s:
        for number in range(records):
            begin_s, begin_cpu_s = time.perf_counter(), time.thread_time()
            logger.info("GET /cart %d %s", number, "request=7f3a")
            cpu_s += time.thread_time() - begin_cpu_s
            elapsed_s += time.perf_counter() - begin_s
            time.sleep(pause_s)
    else:
        begin_s, begin_cpu_s = time.perf_counter(), time.thread_time()
        for number in range(records):
            logger.info("GET /cart %d %s", number, "request=7f3a")
        cpu_s = time.thread_time() - begin_cpu_s
        elapsed_s = time.perf_counter() - begin_s
    logger.removeHandler(handler)
    handler.flush()
    return cpu_s / records * 1e6, elapsed_s / records * 1e6


def main() -> None:
    """Measure the handlers in turn, and print the medians."""
    with tempfile.TemporaryDirectory() as name, DuckDBStorage(Path(name) / "store.duckdb") as storage:
        storage.init_schema()
        formatter = logging.Formatter(DEFAULT_FORMAT)

        def file_handler() -> logging.Handler:
            handler = logging.FileHandler(Path(name) / "records.log")
            handler.setFormatter(formatter)
            return handler

        handlers: dict[str, Callable[[], logging.Handler]] = {
            "NullHandler": logging.NullHandler,
            "FileHandler": file_handler,
            "fiberstore.logging.Handler": lambda: Handler(BufferedWriter(storage)),
        }
        print("| handler | load | CPU µs | µs |\n|---|---|---|---|")
        for load, pause_s in (("a record now and then", PAUSE_S), ("records without a pause", 0.0)):
            figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in handlers}
            for _ in range(RUNS):
                for kind, make in handlers.items():
                    with closing(make()) as handler:
                        figures[kind].append(measure(handler, pause_s))
            for kind, measured in figures.items():
                cpu_us, elapsed_us = (statistics.median(column) for column in zip(*measured, strict=True))
                print(f"| {kind} | {load} | {cpu_us:.1f} | {elapsed_us:.1f} |")


if __name__ == "__main__":
    main()
