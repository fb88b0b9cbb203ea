"""``merge_fibers`` and ``resolve_fibers``: fibers that become part of others."""

from uuid import UUID

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.queries import Fibers
from fiberstore.contract.results import Merged
from fiberstore.errors import NotFoundError
from fiberstore.testing.examples import at, everything, fiber, joins, log, member, pinned, uid
from fiberstore.testing.filters import numbers
from fiberstore.testing.invalid_arguments import check_refusal


def _into(**survivors: int) -> dict[UUID, UUID]:
    """Return losers and their survivors: ``_into(_2=1)`` merges fiber 2 into fiber 1."""
    return {uid(int(number[1:])): uid(survivor) for number, survivor in survivors.items()}


def _places(storage: LifecycleStorage, *fiber_numbers: int) -> dict[int, int]:
    found = storage.resolve_fibers(uid(number) for number in fiber_numbers)
    return {id_.int: place.int for id_, place in found.items()}


class MergingContract:
    """Rows that move, rows that stay, and the resolution of old ids."""

    @pytest.fixture
    def fibers(self, storage: LifecycleStorage) -> LifecycleStorage:
        """Return fibers 1 to 5 of version 3, each with the log of its number and log 10."""
        storage.write_logs([log(number) for number in (1, 2, 3, 4, 5, 10)])
        storage.write_fibers([fiber(number) for number in range(1, 6)])
        storage.write_memberships([member(number, number) for number in range(1, 6)])
        storage.write_memberships([member(10, number) for number in range(1, 6)])
        return storage

    def test_memberships_move_and_the_fiber_is_no_more(self, fibers: LifecycleStorage) -> None:
        assert fibers.merge_fibers(_into(_2=1)) == Merged(1, 1)
        assert fibers.get_fiber(uid(2)) is None
        assert numbers(fibers.get_fiber_logs(uid(1))) == [1, 2, 10]
        assert fibers.get_fiber_logs(uid(2)) == []
        assert [pair for pair in joins(fibers) if pair[1] in (1, 2)] == [(1, 1), (2, 1), (10, 1)]
        assert numbers(fibers.fibers.iter_records()) == [1, 3, 4, 5]

    def test_logs_that_several_hold_are_held_once(self, fibers: LifecycleStorage) -> None:
        assert fibers.merge_fibers(_into(_1=5, _2=5, _3=4)) == Merged(3, 3)
        assert joins(fibers) == [(1, 5), (2, 5), (3, 4), (4, 4), (5, 5), (10, 4), (10, 5)]

    def test_a_log_that_only_the_merged_fibers_shared_is_gained_once(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1), fiber(2), fiber(3)])
        storage.write_memberships([member(7, 2, 5), member(7, 3, 4), member(8, 3, 6)])
        assert storage.merge_fibers(_into(_2=1, _3=1)) == Merged(2, 2)
        assert list(storage.memberships.iter_records()) == [member(7, 1, 4), member(8, 1, 6)]

    def test_a_membership_of_the_survivor_stays_as_it_is(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1), fiber(2)])
        storage.write_memberships([member(7, 1, 9), member(7, 2, 4)])
        assert storage.merge_fibers(_into(_2=1)) == Merged(1, 0)
        assert list(storage.memberships.iter_records()) == [member(7, 1, 9)]

    def test_activity_of_the_survivor_covers_theirs(self, storage: LifecycleStorage) -> None:
        survivor = fiber(1, "login", {"user": "ada"}, first=at(10), last=at(20), closed=True)
        storage.write_fibers(
            [
                survivor,
                fiber(2, first=at(5), last=at(12)),
                fiber(3, first=at(15), last=at(99)),
                fiber(4, first=at(11), last=at(12)),
            ]
        )
        storage.merge_fibers(_into(_4=1))
        assert storage.get_fiber(uid(1)) == survivor
        storage.merge_fibers(_into(_2=1, _3=1))
        widened = survivor.model_copy(update={"first_activity": at(5), "last_activity": at(99)})
        assert list(storage.fibers.iter_records()) == [widened]

    def test_pins_move(self, fibers: LifecycleStorage) -> None:
        fibers.fibers.where(Fibers.c.fiber_id.in_([uid(2), uid(3), uid(5)])).pin()
        fibers.merge_fibers(_into(_2=1, _3=1, _4=5))
        assert pinned(fibers) == ([], [1, 5])
        fibers.write_fibers([fiber(2)])
        assert pinned(fibers) == ([], [1, 5])

    def test_an_old_id_leads_to_the_survivor(self, fibers: LifecycleStorage) -> None:
        fibers.merge_fibers(_into(_2=1, _4=3))
        assert _places(fibers, 4, 1, 2, 77, 3) == {4: 3, 1: 1, 2: 1, 3: 3}

    def test_an_old_id_leads_to_the_last_of_many_survivors(self, fibers: LifecycleStorage) -> None:
        for loser, survivor in ((1, 2), (2, 3), (3, 4), (4, 5)):
            fibers.merge_fibers({uid(loser): uid(survivor)})
        assert _places(fibers, 1, 2, 3, 4, 5) == dict.fromkeys(range(1, 6), 5)
        assert numbers(fibers.get_fiber_logs(uid(5))) == [1, 2, 3, 4, 5, 10]

    def test_an_old_id_leads_nowhere_once_its_survivor_is_deleted(self, fibers: LifecycleStorage) -> None:
        fibers.merge_fibers(_into(_1=2, _3=4))
        fibers.merge_fibers(_into(_2=5))
        fibers.fibers.where(Fibers.c.fiber_id == uid(5)).delete()
        assert _places(fibers, 1, 2, 3, 5) == {3: 4}
        fibers.write_fibers([fiber(5)])
        assert _places(fibers, 1, 2, 5) == {5: 5}

    def test_an_old_id_that_is_stored_again_is_its_own_fiber(self, fibers: LifecycleStorage) -> None:
        fibers.merge_fibers(_into(_2=1))
        fibers.write_fibers([fiber(2, "login")])
        assert _places(fibers, 1, 2) == {1: 1, 2: 2}
        fibers.merge_fibers(_into(_1=2))
        assert _places(fibers, 1, 2) == {1: 2, 2: 2}
        fibers.merge_fibers(_into(_2=3))
        assert _places(fibers, 1, 2) == {1: 3, 2: 3}

    def test_resolve_gives_the_ids_in_the_order_they_were_given(self, fibers: LifecycleStorage) -> None:
        fibers.merge_fibers(_into(_2=1))
        asked = [uid(number) for number in (5, 2, 99, 1, 5, 3)]
        assert list(fibers.resolve_fibers(asked)) == [uid(5), uid(2), uid(1), uid(3)]
        assert fibers.resolve_fibers([]) == {}

    def test_merging_nothing_changes_nothing(self, fibers: LifecycleStorage) -> None:
        before = everything(fibers)
        assert fibers.merge_fibers({}) == Merged(0, 0)
        assert everything(fibers) == before

    def test_fibers_not_stored_are_refused_and_nothing_merged(self, fibers: LifecycleStorage) -> None:
        fibers.write_memberships([member(1, 77)])
        before = everything(fibers)
        for survivors in (_into(_2=1, _77=1), _into(_2=1, _3=77)):
            with pytest.raises(NotFoundError) as caught:
                fibers.merge_fibers(survivors)
            assert caught.value.fiber_id == uid(77)
        assert everything(fibers) == before
        assert _places(fibers, 2, 3) == {2: 2, 3: 3}

    def test_a_survivor_that_ends_is_refused_and_nothing_merged(self, fibers: LifecycleStorage) -> None:
        before = everything(fibers)
        ended = (_into(_4=5, _2=2), _into(_4=5, _2=1, _1=3), _into(_1=2, _2=1))
        check_refusal(fibers.merge_fibers, ValueError, r"ends? (itself|themselves)", *ended)
        assert everything(fibers) == before

    def test_fibers_of_two_versions_are_not_merged(self, fibers: LifecycleStorage) -> None:
        fibers.write_fibers([fiber(6, config_version=4)])
        before = everything(fibers)
        check_refusal(fibers.merge_fibers, ValueError, "version", _into(_2=1, _6=1), _into(_2=1, _3=6))
        assert everything(fibers) == before

    def test_ids_that_are_none_are_refused(self, fibers: LifecycleStorage) -> None:
        wrong = ({str(uid(2)): uid(1)}, {uid(2): str(uid(1))}, {uid(2): None})
        check_refusal(fibers.merge_fibers, TypeError, "UUID", *wrong)
        check_refusal(fibers.merge_fibers, TypeError, "mapping", [uid(2)])
        check_refusal(fibers.resolve_fibers, TypeError, "UUID", [uid(1), str(uid(2))])
        assert _places(fibers, 2) == {2: 2}
