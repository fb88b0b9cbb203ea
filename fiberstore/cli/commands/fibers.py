"""``fibers`` and ``show``: fibers in pages, and one of them with its lines."""

from typing import Annotated

import typer

from fiberstore.cli import lookup
from fiberstore.cli.app import app
from fiberstore.cli.options import (
    Cursor,
    Db,
    FiberFilter,
    FiberOrderName,
    Json,
    Limit,
    fiber_order,
    parse_id,
    tell_more,
    with_filter,
)
from fiberstore.cli.render import print_fiber, print_fibers
from fiberstore.cli.stores import open_to_read
from fiberstore.contract.queries import Logs
from fiberstore.contract.storage import DEFAULT_LIMIT


@app.command(epilog="Example: fiberstore fibers --db store.duckdb --type login --open --order longest")
@with_filter
def fibers(
    chosen: FiberFilter,
    *,
    db: Db,
    order: Annotated[FiberOrderName, typer.Option(help="Which come first.")] = "oldest",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """Print fibers, oldest first: all of them, or those that fit what is given."""
    with open_to_read(db) as storage:
        page = chosen.of(storage).order_by(fiber_order(order)).summaries(limit, cursor)
    print_fibers([*page.late, *page.items], as_json=as_json)
    tell_more(page)


@app.command(epilog="Example: fiberstore show 0193af35-b650 --db store.duckdb")
def show(
    fiber_id: Annotated[
        str, typer.Argument(parser=parse_id, metavar="FIBER_ID", help="The id, or the beginning of it.")
    ],
    db: Db,
    as_json: Json = False,
) -> None:
    """Print one fiber: its attributes, and its lines in the order of time."""
    with open_to_read(db) as storage:
        found = lookup.find_fiber(storage, fiber_id)
        its_logs = storage.logs.where(Logs.c.fibers.contains(found.fiber.fiber_id))
        lines = list(its_logs.iter_records())
    print_fiber(found, lines, as_json=as_json)
