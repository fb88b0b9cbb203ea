"""Run every part, print the tables, and write the JSON file and the plots."""

import argparse
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import growing, report, runtime_bench, writing
from benchmarks.stores import server

_VERSIONS = ("duckdb", "duckdb-engine", "sqlalchemy", "pyarrow", "pydantic", "psycopg")


def main() -> None:
    """Run every part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, under a minute: are the results right?"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"), help="a folder")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    rows = 5_000 if quick else 100_000
    sizes = [1_000, 5_000, 10_000] if quick else [10_000, 100_000, 200_000, 1_000_000, 5_000_000]
    rounds = 2 if quick else 7
    start_s = time.perf_counter()

    def step(what: str) -> None:
        print(f"{time.perf_counter() - start_s:6.0f} s  {what}", flush=True)

    results: report.Results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in _VERSIONS},
        "rows": rows,
    }
    try:
        step("new stores")
        results["writing"] = writing.bulk(rows, rounds)
        step("an iterator")
        results["iterator_cpu_s"] = writing.iterator(rows if quick else 1_000_000)
        step("small transactions")
        results["small_batches_ms"] = writing.small_batches(20 if quick else 400)
        step("batches on PostgreSQL")
        batches = {1: 5, 10: 5, 100: 5, 1_000: 3} if quick else dict.fromkeys((1, 10, 100, 1_000), 100)
        results["postgresql_ms"] = writing.postgresql_batches(
            batches | {5_000 if quick else 50_000: 3 if quick else 9}
        )
        step("growing stores")
        results["growing"] = {
            "v7": growing.grow("v7", sizes, rows, 8 if quick else 200),
            "v4": growing.grow("v4", sizes, rows, 8 if quick else 200),
        }
    finally:
        server.stop()
    step("tasks and threads")
    results["tasks_and_threads"] = runtime_bench.tasks_and_threads(rows, 8 if quick else 200, rounds)
    step("memory")
    results["memory"] = runtime_bench.memory([2_000, 10_000] if quick else [200_000, 1_000_000, 5_000_000])
    step("start")
    results["startup_ms"] = runtime_bench.startup(rows, rounds)
    step("recovery")
    results["recovery"] = runtime_bench.recovery([1] if quick else [16, 64, 128, 256])
    report.print_tables(results)
    report.save(results, arguments.output)
    step(f"done; results.json and the plots are in {arguments.output}")


if __name__ == "__main__":
    main()
