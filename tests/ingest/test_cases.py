"""Real-world cases, each with its right result; most come from public reports of people who read logs."""

import bz2
import gzip
import itertools
import lzma
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from fiberstore import DuckDBStorage, Fiber, Membership, RawLog, SqlStorage
from fiberstore.ingest import IngestError, RulesError, ingest, load_rules
from tests.support.parameters import parametrize_mostly_slow

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

    def __init__(self, folder: Path, storage: SqlStorage) -> None:
        self.folder = folder
        self.storage = storage

    def write(self, **files: str | bytes) -> None:
        """Write files named by their stems: ``app`` is ``app.log``."""
        for name, content in files.items():
            (self.folder / f"{name}.log").write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )

    def ingest(self, rules: str, *files: str) -> list[str]:
        """Ingest, instead of the files of the rules those of source ``app``; return the warnings."""
        path = self.folder / "rules.toml"
        path.write_text(rules)
        loaded = load_rules(path, {"app": [self.folder / file for file in files]} if files else None)
        return ingest(self.storage, loaded).warnings(loaded)

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


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Case]:
    """Give a case with an empty store, always one of the same two."""
    stores = itertools.cycle([DuckDBStorage(":memory:"), DuckDBStorage(":memory:")])

    def make() -> Case:
        storage = next(stores)
        storage.init_schema()
        storage.logs.delete()
        storage.fibers.delete()
        for checkpoint in storage.checkpoints.all():
            storage.checkpoints.delete(checkpoint.name)
        return Case(tmp_path_factory.mktemp("case"), storage)

    return make


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


# Stamps.


def app(timestamp: str, stamp_format: str, *more: str) -> str:
    keys = "\n".join(more)
    return f"[sources.app]\npath = 'app.log'\ntimestamp = '{timestamp}'\nformat = {stamp_format!r}\n{keys}\n"


BY_JSON = (
    REQUEST
    + """
[[fibers.request.patterns]]
regex = '"req":"(?P<req>\\w+)"'
"""
)


def test_bad_stamp(case: Case) -> None:
    log = "2024-05-01 12:00:00 req=a one\n2024-02-30 12:00:01 req=a two\n2024-05-01 12:00:02 req=a three\n"
    with pytest.raises(
        IngestError, match=r'app\.log:2: .* or let .* sources\.app\.on_bad_stamp = "previous"'
    ):
        case.run(APP + BY_REQ, app=log)
    warnings = case.ingest(APP + 'on_bad_stamp = "previous"\n' + BY_REQ)
    assert warnings == ["app: stamps that are no time, whose lines have the time of the line before: 1"]
    result = case.result()
    assert result.times == ["2024-05-01T12:00:00Z", "2024-05-01T12:00:00Z", "2024-05-01T12:00:02Z"]
    assert result.sizes == [3]


def test_cri_offset_nanos(case: Case) -> None:
    log = (
        "2024-05-01T14:00:00.123456789+02:00 stdout F req=a one\n2024-05-01T14:00:01.5+02:00 stdout F req=a\n"
    )
    result = case.run(app(r"^\S+", "%Y-%m-%dT%H:%M:%S.%f%z") + BY_REQ, app=log)
    assert result.times == ["2024-05-01T12:00:00.123456Z", "2024-05-01T12:00:01.500000Z"]


@parametrize_mostly_slow(("name", "digits"), [("epoch_s", ".25"), ("epoch_ms", "000")])
def test_epoch(case: Case, name: str, digits: str) -> None:
    log = "".join(f'{{"ts":{1714564800 + second}{digits},"req":"a"}}\n' for second in range(3))
    result = case.run(app(r'"ts":(?P<ts>[\d.]+)', name) + BY_JSON, app=log)
    assert result.sizes == [3]
    assert result.times[0].startswith("2024-05-01T12:00:00")


def test_fraction_omitted(case: Case) -> None:
    stamps = "09:50:57.999Z", "09:50:58Z", "09:50:58.001Z"
    log = "".join(f'{{"ts":"2024-05-01T{stamp}","req":"a"}}\n' for stamp in stamps)
    result = case.run(app('"ts":"(?P<ts>[^"]+)"', "%Y-%m-%dT%H:%M:%S.%f%z") + BY_JSON, app=log)
    assert [time[17:] for time in result.times] == ["57.999000Z", "58Z", "58.001000Z"]
    assert result.sizes == [3]


