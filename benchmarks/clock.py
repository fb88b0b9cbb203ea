"""Times of things that take turns, and the memory of a process."""

import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_MB = 1_000_000


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes, in seconds."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return how much time of its processors, in seconds, a call takes this process."""
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def medians_s(ways: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Call the ways in turn with the number of each round; return the median seconds of each.

    Python's garbage collector runs as it does anywhere, but what was there before is kept out of its sight:
    to look through the benchmark's own data is not to be charged to whoever comes when it is due.
    """
    found_s: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        for name, way in ways.items():
            start_s = time.perf_counter()
            way(number)
            found_s[name].append(time.perf_counter() - start_s)
    gc.unfreeze()
    return {name: statistics.median(times_s) for name, times_s in found_s.items()}


def peak_mb() -> float:
    """Return the most memory this process has had; getrusage() would count what its parent had too."""
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024 / _MB
