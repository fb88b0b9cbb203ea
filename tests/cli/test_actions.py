"""Commands that change a store: pin, close, merge, prune, redact, compact."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest

from fiberstore import DuckDBStorage, Fibers, Logs
from fiberstore.cli.units import parse_size
from fiberstore.contract.results import Pruned
from fiberstore.testing.examples import fiber, log, member, uid
from tests.contract.test_injection import assert_without_effect
from tests.support.command_line import Result, Run, assert_refused, on_a_terminal
from tests.support.parameters import parametrize_mostly_slow

NOW = datetime.now(UTC)
OLD, RECENT = NOW - timedelta(days=100), NOW - timedelta(hours=2)
LOGIN, REQUEST, JOB = (UUID(int=digits << 112) for digits in (0xAAA1, 0xBBB2, 0xCCC3))
LEAKED = "password=hunter2-swordfish"
FIBERS = [
    fiber(LOGIN.int, "login", {"user": "ada"}, first=OLD, closed=True),
    fiber(REQUEST.int, "request", {"user": "bob"}, first=OLD, last=RECENT),
    fiber(JOB.int, "job", first=RECENT),
]
LOGS = [
    log(1, OLD, source="web", text=f"login {LEAKED} \x1b[31mred"),
    log(2, OLD, source="web", text="login and request"),
    log(3, RECENT, source="web", text="request"),
    log(4, RECENT, source="db", text=f"job {LEAKED.upper()}"),
    log(5, OLD, source="db", text="nobody's, old"),
    log(6, RECENT, source="mail", text="nobody's"),
]
MEMBERS = [
    member(number, fiber_id.int)
    for number, fiber_id in ((1, LOGIN), (2, LOGIN), (2, REQUEST), (3, REQUEST), (4, JOB))
]
DESTRUCTIVE = [
    ("prune", "--older-than", "30d"),
    ("prune", "--source", "mail"),
    ("prune", "--max-size", "1B"),
    ("redact", LEAKED),
    ("pin", "--type", "login"),
    ("unpin", "--type", "job"),
    ("unpin", "--log", str(uid(6))),
    ("close", "--open"),
    ("reopen", "aaa1"),
    ("merge", "aaa1", "bbb2"),
]
COMMANDS = [*DESTRUCTIVE, ("db", "compact")]


@pytest.fixture(autouse=True)
def wide_output(plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a message be one line."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, for copies."""
    path = tmp_path_factory.mktemp("made") / "store.duckdb"
    with DuckDBStorage(path) as storage:
        storage.init_schema()
        storage.write_logs(LOGS)
        for record in FIBERS:
            storage.write_fiber(record)
        storage.write_memberships(MEMBERS)
        storage.fibers.where(Fibers.c.fiber_id == JOB).pin()
        storage.logs.where(Logs.c.log_id == uid(6)).pin()
    return path


@pytest.fixture
def alone(made: Path, db_file: Path) -> Path:
    """A store whose job and whose mail are pinned."""
    shutil.copy(made, db_file)
    return db_file


@pytest.fixture
def opened(alone: Path) -> Iterator[DuckDBStorage]:
    """The same, open."""
    with DuckDBStorage(alone) as storage:
        yield storage


@pytest.fixture
def db(alone: Path, opened: DuckDBStorage) -> Path:
    """The same, held open here: DuckDB takes far longer to open a file than commands take to change it.

    A command that reads only, or writes the file anew, needs it ``alone``.
    """
    return alone


def everything(db: Path) -> list[list[tuple[object, ...]]]:
    """Return the rows of every table."""
    with DuckDBStorage(db) as storage, storage.engine.connect() as connection:
        names = connection.exec_driver_sql("SHOW TABLES").scalars().all()
        return [
            [tuple(row) for row in connection.exec_driver_sql(f'SELECT * FROM "{name}" ORDER BY ALL')]
            for name in names
        ]


def values(db: Path, query: str) -> list[Any]:
    """Return the first column of what a query finds."""
    with DuckDBStorage(db) as storage, storage.engine.connect() as connection:
        return [*connection.exec_driver_sql(query).scalars()]


