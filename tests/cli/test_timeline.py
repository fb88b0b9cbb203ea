"""``fiberstore timeline``: in a pipe, on a terminal, as JSON, and as a new file for a browser."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import pytest

from fiberstore import DatabaseError, DuckDBStorage
from fiberstore.cli import main
from fiberstore.contract.results import Timeline
from fiberstore.testing.examples import at, fiber, log, member, uid
from fiberstore.timeline.page import short_ids, write_timeline_page
from tests.support.parameters import parametrize_mostly_slow

Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store that tests only read: three fibers, the last of another type and without logs."""
    path = tmp_path_factory.mktemp("store") / "s.duckdb"
    with DuckDBStorage(path) as storage:
        storage.init_schema()
        for row in (
            fiber(1, first=at(0), last=at(90), attributes={"user": "ada"}),
            fiber(2, first=at(30), last=at(40), closed=True),
            fiber(3, "lo\x1b[31mgin", first=at(60)),
        ):
            storage.write_fiber(row)
        storage.write_logs(
            [
                log(1, 0, text="</script>first"),
                log(2, 90, source="d\tb\x07"),
                *(log(10 + number, 30) for number in range(30)),
            ]
        )
        storage.write_memberships(
            [member(1, 1), member(2, 1), *(member(10 + number, 2) for number in range(30))]
        )
    with DuckDBStorage(path, read_only=True):  # to open a file takes DuckDB far longer than to read it
        yield path


@pytest.fixture
def run(store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command on the store; return its exit code, and what it prints."""
    for name in ("FIBERSTORE_URL", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["timeline", "--db", str(store), *map(str, arguments)])
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


def test_in_a_pipe_points_are_tab_separated(run: Run) -> None:
    code, out, err = run("--fibers", "1")
    assert (code, err) == (0, "fiberstore: there is more; --fibers N shows more than 1 fiber\n")
    assert out.splitlines() == [
        "fiber_id\ttimestamp\tsource_id\tlog_id",
        f"{uid(1)}\t2024-02-29T12:00:00Z\tweb\t{uid(1)}",
        f"{uid(1)}\t2024-02-29T12:01:30Z\td\\tb\\x07\t{uid(2)}",
    ]


def test_nothing_is_told_where_nothing_is_left_out(run: Run) -> None:
    assert run("--fibers", "3", "--points", "32")[2] == ""
    assert "there is more" not in run("--type", "none", "--fibers", "0")[2]
    assert run("--fibers", "0")[2] == "fiberstore: there is more; --fibers N shows more than 0 fibers\n"


def test_json_has_an_object_for_each_fiber(run: Run) -> None:
    code, out, err = run("--json", "--points", "8")
    assert (code, err) == (0, "fiberstore: 8 of 32 logs, evenly chosen; --points 32 shows all\n")
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["fiber_id"] for row in found] == [str(uid(number)) for number in (1, 2, 3)]
    assert sum(len(row["points"]) for row in found) == 8
    assert found[1]["points"][-1] == {
        "timestamp": "2024-02-29T12:00:30Z",
        "source_id": "web",
        "log_id": str(uid(39)),
    }
    assert found[0]["attributes"] == {"user": "ada"}
    assert found[2]["points"] == []


@parametrize_mostly_slow(
    ("options", "numbers"),
    [
        ([], [1, 2, 3]),
        (["--order", "newest"], [3, 2, 1]),
        (["--order", "longest"], [1, 2, 3]),
        (["--order", "most-logs"], [2, 1, 3]),
        (["--fibers", "2"], [1, 2]),
        (["--fibers", "0"], []),
        (["--type", "request"], [1, 2]),
        (["--type", "lo\x1b[31mgin", "--type", "none"], [3]),
        (["--start", "2024-02-29T12:00:41Z"], [1, 3]),
        (["--end", "2024-02-29T12:00:29Z"], [1]),
        (["--start", "2024-02-29T12:00:35Z", "--end", "2024-02-29T12:00:35Z"], [1, 2]),
    ],
    quick=5,
)
def test_fibers_are_chosen_and_ordered(run: Run, options: list[str], numbers: list[int]) -> None:
    code, out, _ = run("--json", *options)
    assert code == 0
    assert [UUID(json.loads(line)["fiber_id"]).int for line in out.splitlines()] == numbers


def test_on_a_terminal_lanes_fit_and_show_when_how_much_and_where(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert max(map(len, lines)) <= 100
    head, first, second, third, axis, legend, *_ = lines
    assert head == "2024-02-29T12:00:00Z to 2024-02-29T12:01:30Z, 1 min 30 s: 3 fibers, 32 logs"
    ids = [str(uid(number)) for number in (1, 2, 3)]
    begin = len(f"lo\\x1b[31mgin {ids[0]} ")
    assert first.split() == ["request", ids[0], "•" + "─" * (100 - begin - 3) + "•▷"]
    at_30_s, at_60_s = ((100 - begin - 1) * seconds * 10**6 // (90 * 10**6 + 1) for seconds in (30, 60))
    assert second[begin:].startswith(" " * at_30_s + "█─")
    assert third == f"lo\\x1b[31mgin {ids[2]} {' ' * at_60_s}─▷"
    assert axis.split() == ["│12:00:00.000", "│12:00:33.750"]
    assert legend == r"• web 31   • d\tb\x07 1"
    web, db = re.findall(r"\x1b\[(\d+)m• [wd]", out)
    assert web != db
    assert f"\x1b[{web}m•" in out.splitlines()[1]
    assert f"\x1b[{db}m•" in out.splitlines()[1]


def test_on_a_terminal_nothing_is_said_to_be_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert run("--type", "none")[:2] == (0, "no fibers\n")


def test_html_is_a_page_in_a_new_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timeline.html"
    code, out, err = run("--html", path)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(path))}: \d\.\d MB\n", out)
    page = path.read_text(encoding="utf-8")
    assert "3 fibers (2 open, with ▷ at the end), 32 logs" in page
    assert "&lt;/script&gt;first" in page
    assert "</script>first" not in page
    code, out, err = run("--html", path)
    assert (code, out) == (1, "")
    assert err.startswith(f"fiberstore: {path} exists already")
    assert path.read_text(encoding="utf-8") == page


def test_html_without_bokeh_says_how_to_get_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    path = tmp_path / "timeline.html"
    code, out, err = run("--html", path)
    assert (code, out) == (1, "")
    assert err == "fiberstore: --html needs Bokeh: pip install 'fiberstore[html]'\n"
    assert not path.exists()
    assert run("--fibers", "1")[0] == 0


@pytest.mark.slow
def test_page_is_a_new_file_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    timeline = Timeline([fiber(1)], [], 0)
    write_timeline_page(path, timeline, {}, title="first")
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="exists already"):
        write_timeline_page(path, timeline, {}, title="second")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_short_ids_are_groups_of_digits_that_tell_the_fibers_apart() -> None:
    first, other = UUID(int=1 << 96), UUID(int=(1 << 96) + (1 << 80))
    assert _short_ids() == []
    assert _short_ids(first) == ["00000001"]
    assert _short_ids(first, UUID(int=2 << 96)) == ["00000001", "00000002"]
    assert _short_ids(first, other) == ["00000001-0000", "00000001-0001"]
    assert _short_ids(uid(1), uid(2)) == [str(uid(1)), str(uid(2))]


def _short_ids(*fiber_ids: UUID) -> list[str]:
    return short_ids([fiber(1).model_copy(update={"fiber_id": fiber_id}) for fiber_id in fiber_ids])