def test_german_months(case: Case) -> None:
    """Names of months are English; the error says so."""
    rules = app(r"^\S+ \S+", "%d-%b-%Y %H:%M:%S", "timezone = 'UTC'") + BY_REQ
    with pytest.raises(IngestError, match=r"app\.log:1: .*names of months are English"):
        case.run(rules, app="15-Mär-2019 18:54:42 req=a one\n")


def test_twelve_hour_no_ampm(case: Case) -> None:
    with pytest.raises(RulesError, match="%I without %p"):
        case.run(app("^.", "%m/%d/%Y %I:%M:%S", "timezone = 'UTC'"))


def test_twelve_hour_clock(case: Case) -> None:
    rules = app("^.*? [AP]M", "%m/%d/%Y %I:%M:%S %p", "timezone = 'UTC'")
    log = "5/1/2024 11:59:59 AM a\n5/1/2024 12:00:01 PM b\n5/1/2024 1:00:01 PM c\n"
    assert [time[11:19] for time in case.run(rules, app=log).times] == ["11:59:59", "12:00:01", "13:00:01"]


def test_dst_fall_back(case: Case) -> None:
    """The file is in order; the clock was set back after the second line."""
    log = "".join(
        f"2024-10-27 {time}:00 req={req}\n"
        for time, req in (("02:10", "a"), ("02:50", "a"), ("02:05", "b"), ("02:20", "b"), ("03:05", "b"))
    )
    rules = (APP + BY_REQ).replace('"UTC"', '"Europe/Berlin"').replace("60s", "20m")
    result = case.run(rules, app=log)
    assert [time[11:16] for time in result.times] == ["00:10", "00:50", "01:05", "01:20", "02:05"]
    assert [len(fiber) for fiber in result.fibers if "req=b" in fiber[0]] in ([2, 1], [1, 2])


# Years that are not written.

SYSLOG = app(r"^\w{3} +\d+ \d\d:\d\d:\d\d", "%b %d %H:%M:%S", "timezone = 'UTC'")


def syslog(*stamps: str) -> str:
    return "".join(f"{stamp} h app: req=a {number}\n" for number, stamp in enumerate(stamps))


@pytest.mark.parametrize(
    ("stamps", "year", "years"),
    [
        (["Jan  1 00:00:01", "Dec 31 23:59:59", "Jan  1 00:00:02"], 2024, ["2023", "2024", "2024"]),
        (
            ["Dec 31 23:59:58", "Jan  1 00:00:01", "Dec 31 23:59:59", "Jan  1 00:00:02"],
            2023,
            ["2023"] * 2 + ["2024"] * 2,
        ),
    ],
    ids=["new_year_late_line", "new_year_rollover"],
)
def test_new_year(case: Case, stamps: list[str], year: int, years: list[str]) -> None:
    result = case.run(f"{SYSLOG}year = {year}\n{BY_REQ}", app=syslog(*stamps))
    assert [time[:4] for time in result.times] == years
    assert result.sizes == [len(stamps)]


def test_year_of_next_file(case: Case) -> None:
    """The rotated file of January continues December by the same rules, also when it is read again."""
    case.write(dec=syslog("Dec 31 23:59:58"), jan=syslog("Jan  1 00:00:01", "Jan  1 00:00:02"))
    rules = f"{SYSLOG}year = 2023\n{BY_REQ}"
    for file in ("dec.log", "jan.log", "dec.log", "jan.log"):
        case.ingest(rules, file)
    result = case.result()
    assert [time[:4] for time in result.times] == ["2023", "2024", "2024"]
    assert result.sizes == [3]


def test_the_year_is_that_of_the_time_of_the_file(case: Case) -> None:
    case.write(app=syslog("Dec 31 23:59:58", "Jan  1 00:00:01"))
    os.utime(case.folder / "app.log", (1704067300, 1704067300))
    told = "app: files whose year is of their own time or earlier lines, not sources.app.year: 1"
    assert case.ingest(SYSLOG + BY_REQ) == [told]
    os.utime(case.folder / "app.log")
    case.ingest(SYSLOG + BY_REQ)
    assert [time[:4] for time in case.result().times] == ["2023", "2024"]


def test_the_files_of_one_reading_follow_one_another(case: Case) -> None:
    case.write(dec=syslog("Dec 31 23:59:58"), jan=syslog("Jan  1 00:00:01"))
    os.utime(case.folder / "dec.log", (1, 1))
    case.ingest(f"{SYSLOG}year = 2023\n{BY_REQ}", "jan.log", "dec.log")
    assert [time[:4] for time in case.result().times] == ["2023", "2024"]


# Files that grow, and several of them.


