"""Stamps: what each format reads, and how those are dated that leave something open."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberstore.ingest.stamps import Clock, NoZoneError, check_format
from fiberstore.records import from_epoch_us
from tests.support.parameters import parametrize_mostly_slow

BERLIN = ZoneInfo("Europe/Berlin")


def times(first: str, last: str) -> st.SearchStrategy[datetime]:
    return st.datetimes(datetime.fromisoformat(first), datetime.fromisoformat(last))


def read(*stamps: str, formats: str | list[str] = "iso8601", zone: str = "UTC") -> list[str]:
    clock = Clock([formats] if isinstance(formats, str) else formats, ZoneInfo(zone))
    return [from_epoch_us(clock.read(stamp)).isoformat().replace("+00:00", "Z") for stamp in stamps]


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        ("2024-05-01T12:00:00Z", "2024-05-01T12:00:00Z"),
        ("2024-05-01 12:00:00", "2024-05-01T12:00:00Z"),
        ("2024-05-01t12:00:00z", "2024-05-01T12:00:00Z"),
        ("2024-05-01T12:00Z", "2024-05-01T12:00:00Z"),
        ("20240501T120000Z", "2024-05-01T12:00:00Z"),
        ("2024-05-01T14:00:00+02", "2024-05-01T12:00:00Z"),
        ("2024-05-01T14:00:00+0200", "2024-05-01T12:00:00Z"),
        ("2024-05-01 14:00:00 +02:00", "2024-05-01T12:00:00Z"),
        ("2024-05-01T08:30:00-03:30", "2024-05-01T12:00:00Z"),
        ("2024-05-01 12:00:00,123 UTC", "2024-05-01T12:00:00.123000Z"),
        ("2024-05-01T12:00:00.5Z", "2024-05-01T12:00:00.500000Z"),
        ("2024-05-01T12:00:00.123456789+00:00", "2024-05-01T12:00:00.123456Z"),
        ("2024-05-01T12:00:00.999999999999Z", "2024-05-01T12:00:00.999999Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
        ("2016-12-31T23:59:60.25Z", "2016-12-31T23:59:59.999999Z"),
    ],
)
def test_iso8601(stamp: str, time: str) -> None:
    assert read(stamp) == [time]


@pytest.mark.parametrize(
    "stamp", ["2024-05-01", "2024-13-01T00:00:00Z", "12:00:00", "2024-05-01T12:30:60Z", ""]
)
def test_iso8601_refuses_other_texts(stamp: str) -> None:
    with pytest.raises(ValueError, match=r"form|second|month"):
        read(stamp)


def test_iso8601_without_a_zone_anywhere() -> None:
    with pytest.raises(NoZoneError):
        Clock(["iso8601"], None).read("2024-05-01T12:00:00")
    assert from_epoch_us(Clock(["iso8601"], None).read("2024-05-01T12:00:00Z")) == datetime(
        2024, 5, 1, 12, tzinfo=UTC
    )


@given(times("0001-01-02", "9999-12-30"), st.integers(-1439, 1439))
def test_iso8601_reads_what_python_writes(time: datetime, minutes: int) -> None:
    stamp = time.isoformat() + f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    assert from_epoch_us(Clock(["iso8601"], None).read(stamp)) == datetime.fromisoformat(stamp)


@pytest.mark.parametrize(
    ("name", "stamp", "time"),
    [
        ("epoch_s", "1714564800", "2024-05-01T12:00:00Z"),
        ("epoch_s", "1714564800.25", "2024-05-01T12:00:00.250000Z"),
        ("epoch_s", "1714564800.9999999", "2024-05-01T12:00:00.999999Z"),
        ("epoch_ms", "1714564800001", "2024-05-01T12:00:00.001000Z"),
        ("epoch_ms", "1714564800001.5", "2024-05-01T12:00:00.001500Z"),
        ("epoch_us", "1714564800000001", "2024-05-01T12:00:00.000001Z"),
        ("epoch_ns", "1714564800000001999", "2024-05-01T12:00:00.000001Z"),
        ("epoch_s", "-0.5", "1969-12-31T23:59:59.500000Z"),
    ],
)
def test_numbers_since_1970(name: str, stamp: str, time: str) -> None:
    assert read(stamp, formats=name) == [time]


@pytest.mark.parametrize("stamp", ["1e9", "", "x", "1714564800,5", "99999999999999"])
def test_numbers_since_1970_refuse_other_texts(stamp: str) -> None:
    with pytest.raises(ValueError, match=r"no number|outside the years"):
        read(stamp, formats="epoch_s")


@pytest.mark.parametrize(
    ("stamp_format", "stamp", "time"),
    [
        ("%Y-%m-%dT%H:%M:%S.%f%z", "2024-05-01T14:00:01.5+02:00", "2024-05-01T12:00:01.500000Z"),
        ("%Y-%m-%dT%H:%M:%S.%f%z", "2024-05-01T09:50:58Z", "2024-05-01T09:50:58Z"),
        ("%Y-%m-%dT%H:%M:%S.%f%z", "2024-05-01T14:00:00.123456789+02", "2024-05-01T12:00:00.123456Z"),
        ("%Y-%m-%d %H:%M:%S,%f", "2024-05-01 12:00:00", "2024-05-01T12:00:00Z"),
        ("%d.%m.%y %H:%M:%S", "01.05.24 12:00:00", "2024-05-01T12:00:00Z"),
        ("%Y%m%d%H%M%S%f", "20240501120000678", "2024-05-01T12:00:00.678000Z"),
        ("%Y %j %H:%M", "2024 122 12:00", "2024-05-01T12:00:00Z"),
        ("%a %b %d %H:%M:%S %Y", "Wed May  1 12:00:00 2024", "2024-05-01T12:00:00Z"),
        ("%A, %d %B %Y %I:%M %p", "Wednesday, 1 may 2024 12:30 AM", "2024-05-01T00:30:00Z"),
        ("%G-%V-%u %H", "2024-18-3 12", "2024-05-01T12:00:00Z"),
        ("%d/%b/%Y:%H:%M:%S %z", "31/Dec/2016:23:59:60 +0000", "2016-12-31T23:59:59.999999Z"),
    ],
)
def test_directives_of_strptime(stamp_format: str, stamp: str, time: str) -> None:
    check_format(stamp_format)
    assert read(stamp, formats=stamp_format) == [time]


@given(times("1970-01-01", "2068-12-31"))
def test_directives_read_what_python_writes(time: datetime) -> None:
    for stamp_format in ("%d/%b/%Y %H:%M:%S.%f", "%A %d %B %y %I:%M:%S %p %f", "%Y-%j %H%M%S%f"):
        got = from_epoch_us(Clock([stamp_format], UTC).read(time.strftime(stamp_format)))
        assert got == time.replace(tzinfo=UTC)


def test_formats_are_tried_one_after_the_other() -> None:
    formats = ["%Y-%m-%d %H:%M:%S", "epoch_ms", "%b %d %H:%M:%S %Y"]
    stamps = "2024-05-01 12:00:00", "1714564800000", "May 1 12:00:00 2024"
    assert read(*stamps, formats=formats) == ["2024-05-01T12:00:00Z"] * 3


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        ("2024-07-01 12:00:00 CEST", "2024-07-01T10:00:00Z"),
        ("2024-01-01 12:00:00 CET", "2024-01-01T11:00:00Z"),
        ("2024-07-01 12:00:00 cet", "2024-07-01T11:00:00Z"),
        ("2024-10-27 02:30:00 CEST", "2024-10-27T00:30:00Z"),
        ("2024-10-27 02:30:00 CET", "2024-10-27T01:30:00Z"),
        ("2024-07-01 12:00:00 UTC", "2024-07-01T12:00:00Z"),
    ],
)
def test_a_zone_by_its_abbreviation(stamp: str, time: str) -> None:
    assert read(stamp, formats="%Y-%m-%d %H:%M:%S %Z", zone="Europe/Berlin") == [time]


def test_an_abbreviation_of_another_zone() -> None:
    with pytest.raises(ValueError, match="Europe/Berlin has no zone called 'PST'"):
        read("2024-07-01 12:00:00 PST", formats="%Y-%m-%d %H:%M:%S %Z", zone="Europe/Berlin")


@pytest.mark.parametrize("stamp_format", ["%m/%d/%Y %I:%M:%S", "%s", "%Y-%m", "epoch", "%Y-%m-%d %Q"])
def test_a_format_that_leaves_something_open_is_refused(stamp_format: str) -> None:
    with pytest.raises(ValueError, match=r"%p|epoch_s|full date"):
        check_format(stamp_format)


def test_the_hour_that_comes_twice_goes_forward() -> None:
    times = ["02:10:00", "02:50:00", "02:49:55", "02:05:00", "02:20:00", "03:05:00"]
    stamps = [f"2024-10-27 {time}" for time in times]
    assert [time[11:16] for time in read(*stamps, zone="Europe/Berlin")] == [
        "00:10", "00:50", "00:49", "01:05", "01:20", "02:05",
    ]  # fmt: skip


@given(st.lists(st.integers(0, 4 * 3600), max_size=30))
def test_stamps_in_order_stay_in_order_over_a_change_of_clocks(seconds: list[int]) -> None:
    """As long as the second pass of the hour begins with a step back."""
    begin = datetime(2024, 10, 26, 23, 0, tzinfo=UTC)
    instants = [begin + timedelta(seconds=second) for second in sorted({*seconds, *range(0, 4 * 3600, 600)})]
    clock = Clock(["iso8601"], BERLIN)
    got = [
        from_epoch_us(clock.read(instant.astimezone(BERLIN).strftime("%Y-%m-%d %H:%M:%S")))
        for instant in instants
    ]
    assert got == instants


def test_one_odd_stamp_does_not_move_the_hour_that_comes_twice() -> None:
    stamps = ["2034-01-01 00:00:00", "2024-10-27 02:10:00", "2024-10-27 02:11:00", "2024-10-27 02:05:00"]
    assert [time[11:16] for time in read(*stamps, zone="Europe/Berlin")][1:] == ["00:10", "00:11", "01:05"]


# Years that are not written.


def dates(stamps: str, year: int | None, until: datetime | None = None) -> list[str]:
    clock = Clock(["%b %d"], UTC)
    clock.begin(year, until)
    return [from_epoch_us(clock.read(stamp)).date().isoformat() for stamp in stamps.split(", ")]


@pytest.mark.parametrize(
    ("stamps", "years"),
    [
        (
            "Jun 30, Dec 31, Dec 31, Jan 1, Feb 29, Feb 29, Dec 30, Jan 2",
            "2023 2023 2023 2024 2024 2024 2024 2025",
        ),
        ("Dec 31, Jan 1, Dec 31, Dec 31, Jan 1, Jan 2", "2023 2024 2023 2023 2024 2024"),
        ("Jan 1, Dec 31, Jan 1, Jul 5", "2023 2022 2023 2023"),
        ("Mar 1, Dec 1, Mar 2, Mar 3, Apr 1", "2023 2023 2023 2023 2023"),
        (
            "Mar 1, Aug 31, Mar 2, Sep 1, Mar 3, Oct 1, Nov 1, Dec 1",
            "2023 2023 2023 2023 2023 2023 2023 2023",
        ),
        ("Jan 1, Apr 1, Jul 1, Oct 1, Dec 20, Jan 15, Apr 1", "2023 2023 2023 2023 2023 2024 2024"),
    ],
)
def test_a_year_that_is_not_written(stamps: str, years: str) -> None:
    assert [date[:4] for date in dates(stamps, 2023)] == years.split()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 39), st.integers(0, 364))
def test_one_odd_stamp_moves_no_other(steps: list[int], place: int, odd: int) -> None:
    """In a file in order, whose silences are at most 30 days, whatever stands somewhere within it."""
    time = datetime(2023, 1, 1, tzinfo=UTC)
    instants = [time := time + timedelta(days=step) for step in steps]
    stamps = [instant.strftime("%b %d") for instant in instants]
    place = min(place + 1, len(stamps))
    stray = (datetime(2023, 1, 1, tzinfo=UTC) + timedelta(days=odd)).strftime("%b %d")
    got = dates(", ".join([*stamps[:place], stray, *stamps[place:]]), instants[0].year)
    del got[place]
    assert got == [instant.date().isoformat() for instant in instants]


def test_a_file_without_years_ends_before_it_was_written() -> None:
    until = datetime(2024, 3, 1, tzinfo=UTC)
    assert dates("Nov 30, Dec 31, Jan 1, Mar 1", None, until) == [
        "2023-11-30", "2023-12-31", "2024-01-01", "2024-03-01",
    ]  # fmt: skip
    assert dates("Jan 5, Aug 1, Jan 6", None, until) == ["2024-01-05", "2023-08-01", "2024-01-06"]


def test_the_29th_of_february_is_of_a_leap_year() -> None:
    assert dates("Feb 29", None, datetime(2026, 1, 1, tzinfo=UTC)) == ["2024-02-29"]
    with pytest.raises(ValueError, match=r"day .*range"):
        dates("Feb 29", 2023)


@pytest.mark.parametrize(
    "stamp_format", ["%b %d %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f", "%d/%b/%Y:%H:%M:%S %z", "iso8601"]
)
@parametrize_mostly_slow("zone", ["UTC", "Europe/Berlin", "Africa/Monrovia"])
def test_what_a_clock_remembers_of_a_stamp_changes_nothing(stamp_format: str, zone: str) -> None:
    """Most stamps are read by what the one before was; another clock reads each for itself."""
    for seed in range(12):
        dice = random.Random(f"{stamp_format} {zone} {seed}")
        clock = Clock([stamp_format], ZoneInfo(zone))
        clock.begin(1971)
        time = datetime(1971, 10, 20, tzinfo=UTC)
        step_s = dice.choice([2, 60, 4000, 29 * 86_400])
        for _ in range(80):
            time += timedelta(seconds=dice.randrange(-step_s // 4, step_s), microseconds=dice.randrange(999))
            local = time.astimezone(ZoneInfo(zone))
            stamp = local.isoformat() if stamp_format == "iso8601" else local.strftime(stamp_format)
            plain = Clock([stamp_format], ZoneInfo(zone))
            plain.begin(1971)
            plain.state = clock.state
            assert clock.read(stamp) == plain.read(stamp), (seed, stamp)


def test_the_minute_in_which_a_zone_changed_its_clocks() -> None:
    """Liberia left out 44 minutes and 30 seconds."""
    stamps = ["1972-01-07 00:44:10", "1972-01-07 00:44:50"]
    assert read(*stamps, zone="Africa/Monrovia") == ["1972-01-07T01:28:40Z", "1972-01-07T00:44:50Z"]
