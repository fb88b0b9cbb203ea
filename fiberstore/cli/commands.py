"""The commands, their options, and what becomes of errors."""

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from fiberstore.cli import queries
from fiberstore.cli.render import (
    print_fiber,
    print_fibers,
    print_findings,
    print_json,
    print_logs,
    print_statistics,
    utc,
    visible,
)
from fiberstore.demo import write_demo
from fiberstore.duckdb import DuckDBStorage
from fiberstore.errors import StorageError, translate_errors
from fiberstore.ingest.pipeline import IngestReport
from fiberstore.ingest.pipeline import ingest as ingest_files
from fiberstore.ingest.rules import Rules, load_rules
from fiberstore.storage import DEFAULT_LIMIT

_ALL_ROWS = 2**63 - 1
_FIRST_TIME, _LAST_TIME = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_INTERRUPTED = 130
_DEMO_FIBERS = 2


class _Commands(TyperGroup):
    """Shows wrong usage without the control characters that the arguments may hold."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401  # as typer has it
        """Parse the arguments of the program."""
        with _visible_errors():
            return super().make_context(*args, **extra)

    def invoke(self, *args: Any) -> Any:  # noqa: ANN401
        """Parse the arguments of the command, and run it."""
        with _visible_errors():
            return super().invoke(*args)


@contextmanager
def _visible_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):  # as typer's own errors have it
            error.message = visible(message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    cls=_Commands,
    help="Store logs and the fibers that join them: one request, one login, one job, seen across all files.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="On a terminal, results are tables that fit it; in a pipe, they are tab-separated and whole.\n\n"
    "Exit codes: 0 done, 1 the store or the input failed, 2 wrong usage, 130 interrupted (Ctrl-C).",
)
db_app = typer.Typer(help="Build and check the tables of a store.", no_args_is_help=True)
app.add_typer(db_app, name="db")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; the entry point of the script ``fiberstore``.

    Args:
        args: Arguments of the command line, instead of the process's own.
    """
    try:
        try:
            with translate_errors():
                app(args, prog_name="fiberstore")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the pipe has gone; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except (StorageError, ValueError, OSError) as error:
        for line in str(error).splitlines():
            _tell(line)
        sys.exit(1)


def _tell(line: str) -> None:
    typer.echo(f"fiberstore: {visible(line)}", err=True)


def _parse_time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not ISO 8601, such as 2024-12-10T06:55:46Z") from error
    if parsed.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone; for UTC, write {parsed.isoformat()}Z")
    return parsed


def _parse_id(text: str) -> str:
    digits = text.replace("-", "").lower()
    if not re.fullmatch("[0-9a-f]{4,32}", digits):
        raise typer.BadParameter(f"{text!r} is no fiber id; give its hex digits, at least the first four")
    return digits