def fibers_of(db: Path, query: str) -> set[UUID]:
    return {*values(db, query)}


def closed(db: Path) -> set[UUID]:
    return fibers_of(db, "SELECT fiber_id FROM fibers WHERE closed")


def pinned(db: Path) -> set[UUID]:
    return fibers_of(db, "SELECT fiber_id FROM fiber_pins")


def stored_logs(db: Path) -> set[int]:
    return {log_id.int for log_id in fibers_of(db, "SELECT log_id FROM raw_logs")}


def stored_fibers(db: Path) -> set[UUID]:
    return fibers_of(db, "SELECT fiber_id FROM fibers")


def texts(db: Path) -> list[str]:
    return values(db, "SELECT raw_text FROM raw_logs ORDER BY log_id")


# ---------------------------------------------------------------- fibers are chosen


@parametrize_mostly_slow(
    ("options", "chosen"),
    [
        (("bbb2",), {REQUEST}),
        (("bbb2", str(JOB), "aaa1"), {REQUEST, JOB}),
        (("--type", "job", "--type", "login"), {JOB}),
        (("--open",), {REQUEST, JOB}),
        (("--closed",), set()),
        (("bbb2", "ccc3", "--type", "job"), {JOB}),
        (("bbb2", "--type", "job"), set()),
        (("--idle", "1h"), {REQUEST, JOB}),
        (("--idle", "1d"), set()),
        (("--all-but", "bbb2"), {JOB}),
        (("--all-but", "bbb2", "--all-but", "ccc3"), set()),
        (("--where", 'attributes["/user"] == "bob"'), {REQUEST}),
        (("--where", "pinned"), {JOB}),
        (("--start", (NOW - timedelta(hours=3)).isoformat()), {REQUEST, JOB}),
        (("--end", (NOW - timedelta(days=90)).isoformat()), {REQUEST}),
    ],
)
def test_fibers_are_closed_by_ids_and_filters_that_all_must_hold(
    run: Run, db: Path, options: tuple[str, ...], chosen: set[UUID]
) -> None:
    count = len(chosen)
    things = "fiber" if count == 1 else "fibers"
    before = everything(db)
    result = run("close", "--db", db, "--dry-run", *options)
    assert (result.code, result.out, result.err) == (0, f"would close {count} {things}\n", "")
    assert everything(db) == before
    result = run("close", "--db", db, *options)
    assert (result.code, result.out, result.err) == (0, f"{count} {things} closed\n", "")
    assert closed(db) == {LOGIN, *chosen}
    assert run("close", "--db", db, "--json", *options).objects == [{"dry_run": False, "changed": 0}]


def test_idle_is_without_activity_for_longer_than_that(run: Run, opened: DuckDBStorage, db: Path) -> None:
    opened.update_fiber(
        fiber(REQUEST.int, "request", first=OLD, last=datetime.now(UTC) - timedelta(minutes=5))
    )
    opened.close()
    assert run("close", "--db", db, "--idle", "10min").out == "1 fiber closed\n"
    assert closed(db) == {LOGIN, JOB}
    assert run("close", "--db", db, "--idle", "3min").out == "1 fiber closed\n"


def test_closed_fibers_are_opened_again(run: Run, db: Path) -> None:
    assert run("reopen", "--db", db, "--type", "login", "--dry-run", "--json").objects == [
        {"dry_run": True, "changed": 1}
    ]
    assert closed(db) == {LOGIN}
    assert run("reopen", "--db", db, "aaa1", "bbb2").out == "1 fiber reopened\n"
    assert closed(db) == set()


def test_fibers_are_pinned_and_unpinned(run: Run, db: Path) -> None:
    options = ("--db", db, "aaa1", "ccc3")
    assert run("pin", *options, "--dry-run").out == "would pin 1 fiber\n"
    assert pinned(db) == {JOB}
    assert run("pin", *options).out == "1 fiber pinned\n"
    assert pinned(db) == {LOGIN, JOB}
    assert run("unpin", *options, "--dry-run", "--json").objects == [{"dry_run": True, "changed": 2}]
    assert pinned(db) == {LOGIN, JOB}
    assert run("unpin", "--db", db, "--type", "job", "--json").objects == [{"dry_run": False, "changed": 1}]
    assert pinned(db) == {LOGIN}


