"""Conditions on the attributes of fibers."""

from collections.abc import Callable
from operator import eq, ge, gt, le, lt, ne
from typing import Any, cast

import pytest
from pydantic import JsonValue

from fiberstore.contract.conditions import Condition
from fiberstore.contract.queries import Fibers, QueryStorage
from fiberstore.records import FiberRecord
from fiberstore.testing.examples import TEXTS, fiber, write_fibers
from fiberstore.testing.filters import numbers, where

_MISSING = "missing"
# In the order of their code points, which is not that of UTF-16.
_ORDERED_TEXTS = [
    "", " ", "1", "A", "B", "a", "a\n", "aa", "b", "caf\u00e9", "\uffff", "\U00010000", "\U0001f680",
]  # fmt: skip
_NUMBERS: list[int | float] = [
    -(2**63), -(2**63) + 1, -(2**62) - 1, -(2**53) - 1, -(2**53), -1.5, -1, -0.0, 5e-324, 0.1, 1,
    1.0000000000000002, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2.0**53 + 2, 2**60 + 1, 2.0**62, 2**63 - 1,
    2**63, 2**63 + 1, 2**64 - 2048, 2**64 - 1,
]  # fmt: skip
_COMPARISONS: list[Callable[[Any, Any], Any]] = [eq, ne, le, lt, gt, ge]
_EVERY_KIND: list[JsonValue] = [None, True, False, 1, 1.5, "1", "true", "null", "", [], [1], {}, {"a": 1}]


def found(storage: QueryStorage, condition: Condition[FiberRecord]) -> list[int]:
    """Return of which fibers a condition is true, without a look at its complement, which takes longer."""
    return numbers(storage.fibers.where(condition).iter_records())


