"""``versions.diff``: how the fibers of two versions hold the same logs."""

from collections.abc import Mapping
from functools import partial
from typing import TypeAlias

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.results import ChangeKind, FiberChange, GenerationDiff
from fiberstore.errors import VersionNotFoundError
from fiberstore.testing.examples import everything, fiber, log, member, uid
from fiberstore.testing.invalid_arguments import check_number

OLD, NEW = 2**63, 2**53 + 1
NO_CHANGES: dict[ChangeKind, int] = {"split": 0, "merged": 0, "moved": 0, "new": 0, "gone": 0}

_Fibers: TypeAlias = dict[int, list[int]]
_Changes: TypeAlias = list[tuple[ChangeKind, list[int], list[int]]]

# Fibers of both versions with their logs, how many are unchanged, and the changes.
_CASES: dict[str, tuple[_Fibers, _Fibers, int, _Changes]] = {
    "the same logs": ({1: [1, 2], 2: [3], 3: [4, 5, 6]}, {31: [4, 5, 6], 21: [3], 11: [1, 2]}, 3, []),
    "the logs of one in several": ({1: [1, 2, 3]}, {12: [1], 11: [2, 3, 4]}, 0, [("split", [1], [11, 12])]),
    "the logs of several in one": ({2: [1], 1: [2, 3]}, {11: [1, 2]}, 0, [("merged", [1, 2], [11])]),
    "logs that came or went": (
        {1: [1], 2: [3, 4], 3: [5, 6]}, {11: [1, 2], 12: [3], 13: [6, 7]}, 0,
        [("moved", [1], [11]), ("moved", [2], [12]), ("moved", [3], [13])],
    ),
    "no log in common": (
        {1: [1], 2: [2]}, {11: [3], 12: [4]}, 0,
        [("new", [], [11]), ("new", [], [12]), ("gone", [1], []), ("gone", [2], [])],
    ),
    "no stored logs": (
        {1: [], 2: [90], 3: [1, 90]}, {11: [], 12: [90], 13: [1, 91]}, 1,
        [("new", [], [11]), ("new", [], [12]), ("gone", [1], []), ("gone", [2], [])],
    ),
    "split and merged at once": (
        {1: [1, 2], 2: [3]}, {11: [1], 12: [2, 3]}, 0,
        [("split", [1], [11, 12]), ("merged", [1, 2], [12])],
    ),
    "unchanged ones beside": (
        {1: [1, 2], 2: [3], 3: [3, 4]}, {11: [1, 2], 12: [2], 13: [3, 4]}, 2,
        [("new", [], [12]), ("gone", [2], [])],
    ),
    "all kinds": (
        {9: [1, 2], 8: [3, 4], 7: [5], 6: [6], 5: [7, 8], 4: [9], 3: [10]},
        {12: [1], 11: [2], 14: [3], 13: [4], 15: [5, 6], 18: [7], 17: [9, 11], 19: [20], 16: [21]}, 0,
        [
            ("split", [8], [13, 14]), ("split", [9], [11, 12]), ("merged", [6, 7], [15]),
            ("moved", [4], [17]), ("moved", [5], [18]), ("new", [], [16]), ("new", [], [19]),
            ("gone", [3], []),
        ],
    ),
}  # fmt: skip


def store(
    storage: LifecycleStorage,
    old: Mapping[int, list[int]],
    new: Mapping[int, list[int]],
    kind: str = "request",
) -> None:
    """Store fibers of both versions with these logs; logs from 90 on are not stored."""
    for version, fibers in ((OLD, old), (NEW, new)):
        logs = {number for numbers in fibers.values() for number in numbers}
        storage.write_batch(
            logs=[log(number) for number in sorted(logs) if number < 90],
            fibers=[fiber(number, kind, config_version=version) for number in fibers],
            memberships=[member(number, of, version) for of, numbers in fibers.items() for number in numbers],
        )


def _change(kind: ChangeKind, old: list[int], new: list[int], fiber_type: str = "request") -> FiberChange:
    return FiberChange(kind, fiber_type, [uid(number) for number in old], [uid(number) for number in new])


def _found(storage: LifecycleStorage, limit: int = 1_000) -> GenerationDiff:
    """Compare, and see that the counts are those of the changes."""
    found = storage.versions.diff(OLD, NEW, limit)
    assert list(found.counts) == list(NO_CHANGES)
    assert len(found.changes) == min(sum(found.counts.values()), limit)
    if len(found.changes) < limit:
        kinds = [change.kind for change in found.changes]
        assert found.counts == {kind: kinds.count(kind) for kind in NO_CHANGES}
    return found


