"""Logs: written once, found by id and by time."""

import functools
from typing import ClassVar

from fiberstore.contract.storage import Storage
from fiberstore.records import LogRecord
from fiberstore.testing.examples import (
    BEGIN_OF_TIME,
    END_OF_TIME,
    MICROSECOND,
    all_logs,
    at,
    log,
    member,
    stored,
    uid,
)

_DISTINCT = 12_500


@functools.cache  # for every storage that is tested
def _numbered(text: str) -> list[LogRecord]:
    return [log(number, number / 1_000, text=text) for number in range(_DISTINCT)]


class LogsContract:
    """``write_logs``, ``get_log`` and ``query_logs_by_time``."""

    config_version: ClassVar[int] = 0

    def test_range_is_closed_at_both_ends(self, storage: Storage) -> None:
        start, end = at(10), at(20)
        times = (start - MICROSECOND, start, start + MICROSECOND, end - MICROSECOND, end, end + MICROSECOND)
        storage.write_logs([log(number, when) for number, when in enumerate(times)])

        assert [row.timestamp for row in storage.query_logs_by_time(start, end)] == list(times[1:-1])
        assert [row.timestamp for row in storage.query_logs_by_time(start, start)] == [start]
        assert [row.timestamp for row in storage.query_logs_by_time(end, end)] == [end]
        assert storage.query_logs_by_time(at(15), at(15)) == []
        assert len(storage.query_logs_by_time(BEGIN_OF_TIME, END_OF_TIME)) == len(times)

    def test_range_with_start_after_end_is_empty(self, storage: Storage) -> None:
        storage.write_logs([log(number, when) for number, when in enumerate((at(0), at(0) + MICROSECOND))])
        assert storage.query_logs_by_time(at(0) + MICROSECOND, at(0)) == []
        assert storage.query_logs_by_time(END_OF_TIME, BEGIN_OF_TIME) == []

    def test_pages_after_a_log_miss_and_repeat_nothing_while_others_write(self, storage: Storage) -> None:
        there = [log(number, number) for number in range(10, 40)]
        storage.write_logs(there)
        found: list[int] = []
        page = storage.query_logs_by_time(BEGIN_OF_TIME, END_OF_TIME, 7)
        while page:
            found += [row.log_id.int for row in page]
            last = page[-1]
            if last.log_id in {row.log_id for row in there}:
                beside = (last.timestamp - MICROSECOND, last.timestamp + MICROSECOND)
                storage.write_logs([log(len(found) + 100 * (n + 1), when) for n, when in enumerate(beside)])
            page = storage.query_logs_by_time(BEGIN_OF_TIME, END_OF_TIME, 7, after=last)
        assert [number for number in found if number < 100] == list(range(10, 40))
        assert [number for number in found if number >= 100] == [207, 214, 221, 228, 234]

    def test_missing_log_is_none(self, storage: Storage) -> None:
        assert storage.get_log(uid(1)) is None
        storage.write_logs([log(2)])
        storage.write_memberships([member(1, 3)])
        assert storage.get_log(uid(1)) is None
        assert storage.get_log(uid(3)) is None

    def test_missing_logs_are_an_empty_list(self, storage: Storage) -> None:
        assert all_logs(storage) == []
        storage.write_logs([log(1, 10)])
        assert storage.query_logs_by_time(BEGIN_OF_TIME, at(9)) == []
        assert storage.query_logs_by_time(at(11), END_OF_TIME) == []

    def test_duplicates_of_a_stored_log_are_no_op(self, storage: Storage) -> None:
        assert storage.write_logs([log(1, text="first"), log(2)]) == 2
        before = all_logs(storage)
        again = [log(1, text="second"), log(1, 99, source="other"), stored(1, 9, text="third")]
        assert storage.write_logs(again) == storage.write_logs(before) == 0
        assert storage.write_logs([log(1, text="fourth"), log(3)]) == 1
        assert all_logs(storage)[:2] == before
        assert [row.raw_text for row in all_logs(storage)] == ["first", "GET /", "GET /"]

    def test_duplicates_within_a_batch_the_first_wins(self, storage: Storage) -> None:
        batch = [log(1, text="first"), log(2), log(1, text="second"), stored(1, 9, text="third")]
        assert storage.write_logs([*batch, stored(3, 9, text="first"), log(3, text="second")]) == 3
        assert [(row.raw_text, row.config_version) for row in all_logs(storage)] == [
            ("first", self.config_version),
            ("GET /", self.config_version),
            ("first", 9),
        ]

    def test_duplicates_within_a_large_batch_the_first_wins(self, storage: Storage) -> None:
        first, second = _numbered("first"), _numbered("second")
        storage.write_logs([log(5, text="stored before")])

        assert storage.write_logs([*first, *second[::-1] * 9]) == _DISTINCT - 1

        texts = {row.log_id: row.raw_text for row in all_logs(storage)}
        assert texts == {row.log_id: "first" for row in first} | {uid(5): "stored before"}

    def test_batch_may_be_any_iterable_and_empty(self, storage: Storage) -> None:
        assert storage.write_logs([]) == 0
        assert storage.write_logs(iter(())) == 0
        assert storage.write_logs(log(number) for number in range(3)) == 3
        assert storage.write_logs((log(3), stored(4))) == 2
        assert storage.write_logs({row.log_id: row for row in (log(5), log(6))}.values()) == 2
        assert [row.log_id for row in all_logs(storage)] == [uid(number) for number in range(7)]

    def test_schema_built_again_keeps_every_row(self, storage: Storage) -> None:
        storage.write_logs([log(1), log(2)])
        before = all_logs(storage)
        for _ in range(3):
            storage.init_schema()
        assert all_logs(storage) == before
        assert storage.write_logs([log(2), log(3)]) == 1
