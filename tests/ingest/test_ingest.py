"""Log files into a store: again, grown, rotated, interrupted, killed, by other rules."""

import ast
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from fiberstore import Base, DuckDBStorage, Fiber, Membership, RawLog
from fiberstore.ingest.pipeline import IngestReport, ingest
from fiberstore.ingest.reader import IngestError
from fiberstore.ingest.rules import load_rules
from fiberstore.repositories.storage import SqlStorage
from tests.support.databases import empty
from tests.support.parameters import parametrize_mostly_slow

RULES = r"""
[sources.web]
path = "web.log"
timestamp = '^\S+'
format = "%Y-%m-%dT%H:%M:%S%z"

[sources.db]
path = "db.log"
timestamp = '^\d+-\d+-\d+ \d+:\d+:\d+'
format = "%Y-%m-%d %H:%M:%S"
timezone = "Europe/Berlin"

[fibers.request]
max_gap = "30s"
[[fibers.request.patterns]]
source = "web"
regex = 'request=(?P<request>\d+)(?: session=(?P<session>\w+))?'
[[fibers.request.patterns]]
source = "db"
regex = 'session=(?P<session>\w+)'
[[fibers.request.patterns]]
source = "db"
regex = 'session=(?P<session>\w+) done'
close = true
"""


class State(NamedTuple):
    """Everything an ingest stores, but for the time it did so."""

    logs: list[tuple[str, ...]]
    fibers: list[tuple[str, ...]]
    memberships: list[tuple[str, ...]]


def state_of(storage: SqlStorage) -> State:
    with storage.session() as session:

        def rows(model: type[Base]) -> list[tuple[str, ...]]:
            columns = [column for column in model.__table__.columns if column.name != "ingestion_time"]
            found = session.execute(sa.select(*columns).order_by(*columns[:2]))
            return [tuple(map(repr, row)) for row in found]

        return State(rows(RawLog), rows(Fiber), rows(Membership))


def without_ids(state: State) -> list[tuple[object, ...]]:
    """Return the fibers by their lines; the id of a fiber depends on which of its lines came first."""
    lines: dict[str, list[str]] = {}
    for log_id, fiber_id, _ in state.memberships:
        lines.setdefault(fiber_id, []).append(log_id)
    return sorted(
        (*lines[fiber_id], fiber_type, version, *sorted(ast.literal_eval(attributes).items()), *rest)
        for fiber_id, fiber_type, version, attributes, *rest in state.fibers
    )


