"""Real-world cases, each with its right result; most come from public reports of people who read logs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from fiberstore import DuckDBStorage, Fiber, Membership, RawLog
from fiberstore.ingest import ingest, load_rules

STAMPS = r"""
timestamp = '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d'
format = "%Y-%m-%d %H:%M:%S"
timezone = "UTC"
"""
APP = f"""
[sources.app]
path = "app.log"
{STAMPS}
"""
REQUEST = """
[fibers.request]
max_gap = "60s"
"""
BY_REQ = (
    REQUEST
    + r"""
[[fibers.request.patterns]]
source = "app"
regex = 'req=(?P<req>\w+)'
"""
)


@dataclass
class Result:
    """The logs of a store as times in UTC and texts, and the texts of each fiber, all in order of time."""

    logs: list[tuple[str, str]]
    fibers: list[list[str]]

    @property
    def times(self) -> list[str]:
        return [time for time, _ in self.logs]

    @property
    def sizes(self) -> list[int]:
        return sorted(map(len, self.fibers))


class Case:
    """A folder with log files, and a store."""

    def __init__(self, folder: Path, storage: DuckDBStorage) -> None:
        self.folder = folder
        self.storage = storage

    def write(self, **files: str | bytes) -> None:
        """Write files named by their stems: ``app`` is ``app.log``."""
        for name, content in files.items():
            (self.folder / f"{name}.log").write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )

    def ingest(self, rules: str, overrides: Mapping[str, str] | None = None) -> None:
        path = self.folder / "rules.toml"
        path.write_text(rules)
        paths = {name: self.folder / file for name, file in (overrides or {}).items()}
        ingest(self.storage, load_rules(path, paths))

    def result(self) -> Result:
        with self.storage.session() as session:
            logs = session.execute(
                sa.select(RawLog.timestamp, RawLog.raw_text).order_by(RawLog.timestamp, RawLog.log_id)
            )
            texts = [(time.isoformat().replace("+00:00", "Z"), text) for time, text in logs]
            members = session.execute(
                sa.select(Fiber.fiber_id, RawLog.raw_text)
                .join(Membership, Membership.fiber_id == Fiber.fiber_id)
                .join(RawLog, RawLog.log_id == Membership.log_id)
                .order_by(RawLog.timestamp, RawLog.log_id)
            )
            fibers: dict[object, list[str]] = {}
            for fiber_id, text in members:
                fibers.setdefault(fiber_id, []).append(text)
        return Result(texts, list(fibers.values()))

    def run(self, rules: str, **files: str | bytes) -> Result:
        self.write(**files)
        self.ingest(rules)
        return self.result()


@pytest.fixture
def case(tmp_path: Path, duckdb_storage: DuckDBStorage) -> Case:
    return Case(tmp_path, duckdb_storage)


def lines(start: str, texts: Sequence[str], step: int = 1) -> str:
    """Lines of 2024-05-01, one every ``step`` seconds from ``start`` on."""
    hour, minute, second = map(int, start.split(":"))
    stamps = [f"2024-05-01 {hour:02}:{minute:02}:{second + step * number:02}" for number in range(len(texts))]
    return "".join(f"{stamp} {text}\n" for stamp, text in zip(stamps, texts, strict=True))


def numbered(result: Result, text: str) -> list[str]:
    """Each fiber as the numbers of its lines in the file."""
    order = text.splitlines()
    return [" ".join(str(order.index(line) + 1) for line in fiber) for fiber in result.fibers]


# Correlation.


def test_composite_key(case: Case) -> None:
    """One mail is host and queue id together."""
    mails = ("mx1", "Q1 from"), ("mx2", "Q1 from"), ("mx1", "Q2 from"), ("mx1", "Q1 to"), ("mx2", "Q1 to")
    log = lines("12:00:00", [f"{host} sendmail: qid={what}" for host, what in mails])
    rules = r"""
[[fibers.request.patterns]]
source = "app"
regex = ':\d\d (?P<host>\S+) sendmail: qid=(?P<qid>\w+)'
key = ["host", "qid"]
"""
    assert sorted(numbered(case.run(APP + REQUEST + rules, app=log), log)) == ["1 4", "2 5", "3"]


def test_error_level(case: Case) -> None:
    """A level is known of a fiber, and joins nothing."""
    rules = r"""
[[fibers.request.patterns]]
source = "app"
regex = '(?P<level>[A-Z]+) req=(?P<req>\w+)'
key = ["req"]
"""
    result = case.run(APP + REQUEST + rules, app=lines("12:00:00", ["ERROR req=a x", "ERROR req=b y"]))
    assert result.sizes == [1, 1]


def test_hdfs_many_blocks(case: Case) -> None:
    """A line that names three blocks is in the fibers of all three, which stay three."""
    log = (
        "".join(f"2024-05-01 12:00:00 allocate blk_{number}\n" for number in (1, 2, 3))
        + "2024-05-01 12:00:05 ask to delete blk_1 blk_2 blk_3\n"
    )
    rules = r"""
[[fibers.request.patterns]]
source = "app"
regex = '(?P<blk>blk_-?\d+)'
each = true
"""
    assert sorted(numbered(case.run(APP + REQUEST + rules, app=log), log)) == ["1 4", "2 4", "3 4"]


def test_id_other_spelling(case: Case) -> None:
    log = lines(
        "12:00:00",
        ["trace=4BF92F3577B34DA6A3CE929D0E0E4736 gw", "trace=4bf92f35-77b3-4da6-a3ce-929d0e0e4736 billing"],
    )
    rules = r"""
[[fibers.request.patterns]]
source = "app"
regex = 'trace=(?P<trace>[0-9A-Fa-f-]+)'
normalize = { trace = "hex" }
"""
    assert case.run(APP + REQUEST + rules, app=log).sizes == [2]


def test_start_pattern(case: Case) -> None:
    """A worker's line with GET begins a new fiber, even though the old one is open."""
    log = lines(
        "12:00:00", [f"[w-1] {what}" for what in ("GET /a", "query", "sent", "GET /b", "query", "sent")]
    )
    rules = r"""
[[fibers.request.patterns]]
source = "app"
regex = '\[(?P<thread>w-\d)\]'
[[fibers.request.patterns]]
source = "app"
regex = '\[(?P<thread>w-\d)\] GET'
start = true
"""
    assert sorted(numbered(case.run(APP + REQUEST + rules, app=log), log)) == ["1 2 3", "4 5 6"]


def test_after_close(case: Case) -> None:
    """Lines of the closing line's second still belong to its fiber."""
    log = (
        "2024-05-01 12:00:00 req=a open\n2024-05-01 12:00:01 req=a CLOSE\n2024-05-01 12:00:01 req=a sent 12\n"
    )
    rules = r"""
[[fibers.request.patterns]]
source = "app"
regex = 'req=(?P<req>\w+) CLOSE'
close = true
"""
    assert case.run(APP + BY_REQ + rules + 'close_grace = "0s"\n', app=log).sizes == [3]


def test_wildcard_source(case: Case) -> None:
    sources = "".join(f'[sources.{name}]\npath = "{name}.log"\n{STAMPS}\n' for name in "ab")
    rules = sources + REQUEST + r"[[fibers.request.patterns]]" + "\n" + r"regex = 'req=(?P<req>\w+)'"
    result = case.run(rules, a=lines("12:00:00", ["req=a"]), b=lines("12:00:01", ["req=a"]))
    assert result.sizes == [2]