class DiffsContract:
    """Each kind of change, their counts and their order."""

    @pytest.mark.parametrize("name", _CASES)
    def test_every_kind_of_change_is_found_by_kind_and_first_id(
        self, storage: LifecycleStorage, name: str
    ) -> None:
        old, new, unchanged, changes = _CASES[name]
        store(storage, old, new)
        before = everything(storage)
        found = _found(storage)
        assert (found.unchanged, found.changes) == (unchanged, [_change(*change) for change in changes])
        assert everything(storage) == before

    def test_a_log_may_be_in_several_fibers_of_each_version(self, storage: LifecycleStorage) -> None:
        store(storage, {1: [1, 2], 2: [2, 3]}, {11: [1, 2], 12: [2, 3, 4], 13: [4]})
        found = _found(storage)
        assert found.counts["new"] == 1
        assert found.counts["gone"] == 0
        assert found.changes[-1] == _change("new", [], [13])

    def test_fibers_of_two_types_are_not_compared(self, storage: LifecycleStorage) -> None:
        store(storage, {1: [1, 2]}, {11: [1, 2]})
        store(storage, {2: [1, 2]}, {12: [2]}, "login")
        store(storage, {3: [1]}, {}, "session")
        store(storage, {}, {14: [1]}, "Session")
        assert _found(storage) == GenerationDiff(
            1,
            {**NO_CHANGES, "moved": 1, "new": 1, "gone": 1},
            [
                _change("moved", [2], [12], "login"),
                _change("new", [], [14], "Session"),
                _change("gone", [3], [], "session"),
            ],
        )

    def test_memberships_count_whatever_version_they_have(self, storage: LifecycleStorage) -> None:
        storage.write_batch(
            logs=[log(1)],
            fibers=[fiber(1, config_version=OLD), fiber(11, config_version=NEW)],
            memberships=[member(1, 1, 7), member(1, 11, OLD)],
        )
        assert _found(storage).unchanged == 1

    def test_fibers_of_other_versions_do_not_count(self, storage: LifecycleStorage) -> None:
        store(storage, {1: [1]}, {11: [1]})
        storage.write_fibers([fiber(5, config_version=OLD + 1), fiber(6, config_version=NEW - 1)])
        storage.write_memberships([member(1, 5, OLD), member(1, 6, NEW)])
        assert _found(storage) == GenerationDiff(1, NO_CHANGES, [])

    def test_limit_bounds_the_changes_and_not_the_counts(self, storage: LifecycleStorage) -> None:
        store(storage, {number: [number] for number in range(1, 20)}, {21: [1, 2], 22: [3]})
        every = _found(storage)
        assert every.counts == {**NO_CHANGES, "merged": 1, "gone": 16}
        for limit in (0, 1, 2, 16, 17, 18):
            found = _found(storage, limit)
            assert found.changes == every.changes[:limit]
            assert (found.unchanged, found.counts) == (1, every.counts)

    def test_a_version_is_compared_without_fibers_and_with_itself(self, storage: LifecycleStorage) -> None:
        store(storage, {1: [1]}, {})
        empty = storage.versions.register("").config_version
        assert storage.versions.diff(OLD, empty).counts == {**NO_CHANGES, "gone": 1}
        assert storage.versions.diff(empty, OLD).counts == {**NO_CHANGES, "new": 1}
        assert storage.versions.diff(empty, empty) == GenerationDiff(0, NO_CHANGES, [])
        assert storage.versions.diff(OLD, OLD) == GenerationDiff(1, NO_CHANGES, [])

    def test_a_version_that_nobody_knows_is_not_compared(self, storage: LifecycleStorage) -> None:
        store(storage, {1: [1]}, {})
        for old, new in ((OLD, NEW), (NEW, OLD)):
            with pytest.raises(VersionNotFoundError) as caught:
                storage.versions.diff(old, new)
            assert caught.value.config_version == NEW

    def test_a_limit_that_is_none_is_refused(self, storage: LifecycleStorage) -> None:
        store(storage, {1: [1]}, {11: [1]})
        check_number(partial(storage.versions.diff, OLD, NEW), "limit")
