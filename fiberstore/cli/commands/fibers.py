"""``fibers`` and ``show``: fibers in pages, and those of an id or a key with their lines."""

from typing import Annotated

import typer

from fiberstore.cli import lookup
from fiberstore.cli.app import app
from fiberstore.cli.options import (
    Cursor,
    Db,
    FiberFilter,
    FiberOrderName,
    Generation,
    Json,
    LogShape,
    PageLimit,
    chosen_shape,
    fiber_order,
    parse_fiber,
    print_pages,
    with_filter,
)
from fiberstore.cli.render import print_fiber, print_fibers, shape_of_output
from fiberstore.cli.stores import open_to_read
from fiberstore.contract.conditions import KeyExists, KeyIn
from fiberstore.contract.queries import Logs
from fiberstore.contract.results import FiberSummary


@app.command(epilog="Example: fiberstore fibers --db store.duckdb --key user=root --open --order longest")
@with_filter
def fibers(
    chosen: FiberFilter,
    *,
    db: Db,
    order: Annotated[FiberOrderName, typer.Option(help="Which come first.")] = "oldest",
    limit: PageLimit = None,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """Print fibers, oldest first: all of them, or those that fit what is given."""
    shape = shape_of_output(as_json=as_json)
    with open_to_read(db) as storage:

        def show_page(listed: list[FiberSummary], with_names: bool) -> None:
            keys = lookup.keys_of(storage, [item.fiber.fiber_id for item in listed])
            print_fibers(listed, keys, shape, with_names=with_names)

        summaries = chosen.of(storage).order_by(fiber_order(order)).summaries
        print_pages(summaries, show_page, chosen, limit=limit, cursor=cursor, shape=shape)


@app.command(epilog="Example: fiberstore show request=7f3a --db store.duckdb")
def show(
    fiber: Annotated[
        object,
        typer.Argument(
            parser=parse_fiber,
            metavar="FIBER",
            help="A key, NAME=VALUE, of one or more fibers; or an id, or the beginning of it.",
        ),
    ],
    db: Db,
    version: Generation = None,
    form: LogShape = None,
    as_json: Json = False,
) -> None:
    """Print a fiber, or all that have a key: its keys, attributes, and lines in the order of time."""
    shape = chosen_shape(form, as_json=as_json)
    with open_to_read(db) as storage:
        if isinstance(fiber, KeyIn | KeyExists):
            lookup.check_keys(storage)
            found = lookup.find_fibers(storage, fiber, lookup.find_generation(storage, version))
        else:
            found = iter([lookup.find_fiber(storage, str(fiber))])
        for number, one in enumerate(found):
            its_logs = storage.logs.where(Logs.c.fibers.contains(one.fiber.fiber_id))
            keys = lookup.keys_of(storage, [one.fiber.fiber_id])
            print_fiber(one, keys, list(its_logs.iter_records()), shape, is_first=number == 0)
