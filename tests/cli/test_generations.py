"""Generations on the command line: made, compared, switched, dropped; what readers see."""

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import duckdb
import pytest

from fiberstore import DuckDBStorage, Fibers, config_version
from fiberstore.cli import main
from fiberstore.testing.examples import at, fiber, log, member, uid
from tests.support.command_line import (
    Run,
    assert_refused,
    on_a_terminal,
    plain,
    read_terminal,
    told_cursor,
    without_progress,
)
from tests.support.parameters import parametrize_mostly_slow

RULES = r"""
[sources.web]
path = "web.log"
timestamp = '^\S+'
format = "%Y-%m-%dT%H:%M:%S%z"

[fibers.request]
max_gap = "infinite"
[[fibers.request.patterns]]
source = "web"
regex = 'request=(?P<key>\w+)'
"""
BY_USER = RULES.replace("request=(", "user=(") + "# caf\u00e9 \u202e\r\n"
LOGS = """\
2024-05-01T10:00:00Z request=a1 user=ann
2024-05-01T10:00:01Z request=b2 user=ann
2024-05-01T10:00:02Z request=c3 user=bob
2024-05-01T10:00:03Z request=c3 user=bob
2024-05-01T10:00:04Z request=c3 user=cid
2024-05-01T10:00:05Z request=d4 user=dan
"""
A, B = (f"{config_version(rules):016x}" for rules in (RULES, BY_USER))
OLD, NEW, OTHER = (f"{number:016x}" for number in (0x1111_0000_0000_0001, 0x2222_0000_0000_0002, 3))


def write_files(folder: Path) -> None:
    (folder / "web.log").write_text(LOGS)
    (folder / "a.toml").write_bytes(RULES.encode())
    (folder / "b.toml").write_bytes(BY_USER.encode())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a log file, two rules files, and the name of a store that is not there yet."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIBERSTORE_URL", "store.duckdb")
    return tmp_path


@pytest.fixture(scope="module")
def made_by_ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the log file, read by the rules ``a.toml``, for copies."""
    folder = tmp_path_factory.mktemp("ingested")
    write_files(folder)
    with pytest.raises(SystemExit):
        main(["ingest", "--rules", str(folder / "a.toml"), "--db", str(folder / "store.duckdb")])
    return folder / "store.duckdb"


@pytest.fixture
def ingested(made_by_ingest: Path, folder: Path) -> Path:
    """The working directory, with the store that the rules ``a.toml`` have made of the log file."""
    shutil.copy(made_by_ingest, folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the fibers of three versions, none of them active or registered, for copies."""
    db = tmp_path_factory.mktemp("made") / "store.duckdb"
    with DuckDBStorage(db) as storage:
        storage.init_schema()
        storage.write_logs([log(number) for number in range(1, 7)])
        for version, fibers in (
            (OLD, {11: [1, 2], 12: [3]}),
            (NEW, {21: [1, 2, 3], 22: [4]}),
            (OTHER, {31: []}),
        ):
            for number, logs in fibers.items():
                storage.write_fiber(fiber(number, first=at(number), config_version=int(version, 16)))
                storage.write_memberships(member(each, number, int(version, 16)) for each in logs)
    return db


@pytest.fixture(scope="module")
def made_active(made: Path) -> Path:
    """The same; the old version is active."""
    db = made.with_name("active.duckdb")
    shutil.copy(made, db)
    with DuckDBStorage(db) as storage:
        storage.versions.activate(int(OLD, 16))
    return db


@pytest.fixture
def store(made: Path, folder: Path) -> Path:
    """A store with the fibers of three versions, none of them active or registered."""
    shutil.copy(made, folder / "store.duckdb")
    return folder / "store.duckdb"


@pytest.fixture
def active(made_active: Path, folder: Path) -> Path:
    """The same store; the old version is active."""
    shutil.copy(made_active, folder / "store.duckdb")
    return folder / "store.duckdb"


@pytest.fixture
def only_read(active: Path) -> Iterator[None]:
    """The same, held open for commands that only read; to open a file takes DuckDB far longer."""
    with DuckDBStorage(active, read_only=True):
        yield