def write_logs(folder: Path, lines: int) -> None:
    """Write a shop's logs: requests and sessions overlap, stamps tie, lines continue others."""
    dice = random.Random(3)
    web, db = [], []
    for number in range(lines):
        second = number // 7
        stamp = f"2024-05-01T{10 + second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        session = f"s{dice.randrange(lines // 20 + 1)}"
        match dice.randrange(6):
            case 0:
                db.append(f"{stamp.replace('T', ' ')} session={session} select")
            case 1:
                db.append(f"{stamp.replace('T', ' ')} session={session} done")
            case 2:
                web.append(f"{stamp}+02:00 nothing to see")
            case 3:
                web.append("  a line that continues")
            case _:
                web.append(f"{stamp}+02:00 request={dice.randrange(lines // 10 + 1)} session={session}")
    (folder / "web.log").write_text("\n".join(web) + "\n")
    (folder / "db.log").write_text("\r\n".join(db) + "\r\n")


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "rules.toml"


def test_logs_fibers_and_memberships_are_stored(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    (tmp_path / "web.log").write_text(
        "2024-05-01T10:00:00+00:00 request=1 session=a\n  continued\n"
        "2024-05-01T10:00:02+00:00 request=2\n2024-05-01T10:00:04+00:00 idle\n"
        "2024-05-01T10:00:05+00:00 request=2 session=a\n"
    )
    (tmp_path / "db.log").write_text(
        "2024-05-01 12:00:01 session=a select\n2024-05-01 12:00:06 session=a done\n"
        "2024-05-01 12:00:07 session=a select\n"
    )
    rules = load_rules(rules_file)
    assert ingest(storage, rules, batch_rows=2) == IngestReport(7, 7, 3, 6)
    closed, again = storage.query_fibers_by_type("request")
    assert closed.attributes == {"request": ["1", "2"], "session": ["a"]}
    assert (closed.closed, closed.config_version) == (True, rules.config_version)
    assert closed.first_activity == datetime(2024, 5, 1, 10, tzinfo=UTC)
    texts = [log.raw_text.partition(" ")[2] for log in storage.get_fiber_logs(closed.fiber_id)]
    assert texts == [
        "request=1 session=a\n  continued", "12:00:01 session=a select", "request=2",
        "request=2 session=a", "12:00:06 session=a done",
    ]  # fmt: skip
    assert not again.closed
    assert {log.config_version for log in storage.get_fiber_logs(again.fiber_id)} == {rules.config_version}


@pytest.mark.slow
def test_batches_may_have_any_size(storage: DuckDBStorage, tmp_path: Path, rules_file: Path) -> None:
    write_logs(tmp_path, 30)
    states = []
    for batch_rows in (1, 7, 10_000):
        empty(storage.engine)
        ingest(storage, load_rules(rules_file), batch_rows=batch_rows)
        states.append(state_of(storage))
    assert len(states[0].fibers) == 6
    assert all(state.logs == states[0].logs for state in states)
    assert all(without_ids(state) == without_ids(states[0]) for state in states)


def test_reading_again_adds_nothing(storage: DuckDBStorage, tmp_path: Path, rules_file: Path) -> None:
    write_logs(tmp_path, 300)
    rules = load_rules(rules_file)
    ingest(storage, rules, batch_rows=90)
    before = state_of(storage)
    again = ingest(storage, rules, batch_rows=110)
    assert again == IngestReport(logs_read=2)  # the last of each file, as it may have grown
    assert again.warnings(rules) == []
    assert state_of(storage) == before


def test_a_file_that_has_grown_is_read_on(storage: DuckDBStorage, tmp_path: Path, rules_file: Path) -> None:
    write_logs(tmp_path, 150)
    rules = load_rules(rules_file)
    ingest(storage, rules, batch_rows=50)
    whole = state_of(storage)
    empty(storage.engine)
    texts = {name: (tmp_path / name).read_text() for name in ("web.log", "db.log")}
    stamp = "2024-05-01T10:00:15"
    web = texts["web.log"].splitlines(keepends=True)
    end = next(n for n, line in enumerate(web) if line.startswith("2024") and line >= stamp)
    db = texts["db.log"].splitlines(keepends=True)
    db_end = next(n for n, line in enumerate(db) if line >= stamp.replace("T", " "))
    (tmp_path / "web.log").write_text("".join(web[:end]))
    (tmp_path / "db.log").write_text("".join(db[:db_end]))
    assert ingest(storage, rules, batch_rows=50).logs_new > 0
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert ingest(storage, rules, batch_rows=50).logs_new > 0
    assert state_of(storage) == whole


@parametrize_mostly_slow("number", range(6))
def test_a_record_that_grows_after_it_ended_a_fiber_stays_in_it(
    any_storage: SqlStorage, tmp_path: Path, rules_file: Path, number: int
) -> None:
    rules_file.write_text(
        RULES + "[[fibers.request.patterns]]\nregex = 'done=(?P<request>\\d+)'\nclose = true\n"
    )
    (tmp_path / "db.log").touch()
    stamps = [f"2024-05-01T10:00:0{second}+00:00" for second in (0, 1, 2)]
    ended = f"{stamps[0]} request={number}\n{stamps[1]} done={number}\n"
    (tmp_path / "web.log").write_text(ended)
    ingest(any_storage, load_rules(rules_file))
    (tmp_path / "web.log").write_text(f"{ended}  at line 1\n{stamps[2]} request={number}\n")
    ingest(any_storage, load_rules(rules_file))
    ended_fiber, next_fiber = any_storage.query_fibers_by_type("request")
    assert [len(any_storage.get_fiber_logs(one.fiber_id)) for one in (ended_fiber, next_fiber)] == [2, 1]
    assert ended_fiber.closed


def test_a_record_that_grows_after_a_kill_is_there_once(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    (tmp_path / "db.log").write_text("2024-05-01 12:00:09 session=a\n")
    stamps = [f"2024-05-01T10:00:0{second}+00:00" for second in (0, 1)]
    whole = f"{stamps[0]} request=1\n{stamps[1]} request=1\n"
    (tmp_path / "web.log").write_text(whole)

    def kill(report: IngestReport) -> None:
        assert report.logs_read == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(storage, load_rules(rules_file), batch_rows=2, on_batch=kill)
    (tmp_path / "web.log").write_text(f"{whole}  at line 1\n")
    ingest(storage, load_rules(rules_file))
    assert storage.logs.count() == 3


def test_the_next_file_of_a_rotated_log_goes_on_with_the_open_fibers(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    (tmp_path / "db.log").touch()
    (tmp_path / "web.log").write_text("2024-05-01T10:00:00+00:00 request=1\n")
    (tmp_path / "web.log.2").write_text("2024-05-01T10:00:05+00:00 request=1\n")
    ingest(storage, load_rules(rules_file))
    ingest(storage, load_rules(rules_file, {"web": tmp_path / "web.log.2"}))
    (fiber,) = storage.query_fibers_by_type("request")
    assert len(storage.get_fiber_logs(fiber.fiber_id)) == 2


def test_changed_rules_are_another_version_beside_the_old(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    write_logs(tmp_path, 200)
    before = load_rules(rules_file)
    first = ingest(storage, before)
    rules_file.write_text(RULES.replace("30s", "1s"))
    changed = load_rules(rules_file)
    second = ingest(storage, changed)
    assert second.logs_new == 0
    assert second.fibers_new > first.fibers_new
    versions = {fiber.config_version for fiber in storage.query_fibers_by_type("request")}
    assert versions == {before.config_version, changed.config_version}


def test_an_error_keeps_whole_batches_and_the_next_run_goes_on(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    write_logs(tmp_path, 300)
    good = (tmp_path / "db.log").read_bytes()
    ingest(storage, load_rules(rules_file))
    whole = state_of(storage)
    empty(storage.engine)
    (tmp_path / "db.log").write_bytes(good[: len(good) // 2] + b"\xff" + good[len(good) // 2 :])
    reports: list[IngestReport] = []
    with pytest.raises(IngestError, match="0xff"):
        ingest(storage, load_rules(rules_file), batch_rows=20, on_batch=reports.append)
    assert len(state_of(storage).logs) == reports[-1].logs_new > 0
    (tmp_path / "db.log").write_bytes(good)
    ingest(storage, load_rules(rules_file), batch_rows=20)
    assert state_of(storage) == whole


def test_two_runs_at_once_lose_and_double_nothing(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    """Both would take the same number for a new file whose first line is that of another."""
    write_logs(tmp_path, 300)
    rules = load_rules(rules_file)
    ingest(storage, rules)
    whole = state_of(storage)
    empty(storage.engine)

    def another_run(_: IngestReport) -> None:
        ingest(storage, rules)

    with pytest.raises(IngestError, match="another run reads files of source"):
        ingest(storage, rules, batch_rows=20, on_batch=another_run)
    ingest(storage, rules)
    found = state_of(storage)
    assert (found.logs, without_ids(found)) == (whole.logs, without_ids(whole))


KILLED = """
import os, signal, sys
from pathlib import Path
from fiberstore import DuckDBStorage
from fiberstore.ingest.pipeline import ingest
from fiberstore.ingest.rules import load_rules
from fiberstore.repositories.storage import SqlStorage
def stop(report):
    if report.logs_read >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
with DuckDBStorage(sys.argv[1]) as storage:
    storage.init_schema()
    ingest(storage, load_rules(Path(sys.argv[2])), batch_rows=int(sys.argv[4]), on_batch=stop)
"""


@pytest.mark.slow
def test_a_killed_run_started_again_ends_like_one_that_was_not(
    db_file: Path, tmp_path: Path, rules_file: Path, storage: DuckDBStorage
) -> None:
    write_logs(tmp_path, 900)
    ingest(storage, load_rules(rules_file))
    for stop_after, batch_rows in ((100, 10), (400, 33), (10**9, 50)):
        arguments = [db_file, rules_file, stop_after, batch_rows]
        end = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], check=False)
        assert end.returncode == (0 if stop_after == 10**9 else -signal.SIGKILL)
    with DuckDBStorage(db_file) as killed:
        assert state_of(killed) == state_of(storage)


def test_an_interrupt_keeps_whole_batches(storage: DuckDBStorage, tmp_path: Path, rules_file: Path) -> None:
    write_logs(tmp_path, 300)

    def interrupt(report: IngestReport) -> None:
        if report.logs_read == 60:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        ingest(storage, load_rules(rules_file), batch_rows=20, on_batch=interrupt)
    assert len(state_of(storage).logs) == 60


def test_a_batch_has_a_row(storage: DuckDBStorage, tmp_path: Path, rules_file: Path) -> None:
    write_logs(tmp_path, 10)
    with pytest.raises(ValueError, match="batch_rows"):
        ingest(storage, load_rules(rules_file), batch_rows=0)


@pytest.mark.slow
def test_a_line_of_ten_megabytes_is_stored_whole(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    (tmp_path / "db.log").touch()
    line = "2024-05-01T10:00:00+00:00 request=1 " + "x" * 10_000_000
    (tmp_path / "web.log").write_text(f"{line}\n")
    ingest(storage, load_rules(rules_file))
    (fiber,) = storage.query_fibers_by_type("request")
    assert [log.raw_text for log in storage.get_fiber_logs(fiber.fiber_id)] == [line]


@pytest.mark.slow
def test_long_lines_end_a_batch_early(storage: DuckDBStorage, tmp_path: Path, rules_file: Path) -> None:
    (tmp_path / "db.log").touch()
    line = "2024-05-01T10:00:00+00:00 request=1 " + "x" * 10_000_000
    (tmp_path / "web.log").write_text(f"{line}\n" * 5)
    reports: list[IngestReport] = []
    ingest(storage, load_rules(rules_file), on_batch=reports.append)
    assert [report.logs_read for report in reports] == [4, 5]
    (fiber,) = storage.query_fibers_by_type("request")
    assert [log.raw_text for log in storage.get_fiber_logs(fiber.fiber_id)] == [line] * 5


def test_a_line_that_is_read_again_from_the_store_counts_once(
    storage: DuckDBStorage, tmp_path: Path, rules_file: Path
) -> None:
    """A late line that closes a fiber between its lines makes correlation read them again.

    Of the file that was read before, only the last line is read, which may have grown.
    """
    (tmp_path / "web.log").write_text(
        "".join(f"2024-05-01T10:00:0{n}Z request=1 session=a\n" for n in (0, 4))
    )
    (tmp_path / "db.log").write_text("")
    ingest(storage, load_rules(rules_file))
    (tmp_path / "db.log").write_text("2024-05-01 12:00:02 session=a done\n")
    assert ingest(storage, load_rules(rules_file)).matches == {"request": [1, 1, 1]}
    assert storage.fibers.count() == 2
