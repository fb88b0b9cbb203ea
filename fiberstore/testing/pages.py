"""Order and paging, which are the same for the three methods that answer in pages."""

import functools
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Protocol
from uuid import UUID

import pytest

from fiberstore.contract.storage import DEFAULT_LIMIT, Storage
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.testing.examples import IDS, MICROSECOND, NOON, at, fiber, log, member, uid, write_fibers
from fiberstore.testing.invalid_arguments import check_number, check_refusal

Key = tuple[datetime, UUID]

_BIGGEST = 2**63 - 1


class Query(Protocol):
    """One of the three methods, its other arguments given."""

    def __call__(
        self, limit: int = ..., offset: int = ..., *, after: object = ...
    ) -> Sequence[StoredLog | FiberRecord]:
        """Return a page."""


class Fill(Protocol):
    """Writes a row for each key, among others that must not come back."""

    def __call__(self, keys: Iterable[Key]) -> Query:
        """Return the query for the rows of the keys."""


def _keys(rows: Sequence[StoredLog | FiberRecord]) -> list[Key]:
    return [
        (row.first_activity, row.fiber_id) if isinstance(row, FiberRecord) else (row.timestamp, row.log_id)
        for row in rows
    ]


# Three times, three rows each, so that every page of another size than three begins or ends within a tie.
_TIES = [(at(number % 3), uid(100 - number)) for number in range(9)]


