"""Timelines: fibers, and logs of them as points."""

from collections.abc import Iterable

from fiberstore.contract.queries import FiberOrder, Fibers, QueryStorage
from fiberstore.contract.results import Timeline, TimelinePoint
from fiberstore.records import FiberRecord
from fiberstore.testing.examples import IN_UTC, INSTANTS, at, fiber, log, member, uid
from fiberstore.testing.invalid_arguments import check_number


class TimelinesContract:
    """``Fibers.timeline``."""

    def test_timeline_of_an_empty_store_is_empty(self, storage: QueryStorage) -> None:
        assert storage.fibers.timeline() == Timeline([], [], 0)
        storage.write_logs([log(1)])
        storage.write_memberships([member(1, 9)])
        assert storage.fibers.timeline() == Timeline([], [], 0)

    def test_timeline_has_the_logs_of_each_fiber_oldest_first(self, storage: QueryStorage) -> None:
        fibers = [fiber(1, last=at(9), attributes={"a": [1]}), fiber(2, "login", closed=True), fiber(3)]
        _write(storage, fibers, {1: [(4, 8), (5, 3), (6, 3), (2, 8)], 3: [(1, 7)]})
        storage.write_logs([log(90, 1)])
        storage.write_memberships([member(91, 1), member(90, 92)])  # no such log, no such fiber
        points = [_point(1, 5, 3), _point(1, 6, 3), _point(1, 2, 8), _point(1, 4, 8), _point(3, 1, 7)]
        assert storage.fibers.timeline() == Timeline(fibers, points, 5)

    def test_timeline_has_a_log_of_two_fibers_twice(self, storage: QueryStorage) -> None:
        fibers = [fiber(1), fiber(2)]
        _write(storage, fibers, {1: [(5, 3), (6, 4)]})
        storage.write_memberships([member(5, 2)])
        points = [_point(1, 5, 3), _point(1, 6, 4), _point(2, 5, 3)]
        assert storage.fibers.timeline() == Timeline(fibers, points, 3)

    def test_timeline_is_of_the_first_fibers_of_the_query_in_its_order(self, storage: QueryStorage) -> None:
        fibers = {
            1: fiber(1, last=at(4)),
            2: fiber(2, last=at(9)),
            3: fiber(3, "login", last=at(90)),
            4: fiber(4, last=at(5)),
        }
        logs = {1: [(10, 1)], 2: [(20, 2)], 3: [(30, 3)], 4: [(40, 4), (41, 5)]}
        _write(storage, fibers.values(), logs)
        requests = storage.fibers.where(Fibers.c.fiber_type == "request")
        orders: dict[FiberOrder, list[int]] = {
            "oldest": [1, 2, 4],
            "newest": [4, 2, 1],
            "longest": [2, 1, 4],
            "most_logs": [4, 2, 1],
        }
        for order, numbers in orders.items():
            for most in range(5):
                expected = numbers[:most]
                points = [_point(number, *values) for number in expected for values in logs[number]]
                found = requests.order_by(order).timeline(most)
                assert found == Timeline([fibers[number] for number in expected], points, len(points))

    def test_timeline_of_more_logs_than_points_has_evenly_chosen_ones(self, storage: QueryStorage) -> None:
        fibers = [fiber(number) for number in range(3)]
        _write(storage, fibers, {place: [(100 * place + n, n) for n in range(7)] for place in range(3)})
        whole = storage.fibers.timeline().points
        total = len(whole)
        assert total == 21
        for most in (0, 1, 2, 3, 5, 7, 10, 13, 20, 21, 22, 1_000, 2**63 - 1):
            kept = [
                point
                for number, point in enumerate(whole, start=1)
                if total <= most or number * most // total != (number - 1) * most // total
            ]
            assert len(kept) == min(most, total)
            assert storage.fibers.timeline(points=most) == Timeline(fibers, kept, total)

    def test_timeline_points_are_exact_at_all_times_and_of_any_source(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1))
        logs = [
            log(number, when, source=f"source {number} '\u2028")
            for number, when in enumerate(INSTANTS.values())
        ]
        storage.write_logs(logs)
        storage.write_memberships(member(number, 1) for number in range(len(logs)))
        found = storage.fibers.timeline().points
        assert [(point.log_id, point.timestamp, point.source_id) for point in found] == sorted(
            ((row.log_id, when, row.source_id) for row, when in zip(logs, IN_UTC.values(), strict=True)),
            key=lambda row: (row[1], row[0]),
        )

    def test_timeline_has_50_fibers_unless_more_are_asked_for(self, storage: QueryStorage) -> None:
        fibers = [fiber(number) for number in range(52)]
        _write(storage, fibers, {})
        assert storage.fibers.timeline() == Timeline(fibers[:50], [], 0)
        assert storage.fibers.timeline(51) == Timeline(fibers[:51], [], 0)
        assert storage.fibers.timeline(2**63 - 1) == Timeline(fibers, [], 0)

    def test_timeline_of_a_wrong_number_raises(self, storage: QueryStorage) -> None:
        check_number(storage.fibers.timeline, "fibers")
        check_number(lambda wrong: storage.fibers.timeline(points=wrong), "points")


def _write(
    storage: QueryStorage, fibers: Iterable[FiberRecord], logs: dict[int, list[tuple[int, int]]]
) -> None:
    for row in fibers:
        storage.write_fiber(row)
    for number, numbered in logs.items():
        storage.write_logs(log(key, seconds) for key, seconds in numbered)
        storage.write_memberships(member(key, number) for key, _ in numbered)


def _point(fiber_number: int, log_number: int, seconds: int) -> TimelinePoint:
    return TimelinePoint(uid(fiber_number), at(seconds), "web", uid(log_number))
