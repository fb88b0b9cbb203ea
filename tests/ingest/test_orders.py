"""Fibers of log files, whatever order they are read in: cases from the practice of people who read logs."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from fiberstore import DuckDBStorage
from fiberstore.contract.queries import Fibers
from fiberstore.ingest import Correlator, ingest, load_rules, reprocess
from fiberstore.records import FiberKey, FiberMembership, FiberRecord, LogRecord, StoredLog
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.models import KeyedFiber

SOURCE = r"""
[sources.{name}]
path = "{name}.log"
timestamp = '^\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d:\d\d'
format = "%Y-%m-%d %H:%M:%S"
timezone = "UTC"
"""
REQUEST = """
[fibers.request]
max_gap = "60s"
[[fibers.request.patterns]]
"""


@pytest.fixture
def read(storage: DuckDBStorage, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Ingest files with rules, and return the texts of each fiber's lines."""

    def read(patterns: str, **files: str) -> list[list[str]]:
        sources = "".join(SOURCE.format(name=name) for name in files)
        (tmp_path / "rules.toml").write_text(sources + REQUEST + patterns)
        for name, text in files.items():
            (tmp_path / f"{name}.log").write_text(text)
        ingest(storage, load_rules(tmp_path / "rules.toml"))
        return fibers_of(storage)

    return read


def fibers_of(storage: SqlStorage) -> list[list[str]]:
    """The texts of each fiber's lines without their dates, by first line."""
    return [
        [log.raw_text.partition(" ")[2] for log in storage.get_fiber_logs(fiber.fiber_id)]
        for fiber in storage.query_fibers_by_type("request")
    ]


GATEWAY = "2024-05-01 12:00:00 req=a in\n2024-05-01 13:00:00 req=b in\n"
DATABASE = "2024-05-01 12:00:01 req=a query\n2024-05-01 13:00:01 req=b query\n"
WHOLE = [["12:00:00 req=a in", "12:00:01 req=a query"], ["13:00:00 req=b in", "13:00:01 req=b query"]]


def two_runs(storage: DuckDBStorage, folder: Path, order: tuple[str, ...]) -> None:
    """Read two sources, each in a run of its own."""
    (folder / "rules.toml").write_text(
        SOURCE.format(name="gw") + SOURCE.format(name="db") + REQUEST + r"regex = 'req=(?P<req>\w+)'"
    )
    (folder / "gw.log").write_text(GATEWAY)
    (folder / "db.log").write_text(DATABASE)
    (folder / "empty.log").touch()
    for name in order:
        others = {other: folder / "empty.log" for other in ("gw", "db") if other != name}
        ingest(storage, load_rules(folder / "rules.toml", others))


@pytest.mark.parametrize("order", [("gw", "db"), ("db", "gw")])
def test_sources_in_any_order_make_whole_fibers(
    storage: DuckDBStorage, tmp_path: Path, order: tuple[str, ...]
) -> None:
    two_runs(storage, tmp_path, order)
    assert fibers_of(storage) == WHOLE


