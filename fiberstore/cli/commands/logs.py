"""``logs`` and ``grep``: logs in pages."""

from functools import partial
from typing import Annotated

import typer

from fiberstore.cli.app import app
from fiberstore.cli.console import print_json, print_line
from fiberstore.cli.options import (
    Cursor,
    Db,
    FixedStrings,
    IgnoreCase,
    Json,
    LogFilter,
    LogShape,
    Order,
    PageLimit,
    Pattern,
    chosen_shape,
    expression_of,
    print_pages,
    refusing_pattern,
    with_filter,
)
from fiberstore.cli.render import print_logs
from fiberstore.cli.stores import open_to_read
from fiberstore.contract.queries import Logs


@app.command(epilog="Example: fiberstore logs --db store.duckdb --source web --since yesterday")
@with_filter
def logs(
    chosen: LogFilter,
    *,
    db: Db,
    order: Order = "oldest",
    limit: PageLimit = None,
    cursor: Cursor = None,
    form: LogShape = None,
    as_json: Json = False,
) -> None:
    """Print logs, oldest first: all of them, or those that fit what is given."""
    shape = chosen_shape(form, as_json=as_json)
    with open_to_read(db) as storage:
        page = chosen.of(storage).order_by(order).page
        print_pages(page, partial(print_logs, shape), chosen, limit=limit, cursor=cursor, shape=shape)


@app.command(epilog="Example: fiberstore grep --db store.duckdb -i 'time ?out' --source web")
@with_filter
def grep(  # as grep has them
    chosen: LogFilter,
    pattern: Pattern,
    *,
    db: Db,
    ignore_case: IgnoreCase = False,
    fixed_strings: FixedStrings = False,
    invert_match: Annotated[bool, typer.Option("--invert-match", "-v", help="Print the others.")] = False,
    count: Annotated[bool, typer.Option("--count", "-c", help="Print only their number.")] = False,
    order: Order = "oldest",
    limit: PageLimit = None,
    cursor: Cursor = None,
    form: LogShape = None,
    as_json: Json = False,
) -> None:
    """Print the logs whose text a pattern matches somewhere; on a terminal it is highlighted.

    The exit code does not depend on matches: 0 is done, 1 a failure. `-c` counts.
    """
    expression = expression_of(pattern, fixed_strings=fixed_strings, ignore_case=ignore_case)
    with refusing_pattern():
        matches = Logs.c.raw_text.regexp_match(expression)
    shape = chosen_shape(form, as_json=as_json)
    with open_to_read(db) as storage:
        query = chosen.of(storage).where(~matches if invert_match else matches).order_by(order)
        if count:
            number = query.count()
            print_json({"count": number}) if shape == "json" else print_line(str(number))
        else:
            show = partial(print_logs, shape, highlight=None if invert_match else expression)
            print_pages(query.page, show, chosen, limit=limit, cursor=cursor, shape=shape)