class PagesContract:
    """Order, pages and their bounds."""

    @pytest.fixture(params=["query_logs_by_time", "get_fiber_logs", "query_fibers_by_type"])
    def fill(self, request: pytest.FixtureRequest, storage: Storage) -> Fill:
        """Return how to fill the storage for one of the three methods."""

        def query_logs_by_time(keys: Iterable[Key]) -> Query:
            noise = [log(900, NOON - MICROSECOND), log(901, at(10_000) + MICROSECOND)]
            storage.write_logs([*noise, *(log(key.int, when) for when, key in keys)])
            return functools.partial(storage.query_logs_by_time, NOON, at(10_000))

        def get_fiber_logs(keys: Iterable[Key]) -> Query:
            logs = [log(key.int, when) for when, key in keys]
            storage.write_logs([log(900, NOON), log(901, NOON), *logs])
            noise = [member(900, 6), member(902, 5), *(member(row.log_id.int, 6) for row in logs[::2])]
            storage.write_memberships([*noise, *(member(row.log_id.int, 5) for row in reversed(logs))])
            return functools.partial(storage.get_fiber_logs, uid(5))

        def query_fibers_by_type(keys: Iterable[Key]) -> Query:
            noise = [fiber(900, "login", first=NOON), fiber(901, "requests", first=NOON)]
            fibers = (fiber(key.int, first=when, last=at(10_000)) for when, key in keys)
            write_fibers(storage, [noise[0], *fibers, noise[1]])
            return functools.partial(storage.query_fibers_by_type, "request")

        fills: dict[str, Fill] = {
            "query_logs_by_time": query_logs_by_time,
            "get_fiber_logs": get_fiber_logs,
            "query_fibers_by_type": query_fibers_by_type,
        }
        return fills[request.param]

    def test_order_is_by_time_then_by_the_128_bits_of_the_id(self, fill: Fill) -> None:
        ties = [(at(5), key) for key in (*IDS[::2], *reversed(IDS[1::2]))]
        apart = [(at(7) - MICROSECOND * number, uid(200 + number)) for number in range(4)]
        query = fill([*apart[::2], *ties, (at(9), uid(3)), *apart[1::2], (at(1), uid(300))])
        assert _keys(query()) == [
            (at(1), uid(300)),
            *((at(5), key) for key in IDS),
            *reversed(apart),
            (at(9), uid(3)),
        ]

    def test_pages_put_end_to_end_are_the_whole_ties_included(self, fill: Fill) -> None:
        query = fill(_TIES)
        whole = sorted(_TIES)
        assert _keys(query()) == whole
        for limit in range(1, len(whole) + 2):
            pages = [query(limit, offset) for offset in range(0, len(whole) + limit, limit)]
            assert [key for page in pages for key in _keys(page)] == whole
            assert {len(page) for page in pages[: len(whole) // limit]} <= {limit}

    def test_pages_may_begin_anywhere(self, fill: Fill) -> None:
        query = fill(_TIES)
        whole = sorted(_TIES)
        for limit, offset in ((1, 0), (1, 8), (4, 1), (4, 6), (3, 8), (9, 0), (10, 0), (_BIGGEST, 5)):
            assert _keys(query(limit, offset)) == whole[offset : offset + limit]

    def test_pages_of_limit_0_or_beyond_the_end_are_empty(self, fill: Fill) -> None:
        query = fill(_TIES)
        for limit, offset in ((0, 0), (0, 5), (5, 9), (5, 10), (5, 10**9), (5, _BIGGEST), (_BIGGEST,) * 2):
            assert query(limit, offset) == []

    def test_limit_defaults_to_1000_and_offset_to_0_by_position_or_by_name(self, fill: Fill) -> None:
        whole = [(at(number // 2), uid(10_000 + number)) for number in range(DEFAULT_LIMIT + 2)]
        query = fill(whole)
        assert DEFAULT_LIMIT == 1_000
        assert _keys(query()) == whole[:1_000]
        assert _keys(query(offset=1)) == whole[1:1_001]
        assert _keys(query(limit=1_001)) == _keys(query(1_001)) == whole[:1_001]
        assert _keys(query(3, 999)) == _keys(query(3, offset=999)) == whole[999:]
        assert _keys(query(limit=2, offset=3)) == _keys(query(offset=3, limit=2)) == whole[3:5]

    def test_pages_with_a_wrong_number_raise(self, fill: Fill) -> None:
        query = fill(_TIES)
        check_number(query, "limit")
        check_number(lambda wrong: query(limit=wrong, offset=1), "limit")
        check_number(lambda wrong: query(0, wrong), "offset")
        assert _keys(query()) == sorted(_TIES)

    def test_pages_after_the_last_row_put_end_to_end_are_the_whole(self, fill: Fill) -> None:
        query = fill(_TIES)
        whole = sorted(_TIES)
        for limit in range(1, len(whole) + 2):
            for by_key in (False, True):
                found: list[Key] = []
                page = query(limit)
                while page:
                    found += _keys(page)
                    page = query(limit, after=_keys(page)[-1] if by_key else page[-1])
                assert found == whole

    def test_pages_after_a_key_begin_behind_it_stored_or_not(self, fill: Fill) -> None:
        whole = sorted(_TIES)
        query = fill(_TIES)
        beside = [
            (NOON - MICROSECOND, IDS[-1]),
            *((when, id_) for when in (at(0), at(1) - MICROSECOND, at(1), at(2)) for id_ in (*IDS, uid(96))),
            (at(3), IDS[0]),
        ]
        for key in (*whole, *beside):
            assert _keys(query(after=key)) == [row for row in whole if row > key]
        for key in whole:
            assert _keys(query(2, 1, after=key)) == [row for row in whole if row > key][1:3]
        assert query(0, after=whole[0]) == []

    def test_pages_after_a_time_in_another_zone_are_the_same(self, fill: Fill) -> None:
        query = fill(_TIES)
        when, id_ = sorted(_TIES)[4]
        there = when.astimezone(timezone(timedelta(hours=5, minutes=45)))
        assert _keys(query(after=(there, id_))) == sorted(_TIES)[5:]

    def test_pages_after_what_is_no_key_raise_an_error_that_says_so(self, fill: Fill) -> None:
        query = fill(_TIES)
        when, id_ = _TIES[0]
        wrong = ("1", 7, id_, when, (when,), (id_, when), (when, str(id_)), [when, id_], member(1, 2))
        check_refusal(lambda after: query(after=after), TypeError, r"after must be|expected a", *wrong)
        check_refusal(lambda after: query(after=after), ValueError, "naive", (when.replace(tzinfo=None), id_))
        assert _keys(query()) == sorted(_TIES)