def test_single_logs_are_pinned_and_unpinned(run: Run, alone: Path) -> None:
    options = ("--db", alone, "--log", uid(5), "--log", uid(6))
    before = everything(alone)
    assert run("pin", *options, "--dry-run").out == "would pin 1 log\n"
    assert everything(alone) == before
    assert run("pin", *options).out == "1 log pinned\n"
    assert run("logs", "--db", alone, "--where", "pinned", "--json").objects[0]["log_id"] == str(uid(5))
    assert run("unpin", *options, "--json").objects == [{"dry_run": False, "changed": 2}]
    assert everything(alone)[-2:] != before[-2:]
    assert run("logs", "--db", alone, "--where", "pinned", "--json").out == ""


def test_filters_are_of_the_active_generation_and_ids_of_any(
    run: Run, opened: DuckDBStorage, db: Path
) -> None:
    other = UUID(int=0xDDD4 << 112)
    opened.write_fiber(fiber(other.int, "job", first=RECENT, config_version=4))
    opened.versions.activate(4)
    opened.close()
    assert run("close", "--db", db, "bbb2").out == "1 fiber closed\n"
    assert run("close", "--db", db, "--type", "job").out == "1 fiber closed\n"
    assert closed(db) == {LOGIN, REQUEST, other}
    assert run("close", "--db", db, "--type", "job", "--version", "all").out == "1 fiber closed\n"
    assert closed(db) == {LOGIN, REQUEST, other, JOB}
    assert run("reopen", "--db", db, "bbb2", "--version", "active").out == "0 fibers reopened\n"


@parametrize_mostly_slow("command", ["pin", "unpin", "close", "reopen"])
def test_nothing_that_is_chosen_is_not_everything(run: Run, db: Path, command: str) -> None:
    before = everything(db)
    result = run(command, "--db", db)
    assert (result.code, result.out) == (2, "")
    assert f"'FIBER_ID': say which fibers to {command}, by their ids or by options such as" in result.usage
    assert everything(db) == before


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_logs_and_fibers_are_not_pinned_at_once(run: Run, db: Path, command: str) -> None:
    result = run(command, "--db", db, "aaa1", "--log", uid(1))
    assert (result.code, result.out) == (2, "")
    assert "'--log': chooses logs; leave it out, or the ids and options that choose fibers" in result.usage


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_a_log_that_is_not_there_is_named(run: Run, db: Path, command: str) -> None:
    before = everything(db)
    assert_refused(
        run(command, "--db", db, "--log", uid(1), "--log", uid(77)), f"no log has the id {uid(77)}"
    )
    assert everything(db) == before


# ---------------------------------------------------------------- merge


def test_fibers_become_part_of_another(run: Run, alone: Path) -> None:
    before = everything(alone)
    (tried,) = run("merge", "bbb2", "aaa1", "ccc3", "--db", alone, "--dry-run", "--json").objects
    assert tried == {"dry_run": True, "survivor": str(REQUEST), "fibers": 2, "memberships": 2}
    assert everything(alone) == before
    result = run("merge", "bbb2", "aaa1", str(JOB), "--db", alone)
    assert result.out == f"2 fibers became part of {REQUEST}, with 2 new memberships\n"
    assert stored_fibers(alone) == {REQUEST}
    assert {line["log_id"] for line in run("show", "bbb2", "--db", alone, "--json").objects[0]["logs"]} == {
        str(uid(number)) for number in (1, 2, 3, 4)
    }
    with DuckDBStorage(alone) as storage:
        assert storage.resolve_fibers([LOGIN, JOB]) == {LOGIN: REQUEST, JOB: REQUEST}


