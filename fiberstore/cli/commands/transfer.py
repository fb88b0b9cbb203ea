"""The commands ``export`` and ``import``: records to files and back, with a progress bar on a terminal."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fiberstore.cli.app import app, print_note
from fiberstore.cli.changing import open_or_make
from fiberstore.cli.console import print_result
from fiberstore.cli.lookup import active_version, check_keys, shown_version
from fiberstore.cli.options import ConfigVersion, Db, FiberFilter, Json, LogFilter, with_filter
from fiberstore.cli.progress import counting_bars
from fiberstore.cli.stores import open_to_read
from fiberstore.cli.tables import counted
from fiberstore.contract.queries import Fibers, Partition, Query
from fiberstore.errors import StorageError
from fiberstore.repositories.storage import SqlStorage

export_app = typer.Typer(
    help="Write logs, fibers, keys, memberships or traces into files.", no_args_is_help=True
)
import_app = typer.Typer(
    help="Store the logs, fibers, keys or memberships of files, or logs of OpenTelemetry.",
    no_args_is_help=True,
)
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
        _tell_of_other_versions(storage, chosen)


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
        with counting_bars("rows") as bars:
            bars.begin("export")
            begin = time.monotonic()
            rows = fibers.export_keys(path, on_rows=partial(bars.advance, "export"))
        _report(f"{path}: {counted(rows, 'rows')}", rows, time.monotonic() - begin, as_json=as_json)


@export_app.command(
    "traces", epilog="Example: fiberstore export traces --db store.duckdb traces.json --type request"
)
@with_filter
def export_traces(
    chosen: FiberFilter,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The new file, such as traces.json.")],
    *,
    db: Db,
    as_json: Json = False,
) -> None:
    """Write fibers as traces into a new file of OTLP/JSON, which Jaeger's page opens; logs are events."""
    from fiberstore.otel import export_traces as write_traces

    with open_to_read(db) as storage:
        fibers = chosen.of(storage)
        with counting_bars("rows") as bars:
            bars.begin("export", fibers.count)
            begin = time.monotonic()
            written = write_traces(storage, path, fibers, on_fibers=partial(bars.advance, "export"))
        seconds = time.monotonic() - begin
        counts = f"{counted(written.fibers, 'fibers')} with {counted(written.logs, 'logs')}"
        values = {**asdict(written), "seconds": round(seconds, 3)}
        print_result(f"{path}: {counts}; {seconds:.2f} s", values, as_json=as_json)
        if written.too_old:
            print_note(f"{counted(written.too_old, 'fibers')} before 1970 left out: OTLP has no such times")
        _tell_of_other_versions(storage, chosen)


@import_app.command("logs", epilog="Example: fiberstore import logs --db store.duckdb logs.parquet")
def import_logs(path: Files, *, db: Db, config_version: ConfigVersion = 0, as_json: Json = False) -> None:
    """Store the logs of files, all or none; those that are stored already stay as they are."""
    _import("logs", path, db, config_version, as_json=as_json)


@import_app.command("fibers", epilog="Example: fiberstore import fibers --db store.duckdb fibers.jsonl")
def import_fibers(path: Files, *, db: Db, as_json: Json = False) -> None:
    """Store the fibers of files, all or none; those that are stored already stay as they are."""
    _import("fibers", path, db, as_json=as_json)


@import_app.command(
    "memberships", epilog="Example: fiberstore import memberships --db store.duckdb memberships.parquet"
)
def import_memberships(path: Files, *, db: Db, as_json: Json = False) -> None:
    """Store the memberships of files, all or none; those that are stored already stay as they are."""
    _import("memberships", path, db, as_json=as_json)


@import_app.command("otlp", epilog="Example: fiberstore import otlp --db store.duckdb logs.json")
def import_otlp(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A file of the collector's file exporter, in JSON.")
    ],
    *,
    db: Db,
    as_json: Json = False,
) -> None:
    """Store the logs of an OpenTelemetry file, and their traces as fibers; reading it again adds nothing.

    Find a trace by "fiberstore show TRACE_ID", or by --key trace_id=... or --key span_id=....
    """
    from fiberstore.otel import import_logs as import_otlp_logs

    if not path.is_file():
        raise StorageError(f"{path} is no file; give one that the collector's file exporter has written")
    with open_or_make(db) as storage:
        begin = time.monotonic()
        done = import_otlp_logs(storage, path)
        seconds = time.monotonic() - begin
    print_result(
        f"{counted(done.logs_read, 'logs')} read, {done.logs_new:,} new; "
        f"{counted(done.fibers_new, 'new fibers')}, "
        f"{counted(done.memberships_new, 'new memberships')}; {seconds:.2f} s",
        {**asdict(done), "seconds": round(seconds, 3)},
        as_json=as_json,
    )
    if done.without_time:
        print_note(f"{counted(done.without_time, 'logs')} without a time left out")
    if done.other_signals:
        print_note(f"{counted(done.other_signals, 'lines')} of spans, metrics or profiles left out")
    if not done.is_complete:
        print_note("the last line is cut off, and left out; the same command adds it once it is whole")


@import_app.command("keys", epilog="Example: fiberstore import keys --db store.duckdb keys.parquet")
def import_keys(path: Files, *, db: Db, as_json: Json = False) -> None:
    """Store the keys of files, all or none, after their fibers; the earlier beginning of a key stays."""
    _import("keys", path, db, as_json=as_json)


def _tell_of_other_versions(storage: SqlStorage, chosen: FiberFilter) -> None:
    active = None if chosen.version else active_version(storage)
    if active is not None and storage.fibers.where(Fibers.c.config_version != active).count(1):
        print_note(
            f"that is config version {shown_version(active)}, the active one; --version all is every one"
        )


def _export(query: Query[Any], path: Path, partition_by: Partition | None, *, as_json: bool) -> None:
    with counting_bars("rows") as bars:
        bars.begin("export", query.count)
        begin = time.monotonic()
        rows = query.export(path, partition_by=partition_by, on_rows=partial(bars.advance, "export"))
    _report(f"{path}: {counted(rows, 'rows')}", rows, time.monotonic() - begin, as_json=as_json)


def _import(kind: str, path: Path, db: str, config_version: int = 0, *, as_json: bool) -> None:
    """Open or make a store, if there is something to import, and store records of a kind."""
    from fiberstore.exchange.writing import format_of

    if not path.exists():
        raise StorageError(
            f"{path} does not exist; give a .parquet, .csv or .jsonl file, or a folder of them"
        )
    if not path.is_dir():
        format_of(path)
    with open_or_make(db, config_version) as storage, counting_bars("rows") as bars:
        bars.begin("import")
        begin = time.monotonic()
        rows = getattr(storage, f"import_{kind}")(path, on_rows=partial(bars.advance, "import"))
    _report(counted(rows, f"new {kind}"), rows, time.monotonic() - begin, as_json=as_json)


def _report(text: str, rows: int, seconds: float, *, as_json: bool) -> None:
    values = {"rows": rows, "seconds": round(seconds, 3)}
    print_result(f"{text}; {seconds:.2f} s", values, as_json=as_json)