def test_partial_last_line(tmp_path: Path, any_storage: SqlStorage) -> None:
    case = Case(tmp_path, any_storage)
    begin = "2024-05-01 12:00:00 req=a start\n2024-05-01 12:00:01 req=a amount=12"
    case.run(APP + BY_REQ, app=begin)
    for _ in range(2):
        result = case.run(APP + BY_REQ, app=begin + "50 EUR\n2024-05-01 12:00:02 req=a end\n")
        assert [text for _, text in result.logs if "amount" in text] == [
            "2024-05-01 12:00:01 req=a amount=1250 EUR"
        ]
        assert (len(result.logs), result.sizes) == (3, [3])


@pytest.mark.slow
@example(cuts=[20, 75, 107, 114, 115, 116])
@given(cuts=st.lists(st.integers(0, 160), min_size=1, max_size=3))
def test_a_file_that_grows_by_any_bytes_ends_like_one_that_was_whole(
    case_of: Callable[[], Case], cuts: list[int]
) -> None:
    content = (
        "2024-05-01 12:00:00 req=a one\n  at x\n  at y\n2024-05-01 12:00:01 req=b two\n\n  at z\n"
        "2024-05-01 12:00:03 drei\u00e9 req=abc\n2024-05-01 12:00:03 req=b four\n"
    )
    case, whole = case_of(), case_of()
    for cut in [*sorted(cuts), 1000]:
        case.write(app=content.encode()[:cut])
        case.ingest(APP + BY_REQ)
    assert case.result() == whole.run(APP + BY_REQ, app=content)
    assert case.storage.fibers.count() == whole.storage.fibers.count()


def test_same_first_line_two_hosts(case: Case) -> None:
    case.write(**{
        host: f"2024-05-01 12:00:00 service starting\n2024-05-01 12:00:01 req={req} from {host}\n"
        for host, req in (("h1", "a"), ("h2", "b"))
    })  # fmt: skip
    for file in ("h1.log", "h2.log", "h1.log", "h2.log"):
        case.ingest(APP + BY_REQ, file)
    assert len(case.result().logs) == 4


def test_copytruncate(case: Case) -> None:
    first, second = lines("12:00:00", ["req=a one", "req=a two"]), lines("12:00:02", ["req=a three"])
    case.run(APP + BY_REQ, app=first)
    case.write(old=first, app=second)
    case.ingest(APP + BY_REQ, "old.log")
    case.ingest(APP + BY_REQ)
    result = case.result()
    assert (len(result.logs), result.sizes) == (3, [3])


def test_two_files_one_source(case: Case) -> None:
    case.write(new=lines("12:00:02", ["req=a three"]), old=lines("12:00:00", ["req=a one", "req=a two"]))
    case.ingest(APP + BY_REQ, "new.log", "old.log")
    result = case.result()
    assert (len(result.logs), result.sizes) == (3, [3])


def test_paths_are_files_globs_and_directories(case: Case) -> None:
    (case.folder / "logs").mkdir()
    for number, name in enumerate(["app.log", "app.log.1", "other.txt"]):
        (case.folder / "logs" / name).write_text(lines(f"12:00:0{number}", ["req=a"]))
    counts = []
    for path in ("'logs/app.log'", "'logs/app*'", "['logs/*.1', 'logs/app.log', 'logs/other.txt']", "'logs'"):
        case.ingest(APP.replace('"app.log"', path) + BY_REQ)
        counts.append(len(case.result().logs))
    assert counts == [1, 2, 3, 3]


