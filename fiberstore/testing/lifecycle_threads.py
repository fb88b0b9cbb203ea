"""Threads that share a storage, and change the same rows."""

import threading
from contextlib import suppress
from functools import partial

from fiberstore.contract.lifecycle import CheckpointMove, LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.errors import CheckpointError, NotFoundError
from fiberstore.testing.concurrency import together
from fiberstore.testing.examples import checkpoint, fiber, joins, log, member, uid
from fiberstore.testing.filters import numbers, where

_THREADS = 6


class LifecycleThreadsContract:
    """Nothing is lost, done twice, or seen half done."""

    def test_of_threads_that_move_a_checkpoint_one_wins(self, storage: LifecycleStorage) -> None:
        def move(expected: str | None, value: str) -> bool:
            try:
                storage.checkpoints.compare_and_set("at", expected, value)
            except CheckpointError:
                return False
            return True

        value: str | None = None
        for turn in range(5):
            values = [f"{turn} by {thread}" for thread in range(_THREADS)]
            won = together([partial(move, value, new) for new in values])
            assert sum(won) == 1
            value = values[won.index(True)]
            assert checkpoint(storage, "at") == value

    def test_threads_that_count_by_a_checkpoint_lose_no_count(self, storage: LifecycleStorage) -> None:
        storage.checkpoints.set("count", "0")

        def count(_: int) -> None:
            for _ in range(4):
                while True:
                    found = checkpoint(storage, "count") or ""
                    with suppress(CheckpointError):
                        storage.checkpoints.compare_and_set("count", found, str(int(found) + 1))
                        break

        together([partial(count, thread) for thread in range(4)])
        assert checkpoint(storage, "count") == "16"

    def test_of_threads_that_write_from_one_checkpoint_one_is_stored(self, storage: LifecycleStorage) -> None:
        def write(thread: int) -> bool:
            try:
                storage.write_batch(
                    logs=[log(thread)],
                    fibers=[fiber(thread), fiber(99, attributes=thread)],
                    memberships=[member(thread, thread)],
                    checkpoint=CheckpointMove("at", None, str(thread)),
                )
            except CheckpointError:
                return False
            return True

        won = together([partial(write, thread) for thread in range(_THREADS)])
        assert sum(won) == 1
        winner = won.index(True)
        assert where(storage.logs) == [winner]
        assert list(storage.fibers.iter_records()) == [fiber(winner), fiber(99, attributes=winner)]
        assert joins(storage) == [(winner, winner)]

    def test_threads_that_replace_and_close_fibers_lose_neither(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(number) for number in range(10 * _THREADS)])

        def change(thread: int) -> int:
            mine = range(10 * thread, 10 * thread + 10)
            storage.upsert_fibers([fiber(number, "login", {"by": thread}) for number in mine])
            return storage.fibers.where(Fibers.c.fiber_id.in_([uid(number) for number in mine])).close()

        assert together([partial(change, thread) for thread in range(_THREADS)]) == [10] * _THREADS
        assert list(storage.fibers.iter_records()) == [
            fiber(number, "login", {"by": number // 10}, closed=True) for number in range(10 * _THREADS)
        ]

    def test_threads_that_close_the_same_fibers_close_each_once(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(number) for number in range(50)])
        assert sum(together([storage.fibers.close] * _THREADS)) == 50
        assert sum(together([storage.fibers.pin] * _THREADS)) == 50
        assert sum(together([storage.fibers.unpin] * _THREADS)) == 50
        assert sum(deleted.fibers for deleted in together([storage.fibers.delete] * _THREADS)) == 50

    def test_threads_that_merge_fibers_into_one_lose_no_membership(self, storage: LifecycleStorage) -> None:
        together_numbers = range(1, 4 * _THREADS + 1)
        storage.write_batch(
            logs=[log(number) for number in together_numbers],
            fibers=[fiber(number) for number in range(4 * _THREADS + 1)],
            memberships=[member(number, number) for number in together_numbers],
        )

        def merge(thread: int) -> int:
            mine = together_numbers[4 * thread : 4 * thread + 4]
            return sum(storage.merge_fibers({uid(number): uid(0)}).memberships for number in mine)

        assert together([partial(merge, thread) for thread in range(_THREADS)]) == [4] * _THREADS
        assert numbers(storage.fibers.iter_records()) == [0]
        assert joins(storage) == [(number, 0) for number in together_numbers]
        found = storage.resolve_fibers(uid(number) for number in together_numbers)
        assert found == {uid(number): uid(0) for number in together_numbers}

    def test_of_threads_that_merge_one_fiber_into_others_one_wins(self, storage: LifecycleStorage) -> None:
        storage.write_batch(
            fibers=[fiber(number) for number in range(_THREADS + 1)], memberships=[member(1, _THREADS)]
        )

        def merge(thread: int) -> bool:
            try:
                return storage.merge_fibers({uid(_THREADS): uid(thread)}).fibers == 1
            except NotFoundError:
                return False

        won = together([partial(merge, thread) for thread in range(_THREADS)])
        assert sum(won) == 1
        assert joins(storage) == [(1, won.index(True))]
        assert storage.resolve_fibers([uid(_THREADS)]) == {uid(_THREADS): uid(won.index(True))}

    def test_threads_that_activate_versions_leave_one_active(self, storage: LifecycleStorage) -> None:
        versions = [storage.versions.register(str(number)).config_version for number in range(_THREADS)]

        def activate(thread: int) -> None:
            for _ in range(3):
                storage.versions.activate(versions[thread])
                assert sum(version.active for version in storage.versions.all()) == 1

        together([partial(activate, thread) for thread in range(_THREADS)])
        assert sum(version.active for version in storage.versions.all()) == 1

    def test_readers_see_one_whole_generation(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(number, config_version=1 + number % 2) for number in range(40)])
        storage.versions.activate(1)
        ended = threading.Event()

        def switch() -> set[int]:
            try:
                for number in range(12):
                    storage.versions.activate(2 - number % 2)
            finally:
                ended.set()
            return set()

        def read() -> set[int]:
            seen = set()
            while not ended.is_set():
                found = list(storage.fibers.where(Fibers.c.config_version.is_active()).iter_records())
                assert len(found) == 20
                seen |= {row.config_version for row in found}
                assert len({row.config_version for row in found}) == 1
            return seen

        assert together([switch, read, read])[0] == set()

    def test_a_batch_that_holds_stored_logs_keeps_them_from_going(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1)])
        logs = [log(number) for number in range(300)]
        holds = [member(number, 1) for number in range(300)]
        everything = Logs.c.source_id == "web"
        for _ in range(10):
            storage.write_logs(logs)

            def write() -> int:
                return storage.write_batch(logs=logs, memberships=holds).memberships

            def prune() -> int:
                return storage.prune(logs=everything).logs

            assert together([write, prune])[0] == 300
            assert len(storage.get_fiber_logs(uid(1))) == 300
            storage.logs.delete()

    def test_logs_redacted_while_others_are_written_are_all_there(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(number, text="secret") for number in range(100)])

        def write(thread: int) -> int:
            return storage.write_logs([log(1_000 * thread + number) for number in range(50)])

        def redact() -> int:
            return storage.logs.redact("secret")

        writes = [partial(write, thread) for thread in range(1, 4)]
        counts = together([*writes, partial(redact), partial(redact)])
        assert counts[:3] == [50] * 3
        assert sum(counts[3:]) == 100
        assert storage.logs.count() == 250
        assert where(storage.logs, Logs.c.raw_text.contains("secret")) == []
