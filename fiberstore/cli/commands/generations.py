"""Generations: the fibers of several config versions over the same logs, made, compared and switched."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from fiberstore.cli import lookup
from fiberstore.cli.app import Commands, app, print_note, telling_if_interrupted
from fiberstore.cli.changing import db_option, open_to_change, working
from fiberstore.cli.console import print_json, print_result, print_text
from fiberstore.cli.groups import ListsByDefault
from fiberstore.cli.lookup import shown_version
from fiberstore.cli.options import Db, DryRun, Json, Limit, LogCondition, Version, parse_version
from fiberstore.cli.progress import counting_bars, rate
from fiberstore.cli.render import (
    generation_record,
    print_diff,
    print_generations,
    shape_of_output,
    version_or_none,
)
from fiberstore.cli.stores import open_to_read
from fiberstore.cli.tables import counted
from fiberstore.contract.queries import Fibers
from fiberstore.contract.results import ChangeKind, GenerationDiff
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import StorageError
from fiberstore.ingest.reprocess import ReprocessReport
from fiberstore.ingest.reprocess import reprocess as reprocess_logs
from fiberstore.ingest.rules import load_rules
from fiberstore.repositories.storage import SqlStorage

versions_app = Commands(
    cls=ListsByDefault,
    help="Config versions, and the generations of fibers made by them; without a command, list them.",
    epilog="Example: fiberstore versions --db store.duckdb",
)
app.add_typer(versions_app, name="versions")


@versions_app.command("list", epilog="Example: fiberstore versions list --db store.duckdb")
def list_versions(db: Db, as_json: Json = False) -> None:
    """Print the config versions: those that are registered, by time, then those that only fibers have."""
    with open_to_read(db) as storage:
        found = lookup.collect_generations(storage)
    print_generations(found, shape_of_output(as_json=as_json))


@versions_app.command("show", epilog="Example: fiberstore versions show 1f3a --db store.duckdb > rules.toml")
def show(version: Version, db: Db, as_json: Json = False) -> None:
    """Print the rules of a config version; in a pipe, exactly as they were."""
    with open_to_read(db) as storage:
        number = lookup.find_version(storage, version)
        (found,) = (item for item in lookup.collect_generations(storage) if item.config_version == number)
    content = None if found.registered is None else found.registered.content
    if as_json:
        print_json({**generation_record(found), "content": content})
    elif content is None:
        raise StorageError(
            f"the rules of {shown_version(number)} are not known: they were not ingested by this release; "
            "fiberstore versions lists those that are, with their content_hash"
        )
    else:
        print_text(content)


@versions_app.command("drop", epilog="Example: fiberstore versions drop 1f3a --db store.duckdb --dry-run")
def drop(
    version: Version,
    *,
    db: Db,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete the fibers and memberships of a config version that is not active; the logs and rules stay."""
    with open_to_read(db) if dry_run else open_to_change(db) as storage:
        number = lookup.find_version(storage, version)
        if number == lookup.active_version(storage):
            raise StorageError(
                f"{shown_version(number)} is active and stays; fiberstore activate another version, or --none"
            )
        if dry_run:
            fibers = storage.fibers.where(Fibers.c.config_version == number).count()
            memberships = lookup.count_memberships(storage, number)
        else:
            with working("drop"):
                deleted = storage.versions.drop(number)
            fibers, memberships = deleted.fibers, deleted.memberships
    counts = {"fibers": fibers, "memberships": memberships}
    said = " and ".join(counted(count, things) for things, count in counts.items())
    print_result(
        f"{shown_version(number)}: {said} {'would be deleted' if dry_run else 'deleted'}",
        {"config_version": shown_version(number), "dry_run": dry_run, **counts},
        as_json=as_json,
    )


@app.command(epilog="Example: fiberstore activate 1f3a --db store.duckdb")
def activate(
    version: Annotated[
        str | None,
        typer.Argument(
            parser=parse_version, metavar="VERSION", help="Its hex digits, or the beginning of them."
        ),
    ] = None,
    *,
    db: Db,
    none: Annotated[bool, typer.Option("--none", help="Let no version be active.")] = False,
    as_json: Json = False,
) -> None:
    """Make a config version the active one, whose fibers are shown. Prints the command that switches back."""
    if (version is None) != none:
        raise typer.BadParameter("give either a version or --none", param_hint="VERSION")
    with open_to_change(db) as storage:
        number = None if version is None else lookup.find_version(storage, version)
        before = storage.versions.activate(number)
        is_empty = number is not None and not _has_fibers(storage, number)
    old = None if before is None else before.config_version
    values = {"active": version_or_none(number), "before": version_or_none(old)}
    print_result(f"{values['active'] or 'no config version'} is active", values, as_json=as_json)
    if old == number:
        print_note("it was before, too; nothing is changed")
    else:
        _tell_way_back(old, db)
    if is_empty:
        print_note("it has no fibers; fiberstore reprocess makes them from the stored logs")


