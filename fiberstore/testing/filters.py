"""Conditions on the columns of logs, fibers and memberships, and joined ones."""

from collections.abc import Callable, Iterable
from datetime import timedelta, timezone
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import pytest

from fiberstore.contract.columns import OrderedColumn, TextColumn
from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Fibers, Logs, Memberships, QueryStorage
from fiberstore.records import FiberMembership, FiberRecord, StoredLog
from fiberstore.testing.examples import (
    BEGIN_OF_TIME,
    IDS,
    IN_UTC,
    MICROSECOND,
    NOON,
    TEXTS,
    at,
    fiber,
    log,
    member,
    stored,
    uid,
    write_fibers,
)

_VERSIONS = [0, 1, 2**53, 2**53 + 1, 2**63, 2**64 - 1]
_SPECIAL = [
    *TEXTS, "50%", "50", "_", "\\", "\\d+", "a.c", "abc", "(", "[x]", "^a$", "a|b", "*", "\n", "🚀", "'",
    '"',
]  # fmt: skip


def numbers(records: Iterable[StoredLog | FiberRecord]) -> list[int]:
    """Return the ids, by which ``uid`` made them."""
    return [row.log_id.int if isinstance(row, StoredLog) else row.fiber_id.int for row in records]


def where(query: Logs | Fibers, *conditions: Condition[Any]) -> list[int]:
    """Return of which records the conditions are true, and see that their complement is all others."""
    found = numbers(query.where(*conditions).iter_records())
    if conditions:
        condition = conditions[0]
        for other in conditions[1:]:
            condition &= other
        rest = numbers(query.where(~condition).iter_records())
        assert len({*found, *rest}) == len(found) + len(rest) == query.count()
    else:
        assert query.where().count() == len(found)
    return found


def check_comparisons(query: Logs | Fibers, column: OrderedColumn[Any, Any], values: list[Any]) -> None:
    """Compare a column with all the values; the records have them, in order, and the ids 0, 1 ...

    Of two neighbours, one is asked ``==``, ``<=`` and ``>`` and the other ``!=``, ``<`` and ``>=``, so that a
    look at complements would see nothing more.
    """
    order = sorted(values)
    comparisons: list[Callable[[Any, Any], Any]] = [eq, ne, le, lt, gt, ge]
    for place, value in enumerate(order):
        for compare in comparisons[place % 2 :: 2]:
            expected = [number for number, other in enumerate(order) if compare(other, value)]
            assert _sorted(query, compare(column, value)) == expected
    low, high = order[1], order[-2]
    assert _sorted(query, column.between(low, high)) == list(range(1, len(order) - 1))
    assert _sorted(query, column.between(high, low)) == []
    assert _sorted(query, column.in_(order[::2])) == list(range(0, len(order), 2))
    assert _sorted(query, column.in_([])) == []


def _sorted(query: Logs | Fibers, condition: Condition[Any]) -> list[int]:
    return sorted(numbers(query.where(condition).iter_records()))


