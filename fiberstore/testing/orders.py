"""Orders and counts of queries."""

from datetime import timedelta

from fiberstore.contract.queries import Fibers, Logs, Memberships, QueryStorage
from fiberstore.records import FiberMembership
from fiberstore.testing.examples import IDS, MICROSECOND, NOON, at, fiber, log, member, uid, write_fibers
from fiberstore.testing.filters import numbers
from fiberstore.testing.invalid_arguments import check_number, check_refusal


class OrdersContract:
    """``order_by()``, ``count()`` and ``iter_records()``."""

    def test_logs_are_ordered_by_time_then_by_the_128_bits_of_the_id(self, storage: QueryStorage) -> None:
        shuffled = [*IDS[::2], *reversed(IDS[1::2])]
        storage.write_logs([log(id_.int, NOON) for id_ in shuffled])
        storage.write_logs([log(1_000, NOON + MICROSECOND), log(1_001, NOON - MICROSECOND)])
        oldest = [1_001, *(id_.int for id_ in IDS), 1_000]
        assert numbers(storage.logs.iter_records()) == oldest
        assert numbers(storage.logs.order_by("oldest").iter_records()) == oldest
        assert numbers(storage.logs.order_by("newest").iter_records()) == oldest[::-1]
        assert numbers(storage.logs.order_by("newest").order_by("oldest").iter_records()) == oldest

    def test_fibers_are_ordered_by_first_activity_then_by_id(self, storage: QueryStorage) -> None:
        write_fibers(
            storage,
            [fiber(id_.int, first=NOON, last=at(id_.int % 7)) for id_ in [*IDS[::2], *reversed(IDS[1::2])]],
        )
        storage.write_fiber(fiber(1_000, first=NOON + MICROSECOND))
        storage.write_fiber(fiber(1_001, first=NOON - MICROSECOND))
        oldest = [1_001, *(id_.int for id_ in IDS), 1_000]
        assert numbers(storage.fibers.iter_records()) == oldest
        assert numbers(storage.fibers.order_by("newest").iter_records()) == oldest[::-1]

    def test_the_longest_fibers_come_first_then_those_of_the_larger_id(self, storage: QueryStorage) -> None:
        durations = {1: timedelta(0), 2: MICROSECOND, 3: timedelta(days=900), 4: MICROSECOND, 5: timedelta(1)}
        write_fibers(
            storage, [fiber(number, last=at(number) + duration) for number, duration in durations.items()]
        )
        assert numbers(storage.fibers.order_by("longest").iter_records()) == [3, 5, 4, 2, 1]

    def test_fibers_of_most_stored_logs_come_first_then_larger_ids(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(4)])
        write_fibers(storage, [fiber(number) for number in range(1, 6)])
        pairs = [(0, 2), (1, 2), (0, 3), (1, 3), (2, 4), (90, 5), (91, 5), (92, 5), (0, 77), (1, 77)]
        storage.write_memberships([member(log_number, number) for log_number, number in pairs])
        query = storage.fibers.order_by("most_logs")
        assert numbers(query.iter_records()) == [3, 2, 4, 5, 1]
        assert query.count() == 5
        some = query.where(Fibers.c.logs.any(Logs.c.log_id == uid(0)))
        assert numbers(some.iter_records()) == [3, 2]

    def test_memberships_are_ordered_by_both_ids(self, storage: QueryStorage) -> None:
        pairs = [(log_id, fiber_id) for log_id in reversed(IDS) for fiber_id in IDS[::3]]
        storage.write_memberships(
            [FiberMembership(log_id=one, fiber_id=other, config_version=3) for one, other in pairs]
        )
        found = [(row.log_id, row.fiber_id) for row in storage.memberships.iter_records()]
        assert found == sorted(pairs)

    def test_an_order_and_a_filter_may_be_given_in_any_order(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(5)])
        some = Logs.c.timestamp > at(1)
        assert numbers(storage.logs.where(some).order_by("newest").iter_records()) == [4, 3, 2]
        assert numbers(storage.logs.order_by("newest").where(some).iter_records()) == [4, 3, 2]

    def test_order_by_never_changes_a_query(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1), log(2)])
        everything = storage.logs
        everything.order_by("newest")
        assert numbers(everything.iter_records()) == [1, 2]

    def test_an_order_that_is_none_raises_an_error_that_names_all(self, storage: QueryStorage) -> None:
        orders = ("", "Oldest", "timestamp", "timestamp DESC", "most_logs", "longest", None)
        check_refusal(storage.logs.order_by, ValueError, "oldest, newest", *orders)
        names = "oldest, newest, longest, most_logs"
        check_refusal(storage.fibers.order_by, ValueError, names, "", "shortest", "first_activity", None)

    def test_count_is_how_many_there_are(self, storage: QueryStorage) -> None:
        assert (storage.logs.count(), storage.fibers.count(), storage.memberships.count()) == (0, 0, 0)
        storage.write_logs([log(number, source="web" if number % 3 else "db") for number in range(10)])
        storage.write_fiber(fiber(1))
        storage.write_memberships([member(1, 1), member(2, 1)])
        assert (storage.logs.count(), storage.fibers.count(), storage.memberships.count()) == (10, 1, 2)
        assert storage.logs.where(Logs.c.source_id == "db").count() == 4
        assert storage.logs.where(Logs.c.source_id == "none").count() == 0
        assert storage.memberships.where(Memberships.c.log_id == uid(2)).count() == 1

    def test_count_stops_at_the_number_that_is_asked_for(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(10)])
        write_fibers(storage, [fiber(number) for number in range(3)])
        for at_most in (0, 1, 9, 10, 11, 2**63 - 1):
            assert storage.logs.count(at_most) == storage.logs.count(at_most=at_most) == min(at_most, 10)
            assert storage.fibers.order_by("most_logs").count(at_most) == min(at_most, 3)
            assert storage.memberships.count(at_most) == 0
        assert storage.logs.where(Logs.c.timestamp < at(4)).count(3) == 3
        assert storage.logs.where(Logs.c.timestamp < at(2)).count(3) == 2

    def test_count_at_most_of_a_wrong_number_raises(self, storage: QueryStorage) -> None:
        check_number(storage.logs.count, "at_most", may_be_none=True)

    def test_iter_records_gives_more_than_fit_in_one_answer(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, 0) for number in range(5_000)])
        records = storage.logs.order_by("newest").iter_records()
        assert iter(records) is records
        assert numbers(records) == list(range(4_999, -1, -1))
        assert next(records, None) is None

    def test_iter_records_may_be_left_early_and_asked_again(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(5_000)])
        for _ in range(20):
            assert next(storage.logs.iter_records()).log_id == uid(0)
        assert storage.logs.count() == 5_000
