r"""Shapes of results: tables on a terminal, tab-separated in a pipe, JSON or texts alone where asked for.

A pipe gets every value whole, one record a line under a line of names, without colour. Text from logs is
never read as markup, and control characters in it are shown as ``\x1b`` and the like. A column has the name
that its value has in JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias
from uuid import UUID

from pydantic_core import to_jsonable_python
from rich.console import Group, RenderableType

from fiberstore.cli import tables
from fiberstore.cli.console import make_console, print_json, print_line, print_rows, print_text
from fiberstore.cli.lookup import Generation, Statistics, shown_version
from fiberstore.cli.times import shown_time
from fiberstore.contract.results import (
    Bucket,
    Checkpoint,
    FiberSummary,
    GenerationDiff,
    LogContext,
    ValueCount,
)
from fiberstore.copying.copy import Copied
from fiberstore.keys import key_values
from fiberstore.records import FiberKey, FiberRecord, StoredLog

if TYPE_CHECKING:
    from fiberstore.doctor import Finding

Shape: TypeAlias = Literal["table", "tsv", "json", "raw"]
Keys: TypeAlias = Mapping[UUID, Sequence[FiberKey]]
Record: TypeAlias = Mapping[str, object]

_LOG = ("log_id", "timestamp", "source_id", "raw_text")
_FIBER = (
    "fiber_id", "fiber_type", "first_activity", "last_activity", "duration_s", "closed", "log_count",
    "source_ids", "attributes", "keys",
)  # fmt: skip
_GENERATION = ("config_version", "active", "created_at", "parent", "fibers", "content_hash")
_COPIED = ("table", "written", "source_rows", "destination_rows", "source_checksum", "destination_checksum")


def shape_of_output(*, as_json: bool) -> Shape:
    """Return the shape of results: JSON if it is asked for, else as what stdout is has it."""
    return "json" if as_json else "table" if make_console().is_terminal else "tsv"


def print_records(
    records: Iterable[Record],
    columns: Sequence[str],
    table: Callable[[], RenderableType],
    shape: Shape,
    *,
    rows: Iterable[Record] | None = None,
    with_names: bool = True,
) -> None:
    """Print records.

    Args:
        records: The records, whole, as JSON has them.
        columns: Names of the values that tab-separated rows have.
        table: What a terminal shows.
        shape: One of the three, or the ``raw_text`` of each.
        rows: What tab-separated rows have, if other than the records.
        with_names: False if rows continue those that were printed.
    """
    match shape:
        case "json":
            for record in records:
                print_json(record)
        case "raw":
            print_text("".join(f"{record['raw_text']}\n" for record in records))
        case "table":
            make_console().print(table())
        case "tsv":
            print_rows([columns] if with_names else [])
            print_rows([_cell(row[name]) for name in columns] for row in (records if rows is None else rows))


def _records(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[Record]:
    return (dict(zip(columns, row, strict=True)) for row in rows)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case datetime():
            return shown_time(value)
        case str() | int() | float() | UUID():
            return str(value)
    return tables.compact(to_jsonable_python(value))


def log_record(log: StoredLog) -> Record:
    """Return a log, with its config version as ``--version`` takes it."""
    return {**vars(log), "config_version": shown_version(log.config_version)}


def fiber_record(fiber: FiberRecord, keys: Keys) -> Record:
    """Return a fiber with its keys; those of its attributes sorted: not every database keeps their order."""
    return {
        **vars(fiber),
        "config_version": shown_version(fiber.config_version),
        "attributes": json.loads(json.dumps(fiber.attributes, sort_keys=True)),
        "keys": key_values(keys.get(fiber.fiber_id, ())),
    }


def _summary_record(listed: FiberSummary, keys: Keys) -> Record:
    fiber = listed.fiber
    return {
        **fiber_record(fiber, keys),
        "duration_s": (fiber.last_activity - fiber.first_activity).total_seconds(),
        "log_count": listed.log_count,
        "source_ids": listed.source_ids,
        "first_log": listed.first_log,
        "last_log": listed.last_log,
    }


def version_or_none(config_version: int | None) -> str | None:
    """Return a config version, which there may not be, as it is shown and given."""
    return None if config_version is None else shown_version(config_version)


def generation_record(generation: Generation) -> Record:
    """Return a config version, without its content."""
    known = generation.registered
    return {
        "config_version": shown_version(generation.config_version),
        "active": known is not None and known.active,
        "created_at": None if known is None else known.created_at,
        "parent": None if known is None else version_or_none(known.parent),
        "fibers": generation.fibers,
        "content_hash": None if known is None else known.content_hash,
    }


def print_logs(
    shape: Shape, logs: Sequence[StoredLog], with_names: bool = True, *, highlight: str | None = None
) -> None:
    """Print logs, on a terminal the beginning of each; ``print_fiber`` and a pipe get the whole.

    Where ``highlight``, an expression of RE2, matches, the text is highlighted on a terminal; of a long text,
    the part around the first match is shown.
    """
    print_records(
        map(log_record, logs), _LOG, lambda: tables.logs(logs, highlight), shape, with_names=with_names
    )


def print_context(found: LogContext, shape: Shape) -> None:
    """Print a log and its neighbours, with their distance from it; on a terminal, it is marked."""
    logs = [*found.before, found.log, *found.after]
    records = [{"offset": offset, **log_record(log)} for offset, log in enumerate(logs, -len(found.before))]
    print_records(records, ("offset", *_LOG), lambda: tables.whole_logs(logs, found.log), shape)


class LogLines:
    """Prints logs one by one, as they come: on a terminal a line each, with a colour for each source."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._colours: dict[str, str] = {}

    def begin(self) -> None:
        """Print what comes before all logs."""
        if self._shape == "tsv":
            print_rows([_LOG])

    def print(self, log: StoredLog) -> None:
        """Print a log."""
        print_records(
            [log_record(log)],
            _LOG,
            lambda: tables.log_line(log, self._colours),
            self._shape,
            with_names=False,
        )


