"""``prune``: retention by age, size, type and source."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial, reduce
from operator import and_
from typing import Annotated, TypeVar

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn

from fiberstore.cli.app import app, print_note, telling_if_interrupted
from fiberstore.cli.changing import compact_store, db_option, open_to_change, shown_sizes, working
from fiberstore.cli.console import print_json, print_line
from fiberstore.cli.options import Db, DryRun, FiberCondition, Json, LogCondition, parse_ago
from fiberstore.cli.progress import progress_bars
from fiberstore.cli.tables import counted
from fiberstore.cli.units import parse_size
from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.contract.results import Pruned
from fiberstore.records import FiberRecord, StoredLog

R = TypeVar("R", StoredLog, FiberRecord)

_STEP_ROWS_ALONE = 1_000_000  # nobody else has the file open, to wait for them


def _parse_size(text: str) -> int:
    try:
        size_bytes = parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if text.strip()[-1].isdigit():  # of a forgotten unit all but a few bytes would go
        raise typer.BadParameter(f"{text!r} has no unit; give one such as '{text.strip()}GB', or B for bytes")
    if size_bytes < 1:
        raise typer.BadParameter(f"{text!r} is not at least 1 byte")
    return size_bytes


@app.command(epilog="Example: fiberstore prune --db store.duckdb --older-than 30d --dry-run")
def prune(
    *,
    db: Db,
    older_than: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_ago,
            metavar="SPAN",
            help="Only fibers without activity for so long, and logs so old: 30d, 12h, 5m (minutes).",
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Fibers of this type; if repeated, of any of them."),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="Logs of this source that no fiber holds; if repeated, of any of them.",
        ),
    ] = None,
    fibers: FiberCondition = None,
    logs: LogCondition = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            parser=_parse_size,
            metavar="SIZE",
            help="Only the oldest, until at most so much of the store is used: 10GB, 500MiB.",
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="End after so many steps; the same command resumes."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Give the space back to the disk, as `db compact` does.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete old fibers and logs, the oldest first.

    A fiber goes with the logs that only it holds. A log that another fiber holds stays; so do pinned rows,
    and the logs of pinned fibers. Fibers of every config version are pruned, not only of the active one.

    --type and --fibers choose fibers, --source and --logs choose logs. If only logs are chosen, no fiber
    goes; if only fibers are chosen, only the logs that they alone hold go with them. Rows must meet all
    options that are given; --older-than and --max-size alone apply to fibers and logs.

    It works in steps, each a transaction. An interruption leaves the store whole; the same command resumes.
    A step is 10,000 logs; of a file, without --max-steps, 1,000,000 if the disk has room for it once more.
    """
    what_fibers = _all_of(Fibers.c.fiber_type.in_(types) if types else None, fibers)
    what_logs = _all_of(Logs.c.source_id.in_(sources) if sources else None, logs)
    if what_fibers is None and what_logs is None and older_than is None and max_size is None:
        raise typer.BadParameter(
            "say what may go, by this, --type, --fibers, --source, --logs or --max-size",
            param_hint="'--older-than'",
        )
    if what_fibers is None and what_logs is not None:
        what_fibers = Fibers.c.fiber_id.in_([])
    elif what_logs is None and what_fibers is not None:
        what_logs = Logs.c.log_id.in_([])
    if older_than is not None:
        what_fibers = _all_of(what_fibers, Fibers.c.last_activity < older_than)
        what_logs = _all_of(what_logs, Logs.c.timestamp < older_than)
    with open_to_change(db) as storage:
        begin = time.monotonic()
        what = partial(storage.prune, fibers=what_fibers, logs=what_logs, max_bytes=max_size)
        if max_steps is None:
            what = partial(what, step_rows=_STEP_ROWS_ALONE)
        pruned = _count(what) if dry_run else _delete(partial(what, max_steps=max_steps))
        compacted = compact_store(storage) if compact and not dry_run else None
        seconds = time.monotonic() - begin
    if as_json:
        after = {} if compacted is None else {"compacted": asdict(compacted)}
        print_json({"dry_run": dry_run, **asdict(pruned), **after, "seconds": round(seconds, 3)})
        return
    print_line(
        f"{'would delete' if dry_run else 'deleted'} {counted(pruned.fibers, 'fibers')}, "
        f"{counted(pruned.logs, 'logs')} with {decimal(pruned.text_bytes)} of text, "
        f"{counted(pruned.memberships, 'memberships')}; {seconds:.2f} s"
    )
    if compacted is not None:
        print_line(shown_sizes(compacted))
    elif not dry_run:
        print_line(_free(pruned, db))
    if not pruned.is_complete:
        print_note("there is more to delete; the same command resumes")


def _all_of(*conditions: Condition[R] | None) -> Condition[R] | None:
    given = [condition for condition in conditions if condition is not None]
    return reduce(and_, given) if given else None


def _count(what: Callable[..., Pruned]) -> Pruned:
    with working("counting what would go"):
        return what(dry_run=True)


def _delete(what: Callable[..., Pruned]) -> Pruned:
    """Prune, with a bar on a terminal; print the command that resumes it after an interruption."""
    left = "what was deleted until then is gone, and the same command resumes"
    with telling_if_interrupted(lambda: left), _progress(what) as on_step:
        return what(on_step=on_step)


@contextmanager
def _progress(what: Callable[..., Pruned]) -> Iterator[Callable[[Pruned], None]]:
    """Show a bar on a terminal; yield the function that moves it to the rows deleted so far."""
    with progress_bars(BarColumn(), TextColumn("{task.description}")) as progress:
        bar = progress.add_task("counting what goes", total=None)
        if not progress.disable:
            progress.update(bar, total=_rows(what(dry_run=True)), description="deleting")
        yield lambda pruned: progress.update(bar, completed=_rows(pruned), description=_so_far(pruned))


def _rows(pruned: Pruned) -> int:
    return pruned.fibers + pruned.logs


def _so_far(pruned: Pruned) -> str:
    return f"deleting: {counted(pruned.fibers, 'fibers')}, {counted(pruned.logs, 'logs')} so far"


def _free(pruned: Pruned, db: str) -> str:
    return (
        f"{decimal(pruned.free_bytes)} of the {decimal(pruned.file_bytes)} of the store are free for what "
        f"is written next; fiberstore db compact {db_option(db)} gives them back to the disk"
    )