class FiltersContract:
    """``where()``."""

    def test_where_without_conditions_is_everything(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1), log(2)])
        storage.write_fiber(fiber(3))
        storage.write_memberships([member(1, 3)])
        assert where(storage.logs) == where(storage.logs.where()) == [1, 2]
        assert where(storage.fibers) == [3]
        assert list(storage.memberships.where().iter_records()) == [member(1, 3)]

    def test_where_finds_the_records_as_they_were_stored(self, storage: QueryStorage) -> None:
        storage.write_logs([stored(1, 5), stored(2, 6)])
        storage.write_fiber(fiber(1, "login", {"user": ["root", None]}, last=at(9), closed=True))
        assert list(storage.logs.where(Logs.c.config_version == 6).iter_records()) == [stored(2, 6)]
        assert list(storage.fibers.where(Fibers.c.closed).iter_records()) == [
            fiber(1, "login", {"user": ["root", None]}, last=at(9), closed=True)
        ]

    def test_where_never_changes_a_query(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1), log(2), log(3)])
        everything = storage.logs
        some = everything.where(Logs.c.log_id != uid(1))
        assert numbers(some.where(Logs.c.log_id != uid(2)).iter_records()) == [3]
        assert numbers(some.iter_records()) == [2, 3]
        assert numbers(everything.iter_records()) == [1, 2, 3]

    def test_where_of_several_conditions_or_after_where_wants_all(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(6)])
        low, high = Logs.c.timestamp > at(1), Logs.c.timestamp < at(4)
        assert where(storage.logs, low, high) == where(storage.logs, low & high) == [2, 3]
        assert where(storage.logs.where(low), high) == [2, 3]

    def test_where_a_column_of_ids_has_one(self, storage: QueryStorage) -> None:
        storage.write_logs([log(id_.int, NOON) for id_ in IDS])
        write_fibers(storage, [fiber(id_.int, first=NOON) for id_ in IDS])
        storage.write_memberships(
            [FiberMembership(log_id=id_, fiber_id=uid(7), config_version=3) for id_ in IDS]
        )
        for id_ in (*IDS, uid(999)):
            expected = [id_.int] if id_ in IDS else []
            assert where(storage.logs, Logs.c.log_id == id_) == expected
            assert where(storage.fibers, Fibers.c.fiber_id == id_) == expected
            found = storage.memberships.where(Memberships.c.log_id == id_, Memberships.c.fiber_id == uid(7))
            assert [row.log_id.int for row in found.iter_records()] == expected
            assert storage.memberships.where(Memberships.c.log_id != id_).count() == len(IDS) - len(expected)
        assert where(storage.logs, Logs.c.log_id.in_(IDS[2:4])) == [id_.int for id_ in IDS[2:4]]
        assert where(storage.fibers, Fibers.c.fiber_id.in_(IDS[2:4])) == [id_.int for id_ in IDS[2:4]]
        assert storage.memberships.where(Memberships.c.fiber_id.in_([uid(7)])).count() == len(IDS)
        assert storage.memberships.where(Memberships.c.fiber_id == uid(8)).count() == 0

    def test_where_a_time_is_compared_exact_to_1_us_in_any_zone(self, storage: QueryStorage) -> None:
        times = [BEGIN_OF_TIME, *IN_UTC.values(), NOON + MICROSECOND, NOON - MICROSECOND]
        times = sorted({when for when in times if when.microsecond or when.year in (1, 9999) or when == NOON})
        storage.write_logs([log(number, when) for number, when in enumerate(times)])
        write_fibers(storage, [fiber(number, first=when) for number, when in enumerate(times)])
        check_comparisons(storage.logs, Logs.c.timestamp, times)
        check_comparisons(storage.fibers, Fibers.c.first_activity, times)
        check_comparisons(storage.fibers, Fibers.c.last_activity, times)
        east = timezone(timedelta(hours=5, minutes=45))
        assert where(storage.logs, Logs.c.timestamp == NOON.astimezone(east)) == [times.index(NOON)]

    def test_where_an_ingestion_time_is_compared(self, storage: QueryStorage) -> None:
        times = [at(number) for number in range(4)]
        storage.write_logs([stored(number, ingested=when) for number, when in enumerate(times)])
        check_comparisons(storage.logs, Logs.c.ingestion_time, times)

    def test_where_a_config_version_is_compared_exactly(self, storage: QueryStorage) -> None:
        storage.write_logs([stored(number, version) for number, version in enumerate(_VERSIONS)])
        write_fibers(
            storage, [fiber(number, config_version=version) for number, version in enumerate(_VERSIONS)]
        )
        storage.write_memberships([member(1, 2, version) for version in _VERSIONS[:1]])
        check_comparisons(storage.logs, Logs.c.config_version, _VERSIONS)
        check_comparisons(storage.fibers, Fibers.c.config_version, _VERSIONS)
        assert storage.memberships.where(Memberships.c.config_version <= 0).count() == 1
        assert storage.memberships.where(Memberships.c.config_version > 0).count() == 0

    def test_where_a_fiber_is_closed(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1, closed=True))
        storage.write_fiber(fiber(2))
        assert (
            where(storage.fibers, Fibers.c.closed) == where(storage.fibers, Fibers.c.closed.is_(True)) == [1]
        )
        assert (
            where(storage.fibers, ~Fibers.c.closed)
            == where(storage.fibers, Fibers.c.closed.is_(False))
            == [2]
        )

    def test_where_a_text_is_one_of_texts_that_are_easily_damaged(self, storage: QueryStorage) -> None:
        texts = list(dict.fromkeys(_SPECIAL))
        storage.write_logs([log(number, NOON, source=text, text=text) for number, text in enumerate(texts)])
        for column in (Logs.c.source_id, Logs.c.raw_text):
            for number, text in enumerate(texts):
                assert _sorted(storage.logs, column == text) == [number]
            assert where(storage.logs, column != "HTTP") == [
                number for number, text in enumerate(texts) if text != "HTTP"
            ]
            assert where(storage.logs, column.in_(texts[3:6])) == [3, 4, 5]

    def test_where_a_text_holds_or_begins_with_any_other(self, storage: QueryStorage) -> None:
        texts = list(dict.fromkeys(_SPECIAL))
        storage.write_logs([log(number, NOON, text=text) for number, text in enumerate(texts)])
        column = Logs.c.raw_text
        parts = {*texts, "%", "cafe", "\u0301", "o", "O", "ne\nli", "\r", "', ", "ß", "\U0001f680"}
        for part in sorted(parts):
            assert _sorted(storage.logs, column.contains(part)) == [
                number for number, text in enumerate(texts) if part in text
            ]
            assert _sorted(storage.logs, column.startswith(part)) == [
                number for number, text in enumerate(texts) if text.startswith(part)
            ]

    def test_where_a_text_matches_a_regular_expression_somewhere(self, storage: QueryStorage) -> None:
        texts = [
            "GET /a", "get /b", "", "50% off", "line one\nline two", "caf\u00e9 \U0001f680", "aab", "it's",
        ]  # fmt: skip
        storage.write_logs([log(number, NOON, text=text) for number, text in enumerate(texts)])
        expected = {
            "": list(range(8)), "GET": [0], "(?i)^get": [0, 1], "^get|off$": [1, 3], "^$": [2],
            r"\d+%": [3], "one.line": [], "(?s)one.line": [4], "^line two": [], "(?m)^line two$": [4],
            "two$": [4], "caf. .$": [5], "^a{2}b$": [6], "(a)(a)b": [6], "'": [7], r"\.": [],
        }  # fmt: skip
        for pattern, found in expected.items():
            assert where(storage.logs, Logs.c.raw_text.regexp_match(pattern)) == found, pattern

    def test_where_a_text_has_a_character_of_a_class_of_unicode(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, text="tea \N{HOT BEVERAGE}"), log(2, text="tea")])
        try:
            found = where(storage.logs, Logs.c.raw_text.regexp_match(r"\p{So}"))
        except ValueError as refused:  # rather than that another text is found
            assert r"\p" in str(refused)  # noqa: PT017
        else:
            assert found == [1]

    def test_where_every_column_of_text_has_every_condition(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, source="web-1"), log(2, source="Web-2"), log(3, source="db")])
        write_fibers(
            storage, [fiber(number, kind) for number, kind in enumerate(["web-1", "Web-2", "db"], 1)]
        )

        def check(query: Logs | Fibers, column: TextColumn[Any]) -> None:
            assert where(query, column == "db") == [3]
            assert where(query, column != "db") == [1, 2]
            assert where(query, column.in_(["db", "web-1", "none"])) == [1, 3]
            assert where(query, column.contains("eb-")) == [1, 2]
            assert where(query, column.startswith("web")) == [1]
            assert where(query, column.regexp_match(r"(?i)^WEB-\d$")) == [1, 2]

        check(storage.logs, Logs.c.source_id)
        check(storage.fibers, Fibers.c.fiber_type)

    @pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 150, 5_000])
    def test_where_a_column_has_one_of_any_number_of_values(self, storage: QueryStorage, count: int) -> None:
        storage.write_logs(
            [log(number, number, source=str(number), text=f"it's {number}") for number in range(0, 200, 20)]
        )
        storage.write_memberships([member(number, number) for number in range(0, 200, 20)])
        found = [number for number in range(0, 200, 20) if number < count]
        assert where(storage.logs, Logs.c.log_id.in_(map(uid, range(count)))) == found
        assert where(storage.logs, Logs.c.timestamp.in_(map(at, range(count)))) == found
        assert where(storage.logs, Logs.c.source_id.in_(map(str, range(count)))) == found
        assert where(storage.logs, Logs.c.raw_text.in_(f"it's {number}" for number in range(count))) == found
        assert where(storage.logs, Logs.c.fibers.contains(*map(uid, range(count)))) == found
        assert storage.memberships.where(Memberships.c.log_id.in_(map(uid, range(count)))).count() == len(
            found
        )

    def test_where_conditions_are_joined_by_and_or_and_not(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, number, source="web" if number % 2 else "db") for number in range(8)])
        web, late = Logs.c.source_id == "web", Logs.c.timestamp >= at(4)
        assert where(storage.logs, web & late) == [5, 7]
        assert where(storage.logs, web | late) == [1, 3, 4, 5, 6, 7]
        assert where(storage.logs, ~(web | late)) == where(storage.logs, ~web & ~late) == [0, 2]
        assert where(storage.logs, ~(web & late)) == [0, 1, 2, 3, 4, 6]
        assert where(storage.logs, ~~web) == [1, 3, 5, 7]
        assert where(storage.logs, web & ~web) == []
        assert where(storage.logs, (web & ~late) | (~web & late)) == [1, 3, 4, 6]

    def test_where_many_conditions_are_joined(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(40)])
        condition = Logs.c.log_id == uid(0)
        for number in range(2, 40, 2):
            condition |= Logs.c.log_id == uid(number)
        assert where(storage.logs, condition) == list(range(0, 40, 2))

    def test_where_an_activity_overlaps_a_span_both_ends_included(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1, first=at(10), last=at(20)))
        storage.write_fiber(fiber(2, first=at(15)))
        overlaps = Fibers.c.activity.overlaps
        assert where(storage.fibers, overlaps(at(0), at(100))) == [1, 2]
        assert where(storage.fibers, overlaps(at(12), at(13))) == [1]
        assert where(storage.fibers, overlaps(at(0), at(10))) == [1]
        assert where(storage.fibers, overlaps(at(0), at(10) - MICROSECOND)) == []
        assert where(storage.fibers, overlaps(at(20), at(30))) == [1]
        assert where(storage.fibers, overlaps(at(20) + MICROSECOND, at(30))) == []
        assert where(storage.fibers, overlaps(at(15), at(15))) == [1, 2]
        assert where(storage.fibers, overlaps(at(15) + MICROSECOND, at(16))) == [1]
        assert where(storage.fibers, overlaps(at(16), at(14))) == []
        assert where(storage.fibers, ~overlaps(at(16), at(14))) == [1, 2]

    def test_where_a_duration_is_compared_exact_to_1_us(self, storage: QueryStorage) -> None:
        first, last = min(IN_UTC.values()), max(IN_UTC.values())
        durations = [timedelta(0), MICROSECOND, timedelta(seconds=1), timedelta(days=400), last - first]
        write_fibers(
            storage,
            [fiber(number, first=first, last=first + duration) for number, duration in enumerate(durations)],
        )
        check_comparisons(storage.fibers, Fibers.c.duration, durations)
        assert where(storage.fibers, Fibers.c.duration < timedelta(0)) == []
        assert where(storage.fibers, Fibers.c.duration > timedelta.min) == [0, 1, 2, 3, 4]
        assert where(storage.fibers, Fibers.c.duration < timedelta.max) == [0, 1, 2, 3, 4]
