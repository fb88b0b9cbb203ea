"""The commands ``export`` and ``import``: records to files and back, with a progress bar on a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fiberstore.cli.commands import Db, Json, _open_to_read, app
from fiberstore.cli.render import print_json, visible
from fiberstore.duckdb import DuckDBStorage
from fiberstore.queries import Query


class What(Enum):
    """A kind of record, as the commands name it."""

    LOGS = "logs"
    FIBERS = "fibers"
    MEMBERSHIPS = "memberships"


class Part(Enum):
    """A span of time to split by."""

    MONTH = "month"
    DAY = "day"
    HOUR = "hour"


@app.command(
    "export", epilog="Example: fiberstore export --db store.duckdb logs logs.parquet --partition-by day"
)
def export(
    what: Annotated[What, typer.Argument(help="What to write.", show_default=False)],
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="The new file: .parquet, .csv or .jsonl; if split, a folder."),
    ],
    db: Db,
    partition_by: Annotated[
        Part | None, typer.Option(help="Write a folder with a file for each month, day or hour in UTC.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write logs, fibers or memberships into a new file that is complete from the moment it has its name."""
    with _open_to_read(db) as storage:
        query = _query(storage, what)
        with _progress("export", query.count) as on_rows:
            begin = time.monotonic()
            rows = query.export(
                path, partition_by=None if partition_by is None else partition_by.value, on_rows=on_rows
            )
    _report(f"{visible(str(path))}: {rows:,} {what.value}", rows, time.monotonic() - begin, as_json=as_json)


@app.command("import", epilog="Example: fiberstore import --db store.duckdb logs logs.parquet")
def import_(
    what: Annotated[What, typer.Argument(help="What to read.", show_default=False)],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A .parquet, .csv or .jsonl file, or a folder of them.")
    ],
    db: Db,
    as_json: Json = False,
) -> None:
    """Store the logs, fibers or memberships of files, all or none; those that are stored already stay."""
    with DuckDBStorage(db) as storage:
        storage.init_schema()
        imports = {
            What.LOGS: storage.import_logs,
            What.FIBERS: storage.import_fibers,
            What.MEMBERSHIPS: storage.import_memberships,
        }
        with _progress("import", None) as on_rows:
            begin = time.monotonic()
            rows = imports[what](path, on_rows=on_rows)
    _report(f"{rows:,} new {what.value}", rows, time.monotonic() - begin, as_json=as_json)


def _query(storage: DuckDBStorage, what: What) -> Query[Any]:
    """Return the query of what is to be written; conditions will join here."""
    queries: dict[What, Query[Any]] = {
        What.LOGS: storage.logs,
        What.FIBERS: storage.fibers,
        What.MEMBERSHIPS: storage.memberships,
    }
    return queries[what]


@contextmanager
def _progress(what: str, count: Callable[[], int] | None) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on a terminal; give what moves it by a number of rows."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None if count is None else count(), done="")
        begin = time.monotonic()

        def on_rows(rows: int) -> None:
            progress.advance(bar, rows)
            done = progress.tasks[bar].completed
            rate = done / (time.monotonic() - begin)
            progress.update(bar, done=f"{done:,.0f} rows, {rate:,.0f} rows/s")

        yield on_rows


def _report(text: str, rows: int, seconds: float, *, as_json: bool) -> None:
    if as_json:
        print_json({"rows": rows, "seconds": round(seconds, 3)})
    else:
        typer.echo(f"{text}; {seconds:.2f} s")