@parametrize_mostly_slow("command", ["show", "logs --fiber", "grep login --fiber"], quick=1)
def test_the_id_of_a_merged_fiber_leads_to_its_survivor(run: Run, alone: Path, command: str) -> None:
    run("merge", "bbb2", "aaa1", "--db", alone)
    run("merge", "ccc3", "bbb2", "--db", alone)
    result = run(*command.split(), str(LOGIN), "--db", alone)
    assert (result.code, result.err) == (0, "")
    assert LEAKED in result.out


def test_a_fiber_that_has_become_part_of_another_is_not_merged_again(run: Run, db: Path) -> None:
    run("merge", "bbb2", "aaa1", "--db", db)
    before = everything(db)
    assert_refused(
        run("merge", "bbb2", str(LOGIN), "--db", db),
        f"fiber {LOGIN} is part of {REQUEST} already; leave it out",
    )
    assert everything(db) == before


def test_a_merge_in_words_for_one_fiber(run: Run, db: Path) -> None:
    result = run("merge", "bbb2", "aaa1", "--db", db, "--dry-run")
    assert result.out == f"1 fiber would become part of {REQUEST}, with 1 new membership\n"


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_fiber_does_not_become_part_of_itself(run: Run, db: Path, dry: tuple[str, ...]) -> None:
    before = everything(db)
    assert_refused(
        run("merge", "bbb2", "aaa1", str(REQUEST), "--db", db, *dry),
        f"fiber {REQUEST} cannot become part of itself; leave it out",
    )
    assert everything(db) == before


@pytest.mark.parametrize("wrong", [("dddd", "aaa1"), ("aaa1", "dddd")])
def test_a_fiber_that_is_not_there_is_not_merged(run: Run, db: Path, wrong: tuple[str, ...]) -> None:
    before = everything(db)
    assert_refused(run("merge", *wrong, "--db", db), "no fiber has an id that begins with dddd")
    assert everything(db) == before


# ---------------------------------------------------------------- prune


@parametrize_mostly_slow(
    ("options", "fibers", "logs"),
    [
        (("--older-than", "30d"), {REQUEST, JOB}, {2, 3, 4, 6}),
        (("--older-than", "200d"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 5, 6}),
        (("--older-than", "1h"), {JOB}, {4, 6}),
        (("--type", "request"), {LOGIN, JOB}, {1, 2, 4, 5, 6}),
        (("--type", "request", "--older-than", "30d"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 5, 6}),
        (("--type", "request", "--type", "login"), {JOB}, {4, 5, 6}),
        (("--type", "job"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 5, 6}),
        (("--source", "db"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 6}),
        (("--source", "db", "--source", "mail"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 6}),
        (("--source", "db", "--older-than", "200d"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 5, 6}),
        (("--source", "db", "--type", "login"), {REQUEST, JOB}, {2, 3, 4, 6}),
        (("--fibers", "closed", "--older-than", "1d"), {REQUEST, JOB}, {2, 3, 4, 5, 6}),
        (("--logs", 'raw_text.startswith("nobody")'), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 6}),
        (("--max-size", "1B"), {JOB}, {4, 6}),
        (("--max-size", "10GB"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 5, 6}),
        (("--max-size", "1B", "--type", "login"), {REQUEST, JOB}, {2, 3, 4, 5, 6}),
        (("--max-size", "1B", "--source", "db"), {LOGIN, REQUEST, JOB}, {1, 2, 3, 4, 6}),
        (("--max-size", "1B", "--older-than", "30d"), {REQUEST, JOB}, {2, 3, 4, 6}),
    ],
    quick=2,
)
def test_what_is_chosen_goes_and_what_others_need_or_is_pinned_stays(
    run: Run, db: Path, options: tuple[str, ...], fibers: set[UUID], logs: set[int]
) -> None:
    before = everything(db)
    (would,) = run("prune", "--db", db, *options, "--dry-run", "--json").objects
    assert everything(db) == before
    (did,) = run("prune", "--db", db, *options, "--json").objects
    assert (stored_fibers(db), stored_logs(db)) == (fibers, logs)
    assert (did["fibers"], did["logs"]) == (3 - len(fibers), 6 - len(logs))
    assert (would["dry_run"], did["dry_run"], did["is_complete"]) == (True, False, True)
    if "--max-size" not in options:  # then the numbers of a dry run are an estimate
        for name in ("fibers", "logs", "memberships", "text_bytes"):
            assert would[name] == did[name]


