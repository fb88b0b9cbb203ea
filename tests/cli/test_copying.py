"""The command ``copy``: what it makes, prints and refuses."""

import re
import shutil
from pathlib import Path

import duckdb
import pytest

from fiberstore import DuckDBStorage
from fiberstore.testing.examples import fiber, log, member, uid
from tests.support.command_line import Run, assert_refused, on_a_terminal, plain, runner, without_progress
from tests.support.parameters import parametrize_mostly_slow

SUM = "[0-9a-f]{32}"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process."""
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    return runner(capsys)


@pytest.fixture
def source(empty_store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "source.duckdb"
    shutil.copy(empty_store, path)
    with DuckDBStorage(path) as storage:
        storage.write_batch(
            logs=[log(number) for number in range(4)],
            fibers=[fiber(1), fiber(2)],
            memberships=[member(number, 1) for number in range(3)],
        )
        storage.checkpoints.set("mine", "1")
    return path


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    """A path where nothing is."""
    return tmp_path / "destination.duckdb"


def test_a_copy_in_a_pipe_is_a_line_for_each_table(run: Run, source: Path, destination: Path) -> None:
    names = "table\twritten\tsource_rows\tdestination_rows\tsource_checksum\tdestination_checksum"
    for written in (4, 0):
        result = run("copy", source, destination)
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines()[0] == names
        assert [row[0] for row in result.rows] == [
            *("raw_logs", "fibers", "fiber_memberships"),
            *("fiber_config_versions", "fiber_checkpoints", "fiber_merges", "fiber_pins", "log_pins"),
            "fiber_ends",
            "fiber_keys",
        ]
        assert result.rows[0][:4] == ["raw_logs", str(written), "4", "4"]
        assert all(row[4] == row[5] and re.fullmatch(SUM, row[4]) for row in result.rows)
    with DuckDBStorage(destination, read_only=True) as storage:
        assert storage.logs.count() == 4


def test_a_copy_as_json(run: Run, source: Path, destination: Path) -> None:
    (found,) = run("copy", source, f"duckdb:///{destination}", "--json").objects
    assert found["seconds"] > 0
    assert (found["equal"], found["passes"], found["has_ended"]) == (True, 2, True)
    assert found["written"]["fiber_memberships"] == 3
    assert found["source"] == found["destination"]
    assert found["source"]["fiber_checkpoints"]["rows"] == 1


@pytest.mark.slow
def test_a_copy_that_differs_says_where_and_ends_with_1(run: Run, source: Path, destination: Path) -> None:
    run("copy", source, destination)
    with DuckDBStorage(destination) as storage:
        storage.write_logs([log(7)])
        storage.write_fibers([fiber(7)])
    result = run("copy", source, destination)
    assert result.code == 1
    assert result.rows[0][:4] == ["raw_logs", "0", "4", "5"]
    assert result.rows[0][4] != result.rows[0][5]
    assert result.err == (
        "fiberstore: SRC and DST differ in raw_logs, fibers, and there is nothing more to copy "
        f"(fibers: 1 row only in DST: {uid(7)}; raw_logs: 1 row only in DST: {uid(7)}); "
        "--mirror deletes what only DST holds, such as what was deleted in SRC, and replaces what differs\n"
    )


@pytest.mark.slow
def test_a_mirror_deletes_what_only_the_destination_holds(run: Run, source: Path, destination: Path) -> None:
    run("copy", source, destination)
    with DuckDBStorage(destination) as storage:
        storage.write_logs([log(number) for number in range(10, 20)])
    shown = ", ".join(str(uid(number)) for number in range(10, 15))
    assert f"raw_logs: 10 rows only in DST: {shown}, …)" in run("copy", source, destination).err
    result = run("copy", source, destination, "--mirror")
    assert (result.code, result.err) == (0, "fiberstore: deleted in DST: 10 rows of raw_logs\n")
    (found,) = run("copy", source, destination, "--mirror", "--json").objects
    assert (found["equal"], found["deleted"]["raw_logs"], found["differences"]) == (True, 0, {})


@pytest.mark.slow
@parametrize_mostly_slow(
    ("statement", "words"),
    [
        (
            "UPDATE fiberstore_alembic_version SET version_num = '0001'",
            "destination.duckdb has the tables of an older",
        ),
        ("UPDATE fiberstore_alembic_version SET version_num = '9'", "which this release does not know"),
    ],
    quick=1,
)
def test_a_store_of_another_release_is_refused(
    run: Run, source: Path, destination: Path, statement: str, words: str
) -> None:
    run("copy", source, destination)
    with duckdb.connect(str(destination)) as connection:
        connection.execute(statement)
    assert_refused(run("copy", source, destination), words)
    source.unlink()
    assert_refused(run("copy", destination, source), words)
    assert not source.exists()


def test_a_copy_on_a_terminal_shows_a_table(source: Path, destination: Path) -> None:
    (shown,) = on_a_terminal([["copy", source, destination]], columns=120)
    seen = [line.split() for line in plain(without_progress(shown)).splitlines()]
    assert ["table", "written", "source", "destination", "checksum"] in seen
    (row,) = [line for line in seen if line[:4] == ["raw_logs", "4", "4", "4"]]
    assert re.fullmatch(r"[0-9a-f]{8,32}…?", row[4])  # where there is less room, less of it
    assert seen[-1][0] == "equal;"
    assert "check fibers" in shown  # meanwhile


@pytest.mark.slow
def test_a_narrow_terminal_cuts_no_count(source: Path, destination: Path) -> None:
    (shown,) = on_a_terminal([["copy", source, destination]], columns=40)
    seen = [line.split() for line in plain(without_progress(shown)).splitlines()]
    assert any(line[1:4] == ["written", "source", "destination"] for line in seen)
    assert any(line[1:4] == ["4", "4", "4"] for line in seen)
