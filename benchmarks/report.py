"""Results as a table against the marks that were set for fiberstore, as JSON and as plots."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.stores import FiberstorePostgreSQL, PostgreSQL, PostgreSQLOfOurs

Results = dict[str, Any]

OURS, ALONE = "fiberstore", "DuckDB alone"
ON_POSTGRESQL, PSYCOPG, PSYCOPG_OF_OURS = (
    kind.name for kind in (FiberstorePostgreSQL, PostgreSQL, PostgreSQLOfOurs)
)
_COLOURS = {
    OURS: "C3",
    ALONE: "C0",
    "DuckDB alone, plain join": "C9",
    "SQLite": "C2",
    PSYCOPG: "C1",
    ON_POSTGRESQL: "C4",
}
_PLOTTED_READS = (
    "get_log",
    "get_fiber_logs",
    "first page",
    "page after a key",
    "page at an offset",
    "update_fiber",
)
_LAST_BATCHES = 5


@dataclass(frozen=True)
class Mark:
    """A ratio and the bound that it should keep."""

    what: str
    ratio: float
    bound: float
    at_least: bool

    @property
    def kept(self) -> bool:
        """True if the bound is kept."""
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


def marks(results: Results) -> list[Mark]:
    """Return every mark with the ratio that was measured."""
    sorted_, random_ = results["growing"]["v7"], results["growing"]["v4"]
    return [
        *_writing(results, sorted_),
        *_reading(sorted_, random_),
        *_on_postgresql(results, sorted_),
        *_living(results, sorted_, random_),
    ]


def print_tables(results: Results) -> None:
    """Print what was measured, then the marks."""
    _print_measured(results)
    print(f"\n{'mark':<66}{'ratio':>9}{'bound':>9}")
    for mark in marks(results):
        sign = ">=" if mark.at_least else "<="
        print(f"{mark.what:<66}{mark.ratio:>9.2f} {sign}{mark.bound:>6g}{'' if mark.kept else '  missed'}")


def _print_measured(results: Results) -> None:
    for part in ("write_logs", "write_memberships"):
        print(f"\n{part}, {results['rows']:,} rows into a new store, rows/s")
        for way, rate in sorted(results["writing"][part].items(), key=lambda item: -item[1]):
            print(f"  {way:<28}{rate:>12,.0f}{rate / results['writing'][part][ALONE]:>8.3f} x {ALONE}")
    _print_rows("write_logs of an iterator that makes its records, CPU s", results["iterator_cpu_s"])
    _print_rows("transactions of 100 logs, ms", results["small_batches_ms"])
    for rows, times_ms in results["postgresql_ms"].items():
        _print_rows(f"transactions of {int(rows):,} logs on PostgreSQL, ms", times_ms)
    for ids, grown in results["growing"].items():
        size = str(grown["sizes"][-1])
        print(f"\nreads at {int(size):,} logs with {ids} ids, ms")
        for read, times_ms in grown["read_ms"][size].items():
            print(f"  {read:<18}" + "".join(f"  {way} {time_ms:.2f}" for way, time_ms in times_ms.items()))
        _print_rows(f"bytes per log with {ids} ids", grown["bytes_per_log"])
    for read, rates in results["tasks_and_threads"].items():
        _print_rows(f"{read}, 8 readers, calls/s", rates)
    for way, by_size in results["memory"].items():
        for size, found in by_size.items():
            _print_rows(f"memory, {int(size):,} logs from an iterator in {way}, MB", found)
    _print_rows("start, ms", results["startup_ms"])
    for found in results["recovery"].values():
        _print_rows("open after kill -9", found)


def save(results: Results, folder: Path) -> None:
    """Write ``results.json``, ``growth_reads.png`` and ``growth_writes.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [vars(mark) | {"kept": mark.kept} for mark in marks(results)]
    (folder / "results.json").write_text(json.dumps(results | {"marks": measured}, indent=1) + "\n")
    _plot_reads(results["growing"], folder / "growth_reads.png")
    _plot_writes(results["growing"], folder / "growth_writes.png")


def _writing(results: Results, grown: Results) -> list[Mark]:
    logs, memberships = results["writing"]["write_logs"], results["writing"]["write_memberships"]
    small_ms = results["small_batches_ms"]
    rates = grown["write"][OURS]["logs_per_s"][-_LAST_BATCHES:]
    late_rate = len(rates) / sum(1 / rate for rate in rates)
    return [
        Mark("write_logs: x DuckDB alone", logs[OURS] / logs[ALONE], 0.65, True),
        Mark("write_logs: x Core executemany", logs[OURS] / logs["Core executemany"], 100, True),
        Mark("write_logs: x SQLite", logs[OURS] / logs["SQLite"], 4, True),
        Mark("write_memberships: x DuckDB alone", memberships[OURS] / memberships[ALONE], 0.5, True),
        Mark("transactions of 100 logs: x DuckDB alone", small_ms[ALONE] / small_ms[OURS], 0.8, True),
        Mark(f"write_logs at {grown['sizes'][-1]:,} logs: x new store", late_rate / logs[OURS], 0.7, True),
    ]


