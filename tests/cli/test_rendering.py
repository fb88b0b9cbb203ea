"""Display of times, of durations, and of characters that act on a terminal."""

import sys
import time as time_module
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from fiberstore.cli.tables import duration
from fiberstore.cli.times import parse_time, shown_time, use_zone, utc
from fiberstore.escaping import escape_controls


def test_times_are_shown_in_utc_with_the_decimals_they_have() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    assert utc(datetime(2024, 5, 1, 2, 0, tzinfo=east)) == "2024-04-30T20:30:00Z"
    assert utc(datetime(2024, 5, 1, 2, 0, 0, 120_000, tzinfo=UTC)) == "2024-05-01T02:00:00.120Z"
    assert utc(datetime(2024, 5, 1, 2, 0, 0, 120_001, tzinfo=UTC)) == "2024-05-01T02:00:00.120001Z"
    assert utc(datetime.min.replace(tzinfo=UTC)) == "0001-01-01T00:00:00Z"


@pytest.fixture
def new_york() -> Iterator[ZoneInfo]:
    use_zone("America/New_York")
    yield ZoneInfo("America/New_York")
    use_zone(None)


def test_times_are_shown_and_read_in_the_zone_that_is_used(new_york: ZoneInfo) -> None:
    assert shown_time(datetime(2024, 5, 1, 2, 0, tzinfo=UTC)) == "2024-04-30T22:00:00-04:00"
    assert parse_time("2024-05-01") == datetime(2024, 5, 1, 4, tzinfo=UTC)
    assert parse_time("9:30:15.5").astimezone(new_york).time() == time(9, 30, 15, 500_000)
    assert shown_time(datetime.min.replace(tzinfo=UTC)) == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(), "0 ms"),
        (timedelta(microseconds=999_999), "999 ms"),
        (timedelta(seconds=1.5), "1.50 s"),
        (timedelta(seconds=125), "2 min 5 s"),
        (timedelta(hours=3, minutes=2, seconds=59), "3 h 2 min"),
        (timedelta(days=400, hours=5), "400 d 5 h"),
    ],
)
def test_durations_are_shown_in_their_largest_units(span: timedelta, text: str) -> None:
    assert duration(span) == text


# Unicode's Default_Ignorable_Code_Point.
IGNORABLE = {
    chr(code)
    for first, last in [
        (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
        (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
        (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
        (0xE0000, 0xE0FFF),
    ]
    for code in range(first, last + 1)
}  # fmt: skip
SHOWN_CATEGORIES = [
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf",
    "Po", "Sm", "Sc", "Sk", "So", "Zs",
]  # fmt: skip


@pytest.fixture(scope="module")
def characters() -> dict[str, list[str]]:
    by_category = dict[str, list[str]]()
    for character in map(chr, range(sys.maxunicode + 1)):
        by_category.setdefault(unicodedata.category(character), []).append(character)
    return by_category


@pytest.mark.parametrize("category", [*SHOWN_CATEGORIES, "Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"])
def test_what_moves_hides_or_turns_text_is_escaped(characters: dict[str, list[str]], category: str) -> None:
    def escaped(character: str) -> str:
        acts = category not in SHOWN_CATEGORIES or character in IGNORABLE
        return character.encode("unicode_escape").decode() if acts else character

    some = characters[category][:: 1 + len(characters[category]) // 20_000]
    assert escape_controls("x".join(some)) == "x".join(map(escaped, some))


@pytest.mark.skipif(not hasattr(time_module, "tzset"), reason="Windows takes its zone from elsewhere")
def test_the_zone_of_the_machine_has_the_offset_of_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of now: half of the year it is another."""
    new_york = ZoneInfo("America/New_York")
    monkeypatch.setenv("TZ", new_york.key)
    time_module.tzset()
    use_zone("local")
    try:
        for month in (1, 7):
            noon = datetime(2024, month, 1, 12, tzinfo=UTC)
            assert shown_time(noon) == noon.astimezone(new_york).isoformat()
            assert parse_time(f"2024-0{month}-01") == datetime(2024, month, 1, tzinfo=new_york)
        for minute in (30, 90):  # an hour that comes twice
            instant = datetime(2024, 11, 3, 5, tzinfo=UTC) + timedelta(minutes=minute)
            assert shown_time(instant) == instant.astimezone(new_york).isoformat()
            assert parse_time(shown_time(instant)) == instant
        assert shown_time(datetime.max.replace(tzinfo=UTC)).startswith("9999-12-31")
    finally:
        use_zone(None)
        monkeypatch.undo()
        time_module.tzset()


def test_text_that_only_looks_foreign_stays_as_it_is() -> None:
    assert escape_controls("a\tb\nc\x1b", keep="\t\n") == "a\tb\nc\\x1b"
    for text in ("Ünïcödé 日本\u3000🙂 [bold]", "e\u0301", "ปั๊ม", "हिन्दी", "שָּׁבַ֖ת", "Việt"):
        assert escape_controls(text) == text
    pile = chr(0x336)
    assert escape_controls(f"a{pile * 10}b") == f"a{pile * 8}\\u0336\\u0336b"
    assert escape_controls(f"a{pile * 4}\0{pile * 5}\0b", keep="\0") == f"a{pile * 4}\0{pile * 4}\\u0336\0b"
