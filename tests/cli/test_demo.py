"""The demo's log files: what they promise, and what a store makes of them."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from fiberstore import DuckDBStorage
from fiberstore.cli import main
from fiberstore.ingest.demo import write_demo
from fiberstore.ingest.pipeline import ingest
from fiberstore.ingest.reader import read_sources
from fiberstore.ingest.rules import load_rules

SOURCES = ("gateway", "orders", "payments")


def texts(folder: Path) -> list[str]:
    return [(folder / f"{source}.log").read_text() for source in SOURCES]


def fibers(storage: DuckDBStorage, fiber_type: str) -> list[dict[str, list[str]]]:
    """The attributes of all fibers of a type."""
    found = storage.query_fibers_by_type(fiber_type, limit=10_000)
    return [fiber.attributes for fiber in found]  # type: ignore[misc]


@pytest.mark.parametrize("lines", [1, 10, 2_000])
def test_there_are_as_many_lines_as_asked_for(tmp_path: Path, lines: int) -> None:
    write_demo(tmp_path / "logs", lines)
    assert lines <= sum(text.count("\n") for text in texts(tmp_path / "logs")) < lines + 5


def test_the_files_are_the_same_every_time_and_only_grow(tmp_path: Path) -> None:
    few, again, many = tmp_path / "few", tmp_path / "again", tmp_path / "many"
    write_demo(few, 1_000)
    write_demo(again, 1_000)
    write_demo(many, 3_000)
    assert texts(few) == texts(again)
    for text, longer in zip(texts(few), texts(many), strict=True):
        assert longer.startswith(text)
        assert len(longer) > 2 * len(text)


def test_the_services_log_in_the_order_of_time_and_at_the_same_time(tmp_path: Path) -> None:
    logs = list(read_sources(load_rules(write_demo(tmp_path / "logs", 2_000))))
    times = [log.timestamp for log in logs]
    assert times == sorted(times)
    changes = sum(before.source_id != after.source_id for before, after in itertools.pairwise(logs))
    assert changes > len(logs) / 3
    assert {log.source_id for log in logs} == set(SOURCES)


def test_a_traceback_is_part_of_its_line(tmp_path: Path) -> None:
    logs = list(read_sources(load_rules(write_demo(tmp_path / "logs", 2_000))))
    failed = [log.raw_text.splitlines() for log in logs if "not charged" in log.raw_text]
    assert failed
    assert all(lines[-1] == "TimeoutError: the bank does not answer" for lines in failed)


def test_the_fibers_are_those_that_a_reader_of_the_files_would_find(tmp_path: Path) -> None:
    rules = load_rules(write_demo(tmp_path / "logs", 3_000))
    gateway, orders, payments = texts(tmp_path / "logs")
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        ingest(storage, rules)
        requests, jobs = fibers(storage, "request"), fibers(storage, "job")

    asked = set(re.findall(r"req=(\w+)", gateway))
    linked = set(re.findall(r"req=(\w+) order=(\w+)", orders))
    orphans = set(re.findall(r"order=(\w+)", orders + payments)) - {order for _, order in linked}
    assert len(linked) > 200
    assert {request for request, _ in linked} <= asked
    assert len(requests) == len(asked) + len(orphans)
    assert {(*found["request"], *found["order"]) for found in requests if len(found) == 2} == linked

    begun = re.findall(r"\[(worker-\d+)\] req=\w+ cart", orders)
    assert len(jobs) == len(begun) > 10 * len(set(begun))


def test_the_demo_shows_a_fiber_that_crosses_all_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["demo"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert (tmp_path / "fiberstore-demo.duckdb").is_file()
    assert len(out.splitlines()) < 60
    shown = out.partition("through all three services")[2].partition("Try next")[0]
    assert [f"\t{source}\t" in shown for source in SOURCES] == [True] * 3
    assert "Nothing is new" not in out


@pytest.mark.slow
def test_the_commands_to_try_next_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--db", str(tmp_path / "the shop.duckdb"), "--lines", "400"])
    commands = re.findall(r"^\$ fiberstore (.*)", capsys.readouterr().out, re.MULTILINE)
    shown = ["ingest", "stats", "fibers", "show"]
    to_try = ["timeline", "histogram", "grep", "fibers", "logs", "ingest"]
    assert [command.split()[0] for command in commands] == shown + to_try
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(command))
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert len(out.splitlines()) > 1 or "0 new; 0 new fibers, 0 new memberships" in out, command


@pytest.mark.slow
def test_a_second_demo_adds_nothing_and_says_so_and_a_longer_one_adds_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def demo(name: str, lines: int) -> tuple[str, str]:
        for arguments in (["demo", "--lines", str(lines)], ["fibers", "--limit", "9999"]):
            with pytest.raises(SystemExit) as caught:
                main([*arguments, "--db", str(tmp_path / name)])
            assert caught.value.code == 0
            outputs.append(capsys.readouterr().out)
        return outputs[-2], outputs[-1]

    outputs: list[str] = []
    _, first = demo("a.duckdb", 500)
    out, second = demo("a.duckdb", 500)
    assert "Nothing is new" in out
    assert first == second
    out, longer = demo("a.duckdb", 900)
    assert "Nothing is new" not in out
    assert longer == demo("b.duckdb", 900)[1]


def test_a_demo_of_a_few_lines_ends_without_a_fiber_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--db", str(tmp_path / "a.duckdb"), "--lines", "1"])
    assert caught.value.code == 0
    assert "1 log read" in capsys.readouterr().out