def test_a_prune_in_words_says_how_the_space_comes_back(run: Run, db: Path) -> None:
    size = sum(len(LOGS[index].raw_text.encode()) for index in (0, 4))
    dry = run("prune", "--db", db, "--older-than", "30d", "--dry-run")
    assert dry.out.startswith(f"would delete 1 fiber, 2 logs with {size} bytes of text, 2 memberships; ")
    assert dry.out.count("\n") == 1
    result = run("prune", "--db", db, "--older-than", "30d")
    first, second = result.out.splitlines()
    assert first.startswith(f"deleted 1 fiber, 2 logs with {size} bytes of text, 2 memberships; ")
    assert second.endswith(f"written next; fiberstore db compact --db {db} gives them back to the disk")
    assert (result.code, result.err) == (0, "")


@pytest.mark.slow
def test_a_prune_may_compact_the_file_at_once(run: Run, alone: Path) -> None:
    grow(alone)
    before = alone.stat().st_size
    (did,) = run("prune", "--db", alone, "--logs", 'source_id == "big"', "--compact", "--json").objects
    assert did["compacted"]["bytes_after"] == alone.stat().st_size < before - 2_000_000
    assert "the store took " in run("prune", "--db", alone, "--source", "db", "--compact").out


@pytest.mark.slow
def test_a_dry_run_does_not_compact(run: Run, db: Path) -> None:
    grow(db)
    before = db.stat().st_size
    (would,) = run("prune", "--db", db, "--source", "big", "--compact", "--dry-run", "--json").objects
    assert "compacted" not in would
    assert db.stat().st_size == before