@app.command(epilog="Example: fiberstore reprocess --rules rules.toml --db store.duckdb")
def reprocess(
    rules: Annotated[Path, typer.Option(metavar="FILE", help="What joins lines; its files are not read.")],
    db: Db,
    *,
    where: LogCondition = None,
    from_version: Annotated[
        str | None,
        typer.Option(
            "--from-version",
            parser=parse_version,
            metavar="VERSION",
            help="Whose fibers the logs keep that --where does not choose; the active version by default.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Delete the fibers that these rules have made, and begin anew.")
    ] = False,
    then_activate: Annotated[
        bool, typer.Option("--activate", help="Then make their version the active one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the fibers of other rules from the logs that are stored; those there are stay, beside them.

    With --where, only the chosen logs get new fibers; the others keep theirs, copied.
    """
    if from_version is not None and where is None:
        raise typer.BadParameter(
            "give --where, too; without it, no log keeps its fibers", param_hint="--from-version"
        )
    loaded = load_rules(rules, check_files=False)
    version = loaded.config_version
    with open_to_change(db) as storage:
        kept = None if from_version is None else lookup.find_version(storage, from_version)
        report, seconds = _reprocess(
            storage,
            lambda on_batch: reprocess_logs(
                storage, loaded, logs=where, from_version=kept, again=again, on_batch=on_batch
            ),
        )
        before = storage.versions.activate(version) if then_activate else None
        _print_report(version, report, seconds, as_json=as_json)
        tell_unless_active(storage, version, db)
    if then_activate and (before is None or before.config_version != version):
        _tell_way_back(None if before is None else before.config_version, db)


def _parse_kind(text: str) -> str:
    if text not in get_args(ChangeKind):
        raise typer.BadParameter(
            f"{text!r} is no kind of change; give one of {', '.join(get_args(ChangeKind))}"
        )
    return text


@app.command(epilog="Example: fiberstore diff 1f3a 9b07 --db store.duckdb --kind split --limit 20")
def diff(
    versions: Annotated[
        list[str],
        typer.Argument(
            parser=parse_version,
            metavar="VERSION",
            help="The old and the new one: hex digits, or their beginning. One alone: the active is the old.",
        ),
    ],
    *,
    db: Db,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            parser=_parse_kind, metavar="KIND", help="Only changes of this kind; if repeated, of any of them."
        ),
    ] = None,
    limit: Limit = DEFAULT_LIMIT,
    as_json: Json = False,
) -> None:
    """Compare the fibers of two config versions by their logs: unchanged, split, merged, moved, new, gone."""
    if len(versions) > 2:  # noqa: PLR2004
        raise typer.BadParameter(
            f"{len(versions)} are too many; give the old and the new config version", param_hint="VERSION"
        )
    with open_to_read(db) as storage:
        old, new = _old_and_new(storage, versions)
        with working("diff"):
            found = _differences(storage, old, new, kind, limit)
    print_diff(old, new, found, shape_of_output(as_json=as_json))
    there = sum(count for name, count in found.counts.items() if not kind or name in kind)
    if there > len(found.changes):
        print_note(f"{len(found.changes):,} of {counted(there, 'changes')}; --limit {there} shows all")


def tell_unless_active(storage: SqlStorage, version: int, db: str) -> None:
    """Note on stderr that the fibers of a version that is not active are not shown, with the fix."""
    active = lookup.active_version(storage)
    if active == version:
        return
    name = shown_version(version)
    if active is None:
        print_note(
            f"no config version is active, so all fibers are shown; these are of config version {name}"
        )
    else:
        print_note(f"these fibers are of config version {name}; {shown_version(active)} is active, and shown")
        print_note(f"{_command('diff', name, db)} compares them")
    print_note(f"{_command('activate', name, db)} lets these be shown")


def _tell_way_back(before: int | None, db: str) -> None:
    back = "--none" if before is None else shown_version(before)
    was = "none was" if before is None else f"{back} was"
    print_note(f"before, {was}; to go back: {_command('activate', back, db)}")


def _command(name: str, argument: str, db: str) -> str:
    return f"fiberstore {name} {argument} {db_option(db)}"


def _has_fibers(storage: SqlStorage, version: int) -> bool:
    return storage.fibers.where(Fibers.c.config_version == version).count(1) > 0


def _old_and_new(storage: SqlStorage, versions: list[str]) -> tuple[int, int]:
    *given, new = (lookup.find_version(storage, version) for version in versions)
    old = given[0] if given else lookup.active_version(storage)
    if old is None:
        raise StorageError("no config version is active, to compare with; give two: fiberstore diff OLD NEW")
    return old, new


def _differences(
    storage: SqlStorage, old: int, new: int, kinds: Sequence[str] | None, limit: int
) -> GenerationDiff:
    if not kinds:
        return storage.versions.diff(old, new, limit)
    counts = storage.versions.diff(old, new, 0).counts  # they come by kind: the last one wanted ends the list
    last = max(position for position, kind in enumerate(counts) if kind in kinds)
    found = storage.versions.diff(old, new, sum([*counts.values()][: last + 1]))
    changes = [change for change in found.changes if change.kind in kinds]
    return replace(found, changes=changes[:limit])


def _reprocess(
    storage: SqlStorage, run: Callable[[Callable[[ReprocessReport], None]], ReprocessReport]
) -> tuple[ReprocessReport, float]:
    begin = time.monotonic()
    read = 0

    def on_batch(so_far: ReprocessReport) -> None:
        nonlocal read
        bars.advance("", so_far.logs_read - read)
        read = so_far.logs_read

    left = "what was made stays, and the same command resumes from there"
    with telling_if_interrupted(lambda: left), counting_bars("logs") as bars:
        bars.begin("", storage.logs.count, "reading the stored logs")
        report = run(on_batch)
    return report, time.monotonic() - begin


def _print_report(version: int, report: ReprocessReport, seconds: float, *, as_json: bool) -> None:
    kept = f"{counted(report.fibers_kept, 'fibers')} kept, " if report.fibers_kept else ""
    times = {"seconds": round(seconds, 3), "logs_per_second": round(report.logs_read / seconds)}
    print_result(
        f"{shown_version(version)}: {counted(report.logs_read, 'logs')} read; "
        f"{kept}{counted(report.fibers_new, 'new fibers')}, "
        f"{counted(report.memberships_new, 'new memberships')}; "
        f"{seconds:.2f} s, {rate(report.logs_read, seconds, 'logs')}",
        {"config_version": shown_version(version), **asdict(report), **times},
        as_json=as_json,
    )
