"""Fibers: written once, replaced as a whole, found by id and by type."""

import math
import pickle

import pytest

from fiberstore.contract.storage import Storage
from fiberstore.errors import DuplicateError, NotFoundError, SerializationError, StorageError
from fiberstore.testing.examples import END_OF_TIME, NOON, all_rows, at, fiber, log, member, uid

_NOT_JSON: tuple[object, ...] = (math.nan, math.inf, object(), {1, 2}, b"bytes", NOON, "NUL \0", "\ud800")


class FibersContract:
    """``write_fiber``, ``update_fiber``, ``get_fiber`` and ``query_fibers_by_type``."""

    def test_fiber_written_comes_back_whole(self, storage: Storage) -> None:
        rows = [
            fiber(1),
            fiber(2, attributes={"user": "ada"}, last=END_OF_TIME, closed=True, config_version=9),
            fiber(3, "login", [1, 2]),
        ]
        for row in rows:
            storage.write_fiber(row)
        assert [storage.get_fiber(row.fiber_id) for row in rows] == rows
        assert storage.query_fibers_by_type("request") == rows[:2]
        assert storage.query_fibers_by_type("login") == rows[2:]

    def test_missing_fiber_is_none(self, storage: Storage) -> None:
        assert storage.get_fiber(uid(1)) is None
        storage.write_fiber(fiber(2))
        storage.write_logs([log(1)])
        storage.write_memberships([member(1, 1)])
        assert storage.get_fiber(uid(1)) is None

    def test_missing_fibers_are_an_empty_list(self, storage: Storage) -> None:
        assert storage.query_fibers_by_type("request") == []
        storage.write_fiber(fiber(1, "login"))
        assert storage.query_fibers_by_type("request") == []
        assert storage.query_fibers_by_type("") == []

    def test_duplicates_of_a_fiber_raise_and_leave_it_as_it_is(self, storage: Storage) -> None:
        storage.write_fiber(fiber(1, attributes="first"))
        storage.write_fiber(fiber(2))
        before = all_rows(storage)
        for again in (fiber(1, attributes="first"), fiber(1, "login", "second", closed=True)):
            with pytest.raises(DuplicateError, match=str(uid(1))) as raised:
                storage.write_fiber(again)
            assert raised.value.fiber_id == uid(1)
            assert isinstance(raised.value, StorageError)
            assert pickle.loads(pickle.dumps(raised.value)).fiber_id == uid(1)  # noqa: S301
        assert all_rows(storage) == before
        storage.write_fiber(fiber(3))
        assert storage.get_fiber(uid(3)) == fiber(3)

    def test_update_replaces_every_field_of_that_fiber_only(self, storage: Storage) -> None:
        old = fiber(1, "request", {"user": "ada"}, last=at(9), closed=True)
        others = [fiber(2, "request", "other"), fiber(3, "login", "other")]
        for row in (old, *others):
            storage.write_fiber(row)
        new = fiber(1, "login", ["bob"], first=at(4), last=at(5), closed=False, config_version=4)
        storage.update_fiber(new)
        assert storage.get_fiber(uid(1)) == new
        assert storage.query_fibers_by_type("request") == others[:1]
        assert storage.query_fibers_by_type("login") == [others[1], new]

    def test_update_that_changes_one_field_keeps_the_rest(self, storage: Storage) -> None:
        row = fiber(1, "request", {"user": "ada"}, last=at(9))
        storage.write_fiber(fiber(2))
        storage.write_fiber(row)
        changes: list[dict[str, object]] = [
            {"fiber_type": "login"}, {"config_version": 2**64 - 1}, {"attributes": None},
            {"attributes": {}}, {"first_activity": NOON}, {"last_activity": END_OF_TIME}, {"closed": True},
            {"fiber_type": "request"}, {"closed": False}, {},
        ]  # fmt: skip
        for change in changes:
            row = row.model_copy(update=change)
            storage.update_fiber(row)
            assert storage.get_fiber(uid(1)) == row
            found = storage.query_fibers_by_type(row.fiber_type)
            assert [other for other in found if other != fiber(2)] == [row]

    def test_update_again_and_again_leaves_one_row(self, storage: Storage) -> None:
        storage.write_fiber(fiber(1))
        storage.write_fiber(fiber(2, "noise"))
        for count in range(12):
            kind, other = ("request", "login") if count % 2 else ("login", "request")
            storage.update_fiber(fiber(1, kind, count))
            assert storage.query_fibers_by_type(kind) == [fiber(1, kind, count)]
            assert storage.query_fibers_by_type(other) == []

    def test_update_of_an_unknown_fiber_raises_not_found(self, storage: Storage) -> None:
        storage.write_fiber(fiber(1))
        storage.write_logs([log(2)])
        storage.write_memberships([member(2, 2)])
        before = all_rows(storage)
        with pytest.raises(NotFoundError, match=str(uid(2))) as raised:
            storage.update_fiber(fiber(2))
        assert raised.value.fiber_id == uid(2)
        assert isinstance(raised.value, StorageError)
        assert isinstance(raised.value, LookupError)
        assert pickle.loads(pickle.dumps(raised.value)).fiber_id == uid(2)  # noqa: S301
        assert all_rows(storage) == before
        storage.write_fiber(fiber(2))
        storage.update_fiber(fiber(2, "login"))
        assert storage.get_fiber(uid(2)) == fiber(2, "login")

    def test_attributes_that_became_no_json_raise_serialization_error(self, storage: Storage) -> None:
        storage.write_fiber(fiber(1, attributes={"user": "ada"}))
        before = all_rows(storage)
        for wrong in _NOT_JSON:
            new, known = fiber(2, attributes={"inside": []}), fiber(1, attributes={"inside": []})
            for row, write in ((new, storage.write_fiber), (known, storage.update_fiber)):
                assert isinstance(row.attributes, dict)
                row.attributes["inside"] = [wrong]  # type: ignore[list-item]
                with pytest.raises(SerializationError) as raised:
                    write(row)
                assert isinstance(raised.value, ValueError)
                assert isinstance(raised.value, StorageError)
                assert raised.value.__cause__ is not None
            assert storage.get_fiber(uid(2)) is None
        assert all_rows(storage) == before
        storage.write_fiber(fiber(2, attributes={"inside": []}))
        storage.update_fiber(fiber(1, attributes={"inside": []}))
        assert storage.get_fiber(uid(1)) == fiber(1, attributes={"inside": []})

    def test_schema_built_again_keeps_every_fiber(self, storage: Storage) -> None:
        storage.write_fiber(fiber(1, attributes={"user": "ada"}))
        storage.write_memberships([member(1, 1)])
        before = all_rows(storage)
        storage.init_schema()
        assert all_rows(storage) == before
        with pytest.raises(DuplicateError):
            storage.write_fiber(fiber(1))