@pytest.fixture
def only_changed(store: Path) -> Iterator[None]:
    """The store without an active version, held open for commands that all may change it."""
    with DuckDBStorage(store):
        yield


def make_old(db: Path) -> None:
    """Make a store what a release before the lifecycle has written."""
    with duckdb.connect(str(db)) as connection:
        for table in ("fiber_config_versions", "fiber_checkpoints", "fiber_merges", "fiber_pins", "log_pins"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE fiberstore_alembic_version SET version_num = '0001'")


def listed(run: Run, *arguments: str) -> list[int]:
    result = run("fibers", "--json", *arguments)
    assert (result.code, result.err) == (0, "")
    return [UUID(found["fiber_id"]).int for found in result.objects]


def keys(run: Run, *arguments: str) -> list[str]:
    result = run("fibers", "--json", *arguments)
    assert result.code == 0
    return sorted(found["attributes"]["key"][0] for found in result.objects)


def test_rules_without_fibers_say_nothing_of_the_active_version(run: Run, folder: Path) -> None:
    assert run("ingest", "--rules", "a.toml").code == 0
    (folder / "logs.toml").write_text(RULES.partition("[fibers")[0])
    again = run("ingest", "--rules", "logs.toml")
    told = "the rules have no fiber type, so no line joins another: add [fibers.NAME] to them"
    assert (again.code, again.err) == (0, f"fiberstore: {told}\n")


# ---------------------------------------------------------------- a whole story


def test_new_rules_are_tried_compared_switched_to_and_back_and_dropped(run: Run, folder: Path) -> None:
    first = run("ingest", "--rules", "a.toml")
    assert (first.code, first.err) == (0, "")
    (folder / "web.log").unlink()

    made = run("reprocess", "--rules", "b.toml")
    assert made.code == 0
    assert re.fullmatch(
        rf"{B}: 6 logs read; 4 new fibers, 6 new memberships; \d+\.\d\d s, [\d,]+ logs/s\n", made.out
    )
    assert made.err.splitlines() == [
        f"fiberstore: these fibers are of config version {B}; {A} is active, and shown",
        f"fiberstore: fiberstore diff {B} --db store.duckdb compares them",
        f"fiberstore: fiberstore activate {B} --db store.duckdb lets these be shown",
    ]
    assert keys(run) == ["a1", "b2", "c3", "d4"]

    compared = run("diff", B)
    assert (compared.code, compared.err) == (0, "")
    counts, changes = (part.splitlines() for part in compared.out.split("\n\n"))
    assert counts == [
        "kind\tfibers", "unchanged\t1", "split\t1", "merged\t1", "moved\t0", "new\t0", "gone\t0"
    ]  # fmt: skip
    assert [line.split("\t")[:2] for line in changes] == [
        ["kind", "fiber_type"], ["split", "request"], ["merged", "request"]
    ]  # fmt: skip

    there = run(*shlex.split(made.err.splitlines()[2])[2:6])
    assert (there.code, there.out) == (0, f"{B} is active\n")
    assert keys(run) == ["ann", "bob", "cid", "dan"]
    assert keys(run, "--version", A[:6]) == ["a1", "b2", "c3", "d4"]
    assert_refused(run("versions", "drop", B), f"{B} is active and stays; fiberstore activate another")

    back = re.fullmatch(rf"fiberstore: before, {A} was; to go back: fiberstore (.*)\n", there.err)
    assert back is not None
    assert run(*shlex.split(back[1])).out == f"{A} is active\n"
    assert keys(run) == ["a1", "b2", "c3", "d4"]
    dropped = run("versions", "drop", B)
    assert (dropped.code, dropped.out) == (0, f"{B}: 4 fibers and 6 memberships deleted\n")
    assert keys(run, "--version", "all") == ["a1", "b2", "c3", "d4"]
    assert len(run("logs").rows) == 6
    assert run("versions", "show", B).out == BY_USER


def test_an_ingest_by_other_rules_tells_that_its_fibers_are_not_shown(run: Run, ingested: Path) -> None:
    result = run("ingest", "--rules", "b.toml", "--json")
    assert (result.code, len(result.objects)) == (0, 1)
    assert result.err.splitlines()[1:] == [
        f"fiberstore: fiberstore diff {B} --db store.duckdb compares them",
        f"fiberstore: fiberstore activate {B} --db store.duckdb lets these be shown",
    ]
    run("activate", B)
    assert run("ingest", "--rules", "b.toml").err == ""
    run("activate", "--none")
    none = run("ingest", "--rules", "b.toml")
    assert none.err.splitlines() == [
        f"fiberstore: no config version is active, so all fibers are shown; these are of config version {B}",
        f"fiberstore: fiberstore activate {B} --db store.duckdb lets these be shown",
    ]


def test_a_reprocessing_may_activate_its_version(run: Run, ingested: Path) -> None:
    assert run("export", "fibers", "all.jsonl").err == ""
    result = run("reprocess", "--rules", "b.toml", "--activate", "--json")
    assert result.code == 0
    assert result.err == (
        f"fiberstore: before, {A} was; to go back: fiberstore activate {A} --db store.duckdb\n"
    )
    (report,) = result.objects
    assert report.pop("seconds") > 0
    assert report.pop("logs_per_second") > 0
    assert report == {
        "config_version": B,
        "logs_read": 6,
        "fibers_new": 4,
        "memberships_new": 6,
        "fibers_kept": 0,
    }
    assert keys(run) == ["ann", "bob", "cid", "dan"]


def test_a_reprocessing_needs_a_store(run: Run, folder: Path) -> None:
    assert_refused(run("reprocess", "--rules", "b.toml"), "store.duckdb does not exist", "ingest")
    assert not (folder / "store.duckdb").exists()


def test_a_reprocessing_needs_one_generation_to_be_shown(run: Run, ingested: Path) -> None:
    run("activate", "--none")
    assert_refused(run("reprocess", "--rules", "b.toml"), A, "no version is active", "fiberstore activate")
    assert [found["config_version"] for found in run("versions", "--json").objects] == [A]


# ---------------------------------------------------------------- versions


def test_versions_are_listed_whether_registered_or_not(run: Run, active: Path) -> None:
    with DuckDBStorage(active) as storage:
        registered = storage.versions.register(RULES)
    result = run("versions")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == "config_version\tactive\tcreated_at\tparent\tfibers\tcontent_hash"
    assert [[*row[:2], *row[3:]] for row in result.rows] == [
        [OLD, "true", "", "2", ""],
        [A, "false", OLD, "0", registered.content_hash],
        [OTHER, "false", "", "1", ""],
        [NEW, "false", "", "2", ""],
    ]
    assert [bool(row[2]) for row in result.rows] == [True, True, False, False]
    assert run("versions", "list").out == result.out

    old, named, other, _ = run("versions", "--json").objects
    assert named == {
        "config_version": A,
        "active": False,
        "created_at": result.rows[1][2],
        "parent": OLD,
        "fibers": 0,
        "content_hash": registered.content_hash,
    }
    assert (old["active"], old["fibers"], old["content_hash"]) == (True, 2, None)
    assert (other["config_version"], other["created_at"], other["parent"]) == (OTHER, None, None)


def test_the_rules_of_a_version_are_got_back_exactly(run: Run, folder: Path) -> None:
    run("ingest", "--rules", "b.toml")
    shown = run("versions", "show", B[:4].upper())
    assert (shown.code, shown.err) == (0, "")
    assert config_version(shown.out) == config_version(BY_USER)
    (known,) = run("versions", "show", B, "--json").objects
    assert (known["content"], known["config_version"], known["fibers"]) == (BY_USER, B, 4)


def test_rules_that_nobody_registered_are_not_known(run: Run, only_read: None) -> None:
    for version in (OLD, NEW):  # activating has registered one of them, without its content
        assert_refused(run("versions", "show", version), f"the rules of {version} are not known")
        assert run("versions", "show", version, "--json").objects[0]["content"] is None


@pytest.mark.slow
def test_a_dry_run_of_a_drop_counts_what_goes_and_deletes_nothing(run: Run, active: Path) -> None:
    with DuckDBStorage(active) as storage:
        storage.write_memberships([member(5, 21, 77), member(6, 99, int(NEW, 16))])  # of others, or of none
    dry = run("versions", "drop", NEW, "--dry-run")
    assert (dry.code, dry.out, dry.err) == (0, f"{NEW}: 2 fibers and 6 memberships would be deleted\n", "")
    assert listed(run, "--version", NEW) == [21, 22]
    (dry_counts,) = run("versions", "drop", NEW, "--dry-run", "--json").objects
    (counts,) = run("versions", "drop", NEW, "--json").objects
    assert counts == {
        "config_version": NEW, "dry_run": False, "fibers": 2, "memberships": 6
    }  # fmt: skip
    assert dry_counts == {**counts, "dry_run": True}
    assert listed(run, "--version", "all") == [11, 12, 31]
    assert_refused(run("versions", "drop", OLD, "--dry-run"), f"{OLD} is active and stays")


# ---------------------------------------------------------------- activate


def test_activate_tells_what_was_and_how_to_go_back(run: Run, only_changed: None) -> None:
    first = run("activate", "1111")
    assert (first.code, first.out) == (0, f"{OLD} is active\n")
    assert first.err == (
        "fiberstore: before, none was; to go back: fiberstore activate --none --db store.duckdb\n"
    )
    second = run("activate", NEW, "--json")
    assert second.objects == [{"active": NEW, "before": OLD}]
    again = run("activate", NEW)
    assert (again.code, again.out) == (0, f"{NEW} is active\n")
    assert again.err == "fiberstore: it was before, too; nothing is changed\n"  # no way back to itself
    none = run("activate", "--none")
    assert none.out == "no config version is active\n"
    assert none.err == (
        f"fiberstore: before, {NEW} was; to go back: fiberstore activate {NEW} --db store.duckdb\n"
    )
    assert run("activate", "--none", "--json").objects == [{"active": None, "before": None}]


def test_activating_a_version_without_fibers_is_told(run: Run, store: Path) -> None:
    with DuckDBStorage(store) as storage:
        storage.versions.register(RULES)
    assert run("activate", A).err.splitlines()[1] == (
        "fiberstore: it has no fibers; fiberstore reprocess makes them from the stored logs"
    )
    assert run("fibers").rows == []


@pytest.mark.slow
@parametrize_mostly_slow("command", ["fibers", "keys", "timeline"])
def test_an_active_version_without_fibers_is_told_beside_those_that_have(
    run: Run, tmp_path: Path, command: str
) -> None:
    """The first run had rules without fiber types, the next one has them, and is not active yet."""
    write_files(tmp_path)
    db, rules = tmp_path / "new.duckdb", tmp_path / "first.toml"
    rules.write_text(RULES.partition("[fibers")[0])
    run("ingest", "--rules", rules, "--db", db)
    assert run(command, "--db", db).err == ""
    rules.write_text(RULES)
    run("ingest", "--rules", rules, "--db", db)
    shown = run(command, "--db", db)
    assert shown.rows == []
    assert "is active and has no fibers, but other versions have 4: fiberstore activate" in shown.err
    assert run(command, "--version", "all", "--db", db).err == ""


def test_the_way_back_may_be_pasted_into_a_shell(run: Run, store: Path) -> None:
    named = store.rename(store.with_name("it's here.duckdb"))
    told = run("activate", OLD, "--db", named.name).err
    assert shlex.split(told.partition("to go back: ")[2]) == [
        "fiberstore", "activate", "--none", "--db", "it's here.duckdb"
    ]  # fmt: skip


@parametrize_mostly_slow(
    "command",
    [
        "activate {}",
        "versions show {}",
        "versions drop {}",
        "diff {} 2222",
        "diff 2222 {}",
        "fibers --version {}",
    ],
    quick=2,
)
def test_a_version_is_found_by_the_beginning_of_its_hex_digits(run: Run, store: Path, command: str) -> None:
    with DuckDBStorage(store) as storage:
        storage.write_fiber(fiber(13, config_version=int(OLD, 16) + 1))
    assert_refused(
        run(*command.format("1111").split()),
        f"1111 is the beginning of several config versions, give more digits: {OLD}, 1111000000000002\n",
    )
    assert_refused(
        run(*command.format("abcd").split()),
        "no config version begins with abcd; fiberstore versions lists them",
    )
    whole = run(*command.format("F" * 16).split())
    assert_refused(whole, "no config version is ffffffffffffffff; fiberstore versions lists them")


# ---------------------------------------------------------------- diff


def test_a_diff_as_json_is_one_object(run: Run, only_read: None) -> None:
    (found,) = run("diff", NEW, "--json").objects
    assert found == {
        "old": OLD,
        "new": NEW,
        "unchanged": 0,
        "counts": {"split": 0, "merged": 1, "moved": 0, "new": 1, "gone": 0},
        "changes": [
            {
                "kind": "merged",
                "fiber_type": "request",
                "old": [str(uid(11)), str(uid(12))],
                "new": [str(uid(21))],
            },
            {"kind": "new", "fiber_type": "request", "old": [], "new": [str(uid(22))]},
        ],
    }
    (turned,) = run("diff", NEW, OLD, "--json").objects
    assert turned["counts"] == {"split": 1, "merged": 0, "moved": 0, "new": 0, "gone": 1}


@parametrize_mostly_slow(
    ("options", "kinds", "there"),
    [
        ((), ["merged", "new"], None),
        (("--limit", "1"), ["merged"], 2),
        (("--kind", "new"), ["new"], None),
        (("--kind", "new", "--limit", "1"), ["new"], None),
        (("--kind", "new", "--kind", "merged", "--limit", "1"), ["merged"], 2),
        (("--kind", "split", "--kind", "gone"), [], None),
    ],
    quick=3,
)
def test_kinds_and_a_limit_choose_the_changes(
    run: Run, only_read: None, options: tuple[str, ...], kinds: list[str], there: int | None
) -> None:
    result = run("diff", NEW, *options, "--json")
    (found,) = result.objects
    assert [change["kind"] for change in found["changes"]] == kinds
    assert found["counts"]["merged"] == found["counts"]["new"] == 1
    told = f"fiberstore: {len(kinds)} of {there} changes; --limit {there} shows all\n" if there else ""
    assert result.err == told


def test_the_first_changes_of_a_kind_are_found_behind_many_of_others(run: Run, active: Path) -> None:
    with DuckDBStorage(active) as storage:
        for number in range(100, 110):
            storage.write_fiber(fiber(number, config_version=int(NEW, 16)))
            storage.write_fiber(fiber(number + 100, config_version=int(OLD, 16)))
    (found,) = run("diff", OLD, NEW, "--kind", "gone", "--limit", "2", "--json").objects
    assert [change["old"] for change in found["changes"]] == [[str(uid(200))], [str(uid(201))]]


def test_a_diff_with_one_version_needs_an_active_one(run: Run, store: Path) -> None:
    assert_refused(run("diff", NEW), "no config version is active", "fiberstore diff OLD NEW")
    assert run("diff", OLD, NEW).code == 0


# ---------------------------------------------------------------- what readers see


def test_readers_see_the_active_generation_or_the_one_they_name(run: Run, only_read: None) -> None:
    assert listed(run) == listed(run, "--version", "active") == [11, 12]
    assert listed(run, "--version", "2222") == [21, 22]
    assert listed(run, "--version", OTHER) == [31]
    assert listed(run, "--version", "all") == [11, 12, 21, 22, 31]
    assert listed(run, "--where", "not config_version.is_active()", "--version", "all") == [21, 22, 31]
    assert listed(run, "--version", "all", "--where", "logs.any(fibers.any(config_version.is_active()))") == [
        11, 12, 21
    ]  # fmt: skip
    assert run("histogram", "--fibers", "--bucket", "1d").rows[0][1] == "2"
    assert run("histogram", "--fibers", "--bucket", "1d", "--version", "all").rows[0][1] == "5"
    assert {row[0] for row in run("timeline").rows} == {str(uid(11)), str(uid(12))}
    assert {row[0] for row in run("timeline", "--version", NEW).rows} == {str(uid(21)), str(uid(22))}
    assert run("export", "fibers", "active.jsonl").err == (
        f"fiberstore: that is config version {OLD}, the active one; --version all is every one\n"
    )
    assert run("export", "fibers", "all.jsonl", "--version", "all").err == ""
    assert [len(Path(name).read_text().splitlines()) for name in ("active.jsonl", "all.jsonl")] == [2, 5]


def test_a_fiber_named_by_its_id_is_shown_whatever_its_version(run: Run, only_read: None) -> None:
    assert run("show", str(uid(21)), "--json").objects[0]["log_count"] == 3
    assert len(run("logs", "--fiber", str(uid(21))).rows) == 3


def test_without_an_active_version_all_are_seen(run: Run, store: Path) -> None:
    assert listed(run) == [11, 12, 21, 22, 31]
    assert_refused(run("fibers", "--version", "active"), "no config version is active; fiberstore activate")


def test_pages_are_of_one_generation(run: Run, active: Path) -> None:
    first = run("fibers", "--limit", "1")
    cursor = told_cursor(first)
    assert listed(run, "--limit", "5", "--cursor", cursor) == [12]
    run("activate", NEW)
    assert_refused(run("fibers", "--limit", "1", "--cursor", cursor), "cursor")
    assert listed(run, "--limit", "5", "--cursor", cursor, "--version", OLD) == [12]


def test_stats_mark_the_active_version(run: Run, only_read: None) -> None:
    versions = run("stats", "--json").objects[0]["config_versions"]
    assert [(found["config_version"], found["active"], found["fibers"]) for found in versions] == [
        ("0" * 16, False, 0),
        (OTHER, False, 1),
        (OLD, True, 2),
        (NEW, False, 2),
    ]
    rows = run("stats").rows
    assert ["config_version_active", OLD, "true"] in rows
    assert ["config_version_active", NEW, "false"] in rows
    assert ["config_version_fibers", NEW, "2"] in rows


def test_an_active_version_that_has_nothing_is_in_the_stats(
    run: Run, folder: Path, empty_store: Path
) -> None:
    shutil.copy(empty_store, folder)
    with DuckDBStorage(folder / "store.duckdb") as storage:
        storage.versions.activate(storage.versions.register(RULES).config_version)
    (found,) = run("stats", "--json").objects[0]["config_versions"]
    assert found == {
        "config_version": A, "active": True, "logs": 0, "fibers": 0
    }  # fmt: skip


@pytest.mark.slow
def test_a_store_of_an_older_release_can_be_read_and_is_not_changed(run: Run, store: Path) -> None:
    make_old(store)
    before = store.read_bytes()
    assert listed(run) == [11, 12, 21, 22, 31]
    assert listed(run, "--version", "2222") == [21, 22]
    assert [row[0] for row in run("versions").rows] == [OTHER, OLD, NEW]
    assert run("checkpoint", "list").rows == []
    assert len(run("stats", "--json").objects[0]["config_versions"]) == 4
    assert run("timeline").code == 0
    assert run("histogram", "--fibers").code == 0
    assert run("export", "fibers", "all.jsonl").code == 0
    assert_refused(run("fibers", "--version", "active"), "no config version is active")
    assert_refused(run("checkpoint", "get", "a"), "no checkpoint has the name 'a'")
    for command in (
        ("activate", OLD),
        ("versions", "drop", OLD),
        ("checkpoint", "set", "a", "1"),
        ("checkpoint", "delete", "a"),
        ("reprocess", "--rules", "a.toml"),
    ):
        assert_refused(run(*command), "fiberstore db upgrade --db store.duckdb")
    assert store.read_bytes() == before


# ---------------------------------------------------------------- wrong usage


@parametrize_mostly_slow(
    ("command", "says"),
    [
        ("activate", "VERSION: give either a version or --none"),
        ("activate 1111 --none", "give either a version or --none"),
        ("activate xyz", "'xyz' is no config version; give its hex digits, at least the first four"),
        ("versions show 111", "'111' is no config version"),
        ("versions drop 11111111111111111", "'11111111111111111' is no config version"),
        ("versions drop", "Missing argument 'VERSION'"),
        ("versions nothing", "No such command 'nothing'"),
        ("versions --db store.duckdb drop 1111", "unexpected extra argument"),
        ("fibers --version none", "'none' is no config version"),
        ("diff", "Missing argument 'VERSION"),
        ("diff 1111 2222 3333", "3 are too many; give the old and the new config version"),
        ("diff 1111 --kind changed", "'changed' is no kind of change; give one of split, merged, moved, new"),
        ("diff 1111 --limit 0", "'--limit'"),
        ("reprocess", "Missing option '--rules'"),
        ("checkpoint set a", "Missing argument 'VALUE'"),
        ("checkpoint set a 1 --expect 2 --expect-none", "'--expect-none': contradicts --expect"),
        ("checkpoint st a 1", "No such command 'st'"),
    ],
    quick=5,
)
def test_wrong_usage_is_told(run: Run, active: Path, command: str, says: str) -> None:
    before = active.read_bytes()
    result = run(*command.split())
    assert (result.code, result.out) == (2, "")
    assert says in result.usage
    assert active.read_bytes() == before


# ---------------------------------------------------------------- on a terminal


@pytest.mark.slow
def test_on_a_terminal_everything_fits_and_the_active_version_is_marked(
    active: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DuckDBStorage(active) as storage:
        storage.versions.register(BY_USER)
        storage.checkpoints.set("evil \x1b[31m", "\x07" * 200)
        for number in range(1, 7):
            storage.write_fiber(fiber(100 + number, first=at(1), config_version=int(OTHER, 16)))
            storage.write_memberships([member(number, 100 + number, int(OTHER, 16))])
        storage.write_fiber(fiber(300, first=at(1), config_version=int(NEW, 16)))
    commands = [
        *("versions", f"versions show {B}", "checkpoint", f"diff {NEW}", f"diff {OTHER} {NEW} --limit 2"),
        *("stats", "versions drop 0000 --dry-run", "versions drop 0000", f"activate {NEW}", "fibers"),
        "checkpoint get 'evil \x1b[31m'",
    ]
    shown = on_a_terminal([shlex.split(command) for command in commands])
    for output in (*shown[:4], shown[5]):
        assert max(map(len, plain(without_progress(output)).splitlines())) <= 80
    versions, rules, checkpoints, diff, cut, stats, dry, drop, activate, fibers, got = shown
    assert re.search(rf"^{OLD} +2  active  20", plain(versions), re.MULTILINE)
    assert re.search(rf"^{NEW} +3 +not registered *$", plain(versions), re.MULTILINE)
    assert r"# café \u202e\r" in plain(rules)
    assert r"evil \x1b[31m" in plain(checkpoints)
    assert got.startswith(r"\x07\x07")
    assert plain(without_progress(diff)).splitlines() == [
        f"{OLD} to {NEW}",
        "0 unchanged, 0 split, 1 merged, 0 moved, 2 new, 0 gone",
        "merged  request",
        *(f"  - {uid(11)}", f"  - {uid(12)}", f"  + {uid(21)}"),
        *("new     request", f"  + {uid(22)}"),
        *("new     request", f"  + {uid(300)}"),
    ]
    assert "fiberstore: 2 of 5 changes; --limit 5 shows all" in cut
    assert f"{OLD} (active)" in plain(stats)
    assert dry == f"{OTHER}: 7 fibers and 6 memberships would be deleted\n"
    assert without_progress(drop).endswith(f"{OTHER}: 7 fibers and 6 memberships deleted\n")
    assert activate.splitlines() == [
        f"{NEW} is active",
        f"fiberstore: before, {OLD} was; to go back: fiberstore activate {OLD} --db store.duckdb",
    ]
    assert plain(fibers).count("request") == 3


def test_on_a_narrow_terminal_nothing_that_matters_is_left_out(active: Path, folder: Path) -> None:
    with DuckDBStorage(active) as storage:
        storage.checkpoints.set("a name that is long enough to fill it", "value 4711")
    versions, checkpoints = map(plain, on_a_terminal([["versions"], ["checkpoint"]], columns=42))
    assert max(map(len, (versions + checkpoints).splitlines())) <= 42
    assert re.search(rf"^{OLD} +2  active", versions, re.MULTILINE)
    assert "4711" in re.sub(r"\s", "", checkpoints)


@pytest.mark.slow
def test_a_fiber_that_became_many_does_not_fill_the_terminal(active: Path, folder: Path) -> None:
    with DuckDBStorage(active) as storage:
        storage.write_logs([log(number) for number in range(1_000, 1_030)])
        storage.write_fiber(fiber(400, "job", config_version=int(OLD, 16)))
        storage.write_memberships(member(number, 400, int(OLD, 16)) for number in range(1_000, 1_030))
        for number in range(1_000, 1_030):
            storage.write_fiber(fiber(number, "job", config_version=int(NEW, 16)))
        storage.write_memberships(member(number, number, int(NEW, 16)) for number in range(1_000, 1_030))
    (shown,) = on_a_terminal([["diff", NEW, "--kind", "split"]])
    lines = plain(without_progress(shown)).splitlines()[2:]
    assert lines[:2] == ["split   job", f"  - {uid(400)}"]
    assert lines[2:] == [*(f"  + {uid(number)}" for number in range(1_000, 1_010)), "  + and 20 more"]


ROWS = 25_000


def write_many(folder: Path) -> None:
    with (folder / "web.log").open("w") as file:
        for number in range(ROWS):
            minute, second = divmod(number // 20, 60)
            file.write(
                f"2024-05-01T10:{minute:02}:{second:02}Z request=r{number % 1_000} user=u{number % 700}\n"
            )


@pytest.mark.slow
def test_a_reprocessing_shows_its_progress_and_goes_on_after_ctrl_c(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    write_many(folder)
    run("ingest", "--rules", "a.toml")
    ours, theirs = pty.openpty()
    program = "import sys; from fiberstore.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "reprocess", "--rules", "b.toml", "--activate"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ,
    )
    os.close(theirs)
    seen = b""
    for chunk in read_terminal(ours):
        seen += chunk
        if b"logs/s" in chunk:  # the bar shows a rate once the first batch is stored
            process.send_signal(signal.SIGINT)
            break
    seen += b"".join(read_terminal(ours))
    os.close(ours)
    assert process.communicate()[0] == b""
    assert process.returncode == 130
    assert b"Traceback" not in seen
    assert b"fiberstore: interrupted; what was made stays, and the same command resumes from there" in seen
    assert re.search(rb"20,000 logs, [\d,]+ logs/s", seen)
    (a, b) = run("versions", "--json").objects
    assert (a["active"], b["active"], b["fibers"] > 0) == (True, False, True)  # a half of it is not shown

    (rest,) = run("reprocess", "--rules", "b.toml", "--json").objects
    assert rest["logs_read"] < ROWS
    (again,) = run("reprocess", "--rules", "b.toml", "--json").objects
    assert (again["fibers_new"], again["memberships_new"]) == (0, 0)
    with DuckDBStorage(folder / "store.duckdb", read_only=True) as storage:
        of_b = storage.fibers.where(Fibers.c.config_version == config_version(BY_USER))
        assert of_b.count() == 700
        counts = [summary.log_count for summary in of_b.summaries(1_000).items]
    assert sum(counts) == ROWS


@pytest.mark.slow
def test_a_pipe_gets_no_progress(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    run("ingest", "--rules", "a.toml")
    assert "\x1b" not in run("reprocess", "--rules", "b.toml").err
    assert run("diff", B).err == run("versions", "drop", B).err == ""
    assert json.loads(run("versions", "--json").out.splitlines()[0])["config_version"] == A
