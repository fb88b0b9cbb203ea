"""Tails: logs in the order they are stored."""

from itertools import islice

import pytest

from fiberstore.contract.cursors import Watermark, encode_position
from fiberstore.contract.queries import Logs, QueryStorage
from fiberstore.errors import CursorError
from fiberstore.testing.examples import NOON, at, log
from fiberstore.testing.filters import numbers


class TailsContract:
    """Each log once, in the order of storing, and positions that resume exactly there."""

    def test_tail_gives_what_is_stored_from_now_on(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1), log(2)])
        tail = storage.logs.tail(timeout_s=0)
        assert list(tail) == []
        storage.write_logs([log(5, at(2)), log(4, at(9)), log(3, at(1))])
        storage.write_logs([log(1), log(0)])
        assert sorted(numbers(islice(tail, 3))) == [3, 4, 5]
        assert numbers(tail) == [0]
        assert list(tail) == []

    def test_tail_from_the_beginning_of_the_store(self, storage: QueryStorage) -> None:
        assert list(storage.logs.tail("", timeout_s=0)) == []
        storage.write_logs([log(2)])
        storage.write_logs([log(1)])
        assert list(storage.logs.tail("", timeout_s=0)) == [
            storage.get_log(log(2).log_id),
            storage.get_log(log(1).log_id),
        ]

    def test_position_of_a_tail_of_an_empty_store_leads_to_all_logs(self, storage: QueryStorage) -> None:
        tail = storage.logs.tail(timeout_s=0)
        storage.write_logs([log(1)])
        assert numbers(storage.logs.tail(tail.position, timeout_s=0)) == [1]

    def test_tail_goes_on_at_the_position_of_another(self, storage: QueryStorage) -> None:
        for number in range(2_500):  # more than is fetched at once
            if number % 500 == 0:
                storage.write_logs([log(each, at(2_500 - each)) for each in range(number, number + 500)])
        met = []
        position = ""
        for step in (1, 2, 996, 1, 0, 700, 5_000):
            tail = storage.logs.tail(position, timeout_s=0)
            met += numbers(islice(tail, step))
            position = tail.position
        assert sorted(met) == list(range(2_500))
        assert list(storage.logs.tail(position, timeout_s=0)) == []

    def test_tail_of_a_filter_passes_over_the_rest(self, storage: QueryStorage) -> None:
        wanted = storage.logs.where(Logs.c.source_id == "db")
        tail = wanted.tail(timeout_s=0)
        storage.write_logs(
            [log(number, NOON, source="db" if number % 3 == 0 else "web") for number in range(10)]
        )
        assert sorted(numbers(tail)) == [0, 3, 6, 9]
        position = tail.position
        storage.write_logs([log(11, NOON, source="web")])
        assert list(wanted.tail(position, timeout_s=0)) == []
        assert numbers(storage.logs.tail(position, timeout_s=0)) == [11]

    @pytest.mark.parametrize("position", ["x", "AAAA", "!", " "])
    def test_tail_refuses_what_is_no_position(self, storage: QueryStorage, position: str) -> None:
        with pytest.raises(CursorError, match="no cursor, or not the whole of one"):
            storage.logs.tail(position)

    def test_tail_refuses_the_cursor_of_a_page(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1), log(2)])
        cursor = storage.logs.page(1).next
        with pytest.raises(CursorError, match="cursor of a page"):
            storage.logs.tail(cursor)

    def test_page_refuses_the_position_of_a_tail(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1)])
        with pytest.raises(CursorError, match="position of a tail"):
            storage.logs.page(1, storage.logs.tail().position)

    def test_tail_refuses_a_position_whose_log_is_unknown(self, storage: QueryStorage) -> None:
        position = encode_position(Watermark(log(12_345).log_id, 0))  # of another store
        with pytest.raises(CursorError, match=r"deleted|of another database"):
            list(storage.logs.tail(position, timeout_s=0))

    @pytest.mark.parametrize("timeout_s", [-1, float("nan"), "1"])
    def test_tail_refuses_a_bad_timeout(self, storage: QueryStorage, timeout_s: float) -> None:
        with pytest.raises((ValueError, TypeError), match="timeout_s"):
            storage.logs.tail(timeout_s=timeout_s)
