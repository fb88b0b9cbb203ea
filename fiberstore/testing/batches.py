"""Many records by their ids, and what belongs to many ids."""

from collections.abc import Iterable
from functools import partial
from uuid import UUID

import pytest

from fiberstore.contract.queries import FiberOrder, Fibers, Logs, QueryStorage
from fiberstore.contract.results import Found
from fiberstore.contract.storage import DEFAULT_LIMIT
from fiberstore.records import FiberRecord, StoredLog
from fiberstore.testing.examples import IDS, at, fiber, log, member, uid, write_fibers
from fiberstore.testing.filters import numbers
from fiberstore.testing.invalid_arguments import check_number, check_refusal

_MANY = 10_000


def _ids(numbers: Iterable[int]) -> list[UUID]:
    return [uid(number) for number in numbers]


def _by_number(groups: dict[UUID, list[StoredLog]] | dict[UUID, list[FiberRecord]]) -> dict[int, list[int]]:
    return {key.int: numbers(records) for key, records in groups.items()}


def _keys(numbers: Iterable[int], size: int) -> list[UUID]:
    """Return that many ids, these among them, in another order than their own."""
    ids = _ids([*numbers, *range(1_000_000, 1_000_000 + size)])[:size]
    return sorted(ids, key=lambda id_: (id_.int * 7_919) % 1_000_003)


