"""Commands as processes: held stores, streams that are closed or full, Ctrl-C."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from fiberstore import DuckDBStorage, LogRecord
from tests.support.command_line import (
    Result,
    Run,
    assert_refused,
    read_terminal,
)
from tests.support.parameters import parametrize_mostly_slow
from tests.support.small_store import RULES, row_counts


def start(*arguments: str | Path, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fiberstore", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)


@pytest.mark.slow
def test_a_store_that_another_process_holds(run: Run, rules_file: Path, db_file: Path) -> None:
    run("ingest", "--rules", rules_file, "--db", db_file)
    with DuckDBStorage(db_file):
        process = start("logs", "--db", db_file)
        out, err = process.communicate()
    assert_refused(Result(process.returncode, out.decode(), err.decode()), f"held by process {os.getpid()}")
    assert run("logs", "--db", db_file).code == 0


CLOSED = ">&-", "fiberstore: standard output is closed; give it a file, such as /dev/null\n"
FULL = ">/dev/full", "fiberstore: standard output cannot be written: No space left on device\n"


@pytest.mark.slow
@parametrize_mostly_slow(
    ("command", "to"),
    [
        (("stats",), FULL),
        (("logs", "--json"), CLOSED),
        (("grep", "-c", "a"), FULL),
        (("--help",), CLOSED),
        (("--help",), FULL),
    ],
)
def test_a_stdout_that_takes_nothing_is_told(
    store: Path, command: tuple[str, ...], to: tuple[str, str]
) -> None:
    target, says = to
    db = [] if "--help" in command else ["--db", str(store)]
    line = shlex.join([sys.executable, "-m", "fiberstore", *command, *db])
    process = subprocess.run(["sh", "-c", f"{line} {target}"], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (1, says)


@pytest.mark.slow
def test_a_pipe_that_is_closed_early_ends_the_command_quietly_and_a_full_disk_does_not(
    run: Run, db_file: Path
) -> None:
    now = datetime(2024, 5, 1, tzinfo=UTC)
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        storage.write_logs(LogRecord(timestamp=now, source_id="s", raw_text="x" * 2_000) for _ in range(500))
    process = start("logs", "--db", db_file)
    assert process.stdout is not None
    assert process.stdout.readline() == b"log_id\ttimestamp\tsource_id\traw_text\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0
    line = shlex.join([sys.executable, "-m", "fiberstore", "logs", "--db", str(db_file)])
    full = subprocess.run(
        ["sh", "-c", f"{line} >/dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.stderr == "fiberstore: standard output cannot be written: No space left on device\n"
    assert full.returncode == 1


ROWS = 50_000


def write_many(folder: Path) -> Path:
    """Write the logs of 2,500 requests, of which 1,000 are under way at any time."""
    begin = datetime(2024, 5, 1, tzinfo=UTC)
    with (folder / "web.log").open("w") as file:
        for number in range(ROWS):
            time = begin + timedelta(seconds=number // 20)
            file.write(f"{time:%Y-%m-%dT%H:%M:%SZ} request=r{number // 10_000}x{number % 1_000}\n")
    (folder / "db.log").write_text("")
    rules = folder / "rules.toml"
    rules.write_text(RULES.replace('"60s"', '"2h"').partition("[fibers.client]")[0])
    return rules


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_stored_and_the_next_run_goes_on(
    run: Run, tmp_path: Path, db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    rules = write_many(tmp_path)
    ours, theirs = pty.openpty()
    process = start("ingest", "--rules", rules, "--db", db_file, stderr=theirs)
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
    told = re.search(rb"fiberstore: interrupted; the store holds ([\d,]+) logs, and the same", seen)
    assert told is not None
    stored = int(told[1].replace(b",", b""))
    assert 0 < stored < ROWS
    assert row_counts(db_file)[0] == stored

    report = run("ingest", "--rules", rules, "--db", db_file, "--json").objects[0]
    assert (report["logs_read"], report["logs_new"]) == (ROWS - stored + 1, ROWS - stored)
    whole = tmp_path / "whole.duckdb"
    run("ingest", "--rules", rules, "--db", whole)
    assert differences(db_file, whole) == [0, 0, 0]


def test_ctrl_c_during_a_query_is_an_interrupt_too(
    run: Run, rules_file: Path, db_file: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fiberstore.cli.commands.ingest.ingest_files", interrupted)
    result = run("ingest", "--rules", rules_file, "--db", db_file)
    assert (result.code, result.out) == (130, "")
    assert result.err.startswith("fiberstore: interrupted; the store holds 0 logs")
    monkeypatch.setattr("fiberstore.cli.commands.fibers.print_fibers", interrupted)
    result = run("fibers", "--db", store)
    assert (result.code, result.out, result.err) == (130, "", "fiberstore: interrupted\n")


@parametrize_mostly_slow("module", ["typer", "fiberstore.errors", "fiberstore.cli.commands.logs", "duckdb"])
def test_ctrl_c_while_the_program_loads_is_an_interrupt_too(tmp_path: Path, store: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-m", "fiberstore", "logs", "--db", store],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (130, "")
    assert finished.stderr == "fiberstore: interrupted\n"


def differences(one: Path, other: Path) -> list[int]:
    """For each table, how many rows are in one of the stores only, but for the time they were stored."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{one}' AS one (READ_ONLY)")
        connection.execute(f"ATTACH '{other}' AS other (READ_ONLY)")
        counts = []
        for table, columns in (
            ("raw_logs", "* EXCLUDE (ingestion_time)"),
            ("fibers", "*"),
            ("fiber_memberships", "*"),
        ):
            a, b = f"SELECT {columns} FROM one.{table}", f"SELECT {columns} FROM other.{table}"
            row = connection.execute(
                f"SELECT count(*) FROM (({a} EXCEPT {b}) UNION ALL ({b} EXCEPT {a}))"
            ).fetchone()
            assert row is not None
            counts.append(int(row[0]))
        return counts
