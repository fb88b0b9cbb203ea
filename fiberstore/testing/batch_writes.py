"""Tests of ``write_batch``, ``write_fibers`` and ``upsert_fibers``."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from fiberstore.contract.lifecycle import CheckpointMove, LifecycleStorage
from fiberstore.contract.results import BatchCounts, Upserted
from fiberstore.errors import CheckpointError, SerializationError
from fiberstore.records import FiberRecord, LogRecord
from fiberstore.testing.examples import at, checkpoint, everything, fiber, joins, log, member, stored, uid
from fiberstore.testing.filters import where

_damaged = fiber(9, attributes={"a": 1})
cast("dict[str, object]", _damaged.attributes)["a"] = float("nan")

_WRONG: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "a log that is none": ({"logs": [log(9), fiber(9)]}, TypeError),
    "a fiber that is none": ({"fibers": [fiber(9), log(9)]}, TypeError),
    "a membership that is none": ({"memberships": [member(9, 9), None]}, TypeError),
    "a checkpoint that is none": ({"checkpoint": "place"}, TypeError),
    "one fiber twice": ({"fibers": [fiber(9), fiber(8), fiber(9)]}, ValueError),
    "one stored fiber twice": ({"fibers": [fiber(1), fiber(1, "login")]}, ValueError),
    "attributes that are no JSON": ({"fibers": [fiber(8), _damaged]}, SerializationError),
    "a checkpoint elsewhere": ({"checkpoint": CheckpointMove("at", "2", "3")}, CheckpointError),
    "a checkpoint that is there": ({"checkpoint": CheckpointMove("at", None, "3")}, CheckpointError),
    "a checkpoint that is not": ({"checkpoint": CheckpointMove("new", "1", "3")}, CheckpointError),
    "a checkpoint without a name": ({"checkpoint": CheckpointMove("", None, "3")}, ValueError),
    "a checkpoint that cannot be": ({"checkpoint": CheckpointMove("at", "1", "\0")}, ValueError),
}


class BatchWritesContract:
    """All or nothing, and how many of each."""

    def test_write_batch_stores_all_it_is_given(self, storage: LifecycleStorage) -> None:
        counts = storage.write_batch(
            logs=[log(1), stored(2)],
            fibers=[fiber(1, attributes={"a": [1, None]}), fiber(2)],
            memberships=[member(1, 1), member(2, 1), member(2, 2)],
            checkpoint=CheckpointMove("at", None, "2"),
        )
        assert counts == BatchCounts(2, Upserted(2, 0), 3)
        assert where(storage.logs) == [1, 2]
        assert storage.get_log(uid(2)) == stored(2)
        assert list(storage.fibers.iter_records()) == [fiber(1, attributes={"a": [1, None]}), fiber(2)]
        assert joins(storage) == [(1, 1), (2, 1), (2, 2)]
        assert checkpoint(storage, "at") == "2"

    def test_write_batch_counts_what_is_new_and_what_has_changed(self, storage: LifecycleStorage) -> None:
        storage.write_batch(logs=[log(1)], fibers=[fiber(1)], memberships=[member(1, 1)])
        counts = storage.write_batch(
            logs=[log(1, text="other"), log(2), log(2, text="other")],
            fibers=[fiber(2), fiber(1, "login", closed=True), fiber(3)],
            memberships=[member(1, 1, 9), member(1, 2), member(1, 2)],
        )
        assert counts == BatchCounts(1, Upserted(2, 1), 1)
        assert [row.raw_text for row in storage.logs.iter_records()] == ["GET /", "GET /"]
        assert storage.get_fiber(uid(1)) == fiber(1, "login", closed=True)
        assert [row.config_version for row in storage.memberships.iter_records()] == [3, 3]

    def test_write_batch_stamps_logs_as_write_logs_does(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(1)])
        storage.write_batch(logs=[log(2)])
        one, two = storage.logs.iter_records()
        assert two.config_version == one.config_version
        assert two.ingestion_time >= one.ingestion_time

    def test_write_batch_of_nothing_stores_nothing(self, storage: LifecycleStorage) -> None:
        assert storage.write_batch() == BatchCounts(0, Upserted(0, 0), 0)
        assert storage.write_batch(logs=[], fibers=[], memberships=[]) == BatchCounts(0, Upserted(0, 0), 0)
        assert everything(storage) == ([], [], [], ([], []), [], [])

    def test_write_batch_may_move_a_checkpoint_alone(self, storage: LifecycleStorage) -> None:
        storage.write_batch(checkpoint=CheckpointMove("at", None, "1"))
        storage.write_batch(checkpoint=CheckpointMove("at", "1", ""))
        assert [(one.name, one.value) for one in storage.checkpoints.all()] == [("at", "")]

    def test_write_batch_reads_iterators(self, storage: LifecycleStorage) -> None:
        counts = storage.write_batch(
            logs=(log(number) for number in range(5)),
            fibers=(fiber(number) for number in range(3)),
            memberships=(member(number, 0) for number in range(5)),
        )
        assert counts == BatchCounts(5, Upserted(3, 0), 5)

    @pytest.mark.parametrize("name", _WRONG)
    def test_write_batch_stores_nothing_when_a_part_is_refused(
        self, storage: LifecycleStorage, name: str
    ) -> None:
        storage.write_batch(
            logs=[log(1)],
            fibers=[fiber(1)],
            memberships=[member(1, 1)],
            checkpoint=CheckpointMove("at", None, "1"),
        )
        before = everything(storage)
        wrong, error = _WRONG[name]
        good = {"logs": [log(2)], "fibers": [fiber(1, "login"), fiber(2)], "memberships": [member(2, 2)]}
        with pytest.raises(error):
            storage.write_batch(**{"checkpoint": CheckpointMove("at", "1", "2"), **good, **wrong})
        assert everything(storage) == before
        assert storage.write_batch(logs=[log(9)], fibers=[fiber(9)]).logs == 1

    def test_write_batch_stores_nothing_when_its_reader_fails(self, storage: LifecycleStorage) -> None:
        def logs() -> Iterator[LogRecord]:
            yield log(1)
            raise OSError("the file is gone")

        with pytest.raises(OSError, match="the file is gone"):
            storage.write_batch(logs=logs(), fibers=[fiber(1)])
        assert everything(storage) == ([], [], [], ([], []), [], [])

    def test_write_fibers_leaves_those_that_are_stored(self, storage: LifecycleStorage) -> None:
        assert storage.write_fibers([fiber(1), fiber(2, attributes=[1])]) == 2
        assert storage.write_fibers([fiber(3), fiber(2, "login", last=at(9)), fiber(1, closed=True)]) == 1
        assert list(storage.fibers.iter_records()) == [fiber(1), fiber(2, attributes=[1]), fiber(3)]
        assert storage.write_fibers([]) == 0
        assert storage.write_fibers(fiber(number) for number in range(3, 6)) == 2

    def test_upsert_fibers_replaces_every_field(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1, attributes={"a": 1}), fiber(2)])
        new = [
            fiber(1, "login", None, first=at(-5), last=at(5), closed=True, config_version=2**64 - 1),
            fiber(3, attributes={"b": [1.0, "é"]}),
        ]
        assert storage.upsert_fibers(new) == Upserted(1, 1)
        assert list(storage.fibers.iter_records()) == [new[0], fiber(2), new[1]]
        assert storage.upsert_fibers(new) == Upserted(0, 2)
        assert storage.upsert_fibers([]) == Upserted(0, 0)

    def test_upsert_fibers_widens_the_activity_and_replaces_the_rest(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1, attributes={"a": 1}, first=at(10), last=at(20)), fiber(2)])
        given = [
            fiber(1, "login", {"b": 2}, first=at(15), last=at(40), closed=True, config_version=3),
            fiber(3, first=at(5), last=at(6)),
        ]
        assert storage.upsert_fibers(given, widen=True) == Upserted(1, 1)
        widened = fiber(1, "login", {"b": 2}, first=at(10), last=at(40), closed=True, config_version=3)
        assert [storage.get_fiber(uid(number)) for number in (1, 2, 3)] == [widened, fiber(2), given[1]]
        spans = [(0, 1, (0, 40)), (5, 6, (0, 40)), (50, 60, (0, 60)), (-9, 99, (-9, 99))]
        for first, last, expected in spans:
            storage.upsert_fibers([fiber(1, first=at(first), last=at(last))], widen=True)
            assert storage.get_fiber(uid(1)) == fiber(1, first=at(expected[0]), last=at(expected[1]))
        storage.upsert_fibers([fiber(1, first=at(2), last=at(3))])
        assert storage.get_fiber(uid(1)) == fiber(1, first=at(2), last=at(3))

    def test_upsert_fibers_widens_whatever_the_order_of_producers(self, storage: LifecycleStorage) -> None:
        spans = [(number * 7 % 40, number * 7 % 40 + number % 5) for number in range(24)]

        def produce(mine: list[tuple[int, int]]) -> None:
            for first, last in mine:
                storage.upsert_fibers([fiber(1, first=at(first), last=at(last))], widen=True)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(produce, [spans[0::3], spans[1::3], spans[2::3]]))
        whole = fiber(1, first=at(min(spans)[0]), last=at(max(last for _, last in spans)))
        assert storage.get_fiber(uid(1)) == whole

    def test_upsert_fibers_leaves_their_memberships(self, storage: LifecycleStorage) -> None:
        storage.write_batch(logs=[log(1)], fibers=[fiber(1)], memberships=[member(1, 1)])
        storage.upsert_fibers([fiber(1, "login", config_version=4)])
        assert joins(storage) == [(1, 1)]

    def test_many_fibers_are_written_over_at_once(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(number) for number in range(0, 3_000, 2)])
        changed = [fiber(number, "login", {"n": number}) for number in range(3_000)]
        assert storage.upsert_fibers(changed) == Upserted(1_500, 1_500)
        assert list(storage.fibers.iter_records()) == changed

    def test_fibers_are_refused_all_or_none(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1)])
        methods: list[Callable[[list[FiberRecord]], object]] = [storage.write_fibers, storage.upsert_fibers]
        for write in methods:
            with pytest.raises(TypeError, match="a FiberRecord"):
                write([fiber(1, "login"), fiber(2), cast("FiberRecord", log(3))])
            with pytest.raises(ValueError, match="twice"):
                write([fiber(1, "login"), fiber(2), fiber(2)])
            with pytest.raises(SerializationError):
                write([fiber(1, "login"), fiber(2), _damaged])
            assert list(storage.fibers.iter_records()) == [fiber(1)]

    def test_what_was_written_is_not_shared_with_the_caller(self, storage: LifecycleStorage) -> None:
        methods: list[Callable[[list[FiberRecord]], object]] = [storage.write_fibers, storage.upsert_fibers]
        for number, write in enumerate(methods, 1):
            row = fiber(number, attributes={"a": [1]})
            write([row])
            cast("dict[str, list[int]]", row.attributes)["a"].append(2)
            assert storage.get_fiber(uid(number)) == fiber(number, attributes={"a": [1]})