def _reading(grown: Results, grown_random: Results) -> list[Mark]:
    size, middle = str(grown["sizes"][-1]), str(grown["sizes"][-3])
    reads = grown["read_ms"][size]
    plans_ms = {
        way: ms for way, ms in grown_random["read_ms"][size]["get_fiber_logs"].items() if ALONE in way
    }

    def cost(read: str) -> float:
        return float(reads[read][OURS] / reads[read][ALONE])

    return [
        Mark("get_log: time x DuckDB alone", cost("get_log"), 1.6, False),
        Mark("get_fiber: time x DuckDB alone", cost("get_fiber"), 1.6, False),
        Mark("get_log_fibers: time x DuckDB alone", cost("get_log_fibers"), 1.6, False),
        Mark("10,000 rows to records: x fetchall()", 1 / cost("10,000 rows"), 1, True),
        Mark(
            f"get_fiber_logs at {int(size):,} logs: time x at {int(middle):,}",
            reads["get_fiber_logs"][OURS] / grown["read_ms"][middle]["get_fiber_logs"][OURS], 2, False,
        ),
        Mark(
            "get_fiber_logs, random ids: time x DuckDB's best plan",
            grown_random["read_ms"][size]["get_fiber_logs"][OURS] / min(plans_ms.values()), 1, False,
        ),
        Mark("first page by time: time x DuckDB alone", cost("first page"), 1.3, False),
        Mark(
            "page after a key, in the middle: time x first page",
            reads["page after a key"][OURS] / reads["first page"][OURS], 1.5, False,
        ),
        Mark("update_fiber: time x DuckDB alone", cost("update_fiber"), 1.6, False),
    ]  # fmt: skip


def _on_postgresql(results: Results, grown: Results) -> list[Mark]:
    """Compare with psycopg alone on the same server, at the last size to which both have grown."""
    size = max(size for size in grown["sizes"] if PSYCOPG in grown["read_ms"][str(size)]["get_log"])
    reads, rates = grown["read_ms"][str(size)], results["writing"]["write_logs"]
    ways = ("same tables", PSYCOPG_OF_OURS), ("no order of arrival", PSYCOPG)
    return [
        *(
            Mark(f"write_logs on PostgreSQL: x COPY, {name}", rates[ON_POSTGRESQL] / rates[alone], 0.8, True)
            for name, alone in ways
        ),
        *(
            Mark(
                f"transactions of {int(rows):,} logs on PostgreSQL: x COPY, {name}",
                times_ms[alone] / times_ms[ON_POSTGRESQL], 0.8, True,
            )
            for rows, times_ms in results["postgresql_ms"].items()
            for name, alone in ways
        ),
        *(
            Mark(
                f"{read} on PostgreSQL at {size:,} logs: time x psycopg",
                reads[read][ON_POSTGRESQL] / reads[read][PSYCOPG], 1.4, False,
            )
            for read in ("get_log", "get_fiber", "get_log_fibers", "get_fiber_logs")
        ),
    ]  # fmt: skip


def _living(results: Results, grown: Results, grown_random: Results) -> list[Mark]:
    outside = [
        found["peak_mb"] - found["indexes_mb"] - found["other_duckdb_mb"]
        for found in results["memory"]["one call"].values()
    ]
    return [
        *(
            Mark(f"{read}, 8 readers: tasks x threads", rates["tasks"] / rates["threads"], 0.9, True)
            for read, rates in results["tasks_and_threads"].items()
        ),
        Mark("memory outside DuckDB: most logs x fewest", outside[-1] / outside[0], 1.5, False),
        *(
            Mark(
                f"file size, {ids} ids: x compact copy",
                found["bytes_per_log"][OURS] / found["bytes_per_log"]["DuckDB, compact copy"], 1.1, False,
            )
            for ids, found in (("v7", grown), ("v4", grown_random))
        ),
        Mark("import fiberstore, seconds", results["startup_ms"]["import fiberstore"] / 1e3, 0.4, False),
    ]  # fmt: skip


def _print_rows(title: str, found: dict[str, float]) -> None:
    print(f"\n{title}\n  " + "  ".join(f"{name} {value:,.4g}" for name, value in found.items()))


def _plot_reads(growing: Results, path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for axis, read in zip(axes.flat, _PLOTTED_READS, strict=True):
        for ids, grown in growing.items():
            for way in _COLOURS:
                by_size = {size: grown["read_ms"][str(size)][read].get(way) for size in grown["sizes"]}
                measured = {size: time_ms for size, time_ms in by_size.items() if time_ms is not None}
                if measured:
                    _line(axis, ids, way, list(measured), list(measured.values()))
        _label(axis, read, "ms")
    _legend(figure, axes.flat[1])
    figure.suptitle("Cost of a read as the store grows (median; 20 logs to a fiber, pages of 1,000)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_writes(growing: Results, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for axis, kind in zip(axes.flat, ("logs", "memberships"), strict=True):
        for ids, grown in growing.items():
            for way, found in grown["write"].items():
                _line(axis, ids, way, found["logs"], found[f"{kind}_per_s"])
        _label(axis, f"write_{kind}", "rows/s")
        axis.set(xscale="linear")
        axis.xaxis.set_major_formatter("{x:,g}")
    _legend(figure, axes.flat[0])
    figure.suptitle("Rate of each batch as the store grows (checkpoints included)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axis: Axes, ids: str, way: str, logs: list[int], values: list[float]) -> None:
    style = "-" if ids == "v7" else ":"
    axis.plot(logs, values, style, marker=".", color=_COLOURS[way], label=f"{way}, {ids} ids")


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")


def _label(axis: Axes, title: str, unit: str) -> None:
    axis.set(title=title, xlabel="logs in the store", ylabel=unit, xscale="log", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="both", alpha=0.2)
