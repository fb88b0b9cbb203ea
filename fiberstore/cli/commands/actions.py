"""``pin``, ``unpin``, ``close``, ``reopen`` and ``merge``: actions on stored fibers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer

from fiberstore.cli.app import app
from fiberstore.cli.changing import open_to_change, working
from fiberstore.cli.console import print_json, print_line
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


@app.command(epilog="Example: fiberstore pin 0193af35-b650 --db store.duckdb")
@with_filter
def pin(
    chosen: ChosenFibers, *, db: Db, log: LogIds = None, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Keep fibers with their logs, or single logs, from `prune`, however old they are."""
    outcome = ActionOutcome("pin", "pinned", dry_run=dry_run, as_json=as_json)
    if log:
        _change_logs(chosen, log, db, ~Logs.c.pinned, lambda logs: logs.pin(), outcome=outcome)
    else:
        _change_fibers(chosen, db, ~Fibers.c.pinned, lambda fibers: fibers.pin(), outcome=outcome)


@app.command(epilog="Example: fiberstore unpin --type login --db store.duckdb")
@with_filter
def unpin(
    chosen: ChosenFibers, *, db: Db, log: LogIds = None, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Keep fibers, or single logs, from `prune` no longer."""
    outcome = ActionOutcome("unpin", "unpinned", dry_run=dry_run, as_json=as_json)
    if log:
        _change_logs(chosen, log, db, Logs.c.pinned, lambda logs: logs.unpin(), outcome=outcome)
    else:
        _change_fibers(chosen, db, Fibers.c.pinned, lambda fibers: fibers.unpin(), outcome=outcome)


@app.command(epilog="Example: fiberstore close --db store.duckdb --type login --idle 1h")
@with_filter
def close(chosen: ChosenFibers, *, db: Db, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Close fibers: no more logs are expected of them."""
    outcome = ActionOutcome("close", "closed", dry_run=dry_run, as_json=as_json)
    _change_fibers(chosen, db, ~Fibers.c.closed, lambda fibers: fibers.close(), outcome=outcome)


@app.command(epilog="Example: fiberstore reopen 0193af35-b650 --db store.duckdb")
@with_filter
def reopen(chosen: ChosenFibers, *, db: Db, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Open fibers again that were closed."""
    outcome = ActionOutcome("reopen", "reopened", dry_run=dry_run, as_json=as_json)
    _change_fibers(chosen, db, Fibers.c.closed, lambda fibers: fibers.reopen(), outcome=outcome)


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
    if as_json:
        print_json({"dry_run": dry_run, "survivor": str(survivor_id), **asdict(merged)})
    else:
        would = "would become" if dry_run else "became"
        print_line(
            f"{counted(merged.fibers, 'fibers')} {would} part of {survivor_id}, with "
            f"{counted(merged.memberships, 'new memberships')}"
        )


def _check_other(storage: SqlStorage, digits: str, survivor_id: UUID) -> None:
    if find_fiber_id(storage, digits) != survivor_id:
        return
    if survivor_id.hex.startswith(digits):
        raise StorageError(f"fiber {survivor_id} cannot become part of itself; leave it out")
    raise StorageError(f"fiber {UUID(digits)} is part of {survivor_id} already; leave it out")


@dataclass(frozen=True, slots=True)
class ActionOutcome:
    """Formats the outcome of an action, real or dry-run."""

    verb: str
    participle: str
    dry_run: bool
    as_json: bool

    def report(self, changed: int, things: str) -> None:
        """Print the number of things that were changed, or would be."""
        if self.as_json:
            print_json({"dry_run": self.dry_run, "changed": changed})
        elif self.dry_run:
            print_line(f"would {self.verb} {counted(changed, things)}")
        else:
            print_line(f"{counted(changed, things)} {self.participle}")


def _change_fibers(
    chosen: ChosenFibers,
    db: str,
    unlike: Condition[FiberRecord],
    change: Callable[[Fibers], int],
    *,
    outcome: ActionOutcome,
) -> None:
    """Change those of the chosen fibers that are not so yet."""
    if not chosen.is_given:
        raise typer.BadParameter(
            f"say which fibers to {outcome.verb}, by their ids or by options such as --type or --idle",
            param_hint="'FIBER_ID'",
        )
    with open_to_change(db) as storage, working(outcome.verb):
        fibers = chosen.of(storage).where(unlike)
        changed = fibers.count() if outcome.dry_run else change(fibers)
    outcome.report(changed, "fibers")


def _change_logs(
    chosen: ChosenFibers,
    digits: Sequence[str],
    db: str,
    unlike: Condition[StoredLog],
    change: Callable[[Logs], int],
    *,
    outcome: ActionOutcome,
) -> None:
    """Change those of the logs that are not so yet."""
    if chosen.is_given:
        raise typer.BadParameter(
            "chooses logs; leave it out, or the ids and options that choose fibers", param_hint="'--log'"
        )
    with open_to_change(db) as storage, working(outcome.verb):
        log_ids = [find_log_id(storage, beginning) for beginning in digits]
        logs = storage.logs.where(Logs.c.log_id.in_(log_ids), unlike)
        changed = logs.count() if outcome.dry_run else change(logs)
    outcome.report(changed, "logs")


def _found(storage: SqlStorage, beginnings: Sequence[str]) -> list[UUID]:
    return [find_fiber_id(storage, digits) for digits in beginnings]
