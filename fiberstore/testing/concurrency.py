"""Threads that share one storage."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from uuid import UUID

from fiberstore.contract.storage import Storage
from fiberstore.errors import DuplicateError
from fiberstore.testing.examples import all_logs, at, fiber, log, member, uid

_THREADS = 8
_T = TypeVar("_T")


def together(calls: Sequence[Callable[[], _T]]) -> list[_T]:
    """Run the calls at the same time, each on a thread of its own; return what they return.

    Python changes between the threads 500 times as often as usual, so that they meet.
    """
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], _T]) -> _T:
        barrier.wait()
        return call()

    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(usual_s / 500)
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(run, calls))
    finally:
        sys.setswitchinterval(usual_s)


class ThreadsContract:
    """One storage object, shared by any number of threads."""

    def test_threads_that_write_different_logs_lose_none(self, storage: Storage) -> None:
        storage.write_logs([log(1, -1)])

        def write(thread: int) -> int:
            numbers = range(thread * 60, thread * 60 + 60)
            return sum(
                storage.write_logs([log(number) for number in numbers[step : step + 20]])
                for step in range(0, 60, 20)
            )

        counts = together([partial(write, thread) for thread in range(1, _THREADS + 1)])
        assert counts == [60] * _THREADS
        assert [row.log_id.int for row in all_logs(storage)] == [1, *range(60, _THREADS * 60 + 60)]

    def test_threads_that_write_the_same_logs_store_each_once(self, storage: Storage) -> None:
        numbers = list(range(60))

        def write(thread: int) -> int:
            mine = numbers[thread * 7 :] + numbers[: thread * 7]  # every thread begins somewhere else
            return sum(
                storage.write_logs([log(number, text=f"by {thread}") for number in mine[step : step + 20]])
                for step in range(0, 60, 20)
            )

        counts = together([partial(write, thread) for thread in range(_THREADS)])
        rows = all_logs(storage)
        assert [row.log_id.int for row in rows] == numbers
        assert sum(counts) == len(numbers)
        winners = Counter(row.raw_text for row in rows)
        assert [winners[f"by {thread}"] for thread in range(_THREADS)] == counts

    def test_threads_that_write_the_same_memberships_store_each_once(self, storage: Storage) -> None:
        storage.write_logs([log(number) for number in range(40)])

        def write(thread: int) -> int:
            same = [member(number, 9) for number in range(40)]
            own = [member(number, 100 + thread) for number in range(5)]
            return storage.write_memberships(same[thread:] + own + same[:thread])

        counts = together([partial(write, thread) for thread in range(_THREADS)])
        assert sum(counts) == 40 + 5 * _THREADS
        assert min(counts) >= 5
        assert len(storage.get_fiber_logs(uid(9))) == 40
        expected = [uid(9), *(uid(100 + thread) for thread in range(_THREADS))]
        assert storage.get_log_fibers(uid(0)) == expected

    def test_threads_that_write_one_fiber_are_told_which_was_first(self, storage: Storage) -> None:
        storage.write_fiber(fiber(2, "noise"))

        def write(thread: int) -> UUID | int:
            try:
                storage.write_fiber(fiber(1, attributes=thread))
            except DuplicateError as error:
                return error.fiber_id
            return thread

        results = together([partial(write, thread) for thread in range(_THREADS)])
        winners = [thread for thread in results if isinstance(thread, int)]
        assert len(winners) == 1
        assert results.count(uid(1)) == _THREADS - 1
        assert storage.query_fibers_by_type("request") == [fiber(1, attributes=winners[0])]

    def test_threads_that_update_one_fiber_leave_one_of_their_records(self, storage: Storage) -> None:
        storage.write_fiber(fiber(1))
        storage.write_fiber(fiber(2, "noise"))
        records = [
            fiber(1, f"type {thread % 2}", {"by": thread}, last=at(100 + thread), config_version=thread)
            for thread in range(_THREADS)
        ]

        def update(thread: int) -> None:
            for _ in range(3):
                storage.update_fiber(records[thread])
                seen = storage.get_fiber(uid(1))
                assert seen in records

        together([partial(update, thread) for thread in range(_THREADS)])
        last = storage.get_fiber(uid(1))
        assert last in records
        by_type = [storage.query_fibers_by_type(f"type {number}") for number in (0, 1)]
        assert sorted(by_type, key=len) == [[], [last]]
        assert storage.query_fibers_by_type("request") == []

    def test_threads_that_update_fibers_of_their_own_lose_no_update(self, storage: Storage) -> None:
        for thread in range(_THREADS):
            storage.write_fiber(fiber(thread))

        def update(thread: int) -> None:
            for count in range(3):
                new = fiber(thread, f"type {count % 2}", count)
                storage.update_fiber(new)
                assert storage.get_fiber(uid(thread)) == new
                storage.write_logs([log(1_000 + thread * 10 + count)])

        together([partial(update, thread) for thread in range(_THREADS)])
        assert storage.query_fibers_by_type("type 0") == [
            fiber(thread, "type 0", 2) for thread in range(_THREADS)
        ]
        assert storage.query_fibers_by_type("type 1") == storage.query_fibers_by_type("request") == []
        assert len(all_logs(storage)) == 3 * _THREADS

    def test_threads_that_read_never_see_half_a_batch(self, storage: Storage) -> None:
        batches = 6
        written = threading.Event()

        def write() -> set[int]:
            try:
                for batch in range(batches):
                    storage.write_logs([log(batch * 50 + number) for number in range(50)])
            finally:
                written.set()
            return {len(all_logs(storage))}

        def read() -> set[int]:
            seen = set()
            while not written.is_set():
                seen.add(len(all_logs(storage)))
            return seen

        whole, *seen = together([write, read, read, read])
        assert whole == {50 * batches}
        assert set().union(*seen) <= {50 * batch for batch in range(batches + 1)}

    def test_threads_may_build_the_schema_at_once_while_others_write(self, storage: Storage) -> None:
        def build() -> int:
            storage.init_schema()
            return 0

        def write(thread: int) -> int:
            storage.init_schema()
            return storage.write_logs([log(thread), log(99)])

        storage.write_logs([log(98)])
        writers: list[Callable[[], int]] = [partial(write, thread) for thread in range(5)]
        counts = together([build, build, build, *writers])
        assert sum(counts) == 6
        assert [row.log_id.int for row in all_logs(storage)] == [0, 1, 2, 3, 4, 98, 99]
