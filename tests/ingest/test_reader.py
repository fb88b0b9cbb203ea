"""Reading log files: every byte becomes part of a record, or a clear error says where and why not."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberstore.ids import stable_log_id
from fiberstore.ingest.reader import IngestError, read_source, read_sources
from fiberstore.ingest.rules import Rules, Source
from fiberstore.records import LogRecord

FRACTION = "%Y-%m-%d %H:%M:%S,%f"


def source(path: Path, content: bytes = b"", **changes: object) -> Source:
    path.write_bytes(content)
    fields: dict[str, object] = {
        "path": path,
        "timestamp": r"^(?P<ts>\d+-\d\d-\d\d \d\d:\d\d:\d\d)",
        "format": "%Y-%m-%d %H:%M:%S",
        "timezone": "UTC",
    }
    return Source.model_validate(fields | changes)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def read(path: Path, content: bytes, **changes: object) -> list[LogRecord]:
    return list(read_source("app", source(path, content, **changes)))


def texts(path: Path, content: bytes, **changes: object) -> list[str]:
    return [record.raw_text for record in read(path, content, **changes)]


def times(path: Path, content: bytes, **changes: object) -> list[str]:
    return [record.timestamp.isoformat() for record in read(path, content, **changes)]


def refusal(path: Path, content: bytes, **changes: object) -> str:
    with pytest.raises(IngestError) as caught:
        read(path, content + b"\n", **changes)
    return str(caught.value)


def test_a_line_becomes_a_record_whose_id_is_always_the_same(log: Path) -> None:
    first, second = read(log, b"2024-01-02 03:04:05 a\n2024-01-02 03:04:05 b\n")
    assert first.source_id == "app"
    assert first.raw_text == "2024-01-02 03:04:05 a"
    assert first.timestamp == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert first.log_id == stable_log_id("app", 1, first.raw_text, first.timestamp)
    assert second.log_id == stable_log_id("app", 2, second.raw_text, second.timestamp)


def test_equal_lines_are_different_records(log: Path) -> None:
    first, second = read(log, b"2024-01-02 03:04:05 a\n" * 2)
    assert first.log_id < second.log_id


def test_a_line_without_a_stamp_continues_the_line_before(log: Path) -> None:
    content = b"2024-01-02 03:04:05 Error\n  at x\n\n  at y\n2024-01-02 03:04:06 b"
    records = read(log, content)
    assert [record.raw_text for record in records] == [
        "2024-01-02 03:04:05 Error\n  at x\n\n  at y",
        "2024-01-02 03:04:06 b",
    ]
    assert records[1].log_id == stable_log_id("app", 5, records[1].raw_text, records[1].timestamp)


def test_lines_before_the_first_stamp_are_a_record_with_that_stamp(log: Path) -> None:
    head, first = read(log, b"# Version 1\n# Fields\n2024-01-02 03:04:05 a\n")
    assert head.raw_text == "# Version 1\n# Fields"
    assert head.timestamp == first.timestamp
    assert head.log_id == stable_log_id("app", 1, head.raw_text, head.timestamp)
    assert head.log_id < first.log_id


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n\n"])
def test_a_file_without_text_has_no_records(log: Path, content: bytes) -> None:
    assert read(log, content) == []


def test_blank_lines_before_the_first_stamp_are_no_record(log: Path) -> None:
    assert texts(log, b"\r\n\n2024-01-02 03:04:05 a\n") == ["2024-01-02 03:04:05 a"]


def test_lf_and_crlf_end_lines_and_a_lone_cr_does_not(log: Path) -> None:
    content = b"2024-01-02 03:04:05 10%\r20%\r\n2024-01-02 03:04:06 b\r\r\n2024-01-02 03:04:07 c\x0b\x85\n"
    assert texts(log, content, encoding="latin-1") == [
        "2024-01-02 03:04:05 10%\r20%",
        "2024-01-02 03:04:06 b\r",
        "2024-01-02 03:04:07 c\x0b\x85",
    ]


def test_a_line_of_10_mb(log: Path) -> None:
    stamp = b"2024-01-02 03:04:05 "
    records = read(log, stamp + b"x" * 10_000_000 + b"\n" + stamp + b"y\n")
    assert [len(record.raw_text) for record in records] == [10_000_020, 21]


def test_reading_is_a_stream(log: Path) -> None:
    steps: list[int] = []
    content = b"2024-01-02 03:04:05 a\n" * 50_000
    records = read_source("app", source(log, content), steps.append)
    next(records)
    assert steps == []
    assert sum(1 for _ in records) == 49_999
    assert sum(steps) == len(content)
    assert len(steps) > 10


@given(
    lines=st.lists(
        st.tuples(
            st.booleans(), st.text(st.characters(exclude_characters="\n\0", codec="utf-8"), max_size=5)
        ),
        max_size=12,
    ),
    line_end=st.sampled_from(["\n", "\r\n"]),
    last_end=st.booleans(),
)
def test_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[bool, str]], line_end: str, last_end: bool
) -> None:
    stamp = "2024-01-02 03:04:05 "
    written = ["#" + text.removesuffix("\r") + "#" for _, text in lines]
    written = [stamp + text if stamped else text for (stamped, _), text in zip(lines, written, strict=True)]
    path = tmp_path_factory.getbasetemp() / "nothing_lost.log"
    content = line_end.join(written) + (line_end if last_end and written else "")
    if any(stamped for stamped, _ in lines):
        records = texts(path, content.encode())
        assert "\n".join(records) == "\n".join(written)
        assert len(records) == sum(stamped for stamped, _ in lines) + (not lines[0][0])
    elif lines:
        assert "no line has a stamp" in refusal(path, content.encode())


# What bad input gets.


def test_a_file_in_which_no_line_has_a_stamp(log: Path) -> None:
    message = refusal(log, b"\n" + b"x" * 200 + b"\nb\n")
    assert message.startswith(f"{log}: no line has a stamp")
    assert r"^(?P<ts>\d+-\d\d-\d\d" in message
    assert f"'{'x' * 80}'" in message
    assert "change sources.app.timestamp" in message


def test_a_file_without_stamps_is_not_kept_in_memory(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiberstore.ingest.reader._MAX_UNSTAMPED", 100)
    content = b"no stamp here\n" * 10 + b"2024-01-02 03:04:05 a\n"
    assert "no line has a stamp" in refusal(log, content)
    assert "no line has a stamp" in refusal(log, b"\n" * 200)
    assert len(texts(log, content[-99:])) == 2


@pytest.mark.parametrize(
    ("bad_line", "stamp", "changes"),
    [
        (b"2024-13-02 03:04:05 b", "2024-13-02 03:04:05", {}),
        (b"2023-02-29 03:04:05 b", "2023-02-29 03:04:05", {}),
        (b"2024-01-02 03:04:05 b", "2024-01-02 03:04:05 b", {"timestamp": "^2024.*b$|^.{19}"}),
        (b"0-01-01 03:04:05 b", "0-01-01 03:04:05", {}),
        (b"2024-01-02 03:04:05,b", "2024-01-02 03:04:05,", {"timestamp": r"^.{19},\d*", "format": FRACTION}),
    ],
)
def test_a_stamp_that_does_not_fit_the_format(
    log: Path, bad_line: bytes, stamp: str, changes: dict[str, object]
) -> None:
    good_line = b"2024-01-02 03:04:05,1\n" if changes.get("format") else b"2024-01-02 03:04:05\n"
    message = refusal(log, good_line + bad_line, **changes)
    assert message.startswith(f"{log}:2: stamp {stamp!r} does not fit format ")
    assert "change sources.app.format or sources.app.timestamp" in message


def test_bytes_that_are_not_in_the_encoding(log: Path) -> None:
    content = b"2024-01-02 03:04:05 a\n2024-01-02 03:04:05 caf\xe9\r\n"
    message = refusal(log, content)
    assert message.startswith(f"{log}:2: byte 0xe9 at column 24 is not utf-8; set sources.app.encoding")
    assert texts(log, content, encoding="latin-1")[1] == "2024-01-02 03:04:05 café"
    assert texts(log, content, encoding_errors="backslashreplace")[1] == r"2024-01-02 03:04:05 caf\xe9"


def test_nul_bytes(log: Path) -> None:
    content = b"2024-01-02 03:04:05 a\n2024-01-02 03:04:05 \0b\n"
    message = refusal(log, content)
    assert message.startswith(f"{log}:2: NUL at character 21; ")
    assert 'set sources.app.encoding_errors = "backslashreplace"' in message
    assert texts(log, content, encoding_errors="backslashreplace")[1] == r"2024-01-02 03:04:05 \x00b"


def test_records_before_the_bad_line_are_read(log: Path) -> None:
    records = read_source("app", source(log, b"2024-01-02 03:04:05 a\n2024-01-02 03:04:06 b\n\xff"))
    assert next(records).raw_text == "2024-01-02 03:04:05 a"
    with pytest.raises(IngestError, match=r"app\.log:3: "):
        next(records)


def test_a_file_that_is_gone_when_reading_begins(log: Path) -> None:
    rules = source(log)
    log.unlink()
    with pytest.raises(IngestError, match=r"app\.log: No such file.*; correct sources\.app\.path"):
        next(read_source("app", rules))


# Stamps.


@pytest.mark.parametrize(
    "regex", [r"t=(?P<ts>\S+)()", r"t=(\S+) (.)", r"(?<=t=)\S+", r"(?P<x>t)=(?P<ts>\S+)"]
)
def test_the_stamp_is_group_ts_or_group_1_or_the_whole_match(log: Path, regex: str) -> None:
    assert times(log, b"a t=02.01.2024 b", timestamp=regex, format="%d.%m.%Y") == [
        "2024-01-02T00:00:00+00:00"
    ]


def test_a_match_without_the_group_is_no_stamp(log: Path) -> None:
    content = b"2024-01-02 a\ncontinued\n"
    assert len(read(log, content, timestamp="continued|(?P<ts>^[0-9-]+)", format="%Y-%m-%d")) == 1


@pytest.mark.parametrize(("digits", "microseconds"), [("1", 100_000), ("123", 123_000), ("000001", 1)])
def test_fractions_are_exact(log: Path, digits: str, microseconds: int) -> None:
    content = f"2024-01-02 03:04:05,{digits} a\n2024-01-02 03:04:06,{digits} b".encode()
    first, second = read(log, content, timestamp=r"^\S+ \S+", format=FRACTION)
    assert first.timestamp == datetime(2024, 1, 2, 3, 4, 5, microseconds, tzinfo=UTC)
    assert second.timestamp == first.timestamp + timedelta(seconds=1)


def test_fractions_without_a_sign_before_them(log: Path) -> None:
    record = read(log, b"20240102030405678 a", timestamp=r"^\d+", format="%Y%m%d%H%M%S%f")[0]
    assert record.timestamp == datetime(2024, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)


def test_a_zone_in_the_stamp_comes_before_that_of_the_rules(log: Path) -> None:
    content = b"2024-01-02T03:04:05+0530 a\n2024-01-02T03:04:05Z b"
    stamps = times(log, content, timestamp=r"^\S+", format="%Y-%m-%dT%H:%M:%S%z", timezone="Asia/Tokyo")
    assert stamps == ["2024-01-01T21:34:05+00:00", "2024-01-02T03:04:05+00:00"]


@pytest.fixture(params=["America/New_York", "Asia/Kolkata"])
def machine_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("machine_zone")
@pytest.mark.parametrize(
    ("stamp", "utc"),
    [
        ("2024-01-15 12:00:00", "2024-01-15T11:00:00+00:00"),
        ("2024-07-15 12:00:00", "2024-07-15T10:00:00+00:00"),
        ("2024-10-27 02:30:00", "2024-10-27T00:30:00+00:00"),  # twice: the first
        ("2024-03-31 02:30:00", "2024-03-31T01:30:00+00:00"),  # skipped: counted on from before
    ],
)
def test_the_zone_of_the_rules_has_summer_time_and_the_machine_has_no_say(
    log: Path, stamp: str, utc: str
) -> None:
    assert times(log, stamp.encode(), timezone="Europe/Berlin") == [utc]


def test_a_time_that_utc_cannot_hold(log: Path) -> None:
    assert "does not fit" in refusal(log, b"0001-01-01 00:00:00 a", timezone="Europe/Berlin")


def dates(log: Path, lines: str, year: int, **changes: object) -> list[str]:
    fields = {"timestamp": r"^\w+ +\d+ [\d:]+", "format": "%b %d %H:%M:%S", "year": year} | changes
    content = "".join(f"{line} 12:00:00 x\n" for line in lines.split(", "))
    return [stamp[:10] for stamp in times(log, content.encode(), **fields)]


def test_a_year_begins_where_the_stamps_step_back(log: Path) -> None:
    assert dates(log, "Jun 30, Dec 31, Dec 31, Jan  1, Feb 29", 2023) == [
        "2023-06-30",
        "2023-12-31",
        "2023-12-31",
        "2024-01-01",
        "2024-02-29",
    ]


def test_a_late_line_of_the_old_year(log: Path) -> None:
    assert dates(log, "Dec 31, Jan 1, Dec 31, Dec 31, Jan 1, Jan 2", 2023) == [
        "2023-12-31",
        "2024-01-01",
        "2023-12-31",
        "2023-12-31",
        "2024-01-01",
        "2024-01-02",
    ]


def test_the_29th_of_february_needs_a_leap_year(log: Path) -> None:
    assert dates(log, "Feb 29", 2024) == ["2024-02-29"]
    with pytest.raises(IngestError, match="stamp 'Feb 29 12:00:00' does not fit format"):
        dates(log, "Feb 29", 2023)


def test_a_year_in_the_stamp_comes_before_that_of_the_rules(log: Path) -> None:
    assert times(log, b"2024-01-02 03:04:05\n", year=1999) == ["2024-01-02T03:04:05+00:00"]


# Several files.


def merged(folder: Path, **contents: str) -> list[tuple[str, str]]:
    """Read files of lines that are named by their second of the minute."""
    sources = {
        name: source(
            folder / name, "".join(f"2024-01-01 00:00:{word}\n" for word in content.split()).encode()
        )
        for name, content in contents.items()
    }
    records = read_sources(Rules(sources=sources, fibers={}, config_version=0))
    return [(record.source_id, record.raw_text[17:]) for record in records]


def test_files_are_merged_by_time(tmp_path: Path) -> None:
    assert merged(tmp_path, a="01 04", b="02 03 05", c="") == [
        ("a", "01"),
        ("b", "02"),
        ("b", "03"),
        ("a", "04"),
        ("b", "05"),
    ]


def test_equal_times_come_in_the_order_of_the_rules(tmp_path: Path) -> None:
    assert merged(tmp_path, b="01 01 02", a="01 02") == [
        ("b", "01"),
        ("b", "01"),
        ("a", "01"),
        ("b", "02"),
        ("a", "02"),
    ]


def test_the_order_of_a_file_is_kept(tmp_path: Path) -> None:
    assert merged(tmp_path, a="05 01 06", b="02 07") == [
        ("b", "02"),
        ("a", "05"),
        ("a", "01"),
        ("a", "06"),
        ("b", "07"),
    ]


def test_files_in_different_zones_are_merged_by_instant(tmp_path: Path) -> None:
    line = b"2024-01-01 12:00:00 x\n"
    sources = {
        name: source(tmp_path / name, line, timezone=zone)
        for name, zone in (("new_york", "America/New_York"), ("utc", "UTC"), ("berlin", "Europe/Berlin"))
    }
    assert sources["berlin"].timezone == ZoneInfo("Europe/Berlin")
    records = read_sources(Rules(sources=sources, fibers={}, config_version=0))
    assert [record.source_id for record in records] == ["berlin", "utc", "new_york"]


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    contents = {"a": b"2024-01-01 00:00:00 x\r\n" * 10_000, "b": b"2024-01-01 00:00:00 \xc3\xa9", "c": b""}
    sources = {name: source(tmp_path / name, content) for name, content in contents.items()}
    steps: list[int] = []
    for _ in read_sources(Rules(sources=sources, fibers={}, config_version=0), steps.append):
        pass
    assert sum(steps) == sum(map(len, contents.values()))
    assert max(steps) < 1 << 17
