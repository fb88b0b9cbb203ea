"""``keys``: the names of the keys of fibers, and the values of one name."""

from typing import Annotated

import typer

from fiberstore.cli.app import app, print_note
from fiberstore.cli.lookup import check_keys
from fiberstore.cli.options import Db, FiberFilter, Json, Limit, with_filter
from fiberstore.cli.render import print_value_counts, shape_of_output
from fiberstore.cli.stores import open_to_read
from fiberstore.contract.storage import DEFAULT_LIMIT


@app.command(epilog="Example: fiberstore keys request --prefix 7f --db store.duckdb")
@with_filter
def keys(
    chosen: FiberFilter,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print the values of the keys of this name.")
    ] = None,
    *,
    db: Db,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="Only values that begin so.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    as_json: Json = False,
) -> None:
    """Print the names of keys, or the values of one name, with the number of fibers that have each.

    The most frequent come first.
    """
    if prefix and name is None:
        raise typer.BadParameter("it is of the values of a name; give NAME too", param_hint="'--prefix'")
    with open_to_read(db) as storage:
        check_keys(storage)
        query = chosen.of(storage)
        found = query.key_names() if name is None else query.key_values(name, prefix, limit + 1)
    print_value_counts(found[:limit], "name" if name is None else "value", shape_of_output(as_json=as_json))
    if len(found) > limit:
        print_note("there is more; --limit N shows more")
