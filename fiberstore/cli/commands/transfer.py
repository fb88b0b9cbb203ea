"""The commands ``export`` and ``import``: records to files and back, with a progress bar on a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fiberstore.cli.app import app, print_note
from fiberstore.cli.changing import open_or_make
from fiberstore.cli.console import make_console, print_json, print_line
from fiberstore.cli.lookup import active_version, check_keys, shown_version
from fiberstore.cli.options import ConfigVersion, Db, FiberFilter, Json, LogFilter, with_filter
from fiberstore.cli.render import counted
from fiberstore.cli.stores import open_to_read
from fiberstore.contract.queries import Fibers, Partition, Query
from fiberstore.errors import StorageError
from fiberstore.repositories.storage import SqlStorage

export_app = typer.Typer(help="Write logs, fibers, keys or memberships into files.", no_args_is_help=True)
import_app = typer.Typer(help="Store the logs, fibers, keys or memberships of files.", no_args_is_help=True)
app.add_typer(export_app, name="export")
app.add_typer(import_app, name="import")

NewFile = Annotated[
    Path, typer.Argument(metavar="PATH", help="The new file: .parquet, .csv or .jsonl; if split, a folder.")
]
Files = Annotated[
    Path, typer.Argument(metavar="PATH", help="A .parquet, .csv or .jsonl file, or a folder of them.")
]
Part = Annotated[
    Partition | None, typer.Option(help="Write a folder with a file for each month, day or hour in UTC.")
]


@export_app.command(
    "logs", epilog="Example: fiberstore export logs --db store.duckdb logs.parquet --partition-by day"
)
@with_filter
def export_logs(
    chosen: LogFilter, path: NewFile, *, db: Db, partition_by: Part = None, as_json: Json = False
) -> None:
    """Write logs into a new file, which has its name only once it is complete."""
    with open_to_read(db) as storage:
        _export(chosen.of(storage), path, partition_by, as_json=as_json)


@export_app.command(
    "fibers", epilog="Example: fiberstore export fibers --db store.duckdb fibers.jsonl --type login"
)
@with_filter
def export_fibers(
    chosen: FiberFilter, path: NewFile, *, db: Db, partition_by: Part = None, as_json: Json = False
) -> None:
    """Write fibers into a new file, which has its name only once it is complete."""
    with open_to_read(db) as storage:
        _export(chosen.of(storage), path, partition_by, as_json=as_json)
        active = None if chosen.version else active_version(storage)
        if active is not None and storage.fibers.where(Fibers.c.config_version != active).count(1):
            print_note(
                f"that is config version {shown_version(active)}, the active one; --version all is every one"
            )


@export_app.command(
    "memberships", epilog="Example: fiberstore export memberships --db store.duckdb memberships.parquet"
)
def export_memberships(path: NewFile, *, db: Db, as_json: Json = False) -> None:
    """Write which logs belong to which fibers into a new file; it has its name only once it is complete."""
    with open_to_read(db) as storage:
        _export(storage.memberships, path, None, as_json=as_json)


@export_app.command("keys", epilog="Example: fiberstore export keys --db store.duckdb keys.parquet")
@with_filter
def export_keys(chosen: FiberFilter, path: NewFile, *, db: Db, as_json: Json = False) -> None:
    """Write the keys of fibers into a new file, which has its name only once it is complete."""
    with open_to_read(db) as storage:
        check_keys(storage)
        fibers = chosen.of(storage)
        with _progress("export", None) as on_rows:
            begin = time.monotonic()
            rows = fibers.export_keys(path, on_rows=on_rows)
        _report(f"{path}: {counted(rows, 'rows')}", rows, time.monotonic() - begin, as_json=as_json)


@import_app.command("logs", epilog="Example: fiberstore import logs --db store.duckdb logs.parquet")
def import_logs(path: Files, *, db: Db, config_version: ConfigVersion = 0, as_json: Json = False) -> None:
    """Store the logs of files, all or none; those that are stored already stay as they are."""
    with _open_to_write(db, path, config_version) as storage:
        _import(storage.import_logs, path, "logs", as_json=as_json)


@import_app.command("fibers", epilog="Example: fiberstore import fibers --db store.duckdb fibers.jsonl")
def import_fibers(path: Files, *, db: Db, as_json: Json = False) -> None:
    """Store the fibers of files, all or none; those that are stored already stay as they are."""
    with _open_to_write(db, path) as storage:
        _import(storage.import_fibers, path, "fibers", as_json=as_json)


@import_app.command(
    "memberships", epilog="Example: fiberstore import memberships --db store.duckdb memberships.parquet"
)
def import_memberships(path: Files, *, db: Db, as_json: Json = False) -> None:
    """Store the memberships of files, all or none; those that are stored already stay as they are."""
    with _open_to_write(db, path) as storage:
        _import(storage.import_memberships, path, "memberships", as_json=as_json)


@import_app.command("keys", epilog="Example: fiberstore import keys --db store.duckdb keys.parquet")
def import_keys(path: Files, *, db: Db, as_json: Json = False) -> None:
    """Store the keys of files, all or none, after their fibers; the earlier beginning of a key stays."""
    with _open_to_write(db, path) as storage:
        _import(storage.import_keys, path, "keys", as_json=as_json)


def _export(query: Query[Any], path: Path, partition_by: Partition | None, *, as_json: bool) -> None:
    with _progress("export", query.count) as on_rows:
        begin = time.monotonic()
        rows = query.export(path, partition_by=partition_by, on_rows=on_rows)
    _report(f"{path}: {counted(rows, 'rows')}", rows, time.monotonic() - begin, as_json=as_json)


def _import(store: Callable[..., int], path: Path, what: str, *, as_json: bool) -> None:
    with _progress("import", None) as on_rows:
        begin = time.monotonic()
        rows = store(path, on_rows=on_rows)
    _report(counted(rows, f"new {what}"), rows, time.monotonic() - begin, as_json=as_json)


@contextmanager
def _open_to_write(db: str, path: Path, config_version: int = 0) -> Iterator[SqlStorage]:
    """Open or make a store, if there is something to import."""
    from fiberstore.exchange.writing import format_of

    if not path.exists():
        raise StorageError(
            f"{path} does not exist; give a .parquet, .csv or .jsonl file, or a folder of them"
        )
    if not path.is_dir():
        format_of(path)
    with open_or_make(db, config_version) as storage:
        yield storage


@contextmanager
def _progress(what: str, count: Callable[[], int] | None) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on a terminal; yield the function that moves it by a number of rows."""
    console = make_console(stderr=True)
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
            progress.update(bar, done=f"{counted(int(done), 'rows')}, {rate:,.0f} rows/s")

        yield on_rows


def _report(text: str, rows: int, seconds: float, *, as_json: bool) -> None:
    if as_json:
        print_json({"rows": rows, "seconds": round(seconds, 3)})
    else:
        print_line(f"{text}; {seconds:.2f} s")
