"""Lines that were cut when their file was read, copies, rotations: all ends as one fresh reading does."""

import gzip
import tracemalloc
from pathlib import Path

import pytest

from fiberstore import DuckDBStorage, Fibers, Logs
from fiberstore.ingest import ingest, parse_rules
from fiberstore.ingest.pipeline import IngestReport, check
from fiberstore.ingest.rules import Rules
from tests.support.databases import empty


def rules_for(path: Path, more: str = "") -> Rules:
    return parse_rules(
        f"[sources.app]\npath = '{path}'\ntimestamp = '^(?P<ts>[-0-9]+T\\S+)'\nformat = 'iso8601'\n{more}\n"
        "[fibers.request]\nmax_gap = '60s'\n[[fibers.request.patterns]]\nregex = 'r=(?P<r>\\w+)'\n"
        "[[fibers.request.patterns]]\nregex = 'q=(?P<q>\\w+)'\n"
    )


def line(second: int, text: str) -> str:
    return f"2024-05-01T12:{second // 60:02}:{second % 60:02}Z {text}"


def lines(*given: tuple[int, str]) -> str:
    return "".join(f"{line(*each)}\n" for each in given)


def content(storage: DuckDBStorage) -> tuple[object, object]:
    return (
        sorted((log.log_id, log.timestamp, log.raw_text) for log in storage.logs.iter_records()),
        sorted(
            (
                [log.log_id for log in storage.get_fiber_logs(fiber.fiber_id)],
                str(fiber.attributes),
                fiber.first_activity,
                fiber.last_activity,
                fiber.closed,
            )
            for fiber in storage.fibers.iter_records()
        ),
    )


def check_fresh(storage: DuckDBStorage, rules: Rules) -> None:
    """See that the store is what the files make of an empty one, which it is afterwards."""
    before = content(storage)
    empty(storage.engine)
    ingest(storage, rules)
    assert before == content(storage)


