"""``histogram``: how many logs or fibers there are, step by step of time."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal, TypeVar

import typer

from fiberstore.cli.app import app
from fiberstore.cli.expressions import parse_fiber_condition, parse_log_condition
from fiberstore.cli.opening import open_to_read
from fiberstore.cli.options import (
    Contains,
    Db,
    FiberFilter,
    FiberId,
    Json,
    LogFilter,
    Sources,
    Time,
    Types,
    parse_span,
)
from fiberstore.cli.render import print_histogram

T = TypeVar("T")


@app.command(
    epilog="Example: fiberstore histogram --db store.duckdb --bucket 5min --by source --contains ERROR"
)
def histogram(
    *,
    db: Db,
    bucket: Annotated[
        timedelta, typer.Option(parser=parse_span, metavar="SPAN", help="Width of a step: 10s, 5min, 1h, 1d.")
    ] = "1h",  # type: ignore[assignment]  # typer parses it
    by: Annotated[
        Literal["source", "type"] | None,
        typer.Option(help="Count each source, or type of fibers, by itself."),
    ] = None,
    fibers: Annotated[
        bool, typer.Option("--fibers", help="Count fibers, where they begin, instead of logs.")
    ] = False,
    start: Time = None,
    end: Time = None,
    source: Sources = None,
    contains: Contains = None,
    fiber: FiberId = None,
    types: Types = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Only those of which a condition on logs, or fibers, is true."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count logs in steps of time, those without any too; with `--fibers`, count fibers."""
    if fibers:
        _refuse("is of logs; leave it out, or --fibers", source=source, contains=contains, fiber=fiber)
        _refuse("must be type for fibers, if it is given", by=by == "source")
        of_fibers = FiberFilter(type=types, where=_parsed(where, parse_fiber_condition))
        with open_to_read(db) as storage:
            group: Literal["fiber_type"] | None = "fiber_type" if by else None
            buckets = of_fibers.of(storage).histogram(bucket, by=group, start=start, end=end)
        print_histogram(buckets, group, as_json=as_json)
    else:
        _refuse("is of fibers; leave it out, or add --fibers", type=types)
        _refuse("must be source for logs, if it is given", by=by == "type")
        condition = _parsed(where, parse_log_condition)
        of_logs = LogFilter(source=source, contains=contains, fiber=fiber, where=condition)
        with open_to_read(db) as storage:
            source_id: Literal["source_id"] | None = "source_id" if by else None
            buckets = of_logs.of(storage).histogram(bucket, by=source_id, start=start, end=end)
        print_histogram(buckets, source_id, as_json=as_json)


def _refuse(why: str, **given: object) -> None:
    for name, value in given.items():
        if value:
            raise typer.BadParameter(why, param_hint=f"'--{name}'")


def _parsed(text: str | None, parse: Callable[[str], T]) -> T | None:
    if text is None:
        return None
    try:
        return parse(text)
    except typer.BadParameter as error:
        error.param_hint = "'--where'"
        raise