def zstd(content: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


@parametrize_mostly_slow("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_gzip(case: Case, compress: Callable[[bytes], bytes]) -> None:
    """Compressed files are known by their first bytes; a damaged one is named."""
    content = lines("12:00:00", ["req=a one", "req=a two"]).encode()
    result = case.run(APP + BY_REQ, app=compress(content))
    assert (len(result.logs), result.sizes) == (2, [2])
    case.write(plain=content)
    case.ingest(APP + BY_REQ, "plain.log")
    assert case.result() == result
    case.write(app=compress(os.urandom(3000).hex().encode())[:-50])
    with pytest.raises(IngestError, match=r"app\.log: .*correct sources\.app\.path"):
        case.ingest(APP + BY_REQ)


# Bytes and lines.


@parametrize_mostly_slow(
    ("content_encoding", "setting"),
    [
        ("utf-8-sig", ""),
        ("utf-16", ""),
        ("utf-16", 'encoding = "utf-16"'),
        ("utf-16-be", 'encoding = "utf-16-be"'),
    ],
)
def test_byte_order_marks(case: Case, content_encoding: str, setting: str) -> None:
    """Cases utf8_bom and utf16_bom."""
    log = "2024-05-01 12:00:00 req=a \u010a\r\n2024-05-01 12:10:01 req=a two\n"
    rules = (APP + setting + BY_REQ).replace("60s", "1h")
    result = case.run(rules, app=log.encode(content_encoding))
    assert result.logs == [
        ("2024-05-01T12:00:00Z", "2024-05-01 12:00:00 req=a \u010a"),
        ("2024-05-01T12:10:01Z", "2024-05-01 12:10:01 req=a two"),
    ]
    assert result.sizes == [2]


def test_nul_hole(case: Case) -> None:
    case.write(app=b"2024-05-01 12:00:00 req=a one\n" + bytes(64) + b"2024-05-01 12:00:01 req=a two\n")
    assert case.ingest(APP + BY_REQ) == ["app: NUL bytes left out before lines: 64"]
    assert case.result().sizes == [2]


def test_health_checks(case: Case) -> None:
    case.write(app=lines("12:00:00", [*["GET /healthz 200 req=h\n  more of it"] * 9, "GET /cart 200 req=a"]))
    warnings = case.ingest(APP + "drop = 'GET /healthz'\n" + BY_REQ)
    assert [text[20:] for _, text in case.result().logs] == ["GET /cart 200 req=a"]
    assert warnings == ["app: lines left out by drop: 18"]


def test_iis_headers(case: Case) -> None:
    head = "#Software: IIS\n"
    log = f"{head}2024-05-01 12:00:00 req=a one\n{head}#Date: 2024\n2024-05-01 12:00:09 req=a two\n"
    result = case.run(APP + "drop = ['^#']\n" + BY_REQ, app=log)
    assert [text[20:] for _, text in result.logs] == ["req=a one", "req=a two"]


def test_records_that_begin_without_a_stamp(case: Case) -> None:
    """MySQL's slow log has ``# Time`` once a second only, and ``# User@Host`` for each query."""
    log = (
        "# Time: 2024-05-01T12:00:00Z\n# User@Host: a\nselect 1;\n# User@Host: b\nselect 2;\n"
        "# Time: 2024-05-01T12:00:01Z\n# User@Host: c\nselect 3;\n"
    )
    result = case.run(app(r"^# Time: (\S+)", "iso8601", "record_start = '^# User@Host'"), app=log)
    assert [text.splitlines()[-1] for _, text in result.logs] == ["select 1;", "select 2;", "select 3;"]
    assert [time[17:19] for time in result.times] == ["00", "00", "01"]


def test_cri_partial(case: Case) -> None:
    log = (
        "2024-05-01T12:00:00.1Z stdout P req=a first half,\n2024-05-01T12:00:00.15Z stderr F other\n"
        "2024-05-01T12:00:00.2Z stdout F  second half\n2024-05-01T12:00:01.0Z stdout F req=a two\n"
    )
    rules = app(r"^\S+", "iso8601", "join = 'cri'") + BY_REQ
    case.write(app=log[:100])
    assert case.ingest(rules)[0] == "app: last lines that are not whole yet, left for later: 2"
    result = case.run(rules, app=log)
    assert [text[text.index("Z") :] for _, text in result.logs] == [
        "Z stdout F req=a first half, second half", "Z stderr F other", "Z stdout F req=a two",
    ]  # fmt: skip
    assert result.sizes == [2]


# What is told.


def test_continuation_only_typo(case: Case) -> None:
    log = "2024-05-01 12:00:00 req=a\n" + "".join(f"2024-05-01 12:00:0{n}.5 req=b{n}\n" for n in range(1, 9))
    case.write(app=log)
    (warning,) = case.ingest(app(r"^(?P<ts>\S+ [\d:]+) ", "iso8601", "timezone = 'UTC'") + BY_REQ)
    assert warning.startswith("app: 8 of 9 lines have no stamp, and were joined to the line before")


def test_rules_without_a_fiber_type(case: Case) -> None:
    case.write(app=lines("12:00:00", ["req=a"]))
    assert case.ingest(APP) == [
        "the rules have no fiber type, so no line joins another: add [fibers.NAME] to them"
    ]


def test_nothing_matches(case: Case) -> None:
    case.write(app=lines("12:00:00", ["request_id=a"]))
    (warning,) = case.ingest(APP + BY_REQ)
    assert warning.startswith(r"pattern 'req=(?P<req>\w+)' of fibers.request matched no line of app")


def test_empty_file(case: Case) -> None:
    assert case.run(APP + BY_REQ, app="").logs == []
