"""Pages of queries: cursors, and what is stored while a walk goes from page to page."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import pytest

from fiberstore.contract.queries import FiberOrder, Fibers, LogOrder, Logs, QueryStorage
from fiberstore.contract.results import Page
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.errors import CursorError, StorageError
from fiberstore.testing.examples import MICROSECOND, at, fiber, log, member, write_fibers
from fiberstore.testing.filters import numbers
from fiberstore.testing.invalid_arguments import check_number, check_refusal

Paged: TypeAlias = Logs | Fibers

_LOG_ORDERS: tuple[LogOrder, ...] = ("oldest", "newest")
_FIBER_ORDERS: tuple[FiberOrder, ...] = ("oldest", "newest", "longest", "most_logs")


def walk(query: Paged, limit: int, cursor: str | None = None) -> Iterator[Page[Any]]:
    """Give page after page, to the last."""
    while True:
        page: Page[Any] = query.page(limit, cursor)
        yield page
        if page.next is None:
            return
        cursor = page.next


def walk_back(query: Paged, limit: int, cursor: str) -> Iterator[Page[Any]]:
    """Give the pages before, to the first."""
    previous: str | None = cursor
    while previous is not None:
        page: Page[Any] = query.page(limit, previous)
        yield page
        previous = page.previous


@dataclass(frozen=True)
class Listing:
    """A query in one of its orders, and how to store what it finds.

    Attributes:
        query: The query.
        add: Stores records of these ids; ``rank`` says where they come in the order, the lowest first.
    """

    query: Paged
    add: Callable[[Iterable[tuple[int, int]]], None]

    def numbers(self) -> list[int]:
        """Return all, in order."""
        return numbers(cast("Logs", self.query).iter_records())


# Three places, three records each, so that every page of another size than three begins or ends within a tie.
_TIES = [(100 - number, 10 * (number % 3)) for number in range(9)]


def _ids(pages: Iterable[Page[Any]]) -> list[int]:
    return [number for page in pages for number in numbers(page.items)]


class QueryPagesContract:
    """``page()``."""

    @pytest.fixture(
        params=[*(("logs", order) for order in _LOG_ORDERS), *(("fibers", order) for order in _FIBER_ORDERS)]
    )
    def listing(self, request: pytest.FixtureRequest, storage: QueryStorage) -> Listing:
        """Return each query in each order."""
        table, order = request.param
        turned = -1 if order == "newest" else 1

        def add_logs(ranked: Iterable[tuple[int, int]]) -> None:
            storage.write_logs([log(number, turned * rank) for number, rank in ranked])

        def add_fibers(ranked: Iterable[tuple[int, int]]) -> None:
            rows = []
            for number, rank in ranked:
                if order == "longest":
                    rows.append(fiber(number, last=at(number) + MICROSECOND * (100 - rank)))
                elif order == "most_logs":
                    storage.write_memberships(member(1_000 + each, number) for each in range(100 - rank))
                    rows.append(fiber(number))
                else:
                    rows.append(fiber(number, first=at(turned * rank)))
            write_fibers(storage, rows)

        if table == "logs":
            return Listing(storage.logs.order_by(order), add_logs)
        if order == "most_logs":
            storage.write_logs([log(1_000 + number) for number in range(100)])
        return Listing(storage.fibers.order_by(order), add_fibers)

    def test_pages_of_a_query_put_end_to_end_are_the_whole_ties_included(self, listing: Listing) -> None:
        listing.add(_TIES)
        whole = listing.numbers()
        assert len(whole) == 9
        for limit in (1, 4, 9, 10):
            pages = list(walk(listing.query, limit))
            assert _ids(pages) == whole
            assert [len(page.items) for page in pages[:-1]] == [limit] * (len(pages) - 1)
            assert pages[-1].items
            assert not any(page.late for page in pages)

    def test_pages_of_a_query_backwards_are_the_same(self, listing: Listing) -> None:
        listing.add(_TIES)
        limit = 2
        pages = list(walk(listing.query, limit))
        assert pages[0].previous is None
        for number in (1, 4):
            cursor = pages[number].previous
            assert cursor is not None
            back = list(walk_back(listing.query, limit, cursor))
            assert [page.items for page in back] == [page.items for page in reversed(pages[:number])]
            assert _ids(walk(listing.query, limit, back[0].next)) == _ids(pages[number:])

    def test_a_page_backwards_of_another_size_ends_right_before(self, listing: Listing) -> None:
        listing.add(_TIES)
        whole = listing.numbers()
        *_, last = walk(listing.query, 7)
        assert last.previous is not None
        for limit in range(1, 9):
            page: Page[Any] = listing.query.page(limit, last.previous)
            assert numbers(page.items) == whole[:7][-limit:]
            assert (page.previous is None) == (limit >= 7)

    def test_a_page_of_a_query_without_records_is_empty(self, listing: Listing) -> None:
        assert listing.query.page(3) == Page([], None, None, [])

    def test_a_page_has_the_default_limit(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(DEFAULT_LIMIT + 1)])
        page = storage.logs.page()
        assert numbers(page.items) == list(range(DEFAULT_LIMIT))
        assert numbers(storage.logs.page(cursor=page.next).items) == [DEFAULT_LIMIT]
        assert storage.logs.page(DEFAULT_LIMIT + 1).next is None

    def test_a_cursor_goes_on_in_an_equal_query_with_another_limit(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, source="web" if number % 2 else "db") for number in range(20)])

        def query() -> Logs:
            return storage.logs.where(Logs.c.source_id == "web").order_by("newest")

        first = query().page(3)
        assert isinstance(first.next, str)
        assert numbers(first.items) == [19, 17, 15]
        assert numbers(query().page(100, first.next).items) == [13, 11, 9, 7, 5, 3, 1]

    def test_a_page_of_less_than_one_record_raises_value_error(self, listing: Listing) -> None:
        listing.add(_TIES)
        cursor = listing.query.page(2).next
        check_number(listing.query.page, "limit", least=1)
        check_number(partial(listing.query.page, cursor=cursor), "limit", least=1)

    def test_a_cursor_of_another_query_raises_cursor_error(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(9)])
        write_fibers(storage, [fiber(number) for number in range(9)])
        web = Logs.c.source_id == "web"
        queries: list[Paged] = [
            storage.logs,
            storage.logs.order_by("newest"),
            storage.logs.where(web),
            storage.logs.where(~web | web),
            storage.logs.where(web, web),
            storage.logs.where(Logs.c.source_id != "1"),
            storage.logs.where(Logs.c.source_id != "1 "),
            storage.logs.where(Logs.c.raw_text != "1"),
            storage.logs.where(~Logs.c.source_id.in_(["1"])),
            storage.fibers,
            *(storage.fibers.order_by(order) for order in _FIBER_ORDERS[1:]),
            storage.fibers.where(~Fibers.c.closed),
        ]
        for query in queries:
            cursor = cast("Logs", query).page(2).next
            for other in queries:
                if other is query:
                    assert numbers(cast("Logs", other).page(2, cursor).items)
                else:
                    with pytest.raises(CursorError, match="belongs to another query"):
                        other.page(2, cursor)

    def test_a_damaged_cursor_raises_cursor_error_that_is_a_value_error(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(9)])
        cursor = storage.logs.page(2).next
        assert cursor is not None
        middle = len(cursor) // 2
        turned = "B" if cursor[middle] == "A" else "A"
        for damaged in (
            *("", " ", "None", "x", "A" * 40, "é", "\ud800", cursor.upper(), cursor[1:], cursor[:-1]),
            *(cursor * 2, cursor + "A", f" {cursor}", cursor[:middle] + turned + cursor[middle + 1 :]),
        ):
            with pytest.raises(CursorError) as raised:
                storage.logs.page(2, damaged)
            assert isinstance(raised.value, StorageError)
            assert isinstance(raised.value, ValueError)
        no_texts = (1, cursor.encode(), log(1), (at(1), 2))
        check_refusal(
            partial(storage.logs.page, 2), TypeError, "expected a cursor, which is a str", *no_texts
        )

    def test_a_cursor_goes_through_a_url_as_it_is(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(9)])
        for page in walk(storage.logs, 1):
            assert page.next is None or page.next.replace("-", "").replace("_", "").isalnum()

    def test_records_stored_meanwhile_ahead_of_the_place_come_in_turn(self, listing: Listing) -> None:
        listing.add(_TIES)
        first: Page[Any] = listing.query.page(4)
        seen = numbers(first.items)
        listing.add([(200, 25), (201, 15), (202, 20)])
        rest = list(walk(listing.query, 2, first.next))
        assert not any(page.late for page in rest)
        assert [*seen, *_ids(rest)] == listing.numbers()
        assert len(listing.numbers()) == 12

    def test_records_that_are_stored_meanwhile_behind_the_place_are_late_once(self, listing: Listing) -> None:
        listing.add(_TIES)
        first: Page[Any] = listing.query.page(4)
        assert first.next is not None
        listing.add([(201, 5)])
        listing.add([(200, 2), (202, 30)])
        second: Page[Any] = listing.query.page(4, first.next)
        assert numbers(second.late) == [201, 200]
        listing.add([(203, 1)])
        assert second.next is not None
        third: Page[Any] = listing.query.page(4, second.next)
        assert numbers(third.late) == [203]
        assert third.next is None
        everything = [*_ids([first, second, third]), *numbers(second.late), *numbers(third.late)]
        assert sorted(everything) == sorted(listing.numbers())
        assert 202 in numbers(third.items)

    def test_a_page_asked_again_by_the_same_cursor_has_the_same_late_ones(self, listing: Listing) -> None:
        listing.add(_TIES)
        cursor = listing.query.page(4).next
        listing.add([(200, 2)])
        for _ in range(2):
            assert numbers(cast("Logs", listing.query).page(4, cursor).late) == [200]

    @pytest.mark.parametrize("limit", [1, 6])
    def test_more_late_records_than_the_limit_come_in_pages(self, listing: Listing, limit: int) -> None:
        listing.add(_TIES)
        first: Page[Any] = listing.query.page(8)
        order = [204, 200, 203, 201, 202, 205]
        for number in order:
            listing.add([(number, number % 4)])
        pages = list(walk(listing.query, limit, first.next))
        assert [number for page in pages for number in numbers(page.late)] == order
        assert all(len(page.late) <= limit for page in pages)
        assert all(len(page.items) <= limit for page in pages)
        assert [*numbers(first.items), *_ids(pages)] == [each for each in listing.numbers() if each < 200]

    def test_records_that_are_stored_between_pages_of_late_ones_come_once(self, listing: Listing) -> None:
        listing.add(_TIES)
        page: Page[Any] = listing.query.page(6)
        found, late = numbers(page.items), []
        new = iter(range(200, 208))
        listing.add([(next(new), 3), (next(new), 4), (next(new), 5)])
        while page.next is not None:
            page = listing.query.page(1, page.next)
            found += numbers(page.items)
            late += numbers(page.late)
            listing.add([(number, 2) for number in [next(new, 0)] if number])
        last_ones = {number for number in listing.numbers() if number >= 200} - {*late}
        assert len(found) == len({*found})
        assert sorted([*found, *late, *last_ones]) == sorted(listing.numbers())
        assert len(last_ones) <= 1  # the one that was stored after the last page

    def test_late_records_are_those_of_the_query(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(10, 20)])
        query = storage.logs.where(Logs.c.source_id == "web", Logs.c.raw_text.contains("GET"))
        first = query.page(5)
        storage.write_logs([log(1, source="db"), log(2), log(3, text="POST"), log(4)])
        assert numbers(query.page(5, first.next).late) == [2, 4]

    def test_a_fiber_that_changed_behind_the_place_is_late(self, storage: QueryStorage) -> None:
        write_fibers(storage, [fiber(number) for number in range(10)])
        first = storage.fibers.page(5)
        storage.update_fiber(fiber(2, "login", {"changed": True}))
        storage.update_fiber(fiber(4, "login"))  # the last of the page
        storage.update_fiber(fiber(7, "login", {"changed": True}))
        second = storage.fibers.page(5, first.next)
        assert second.late == [fiber(2, "login", {"changed": True}), fiber(4, "login")]
        assert fiber(7, "login", {"changed": True}) in second.items

    def test_the_fiber_that_was_stored_last_may_change_behind_the_place(self, storage: QueryStorage) -> None:
        write_fibers(storage, [fiber(number) for number in (9, 8, 7, 6, 5, 4, 3, 2, 1)])
        first = storage.fibers.page(5)
        storage.write_fiber(fiber(0))
        storage.update_fiber(fiber(1, "login"))
        second = storage.fibers.page(5, first.next)
        assert second.late == [fiber(0), fiber(1, "login")]