class AttributeFiltersContract:
    """``Fibers.c.attributes``."""

    def _store(self, storage: QueryStorage, values: list[JsonValue]) -> None:
        """Store a fiber for each value, at the pointer ``/v``, and one more without."""
        write_fibers(storage, [fiber(number, attributes={"v": value}) for number, value in enumerate(values)])
        storage.write_fiber(fiber(len(values), attributes={"w": 1}))

    def test_a_pointer_leads_into_objects_and_lists(self, storage: QueryStorage) -> None:
        attributes: JsonValue = {
            "user": {"name": "root", "tags": ["a", {"b": ["x", "y"]}]}, "0": "a digit",
            "": {"": "empty keys"}, "a/b": "slash", "m~n": "tilde", "~1": "a tilde and a 1", "$": "dollar",
            "*": "star", "a*": "a star", "$.user": "no path", "#": "hash", "[0]": "brackets",
            "user.name": "dot", 'q"uote': "quote", "it's": "apostrophe", "\\": "backslash",
            "50%": "percent", "caf\u00e9": "one", "cafe\u0301": "two", "\U0001f680": "rocket", " ": "blank",
            "line\nbreak": "line",
        }  # fmt: skip
        storage.write_fiber(fiber(1, attributes=attributes))
        there = {
            "/user/name": "root", "/user/tags/0": "a", "/user/tags/1/b/1": "y", "/0": "a digit",
            "//": "empty keys", "/a~1b": "slash", "/m~0n": "tilde", "/~01": "a tilde and a 1",
            "/$": "dollar", "/*": "star", "/a*": "a star", "/$.user": "no path", "/#": "hash",
            "/[0]": "brackets", "/user.name": "dot", '/q"uote': "quote", "/it's": "apostrophe",
            "/\\": "backslash", "/50%": "percent", "/caf\u00e9": "one", "/cafe\u0301": "two",
            "/\U0001f680": "rocket", "/ ": "blank", "/line\nbreak": "line",
        }  # fmt: skip
        for pointer, value in there.items():
            attribute = Fibers.c.attributes[pointer]
            is_there = attribute.exists() & (attribute == value) & ~(attribute == "another")
            assert found(storage, is_there) == [1], pointer

    def test_a_pointer_to_nothing_is_missing(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1, attributes={"user": {"name": "root"}, "list": ["a", "b"]}))
        for pointer in (
            *("/", "/User", "/name", "/user/name/0", "/user/0", "/user/", "/use*", "/*", "/$", "/user/name/"),
            *(
                "/list/2",
                "/list/00",
                "/list/01",
                "/list/-",
                "/list/-1",
                "/list/#",
                "/list/*",
                "/list/a",
                "/list/",
            ),
            *("/list/ 1", "/list/+1", "/list/1.0", "/list/4294967296", "/list/18446744073709551616"),
        ):
            attribute = Fibers.c.attributes[pointer]
            is_there = attribute.exists() | (attribute == None) | (attribute == "a")  # noqa: E711
            assert found(storage, ~is_there & (attribute != "a")) == [1], pointer

    def test_the_whole_has_the_empty_pointer(self, storage: QueryStorage) -> None:
        write_fibers(storage, [fiber(number, attributes=value) for number, value in enumerate(_EVERY_KIND)])
        whole = Fibers.c.attributes[""]
        assert where(storage.fibers, whole.exists()) == list(range(len(_EVERY_KIND)))
        assert where(storage.fibers, whole == None) == [0]  # noqa: E711  # also where there are no attributes
        assert where(storage.fibers, whole == True) == [1]  # noqa: E712
        assert where(storage.fibers, whole == 1) == [3]
        assert where(storage.fibers, whole > 1) == [4]
        assert where(storage.fibers, whole == "1") == [5]
        assert where(storage.fibers, whole.in_(["", "null"])) == [7, 8]
        assert where(storage.fibers, Fibers.c.attributes["/0"] == 1) == [10]
        assert where(storage.fibers, Fibers.c.attributes["/a"].exists()) == [12]

    def test_a_value_is_equal_to_one_of_its_kind_only(self, storage: QueryStorage) -> None:
        self._store(storage, _EVERY_KIND)
        attribute = Fibers.c.attributes["/v"]
        equal: list[tuple[JsonValue, list[int]]] = [
            (None, [0]), (True, [1]), (False, [2]), (1, [3]), (1.0, [3]), (0, []), (1.5, [4]), ("1", [5]),
            ("true", [6]), ("null", [7]), ("", [8]), ("1.5", []), ("[]", []), ("{}", []),
        ]  # fmt: skip
        everyone = list(range(len(_EVERY_KIND) + 1))
        for asked, those in equal:
            value = cast("Any", asked)
            assert where(storage.fibers, attribute == value) == those
            assert where(storage.fibers, attribute != value) == [
                each for each in everyone if each not in those
            ]
        assert where(storage.fibers, attribute.in_([None, True, 1, "1"])) == [0, 1, 3, 5]
        assert where(storage.fibers, ~attribute.in_([None, True, 1, "1"])) == [
            each for each in everyone if each not in (0, 1, 3, 5)
        ]
        assert where(storage.fibers, attribute.in_([])) == []

    def test_a_value_is_ordered_among_its_kind_only(self, storage: QueryStorage) -> None:
        self._store(storage, _EVERY_KIND)
        attribute = Fibers.c.attributes["/v"]
        assert where(storage.fibers, attribute >= 1) == [3, 4]
        assert where(storage.fibers, attribute < 100) == [3, 4]
        assert where(storage.fibers, attribute >= "") == [5, 6, 7, 8]
        assert where(storage.fibers, attribute < "zzz") == [5, 6, 7, 8]
        assert where(storage.fibers, attribute.between(0, 1)) == [3]
        assert where(storage.fibers, attribute.between("", "n")) == [5, 8]
        assert where(storage.fibers, ~(attribute >= 1)) == [0, 1, 2, *range(5, 14)]

    def test_null_is_there_and_missing_is_not(self, storage: QueryStorage) -> None:
        storage.write_fiber(fiber(1, attributes={"v": None}))
        storage.write_fiber(fiber(2, attributes={}))
        storage.write_fiber(fiber(3))
        attribute = Fibers.c.attributes["/v"]
        assert where(storage.fibers, attribute.exists()) == [1]
        assert where(storage.fibers, attribute == None) == [1]  # noqa: E711
        assert where(storage.fibers, attribute != None) == [2, 3]  # noqa: E711
        assert where(storage.fibers, attribute != "x") == [1, 2, 3]

    def test_numbers_are_compared_exactly_integers_and_floats_alike(self, storage: QueryStorage) -> None:
        self._store(storage, list(_NUMBERS))
        attribute = Fibers.c.attributes["/v"]
        beyond = [2.0**63, -(2.0**63), 2**53 + 3, 0, 0.30000000000000004, -2, 2**64 - 2, -(2**63) + 2]
        for place, value in enumerate([*_NUMBERS, *beyond]):
            for compare in _COMPARISONS[place % 2 :: 2]:  # of two neighbours, each operator is asked of one
                expected = [number for number, other in enumerate(_NUMBERS) if compare(other, value)]
                if compare is ne:
                    expected.append(len(_NUMBERS))
                assert found(storage, compare(attribute, value)) == expected, (compare, value)

    def test_numbers_beyond_what_can_be_asked_for_are_compared_exactly(self, storage: QueryStorage) -> None:
        stored = [-(10**400), -1e300, -(2**63) - 1, -(2**63), 2**64 - 1, 2**64, 1e300, 10**400]
        self._store(storage, list(stored))
        attribute = Fibers.c.attributes["/v"]
        for value in (-(2**63), -(2.0**63), -(2**63) + 1, 0, 2**64 - 1, 2**64 - 2048, 1.5):
            for compare in (eq, lt, le, gt, ge):
                expected = [number for number, other in enumerate(stored) if compare(other, value)]
                assert found(storage, compare(attribute, value)) == expected, (compare, value)

    def test_text_is_ordered_by_code_point(self, storage: QueryStorage) -> None:
        texts = sorted({*TEXTS, *_ORDERED_TEXTS})
        self._store(storage, list(texts))
        attribute = Fibers.c.attributes["/v"]
        for value in [*_ORDERED_TEXTS, "b2", "\U0001f681"]:
            for compare in (eq, lt, le, gt, ge):
                expected = [number for number, other in enumerate(texts) if compare(other, value)]
                assert found(storage, compare(attribute, value)) == expected, (compare, value)

    @pytest.mark.parametrize("count", [1, 150, 1_000])
    def test_a_value_is_one_of_many(self, storage: QueryStorage, count: int) -> None:
        self._store(storage, [0, 149, 999, "0", True])
        attribute = Fibers.c.attributes["/v"]
        expected = [number for number, value in enumerate([0, 149, 999]) if value < count]
        assert where(storage.fibers, attribute.in_(range(count))) == expected
        assert where(storage.fibers, attribute.in_(map(str, range(count)))) == [3]
        assert where(storage.fibers, attribute.in_([*range(5, count), False, None, 2**63, "x"])) == [
            number for number in expected if number > 0
        ]
