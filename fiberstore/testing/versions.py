"""The registry of config versions, the active one, and the rows dropped with one."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs, Memberships
from fiberstore.contract.results import ConfigVersion, Deleted
from fiberstore.errors import DatabaseError, VersionNotFoundError
from fiberstore.testing.examples import TEXTS, everything, fiber, joins, log, member, pinned, uid
from fiberstore.testing.filters import where

RULES = 'fiber "é" {}\n'
MADE_BY_HAND = 2**64 - 1  # a version of which nobody has the content


def _version_of(content: str) -> int:
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")


def _active(storage: LifecycleStorage) -> ConfigVersion:
    active = storage.versions.active()
    assert active is not None
    assert active.active
    assert storage.versions.get(active.config_version) == active
    return active


class VersionsContract:
    """``storage.versions``."""

    @pytest.fixture
    def generations(self, storage: LifecycleStorage) -> LifecycleStorage:
        """Return fibers 1 and 2 of version 1, and 3 and 4 of version 2, over the same two logs."""
        storage.write_logs([log(1), log(2)])
        storage.write_fibers([fiber(number, config_version=1 + number // 3) for number in (1, 2, 3, 4)])
        pairs = [(1, 1), (2, 2), (1, 3), (2, 3), (2, 4)]
        storage.write_memberships([member(row, number, 1 + number // 3) for row, number in pairs])
        return storage

    def test_a_registered_version_is_that_of_its_content(
        self, storage: LifecycleStorage, tmp_path: Path
    ) -> None:
        before = datetime.now(UTC)
        registered = storage.versions.register(RULES)
        assert registered == ConfigVersion(
            config_version=_version_of(RULES),
            content_hash=hashlib.sha256(RULES.encode()).hexdigest(),
            content=RULES,
            parent=None,
            created_at=registered.created_at,
            active=False,
        )
        assert before <= registered.created_at <= datetime.now(UTC)
        assert registered.created_at.tzinfo is UTC
        path = tmp_path / "rules.toml"
        path.write_bytes(RULES.encode())
        assert storage.versions.register(path) == storage.versions.register(RULES.encode()) == registered
        assert storage.versions.all() == [registered]
        assert storage.versions.get(registered.config_version) == registered

    def test_a_version_that_is_registered_again_stays_as_it_is(self, storage: LifecycleStorage) -> None:
        registered = storage.versions.register(RULES, parent=7)
        storage.versions.activate(registered.config_version)
        active = storage.versions.active()
        assert storage.versions.register(RULES, parent=8) == active
        assert storage.versions.all() == [active]

    def test_the_content_of_a_version_is_any_text(self, storage: LifecycleStorage) -> None:
        for text in TEXTS:
            storage.versions.register(text)
        assert {version.content for version in storage.versions.all()} == set(TEXTS)
        assert all(storage.versions.get(_version_of(text)) is not None for text in TEXTS)

    def test_content_that_is_no_text_is_refused(self, storage: LifecycleStorage, tmp_path: Path) -> None:
        for content in (b"\xff", "a\0", b"\0", "\ud800"):
            with pytest.raises(ValueError, match=r"NUL|surrogate|decode|encode|UTF-8"):
                storage.versions.register(content)
        with pytest.raises(OSError, match="no such"):
            storage.versions.register(tmp_path / "no such")
        for parent in (-1, 2**64, True, "1"):
            with pytest.raises(ValueError, match="config_version"):
                storage.versions.register(RULES, parent=cast("Any", parent))
        assert storage.versions.all() == []

    def test_the_parent_of_a_version_is_the_active_one_or_given(self, storage: LifecycleStorage) -> None:
        first = storage.versions.register("1")
        assert storage.versions.register("2").parent is None
        storage.versions.activate(first.config_version)
        assert storage.versions.register("3").parent == first.config_version
        assert storage.versions.register("4", parent=0).parent == 0
        assert storage.versions.register("5", parent=MADE_BY_HAND).parent == MADE_BY_HAND

    def test_versions_come_in_the_order_they_were_registered(self, storage: LifecycleStorage) -> None:
        registered = [storage.versions.register(str(number)) for number in range(9)]
        in_order = sorted(registered, key=lambda version: (version.created_at, version.config_version))
        assert storage.versions.all() == in_order

    def test_no_version_is_known_before_it_is_registered(self, storage: LifecycleStorage) -> None:
        assert storage.versions.get(1) is None
        assert storage.versions.all() == []
        assert storage.versions.active() is None
        storage.write_fibers([fiber(1, config_version=1)])
        assert storage.versions.get(1) is None

    def test_at_most_one_version_is_active(self, storage: LifecycleStorage) -> None:
        registered = [storage.versions.register(str(number)).config_version for number in range(3)]
        for version in [*registered, registered[0], registered[0]]:
            storage.versions.activate(version)
            assert [one.config_version for one in storage.versions.all() if one.active] == [version]
            assert _active(storage).config_version == version

    def test_activate_returns_what_was_active_to_go_back_to(self, storage: LifecycleStorage) -> None:
        one, two = (storage.versions.register(text).config_version for text in "12")
        assert storage.versions.activate(one) is None
        active = _active(storage)
        assert storage.versions.activate(two) == active
        two_active = _active(storage)
        assert storage.versions.activate(active.config_version) == two_active
        assert (active.config_version, two_active.config_version) == (one, two)
        assert _active(storage) == active

    def test_activate_none_leaves_no_version_active(self, storage: LifecycleStorage) -> None:
        assert storage.versions.activate(None) is None
        storage.versions.activate(storage.versions.register(RULES).config_version)
        before = _active(storage)
        assert storage.versions.activate(None) == before
        assert storage.versions.active() is None
        assert [one.active for one in storage.versions.all()] == [False]
        assert storage.versions.activate(None) is None

    def test_a_version_that_only_fibers_know_is_registered_when_activated(
        self, storage: LifecycleStorage
    ) -> None:
        first = storage.versions.register(RULES).config_version
        storage.versions.activate(first)
        storage.write_fibers([fiber(1, config_version=MADE_BY_HAND)])
        storage.versions.activate(MADE_BY_HAND)
        active = _active(storage)
        assert active == ConfigVersion(MADE_BY_HAND, None, None, first, active.created_at, active=True)

    def test_content_is_filled_in_where_only_fibers_were_known(self, storage: LifecycleStorage) -> None:
        digest = hashlib.sha256(RULES.encode())
        version = int.from_bytes(digest.digest()[:8], "big")
        storage.write_fibers([fiber(1, config_version=version)])
        storage.versions.activate(version)
        before = _active(storage)
        assert before.content is None
        found = storage.versions.register(RULES)
        assert (found.content, found.content_hash) == (RULES, digest.hexdigest())
        assert (found.created_at, found.active) == (before.created_at, True)
        assert storage.versions.get(version) == found

    def test_a_version_that_nobody_knows_is_not_activated(self, storage: LifecycleStorage) -> None:
        version = storage.versions.register(RULES).config_version
        storage.versions.activate(version)
        storage.write_memberships([member(1, 1, config_version=5)])
        before = everything(storage)
        with pytest.raises(VersionNotFoundError) as caught:
            storage.versions.activate(5)
        assert caught.value.config_version == 5
        assert everything(storage) == before

    def test_is_active_is_true_of_rows_of_the_active_version(self, generations: LifecycleStorage) -> None:
        is_active = Fibers.c.config_version.is_active()
        active_joins = generations.memberships.where(Memberships.c.config_version.is_active())
        assert where(generations.fibers, is_active) == []
        assert active_joins.count() == 0
        for version, fibers, count in ((1, [1, 2], 2), (2, [3, 4], 3), (1, [1, 2], 2)):
            generations.versions.activate(version)
            assert where(generations.fibers, is_active) == fibers
            assert where(generations.fibers, ~is_active) == [{1: 3, 3: 1}[fibers[0]], {2: 4, 4: 2}[fibers[1]]]
            assert active_joins.count() == count
        generations.versions.activate(None)
        assert where(generations.fibers, ~is_active) == [1, 2, 3, 4]

    def test_is_active_joins_other_conditions(self, generations: LifecycleStorage) -> None:
        generations.versions.activate(2)
        is_active = Fibers.c.config_version.is_active()
        in_four = Logs.c.fibers.any(is_active & (Fibers.c.fiber_id == uid(4)))
        assert where(generations.logs, in_four) == [2]
        assert where(generations.fibers, is_active | Fibers.c.logs.any(Logs.c.log_id == uid(1))) == [1, 3, 4]
        query = generations.fibers.where(is_active, Fibers.c.logs.any(in_four))
        assert where(query) == [3, 4]
        generations.versions.activate(1)
        assert where(query) == []
        assert generations.fibers.where(is_active).close() == 2
        assert where(generations.fibers, Fibers.c.closed) == [1, 2]

    def test_drop_deletes_fibers_and_memberships_of_a_version(self, generations: LifecycleStorage) -> None:
        generations.fibers.pin()
        generations.write_memberships([member(1, 77, 2), member(77, 3, 9), member(1, 78, 1)])
        assert generations.versions.drop(2) == Deleted(0, 2, 5)
        assert where(generations.fibers) == [1, 2]
        assert joins(generations) == [(1, 1), (1, 78), (2, 2)]
        assert where(generations.logs) == [1, 2]
        assert pinned(generations) == ([], [1, 2])

    def test_drop_leaves_its_place_in_the_registry(self, storage: LifecycleStorage) -> None:
        registered = storage.versions.register(RULES)
        storage.write_fibers([fiber(1, config_version=registered.config_version)])
        assert storage.versions.drop(registered.config_version) == Deleted(0, 1, 0)
        assert storage.versions.all() == [registered]
        assert storage.versions.drop(registered.config_version) == Deleted(0, 0, 0)

    def test_a_version_only_fibers_know_may_be_dropped_again(self, generations: LifecycleStorage) -> None:
        assert generations.versions.drop(1) == Deleted(0, 2, 2)
        assert generations.versions.drop(1) == Deleted(0, 0, 0)
        dropped = generations.versions.get(1)
        assert dropped is not None
        assert (dropped.content, dropped.active) == (None, False)

    def test_old_ids_of_merged_fibers_lead_nowhere_after_a_drop(self, generations: LifecycleStorage) -> None:
        generations.merge_fibers({uid(2): uid(1), uid(4): uid(3)})
        generations.versions.drop(1)
        assert generations.resolve_fibers([uid(1), uid(2), uid(4)]) == {uid(4): uid(3)}

    def test_the_active_version_is_not_dropped(self, generations: LifecycleStorage) -> None:
        generations.versions.activate(2)
        before = everything(generations)
        with pytest.raises(DatabaseError, match="active"):
            generations.versions.drop(2)
        assert everything(generations) == before
        generations.versions.activate(1)
        assert generations.versions.drop(2).fibers == 2

    def test_a_version_that_nobody_knows_is_not_dropped(self, generations: LifecycleStorage) -> None:
        before = everything(generations)
        with pytest.raises(VersionNotFoundError) as caught:
            generations.versions.drop(3)
        assert caught.value.config_version == 3
        assert everything(generations) == before

    @pytest.mark.parametrize("wrong", [-1, 2**64, True, "1", 1.0])
    def test_what_is_no_version_is_refused(self, storage: LifecycleStorage, wrong: object) -> None:
        version = cast("int", wrong)
        for call in (
            lambda: storage.versions.get(version),
            lambda: storage.versions.activate(version),
            lambda: storage.versions.drop(version),
            lambda: storage.versions.diff(version, 1),
            lambda: storage.versions.diff(1, version),
        ):
            with pytest.raises(ValueError, match="config_version must be"):
                call()
