"""``prune`` and ``compact``: deleted rows, kept rows, and steps."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.contract.results import Pruned
from fiberstore.testing.examples import at, everything, fiber, joins, log, member, pinned, uid
from fiberstore.testing.filters import where
from fiberstore.testing.invalid_arguments import check_number, check_refusal

EVERY_FIBER = ~Fibers.c.fiber_id.in_([])
EVERY_LOG = ~Logs.c.log_id.in_([])


def _counts(pruned: Pruned) -> tuple[int, int, int]:
    assert pruned.is_complete
    return pruned.fibers, pruned.memberships, pruned.logs


def _left(storage: LifecycleStorage) -> tuple[list[int], list[int]]:
    """Return the logs and the fibers that are there, when no membership leads to what is not."""
    logs, fibers = sorted(where(storage.logs)), where(storage.fibers)
    assert all(log_id in logs and fiber_id in fibers for log_id, fiber_id in joins(storage))
    return logs, fibers


def _prune_by(storage: LifecycleStorage, name: str, value: Any) -> Pruned:  # noqa: ANN401  # a wrong one
    return storage.prune(logs=EVERY_LOG, **{name: value})


class RetentionContract:
    """Retention by conditions; how much space there is, each backend measures by itself."""

    @pytest.fixture
    def aged(self, storage: LifecycleStorage) -> LifecycleStorage:
        """Return fibers 1 to 4, the oldest first.

        Fiber n holds the logs n and 10 + n, the last two hold log 5, and the logs 31 to 34 are in none.
        """
        numbers = range(1, 5)
        storage.write_batch(
            logs=[
                *(log(number, text="é" * number) for number in (*numbers, 5)),
                *(log(10 + number, number, source="db") for number in numbers),
                *(log(30 + number, number, source="noise") for number in numbers),
            ],
            fibers=[
                fiber(number, ("login", "request")[number % 2], first=at(number), last=at(number + 1))
                for number in numbers
            ],
            memberships=[
                *(member(number, number) for number in numbers),
                *(member(10 + number, number) for number in numbers),
                member(5, 3),
                member(5, 4),
            ],
        )
        return storage

    def test_fibers_go_with_the_logs_that_only_they_hold(self, aged: LifecycleStorage) -> None:
        pruned = aged.prune(fibers=Fibers.c.last_activity < at(4))
        assert _counts(pruned) == (2, 4, 4)
        assert pruned.text_bytes == 2 + 4 + len("GET /") * 2
        assert _left(aged) == ([3, 4, 5, 13, 14, 31, 32, 33, 34], [3, 4])

    def test_a_log_stays_as_long_as_a_kept_fiber_holds_it(self, aged: LifecycleStorage) -> None:
        assert _counts(aged.prune(fibers=Fibers.c.fiber_id == uid(3))) == (1, 3, 2)
        assert aged.get_log(uid(5)) is not None
        assert _counts(aged.prune(fibers=Fibers.c.fiber_id == uid(4))) == (1, 3, 3)
        assert aged.get_log(uid(5)) is None

    def test_logs_that_fibers_share_go_with_all_of_them(self, aged: LifecycleStorage) -> None:
        assert _counts(aged.prune(fibers=Fibers.c.fiber_id.in_([uid(3), uid(4)]))) == (2, 6, 5)
        assert _left(aged) == ([1, 2, 11, 12, 31, 32, 33, 34], [1, 2])

    def test_logs_go_that_no_stored_fiber_holds(self, aged: LifecycleStorage) -> None:
        aged.write_memberships([member(31, 77)])
        assert _counts(aged.prune(logs=Logs.c.timestamp <= at(3))) == (0, 1, 3)
        assert _left(aged) == ([1, 2, 3, 4, 5, 11, 12, 13, 14, 34], [1, 2, 3, 4])

    def test_fibers_alone_leave_the_logs_that_none_holds(self, aged: LifecycleStorage) -> None:
        assert _counts(aged.prune(fibers=EVERY_FIBER)) == (4, 10, 9)
        assert _left(aged) == ([31, 32, 33, 34], [])

    def test_logs_and_fibers_go_by_a_condition_each(self, aged: LifecycleStorage) -> None:
        pruned = aged.prune(fibers=Fibers.c.fiber_type == "login", logs=Logs.c.source_id != "db")
        assert _counts(pruned) == (2, 5, 8)
        assert _left(aged) == ([1, 3, 5, 11, 13], [1, 3])

    def test_logs_of_a_source_go(self, aged: LifecycleStorage) -> None:
        assert _counts(aged.prune(logs=Logs.c.source_id == "noise")) == (0, 0, 4)
        assert _counts(aged.prune(logs=Logs.c.source_id == "db")) == (0, 0, 0)

    def test_everything_goes(self, aged: LifecycleStorage) -> None:
        pruned = aged.prune(fibers=EVERY_FIBER, logs=EVERY_LOG)
        assert _counts(pruned) == (4, 10, 13)
        assert _left(aged) == ([], [])

    def test_a_pinned_fiber_is_kept_with_its_logs(self, aged: LifecycleStorage) -> None:
        aged.fibers.where(Fibers.c.fiber_id == uid(3)).pin()
        assert _counts(aged.prune(fibers=EVERY_FIBER, logs=EVERY_LOG)) == (3, 7, 10)
        assert _left(aged) == ([3, 5, 13], [3])
        assert pinned(aged) == ([], [3])
        aged.fibers.unpin()
        assert _counts(aged.prune(fibers=EVERY_FIBER)) == (1, 3, 3)

    def test_a_pinned_log_is_kept(self, aged: LifecycleStorage) -> None:
        aged.logs.where(Logs.c.log_id.in_([uid(1), uid(32)])).pin()
        assert _counts(aged.prune(fibers=EVERY_FIBER, logs=EVERY_LOG)) == (4, 10, 11)
        assert _left(aged) == ([1, 32], [])
        assert pinned(aged) == ([1, 32], [])
        assert _counts(aged.prune(fibers=EVERY_FIBER, logs=EVERY_LOG)) == (0, 0, 0)

    def test_conditions_may_ask_of_the_other_side(self, aged: LifecycleStorage) -> None:
        assert _counts(aged.prune(fibers=Fibers.c.logs.any(Logs.c.log_id == uid(11)))) == (1, 2, 2)
        in_none = ~Logs.c.fibers.any(EVERY_FIBER)
        assert _counts(aged.prune(logs=in_none)) == (0, 0, 4)
        assert _counts(aged.prune(fibers=~Fibers.c.config_version.is_active())) == (3, 8, 7)

    def test_a_generation_is_not_spared_whether_it_is_active_or_not(self, aged: LifecycleStorage) -> None:
        aged.versions.activate(3)
        assert _counts(aged.prune(fibers=Fibers.c.config_version.is_active())) == (4, 10, 9)

    def test_old_ids_of_merged_fibers_lead_nowhere_after_it(self, aged: LifecycleStorage) -> None:
        aged.merge_fibers({uid(2): uid(1), uid(4): uid(3)})
        aged.prune(fibers=Fibers.c.fiber_id == uid(1))
        assert aged.resolve_fibers([uid(1), uid(2), uid(4)]) == {uid(4): uid(3)}

    def test_prune_of_nothing_changes_nothing(self, aged: LifecycleStorage) -> None:
        before = everything(aged)
        pruned = aged.prune(fibers=Fibers.c.closed, logs=Logs.c.raw_text == "no such")
        assert _counts(pruned) == (0, 0, 0)
        assert pruned.text_bytes == 0
        assert everything(aged) == before

    def test_a_dry_run_tells_what_would_go_and_changes_nothing(self, aged: LifecycleStorage) -> None:
        aged.logs.where(Logs.c.log_id == uid(12)).pin()
        aged.fibers.where(Fibers.c.fiber_id == uid(4)).pin()
        before = everything(aged)
        conditions: list[dict[str, Any]] = [
            {"logs": EVERY_LOG},
            {"fibers": Fibers.c.fiber_type == "request"},
            {"fibers": Fibers.c.fiber_id == uid(4)},
            {"fibers": Fibers.c.first_activity < at(3), "logs": Logs.c.timestamp < at(2)},
            {"fibers": EVERY_FIBER, "logs": EVERY_LOG},
        ]
        foreseen = [aged.prune(**chosen, dry_run=True) for chosen in conditions]
        assert everything(aged) == before
        assert [one.logs for one in foreseen] == [4, 4, 0, 4, 9]
        last = aged.prune(**conditions[-1])
        assert _counts(last) == _counts(foreseen[-1]) == (3, 7, 9)
        assert last.text_bytes == foreseen[-1].text_bytes == (1 + 2 + 3) * 2 + len("GET /") * 6
        assert _left(aged) == ([4, 5, 12, 14], [4])

    def test_steps_are_whole_and_the_last_has_the_sum(self, aged: LifecycleStorage) -> None:
        steps: list[Pruned] = []
        sizes: list[tuple[int, int, int]] = []

        def on_step(gone: Pruned) -> None:
            steps.append(gone)
            logs, fibers = _left(aged)
            assert all(aged.get_log_fibers(uid(number)) for number in logs if number <= 14)
            sizes.append((4 - len(fibers), 10 - len(joins(aged)), 13 - len(logs)))

        pruned = aged.prune(fibers=EVERY_FIBER, logs=EVERY_LOG, step_rows=3, on_step=on_step)
        assert _counts(pruned) == (4, 10, 13)
        assert [(one.fibers, one.memberships, one.logs) for one in steps] == sizes
        assert sizes[-1] == (4, 10, 13)
        assert steps[-1].text_bytes == pruned.text_bytes == (1 + 2 + 3 + 4 + 5) * 2 + len("GET /") * 8
        logs = [0, *(one.logs for one in steps)]
        assert all(later - earlier <= 3 for earlier, later in pairwise(logs))
        assert len(steps) >= 5

    def test_a_fiber_with_more_logs_than_a_step_goes_at_once(self, aged: LifecycleStorage) -> None:
        steps: list[Pruned] = []
        pruned = aged.prune(fibers=Fibers.c.fiber_id == uid(1), step_rows=1, on_step=steps.append)
        assert _counts(pruned) == (1, 2, 2)
        assert [one.logs for one in steps if one.logs] == [2] * len(steps)

    def test_steps_may_end_early_and_another_call_goes_on(self, aged: LifecycleStorage) -> None:
        conditions: dict[str, Any] = {"fibers": EVERY_FIBER, "logs": EVERY_LOG}
        whole = aged.prune(**conditions, dry_run=True)
        first = aged.prune(**conditions, step_rows=2, max_steps=1)
        assert not first.is_complete
        assert 0 < first.logs <= 2
        calls = [first]
        while not calls[-1].is_complete:
            _left(aged)
            calls.append(aged.prune(**conditions, step_rows=2, max_steps=2))
            assert len(calls) < 20
        assert sum(one.logs for one in calls) == whole.logs == 13
        assert sum(one.fibers for one in calls) == whole.fibers == 4
        assert sum(one.memberships for one in calls) == whole.memberships == 10
        assert sum(one.text_bytes for one in calls) == whole.text_bytes
        assert _left(aged) == ([], [])

    def test_the_oldest_go_first(self, aged: LifecycleStorage) -> None:
        pruned = aged.prune(fibers=EVERY_FIBER, step_rows=2, max_steps=1)
        assert (pruned.fibers, pruned.logs) == (1, 2)
        assert where(aged.fibers) == [2, 3, 4]
        aged.prune(logs=EVERY_LOG, step_rows=1, max_steps=1)
        assert where(aged.logs, Logs.c.source_id == "noise") == [32, 33, 34]

    def test_pins_that_come_between_two_steps_count(self, aged: LifecycleStorage) -> None:
        def on_step(_: Pruned) -> None:
            aged.fibers.where(Fibers.c.fiber_id == uid(4)).pin()

        assert _counts(aged.prune(fibers=EVERY_FIBER, step_rows=2, on_step=on_step)) == (3, 7, 6)
        assert where(aged.fibers) == [4]

    def test_a_rule_on_other_fibers_is_asked_before_any_goes(self, storage: LifecycleStorage) -> None:
        storage.write_batch(
            logs=[log(1), log(2)],
            fibers=[fiber(1, "alert", last=at(1)), fiber(2, "session", last=at(2))],
            memberships=[member(1, 1), member(1, 2), member(2, 2)],
        )
        of_an_alert = Fibers.c.logs.any(Logs.c.fibers.any(Fibers.c.fiber_type == "alert"))
        rule = (Fibers.c.fiber_type == "alert") | ~of_an_alert
        foreseen = storage.prune(fibers=rule, dry_run=True)
        assert _counts(storage.prune(fibers=rule, step_rows=1)) == _counts(foreseen) == (1, 1, 0)
        assert _left(storage) == ([1, 2], [2])

    def test_a_fiber_that_changes_between_two_steps_stays(self, aged: LifecycleStorage) -> None:
        def on_step(_: Pruned) -> None:
            aged.fibers.where(Fibers.c.fiber_id == uid(3)).close()
            aged.write_memberships([member(34, 4)])

        pruned = aged.prune(fibers=EVERY_FIBER, logs=Logs.c.log_id == uid(34), step_rows=2, on_step=on_step)
        assert _counts(pruned) == (2, 4, 4)
        assert _left(aged) == ([3, 4, 5, 13, 14, 31, 32, 33, 34], [3, 4])

    def test_what_is_out_of_bounds_is_refused(self, aged: LifecycleStorage) -> None:
        before = everything(aged)
        with pytest.raises(ValueError, match="max_bytes"):
            aged.prune()
        with pytest.raises(ValueError, match="max_bytes"):
            aged.prune(dry_run=True)
        for name in ("step_rows", "max_steps", "max_bytes"):
            check_number(partial(_prune_by, aged, name), name, least=1, may_be_none=True)
        check_refusal(lambda wrong: aged.prune(fibers=wrong), TypeError, "condition", EVERY_LOG)
        conditions = (EVERY_FIBER, True, Logs.c.log_id)
        check_refusal(lambda wrong: aged.prune(logs=wrong), TypeError, "condition", *conditions)
        assert everything(aged) == before

    def test_compact_changes_nothing_that_is_stored(self, aged: LifecycleStorage) -> None:
        aged.versions.activate(3)
        aged.checkpoints.set("at", "1")
        aged.merge_fibers({uid(2): uid(1)})
        aged.fibers.where(Fibers.c.fiber_id == uid(1)).pin()
        aged.logs.where(Logs.c.source_id == "noise").delete()
        aged.logs.redact("GET", "PUT")
        before = everything(aged)
        aged.compact()
        assert everything(aged) == before
        assert aged.resolve_fibers([uid(2)]) == {uid(2): uid(1)}
        assert aged.write_logs([log(50)]) == 1
        assert where(aged.logs, Logs.c.timestamp > at(49)) == [50]
