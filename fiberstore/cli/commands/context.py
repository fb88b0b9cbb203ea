"""``context``: a log and its neighbours."""

from typing import Annotated, Literal

import typer

from fiberstore.cli.app import app
from fiberstore.cli.lookup import find_log_id
from fiberstore.cli.options import Db, Json, LogFilter, LogShape, chosen_shape, parse_log_id, with_filter
from fiberstore.cli.render import print_context
from fiberstore.cli.stores import open_to_read
from fiberstore.errors import StorageError

_NEIGHBOURS = 10


@app.command(epilog="Example: fiberstore context 0193af35b650 --db store.duckdb -C 3")
@with_filter
def context(
    chosen: LogFilter,
    log_id: Annotated[
        str,
        typer.Argument(
            parser=parse_log_id,
            metavar="LOG_ID",
            help="The log: its id, or the beginning of it, as logs and grep show it.",
        ),
    ],
    *,
    db: Db,
    before: Annotated[int | None, typer.Option("-B", min=0, metavar="N", help="Most logs before it.")] = None,
    after: Annotated[int | None, typer.Option("-A", min=0, metavar="N", help="Most logs after it.")] = None,
    both: Annotated[
        int,
        typer.Option("-C", min=0, metavar="N", help="Both, where -B or -A is not given."),
    ] = _NEIGHBOURS,
    within: Annotated[
        Literal["source", "fibers"] | None,
        typer.Option(help="Only neighbours of its own source, or that share a fiber with it."),
    ] = None,
    form: LogShape = None,
    as_json: Json = False,
) -> None:
    """Print a log and its neighbours in time; the log itself is marked, and need not fit the filters.

    In a pipe and in JSON, `offset` is 0 for the log, -1 for the one before it, 1 for the one after it.
    """
    shape = chosen_shape(form, as_json=as_json)
    with open_to_read(db) as storage:
        found = chosen.of(storage).context(
            whole_id := find_log_id(storage, log_id),
            both if before is None else before,
            both if after is None else after,
            within=within,
        )
    if found is None:
        raise StorageError(f"log {whole_id} was deleted meanwhile; fiberstore logs lists those there are")
    print_context(found, shape)
