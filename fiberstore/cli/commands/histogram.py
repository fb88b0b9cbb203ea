"""``histogram``: numbers of logs or fibers over time."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import typer

from fiberstore.cli.app import app
from fiberstore.cli.options import (
    Contains,
    Db,
    FiberFilter,
    FiberId,
    Generation,
    Json,
    Keys,
    LogFilter,
    Since,
    Sources,
    Types,
    Until,
    check_times,
    parse_span,
)
from fiberstore.cli.render import print_histogram, shape_of_output
from fiberstore.cli.stores import open_to_read
from fiberstore.cli.where_parser import parse_fiber_condition, parse_log_condition
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.records import EPOCH, StoredLog

T = TypeVar("T")

_MOST_STEPS = 60
_WIDTHS = (
    *(timedelta(milliseconds=number) for number in (1, 10, 100)),
    *(timedelta(seconds=number) for number in (1, 5, 10, 30)),
    *(timedelta(minutes=number) for number in (1, 5, 10, 30)),
    *(timedelta(hours=number) for number in (1, 3, 6, 12)),
    *(timedelta(days=number) for number in (1, 7, 30, 90, 365, 3_650, 36_500)),
)


@app.command(
    epilog="Example: fiberstore histogram --db store.duckdb --bucket 5min --by source --contains ERROR"
)
def histogram(
    *,
    db: Db,
    bucket: Annotated[
        timedelta | None,
        typer.Option(
            parser=parse_span,
            metavar="SPAN",
            help="Width of a step: 10s, 5min, 1h, 1d; days begin at midnight UTC. By default a round one "
            f"that makes at most some {_MOST_STEPS} steps.",
        ),
    ] = None,
    by: Annotated[
        Literal["source", "type"] | None,
        typer.Option(help="Count each source, or type of fibers, by itself."),
    ] = None,
    fibers: Annotated[
        bool, typer.Option("--fibers", help="Count fibers, where they begin, instead of logs.")
    ] = False,
    start: Since = None,
    end: Until = None,
    source: Sources = None,
    contains: Contains = None,
    fiber: FiberId = None,
    types: Types = None,
    version: Generation = None,
    key: Keys = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Only those of which a condition on logs, or fibers, is true."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count logs in steps of time, those without any too; with `--fibers`, count fibers."""
    check_times(start, end)
    shape = shape_of_output(as_json=as_json)
    if fibers:
        _refuse("is of logs; leave it out, or --fibers", source=source, contains=contains, fiber=fiber)
        _refuse("must be type for fibers, if it is given", by=by == "source")
        chosen: FiberFilter | LogFilter = FiberFilter(
            type=types, version=version, key=key, where=_parsed(where, parse_fiber_condition)
        )
    else:
        _refuse("is of fibers; leave it out, or add --fibers", type=types)
        _refuse("must be source for logs, if it is given", by=by == "type")
        condition = _parsed(where, parse_log_condition)
        chosen = LogFilter(
            source=source, contains=contains, fiber=fiber, key=key, version=version, where=condition
        )
    group: Any = by and ("fiber_type" if fibers else "source_id")
    with open_to_read(db) as storage:
        query = chosen.of(storage)
        width = bucket or _width(query, start, end)
        buckets = query.histogram(width, by=group, start=start, end=end)
    print_histogram(buckets, group, shape)


def _width(query: Logs | Fibers, start: datetime | None, end: datetime | None) -> timedelta:
    """Return the smallest round width whose steps between two times, or those there are, are not too many."""
    first = start or _first_time(query.order_by("oldest"))
    last = end or _first_time(query.order_by("newest"))
    if first is None or last is None:
        return _WIDTHS[0]
    for width in _WIDTHS:
        if (last - EPOCH) // width - (first - EPOCH) // width < _MOST_STEPS:
            return width
    return _WIDTHS[-1]


def _first_time(query: Logs | Fibers) -> datetime | None:
    for found in query.page(1).items:
        return found.timestamp if isinstance(found, StoredLog) else found.first_activity
    return None


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
