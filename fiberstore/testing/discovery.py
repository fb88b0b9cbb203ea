"""Tests of discovery: sources, types, attributes, summaries of fibers."""

from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any, cast

from pydantic import JsonValue

from fiberstore.contract.queries import Fibers, Logs, QueryStorage
from fiberstore.contract.results import FiberSummary, ValueCount
from fiberstore.testing.examples import (
    BEGIN_OF_TIME,
    END_OF_TIME,
    TEXTS,
    at,
    fiber,
    log,
    member,
    uid,
    write_fibers,
)
from fiberstore.testing.invalid_arguments import check_number, check_refusal

_OBJECTS_AND_OTHERS: tuple[JsonValue, ...] = (
    None, {}, [], ["a", {"b": 1}], "text", 1, True, {"list": [{"in": {"it": 1}}]},
)  # fmt: skip
_WHOLE_ATTRIBUTES: tuple[JsonValue, ...] = (None, "a", None, {"a": 1}, ["a"], 7)


def _counts(found: Iterable[ValueCount[Any]]) -> list[tuple[Any, int]]:
    return [(each.value, each.count) for each in found]


def _pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")


class DiscoveryContract:
    """``sources``, ``types``, ``attribute_keys``, ``attribute_values`` and ``summaries``."""

    def test_discovery_of_an_empty_store_finds_nothing(self, storage: QueryStorage) -> None:
        assert storage.logs.sources() == []
        assert storage.fibers.types() == []
        assert storage.fibers.attribute_keys() == []
        assert storage.fibers.attribute_values("") == storage.fibers.attribute_values("/user") == []
        page = storage.fibers.summaries()
        assert (page.items, page.next, page.previous, page.late) == ([], None, None, [])

    def test_sources_are_those_of_most_logs_first_with_their_times(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, END_OF_TIME, source="db"), log(2, BEGIN_OF_TIME, source="db")])
        storage.write_logs([log(3, 5.0), log(4, 3.0), log(5, 4.0), log(6, 1.0, source="Db")])
        assert storage.logs.sources() == [
            ValueCount("web", 3, at(3), at(5)),
            ValueCount("db", 2, BEGIN_OF_TIME, END_OF_TIME),
            ValueCount("Db", 1, at(1), at(1)),
        ]
        assert storage.logs.order_by("newest").sources() == storage.logs.sources()

    def test_types_are_those_of_most_fibers_first_with_their_times(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1, "login", first=at(5), last=at(6)))
        storage.write_fiber(fiber(2, "request", first=at(2), last=at(9)))
        storage.write_fiber(fiber(3, "request", first=at(1), last=at(3)))
        storage.write_memberships([member(1, 1), member(2, 1)])
        expected = [ValueCount("request", 2, at(1), at(9)), ValueCount("login", 1, at(5), at(6))]
        assert storage.fibers.types() == storage.fibers.order_by("most_logs").types() == expected

    def test_sources_and_types_of_equal_frequency_go_by_code_point(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, source=text) for number, text in enumerate(TEXTS)])
        write_fibers(storage, [fiber(number, text) for number, text in enumerate(TEXTS)])
        expected = [(text, 1) for text in sorted(TEXTS)]
        assert _counts(storage.logs.sources()) == _counts(storage.fibers.types()) == expected

    def test_discovery_is_of_what_the_query_has(self, storage: QueryStorage) -> None:
        storage.write_logs([log(1, source="db"), log(2, source="web"), log(3, source="web")])
        storage.write_fiber(fiber(1, "login", {"user": "root", "a": 1}))
        storage.write_fiber(fiber(2, "request", {"user": "joe"}))
        storage.write_memberships([member(1, 1), member(2, 2), member(3, 2)])
        in_logins = storage.logs.where(Logs.c.fibers.any(Fibers.c.fiber_type == "login"))
        assert in_logins.sources() == [ValueCount("db", 1, at(1), at(1))]
        of_web = storage.fibers.where(Fibers.c.logs.any(Logs.c.source_id == "web"))
        assert of_web.types() == [ValueCount("request", 1, at(2), at(2))]
        assert of_web.attribute_keys() == [ValueCount("/user", 1, at(2), at(2))]
        assert of_web.attribute_values("/user") == [ValueCount("joe", 1, at(2), at(2))]
        assert [row.fiber.fiber_id for row in of_web.summaries().items] == [uid(2)]
        roots = storage.fibers.where(Fibers.c.attributes["/user"] == "root")
        assert _counts(roots.attribute_keys()) == [("/a", 1), ("/user", 1)]

    def test_attribute_keys_are_pointers_the_most_frequent_first(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1, attributes={"user": {"name": "a", "id": 1}, "b": 1}, last=at(9)))
        storage.write_fiber(fiber(2, attributes={"user": {"name": None}, "B": 2}))
        storage.write_fiber(fiber(3, attributes={"user": "c", "b": []}))
        assert storage.fibers.attribute_keys() == [
            ValueCount("/user", 3, at(1), at(9)),
            ValueCount("/b", 2, at(1), at(9)),
            ValueCount("/B", 1, at(2), at(2)),
        ]
        assert storage.fibers.attribute_keys("/user") == [
            ValueCount("/user/name", 2, at(1), at(9)),
            ValueCount("/user/id", 1, at(1), at(9)),
        ]
        assert storage.fibers.attribute_keys("/user/name") == storage.fibers.attribute_keys("/c") == []

    def test_attribute_keys_are_of_objects_only(self, storage: QueryStorage) -> None:
        write_fibers(
            storage,
            [fiber(number, attributes=attributes) for number, attributes in enumerate(_OBJECTS_AND_OTHERS)],
        )
        assert _counts(storage.fibers.attribute_keys()) == [("/list", 1)]
        assert storage.fibers.attribute_keys("/list") == []
        assert _counts(storage.fibers.attribute_keys("/1")) == [("/1/b", 1)]
        assert _counts(storage.fibers.attribute_keys("/list/0/in")) == [("/list/0/in/it", 1)]

    def test_attribute_keys_lead_to_the_values_whatever_they_are_called(self, storage: QueryStorage) -> None:
        odd = ("~", "/", "~1", "a/b~c", "a.b", "$", "$.a", "*", "[0]", 'quo"te', "\\", "~01")
        keys = [*TEXTS, *odd]
        storage.write_fiber(fiber(1, attributes={"in": {key: {"at": key} for key in keys}}))
        found = [each.value for each in storage.fibers.attribute_keys("/in")]
        assert found == sorted("/in" + _pointer(key) for key in keys)
        for key in keys:
            pointer = "/in" + _pointer(key)
            assert _counts(storage.fibers.attribute_keys(pointer)) == [(f"{pointer}/at", 1)]
            assert _counts(storage.fibers.attribute_values(f"{pointer}/at")) == [(key, 1)]

    def test_attribute_values_are_scalars_the_most_frequent_first(self, storage: QueryStorage) -> None:
        values = ("b", "a", "b", None, True, 1, 1.0, [1], {"a": 1}, "1", False, None, "b", "true", "null")
        for number, value in enumerate(values):
            storage.write_fiber(
                fiber(number, attributes={"at": cast("JsonValue", value)}, last=at(100 + number))
            )
        storage.write_fiber(fiber(98))
        storage.write_fiber(fiber(99, attributes={"other": "b"}))
        found = storage.fibers.attribute_values("/at")
        assert found[:2] == [ValueCount("b", 3, at(0), at(112)), ValueCount(None, 2, at(3), at(111))]
        assert [(type(each.value), each.value, each.count) for each in found[2:]] == [
            (str, "1", 1),  # by their JSON text, which begins with a quotation mark
            (str, "a", 1),
            (str, "null", 1),
            (str, "true", 1),
            (int, 1, 1),
            (float, 1.0, 1),
            (bool, False, 1),
            (bool, True, 1),
        ]

    def test_attribute_values_are_exact(self, storage: QueryStorage) -> None:
        numbers = [2**53 + 1, 2**63, 2**64 - 1, -(2**63), 10**40, -(10**40), 0.1, 5e-324, 1e16, 1e300]
        values: list[JsonValue] = [*numbers, *TEXTS]
        write_fibers(storage, [fiber(number, attributes=[value]) for number, value in enumerate(values)])
        found = [each.value for each in storage.fibers.attribute_values("/0", 100)]
        assert sorted(map(repr, found)) == sorted(map(repr, values))

    def test_attribute_values_of_the_whole_attributes(self, storage: QueryStorage) -> None:
        write_fibers(
            storage,
            [fiber(number, attributes=attributes) for number, attributes in enumerate(_WHOLE_ATTRIBUTES)],
        )
        assert _counts(storage.fibers.attribute_values("")) == [(None, 2), ("a", 1), (7, 1)]

    def test_attribute_values_are_at_most_the_limit(self, storage: QueryStorage) -> None:
        write_fibers(
            storage, [fiber(number, attributes={"at": f"v{number % 25:02}"}) for number in range(30)]
        )
        whole = [*((f"v{number:02}", 2) for number in range(5)), *((f"v{n:02}", 1) for n in range(5, 25))]
        assert _counts(storage.fibers.attribute_values("/at")) == whole[:20]
        for limit in (0, 1, 6, 25, 26, 2**63 - 1):
            assert _counts(storage.fibers.attribute_values("/at", limit)) == whole[:limit]

    def test_attributes_at_what_is_no_pointer_are_refused(self, storage: QueryStorage) -> None:
        for call in (storage.fibers.attribute_keys, storage.fibers.attribute_values):
            check_refusal(call, ValueError, "pointer", "user", "$.user", "/a~", "/~2")
            check_refusal(call, TypeError, None, None, 1, ["/a"])
        check_number(partial(storage.fibers.attribute_values, "/a"), "limit")

    def test_summaries_tell_what_the_stored_logs_of_a_fiber_look_like(self, storage: QueryStorage) -> None:
        sources = {1: "web", 2: "db", 3: "Web", 4: "web", 5: "web"}
        storage.write_logs([log(number, 10 - number, source=source) for number, source in sources.items()])
        write_fibers(storage, [fiber(number, attributes={"of": [number]}) for number in (1, 2, 3)])
        storage.write_memberships([member(number, 1) for number in (1, 2, 3, 4, 99)])
        storage.write_memberships([member(5, 2), member(98, 3), member(4, 97)])
        one, two, three = storage.fibers.page().items
        assert storage.fibers.summaries().items == [
            FiberSummary(one, 4, ["Web", "db", "web"], at(6), at(9)),
            FiberSummary(two, 1, ["web"], at(5), at(5)),
            FiberSummary(three, 0, [], None, None),
        ]

    def test_summaries_have_each_source_once_ascending(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number, source=TEXTS[number % len(TEXTS)]) for number in range(100)])
        storage.write_fiber(fiber(1))
        storage.write_memberships([member(number, 1) for number in range(100)])
        (summary,) = storage.fibers.summaries().items
        assert (summary.log_count, summary.source_ids) == (100, sorted(TEXTS))

    def test_summaries_have_the_pages_of_the_query(self, storage: QueryStorage) -> None:
        storage.write_logs([log(number) for number in range(6)])
        for number in range(5):
            length = timedelta(seconds=number % 2)
            storage.write_fiber(fiber(number, first=at(number), last=at(number) + length))
        storage.write_memberships([member(number, number // 2) for number in range(6)])
        for query in (
            storage.fibers,
            storage.fibers.where(Fibers.c.fiber_id != uid(2)).order_by("most_logs"),
        ):
            cursor, found = None, []
            while True:
                page, summaries = query.page(2, cursor), query.summaries(2, cursor)
                assert [row.fiber for row in summaries.items] == page.items
                assert (summaries.next, summaries.previous) == (page.next, page.previous)
                found += summaries.items
                if page.next is None:
                    break
                cursor = page.next
            assert {row.fiber.fiber_id.int: row.log_count for row in found} == {
                row.fiber_id.int: 2 if row.fiber_id.int < 3 else 0 for row in query.page().items
            }
            before = query.summaries(2, summaries.previous)
            assert before.items == found[: -len(summaries.items)][-2:]

    def test_summaries_tell_of_late_fibers_too(self, storage: QueryStorage) -> None:
        write_fibers(storage, [fiber(number) for number in (1, 3, 5, 7)])
        first = storage.fibers.summaries(2)
        storage.write_logs([log(8), log(9, source="db")])
        storage.write_fiber(fiber(2))
        storage.write_memberships([member(8, 2), member(9, 2), member(9, 5)])
        second = storage.fibers.summaries(2, first.next)
        assert [(row.fiber.fiber_id.int, row.log_count) for row in second.items] == [(5, 1), (7, 0)]
        (late,) = second.late
        assert late == FiberSummary(fiber(2), 2, ["db", "web"], at(8), at(9))

    def test_summaries_of_a_wrong_limit_raise(self, storage: QueryStorage) -> None:
        check_number(storage.fibers.summaries, "limit", least=1)
        check_refusal(partial(storage.fibers.summaries, 1), ValueError, "cursor", "no cursor")