@pytest.mark.slow
def test_reprocess_heals_fibers_of_an_older_release(storage: DuckDBStorage, tmp_path: Path) -> None:
    """Which left out where keys begin, and went by the order of reading: a later source was apart."""
    two_runs(storage, tmp_path, ("gw", "db"))
    rules = load_rules(tmp_path / "rules.toml")
    logs = storage.query_logs_by_time(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    split_as_before(storage, rules.config_version, logs)
    assert len(fibers_of(storage)) == 4
    reprocess(storage, rules)
    assert fibers_of(storage) == WHOLE
    with storage.session() as session:
        assert not session.scalars(sa.select(KeyedFiber).where(KeyedFiber.first_log_id.is_(None))).all()
    assert reprocess(storage, rules).memberships_new == 0


def test_ingest_heals_the_fibers_that_its_lines_meet(storage: DuckDBStorage, tmp_path: Path) -> None:
    two_runs(storage, tmp_path, ("gw", "db"))
    rules = load_rules(tmp_path / "rules.toml")
    logs = storage.query_logs_by_time(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    split_as_before(storage, rules.config_version, logs)
    late = LogRecord(timestamp=logs[0].timestamp, source_id="gw", raw_text="2024-05-01 req=a late")
    Correlator(storage, rules).write([late])
    assert sorted(map(len, fibers_of(storage))) == [1, 1, 3]


def split_as_before(storage: DuckDBStorage, version: int, logs: list[StoredLog]) -> None:
    """Put each log into a fiber of its own, with keys as the migration makes them."""
    storage.fibers.where(Fibers.c.fiber_type == "request").delete()
    for log in logs:
        times = {"first_activity": log.timestamp, "last_activity": log.timestamp}
        name = log.raw_text[24]
        storage.write_fiber(
            FiberRecord(
                fiber_id=log.log_id, fiber_type="request", config_version=version,
                attributes={"req": [name]}, closed=True, **times,
            )
        )  # fmt: skip
        storage.write_keys(
            [FiberKey(fiber_id=log.log_id, name="req", value=name, first_timestamp=log.timestamp)]
        )
    storage.write_memberships(
        FiberMembership(log_id=log.log_id, fiber_id=log.log_id, config_version=version) for log in logs
    )


def test_a_stamp_from_the_future_closes_nothing(
    read: Callable[..., list[list[str]]], storage: DuckDBStorage
) -> None:
    lines = [f"2024-05-01 12:00:0{n} req={name} x" for n, name in enumerate("abab_abab")]
    lines[4] = "2134-05-01 12:00:04 req=z clock was wrong"
    found = read("regex = 'req=(?P<req>\\w+)'", app="\n".join(lines) + "\n")
    assert [len(fiber) for fiber in found] == [4, 4, 1]
    assert not any(fiber.closed for fiber in storage.query_fibers_by_type("request"))


@pytest.mark.parametrize(
    ("grace", "sizes"), [("", [2, 1]), ('close_grace = "0s"', [3]), ('close_grace = "1s"', [3])]
)
def test_lines_of_the_closing_moment_need_a_grace(
    read: Callable[..., list[list[str]]], grace: str, sizes: list[int]
) -> None:
    found = read(
        r"""
regex = 'req=(?P<req>\w+)'
[[fibers.request.patterns]]
regex = 'req=(?P<req>\w+) CLOSE'
close = true
"""
        + grace,
        app="2024-05-01 12:00:00 req=a open\n"
        "2024-05-01 12:00:01 req=a CLOSE\n2024-05-01 12:00:01 req=a sent\n",
    )
    assert [len(fiber) for fiber in found] == sizes


def test_a_start_begins_a_fiber_though_the_old_one_is_open(read: Callable[..., list[list[str]]]) -> None:
    texts = ["GET /a", "query", "sent", "GET /b", "query", "sent"]
    lines = [f"2024-05-01 12:00:0{n} [w-1] {text}" for n, text in enumerate(texts)]
    found = read(
        r"""
regex = '\[(?P<thread>w-\d)\]'
[[fibers.request.patterns]]
regex = '\[(?P<thread>w-\d)\] GET'
start = true
""",
        app="\n".join(lines) + "\n",
    )
    assert [len(fiber) for fiber in found] == [3, 3]


def test_groups_that_are_one_key_join_together_only(read: Callable[..., list[list[str]]]) -> None:
    mails = [("mx1", "Q1"), ("mx2", "Q1"), ("mx1", "Q2"), ("mx1", "Q1"), ("mx2", "Q1")]
    found = read(
        r"""
regex = ' (?P<host>mx\d) sendmail: qid=(?P<qid>\w+)'
key = ["host", "qid"]
""",
        app="".join(
            f"2024-05-01 12:00:0{n} {host} sendmail: qid={qid}\n" for n, (host, qid) in enumerate(mails)
        ),
    )
    assert sorted(len(fiber) for fiber in found) == [1, 2, 2]


def test_every_match_of_a_line_is_a_fiber_of_its_own(read: Callable[..., list[list[str]]]) -> None:
    lines = [f"2024-05-01 12:00:00 allocate blk_{n}\n" for n in (1, 2, 3)]
    last = "2024-05-01 12:00:05 ask to delete blk_1 blk_2 blk_3\n"
    found = read("regex = '(?P<blk>blk_-?\\d+)'\neach = true\n", app="".join(lines) + last)
    assert [len(fiber) for fiber in found] == [2, 2, 2]
    assert {fiber[1] for fiber in found} == {"12:00:05 ask to delete blk_1 blk_2 blk_3"}


def test_attributes_join_nothing(read: Callable[..., list[list[str]]], storage: DuckDBStorage) -> None:
    found = read(
        "regex = '(?P<level>[A-Z]+) req=(?P<req>\\w+)'\nkey = [\"req\"]\n",
        app="2024-05-01 12:00:00 ERROR req=a x\n"
        "2024-05-01 12:00:01 ERROR req=b y\n2024-05-01 12:00:02 INFO req=b\n",
    )
    assert [len(fiber) for fiber in found] == [1, 2]
    assert [fiber.attributes for fiber in storage.query_fibers_by_type("request")] == [
        {"req": ["a"], "level": ["ERROR"]}, {"req": ["b"], "level": ["ERROR", "INFO"]},
    ]  # fmt: skip


MERGES = """
import re, sys
from pathlib import Path
from datetime import UTC, datetime, timedelta
from fiberstore import DuckDBStorage
from fiberstore.ingest import Correlator, parse_rules
from fiberstore.records import LogRecord
rules = parse_rules(sys.argv[2])
noon = datetime(2024, 5, 1, tzinfo=UTC)
def log(second, text):
    return LogRecord(timestamp=noon + timedelta(seconds=second), source_id="any", raw_text=text)
with DuckDBStorage(sys.argv[1]) as storage:
    storage.init_schema()
    correlator = Correlator(storage, rules)
    correlator.write([log(n, f"a=old{n}") for n in range(1_000)])
    for start in range(0, 30_000, 10_000):
        correlator.write([log(2_000 + n // 10, f"a=big b=k{n}") for n in range(start, start + 10_000)])
    correlator.write([log(6_000 + n, f"a=big b=old a2=old{999 - n}") for n in range(1_000)])
    assert storage.fibers.count() == 1
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_merges_take_little_memory(db_file: Path) -> None:
    """1,000 older fibers that become part of one with 30,000 keys, in one batch."""
    rules = """
[sources.any]
[fibers.f]
max_gap = "infinite"
[[fibers.f.patterns]]
regex = 'a=(?P<a>\\w+)'
[[fibers.f.patterns]]
regex = 'b=(?P<b>\\w+)'
[[fibers.f.patterns]]
regex = 'a2=(?P<a>\\w+)'
"""
    run = subprocess.run(
        [sys.executable, "-c", MERGES, db_file, rules], check=True, capture_output=True, text=True
    )
    assert (
        int(run.stdout) < 350 * 1024
    )  # kB, of which imports take 220; ru_maxrss would be that of pytest, which has started it