class BatchesContract:
    """``get_many``, ``by_fiber`` and ``by_log``."""

    def test_get_many_gives_the_records_in_the_order_of_the_ids(self, storage: QueryStorage) -> None:
        logs, fibers = [log(number) for number in range(1, 6)], [fiber(number) for number in range(1, 6)]
        storage.write_logs(logs)
        write_fibers(storage, fibers)
        wanted = _ids([4, 1, 5])
        found = storage.logs.get_many(wanted)
        assert found == Found([storage.get_log(id_) for id_ in wanted], [])
        assert storage.fibers.get_many(wanted) == Found([storage.get_fiber(id_) for id_ in wanted], [])
        for order in ("oldest", "newest"):
            assert numbers(storage.logs.order_by(order).get_many(wanted).items) == [4, 1, 5]
        for fiber_order in ("oldest", "newest", "longest", "most_logs"):
            assert numbers(storage.fibers.order_by(fiber_order).get_many(wanted).items) == [4, 1, 5]

    def test_get_many_gives_an_id_twice_and_names_a_missing_one_once(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1), log(2)])
        storage.write_fiber(fiber(1))
        storage.write_fiber(fiber(2))
        wanted = _ids([9, 2, 1, 8, 2, 9, 2])
        for found in (storage.logs.get_many(wanted), storage.fibers.get_many(iter(wanted))):
            assert numbers(found.items) == [2, 1, 2, 2]
            assert found.missing == _ids([9, 8])

    def test_get_many_finds_all_kinds_of_ids(self, storage: QueryStorage) -> None:
        storage.write_logs([log(id_.int, 0.0) for id_ in IDS])
        write_fibers(storage, [fiber(id_.int, first=at(0)) for id_ in IDS])
        wanted = IDS[::-1]
        assert [row.log_id for row in storage.logs.get_many(wanted).items] == list(wanted)
        assert [row.fiber_id for row in storage.fibers.get_many(wanted).items] == list(wanted)

    def test_get_many_misses_what_the_query_leaves_out(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, source="web"), log(2, source="db")])
        storage.write_fiber(fiber(1, "request"))
        storage.write_fiber(fiber(2, "login"))
        storage.write_memberships([member(1, 1)])
        wanted = _ids([1, 2])
        queries = (
            storage.logs.where(Logs.c.source_id == "db"),
            storage.logs.where(~Logs.c.fibers.contains(uid(1))),
            storage.fibers.where(Fibers.c.fiber_type == "login"),
            storage.fibers.where(~Fibers.c.logs.any(Logs.c.source_id == "web")),
        )
        for query in queries:
            found = query.get_many(wanted)
            assert (numbers(found.items), found.missing) == ([2], [uid(1)])

    def test_batches_of_nothing_and_of_an_empty_store_are_empty(self, storage: QueryStorage) -> None:
        wanted = _ids([2, 1])
        for get_many in (storage.logs.get_many, storage.fibers.get_many):
            assert get_many([]) == Found([], [])
            assert get_many(wanted) == Found([], wanted)
        assert storage.logs.by_fiber([]) == {}
        assert storage.fibers.by_log([]) == {}
        for groups in (storage.logs.by_fiber(wanted), storage.fibers.by_log(wanted)):
            assert list(groups.items()) == [(uid(2), []), (uid(1), [])]

    @pytest.mark.parametrize("size", [99, 101, _MANY])
    def test_batches_may_be_of_many_ids(self, storage: QueryStorage, size: int) -> None:
        storage.write_logs(log(number) for number in range(1, 41))
        write_fibers(storage, [fiber(number) for number in range(1, 11)])
        storage.write_memberships(member(number, number % 10 + 1) for number in range(1, 41))
        log_ids, fiber_ids = _keys(range(1, 41), size), _keys(range(1, 11), size)
        found, found_fibers = storage.logs.get_many(log_ids), storage.fibers.get_many(fiber_ids)
        assert [row.log_id for row in found.items] == [id_ for id_ in log_ids if id_.int <= 40]
        assert found.missing == [id_ for id_ in log_ids if id_.int > 40]
        assert [row.fiber_id for row in found_fibers.items] == [id_ for id_ in fiber_ids if id_.int <= 10]
        assert found_fibers.missing == [id_ for id_ in fiber_ids if id_.int > 10]
        logs_of, fibers_of = storage.logs.by_fiber(fiber_ids), storage.fibers.by_log(log_ids)
        assert list(logs_of) == fiber_ids
        assert {id_: numbers(rows) for id_, rows in logs_of.items() if rows} == {
            uid(number): [log_ for log_ in range(1, 41) if log_ % 10 + 1 == number] for number in range(1, 11)
        }
        assert list(fibers_of) == log_ids
        assert {id_: numbers(rows) for id_, rows in fibers_of.items() if rows} == {
            uid(number): [number % 10 + 1] for number in range(1, 41)
        }

    def test_batches_of_what_is_no_uuid_raise_type_error(self, storage: QueryStorage) -> None:
        wrong = (str(uid(1)), [uid(1), str(uid(2))], [1], [None], uid(1), None, [[uid(1)]])
        for query in (storage.logs, storage.fibers):
            check_refusal(query.get_many, TypeError, None, *wrong)
        check_refusal(storage.logs.by_fiber, TypeError, None, *wrong)
        check_refusal(storage.fibers.by_log, TypeError, None, *wrong)

    def test_by_fiber_gives_the_logs_of_each_in_the_order_of_the_query(self, storage: QueryStorage) -> None:
        ties = [log(5, 1.0), log(3, 1.0), log(4, 1.0)]
        storage.write_logs([log(9, 0.0), *ties, log(1, 2.0), log(7, 0.5)])
        storage.write_memberships([member(number, 1) for number in (1, 3, 4, 5, 9)])
        storage.write_memberships([member(number, 2) for number in (7, 4, 1)])
        wanted = _ids([2, 6, 1, 2])
        groups = storage.logs.by_fiber(wanted)
        assert list(groups) == _ids([2, 6, 1])
        assert _by_number(groups) == {2: [7, 4, 1], 6: [], 1: [9, 3, 4, 5, 1]}
        assert groups[uid(2)][0] == storage.get_log(uid(7))
        newest = storage.logs.order_by("newest").by_fiber(wanted)
        assert _by_number(newest) == {2: [1, 4, 7], 6: [], 1: [1, 5, 4, 3, 9]}

    def test_by_fiber_gives_at_most_the_limit_of_each(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, number // 2) for number in range(1, 11)])
        storage.write_memberships([member(number, 1 + number % 3) for number in range(1, 11)])
        whole = {1: [3, 6, 9], 2: [1, 4, 7, 10], 3: [2, 5, 8]}
        for limit in (0, 1, 2, 3, 4, 2**63 - 1):
            found = storage.logs.by_fiber(_ids([1, 2, 3]), limit)
            assert _by_number(found) == {key: found[:limit] for key, found in whole.items()}
            last = storage.logs.order_by("newest").by_fiber(_ids([1, 2, 3]), limit_per_fiber=limit)
            assert _by_number(last) == {key: numbers[::-1][:limit] for key, numbers in whole.items()}

    def test_by_fiber_keeps_the_order_of_many_logs(self, storage: QueryStorage) -> None:
        numbers = sorted(range(5_000), key=lambda number: (number * 7_919) % 5_003)
        storage.write_logs([log(number, -number) for number in numbers])
        storage.write_memberships([member(number, 1 + number % 7) for number in numbers])
        groups = storage.logs.by_fiber(_ids(range(1, 8)), 10_000)
        assert _by_number(groups) == {
            key: [number for number in range(4_999, -1, -1) if 1 + number % 7 == key] for key in range(1, 8)
        }

    def test_by_fiber_gives_1000_of_each_if_it_is_not_told(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(DEFAULT_LIMIT + 2)])
        storage.write_memberships([member(number, 1) for number in range(DEFAULT_LIMIT + 2)])
        storage.write_memberships([member(number, 2) for number in range(1, DEFAULT_LIMIT + 2)])
        found = _by_number(storage.logs.by_fiber(_ids([1, 2])))
        assert found == {1: list(range(1_000)), 2: list(range(1, 1_001))}

    def test_by_fiber_with_a_wrong_limit_raises(self, storage: QueryStorage) -> None:
        check_number(partial(storage.logs.by_fiber, [uid(1)]), "limit_per_fiber")

    def test_by_fiber_counts_only_logs_of_the_query_up_to_the_limit(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, source=("web", "db")[number % 2]) for number in range(8)])
        storage.write_memberships([member(number, 1) for number in range(10)])
        storage.write_memberships([member(number, 2) for number in (2, 3, 8)])
        storage.write_fiber(fiber(2, "login"))
        db = storage.logs.where(Logs.c.source_id == "db")
        assert _by_number(db.by_fiber(_ids([1, 2]), 2)) == {1: [1, 3], 2: [3]}
        assert _by_number(db.order_by("newest").by_fiber(_ids([1, 2]), 2)) == {1: [7, 5], 2: [3]}
        in_logins = storage.logs.where(Logs.c.fibers.any(Fibers.c.fiber_type == "login"))
        assert _by_number(in_logins.by_fiber(_ids([1, 2, 3]))) == {1: [2, 3], 2: [2, 3], 3: []}

    def test_by_log_gives_the_fibers_of_each_in_the_order_of_the_query(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(1, 6)])
        storage.write_fiber(fiber(7, attributes={"user": "root"}, first=at(0), last=at(9)))
        storage.write_fiber(fiber(2, first=at(5), last=at(6)))
        storage.write_fiber(fiber(1, first=at(5), last=at(7)))
        storage.write_fiber(fiber(3, first=at(5), last=at(6)))
        memberships = [
            (1, 7), (1, 2), (1, 1), (1, 3), (1, 99), (2, 2), (3, 2), (4, 99), (8, 1), (2, 3), (8, 3),
        ]  # fmt: skip
        storage.write_memberships([member(*pair) for pair in memberships])
        wanted = _ids([8, 1, 4, 5, 1, 2])
        groups = storage.fibers.by_log(wanted)
        assert list(groups) == _ids([8, 1, 4, 5, 2])
        assert _by_number(groups) == {8: [1, 3], 1: [7, 1, 2, 3], 4: [], 5: [], 2: [2, 3]}
        assert groups[uid(1)][0] == storage.get_fiber(uid(7))
        orders: dict[FiberOrder, dict[int, list[int]]] = {
            "newest": {8: [3, 1], 1: [3, 2, 1, 7], 4: [], 5: [], 2: [3, 2]},
            "longest": {8: [1, 3], 1: [7, 1, 3, 2], 4: [], 5: [], 2: [3, 2]},
            "most_logs": {8: [3, 1], 1: [2, 3, 7, 1], 4: [], 5: [], 2: [2, 3]},
        }
        for order, expected in orders.items():
            assert _by_number(storage.fibers.order_by(order).by_log(wanted)) == expected

    def test_by_log_gives_only_fibers_of_the_query(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1), log(2, source="db")])
        storage.write_fiber(fiber(1, "login", closed=True))
        storage.write_fiber(fiber(2, "request"))
        storage.write_memberships([member(1, 1), member(1, 2), member(2, 2)])
        closed = storage.fibers.where(Fibers.c.closed.is_(True))
        assert _by_number(closed.by_log(_ids([1, 2]))) == {1: [1], 2: []}
        with_db = storage.fibers.where(Fibers.c.logs.any(Logs.c.source_id == "db")).order_by("most_logs")
        assert _by_number(with_db.by_log(_ids([1, 2]))) == {1: [2], 2: [2]}
