"""Tests of the actions of queries: delete, close and reopen, pin and unpin."""

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs, Memberships
from fiberstore.contract.results import Deleted
from fiberstore.testing.examples import at, everything, fiber, joins, log, member, pinned, uid
from fiberstore.testing.filters import numbers, where


class ActionsContract:
    """``delete``, ``close``, ``reopen``, ``pin`` and ``unpin``."""

    @pytest.fixture
    def full(self, storage: LifecycleStorage) -> LifecycleStorage:
        """Return fibers 1 and 2 that share log 2, fiber 3, and memberships of what is not stored."""
        storage.write_logs([log(1), log(2, source="db"), log(3, text="error"), log(4), log(5)])
        storage.write_fibers([fiber(1), fiber(2, "login", {"user": "ada"}), fiber(3, "login", closed=True)])
        pairs = [(1, 1), (2, 1), (2, 2), (3, 2), (4, 3), (90, 1), (5, 91)]
        storage.write_memberships([member(log_number, number) for log_number, number in pairs])
        storage.fibers.where(Fibers.c.fiber_id.in_([uid(2), uid(3)])).pin()
        storage.logs.where(Logs.c.log_id.in_([uid(1), uid(3)])).pin()
        return storage

    def test_deleted_logs_are_gone_with_their_memberships_and_pins(self, full: LifecycleStorage) -> None:
        assert full.logs.where(Logs.c.log_id.in_([uid(2), uid(3), uid(77)])).delete() == Deleted(2, 0, 3)
        assert where(full.logs) == [1, 4, 5]
        assert joins(full) == [(1, 1), (4, 3), (5, 91), (90, 1)]
        assert pinned(full) == ([1], [2, 3])
        assert where(full.fibers) == [1, 2, 3]
        full.write_logs([log(3)])
        assert pinned(full) == ([1], [2, 3])

    def test_deleted_fibers_are_gone_with_their_memberships_and_pins(self, full: LifecycleStorage) -> None:
        assert full.fibers.where(Fibers.c.fiber_type == "login").delete() == Deleted(0, 2, 3)
        assert where(full.fibers) == [1]
        assert joins(full) == [(1, 1), (2, 1), (5, 91), (90, 1)]
        assert pinned(full) == ([1, 3], [])
        assert where(full.logs) == [1, 2, 3, 4, 5]
        full.write_fibers([fiber(2)])
        assert pinned(full) == ([1, 3], [])

    def test_deleted_memberships_leave_their_logs_and_fibers(self, full: LifecycleStorage) -> None:
        assert full.memberships.where(Memberships.c.fiber_id == uid(1)).delete() == Deleted(0, 0, 3)
        assert joins(full) == [(2, 2), (3, 2), (4, 3), (5, 91)]
        assert (where(full.logs), where(full.fibers)) == ([1, 2, 3, 4, 5], [1, 2, 3])
        assert full.memberships.where(Memberships.c.config_version == 4).delete() == Deleted(0, 0, 0)
        assert full.memberships.delete() == Deleted(0, 0, 4)
        assert pinned(full) == ([1, 3], [2, 3])

    def test_delete_may_ask_of_the_other_side_which_changes_with_it(self, full: LifecycleStorage) -> None:
        of_ada = Logs.c.fibers.any(Fibers.c.attributes["/user"] == "ada")
        assert full.logs.where(of_ada).delete() == Deleted(2, 0, 3)
        assert where(full.logs) == [1, 4, 5]
        assert full.fibers.where(Fibers.c.logs.any(Logs.c.log_id == uid(4))).delete() == Deleted(0, 1, 1)
        assert full.fibers.where(~Fibers.c.logs.any(Logs.c.log_id != uid(77))).delete() == Deleted(0, 1, 0)
        assert where(full.fibers) == [1]
        assert full.logs.where(~Logs.c.fibers.contains(uid(1))).delete() == Deleted(2, 0, 1)
        assert joins(full) == [(1, 1), (90, 1)]

    def test_delete_may_ask_for_pins_which_it_takes_away(self, full: LifecycleStorage) -> None:
        assert full.logs.where(Logs.c.pinned).delete() == Deleted(2, 0, 2)
        assert full.fibers.where(~Fibers.c.pinned).delete() == Deleted(0, 1, 2)
        assert (where(full.logs), where(full.fibers)) == ([2, 4, 5], [2, 3])
        assert full.fibers.where(Fibers.c.logs.any(Logs.c.pinned) | Fibers.c.pinned).delete().fibers == 2
        assert pinned(full) == ([], [])

    def test_delete_without_conditions_is_of_everything(self, full: LifecycleStorage) -> None:
        assert full.logs.delete() == Deleted(5, 0, 6)
        assert joins(full) == [(90, 1)]
        assert full.fibers.delete() == Deleted(0, 3, 1)
        assert full.fibers.delete() == full.logs.delete() == Deleted(0, 0, 0)
        assert everything(full)[:3] == ([], [], [])

    def test_delete_of_nothing_changes_nothing(self, full: LifecycleStorage) -> None:
        before = everything(full)
        assert full.logs.where(Logs.c.log_id == uid(90)).delete() == Deleted(0, 0, 0)
        assert full.fibers.where(Fibers.c.fiber_id.in_([])).delete() == Deleted(0, 0, 0)
        assert full.fibers.where(Fibers.c.fiber_id == uid(91)).delete() == Deleted(0, 0, 0)
        assert everything(full) == before

    def test_what_was_deleted_may_be_stored_again(self, full: LifecycleStorage) -> None:
        full.logs.delete()
        full.fibers.delete()
        assert full.write_logs([log(2, text="anew")]) == 1
        full.write_fiber(fiber(2, "anew"))
        assert full.write_memberships([member(2, 2)]) == 1
        assert full.get_fiber_logs(uid(2)) == [full.get_log(uid(2))]
        assert full.get_fiber(uid(2)) == fiber(2, "anew")

    def test_order_of_a_query_does_not_matter_to_what_is_done(self, full: LifecycleStorage) -> None:
        assert full.fibers.order_by("most_logs").where(Fibers.c.fiber_id != uid(1)).close() == 1
        assert full.logs.order_by("newest").where(Logs.c.log_id != uid(1)).delete().logs == 4
        assert full.fibers.order_by("longest").where(Fibers.c.closed).delete().fibers == 2

    def test_close_is_of_the_open_fibers_of_the_query(self, full: LifecycleStorage) -> None:
        before = {row.fiber_id: row for row in full.fibers.iter_records()}
        assert full.fibers.where(Fibers.c.fiber_id.in_([uid(2), uid(3), uid(77)])).close() == 1
        assert where(full.fibers, Fibers.c.closed) == [2, 3]
        closed = before[uid(2)].model_copy(update={"closed": True})
        assert list(full.fibers.iter_records()) == [before[uid(1)], closed, before[uid(3)]]
        assert full.fibers.where(Fibers.c.fiber_id == uid(2)).close() == 0
        assert full.fibers.close() == 1
        assert full.fibers.close() == 0

    def test_close_by_what_their_logs_say(self, full: LifecycleStorage) -> None:
        assert full.fibers.where(Fibers.c.logs.any(Logs.c.source_id == "db")).close() == 2
        assert full.fibers.where(Fibers.c.pinned).reopen() == 2
        assert where(full.fibers, Fibers.c.closed) == [1]

    def test_reopen_is_of_the_closed_fibers_of_the_query(self, full: LifecycleStorage) -> None:
        full.fibers.close()
        assert full.fibers.where(Fibers.c.fiber_type == "login").reopen() == 2
        assert where(full.fibers, Fibers.c.closed) == [1]
        assert full.fibers.where(Fibers.c.fiber_type == "login").reopen() == 0
        assert full.fibers.reopen() == 1
        assert full.fibers.where(Fibers.c.closed).count() == 0

    def test_pin_counts_what_was_not_pinned_yet(self, full: LifecycleStorage) -> None:
        assert full.logs.where(Logs.c.log_id.in_([uid(1), uid(2), uid(90)])).pin() == 1
        assert full.fibers.pin() == 1
        assert full.fibers.pin() == 0
        assert pinned(full) == ([1, 2, 3], [1, 2, 3])

    def test_unpin_counts_what_was_pinned(self, full: LifecycleStorage) -> None:
        assert full.logs.where(Logs.c.log_id.in_([uid(1), uid(2), uid(90)])).unpin() == 1
        assert full.fibers.where(Fibers.c.fiber_id == uid(1)).unpin() == 0
        assert full.fibers.unpin() == 2
        assert pinned(full) == ([3], [])
        assert full.fibers.unpin() == 0
        assert full.logs.where(Logs.c.pinned).unpin() == 1

    def test_a_pin_of_a_fiber_is_not_one_of_the_log_of_its_id(self, storage: LifecycleStorage) -> None:
        storage.write_logs([log(1), log(2)])
        storage.write_fibers([fiber(1), fiber(2)])
        storage.logs.where(Logs.c.log_id == uid(1)).pin()
        storage.fibers.where(Fibers.c.fiber_id == uid(2)).pin()
        assert pinned(storage) == ([1], [2])

    def test_where_asks_for_pins_with_other_conditions(self, full: LifecycleStorage) -> None:
        assert where(full.logs, Logs.c.pinned.is_(True), Logs.c.raw_text == "error") == [3]
        assert where(full.logs, Logs.c.pinned.is_(False)) == [2, 4, 5]
        assert where(full.logs, Logs.c.fibers.any(Fibers.c.pinned)) == [2, 3, 4]
        assert where(full.fibers, Fibers.c.logs.any(Logs.c.pinned)) == [1, 2]
        assert where(full.fibers, ~Fibers.c.logs.any(~Logs.c.pinned)) == []
        assert where(full.fibers, Fibers.c.pinned & Fibers.c.closed) == [3]

    def test_pins_stay_when_a_fiber_changes(self, full: LifecycleStorage) -> None:
        full.update_fiber(fiber(2, "request", last=at(99)))
        full.upsert_fibers([fiber(3, "request")])
        assert pinned(full) == ([1, 3], [2, 3])

    def test_what_changed_is_found_by_pages_and_ids(self, full: LifecycleStorage) -> None:
        full.fibers.close()
        assert all(row.closed for row in full.fibers.page(10).items)
        assert full.get_fiber(uid(1)) == fiber(1, closed=True)
        full.logs.where(Logs.c.log_id == uid(2)).delete()
        assert numbers(full.logs.page(10).items) == [1, 3, 4, 5]
        assert full.get_log(uid(2)) is None
        assert full.get_log_fibers(uid(2)) == []
        assert numbers(full.get_fiber_logs(uid(1))) == [1]
