"""``ingest`` and ``demo``: log files into a store."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn
from sqlalchemy.engine import make_url

from fiberstore.cli import lookup
from fiberstore.cli.app import app, print_note, telling_if_interrupted
from fiberstore.cli.changing import db_option, open_or_make
from fiberstore.cli.commands.generations import tell_unless_active
from fiberstore.cli.console import print_cut, print_json, print_line, print_result
from fiberstore.cli.options import DbIfAny, Json
from fiberstore.cli.progress import progress_bars, rate
from fiberstore.cli.render import print_fiber, print_fibers, print_statistics, shape_of_output
from fiberstore.cli.tables import counted
from fiberstore.cli.times import utc
from fiberstore.contract.queries import Fibers
from fiberstore.ingest.demo import write_demo
from fiberstore.ingest.files import STANDARD_INPUT, find_files
from fiberstore.ingest.pipeline import IngestReport
from fiberstore.ingest.pipeline import check as check_files
from fiberstore.ingest.pipeline import ingest as ingest_files
from fiberstore.ingest.rules import Rules, load_rules, require_files
from fiberstore.keys import key_words
from fiberstore.repositories.storage import SqlStorage

_DEMO_FIBERS = 2
_KINDS = {
    "unstamped": ("lines", "without a stamp"),
    "dropped": ("lines", "dropped"),
    "bad_stamps": ("logs", "with a bad stamp"),
    "late": ("logs", "earlier than the one before"),
    "keyless": ("logs", "without a key"),
}
_UNPAID = """fiber_type == "request" and logs.any(raw_text.contains("not charged"))"""


@app.command(epilog="Example: fiberstore demo --lines 20000")
def demo(
    db: Annotated[
        str,
        typer.Option(
            metavar="STORE",
            help="A DuckDB file, beside which the logs go, or a URL: postgresql+psycopg://user@host/database.",
        ),
    ] = "fiberstore-demo.duckdb",
    lines: Annotated[int, typer.Option(min=1, metavar="N", help="Number of lines to generate.")] = 3_000,
) -> None:
    """Generate the logs of a small web shop, ingest them, and show the result."""
    with open_or_make(db) as storage:
        folder = _log_folder(db)
        rules_file = write_demo(folder, lines)
        store, quoted_rules = db_option(db), shlex.quote(str(rules_file))
        what = f"{folder}: logs of a web shop with three services, and rules to join them"
        print_line(what, bold=True)
        _echo_command(f"ingest --rules {quoted_rules} {store}")
        report, seconds = _ingest(storage, load_rules(rules_file))
        _print_report(report, seconds, as_json=False)
        if not report.logs_new:
            print_line("Nothing is new: the store holds these logs since an earlier run.")
        _show_demo(storage, store, quoted_rules)


@app.command(epilog="Example: fiberstore ingest --rules rules.toml --db store.duckdb sshd=auth.log")
def ingest(
    rules: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The rules file: log files, and the patterns that join lines."),
    ],
    db: DbIfAny = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE=PATH",
            help="Log files instead of those in the rules file: files, globs, directories, or - for input.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Read and search the files, store nothing, and show the first lines that fit no rule.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read log files into a store, join their lines into fibers, and resume where the last run stopped."""
    if db is None and not check:
        raise typer.BadParameter("name the store, or add --check to store nothing", param_hint="'--db'")
    loaded = load_rules(rules, _parse_paths(paths or []))
    require_files(loaded)
    if db is None or check:
        _check(loaded, as_json=as_json)
        return
    with open_or_make(db) as storage:
        report, seconds = _ingest(storage, loaded)
        _print_report(report, seconds, as_json=as_json)
        if not as_json:
            _print_counts(report, loaded)
        for warning in report.warnings(loaded):
            print_note(warning)
        tell_unless_active(storage, loaded.config_version, db)


def _check(rules: Rules, *, as_json: bool) -> None:
    with _progress(rules) as (on_bytes, _):
        report = check_files(rules, on_bytes)
    if as_json:
        print_json(asdict(report))
    else:
        print_line(f"{counted(report.logs_read, 'logs')} read, none stored")
        _print_counts(report, rules, with_lines=True)
    for warning in report.warnings(rules):
        print_note(warning)