@pytest.mark.parametrize(
    ("more", "before", "after"),
    [
        pytest.param(
            "",
            lines((0, "r=12")) + line(50, "r=12"),
            lines((0, "r=12"), (50, "r=123"), (100, "r=12")),
            id="a key that lengthened a fiber",
        ),
        pytest.param(
            "",
            lines((0, "r=1"), (1, "q=2")) + line(2, "r=1 q=2"),
            lines((0, "r=1"), (1, "q=2"), (2, "r=1 q=25")),
            id="a key that joined two fibers",
        ),
        pytest.param(
            "drop = 'GET /healthz'",
            lines((0, "r=1")) + line(1, "GET /hea"),
            lines((0, "r=1"), (1, "GET /healthz")),
            id="a line that is dropped",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "drop = 'GET /healthz'",
            lines((0, "r=1")) + line(1, "r=1 GET /hea"),
            lines((0, "r=1"), (1, "r=1 GET /healthz"), (2, "r=1")),
            id="a line with a key that is dropped",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "join = 'cri'",
            lines((0, "stdout F r=1"), (1, "stdout P r=1 ")) + line(2, "stdo"),
            lines((0, "stdout F r=1"), (1, "stdout P r=1 "), (2, "stdout F abc")),
            id="the head of a part",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "",
            lines((0, "r=1")) + "  at 1\r",
            lines((0, "r=1")) + "  at 1\r\n  at 2\r\n",
            id="a line end of a stack trace",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_cut_line_leaves_nothing(
    storage: DuckDBStorage, tmp_path: Path, more: str, before: str, after: str
) -> None:
    log = tmp_path / "app.log"
    rules = rules_for(log, more)
    for text in (before, after):
        log.write_text(text, newline="")
        ingest(storage, rules)
    check_fresh(storage, rules)


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_redacted_last_log_that_grows_is_replaced(
    storage: DuckDBStorage, tmp_path: Path, is_changed: bool
) -> None:
    log, first = tmp_path / "app.log", lines((0, "r=1"))
    rules = rules_for(log)
    log.write_text(first + lines((1, "r=1 q=secret")))
    ingest(storage, rules)
    assert storage.logs.redact("q=secret", "-") == 1
    log.write_text(first + lines((2 if is_changed else 1, "r=1 q=secret")) + "  at 1\n")
    ingest(storage, rules)
    if is_changed:
        assert storage.logs.where(Logs.c.raw_text.contains("r=1 -")).count() == 1
    else:
        check_fresh(storage, rules)


def test_fibers_of_other_rules_forget_a_cut_line_too(storage: DuckDBStorage, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    older, newer = rules_for(log), rules_for(log, "# newer")
    log.write_text(lines((0, "r=1"), (1, "q=2")) + line(2, "r=1 q=2"))
    ingest(storage, older)
    log.write_text(lines((0, "r=1"), (1, "q=2"), (2, "r=1 q=25"), (3, "q=2")))
    ingest(storage, newer)
    ingest(storage, older)
    for rules in (older, newer):
        of_rules = storage.fibers.where(Fibers.c.config_version == rules.config_version)
        sizes = sorted(len(storage.get_fiber_logs(fiber.fiber_id)) for fiber in of_rules.iter_records())
        assert sizes == [2, 2]


def test_newer_rules_that_drop_the_last_line_leave_it_to_the_older(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    log.write_text(lines((0, "r=1"), (1, "GET /healthz")))
    ingest(storage, rules_for(log))
    ingest(storage, rules_for(log, "drop = 'healthz'"))
    assert storage.logs.count() == 2


def test_first_lines_that_grow_to_equal_ones_are_of_two_files(storage: DuckDBStorage, tmp_path: Path) -> None:
    rules = rules_for(tmp_path)
    start = lines((0, "start r=1"), (1, "r=1"))
    (tmp_path / "a.log").write_text(start)
    (tmp_path / "b.log").write_text(line(0, "start"))
    ingest(storage, rules)
    (tmp_path / "a.log").write_text(start + lines((2, "r=1 of a")))
    (tmp_path / "b.log").write_text(start + lines((2, "r=1 of b")))
    ingest(storage, rules)
    check_fresh(storage, rules)


@pytest.mark.slow
def test_a_copy_does_not_hide_where_a_file_has_ended(storage: DuckDBStorage, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    rules = rules_for(tmp_path)
    log.write_text(lines((0, "r=1"), (1, "r=1 error")))
    ingest(storage, rules)
    with log.open("a") as file:
        file.write(f"  at 1\n{line(2, 'r=1 error')}\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(log.read_bytes()))
    ingest(storage, rules)
    with log.open("a") as file:
        file.write("  at 2\n")
    ingest(storage, rules)
    check_fresh(storage, rules)


def test_a_file_that_is_rotated_before_it_is_read(storage: DuckDBStorage, tmp_path: Path) -> None:
    first, log, rotated = tmp_path / "0.log", tmp_path / "app.log", tmp_path / "app.log.1"
    rules = rules_for(tmp_path)
    first.write_text(lines((0, "r=0")))
    log.write_text(lines((1, "r=1 error")))
    ingest(storage, rules)
    first.write_text(lines((0, "r=0"), (5, "r=0")))

    def rotate(_: IngestReport) -> None:
        if not rotated.exists():
            log.rename(rotated)
            with rotated.open("a") as file:
                file.write(f"  at 1\n{line(2, 'r=1')}\n")
            log.write_text(lines((100, "r=5 error")))

    ingest(storage, rules, batch_rows=1, on_batch=rotate)
    with log.open("a") as file:
        file.write(f"  at 2\n{line(101, 'r=5')}\n")
    ingest(storage, rules)
    check_fresh(storage, rules)


def test_a_line_that_is_completed_while_its_file_is_read(storage: DuckDBStorage, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    rules = rules_for(log)
    log.write_text(lines((0, "r=1"), (1, "r=1")) + line(2, "r=1 ha"))

    def complete(report: IngestReport) -> None:
        if report.logs_read == 1:
            with log.open("a") as file:
                file.write(f"lf\n{lines((3, 'r=1'))}")

    ingest(storage, rules, batch_rows=1, on_batch=complete)
    ingest(storage, rules)
    check_fresh(storage, rules)


def test_more_files_than_are_remembered_of_the_past(
    storage: DuckDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiberstore.ingest.known_files._MAX_FILES", 3)
    for number in range(5):
        (tmp_path / f"{number}.log").write_text(f"# head\n{line(number, f'r={number}')}\n")
    rules = rules_for(tmp_path)
    assert [ingest(storage, rules).logs_new for _ in range(3)] == [10, 0, 0]


@pytest.mark.slow
def test_a_check_takes_no_memory_for_lines_that_are_read(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text(lines(*((0, f"GET /healthz {'x' * 300}") for _ in range(10_000)), (0, "r=1")))
    tracemalloc.start()
    try:
        check(rules_for(log, "drop = 'healthz'"))
        assert tracemalloc.get_traced_memory()[1] < 400_000  # the sizes of all lines take as much again
    finally:
        tracemalloc.stop()