def _parse_paths(pairs: Sequence[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise typer.BadParameter(f"{pair!r} is not of the form SOURCE=PATH, such as sshd=auth.log")
        if name in paths:
            raise typer.BadParameter(f"{name} is given twice; a source has one file")
        paths[name] = Path(path)
    return paths


Db = Annotated[
    str,
    typer.Option(envvar="FIBERSTORE_URL", metavar="FILE", help="The DuckDB file, or its duckdb:/// URL."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; of a list, one object a line.")]
Limit = Annotated[int, typer.Option(min=0, metavar="N", help="Most to print.")]
Offset = Annotated[int, typer.Option(min=0, metavar="N", help="How many to pass over first.")]
Time = Annotated[
    datetime | None,
    typer.Option(parser=_parse_time, metavar="TIME", help="ISO 8601 with a time zone, inclusive."),
]


@app.command(epilog="Example: fiberstore demo --lines 20000")
def demo(
    db: Annotated[Path, typer.Option(metavar="FILE", help="The DuckDB file; its logs go beside it.")] = Path(
        "fiberstore-demo.duckdb"
    ),
    lines: Annotated[int, typer.Option(min=1, metavar="N", help="How many lines to make up.")] = 3_000,
) -> None:
    """Make up the logs of a small web shop, ingest them, and show what came of it."""
    with DuckDBStorage(db) as storage:
        folder = db.with_name(f"{db.stem}-logs")
        rules_file = write_demo(folder, lines)
        store, quoted_rules = f"--db {shlex.quote(str(db))}", shlex.quote(str(rules_file))
        what = f"{visible(str(folder))}: logs of a web shop with three services, and rules to join them"
        typer.secho(what, bold=True)
        _echo_command(f"ingest --rules {quoted_rules} {store}")
        report, seconds = _ingest(storage, load_rules(rules_file))
        _print_report(report, seconds, as_json=False)
        if not report.logs_new:
            typer.echo("Nothing is new: the store holds these logs since an earlier run.")
        _show_demo(storage, store, quoted_rules)


@app.command(epilog="Example: fiberstore ingest --rules rules.toml --db store.duckdb sshd=auth.log")
def ingest(
    rules: Annotated[Path, typer.Option(metavar="FILE", help="Names the log files and what joins lines.")],
    db: Db,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE=PATH", help="Log files instead of those in the rules file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read log files into a store, join their lines into fibers, and go on where the last run stopped."""
    loaded = load_rules(rules, _parse_paths(paths or []))
    with DuckDBStorage(db) as storage:
        report, seconds = _ingest(storage, loaded)
    _print_report(report, seconds, as_json=as_json)


@app.command(epilog="Example: fiberstore logs --db store.duckdb --start 2024-12-10T07:00Z --limit 20")
def logs(
    *,
    db: Db,
    start: Time = None,
    end: Time = None,
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = 0,
    as_json: Json = False,
) -> None:
    """Print the logs of a range of time, oldest first."""
    with _open_to_read(db) as storage:
        found = storage.query_logs_by_time(start or _FIRST_TIME, end or _LAST_TIME, limit, offset)
    print_logs(found, as_json=as_json)
    _tell_limit(len(found), limit, offset)


@app.command(epilog="Example: fiberstore fibers --db store.duckdb --type login --limit 20")
def fibers(
    db: Db,
    fiber_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only fibers of this type.")
    ] = None,
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = 0,
    as_json: Json = False,
) -> None:
    """Print fibers, type by type, in the order they began."""
    with _open_to_read(db) as storage:
        found = queries.list_fibers(storage, fiber_type, limit, offset)
    print_fibers(found, as_json=as_json)
    _tell_limit(len(found), limit, offset)


@app.command(epilog="Example: fiberstore show 0193af35-b650 --db store.duckdb")
def show(
    fiber_id: Annotated[
        str, typer.Argument(parser=_parse_id, metavar="FIBER_ID", help="The id, or the beginning of it.")
    ],
    db: Db,
    as_json: Json = False,
) -> None:
    """Print one fiber: its attributes, and its lines in the order of time."""
    with _open_to_read(db) as storage:
        found = queries.find_fiber(storage, fiber_id)
        lines = storage.get_fiber_logs(found.fiber.fiber_id, _ALL_ROWS)
    print_fiber(found, lines, as_json=as_json)


@app.command(epilog="Example: fiberstore stats --db store.duckdb")
def stats(db: Db, as_json: Json = False) -> None:
    """Print what a store holds: rows, times, sources, types of fibers, config versions."""
    with _open_to_read(db) as storage:
        found = queries.collect_statistics(storage)
    print_statistics(found, as_json=as_json)


@db_app.command(epilog="Example: fiberstore db upgrade --db store.duckdb")
def upgrade(db: Db) -> None:
    """Build the tables, or bring them to the newest revision."""
    from fiberstore import schema

    with DuckDBStorage(db) as storage:
        storage.init_schema()
    typer.echo(f"{schema.head()} (head)")


@db_app.command(epilog="Example: fiberstore db current --db store.duckdb")
def current(db: Db, as_json: Json = False) -> None:
    """Print the revision of the tables."""
    from fiberstore import schema

    with _open_read_only(db) as storage, translate_errors(), storage.session() as session:
        revision, head = schema.current(session.connection()), schema.head()
    if as_json:
        print_json({"revision": revision, "head": head})
    else:
        found = visible(revision) if revision else "none"
        typer.echo(f"{found} ({'head' if revision == head else f'head is {head}'})")


@db_app.command(epilog="Example: fiberstore db check --db store.duckdb")
def check(db: Db, as_json: Json = False) -> None:
    """Compare the tables with what this release expects; exit with 1 if they differ."""
    from fiberstore import schema

    with _open_read_only(db) as storage, translate_errors():
        differences = schema.differences(storage.engine)
    if as_json:
        print_json({"ok": not differences, "differences": [*differences]})
    else:
        typer.echo("\n".join(map(visible, differences)) or "ok")
    if differences:
        raise typer.Exit(1)


@db_app.command(epilog="Example: fiberstore db backup --db store.duckdb /backups/store-2024-12-10.duckdb")
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new file; nothing is overwritten.")],
    db: Db,
) -> None:
    """Copy the whole store into a new file that is complete from the moment it has its name."""
    with DuckDBStorage(db, read_only=True) as storage:
        storage.backup(target)
    typer.echo(f"{visible(str(target))}: {decimal(target.stat().st_size)}")


@db_app.command(epilog="Example: fiberstore db rescue --db store.duckdb rescued.duckdb")
def rescue(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new file; nothing is overwritten.")],
    db: Annotated[Path, typer.Option(envvar="FIBERSTORE_URL", metavar="FILE", help="The DuckDB file.")],
) -> None:
    """Copy a store that a killed checkpoint has left unreadable into one that opens.

    The store itself stays as it is. What the doctor finds in the copy is printed; exit with 1 if that is a
    problem.
    """
    from fiberstore import rescue as surgery

    findings = surgery.rescue(db, target)
    print_findings([f"{target} is a copy that opens"], findings)
    if any(finding.is_problem for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Example: fiberstore doctor --db store.duckdb --repair")
def doctor(
    db: Db,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be proved first.")] = False,
    as_json: Json = False,
) -> None:
    """Look for what can be wrong with a store; exit with 1 if something is.

    Indexes that do not find rows, rows that cannot be read, fibers whose activity does not cover their logs,
    memberships without a log or a fiber, the schema. Nobody should write meanwhile.
    """
    from fiberstore import doctor as surgery

    if repair:
        with _open_read_only(db):
            pass  # what is not there is not made anew
    with DuckDBStorage(db) if repair else _open_read_only(db) as storage:
        done = surgery.repair(storage) if repair else []
        findings = surgery.examine(storage)
    if as_json:
        print_json({"repaired": [*done], "findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(done, findings)
    if any(finding.is_problem for finding in findings):
        raise typer.Exit(1)


@contextmanager
def _open_read_only(db: str) -> Iterator[DuckDBStorage]:
    with DuckDBStorage(db, read_only=True) as storage:
        with translate_errors(), storage.session() as session:
            session.execute(sa.text("SET enable_external_access = false"))  # of no use here
        yield storage


@contextmanager
def _open_to_read(db: str) -> Iterator[DuckDBStorage]:
    with _open_read_only(db) as storage:
        queries.check_tables(storage)
        yield storage


def _tell_limit(found: int, limit: int, offset: int) -> None:
    """Say that there may be more, unless the user has set the limit."""
    if found == limit == DEFAULT_LIMIT:
        _tell(f"there may be more; --offset {offset + limit} goes on, --limit prints more at once")


def _ingest(storage: DuckDBStorage, rules: Rules) -> tuple[IngestReport, float]:
    storage.init_schema()
    begin = time.monotonic()
    try:
        with _progress(rules) as (on_bytes, on_batch):
            report = ingest_files(storage, rules, on_bytes=on_bytes, on_batch=on_batch)
    except KeyboardInterrupt:
        stored = queries.count_logs(storage)
        _tell(f"interrupted; the store holds {stored:,} logs, and the same command goes on from there")
        raise typer.Exit(_INTERRUPTED) from None
    return report, time.monotonic() - begin


@contextmanager
def _progress(rules: Rules) -> Iterator[tuple[Callable[[int], None], Callable[[IngestReport], None]]]:
    """Show a bar on a terminal; yield what moves it: bytes that were read, batches that were stored."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        total = sum(source.path.stat().st_size for source in rules.sources.values())
        bar = progress.add_task("", total=total or None, rate="")
        begin = time.monotonic()

        def on_batch(report: IngestReport) -> None:
            progress.update(bar, rate=_rate(report, time.monotonic() - begin))

        yield lambda size: progress.advance(bar, size), on_batch


def _rate(report: IngestReport, seconds: float) -> str:
    return f"{report.logs_read / seconds:,.0f} logs/s"


def _print_report(report: IngestReport, seconds: float, *, as_json: bool) -> None:
    if as_json:
        rate = round(report.logs_read / seconds)
        print_json({**asdict(report), "seconds": round(seconds, 3), "logs_per_second": rate})
    else:
        typer.echo(
            f"{report.logs_read:,} logs read, {report.logs_new:,} new; {report.fibers_new:,} new fibers, "
            f"{report.memberships_new:,} new memberships; {seconds:.2f} s, {_rate(report, seconds)}"
        )


def _show_demo(storage: DuckDBStorage, store: str, rules_file: str) -> None:
    def announce(what: str, command: str) -> None:
        typer.secho(f"\n{what}", bold=True)
        _echo_command(f"{command} {store}")

    announce("What the store holds", "stats")
    print_statistics(queries.collect_statistics(storage), as_json=False)

    announce("A few requests, and jobs of the order service's threads", "fibers")
    print_fibers(
        [
            listed
            for fiber_type in ("request", "job")
            for listed in queries.list_fibers(storage, fiber_type, _DEMO_FIBERS, 0)
        ],
        as_json=False,
    )

    widest = queries.find_widest(storage, "request")
    if widest is None:
        return
    fiber = widest.fiber
    announce("One request, through all three services", f"show {fiber.fiber_id}")
    print_fiber(widest, storage.get_fiber_logs(fiber.fiber_id), as_json=False)

    typer.secho("\nTry next (the last reads the same files again, and adds nothing)", bold=True)
    for command in (
        f"fibers {store} --type job --limit 5",
        f"logs {store} --start {utc(fiber.first_activity)} --limit 10",
        f"show {fiber.fiber_id} {store} --json",
        f"ingest {store} --rules {rules_file}",
    ):
        _echo_command(command)


def _echo_command(command: str) -> None:
    typer.echo(f"$ fiberstore {visible(command)}")
