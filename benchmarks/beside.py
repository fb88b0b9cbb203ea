"""This tree beside another one, in one run: ``python -m benchmarks.beside FOLDER_OF_THE_OTHER [URL]``.

Each tree has a process of its own, with a store of the same rows, in DuckDB or in PostgreSQL. They take
turns, a block of calls each, so that what else the machine does meets both. Printed are medians and their
ratio, this tree / the other. A URL has ``{}`` in its database's name, for ``this`` and ``other``.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 25
# Calls in a block.
CALLS = {
    "get_log": 50,
    "get_fiber": 50,
    "get_log_fibers": 50,
    "get_fiber_logs": 50,
    "query_logs_by_time": 10,
    "update_fiber": 30,
    "write_logs of 100": 10,
    "write_logs of 100,000": 1,
}
_ROUNDS_OF = {"write_logs of 100,000": 10}
_FIBERS, _LOGS_EACH, _PAGE = 2_000, 20, 1_000
_NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


def _uid(number: int) -> UUID:
    return UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128)


def _answer(target: str) -> None:
    """Time the calls that the other end of the pipe asks for."""
    from fiberstore import FiberMembership, FiberRecord, LogRecord, open_storage
    from fiberstore.ids import new_log_id

    def log(number: int) -> LogRecord:
        return LogRecord(
            log_id=_uid(number),
            timestamp=_NOON + timedelta(milliseconds=number),
            source_id="web",
            raw_text="GET /healthz 200",
        )

    def fiber(number: int, *, closed: bool = False) -> FiberRecord:
        return FiberRecord(
            fiber_id=_uid(number), fiber_type="request", config_version=1, attributes={"user": "ann"},
            first_activity=_NOON, last_activity=_NOON, closed=closed,
        )  # fmt: skip

    def new_logs(count: int) -> list[LogRecord]:
        return [
            LogRecord(timestamp=_NOON, source_id="web", raw_text="GET /healthz 200", log_id=new_log_id(_NOON))
            for _ in range(count)
        ]

    with open_storage(target) as storage:
        storage.init_schema()
        storage.write_logs([log(number) for number in range(_FIBERS * _LOGS_EACH)])
        storage.write_fibers([fiber(number) for number in range(_FIBERS)])
        storage.write_memberships(
            FiberMembership(log_id=_uid(number), fiber_id=_uid(number // _LOGS_EACH), config_version=1)
            for number in range(_FIBERS * _LOGS_EACH)
        )
        calls: dict[str, Callable[[int], Callable[[], object]]] = {
            "get_log": lambda number: lambda: storage.get_log(_uid(number)),
            "get_fiber": lambda number: lambda: storage.get_fiber(_uid(number % _FIBERS)),
            "get_log_fibers": lambda number: lambda: storage.get_log_fibers(_uid(number)),
            "get_fiber_logs": lambda number: lambda: storage.get_fiber_logs(_uid(number % _FIBERS)),
            "query_logs_by_time": lambda _: (
                lambda: storage.query_logs_by_time(_NOON, _NOON + timedelta(days=1), _PAGE)
            ),
            "update_fiber": lambda number: (
                lambda: storage.update_fiber(fiber(number % _FIBERS, closed=number % 2 > 0))
            ),
            "write_logs of 100": lambda _: partial(storage.write_logs, new_logs(100)),
            "write_logs of 100,000": lambda _: partial(storage.write_logs, new_logs(100_000)),
        }
        number = 0
        for line in sys.stdin:
            durations = []
            for _ in range(CALLS[json.loads(line)]):
                number += 1
                call = calls[json.loads(line)](number)
                began = time.perf_counter()
                call()
                durations.append(time.perf_counter() - began)
            print(statistics.median(durations), flush=True)


def _compare(other: Path, url: str | None) -> None:
    with TemporaryDirectory() as folder:
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", url.format(name) if url else f"{folder}/{name}.duckdb"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(tree)},
                cwd=tree,
            )
            for name, tree in (("this", Path.cwd()), ("other", other))
        ]
        print(f"{'call':24} {'this µs':>12} {'other µs':>12} {'ratio':>6}")
        for name in CALLS:
            found: list[list[float]] = [[], []]
            for number in range(_ROUNDS_OF.get(name, ROUNDS) + 1):
                order = (0, 1) if number % 2 else (1, 0)
                for one in order:
                    pipe, answers = children[one].stdin, children[one].stdout
                    assert pipe is not None
                    assert answers is not None
                    pipe.write(json.dumps(name) + "\n")
                    pipe.flush()
                    taken = float(answers.readline())
                    if number:  # the first block warms up
                        found[one].append(taken)
            this, that = map(statistics.median, found)
            print(f"{name:24} {this * 1e6:12.1f} {that * 1e6:12.1f} {this / that:6.3f}", flush=True)
        for child in children:
            child.communicate()


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _answer(sys.argv[2])
    else:
        _compare(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else None)  # noqa: PLR2004