def print_fibers(
    listed: Sequence[FiberSummary], keys: Keys, shape: Shape, *, with_names: bool = True
) -> None:
    """Print fibers, on a terminal each as two lines: what it is, and how to find it."""
    records = (_summary_record(item, keys) for item in listed)
    print_records(records, _FIBER, lambda: tables.fibers(listed, keys), shape, with_names=with_names)


def print_fiber(
    listed: FiberSummary, keys: Keys, logs: Sequence[StoredLog], shape: Shape, *, is_first: bool = True
) -> None:
    """Print one fiber and its logs, on a terminal with a colour for each source."""
    record = _summary_record(listed, keys)
    if not is_first and shape in ("table", "tsv"):
        print_line()
    match shape:
        case "json":
            print_json({**record, "logs": [*map(log_record, logs)]})
        case "table":
            make_console().print(Group(tables.fiber(listed.fiber, keys), "", tables.whole_logs(logs)))
        case "tsv":
            print_records([record], _FIBER, Group, shape)
            print_line()
            print_logs(shape, logs)
        case "raw":
            print_logs(shape, logs)


def print_histogram(buckets: Sequence[Bucket], group: str | None, shape: Shape) -> None:
    """Print counts over time, on a terminal as bars, by the column ``group`` if there is one."""
    columns = ("start", group, "count") if group else ("start", "count")
    rows = ((one.start, one.group, one.count) if group else (one.start, one.count) for one in buckets)
    print_records(_records(columns, rows), columns, lambda: tables.bars(buckets, group), shape)


def print_value_counts(found: Sequence[ValueCount[str]], name: str, shape: Shape) -> None:
    """Print values, called so, and the number of fibers that have each."""
    columns = (name, "fibers", "first_seen", "last_seen")
    rows = ((one.value, one.count, one.first_seen, one.last_seen) for one in found)
    print_records(_records(columns, rows), columns, lambda: tables.value_counts(found, name), shape)


def print_findings(repaired: Iterable[str], findings: Iterable["Finding"]) -> None:
    """Print repairs and findings, a line each."""
    lines = [f"repaired: {text}" for text in repaired]
    for finding in findings:
        kind = "problem" if finding.is_problem else "remark"
        hint = " (--repair mends it)" if finding.is_repairable else ""
        lines.append(f"{kind}: {finding.text}{hint}")
    for line in lines or ["ok"]:
        print_line(line)


def print_statistics(statistics: Statistics, shape: Shape) -> None:
    """Print the content of a store."""
    names = ("what", "name", "value")
    rows = _records(names, statistics.rows())
    print_records([asdict(statistics)], names, lambda: tables.statistics(statistics), shape, rows=rows)


def print_generations(generations: Sequence[Generation], shape: Shape) -> None:
    """Print config versions and the number of fibers of each; the active one is marked."""
    records = map(generation_record, generations)
    print_records(records, _GENERATION, lambda: tables.generations(generations), shape)


def print_diff(old: int, new: int, found: GenerationDiff, shape: Shape) -> None:
    """Print the differences between the fibers of two versions: the counts, then the changes."""
    counts = dict[str, int]([("unchanged", found.unchanged), *found.counts.items()])
    whole = {"old": shown_version(old), "new": shown_version(new), **asdict(found)}
    rows = ({"kind": kind, "fibers": count} for kind, count in counts.items())
    print_records([whole], ("kind", "fibers"), lambda: tables.diff(old, new, counts, found), shape, rows=rows)
    if shape == "tsv":
        print_line()
        columns = ("kind", "fiber_type", "old", "new")
        print_records(map(asdict, found.changes), columns, Group, shape)


def print_checkpoints(checkpoints: Sequence[Checkpoint], shape: Shape) -> None:
    """Print named checkpoints."""
    columns = ("name", "updated_at", "value")
    print_records(map(asdict, checkpoints), columns, lambda: tables.checkpoints(checkpoints), shape)


def print_copied(copied: Copied, seconds: float, shape: Shape) -> None:
    """Print the rows that a copy has written, and the rows of both stores at its end."""
    whole = {"equal": copied.is_equal, **asdict(copied), "seconds": round(seconds, 3)}
    rows = (
        (table, copied.written.get(table, 0), ours.rows, theirs.rows, ours.checksum, theirs.checksum)
        for table, ours in copied.source.items()
        for theirs in [copied.destination[table]]
    )
    table = partial(tables.copied, copied, seconds)
    print_records([whole], _COPIED, table, shape, rows=_records(_COPIED, rows))
