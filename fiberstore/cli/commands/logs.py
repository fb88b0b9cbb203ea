"""``logs`` and ``grep``: logs in pages."""

import re
from typing import Annotated

import typer

from fiberstore.cli.app import app
from fiberstore.cli.console import print_json, print_line
from fiberstore.cli.options import Cursor, Db, Json, Limit, LogFilter, Order, tell_more, with_filter
from fiberstore.cli.render import print_logs
from fiberstore.cli.stores import open_to_read
from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Logs
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.records import StoredLog


@app.command(epilog="Example: fiberstore logs --db store.duckdb --source web --start 2024-12-10T07:00Z")
@with_filter
def logs(
    chosen: LogFilter,
    *,
    db: Db,
    order: Order = "oldest",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """Print logs, oldest first: all of them, or those that fit what is given."""
    with open_to_read(db) as storage:
        page = chosen.of(storage).order_by(order).page(limit, cursor)
    print_logs([*page.late, *page.items], as_json=as_json)
    tell_more(page)


@app.command(epilog="Example: fiberstore grep --db store.duckdb -i 'time ?out' --source web")
@with_filter
def grep(  # as grep has them
    chosen: LogFilter,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="A regular expression of RE2.")],
    *,
    db: Db,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Ignore case.")] = False,
    fixed_strings: Annotated[
        bool, typer.Option("--fixed-strings", "-F", help="Take the pattern as plain text.")
    ] = False,
    invert_match: Annotated[bool, typer.Option("--invert-match", "-v", help="Print the others.")] = False,
    count: Annotated[bool, typer.Option("--count", "-c", help="Print only their number.")] = False,
    order: Order = "oldest",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """Print the logs whose text a pattern matches somewhere; on a terminal it is highlighted.

    The exit code does not depend on matches: 0 is done, 1 a failure. `-c` counts.
    """
    expression = re.escape(pattern) if fixed_strings else pattern
    if ignore_case:
        expression = f"(?i){expression}"
    matches = _matching(expression)
    with open_to_read(db) as storage:
        query = chosen.of(storage).where(~matches if invert_match else matches).order_by(order)
        if count:
            number = query.count()
        else:
            page = query.page(limit, cursor)
    if count:
        print_json({"count": number}) if as_json else print_line(str(number))
    else:
        print_logs([*page.late, *page.items], as_json=as_json, highlight=None if invert_match else expression)
        tell_more(page)


def _matching(expression: str) -> Condition[StoredLog]:
    try:
        return Logs.c.raw_text.regexp_match(expression)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; -F takes it as plain text", param_hint="PATTERN") from error
