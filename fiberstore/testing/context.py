"""A log and its neighbours."""

from fiberstore.contract.queries import Fibers, Logs, QueryStorage
from fiberstore.contract.results import LogContext
from fiberstore.testing.examples import fiber, log, member, uid
from fiberstore.testing.invalid_arguments import check_number, check_refusal


def _numbers(context: LogContext | None) -> tuple[list[int], int, list[int]]:
    assert context is not None
    before, after = ([row.log_id.int for row in rows] for rows in (context.before, context.after))
    return before, context.log.log_id.int, after


class ContextContract:
    """``logs.context``."""

    def test_context_of_no_log_is_none(self, storage: QueryStorage) -> None:
        assert storage.logs.context(uid(1)) is None
        storage.write_logs([log(2)])
        storage.write_memberships([member(1, 1), member(2, 1)])
        assert storage.logs.context(uid(1)) is None
        assert storage.logs.context(uid(1), within="fibers") is None

    def test_context_is_the_logs_right_before_and_after(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(1, 10)])
        assert _numbers(storage.logs.context(uid(5), 2, 3)) == ([3, 4], 5, [6, 7, 8])
        assert _numbers(storage.logs.context(uid(5), before=0, after=1)) == ([], 5, [6])
        assert _numbers(storage.logs.context(uid(5), after=0, before=1)) == ([4], 5, [])
        assert _numbers(storage.logs.context(uid(5), 0, 0)) == ([], 5, [])
        assert _numbers(storage.logs.context(uid(1), 3, 1)) == ([], 1, [2])
        assert _numbers(storage.logs.context(uid(9), 1, 2**63 - 1)) == ([8], 9, [])
        assert _numbers(storage.logs.order_by("newest").context(uid(5), 2, 3)) == ([3, 4], 5, [6, 7, 8])
        found = storage.logs.context(uid(5), 1, 1)
        assert found is not None
        assert [*found.before, found.log, *found.after] == [storage.get_log(uid(id_)) for id_ in (4, 5, 6)]

    def test_context_is_of_10_logs_before_and_10_after_if_it_is_not_told(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(30)])
        assert _numbers(storage.logs.context(uid(15))) == (list(range(5, 15)), 15, list(range(16, 26)))

    def test_context_goes_by_the_id_among_logs_of_one_time(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, 0.0) for number in (4, 9, 2, 7, 5)])
        storage.write_logs([log(8, -1.0), log(1, 1.0)])
        assert _numbers(storage.logs.context(uid(5), 3, 3)) == ([8, 2, 4], 5, [7, 9, 1])
        assert _numbers(storage.logs.context(uid(5), 1, 1)) == ([4], 5, [7])
        assert _numbers(storage.logs.context(uid(2), 1, 1)) == ([8], 2, [4])
        assert _numbers(storage.logs.context(uid(9), 1, 1)) == ([7], 9, [1])

    def test_context_within_source_has_logs_of_that_source_only(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, source=("web", "Web", "db")[number % 3]) for number in range(9)])
        assert _numbers(storage.logs.context(uid(4), within="source")) == ([1], 4, [7])
        assert _numbers(storage.logs.context(uid(3), 1, 1, within="source")) == ([0], 3, [6])

    def test_context_within_fibers_has_logs_that_share_a_fiber(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(1, 10)])
        first = [member(number, 1) for number in (1, 3, 5, 7, 12)]
        second = [member(number, 2) for number in (2, 3, 5, 8)]
        storage.write_memberships([*first, *second, member(4, 3), member(6, 3)])
        assert _numbers(storage.logs.context(uid(5), within="fibers")) == ([1, 2, 3], 5, [7, 8])
        assert _numbers(storage.logs.context(uid(5), 1, 1, within="fibers")) == ([3], 5, [7])
        assert _numbers(storage.logs.context(uid(1), within="fibers")) == ([], 1, [3, 5, 7])
        assert _numbers(storage.logs.context(uid(4), within="fibers")) == ([], 4, [6])

    def test_context_within_fibers_of_a_log_in_none_is_the_log_alone(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(1, 6)])
        storage.write_memberships([member(1, 1), member(2, 1), member(4, 2)])
        assert _numbers(storage.logs.context(uid(3), within="fibers")) == ([], 3, [])
        assert _numbers(storage.logs.context(uid(4), within="fibers")) == ([], 4, [])
        assert _numbers(storage.logs.context(uid(3), 1, 1)) == ([2], 3, [4])

    def test_context_has_neighbours_of_the_query_though_the_log_is_not(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, source=("web", "db")[number % 2]) for number in range(1, 10)])
        storage.write_fiber(fiber(1, "login"))
        storage.write_memberships([member(number, 1) for number in (2, 3, 5, 6)])
        web = storage.logs.where(Logs.c.source_id == "web")
        assert _numbers(web.context(uid(5), 1, 2)) == ([4], 5, [6, 8])
        assert _numbers(web.context(uid(5), within="source")) == ([], 5, [])
        assert _numbers(web.context(uid(5), within="fibers")) == ([2], 5, [6])
        in_logins = storage.logs.where(Logs.c.fibers.any(Fibers.c.fiber_type == "login"))
        assert _numbers(in_logins.context(uid(4))) == ([2, 3], 4, [5, 6])
        assert _numbers(in_logins.context(uid(4), within="source")) == ([2], 4, [6])

    def test_context_with_wrong_arguments_raises(self, storage: QueryStorage) -> None:
        context = storage.logs.context
        check_number(lambda wrong: context(uid(1), before=wrong), "before")
        check_number(lambda wrong: context(uid(1), after=wrong), "after")
        check_refusal(context, TypeError, "UUID", str(uid(1)))
        within = ("log", "", "Source")
        check_refusal(lambda wrong: context(uid(1), within=wrong), ValueError, "within", *within)
