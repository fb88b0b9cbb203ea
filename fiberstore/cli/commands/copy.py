"""``copy``: a whole store to another one, with a comparison of both."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from fiberstore.cli.app import app, print_note, telling_if_interrupted
from fiberstore.cli.changing import check_revision
from fiberstore.cli.options import Json
from fiberstore.cli.progress import CountingBars, counting_bars
from fiberstore.cli.render import print_copied, shape_of_output
from fiberstore.cli.stores import has_tables, open_to_read, shown_target
from fiberstore.cli.tables import counted
from fiberstore.copying.copy import Copied, TableDifference, copy_store
from fiberstore.errors import DatabaseError
from fiberstore.opening import create_engine, open_storage
from fiberstore.repositories.storage import SqlStorage


@app.command(epilog="Example: fiberstore copy store.duckdb copy.duckdb")
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The store to copy; it is only read.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The destination; it is made, or what it lacks is added.")
    ],
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="Delete what only DST holds; replace logs and memberships that differ."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a whole store into another, and compare both by counts and checksums; exit with 1 if they differ.

    A copy that was stopped resumes where it was, and one that is run again adds what is new. What only DST
    holds stays there without --mirror, and then they differ.
    """
    with _open_both(source, destination) as (storage, target), counting_bars("rows") as bars:
        begin = time.monotonic()
        with telling_if_interrupted(lambda: "the same command resumes from there"):
            copied = copy_store(storage, target, mirror=mirror, on_rows=_mover(bars, storage))
        seconds = time.monotonic() - begin
    print_copied(copied, seconds, shape_of_output(as_json=as_json))
    deleted = ", ".join(
        f"{counted(rows, 'rows')} of {table}" for table, rows in copied.deleted.items() if rows
    )
    if deleted:
        print_note(f"deleted in DST: {deleted}")
    if not copied.is_equal:
        print_note(_difference(copied))
        raise typer.Exit(1)


@contextmanager
def _open_both(source: str, destination: str) -> Iterator[tuple[SqlStorage, SqlStorage]]:
    """Open a store to be read, and one to be written, which is made if it is not there."""
    if create_engine(source).url == create_engine(destination).url:  # opens nothing
        shown = f"{shown_target(source)} and {shown_target(destination)}"
        raise DatabaseError(f"{shown} are the same store; give another DST")
    with open_to_read(source) as storage:
        check_revision(storage, source)
        with open_storage(destination) as target:
            if has_tables(target):
                check_revision(target, destination)
            else:
                target.init_schema()
            yield storage, target


def _mover(bars: CountingBars, source: SqlStorage) -> Callable[[str, int], None]:
    """Return the function that moves a bar for each step."""
    counts = {
        "raw_logs": source.logs.count,
        "fibers": source.fibers.count,
        "fiber_memberships": source.memberships.count,
    }

    def on_rows(step: str, rows: int) -> None:
        bars.begin(step, counts.get(step.rpartition(" ")[2]))
        bars.advance(step, rows)

    return on_rows


def _difference(copied: Copied) -> str:
    """Describe the differences, and their causes."""
    tables = ", ".join(copied.differing)
    if not copied.has_ended:
        behind = max(copied.source["raw_logs"].rows - copied.destination["raw_logs"].rows, 0)
        return (
            f"SRC is still being written: after {counted(copied.passes, 'passes')} DST is "
            f"{counted(behind, 'logs')} behind, and {tables} differ; run it again, the last time when nobody "
            "writes SRC"
        )
    found = "; ".join(f"{table}: {_counts(found)}" for table, found in copied.differences.items())
    return (
        f"SRC and DST differ in {tables}, and there is nothing more to copy ({found}); --mirror deletes what "
        "only DST holds, such as what was deleted in SRC, and replaces what differs"
    )


def _counts(found: TableDifference) -> str:
    """Describe the number of rows of a table that differ, and the first of them."""
    counts = (
        (found.only_source, "only in SRC"),
        (found.only_destination, "only in DST"),
        (found.changed, "with other values"),
    )
    said = ", ".join(f"{counted(rows, 'rows')} {where}" for rows, where in counts if rows)
    is_more = sum(rows for rows, _ in counts) > len(found.keys)
    return f"{said}: {', '.join(found.keys)}{', …' if is_more else ''}"