@pytest.mark.slow
def test_a_prune_goes_on_after_its_most_steps(run: Run, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps(monkeypatch)
    options = ("prune", "--db", db, "--older-than", "1h")
    result = run(*options, "--max-steps", "1")
    assert result.code == 0
    assert result.err == "fiberstore: there is more to delete; the same command resumes\n"
    assert {4, 6} < stored_logs(db) < {1, 2, 3, 4, 5, 6}
    assert run(*options).err == ""
    assert (stored_fibers(db), stored_logs(db)) == ({JOB}, {4, 6})


@pytest.mark.slow
def test_ctrl_c_between_steps_keeps_what_is_done_and_the_next_run_goes_on(
    run: Run, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch)

    def interrupted(pruned: Pruned) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fiberstore.cli.commands.prune._so_far", interrupted)
        result = run("prune", "--db", db, "--older-than", "1h")
    assert (result.code, result.out) == (130, "")
    assert (
        "fiberstore: interrupted; what was deleted until then is gone, and the same command resumes\n"
        in result.err
    )
    assert {4, 6} < stored_logs(db) < {1, 2, 3, 4, 5, 6}
    assert run("prune", "--db", db, "--older-than", "1h").code == 0
    assert (stored_fibers(db), stored_logs(db)) == ({JOB}, {4, 6})


def test_a_prune_of_nothing_that_is_named_is_refused(run: Run, db: Path) -> None:
    before = everything(db)
    result = run("prune", "--db", db, "--dry-run")
    assert (result.code, result.out) == (2, "")
    assert (
        "'--older-than': say what may go, by this, --type, --fibers, --source, --logs or --max"
        in result.usage
    )
    assert everything(db) == before


def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a prune go log by log."""
    prune = DuckDBStorage.prune
    monkeypatch.setattr(
        DuckDBStorage, "prune", lambda storage, **options: prune(storage, **{**options, "step_rows": 1})
    )


@pytest.mark.parametrize(("options", "step_rows"), [((), 1_000_000), (("--max-steps", "9"), None)])
def test_a_prune_takes_large_steps_unless_they_are_counted(
    run: Run, db: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], step_rows: int | None
) -> None:
    taken: list[int | None] = []
    prune = DuckDBStorage.prune

    def noted(storage: DuckDBStorage, **options: Any) -> Pruned:  # noqa: ANN401  # those of prune
        taken.append(options.get("step_rows"))
        return prune(storage, **options)

    monkeypatch.setattr(DuckDBStorage, "prune", noted)
    assert run("prune", "--db", db, "--type", "request", *options).code == 0
    assert taken == [step_rows]


def grow(db: Path) -> None:
    """Store a few megabytes that do not compress."""
    with DuckDBStorage(db) as storage:
        storage.write_logs(
            log(1_000 + number, OLD, source="big", text=os.urandom(1_000).hex()) for number in range(3_000)
        )


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1), ("17b", 17), ("5k", 5_000), ("5 KB", 5_000), ("5kib", 5_120), ("5Ki", 5_120),
        ("1.5GB", 1_500_000_000), ("1.5GiB", 3 * 2**29), ("10M", 10_000_000), ("2TiB", 2**41), ("0", 0),
    ],
)  # fmt: skip
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1EB", "1 0", "ten", "1.GB", "٣", "nan", "9" * 41])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size; give one such as '500MB', '10GB', '1.5GiB'"):
        parse_size(text)


# ---------------------------------------------------------------- redact and compact


def test_a_secret_is_redacted_in_the_logs_and_is_not_in_the_file(run: Run, alone: Path) -> None:
    assert LEAKED.encode() in alone.read_bytes()
    result = run("redact", r"password=\S+", "--db", alone, "--with", r"password=\0*")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("1 log redacted; ")
    assert lines[1].startswith("the store took ")
    assert result.err == (
        "fiberstore: attributes and keys of fibers, backups and exports are as they were; look for the text "
        "there, too\n"
    )
    assert texts(alone)[0] == "login password=\\0* \x1b[31mred"
    assert texts(alone)[1:] == [record.raw_text for record in LOGS[1:]]
    assert all(LEAKED.encode() not in path.read_bytes() for path in alone.parent.iterdir())


@pytest.mark.slow
def test_a_redaction_in_json(run: Run, alone: Path) -> None:
    (did,) = run("redact", "-i", r"password=\S+", "--db", alone, "--json").objects
    assert did.pop("seconds") >= 0
    assert set(did.pop("compacted")) == {"bytes_before", "bytes_after"}
    assert did == {"dry_run": False, "changed": 2}
    assert texts(alone)[3] == "job [redacted]"


@pytest.mark.slow
def test_a_dry_run_of_a_redaction_shows_ids_but_no_text(run: Run, db: Path) -> None:
    before = everything(db)
    result = run("redact", "-i", r"password=\S+", "--db", db, "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"the pattern matches in 2 logs\n{uid(1)}\n{uid(4)}\n"
    assert run("redact", r"password=\S+", "--db", db, "--dry-run", "--json").objects == [
        {"dry_run": True, "matching": 1, "log_ids": [str(uid(1))]}
    ]
    assert everything(db) == before
    grow(db)
    out = run("redact", "[0-9a-f]{9}", "--db", db, "--dry-run").out.splitlines()
    assert (out[0], len(out), out[-1]) == ("the pattern matches in 3,000 logs", 12, "and 2,990 more")


@parametrize_mostly_slow(
    ("options", "changed"),
    [
        (("--source", "db"), {4}),
        (("--fiber", "aaa1"), {1}),
        (("--contains", "job"), {4}),
        (("--where", 'raw_text.startswith("login")'), {1}),
        (("--start", (NOW - timedelta(days=1)).isoformat()), {4}),
        (("--end", (NOW - timedelta(days=1)).isoformat()), {1}),
    ],
    quick=2,
)
def test_only_logs_that_are_chosen_are_redacted(
    run: Run, db: Path, options: tuple[str, ...], changed: set[int]
) -> None:
    assert run("redact", "-i", "password", "--db", db, "--keep-file", *options).code == 0
    assert {number for number, text in enumerate(texts(db), 1) if "[redacted]" in text} == changed


def test_a_redaction_that_is_interrupted_says_what_is_left_to_do(
    run: Run, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(storage: DuckDBStorage) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DuckDBStorage, "compact", interrupt)
    result = run("redact", LEAKED, "--db", db)
    assert (result.code, result.out) == (130, "")
    assert result.err == (
        "fiberstore: 1 log redacted, but the old text may still be in unused parts of the store; the same "
        f"command, or fiberstore db compact --db {db}, tries again\n"
    )


def test_plain_text_is_redacted_as_it_is(run: Run, db: Path) -> None:
    assert run("redact", "-F", "s, o", "--db", db, "--keep-file").out.startswith("1 log redacted; ")
    assert run("redact", "-F", ".", "--db", db, "--keep-file").out.startswith("0 logs redacted; ")


@pytest.mark.slow
def test_the_file_may_be_kept_and_compacted_later(run: Run, alone: Path) -> None:
    result = run("redact", LEAKED, "--db", alone, "--keep-file")
    assert result.out.splitlines()[1] == (
        "the old text may still be in unused parts of the store; "
        f"fiberstore db compact --db {alone} removes it"
    )
    assert LEAKED.encode() in alone.read_bytes()
    assert "compacted" not in run("redact", LEAKED, "--db", alone, "--keep-file", "--json").objects[0]
    assert run("db", "compact", "--db", alone).code == 0
    assert LEAKED.encode() not in alone.read_bytes()


@pytest.mark.slow
def test_a_second_run_removes_what_the_first_has_left_in_the_file(run: Run, alone: Path) -> None:
    run("redact", LEAKED, "--db", alone, "--keep-file")
    assert LEAKED.encode() in alone.read_bytes()
    assert run("redact", LEAKED, "--db", alone).out.startswith("0 logs redacted; ")
    assert LEAKED.encode() not in alone.read_bytes()


@pytest.mark.slow
def test_a_file_that_cannot_be_compacted_is_told_after_a_redaction(
    run: Run, db: Path, opened: DuckDBStorage
) -> None:
    result = run("redact", LEAKED, "--db", db)  # another storage of this process uses the file
    assert (result.code, result.out) == (1, "")
    first, _second = result.err.splitlines()
    assert first == (
        "fiberstore: 1 log redacted, but the old text may still be in unused parts of the store; the same "
        f"command, or fiberstore db compact --db {db}, tries again"
    )
    opened.close()
    assert LEAKED not in texts(db)[0]


@parametrize_mostly_slow("pattern", ["(", "x*", "", "(?=a)"])
def test_a_pattern_that_cannot_be_redacted_is_refused_in_a_dry_run_too(
    run: Run, db: Path, pattern: str
) -> None:
    before = everything(db)
    for dry in ((), ("--dry-run",)):
        result = run("redact", "--db", db, *dry, "--", pattern)
        assert (result.code, result.out) == (2, "")
        assert "Invalid value for PATTERN: " in result.usage
    assert everything(db) == before


def test_a_store_is_compacted(run: Run, alone: Path) -> None:
    rows = everything(alone)
    grow(alone)
    with DuckDBStorage(alone) as storage:
        storage.logs.where(Logs.c.source_id == "big").delete()
    before = alone.stat().st_size
    (did,) = run("db", "compact", "--db", alone, "--json").objects
    assert did.pop("seconds") >= 0
    assert did == {"bytes_before": before, "bytes_after": alone.stat().st_size}
    assert alone.stat().st_size < before - 2_000_000
    result = run("db", "compact", "--db", alone)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("the store took ")
    assert everything(alone) == rows


# ---------------------------------------------------------------- stores


@parametrize_mostly_slow("command", COMMANDS, quick=3)
def test_a_typo_makes_no_store(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    assert_refused(
        run(*command, "--db", tmp_path / "typo.duckdb"),
        "typo.duckdb does not exist; give the path of a store, `fiberstore ingest` makes one",
    )
    assert_refused(run(*command, "--db", ":memory:"), ":memory: is empty, there is nothing to change")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@parametrize_mostly_slow(
    ("statement", "says"),
    [
        ("DROP TABLE raw_logs", "has no tables of fiberstore"),
        (
            "UPDATE fiberstore_alembic_version SET version_num = '0001'",
            "has the tables of an older release (revision 0001, this one needs",
        ),
        ("DROP TABLE fiberstore_alembic_version", "has the tables of an older release (revision none, this"),
        (
            "UPDATE fiberstore_alembic_version SET version_num = '9'",
            "revision '9', which this release does not",
        ),
    ],
)
def test_a_store_of_another_release_is_left_alone(run: Run, alone: Path, statement: str, says: str) -> None:
    with duckdb.connect(str(alone)) as connection:
        connection.execute(statement)
    before = alone.read_bytes()
    for command in COMMANDS:
        assert_refused(run(*command, "--db", alone), says)
    assert alone.read_bytes() == before


def test_a_store_of_an_older_release_is_told_how_to_be_upgraded(run: Run, alone: Path) -> None:
    with duckdb.connect(str(alone)) as connection:
        connection.execute("DROP TABLE fiberstore_alembic_version")
    assert_refused(
        run("close", "aaa1", "--db", alone), f"fiberstore db upgrade --db {alone} brings them up to date"
    )


ANSWERS = """
import contextlib, io, json, sys
from fiberstore.cli import main
answers = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(command)
        except SystemExit as end:
            answers.append((end.code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_store_that_another_process_holds_is_left_alone(alone: Path) -> None:
    before = everything(alone)
    lines = [[*command, "--db", str(alone)] for command in COMMANDS]
    with DuckDBStorage(alone):
        answers = json.loads(
            subprocess.check_output([sys.executable, "-c", ANSWERS, json.dumps(lines)], timeout=110)
        )
    assert len(answers) == len(COMMANDS)
    for answer in answers:
        assert_refused(Result(*answer), f"{alone} is held by process {os.getpid()}")
    assert everything(alone) == before


# ---------------------------------------------------------------- a terminal


@pytest.mark.slow
def test_a_terminal_sees_what_is_done_and_for_how_long(run: Run, alone: Path) -> None:
    lines, expected = [], []
    for number, command in enumerate(COMMANDS):
        shown, dry = {
            "prune": ("deleting", "counting what would go"),
            "redact": ("redacting", "counting"),
            "merge": ("merging", "merging"),
            "db": ("writing the store anew", ""),
        }.get(command[0], (command[0], command[0]))
        piped, seen = (
            shutil.copy(alone, alone.with_name(f"{name} {number}.duckdb")) for name in ("piped", "seen")
        )
        words = run(*command, "--db", piped).out.split(";")[0]
        line = (*command, "--db", str(seen))
        if dry:
            lines.append((*line, "--dry-run"))
            expected.append((dry, ""))
        lines.append(line)
        expected.append((shown, words))
    for line, output, (doing, words) in zip(lines, on_a_terminal(lines, columns=200), expected, strict=True):
        assert_without_effect(output, terminal=True)
        assert doing in output, line
        assert re.search(r"0:\d\d:\d\d", output) or doing == "deleting", line
        assert words in output, line


@pytest.mark.slow
@parametrize_mostly_slow("command", COMMANDS, quick=2)
def test_colours_that_are_forced_draw_nothing_in_a_pipe(
    run: Run, alone: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run(*command, "--db", alone)
    assert result.code == 0
    assert "\x1b" not in result.out + result.err
    assert result.err.replace("fiberstore: attributes and", "").count("fiberstore: ") == 0


@pytest.mark.parametrize("command", ["prune", "redact", "db compact"])
def test_help_is_broken_by_the_width_of_the_terminal_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    above_options = run(*command.split(), "--help").out.partition("╭")[0]
    for paragraph in re.split(r"\n\s*\n", above_options):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        for line, following in itertools.pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) > 58
