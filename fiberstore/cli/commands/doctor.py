"""``doctor``: checks of a store, and repair."""

from dataclasses import asdict
from typing import Annotated

import typer

from fiberstore.cli.app import app
from fiberstore.cli.console import print_json
from fiberstore.cli.options import Db, Json
from fiberstore.cli.render import print_findings
from fiberstore.cli.stores import open_read_only
from fiberstore.opening import open_storage


@app.command(epilog="Example: fiberstore doctor --db store.duckdb --repair")
def doctor(
    db: Db,
    repair: Annotated[bool, typer.Option("--repair", help="First repair what can be proved.")] = False,
    as_json: Json = False,
) -> None:
    """Check a store; exit with 1 if something is wrong.

    Indexes that do not find rows, rows that cannot be read, fibers whose activity does not cover their logs,
    memberships without a log or a fiber, the schema. Nobody should write meanwhile.

    On PostgreSQL the indexes are left to its own pg_amcheck.
    """
    from fiberstore import doctor as surgery

    if repair:
        with open_read_only(db):
            pass  # what is not there is not made anew
    with open_storage(db) if repair else open_read_only(db) as storage:
        done = surgery.repair(storage) if repair else []
        findings = surgery.examine(storage)
    if as_json:
        print_json({"repaired": [*done], "findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(done, findings)
    if any(finding.is_problem for finding in findings):
        raise typer.Exit(1)
