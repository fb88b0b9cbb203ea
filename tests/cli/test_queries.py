"""Filters, pages, grep, context, histogram and tail on the command line, in a pipe and on a terminal."""

import itertools
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from fiberstore import DuckDBStorage, StoredLog
from fiberstore.cli.commands.tail import FileStore, TailFollower
from fiberstore.cli.options import LogFilter
from fiberstore.cli.render import LogLines
from fiberstore.testing.examples import NOON, at, fiber, log, member, uid
from tests.support.command_line import (
    Result,
    Run,
    assert_refused,
    on_a_terminal,
    plain,
    read_terminal,
    runner,
    told_cursor,
)
from tests.support.parameters import parametrize_mostly_slow

EVIL = "\x1b[31mred\x07 [bold]timeout[/bold] \u202eback"
LOGS = [
    log(1, source="web", text="GET /cart timeout"),
    log(2, source="db", text="select Time out"),
    log(3, source="db", text=EVIL),
    log(4, source="web", text="GET /cart done"),
    log(5, source="web", text="a" * 2_000 + " timeout " + "z" * 2_000),
    log(6, 7_200, source="mail", text="a+b (sent)"),
]
FIBERS = [
    fiber(11, "request", {"user": "ada", "n": 1}, first=at(1), last=at(4), closed=True),
    fiber(12, "request", {"user": "bob", "n": 20}, first=at(2), last=at(3)),
    fiber(13, "login", None, first=at(5), last=at(5)),
    fiber(14, "job", {"user": "ada"}, first=at(6), last=at(7_200), closed=True),
]
MEMBERS = [member(1, 11), member(2, 11), member(4, 11), member(2, 12), member(3, 12), member(6, 14)]


def fill(db: Path) -> None:
    with DuckDBStorage(db) as storage:
        storage.init_schema()
        storage.write_logs(LOGS)
        for record in FIBERS:
            storage.write_fiber(record)
        storage.write_memberships(MEMBERS)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    db = tmp_path_factory.mktemp("queries") / "s.duckdb"
    fill(db)
    with DuckDBStorage(db, read_only=True):  # to open a file takes DuckDB far longer than to read it
        yield db


