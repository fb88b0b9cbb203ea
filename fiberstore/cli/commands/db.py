"""``db``: the tables of a store, its file, and copies of it."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from typer.core import TyperGroup

from fiberstore.cli.app import app, print_note, with_whole_paragraphs
from fiberstore.cli.changing import compact_store, open_or_make, open_to_change, shown_sizes
from fiberstore.cli.console import print_json, print_line, print_result, print_text
from fiberstore.cli.lookup import find_outdated_fibers, shown_version
from fiberstore.cli.options import Db, Json
from fiberstore.cli.render import print_findings
from fiberstore.cli.stores import open_read_only, refuse_server
from fiberstore.duckdb.storage import DuckDBStorage
from fiberstore.postgresql import distribution
from fiberstore.sql.translate import translate_errors


class _Commands(TyperGroup):
    def get_command(self, *args: Any) -> Any:  # noqa: ANN401  # as typer has it
        return with_whole_paragraphs(super().get_command(*args))


db_app = typer.Typer(cls=_Commands, help="Build, check, copy and compact a store.", no_args_is_help=True)
app.add_typer(db_app, name="db")


@db_app.command(epilog="Example: fiberstore db upgrade --db store.duckdb")
def upgrade(db: Db) -> None:
    """Build the tables, or bring them to the newest revision."""
    from fiberstore.sql import migrate

    with open_or_make(db) as storage:
        outdated = find_outdated_fibers(storage)
    print_line(f"{migrate.head()} (head)")
    for version in map(shown_version, outdated):
        print_note(
            f"an older release has made the fibers of config version {version}, and they depend on the order "
            "of reading; fiberstore reprocess --rules FILE makes them anew, and "
            f"fiberstore versions show {version} prints the rules file"
        )


@db_app.command(epilog="Example: fiberstore db current --db store.duckdb")
def current(db: Db, as_json: Json = False) -> None:
    """Print the revision of the tables."""
    from fiberstore.sql import migrate

    with open_read_only(db) as storage, translate_errors(), storage.session() as session:
        revision, head = migrate.current(session.connection()), migrate.head()
    line = f"{revision or 'none'} ({'head' if revision == head else f'head is {head}'})"
    print_result(line, {"revision": revision, "head": head}, as_json=as_json)


@db_app.command(epilog="Example: fiberstore db check --db store.duckdb")
def check(db: Db, as_json: Json = False) -> None:
    """Compare the tables with what this release expects; exit with 1 if they differ."""
    from fiberstore.sql import migrate

    with open_read_only(db) as storage, translate_errors():
        differences = migrate.differences(storage.engine)
    if as_json:
        print_json({"ok": not differences, "differences": [*differences]})
    else:
        for line in differences or ["ok"]:
            print_line(line)
    if differences:
        raise typer.Exit(1)


@db_app.command(epilog="Example: fiberstore db backup --db store.duckdb /backups/store-2024-12-10.duckdb")
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new file; nothing is overwritten.")],
    db: Db,
) -> None:
    """Copy the whole store into a new file that is complete from the moment it has its name."""
    refuse_server(db, "db backup copies DuckDB files; pg_dump copies a PostgreSQL database")
    with DuckDBStorage(db, read_only=True) as storage:
        storage.backup(target)
    print_line(f"{target}: {decimal(target.stat().st_size)}")


@db_app.command(epilog="Example: fiberstore db compact --db store.duckdb")
def compact(db: Db, as_json: Json = False) -> None:
    """Write the store anew, without the space of what was deleted and the old text of what was redacted.

    It needs as much space once more as the new one takes. The store stays as it was if that fails.
    """
    with open_to_change(db) as storage:
        begin = time.monotonic()
        compacted = compact_store(storage)
        seconds = time.monotonic() - begin
    values = {**asdict(compacted), "seconds": round(seconds, 3)}
    print_result(f"{shown_sizes(compacted)}; {seconds:.2f} s", values, as_json=as_json)


@db_app.command(epilog="Example: fiberstore db rescue --db store.duckdb rescued.duckdb")
def rescue(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new file; nothing is overwritten.")],
    db: Annotated[str, typer.Option(envvar="FIBERSTORE_URL", metavar="FILE", help="The DuckDB file.")],
) -> None:
    """Copy a store that a killed WAL checkpoint has left unreadable into one that opens.

    The store itself stays as it is. What the doctor finds in the copy is printed; exit with 1 if that is a
    problem.
    """
    refuse_server(
        db,
        "db rescue mends DuckDB files; PostgreSQL recovers by itself when it is started, and pg_restore "
        "reads the backups of pg_dump",
    )
    from fiberstore.duckdb import rescue as surgery

    findings = surgery.rescue(db, target)
    print_findings([f"{target} is a copy that opens"], findings)
    if any(finding.is_problem for finding in findings):
        raise typer.Exit(1)


@db_app.command(epilog="Example: fiberstore db distribute")
def distribute(
    *,
    db: Annotated[
        str | None,
        typer.Option(envvar="FIBERSTORE_URL", metavar="URL", help="The server's postgresql+psycopg:// URL."),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Run them on the server of --db.")] = False,
) -> None:
    """Print the statements that spread the tables over the nodes of a Citus cluster, after db upgrade.

    With --apply, each is printed when it has run. They can be run again. docs/distribution.md says what Citus
    does not keep.
    """
    if apply and db is None:
        raise typer.BadParameter("give the server's URL, --db postgresql+psycopg://…", param_hint="--apply")
    statements = (
        distribution.distribute(db, on_notice=print_note)
        if apply and db is not None
        else distribution.distribution_statements()
    )
    for statement in statements:
        print_text(f"{statement};\n")
