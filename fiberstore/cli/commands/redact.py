"""``redact``: replacement of text that must not be stored."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fiberstore.atomic_files import hidden_folders
from fiberstore.cli import INTERRUPTED
from fiberstore.cli.app import app, print_note
from fiberstore.cli.changing import compact_store, db_option, open_to_change, shown_sizes, working
from fiberstore.cli.console import print_json, print_line
from fiberstore.cli.options import (
    Db,
    DryRun,
    FixedStrings,
    IgnoreCase,
    Json,
    LogFilter,
    Pattern,
    expression_of,
    refusing_pattern,
    with_filter,
)
from fiberstore.cli.tables import counted
from fiberstore.contract.patterns import check_redaction
from fiberstore.contract.queries import Logs
from fiberstore.contract.results import Compacted
from fiberstore.errors import StorageError
from fiberstore.repositories.storage import SqlStorage

_IDS = 10


@app.command(epilog="Example: fiberstore redact 'password=[^ ]+' --db store.duckdb --with 'password=***'")
@with_filter
def redact(
    chosen: LogFilter,
    pattern: Pattern,
    *,
    db: Db,
    replacement: Annotated[
        str, typer.Option("--with", metavar="TEXT", help="What stands there instead, as it is.")
    ] = "[redacted]",
    ignore_case: IgnoreCase = False,
    fixed_strings: FixedStrings = False,
    keep_file: Annotated[
        bool,
        typer.Option("--keep-file", help="Leave the old text in unused parts of the store for now."),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Replace what a pattern matches in the text of logs, then write the store anew without the old text.

    So it takes as long as two or three backups, and as much space once more; with `--keep-file` only
    `fiberstore db compact` does that, later. A run that finds no match any more writes the store anew too.

    On PostgreSQL it goes in steps of 5,000 logs: after an error, run it again.

    Attributes of fibers are not changed, nor are backups and exports: look there too.
    """
    expression = expression_of(pattern, fixed_strings=fixed_strings, ignore_case=ignore_case)
    with refusing_pattern():
        check_redaction(expression)
    with open_to_change(db) as storage:
        begin = time.monotonic()
        logs = chosen.of(storage)
        if dry_run:
            _tell_matching(logs.where(Logs.c.raw_text.regexp_match(expression)), as_json=as_json)
            return
        with working("redacting"):
            changed = logs.redact(expression, replacement)
        compacted = None if keep_file else _compact(storage, db, changed)
        seconds = time.monotonic() - begin
        unfinished = _unfinished(storage)
    _report(db, changed, compacted, seconds, as_json=as_json)
    for folder in unfinished:
        print_note(f"{folder} may hold the old text: a copy that another process writes or has left")


def _tell_matching(logs: Logs, *, as_json: bool) -> None:
    """Print the number of matching logs and the first ids, but not the text that is to go."""
    with working("counting"):
        matching = logs.count()
        ids = [str(log.log_id) for log in logs.page(_IDS).items]
    if as_json:
        print_json({"dry_run": True, "matching": matching, "log_ids": [*ids]})
        return
    print_line(f"the pattern matches in {counted(matching, 'logs')}")
    for log_id in ids:
        print_line(log_id)
    if matching > len(ids):
        print_line(f"and {matching - len(ids):,} more")


def _compact(storage: SqlStorage, db: str, changed: int) -> Compacted:
    try:
        return compact_store(storage)
    except StorageError:
        _tell_unfinished(db, changed)
        raise
    except KeyboardInterrupt:
        _tell_unfinished(db, changed)
        raise typer.Exit(INTERRUPTED) from None


def _tell_unfinished(db: str, changed: int) -> None:
    print_note(
        f"{counted(changed, 'logs')} redacted, but the old text may still be in unused parts of the "
        f"store; the same command, or fiberstore db compact {db_option(db)}, tries again"
    )


def _unfinished(storage: SqlStorage) -> list[Path]:
    """Return the folders of copies beside the store; those of killed processes went when it was opened."""
    if storage.engine.dialect.name != "duckdb":
        return []
    return hidden_folders(Path(storage.engine.url.database or "").parent)


def _report(db: str, changed: int, compacted: Compacted | None, seconds: float, *, as_json: bool) -> None:
    print_note(
        "attributes and keys of fibers, backups and exports are as they were; look for the text there, too"
    )
    if as_json:
        after = {} if compacted is None else {"compacted": asdict(compacted)}
        print_json({"dry_run": False, "changed": changed, **after, "seconds": round(seconds, 3)})
        return
    print_line(f"{counted(changed, 'logs')} redacted; {seconds:.2f} s")
    if compacted is None:
        compact = f"fiberstore db compact {db_option(db)}"
        print_line(f"the old text may still be in unused parts of the store; {compact} removes it")
    else:
        print_line(shown_sizes(compacted))