@pytest.fixture
def store(shared_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A filled store that tests only read, and that the environment names."""
    monkeypatch.setenv("FIBERSTORE_URL", str(shared_store))
    return shared_store


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""
    return runner(capsys)


def printed_numbers(result: Result) -> list[int]:
    """Return the numbers in the ids of what a command has printed."""
    assert result.code == 0, result.err
    ids = [found["log_id"] if "log_id" in found else found["fiber_id"] for found in result.objects]
    return [UUID(id_).int for id_ in ids]


def numbers(run: Run, command: str, *arguments: str) -> list[int]:
    return printed_numbers(run(command, "--json", *arguments))


# ---------------------------------------------------------------- filters and orders


@parametrize_mostly_slow(
    ("options", "found"),
    [
        ((), [1, 2, 3, 4, 5, 6]),
        (("--order", "newest"), [6, 5, 4, 3, 2, 1]),
        (("--start", at(2).isoformat(), "--end", at(4).isoformat()), [2, 3, 4]),
        (("--source", "web"), [1, 4, 5]),
        (("--source", "web", "--source", "mail"), [1, 4, 5, 6]),
        (("--contains", "timeout"), [1, 3, 5]),
        (("--contains", "TIMEOUT"), []),
        (("--fiber", str(uid(11))), [1, 2, 4]),
        (("--fiber", uid(11).hex.upper()), [1, 2, 4]),
        (("--where", 'source_id == "db" or raw_text.startswith("a+")'), [2, 3, 6]),
        (("--where", "fibers.any(closed)"), [1, 2, 4, 6]),
        (("--source", "web", "--contains", "GET", "--fiber", str(uid(11)), "--where",
          "not raw_text.contains('done')", "--start", at(0).isoformat(), "--order", "newest"), [1]),
    ], quick=7)  # fmt: skip
def test_filters_of_logs(run: Run, store: Path, options: tuple[str, ...], found: list[int]) -> None:
    assert numbers(run, "logs", *options) == found
    assert numbers(run, "grep", "", *options) == found
    if "--order" not in options:
        run_tail = run("tail", "--position", "", "--json", *options)
        assert [json.loads(line)["raw_text"] for line in run_tail.out.splitlines()] == [
            LOGS[number - 1].raw_text for number in found
        ]


def test_a_source_that_no_log_has_is_told(run: Run, store: Path) -> None:
    result = run("logs", "--db", store, "--source", "wbe", "--source", "web", "--json")
    assert [log["raw_text"] for log in result.objects] == [LOGS[number - 1].raw_text for number in (1, 4, 5)]
    assert result.err == "fiberstore: no log of source 'wbe' is stored; fiberstore stats lists the sources\n"


def test_a_type_that_no_fiber_has_is_told(run: Run, store: Path) -> None:
    result = run("fibers", "--db", store, "--type", "requet", "--json")
    assert (result.out, result.objects) == ("", [])
    assert result.err == "fiberstore: no fiber of type 'requet' is stored; fiberstore stats lists the types\n"


@pytest.mark.parametrize("command", ["logs", "fibers", "histogram"])
def test_times_in_the_wrong_order_are_refused_and_one_moment_is_told(
    run: Run, store: Path, command: str
) -> None:
    wrong = run(command, "--db", store, "--since", "2024-05-02", "--until", "2024-05-01")
    assert (wrong.code, wrong.out) == (2, "")
    assert "'--start': 2024-05-02T00:00:00Z is after --end" in wrong.err
    one_day = run(command, "--db", store, "--since", "2024-05-01", "--until", "2024-05-01")
    assert "one moment, 2024-05-01T00:00:00Z; a date alone is its first moment\n" in one_day.err


@parametrize_mostly_slow(
    ("options", "found"),
    [
        ((), [11, 12, 13, 14]),
        (("--order", "newest"), [14, 13, 12, 11]),
        (("--order", "longest"), [14, 11, 12, 13]),
        (("--order", "most-logs"), [11, 12, 14, 13]),
        (("--order", "most_logs"), [11, 12, 14, 13]),
        (("--type", "request"), [11, 12]),
        (("--type", "login", "--type", "job"), [13, 14]),
        (("--closed",), [11, 14]),
        (("--open",), [12, 13]),
        (("--start", at(4).isoformat()), [11, 13, 14]),
        (("--end", at(2).isoformat()), [11, 12]),
        (("--start", at(3).isoformat(), "--end", at(4).isoformat()), [11, 12]),
        (("--where", 'attributes["/n"] > 5'), [12]),
        (("--where", 'logs.any(source_id == "web")'), [11]),
        (("--where", 'duration > "1.5h"'), [14]),
        (("--type", "request", "--type", "job", "--closed", "--start", at(5).isoformat(),
          "--where", 'attributes["/user"] == "ada"'), [14]),
    ], quick=9)  # fmt: skip
def test_filters_of_fibers(run: Run, store: Path, options: tuple[str, ...], found: list[int]) -> None:
    assert numbers(run, "fibers", *options) == found


@pytest.mark.parametrize(
    ("command", "whole"),
    [
        (("logs", "--order", "newest"), [6, 5, 4, 3, 2, 1]),
        (("grep", "-v", "select"), [1, 3, 4, 5, 6]),
        (("fibers", "--order", "longest"), [14, 11, 12, 13]),
    ],
)
def test_pages_put_end_to_end_are_the_whole(
    run: Run, store: Path, command: tuple[str, ...], whole: list[int]
) -> None:
    result = run(*command, "--limit", "2", "--json")
    found = printed_numbers(result)
    while result.err:
        result = run(*command, "--limit", "2", "--json", "--cursor", told_cursor(result))
        found += printed_numbers(result)
    assert found == whole


def test_a_cursor_of_another_question_is_refused(run: Run, store: Path) -> None:
    cursor = told_cursor(run("logs", "--limit", "2"))
    for other in (("logs", "--source", "web"), ("logs", "--order", "newest"), ("fibers",)):
        assert_refused(run(*other, "--cursor", cursor), "the cursor belongs to another query")
    assert_refused(run("logs", "--cursor", cursor[:-2]), "is no cursor, or not the whole of one")


def test_what_was_stored_behind_the_page_is_told_with_the_next(run: Run, db_file: Path) -> None:
    fill(db_file)
    cursor = told_cursor(run("logs", "--limit", "3", "--db", db_file))
    with DuckDBStorage(db_file) as storage:
        storage.write_logs([log(20, 0)])
    result = run("logs", "--limit", "3", "--db", db_file, "--cursor", cursor, "--json")
    assert [found["log_id"] for found in result.objects] == [str(uid(number)) for number in (20, 4, 5, 6)]
    told = "1 were stored meanwhile, and begin a page; their place is on an earlier page"
    assert result.err == f"fiberstore: {told}\n"


def test_an_unknown_whole_id_is_told_as_an_unknown_beginning_is(run: Run, store: Path) -> None:
    for text in (str(uid(99)), uid(99).hex):
        assert_refused(run("logs", "--fiber", text), f"no fiber has the id {uid(99)};")


def test_the_beginning_of_the_id_of_a_fiber_is_enough(run: Run, store_file: Path) -> None:
    long_id = 0x0193_AF35 << 96
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(LOGS)
        storage.write_fiber(fiber(long_id, first=NOON))
        storage.write_memberships([member(2, long_id)])
    assert numbers(run, "logs", "--db", str(store_file), "--fiber", "0193-AF") == [2]
    assert_refused(
        run("logs", "--db", store_file, "--fiber", "0193b"), "no fiber has an id that begins with 0193b"
    )


# ---------------------------------------------------------------- grep


@parametrize_mostly_slow(
    ("arguments", "found"),
    [
        (("timeout",), [1, 3, 5]),
        (("time ?out",), [1, 3, 5]),
        (("-i", "TIME ?out"), [1, 2, 3, 5]),
        (("-i", "select|done"), [2, 4]),
        (("-F", "a+b ("), [6]),
        (("-F", "-i", "A+B ("), [6]),
        (("a+b",), []),
        (("-v", "timeout"), [2, 4, 6]),
        (("-v", "-F", "-i", "GET /CART"), [2, 3, 5, 6]),
        (("timeout", "--source", "web", "--order", "newest"), [5, 1]),
        (("--limit", "1", "timeout"), [1]),
    ],
    quick=6,
)
def test_grep_finds_by_a_pattern(run: Run, store: Path, arguments: tuple[str, ...], found: list[int]) -> None:
    assert numbers(run, "grep", *arguments) == found
    if "--limit" not in arguments:
        assert run("grep", "-c", *arguments).out == f"{len(found)}\n"
        assert run("grep", "-c", *arguments, "--json").objects == [{"count": len(found)}]


def test_grep_that_finds_nothing_is_done_too(run: Run, store: Path) -> None:
    result = run("grep", "nowhere")
    assert (result.code, result.out, result.err) == (0, "log_id\ttimestamp\tsource_id\traw_text\n", "")


@pytest.mark.parametrize("pattern", [r"(?=a)", "(", r"(a)\1", "*", r"\8"])
def test_grep_refuses_what_is_no_pattern(run: Run, store: Path, pattern: str) -> None:
    result = run("grep", pattern)
    assert (result.code, result.out) == (2, "")
    assert "is no regular expression of RE2" in result.usage
    assert run("grep", "-F", pattern).code == 0


PLAIN_TEXTS = [
    ".",
    " ",
    "\t",
    "#",
    "a|b",
    "[x]",
    r"\d",
    r"\E",
    "é",
    "^$",
    "-",
    "~&",
    "{1}",
    "\n",
    "'\"",
    "日本",
]


@pytest.mark.slow
def test_fixed_strings_mean_themselves(run: Run, store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(log(number, text=f"<{text}>") for number, text in enumerate(PLAIN_TEXTS))
    with DuckDBStorage(store_file, read_only=True):  # to open it each time takes longer than to search it
        for number, text in enumerate(PLAIN_TEXTS):
            for options in (("-F",), ("-F", "-i")):
                assert numbers(run, "grep", *options, "--db", str(store_file), "--", f"<{text}>") == [number]


def test_grep_highlights_what_matches_on_a_terminal(store: Path) -> None:
    output, others, fixed, slow, empty = on_a_terminal(
        [
            ["grep", "-i", "time ?out"],
            ["grep", "-v", "timeout"],
            ["grep", "-F", "a+b ("],
            ["grep", "(a+)+$|timeout"],
            ["grep", r"\B|\Qtimeout"],
        ]
    )
    matches = re.findall(r"\x1b\[1;31m(.*?)\x1b\[0m", output)
    assert matches == ["timeout", "Time out", "timeout", "timeout"]
    assert r"\x1b[31mred\x07 [bold]timeout[/bold]" in plain(output)
    assert "…" + "a" * 20 in "".join(plain(output).split())
    assert "\x1b[1;31m" not in others
    assert re.findall(r"\x1b\[1;31m(.*?)\x1b\[0m", fixed) == ["a+b ("]
    assert len(re.findall(r"\x1b\[1;31m(.*?)\x1b\[0m", slow)) == 3
    assert max(map(len, plain(output).splitlines())) <= 80
    assert r"\u202eback" in plain(empty)


# ---------------------------------------------------------------- context


@parametrize_mostly_slow(
    ("options", "found"),
    [
        ((), [1, 2, 3, 4, 5, 6]),
        (("-C", "1"), [2, 3, 4]),
        (("-B", "1"), [2, 3, 4, 5, 6]),
        (("-A", "0"), [1, 2, 3]),
        (("-B", "0", "-A", "2"), [3, 4, 5]),
        (("-C", "0", "-A", "1"), [3, 4]),
        (("--within", "source"), [2, 3]),
        (("--within", "fibers"), [2, 3]),
        (("--source", "web", "-C", "1"), [1, 3, 4]),
    ],
    quick=5,
)
def test_context_has_the_neighbours(
    run: Run, store: Path, options: tuple[str, ...], found: list[int]
) -> None:
    assert numbers(run, "context", str(uid(3)), *options) == found
    offsets = [line["offset"] for line in run("context", uid(3).hex, *options, "--json").objects]
    middle = found.index(3)
    assert offsets == list(range(-middle, len(found) - middle))
    rows = run("context", str(uid(3)), *options).rows
    assert [[row[0], row[1]] for row in rows] == [
        [str(offset), str(uid(number))] for offset, number in zip(offsets, found, strict=True)
    ]


def test_context_of_a_log_that_is_not_there(run: Run, store: Path) -> None:
    assert_refused(run("context", str(uid(99))), f"no log has the id {uid(99)}; fiberstore logs lists")


def test_context_marks_the_log_on_a_terminal(store: Path) -> None:
    (output,) = on_a_terminal([["context", str(uid(3)), "-C", "1"]], columns=60)
    lines = plain(output).splitlines()
    marked = [line for line in lines if line.startswith("> ")]
    assert len(marked) == 1
    assert marked[0].split()[:3] == [">", "2024-02-29T12:00:03Z", "db"]
    assert r"\x1b[31mred\x07" in marked[0]
    assert sum(line.startswith("  2024-02-29T12:00:0") for line in lines) == 2
    assert max(map(len, lines)) <= 60


# ---------------------------------------------------------------- histogram


def test_histogram_counts_logs_in_steps(run: Run, store: Path) -> None:
    assert run("histogram", "--bucket", "1h").rows == [
        ["2024-02-29T12:00:00Z", "5"],
        ["2024-02-29T13:00:00Z", "0"],
        ["2024-02-29T14:00:00Z", "1"],
    ]
    assert run("histogram", "--bucket", "2s", "--end", at(4).isoformat(), "--json").objects == [
        {"start": "2024-02-29T12:00:00Z", "count": 1},
        {"start": "2024-02-29T12:00:02Z", "count": 2},
        {"start": "2024-02-29T12:00:04Z", "count": 1},
    ]
    assert run("histogram", "--bucket", "1d", "--by", "source", "--json").objects == [
        {"start": "2024-02-29T00:00:00Z", "source_id": name, "count": count}
        for name, count in (("db", 2), ("mail", 1), ("web", 3))
    ]
    some = ("--contains", "timeout", "--source", "web", "--where", "log_id != '" + uid(5).hex + "'")
    assert run("histogram", "--bucket", "90min", *some).rows == [["2024-02-29T12:00:00Z", "1"]]
    of_fiber = ("--bucket", "1h", "--fiber", str(uid(14)))
    assert run("histogram", *of_fiber).rows == [["2024-02-29T14:00:00Z", "1"]]
    assert run("histogram", "--start", at(9_000).isoformat(), "--end", at(8_000).isoformat()).rows == []


def test_histogram_counts_fibers_where_they_begin(run: Run, store: Path) -> None:
    assert run("histogram", "--fibers", "--bucket", "1h").rows == [["2024-02-29T12:00:00Z", "4"]]
    result = run(
        "histogram",
        "--fibers",
        "--bucket",
        "1h",
        "--by",
        "type",
        "--type",
        "request",
        "--type",
        "job",
        "--json",
    )
    assert result.objects == [
        {"start": "2024-02-29T12:00:00Z", "fiber_type": name, "count": count}
        for name, count in (("job", 1), ("request", 2))
    ]
    counted = run("histogram", "--fibers", "--where", "closed", "--bucket", "1s", "--end", at(2).isoformat())
    assert counted.rows == [["2024-02-29T12:00:01Z", "1"], ["2024-02-29T12:00:02Z", "0"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fibers", "--source", "web"), "'--source': is of logs; leave it out, or --fibers"),
        (("--fibers", "--contains", "a"), "'--contains': is of logs"),
        (("--fibers", "--fiber", "0193"), "'--fiber': is of logs"),
        (("--fibers", "--by", "source"), "'--by': must be type for fibers"),
        (("--type", "request"), "'--type': is of fibers; leave it out, or add --fibers"),
        (("--by", "type"), "'--by': must be source for logs"),
        (("--where", "closed"), "'--where': closed is no column; those of logs are"),
        (("--fibers", "--where", "source_id"), "'--where': source_id is no column; those of fibers are"),
        (("--bucket", "0s"), "'0s' is not positive"),
        (("--bucket", "hour"), "'hour' is no duration"),
    ],
)
def test_a_histogram_of_nothing_that_there_is(
    run: Run, store: Path, arguments: tuple[str, ...], says: str
) -> None:
    result = run("histogram", *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.usage


def test_too_many_steps_are_refused(run: Run, store: Path) -> None:
    assert_refused(run("histogram", "--bucket", "1us"), "100,000", "of width 1us;")
    assert_refused(run("histogram", "--bucket", "1.5ms"), "of width 1500us;")


@parametrize_mostly_slow(
    ("span", "width"),
    [
        (timedelta(0), None),
        (timedelta(milliseconds=59), timedelta(milliseconds=1)),
        (timedelta(milliseconds=60), timedelta(milliseconds=10)),
        (timedelta(seconds=59), timedelta(seconds=1)),
        (timedelta(hours=2), timedelta(minutes=5)),
        (timedelta(days=3), timedelta(hours=3)),
        (timedelta(days=59), timedelta(days=1)),
        (timedelta(days=20 * 365), timedelta(days=365)),
        (timedelta(days=1_000 * 365), timedelta(days=36_500)),
    ],
    quick=2,
)
@parametrize_mostly_slow("what", [(), ("--fibers",)])
def test_the_steps_of_a_histogram_are_as_wide_as_the_time_needs(
    run: Run, store_file: Path, span: timedelta, width: timedelta | None, what: tuple[str, ...]
) -> None:
    first = datetime(1970, 1, 1, tzinfo=UTC)
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(1, first), log(2, first + span)])
        for number, time in ((1, first), (2, first + span)):
            storage.write_fiber(fiber(number, first=time, last=time + timedelta(days=365)))
    result = run("histogram", "--db", store_file, *what, "--json")
    starts = [datetime.fromisoformat(found["start"]) for found in result.objects]
    assert len(starts) <= 60
    assert sum(found["count"] for found in result.objects) == 2
    assert {after - before for before, after in itertools.pairwise(starts)} == ({width} if width else set())
    bounds = ("--start", "1990-01-01T00:00Z", "--end", "1990-01-01T00:00:30Z")
    assert len(run("histogram", "--db", store_file, *what, *bounds).rows) == 31


def test_a_histogram_of_nothing_has_no_steps(run: Run, store_file: Path) -> None:
    assert (
        run("histogram", "--db", store_file).rows
        == run("histogram", "--db", store_file, "--fibers").rows
        == []
    )


@pytest.mark.parametrize("columns", [40, 200])
def test_the_bars_of_a_histogram_fit_the_terminal(store: Path, columns: int) -> None:
    single, by, none = on_a_terminal(
        [
            ["histogram", "--bucket", "1h"],
            ["histogram", "--by", "source", "--bucket", "1d"],
            ["histogram", "--fibers", "--where", "duration < 0"],
        ],
        columns,
    )
    lines = [line.rstrip() for line in plain(single).splitlines()]
    assert max(map(len, lines)) == columns
    most, zero, one = (line.count("█") for line in lines[1:])
    assert most == columns - len("2024-02-29T12:00:00Z") - len("count") - 4
    assert zero == 0
    assert 0 < one <= most / 5
    assert [line.split()[-1] for line in lines[1:]] == ["5", "0", "1"]
    assert [line.split()[1] for line in plain(by).splitlines()[1:]] == ["db", "mail", "web"]
    assert plain(none) == "nothing to count\n"


# ---------------------------------------------------------------- tail


def position_of(err: str) -> str:
    told = re.search(r"^fiberstore: --position (\S+) resumes from here$", err, re.MULTILINE)
    assert told is not None, err
    (position,) = shlex.split(told[1])
    return position


def test_tail_prints_the_newest_in_the_order_of_time(run: Run, store: Path) -> None:
    assert numbers(run, "tail", "-n", "2") == [5, 6]
    assert numbers(run, "tail") == [1, 2, 3, 4, 5, 6]
    assert numbers(run, "tail", "-n", "0") == []
    assert numbers(run, "tail", "-n", "2", "--source", "web") == [4, 5]
    assert run("tail", "-n", "1").out == (
        f"log_id\ttimestamp\tsource_id\traw_text\n{uid(6)}\t2024-02-29T14:00:00Z\tmail\ta+b (sent)\n"
    )


def test_the_next_tail_goes_on_where_one_ended(run: Run, db_file: Path) -> None:
    fill(db_file)
    position = position_of(run("tail", "--db", db_file, "-n", "1").err)
    with DuckDBStorage(db_file) as storage:
        storage.write_logs([log(21, 0), log(20, -5)])
    result = run("tail", "--db", db_file, "--position", position, "--json")
    assert [found["log_id"] for found in result.objects] == [str(uid(21)), str(uid(20))]
    nothing = run("tail", "--db", db_file, "--position", position_of(result.err), "--json")
    assert (nothing.out, position_of(nothing.err)) == ("", position_of(result.err))


def test_a_position_is_where_to_begin(run: Run, store: Path) -> None:
    result = run("tail", "--position", "", "-n", "1")
    assert (result.code, result.out) == (2, "")
    assert "--position says where to begin" in result.usage
    assert_refused(run("tail", "--position", "x"), "'x' is no cursor")


@contextmanager
def following(db: Path, *options: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fiberstore", "tail", "-f", "--db", str(db), *options]
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_numbers(process: subprocess.Popen[str], count: int) -> list[int]:
    assert process.stdout is not None
    return [int(json.loads(process.stdout.readline())["log_id"].replace("-", ""), 16) for _ in range(count)]


def interrupt(process: subprocess.Popen[str]) -> str:
    """End it as Ctrl-C does; nothing more may be printed but the position, which is returned."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    return position_of(err)


@pytest.mark.slow
def test_tail_follows_a_store_that_others_write_between(run: Run, db_file: Path) -> None:
    fill(db_file)
    with following(db_file, "-n", "2", "--json", "--where", 'source_id != "noise"') as process:
        assert next_numbers(process, 2) == [5, 6]
        for number in (30, 32, 34):  # each of them is seen before the next is stored
            with DuckDBStorage(db_file, lock_timeout_s=30) as storage:
                storage.write_logs([log(number + 1, 0), log(number, -1), log(number + 100, source="noise")])
            assert next_numbers(process, 2) == [number + 1, number]
        position = interrupt(process)
    with DuckDBStorage(db_file) as storage:
        storage.write_logs([log(40)])
    assert numbers(run, "tail", "--db", str(db_file), "--position", position) == [40]


@pytest.mark.slow
def test_tail_waits_while_another_process_holds_the_store(db_file: Path) -> None:
    fill(db_file)
    with following(db_file, "-n", "1", "--json") as process:
        assert next_numbers(process, 1) == [6]
        assert process.stderr is not None
        with DuckDBStorage(db_file, lock_timeout_s=30) as storage:
            storage.write_logs([log(50)])
            told = process.stderr.readline()
            assert told.startswith("fiberstore: ")
            assert f"is held by process {os.getpid()}" in told
            assert told.endswith("; waiting\n")
            storage.write_logs([log(51)])
        assert next_numbers(process, 2) == [50, 51]
        interrupt(process)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_loses_nothing_and_repeats_nothing(run: Run, store_file: Path) -> None:
    rows = 20_000  # more than fits in a pipe
    with DuckDBStorage(store_file) as storage:
        storage.write_logs(log(number) for number in range(rows))
    with following(store_file, "--position", "", "--json") as process:
        assert next_numbers(process, 1) == [0]
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()  # communicate() forgets what is buffered
        assert process.wait(timeout=30) == 130
    printed = [UUID(json.loads(line)["log_id"]).int for line in out.splitlines()]
    rest = numbers(run, "tail", "--db", str(store_file), "--position", position_of(err))
    assert [0, *printed, *rest] == list(range(rows))
    assert rest


HOLD = """
import sys
from fiberstore import DuckDBStorage
with DuckDBStorage(sys.argv[1]):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_following_tells_once_what_is_not_stored(db_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(db_file)
    store = FileStore(str(db_file))
    following = TailFollower(LogFilter(source=["wbe"]), store, LogLines("json"), threading.Event())
    following.begin(0)
    assert capsys.readouterr().err.count("no log of source 'wbe'") == 1
    os.utime(db_file, (0, 0))
    following.look()
    assert capsys.readouterr() == ("", "")


def test_a_position_is_known_only_when_all_before_it_is_printed(
    db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db_file)
    following = TailFollower(LogFilter(), FileStore(str(db_file)), LogLines("json"), threading.Event())

    def closed(_lines: LogLines, _log: StoredLog) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(LogLines, "print", closed)
    with pytest.raises(BrokenPipeError):
        following.begin(3)
    assert following.position is None


@pytest.mark.slow
def test_a_store_is_opened_only_when_it_has_changed_and_waiting_is_told_once(
    db_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(db_file)
    following = TailFollower(LogFilter(), FileStore(str(db_file)), LogLines("json"), threading.Event())
    following.begin(0)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, db_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    following.look()
    assert capsys.readouterr() == ("", "")
    os.utime(db_file, (0, 0))
    following.look()
    assert f"is held by process {process.pid}" in capsys.readouterr().err
    following.look()
    assert capsys.readouterr() == ("", "")
    process.communicate()
    assert process.returncode == 0
    following.look()
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_tail_on_a_terminal_prints_a_line_each(db_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db_file)
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    with following(db_file, "-n", "4", stdout=theirs) as process:
        os.close(theirs)
        seen = ""
        terminal = read_terminal(ours)
        while "sent" not in seen:
            seen += next(terminal).decode()
        with DuckDBStorage(db_file, lock_timeout_s=30) as storage:
            storage.write_logs([log(60, source="new\x1b[2J", text="[red]last\x07")])
        while "last" not in seen:
            seen += next(terminal).decode()
        process.send_signal(signal.SIGINT)
        seen += b"".join(terminal).decode()
        os.close(ours)
        assert process.wait() == 130
    seen = seen.replace("\r\n", "\n")
    lines = plain(seen).splitlines()
    assert lines[0] == r"2024-02-29T12:00:03Z  db  \x1b[31mred\x07 [bold]timeout[/bold] \u202eback"
    assert lines[-1] == r"2024-02-29T12:01:00Z  new\x1b[2J  [red]last\x07"
    assert len(set(re.findall(r"\x1b\[(3\d)m(?:web|db|mail|new)", seen))) == 4


def test_tail_of_a_store_without_logs(run: Run, store_file: Path) -> None:
    position = position_of(run("tail", "--db", store_file).err)
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(1, NOON - timedelta(1))])
    assert numbers(run, "tail", "--db", str(store_file), "--position", position) == [1]
