"""``pin``, ``unpin``, ``close``, ``reopen`` and ``merge``: actions on stored fibers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Annotated, NamedTuple
from uuid import UUID

import typer

from fiberstore.cli.app import app
from fiberstore.cli.changing import open_to_change, working
from fiberstore.cli.console import print_result
from fiberstore.cli.lookup import find_fiber_id, find_log_id
from fiberstore.cli.options import (
    Db,
    DryRun,
    FiberFilter,
    Json,
    parse_ago,
    parse_id,
    parse_log_id,
    with_filter,
)
from fiberstore.cli.tables import counted
from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.errors import StorageError
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.repositories.storage import SqlStorage

LogIds = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        parser=parse_log_id,
        metavar="LOG_ID",
        help="This log, by its id or the beginning, instead of fibers; may be repeated.",
    ),
]


@dataclass(frozen=True, slots=True)
class ChosenFibers(FiberFilter):
    """The options and ids that choose fibers to change; all that are given must hold."""

    fiber_ids: Annotated[
        list[str] | None,
        typer.Argument(
            parser=parse_id, metavar="FIBER_ID", help="Only these: their ids, or the beginnings of them."
        ),
    ] = None
    idle: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_ago, metavar="SPAN", help="Only those without activity for so long, such as 1h."
        ),
    ] = None
    all_but: Annotated[
        list[str] | None,
        typer.Option(parser=parse_id, metavar="ID", help="Only others than this; may be repeated."),
    ] = None

    def of(self, storage: SqlStorage) -> Fibers:
        """Return the fibers of the store that are chosen."""
        in_any = bool(self.fiber_ids) and self.version is None  # an id says which generation is meant
        fibers = FiberFilter.of(replace(self, version="all") if in_any else self, storage)
        if self.fiber_ids:
            fibers = fibers.where(Fibers.c.fiber_id.in_(_found(storage, self.fiber_ids)))
        if self.all_but:
            fibers = fibers.where(~Fibers.c.fiber_id.in_(_found(storage, self.all_but)))
        return fibers if self.idle is None else fibers.where(Fibers.c.last_activity < self.idle)


class _Action(NamedTuple):
    """A change of fibers, or of logs, by the method of a query that its verb names.

    Attributes:
        verb: The name of the method, and of the command.
        participle: For what is changed then.
        fibers: The fibers that are not so yet.
        logs: The logs that are not so yet; None if it is of fibers only.
    """

    verb: str
    participle: str
    fibers: Condition[FiberRecord]
    logs: Condition[StoredLog] | None = None


@app.command(epilog="Example: fiberstore pin 0193af35-b650 --db store.duckdb")
@with_filter
def pin(
    chosen: ChosenFibers, *, db: Db, log: LogIds = None, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Keep fibers with their logs, or single logs, from `prune`, however old they are."""
    action = _Action("pin", "pinned", ~Fibers.c.pinned, ~Logs.c.pinned)
    _run(action, chosen, db, log, dry_run=dry_run, as_json=as_json)


@app.command(epilog="Example: fiberstore unpin --type login --db store.duckdb")
@with_filter
def unpin(
    chosen: ChosenFibers, *, db: Db, log: LogIds = None, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Keep fibers, or single logs, from `prune` no longer."""
    action = _Action("unpin", "unpinned", Fibers.c.pinned, Logs.c.pinned)
    _run(action, chosen, db, log, dry_run=dry_run, as_json=as_json)


@app.command(epilog="Example: fiberstore close --db store.duckdb --type login --idle 1h")
@with_filter
def close(chosen: ChosenFibers, *, db: Db, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Close fibers: no more logs are expected of them."""
    _run(_Action("close", "closed", ~Fibers.c.closed), chosen, db, dry_run=dry_run, as_json=as_json)


@app.command(epilog="Example: fiberstore reopen 0193af35-b650 --db store.duckdb")
@with_filter
def reopen(chosen: ChosenFibers, *, db: Db, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Open fibers again that were closed."""
    _run(_Action("reopen", "reopened", Fibers.c.closed), chosen, db, dry_run=dry_run, as_json=as_json)


@app.command(epilog="Example: fiberstore merge 0193af35-b650 0193af35-b651 --db store.duckdb --dry-run")
def merge(
    survivor: Annotated[
        str, typer.Argument(parser=parse_id, metavar="SURVIVOR", help="The fiber that stays, by its id.")
    ],
    losers: Annotated[
        list[str],
        typer.Argument(parser=parse_id, metavar="FIBER_ID", help="Those that become part of it."),
    ],
    db: Db,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make fibers part of another: their logs and pins move to it, and they are deleted.

    Beginnings of ids will do. The activity of the survivor is widened to cover theirs; its attributes stay.
    """
    with open_to_change(db) as storage:
        survivor_id = find_fiber_id(storage, survivor)
        survivors = dict.fromkeys(_found(storage, losers), survivor_id)
        for digits in losers:
            _check_other(storage, digits, survivor_id)
        with working("merging"), storage.transaction() as unit:
            merged = unit.fibers.merge_fibers(survivors)
            if dry_run:
                unit.session.rollback()
    would = "would become" if dry_run else "became"
    print_result(
        f"{counted(merged.fibers, 'fibers')} {would} part of {survivor_id}, with "
        f"{counted(merged.memberships, 'new memberships')}",
        {"dry_run": dry_run, "survivor": survivor_id, **asdict(merged)},
        as_json=as_json,
    )


def _check_other(storage: SqlStorage, digits: str, survivor_id: UUID) -> None:
    if find_fiber_id(storage, digits) != survivor_id:
        return
    if survivor_id.hex.startswith(digits):
        raise StorageError(f"fiber {survivor_id} cannot become part of itself; leave it out")
    raise StorageError(f"fiber {UUID(digits)} is part of {survivor_id} already; leave it out")


def _run(
    action: _Action,
    chosen: ChosenFibers,
    db: str,
    log_ids: Sequence[str] | None = None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Change the chosen fibers, or the logs of these ids, and print how many, or would be."""
    if log_ids and chosen.is_given:
        raise typer.BadParameter(
            "chooses logs; leave it out, or the ids and options that choose fibers", param_hint="'--log'"
        )
    if not (log_ids or chosen.is_given):
        raise typer.BadParameter(
            f"say which fibers to {action.verb}, by their ids or by options such as --type or --idle",
            param_hint="'FIBER_ID'",
        )
    with open_to_change(db) as storage, working(action.verb):
        if log_ids and action.logs is not None:
            ids = [find_log_id(storage, digits) for digits in log_ids]
            query: Logs | Fibers = storage.logs.where(Logs.c.log_id.in_(ids), action.logs)
        else:
            query = chosen.of(storage).where(action.fibers)
        changed = query.count() if dry_run else getattr(query, action.verb)()
    things = counted(changed, "logs" if log_ids else "fibers")
    line = f"would {action.verb} {things}" if dry_run else f"{things} {action.participle}"
    print_result(line, {"dry_run": dry_run, "changed": changed}, as_json=as_json)


def _found(storage: SqlStorage, beginnings: Sequence[str]) -> list[UUID]:
    return [find_fiber_id(storage, digits) for digits in beginnings]
