"""The command line: what each command prints, and what bad input gets."""

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from typer.main import get_group

import fiberstore
from fiberstore import DuckDBStorage, FiberMembership, FiberRecord, LogRecord
from fiberstore.cli import commands, index
from fiberstore.cli.app import app
from tests.support.command_line import (
    Run,
    assert_refused,
    on_a_terminal,
    plain,
    told_cursor,
    without_progress,
)
from tests.support.parameters import parametrize_mostly_slow
from tests.support.small_store import RULES, WEB, row_counts, write_files

# ---------------------------------------------------------------- help and usage


COMMANDS = [
    "demo",
    "ingest",
    "rules init",
    "logs",
    "grep",
    "context",
    "tail",
    "histogram",
    "fibers",
    "show",
    "stats",
    "versions",
    "versions list",
    "versions show",
    "versions drop",
    "activate",
    "reprocess",
    "diff",
    "checkpoint",
    "checkpoint list",
    "checkpoint get",
    "checkpoint set",
    "checkpoint delete",
    "doctor",
    "db upgrade",
    "db current",
    "db check",
    "db backup",
    "db compact",
    "db distribute",
    "prune",
    "redact",
    "pin",
    "unpin",
    "close",
    "reopen",
    "merge",
    "copy",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example(run: Run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert f"Example: fiberstore {command}" in result.out


def test_a_shell_completes_commands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FIBERSTORE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fiberstore db b")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run().out == "backup\n"


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").out == f"fiberstore {fiberstore.__version__}\n"
    assert fiberstore.__version__ == metadata.version("fiberstore")


def test_the_help_lists_the_commands_and_the_exit_codes(run: Run) -> None:
    out = run("--help").out
    assert all(command.split()[0] in out for command in COMMANDS)
    assert "Exit codes: 0 done, 1 the store or the input failed, 2 wrong usage, 130" in " ".join(out.split())


def test_the_list_has_every_command_with_the_line_that_its_own_help_begins_with() -> None:
    for module in iter_modules(commands.__path__, f"{commands.__name__}."):
        import_module(module.name)
    group: Any = get_group(app)
    made = {info.name or getattr(info.callback, "__name__", None) for info in app.registered_commands}
    assert made | {info.name for info in app.registered_groups} == set(index.COMMANDS)
    for name, (_, line) in index.COMMANDS.items():
        _, command, _ = group.resolve_command(None, [name])
        assert command.help.partition("\n\n")[0] == line, name


def test_the_list_of_commands_and_a_name_that_is_completed_load_no_database_and_no_command() -> None:
    program = """
import contextlib, os, sys
from fiberstore.cli import main
with contextlib.suppress(SystemExit):
    main(["--help"])
print(*sys.modules, file=sys.stderr)
os.environ |= {"_FIBERSTORE_COMPLETE": "complete_bash", "COMP_WORDS": "fiberstore un", "COMP_CWORD": "1"}
with contextlib.suppress(SystemExit):
    main()
print(*sys.modules, file=sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Exit codes" in found.stdout
    assert found.stdout.endswith("\nunpin\n")
    listing, completing = (set(modules.split()) for modules in found.stderr.splitlines())
    heavy = {"duckdb", "pyarrow", "sqlalchemy", "fiberstore.cli.commands"}
    assert (heavy | {"pydantic"}) & listing == set()
    assert heavy & completing == set()


@pytest.mark.parametrize(("call", "is_frozen"), [("main()", "True"), ("main(['--version'])", "False")])
def test_what_is_loaded_is_not_looked_through_at_the_end_of_the_command(call: str, is_frozen: str) -> None:
    program = f"""
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # the first that is registered runs last
from fiberstore.cli import main
{call}
"""
    command = [sys.executable, "-c", program, "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[1:] == [is_frozen]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("logs",), "'--db'"),
        (("nothing",), "nothing"),
        (("logs", "--db", "x", "--limit", "-1"), "--limit"),
        (("logs", "--db", "x", "--offset", "1"), "No such option: --offset"),
        (("fibers", "--db", "x", "--limit", "0"), "--limit"),
        (("fibers", "--db", "x", "--limit", "many"), "--limit"),
        (("logs", "--db", "x", "--end", "tomorrow"), "'tomorrow' is not ISO 8601, such as 2024-"),
        (("logs", "--db", "x", "--tz", "Mars"), "'Mars' is no time zone that this machine knows"),
        (("logs", "--db", "x", "--json", "--format", "raw"), "contradicts --format raw"),
        (("show", "xyz", "--db", "x"), "'xyz' is no fiber id"),
        (("show", "019", "--db", "x"), "at least the first four"),
        (("show", "0" * 33, "--db", "x"), "is no fiber id"),
        (("ingest", "--rules", "x", "--db", "x", "web.log"), "'web.log' is not of the form SOURCE=PATH"),
        (("ingest", "--rules", "x", "--db", "x", "web="), "SOURCE=PATH"),
        (("demo", "--lines", "0"), "--lines"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.usage
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- ingest


def test_ingest_prints_what_it_did_in_its_first_line(run: Run, rules_file: Path, db_file: Path) -> None:
    result = run("ingest", "--rules", rules_file, "--db", db_file)
    assert (result.code, result.err) == (0, "")
    assert re.match(
        r"5 logs read, 5 new; 5 new fibers, 8 new memberships; \d+\.\d\d s, [\d,]+ logs/s\n", result.out
    )
    assert row_counts(db_file) == (5, 5, 8)


def test_ingest_prints_one_json_object(run: Run, rules_file: Path, store_file: Path) -> None:
    (report,) = run("ingest", "--rules", rules_file, "--db", store_file, "--json").objects
    assert report.pop("seconds") > 0
    assert report.pop("logs_per_second") > 0
    assert report.pop("matches") == {"client": [3], "request": [3, 2]}
    assert {name: counts["lines"] for name, counts in report.pop("sources").items()} == {"web": 4, "db": 2}
    assert report == {"logs_read": 5, "logs_new": 5, "fibers_new": 5, "memberships_new": 8}


def test_ingest_counts_by_source_and_pattern(run: Run, rules_file: Path, store_file: Path) -> None:
    result = run("ingest", "--rules", rules_file, "--db", store_file)
    assert "web: 4 lines, 3 logs, 1 line without a stamp" in result.out.splitlines()
    assert r"request: 3 matches of 'request=(?P<request>\w+)'" in result.out.splitlines()


def test_ingest_check_stores_nothing_and_shows_the_first_lines_of_each_kind(
    run: Run, rules_file: Path, db_file: Path, tmp_path: Path
) -> None:
    rules = rules_file.read_text().replace("'request=", "'no=").replace("'from ", "'no ")
    rules_file.write_text(
        rules.replace("[sources.db]", "drop = 'b2'\non_bad_stamp = 'previous'\n[sources.db]")
    )
    with (tmp_path / "web.log").open("a") as file:
        file.write("2024-05-99T10:05:00Z request=c4 " + "x" * 600 + "\n" + "  more\n" * 4)
    command = ("ingest", "--check", "--rules", rules_file, "--db", db_file)
    result = run(*command)
    assert result.out.startswith("5 logs read, none stored\nweb: 9 lines, 3 logs, ")
    assert [line for line in result.out.splitlines() if line.startswith("  ")][:7] == [
        "  without a stamp: web.log:4:   continued",
        "  without a stamp: web.log:6:   more",
        "  without a stamp: web.log:7:   more",
        "  dropped: web.log:2: 2024-05-01T10:00:01Z request=b2 from bob",
        "  with a bad stamp: web.log:5: 2024-05-99T10:05:00Z",
        "  without a key: 2024-05-01T10:00:00Z request=a1 from ann",
        r"  without a key: 2024-05-01T10:05:00Z request=c3 from ann\n  continued",
    ]
    assert "matched no line of web" in result.err
    (shown,) = on_a_terminal([command])
    cut = [line for line in plain(without_progress(shown)).splitlines() if line.startswith("  ")]
    assert "  with a bad stamp: web.log:5: 2024-05-99T10:05:00Z" in cut
    assert max(map(len, cut)) <= 80
    assert len(run(*command, "--json").objects[0]["sources"]["web"]["first_lines"]["keyless"]) == 3
    assert not db_file.exists()


def test_ingest_tells_what_it_left_out(run: Run, rules_file: Path, store_file: Path) -> None:
    rules_file.write_text(rules_file.read_text().replace("[sources.db]", "drop = 'request'\n\n[sources.db]"))
    result = run("ingest", "--rules", rules_file, "--db", store_file)
    assert "web: lines left out by drop: 4" in result.err


@pytest.mark.slow
def test_several_files_of_a_source(run: Run, rules_file: Path, store_file: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"part{number}.log").write_text(f"2024-05-01T11:00:0{number}Z request=z from zoe\n")
    for given in ([tmp_path / "part1.log", tmp_path / "part2.log"], [tmp_path / "part*.log"]):
        run("ingest", "--rules", rules_file, "--db", store_file, *(f"web={path}" for path in given))
        assert row_counts(store_file) == (4, 3, 6)


def test_ingesting_again_adds_nothing(run: Run, rules_file: Path, store_file: Path) -> None:
    run("ingest", "--rules", rules_file, "--db", store_file)
    result = run("ingest", "--rules", rules_file, "--db", store_file)
    assert result.out.startswith("2 logs read, 0 new; 0 new fibers, 0 new memberships; ")
    assert result.out.count(", 1 file continued where an earlier run stopped\n") == 2
    assert row_counts(store_file) == (5, 5, 8)


def test_files_on_the_command_line_replace_those_of_the_rules(
    run: Run, rules_file: Path, store_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "a=b.log").write_text("2024-05-01T11:00:00Z request=z from zoe\n")
    run("ingest", "--rules", rules_file, "--db", store_file, f"web={tmp_path / 'a=b.log'}")
    assert row_counts(store_file) == (3, 3, 4)


def test_the_store_may_be_named_by_the_environment(
    run: Run, rules_file: Path, store_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIBERSTORE_URL", f"duckdb:///{store_file}")
    assert run("ingest", "--rules", rules_file).code == 0
    assert len(run("logs", "--json").objects) == 5


# ---------------------------------------------------------------- logs, fibers, show, stats


@pytest.mark.parametrize("what", ["logs", "fibers", "memberships"])
def test_an_import_of_what_is_not_there_makes_no_store(
    run: Run, db_file: Path, tmp_path: Path, what: str
) -> None:
    assert_refused(run("import", what, tmp_path / "none.csv", "--db", db_file), "none.csv does not exist")
    (tmp_path / "logs.txt").touch()
    assert_refused(run("import", what, tmp_path / "logs.txt", "--db", db_file), "must end in .parquet, .csv")
    assert not db_file.exists()


def test_one_of_a_thing_is_told_in_the_singular(
    run: Run, store: Path, store_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "logs.jsonl"
    assert ": 1 row; " in run("export", "logs", path, "--db", store, "--contains", "continued").out
    assert run("import", "logs", path, "--db", store_file).out.startswith("1 new log; ")
    assert run("import", "logs", path, "--db", store_file).out.startswith("0 new logs; ")


def test_imported_logs_get_the_config_version_that_is_given(
    run: Run, store_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "logs.jsonl"
    text = '"log_id": "%s", "timestamp": "2024-02-29T12:00:00Z", "source_id": "web", "raw_text": "GET /"'
    path.write_text(f"{{{text % UUID(int=1)}}}\n")
    result = run("import", "logs", path, "--db", store_file, "--config-version", "00000000000000ff")
    assert result.out.startswith("1 new log; ")
    with DuckDBStorage(store_file) as storage:
        assert [row.config_version for row in storage.logs.iter_records()] == [255]
    assert run("import", "logs", path, "--db", store_file, "--config-version", "ff").code == 2


def test_logs_in_a_pipe_are_tab_separated_and_whole(run: Run, store: Path) -> None:
    result = run("logs", "--db", store)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == "log_id\ttimestamp\tsource_id\traw_text"
    assert [row[1][11:] for row in result.rows] == [
        "10:00:00Z", "10:00:00Z", "10:00:01Z", "10:00:02Z", "10:05:00Z"
    ]  # fmt: skip
    assert {row[2] for row in result.rows[:2]} == {"web", "db"}
    assert UUID(result.rows[0][0]).version == 7
    assert result.rows[-1][3] == r"2024-05-01T10:05:00Z request=c3 from ann\n  continued"


def test_control_characters_in_logs_are_shown_not_obeyed(run: Run, store: Path) -> None:
    out = run("logs", "--db", store).out
    assert r"[bold]select[/bold] \x1b[31mred\x07 \x9b2J\ttab \u202eback" in out
    assert "[/] :smile: done" in out


def test_logs_as_json(run: Run, store: Path) -> None:
    found = run("logs", "--db", store, "--json").objects
    with DuckDBStorage(store, read_only=True) as storage:
        stored = storage.query_logs_by_time(
            datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
        )
    assert [log["log_id"] for log in found] == [str(log.log_id) for log in stored]
    assert [log["raw_text"] for log in found] == [log.raw_text for log in stored]
    assert {log["timestamp"] for log in found[:2]} == {"2024-05-01T10:00:00Z"}
    assert set(found[0]) == {
        "log_id", "timestamp", "source_id", "raw_text", "ingestion_time", "config_version"
    }  # fmt: skip
    assert found[0]["ingestion_time"].endswith("Z")


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (("--start", "2024-05-01T10:00:02Z"), ["done", "continued"]),
        (("--start", "2024-05-01T12:00:01+02:00", "--end", "2024-05-01T10:00:02Z"), ["bob", "done"]),
        (("--start", "2025-01-01T00:00:00Z"), []),
        (("--start", "2024-05-01T10:00:02Z", "--limit", "1"), ["done"]),
    ],
)
def test_logs_of_a_range_of_time_and_of_a_page(
    run: Run, store: Path, options: tuple[str, ...], texts: list[str]
) -> None:
    found = run("logs", "--db", store, "--json", *options).objects
    assert [log["raw_text"].split()[-1] for log in found] == texts


def test_fibers_of_all_types_in_total_order(run: Run, store: Path) -> None:
    result = run("fibers", "--db", store)
    assert result.err == ""
    names = "fiber_id fiber_type first_activity last_activity duration_s closed"
    names += " log_count source_ids attributes keys"
    assert result.out.splitlines()[0].split("\t") == names.split()
    assert [row[2][11:] for row in result.rows] == [
        "10:00:00Z", "10:00:00Z", "10:00:01Z", "10:00:01Z", "10:05:00Z"
    ]  # fmt: skip
    assert [row[0] for row in result.rows] == [
        fiber_id for _, fiber_id in sorted((row[2], row[0]) for row in result.rows)
    ]
    at_10, after = "2024-05-01T10:00:00Z", "2024-05-01T10:00:01Z"
    assert all(row[-1] == row[-2] for row in result.rows)
    assert sorted(row[1:-1] for row in result.rows[:4]) == [
        ["client", at_10, "2024-05-01T10:05:00Z", "300.0", "false", "2", '["web"]', '{"client":["ann"]}'],
        ["client", after, after, "0.0", "false", "1", '["web"]', '{"client":["bob"]}'],
        ["request", at_10, "2024-05-01T10:00:02Z", "2.0", "true", "3", '["db","web"]', '{"request":["a1"]}'],
        ["request", after, after, "0.0", "true", "1", '["web"]', '{"request":["b2"]}'],
    ]


def test_fibers_of_one_type_and_of_a_page(run: Run, store: Path) -> None:
    page = ("fibers", "--db", store, "--type", "request", "--limit", "1", "--json")
    first = run(*page)
    result = run(*page, "--cursor", told_cursor(first))
    found = result.objects
    assert (len(first.objects), len(found)) == (1, 1)
    assert UUID(found[0].pop("fiber_id")).version == 7
    assert len(found[0].pop("config_version")) == 16
    assert found[0] == {
        "fiber_type": "request",
        "attributes": {"request": ["b2"]},
        "keys": {"request": ["b2"]},
        "first_activity": "2024-05-01T10:00:01Z",
        "last_activity": "2024-05-01T10:00:01Z",
        "closed": True,
        "duration_s": 0.0,
        "log_count": 1,
        "source_ids": ["web"],
        "first_log": "2024-05-01T10:00:01Z",
        "last_log": "2024-05-01T10:00:01Z",
    }
    last = run(*page, "--cursor", told_cursor(result))
    assert ([fiber["attributes"] for fiber in last.objects], last.err) == ([{"request": ["c3"]}], "")
    assert run("fibers", "--db", store, "--type", "reques", "--json").out == ""


def test_a_pipe_gets_all_pages_and_a_limit_is_told_with_a_cursor(run: Run, store_file: Path) -> None:
    start = datetime(2024, 5, 1, tzinfo=UTC)
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(
            LogRecord(timestamp=start + timedelta(seconds=number), source_id="s", raw_text=f"line {number}")
            for number in range(1_001)
        )
    whole = run("logs", "--db", store_file)
    assert [row[-1] for row in whole.rows] == [f"line {number}" for number in range(1_001)]
    assert whole.err == ""
    assert run("grep", "line", "--db", store_file, "--format", "raw").out.splitlines()[1_000] == "line 1000"
    shown, found = on_a_terminal(
        [["logs", "--db", store_file], ["logs", "--db", store_file, "--format", "raw"]]
    )
    assert "fiberstore: there is more; --limit N shows more," in plain(shown)
    assert len(found.splitlines()) == 1_001
    result = run("logs", "--db", store_file, "--json", "--limit", "1000", "--since", "2024-05-01")
    assert len(result.objects) == 1_000
    assert "the same command with --start 2024-05-01T00:00:00Z --cursor " in result.err
    rest = run(
        *("logs", "--db", store_file, "--json"),
        *("--start", "2024-05-01T00:00:00Z", "--cursor", told_cursor(result)),
    )
    assert ([log["raw_text"] for log in rest.objects], rest.err) == (["line 1000"], "")


def fiber_of_request(run: Run, store: Path, request: str) -> str:
    where = f'attributes["/request/0"] == "{request}"'
    (found,) = run("fibers", "--db", store, "--where", where, "--json").objects
    return str(found["fiber_id"])


def fiber_ids(run: Run, store: Path) -> list[str]:
    return [fiber["fiber_id"] for fiber in run("fibers", "--db", store, "--json").objects]


def test_show_prints_a_fiber_and_its_lines_in_the_order_of_time(run: Run, store: Path) -> None:
    fiber_id = fiber_of_request(run, store, "a1")
    result = run("show", fiber_id, "--db", store)
    head, _, lines = result.out.partition("\n\n")
    assert (result.code, result.err) == (0, "")
    assert head.splitlines()[1].startswith(f"{fiber_id}\trequest\t2024-05-01T10:00:00Z\t")
    assert [line.split("\t")[1] for line in lines.splitlines()] == [
        "timestamp",
        "2024-05-01T10:00:00Z",
        "2024-05-01T10:00:00Z",
        "2024-05-01T10:00:02Z",
    ]
    (shown,) = run("show", fiber_id.upper().replace("-", ""), "--db", store, "--json").objects
    assert shown["fiber_id"] == fiber_id
    assert shown["log_count"] == 3
    assert shown["logs"][-1]["raw_text"].endswith(":smile: done")


def test_show_takes_the_beginning_of_an_id(run: Run, store: Path) -> None:
    ids = fiber_ids(run, store)
    late = next(fiber_id for fiber_id in ids if fiber_id[:13] not in {other[:13] for other in ids[:4]})
    assert run("show", late[:13], "--db", store, "--json").objects[0]["fiber_id"] == late
    result = run("show", ids[0][:13], "--db", store)
    assert_refused(result, "give more digits")
    assert re.findall(r"[\w-]{36}", result.err) == sorted(
        fiber_id for fiber_id in ids if fiber_id[:13] == ids[0][:13]
    )
    assert_refused(
        run("show", "0000", "--db", store),
        "begins with 0000; fiberstore fibers lists them",
    )
    assert_refused(
        run("show", "f" * 32, "--db", store), "no fiber has the id ffffffff-ffff-ffff-ffff-ffffffffffff;"
    )


def test_more_candidates_than_fit_in_a_line_are_cut(run: Run, store_file: Path) -> None:
    now = datetime(2024, 5, 1, tzinfo=UTC)
    with DuckDBStorage(store_file) as storage:
        for number in range(7):
            storage.write_fiber(
                FiberRecord(
                    fiber_id=UUID(int=number),
                    fiber_type="t",
                    config_version=0,
                    first_activity=now,
                    last_activity=now,
                )
            )
    result = run("show", "0000", "--db", store_file)
    assert_refused(result, "0000-000000000004 and more")
    assert len(re.findall(r"[\w-]{36}", result.err)) == 5


def test_show_prints_every_line_of_a_long_fiber(run: Run, store_file: Path) -> None:
    start = datetime(2024, 5, 1, tzinfo=UTC)
    logs = [
        LogRecord(timestamp=start + timedelta(seconds=number), source_id="s", raw_text=f"line {number}")
        for number in range(1_500)
    ]
    fiber = FiberRecord(
        fiber_id=UUID(int=1), fiber_type="t", config_version=0, first_activity=start, last_activity=start
    )
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(logs)
        storage.write_fiber(fiber)
        storage.write_memberships(
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=0) for log in logs
        )
    (shown,) = run("show", str(fiber.fiber_id), "--db", store_file, "--json").objects
    assert [log["raw_text"] for log in shown["logs"]] == [log.raw_text for log in logs]
    assert shown["attributes"] is None


def test_stats_count_what_is_there(run: Run, store: Path) -> None:
    (found,) = run("stats", "--db", store, "--json").objects
    (version,) = found.pop("config_versions")
    assert len(version.pop("config_version")) == 16
    assert version == {"active": True, "logs": 5, "fibers": 5}
    assert found.pop("file_bytes") >= store.stat().st_size
    assert found == {
        "file": str(store),
        "revision": "0005",
        "tables": {"raw_logs": 5, "fibers": 5, "fiber_memberships": 8},
        "first": "2024-05-01T10:00:00Z",
        "last": "2024-05-01T10:05:00Z",
        "sources": {"db": 2, "web": 3},
        "fiber_types": [
            {"fiber_type": "client", "open": 2, "closed": 0},
            {"fiber_type": "request", "open": 1, "closed": 2},
        ],
    }
    rows = run("stats", "--db", store).rows
    assert ["rows", "fiber_memberships", "8"] in rows
    assert ["source_logs", "web", "3"] in rows
    assert ["closed_fibers", "request", "2"] in rows
    assert ["time", "last", "2024-05-01T10:05:00Z"] in rows


def test_stats_of_an_empty_store(run: Run, store_file: Path) -> None:
    (found,) = run("stats", "--db", store_file, "--json").objects
    assert (found["first"], found["last"], found["sources"]) == (None, None, {})
    assert run("stats", "--db", store_file).code == 0
    assert run("logs", "--db", store_file).out == "log_id\ttimestamp\tsource_id\traw_text\n"


# ---------------------------------------------------------------- bad input


READERS = [("logs",), ("fibers",), ("show", "0193"), ("stats",), ("db", "current"), ("db", "check")]


@pytest.mark.parametrize("command", READERS)
def test_commands_that_read_never_create_a_file(run: Run, db_file: Path, command: tuple[str, ...]) -> None:
    assert_refused(run(*command, "--db", db_file), str(db_file), "does not exist")
    assert not db_file.exists()


def bad_folder(tmp_path: Path) -> Path:
    return tmp_path / "none" / "store.duckdb"


def bad_directory(tmp_path: Path) -> Path:
    return tmp_path


def bad_bytes(tmp_path: Path) -> Path:
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 64)
    return tmp_path / "bytes"


def bad_text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text("this is no database\n" * 500)
    return tmp_path / "text"


@parametrize_mostly_slow("command", [*READERS, ("db", "upgrade"), ("ingest",), ("demo",)], quick=2)
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (bad_folder, "does not exist"),
        (bad_directory, "is a folder"),
        (bad_bytes, "is not a DuckDB database"),
        (bad_text, "is not a DuckDB database"),
    ],
)
def test_a_path_that_is_no_store(
    *,
    run: Run,
    rules_file: Path,
    store: Path,
    command: tuple[str, ...],
    make: Callable[[Path], Path],
    word: str,
) -> None:
    path = make(rules_file.parent)
    content = path.read_bytes() if path.is_file() else None
    before = sorted(rules_file.parent.iterdir())
    options = ("--rules", rules_file) if command == ("ingest",) else ()
    assert_refused(run(*command, *options, "--db", path), word)
    assert sorted(rules_file.parent.iterdir()) == before
    assert content is None or path.read_bytes() == content
    assert run("logs", "--db", store).code == 0


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mysql://localhost/x", "mysql:// is not supported"),
        ("", "the target is empty"),
        (":memory:", "read_only"),
    ],
)
def test_a_store_that_cannot_be_read(run: Run, url: str, word: str) -> None:
    assert_refused(run("logs", "--db", url), word)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (r"'request=(?P<request>\w+)'", "'request=(?P<request>'", ("patterns.0.regex", "no regular expr")),
        ('source = "web"', 'source = "ftp"', ("patterns.0.source", "'ftp' is not a declared source")),
        ('path = "web.log"', 'path = "none.log"', ("sources.web.path", "none.log", "No such file")),
        ("[sources.web]", "[sources.web", ("line 2",)),
    ],
)
def test_rules_that_cannot_be_used(
    *, run: Run, rules_file: Path, db_file: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    rules_file.write_text(RULES.replace(old, new, 1))
    assert_refused(run("ingest", "--rules", rules_file, "--db", db_file), str(rules_file), *words)
    assert not db_file.exists()


def test_every_problem_of_the_rules_has_its_line(run: Run, rules_file: Path, db_file: Path) -> None:
    rules_file.write_text(RULES.replace('"60s"', '"60"').replace('"infinite"', '"never"'))
    lines = run("ingest", "--rules", rules_file, "--db", db_file).err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.match(rf"fiberstore: {re.escape(str(rules_file))}:\d+: fibers\.", line)


def test_a_rules_file_that_is_missing(run: Run, tmp_path: Path, db_file: Path) -> None:
    result = run("ingest", "--rules", tmp_path / "none.toml", "--db", db_file)
    assert_refused(result, "none.toml", "No such file")
    assert not db_file.exists()


def test_a_file_for_an_unknown_source(run: Run, rules_file: Path, db_file: Path) -> None:
    result = run("ingest", "--rules", rules_file, "--db", db_file, "ftp=web.log")
    assert_refused(result, "sources.ftp", "use one of web, db")


@parametrize_mostly_slow(
    ("line", "words"),
    [
        (b"2024-05-01T10:00:99Z request=d4\n", ("web.log:5", "does not fit format")),
        (b"yesterday request=d4\n", ("web.log:5", "'yesterday'")),
        (b"2024-05-01T11:00:00Z caf\xe9\n", ("web.log:5", "0xe9", "is not utf-8")),
        (b"2024-05-01T11:00:00Z a\x1b[2J\0b\n", ("web.log:5", "NUL")),
        (b"\x1b[2J request=d4\n", (r"\x1b[2J",)),
    ],
)
def test_a_log_file_that_cannot_be_read(
    run: Run, rules_file: Path, store_file: Path, line: bytes, words: tuple[str, ...]
) -> None:
    (rules_file.parent / "web.log").write_bytes(WEB.encode() + line)
    result = run("ingest", "--rules", rules_file, "--db", store_file)
    assert_refused(result, *words)
    assert "\x1b" not in result.err
    assert row_counts(store_file) == (0, 0, 0)
    write_files(rules_file.parent)
    assert run("ingest", "--rules", rules_file, "--db", store_file).code == 0
    assert row_counts(store_file) == (5, 5, 8)


@pytest.mark.slow
def test_crlf_a_lone_cr_and_a_line_of_ten_megabytes(run: Run, rules_file: Path, store_file: Path) -> None:
    long = "2024-05-01T11:00:00Z request=d4 " + "x" * 10_000_000
    text = f"2024-05-01T10:00:00Z request=a1 from ann\r\n2024-05-01T10:00:01Z a\rb from bob\r\n{long}\r\n"
    (rules_file.parent / "web.log").write_bytes(text.encode())
    assert run("ingest", "--rules", rules_file, "--db", store_file, "--json").objects[0]["logs_new"] == 5
    texts = [log["raw_text"] for log in run("logs", "--db", store_file, "--json").objects]
    assert "2024-05-01T10:00:00Z request=a1 from ann" in texts
    assert "2024-05-01T10:00:01Z a\rb from bob" in texts
    assert texts[-1] == long
    out = run("logs", "--db", store_file).out
    assert r"a\rb from bob" in out
    assert out.endswith(f"{long}\n")


def test_empty_log_files(run: Run, rules_file: Path, store_file: Path) -> None:
    for name in ("web.log", "db.log"):
        (rules_file.parent / name).write_text("")
    result = run("ingest", "--rules", rules_file, "--db", store_file)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("0 logs read, 0 new; ")
    assert row_counts(store_file) == (0, 0, 0)


def test_a_limit_that_no_database_can_count_to(run: Run, store: Path) -> None:
    assert_refused(run("logs", "--db", store, "--limit", str(2**63)), "2**63 - 1")
    assert_refused(run("fibers", "--db", store, "--limit", str(2**63)), "2**63 - 1")
    assert len(run("fibers", "--db", store, "--limit", str(2**63 - 2), "--json").objects) == 5


# ---------------------------------------------------------------- on a terminal


@parametrize_mostly_slow("command", ["logs", "fibers", "stats", "histogram", "timeline"])
def test_colours_that_are_forced_make_no_terminal_of_a_pipe(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    plain = run(command, "--db", store)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(command, "--db", store).out == plain.out
    assert "\t" in plain.out


def test_colours_that_are_forced_make_no_bar_of_a_pipe(
    run: Run, store: Path, rules_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("export", "logs", tmp_path / "logs.jsonl", "--db", store).err == ""
    assert run("ingest", "--rules", rules_file, "--db", tmp_path / "s.duckdb").err == ""


def test_on_a_terminal_tables_fit_and_sources_have_colours(run: Run, store: Path) -> None:
    fiber_id = fiber_of_request(run, store, "a1")
    commands = ["fibers"], ["show", fiber_id], ["logs"], ["stats"], ["logs", "--start", "2030-01-01T00:00Z"]
    shown = on_a_terminal([[*command, "--db", store] for command in commands])

    fibers, show, logs, stats, none = (plain(output).strip("\n") for output in shown)
    assert max(len(line) for output in shown for line in plain(output).splitlines()) <= 80
    lines = fibers.splitlines()
    begin = lines.index("request  2024-05-01T10:00:00Z     2.00 s      3 logs  closed")
    assert lines[begin + 1] == "  request=a1"
    assert "request, closed" in show
    for table in (show, logs):
        text = "".join(re.sub(r"\b018f\w{16,}", "", table).split())
        assert r"[bold]select[/bold]\x1b[31mred\x07" in text
        assert "[/]:smile:done" in text
    assert "continued" in logs.split()
    assert "fiber_memberships" in stats
    assert none == "no logs"
    colours = set(re.findall(r"\x1b\[(3\dm)(?:web|db)", shown[2]))
    assert len(colours) == 2


def test_a_fiber_without_logs_is_shown(db_file: Path) -> None:
    at = datetime(2024, 5, 1, tzinfo=UTC)
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        storage.write_fiber(
            FiberRecord(
                fiber_id=UUID(int=1),
                fiber_type="request",
                config_version=0,
                attributes=None,
                first_activity=at,
                last_activity=at,
                closed=False,
            )
        )
    (shown,) = on_a_terminal([["show", "00000000", "--db", db_file]])
    assert "request, open" in plain(shown)


# ---------------------------------------------------------------- times, ids, shapes


@pytest.mark.slow
def test_times_are_relative_plain_and_in_the_zone_that_is_named(run: Run, db_file: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        storage.write_logs(
            LogRecord(timestamp=now - age, source_id="s", raw_text=str(age))
            for age in (timedelta(minutes=30), timedelta(hours=2), timedelta(days=3))
        )

    def found(*options: str) -> int:
        return len(run("logs", "--db", db_file, *options, "--format", "raw").out.splitlines())

    assert (found("--since", "1h"), found("--start", "-90min"), found("--since", "4d", "--until", "60m")) == (
        1,
        1,
        2,
    )
    assert found("--since", "500ms") == 0
    assert found("--where", "timestamp > '1h'") == 1
    assert found("--until", "yesterday") == 1
    assert found("--until", "now") == 3
    plain_time = (now - timedelta(hours=2)).replace(tzinfo=None).isoformat()
    assert found("--start", plain_time, "--end", plain_time.replace("T", " ")) == 1
    east = (now - timedelta(hours=2)).astimezone(ZoneInfo("Asia/Kolkata")).replace(tzinfo=None).isoformat()
    assert found("--start", east, "--end", east, "--tz", "Asia/Kolkata") == 1
    shown = run("logs", "--db", db_file, "--tz", "Asia/Kolkata", "--start", east)
    assert shown.rows[0][1] == f"{east}+05:30"
    assert run("logs", "--db", db_file, "--limit", "1").rows[0][1].endswith("Z")


def test_a_log_is_found_by_the_beginning_of_its_id(run: Run, store: Path) -> None:
    whole = run("logs", "--db", store, "--json").objects[-1]["log_id"]
    shown = run("context", whole.replace("-", "")[:22], "--db", store, "-C", "0", "--json").objects
    assert [log["log_id"] for log in shown] == [whole]
    assert_refused(
        run("context", whole[:4], "--db", store), "is the beginning of several ids, give more digits"
    )


def test_json_has_the_names_of_the_columns(run: Run, store: Path) -> None:
    listing = (
        ("logs",),
        ("fibers",),
        ("keys",),
        ("keys", "request"),
        ("histogram",),
        ("versions",),
        ("timeline",),
    )
    for command in listing:
        names = run(*command, "--db", store).out.splitlines()[0].split("\t")
        if command == ("timeline",):
            (first, *_) = run(*command, "--db", store, "--json").objects
            assert {*names} <= {*first, *first["points"][0]}
        else:
            assert {*names} <= {*run(*command, "--db", store, "--json").objects[0]}


def test_the_config_version_of_json_is_what_version_takes(run: Run, store: Path) -> None:
    version = run("logs", "--db", store, "--json").objects[0]["config_version"]
    assert {fiber["config_version"] for fiber in run("fibers", "--db", store, "--json").objects} == {version}
    for command in ("logs", "grep .", "tail"):
        found = run(*command.split(), "--db", store, "--key", "request=c3", "--version", version, "--json")
        assert (found.code, len(found.objects)) == (0, 1)
    counted = run("histogram", "--db", store, "--key", "request=a1", "--version", version, "--json").objects
    assert sum(bucket["count"] for bucket in counted) == 3
    assert len(run("logs", "--db", store, "--version", version, "--json").objects) == 5
