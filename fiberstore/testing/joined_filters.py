"""Conditions on the logs of fibers, on the fibers of logs, and on memberships."""

from datetime import timedelta

import pytest

from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Fibers, Logs, Memberships, QueryStorage
from fiberstore.records import FiberMembership
from fiberstore.testing.examples import at, fiber, log, member, uid
from fiberstore.testing.filters import where


class JoinedFiltersContract:
    """Conditions on the other side of the memberships."""

    @pytest.fixture
    def joined(self, storage: QueryStorage) -> QueryStorage:
        """Return fiber 1 of logs 1 and 2, fiber 2 of 2 and 3, fiber 3 of none, and of what is not stored."""
        storage.write_logs([log(1, source="web"), log(2, source="db"), log(3, text="error"), log(4)])
        storage.write_fiber(fiber(1, "request", {"user": "root"}))
        storage.write_fiber(fiber(2, "login", last=at(60)))
        storage.write_fiber(fiber(3, "login"))
        pairs = [(1, 1), (2, 1), (2, 2), (3, 2), (90, 1), (90, 3), (4, 91), (90, 91)]
        storage.write_memberships([member(log_number, number) for log_number, number in pairs])
        return storage

    def test_where_a_fiber_has_a_stored_log_with_a_condition(self, joined: QueryStorage) -> None:
        fibers, has = joined.fibers, Fibers.c.logs.any
        assert where(fibers, has(Logs.c.source_id == "db")) == [1, 2]
        assert where(fibers, has(Logs.c.raw_text == "error")) == [2]
        assert where(fibers, has(Logs.c.raw_text != "error")) == [1, 2]
        assert where(fibers, ~has(Logs.c.raw_text != "error")) == [3]
        assert where(fibers, has(~(Logs.c.source_id == "web"))) == [1, 2]
        assert where(fibers, has(Logs.c.log_id == uid(90))) == []
        assert where(fibers, has(Logs.c.log_id != uid(90))) == [1, 2]
        assert where(fibers, has(Logs.c.log_id.in_([]))) == []

    def test_where_a_log_is_in_a_stored_fiber_with_a_condition(self, joined: QueryStorage) -> None:
        logs, has = joined.logs, Logs.c.fibers.any
        assert where(logs, has(Fibers.c.fiber_type == "login")) == [2, 3]
        assert where(logs, has(Fibers.c.attributes["/user"] == "root")) == [1, 2]
        assert where(logs, has(Fibers.c.attributes["/user"] != "root")) == [2, 3]
        assert where(logs, ~has(Fibers.c.attributes["/user"] == "root")) == [3, 4]
        assert where(logs, has(Fibers.c.duration > timedelta(0))) == [2, 3]
        assert where(logs, has(Fibers.c.fiber_id != uid(5))) == [1, 2, 3]
        assert where(logs, has(Fibers.c.fiber_id == uid(91))) == []

    def test_where_one_log_fulfils_both_conditions_or_two_one_each(self, joined: QueryStorage) -> None:
        has, web, db = Fibers.c.logs.any, Logs.c.source_id == "web", Logs.c.source_id == "db"
        assert where(joined.fibers, has(web & db)) == []
        assert where(joined.fibers, has(web) & has(db)) == [1, 2]
        assert where(joined.fibers, has(web | db)) == [1, 2]
        assert where(joined.fibers, has(Logs.c.log_id == uid(1)) & has(db)) == [1]
        assert where(joined.fibers, ~has(Logs.c.log_id == uid(1)) | Fibers.c.closed) == [2, 3]

    def test_where_conditions_go_to_and_fro_between_logs_and_fibers(self, joined: QueryStorage) -> None:
        one = Logs.c.log_id == uid(1)
        beside_one = Logs.c.fibers.any(Fibers.c.logs.any(one))
        assert where(joined.logs, beside_one) == [1, 2]
        assert where(joined.logs, beside_one & ~one) == [2]
        near = Logs.c.fibers.any(Fibers.c.logs.any(beside_one))
        assert where(joined.logs, near) == [1, 2, 3]
        assert where(joined.logs, ~near) == [4]
        assert where(joined.fibers, Fibers.c.logs.any(~Logs.c.fibers.any(Fibers.c.fiber_id == uid(1)))) == [2]

    def test_where_a_membership_joins_it_to_ids_stored_or_not(self, joined: QueryStorage) -> None:
        logs, fibers = joined.logs, joined.fibers
        assert where(fibers, Fibers.c.logs.contains(uid(2))) == [1, 2]
        assert where(fibers, Fibers.c.logs.contains(uid(90))) == [1, 3]
        assert where(fibers, Fibers.c.logs.contains(uid(3), uid(90))) == [1, 2, 3]
        assert where(fibers, Fibers.c.logs.contains()) == []
        assert where(logs, Logs.c.fibers.contains(uid(91))) == [4]
        assert where(logs, Logs.c.fibers.contains(uid(1), uid(91))) == [1, 2, 4]
        assert where(logs, ~Logs.c.fibers.contains(uid(1), uid(91))) == [3]
        assert where(logs, Logs.c.fibers.contains(uid(77))) == []

    def test_where_memberships_have_ends_stored_or_not(self, joined: QueryStorage) -> None:
        def pairs(*conditions: Condition[FiberMembership]) -> list[tuple[int, int]]:
            found = joined.memberships.where(*conditions).iter_records()
            return [(row.log_id.int, row.fiber_id.int) for row in found]

        assert pairs(Memberships.c.log_id.in_([uid(90), uid(4)])) == [(4, 91), (90, 1), (90, 3), (90, 91)]
        assert pairs(Memberships.c.fiber_id == uid(91)) == [(4, 91), (90, 91)]
        assert pairs(~(Memberships.c.fiber_id == uid(1)), Memberships.c.log_id == uid(2)) == [(2, 2)]