def _print_counts(report: IngestReport, rules: Rules, *, with_lines: bool = False) -> None:
    for name, counts in report.sources.items():
        found = {kind: number for kind in _KINDS if (number := getattr(counts, kind))}
        if not rules.fibers:
            found.pop("keyless", None)
        parts = [counted(counts.lines, "lines"), counted(counts.records, "logs")]
        parts += [f"{counted(number, _KINDS[kind][0])} {_KINDS[kind][1]}" for kind, number in found.items()]
        if counts.continued:
            parts.append(f"{counted(counts.continued, 'files')} continued where an earlier run stopped")
        print_line(f"{name}: {', '.join(parts)}")
        for kind in found if with_lines else ():
            for text in counts.first_lines.get(kind, ()):
                print_cut(f"  {_KINDS[kind][1]}: {text}")
    for name, fiber_type in rules.fibers.items():
        for pattern, matches in zip(fiber_type.patterns, report.matches.get(name, ()), strict=False):
            print_line(
                f"{name}: {matches:,} {'match' if matches == 1 else 'matches'} of '{pattern.regex.pattern}'"
            )


def _log_folder(db: str) -> Path:
    """Return the folder of the generated logs: beside a file, or the working directory."""
    database = Path((make_url(db).database if "://" in db else db) or "fiberstore-demo")
    return database.with_name(f"{database.stem}-logs")


def _parse_paths(pairs: Sequence[str]) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise typer.BadParameter(f"{pair!r} is not of the form SOURCE=PATH, such as sshd=auth.log")
        paths.setdefault(name, []).append(Path(path))
    return paths


def _ingest(storage: SqlStorage, rules: Rules) -> tuple[IngestReport, float]:
    def left() -> str:
        stored = counted(storage.logs.count(), "logs")
        return f"the store holds {stored}, and the same command resumes from there"

    begin = time.monotonic()
    with telling_if_interrupted(left), _progress(rules) as (on_bytes, on_batch):
        report = ingest_files(storage, rules, on_bytes=on_bytes, on_batch=on_batch)
    return report, time.monotonic() - begin


@contextmanager
def _progress(rules: Rules) -> Iterator[tuple[Callable[[int], None], Callable[[IngestReport], None]]]:
    """Show a bar on a terminal; yield its callbacks: for bytes that were read, and for stored batches."""
    with progress_bars(BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}")) as progress:
        total = sum(
            file.stat().st_size
            for source in rules.sources.values()
            for file in find_files(source.path or ())
            if file != STANDARD_INPUT
        )
        bar = progress.add_task("", total=total or None, rate="")
        begin = time.monotonic()

        def on_batch(report: IngestReport) -> None:
            progress.update(bar, rate=rate(report.logs_read, time.monotonic() - begin, "logs"))

        yield lambda size: progress.advance(bar, size), on_batch


def _print_report(report: IngestReport, seconds: float, *, as_json: bool) -> None:
    times = {"seconds": round(seconds, 3), "logs_per_second": round(report.logs_read / seconds)}
    print_result(
        f"{counted(report.logs_read, 'logs')} read, {report.logs_new:,} new; "
        f"{counted(report.fibers_new, 'new fibers')}, "
        f"{counted(report.memberships_new, 'new memberships')}; "
        f"{seconds:.2f} s, {rate(report.logs_read, seconds, 'logs')}",
        {**asdict(report), **times},
        as_json=as_json,
    )


def _show_demo(storage: SqlStorage, store: str, rules_file: str) -> None:
    def announce(what: str, command: str) -> None:
        print_line()
        print_line(what, bold=True)
        _echo_command(f"{command} {store}")

    shape = shape_of_output(as_json=False)
    announce("What the store holds", "stats")
    print_statistics(lookup.collect_statistics(storage), shape)

    announce("A few requests, and jobs of the order service's threads", "fibers")
    listed = [
        found
        for fiber_type in ("request", "job")
        for found in _of_type(storage, fiber_type).summaries(_DEMO_FIBERS).items
    ]
    print_fibers(listed, storage.get_keys([one.fiber.fiber_id for one in listed]), shape)

    requests = _of_type(storage, "request").summaries().items
    widest = max(requests, key=lambda one: len(one.source_ids), default=None)
    if widest is None:
        return
    fiber_id = widest.fiber.fiber_id
    keys = storage.get_keys([fiber_id])
    words = key_words(keys[fiber_id]) or [str(fiber_id)]
    announce("One request, through all three services", f"show {words[0]}")
    print_fiber(widest, keys, storage.get_fiber_logs(fiber_id), shape)

    print_line()
    print_line("Try next (the last reads the same files again, and adds nothing)", bold=True)
    for command in (
        f"timeline {store}",
        f"histogram {store} --bucket 10s --by source",
        f"grep -i 'declined|timeout' {store}",
        f"fibers {store} --where {shlex.quote(_UNPAID)} --order longest --limit 5",
        f"logs {store} --start {utc(widest.fiber.first_activity)} --limit 10",
        f"ingest {store} --rules {rules_file}",
    ):
        _echo_command(command)


def _of_type(storage: SqlStorage, fiber_type: str) -> Fibers:
    return storage.fibers.where(Fibers.c.fiber_type == fiber_type)


def _echo_command(command: str) -> None:
    print_line(f"$ fiberstore {command}")
