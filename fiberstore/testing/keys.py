"""Keys of fibers: written, moved, deleted, and asked for."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.contract.results import BatchCounts, Upserted, ValueCount
from fiberstore.errors import NotFoundError
from fiberstore.records import FiberKey
from fiberstore.testing.examples import NOON, fiber, log, member, uid
from fiberstore.testing.filters import numbers, where
from fiberstore.testing.invalid_arguments import check_number, check_refusal

if TYPE_CHECKING:
    from pydantic import JsonValue

_TEXTS = [
    "", "a", "a+b", "a%", "A", "caf\u00e9", "cafe\u0301", "\U0001f680", "it's", '"', "\\", "line\nbreak",
    "1:a",
]  # fmt: skip


def key(
    number: int, name: str, value: str, second: int = 0, line: int | None = None, *, starts: bool = False
) -> FiberKey:
    """Return a key of the fiber of a number, which begins so many seconds after noon."""
    return FiberKey(
        fiber_id=uid(number),
        name=name,
        value=value,
        first_timestamp=NOON + timedelta(seconds=second),
        first_log_id=None if line is None else uid(line),
        starts=starts,
    )


def _keys(storage: LifecycleStorage, *fiber_numbers: int) -> list[FiberKey]:
    found = storage.get_keys([uid(number) for number in fiber_numbers])
    return [one for keys in found.values() for one in keys]


def _counts(found: list[ValueCount[str]]) -> list[tuple[str, int]]:
    return [(one.value, one.count) for one in found]


class KeysContract:
    """``write_keys``, ``get_keys``, and ``Fibers.c.keys``."""

    @pytest.fixture
    def keyed(self, storage: LifecycleStorage) -> LifecycleStorage:
        """Return fibers 1 to 4, of which the last has no keys, and logs 1 to 3 of the first three."""
        storage.write_logs([log(number) for number in (1, 2, 3)])
        storage.write_fibers([fiber(number) for number in range(1, 5)])
        storage.write_memberships([member(number, number) for number in (1, 2, 3)])
        storage.write_keys(
            [
                key(1, "request", "7f3a"),
                key(1, "request", "7f3b", 1),
                key(1, "user", "root", 1),
                key(2, "request", "7f3b"),
                key(2, "user", "7f3a"),
                key(3, "user", "rooster"),
            ]
        )
        return storage

    def test_keys_come_back_in_their_order(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1), fiber(2), fiber(3)])
        first = [
            key(2, "b", "x", 1, 7),
            key(2, "a", "y", 1, 8, starts=True),
            key(2, "a", "x", 1),
            key(2, "b", "w", 1),
        ]
        assert storage.write_keys([*reversed(first), key(1, "a", "x", 9)]) == 5
        found = storage.get_keys([uid(2), uid(3), uid(9), uid(1), uid(2)])
        assert list(found.items()) == [
            (uid(2), first),
            (uid(3), []),
            (uid(9), []),
            (uid(1), [key(1, "a", "x", 9)]),
        ]
        assert all(isinstance(one.first_log_id, UUID | None) for one in found[uid(2)])

    def test_a_key_keeps_its_earliest_beginning_whatever_the_order(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1)])
        beginnings = [key(1, "a", "x", 5), key(1, "a", "x", 5, 9), key(1, "a", "x", 5, 8, starts=True)]
        for step in beginnings:
            storage.write_keys([step])
            assert _keys(storage, 1) == [step]
        assert storage.write_keys([key(1, "a", "x", 6, 1), *beginnings, key(1, "a", "y", 6, 1)]) == 1
        assert _keys(storage, 1) == [beginnings[-1], key(1, "a", "y", 6, 1)]
        assert storage.write_keys([key(1, "a", "x", 4), key(1, "a", "x", 4, 10), key(1, "a", "x", 7)]) == 0
        assert _keys(storage, 1)[0] == key(1, "a", "x", 4, 10)

    def test_a_key_of_a_fiber_that_is_not_stored_is_refused(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(1)])
        with pytest.raises(NotFoundError, match=str(uid(2))):
            storage.write_keys([key(1, "a", "x"), key(2, "a", "x")])
        assert _keys(storage, 1) == []

    def test_what_is_no_key_is_refused(self, storage: LifecycleStorage) -> None:
        check_refusal(storage.write_keys, TypeError, "FiberKey", [fiber(1)])
        check_refusal(storage.get_keys, TypeError, None, ["1"])
        assert storage.write_keys([]) == 0
        assert storage.get_keys([]) == {}

    def test_a_batch_writes_keys_with_their_fibers(self, storage: LifecycleStorage) -> None:
        counts = storage.write_batch(
            logs=[log(1)], fibers=[fiber(1)], memberships=[member(1, 1)], keys=[key(1, "a", "x")]
        )
        assert counts == BatchCounts(1, Upserted(1, 0), 1, 1)
        with pytest.raises(NotFoundError):
            storage.write_batch(logs=[log(2)], keys=[key(1, "a", "y"), key(9, "a", "x")])
        assert storage.get_log(uid(2)) is None
        assert _keys(storage, 1, 9) == [key(1, "a", "x")]

    def test_keys_move_to_the_fiber_that_survives_a_merge(self, keyed: LifecycleStorage) -> None:
        keyed.write_keys([key(3, "request", "7f3b", -1, 5), key(4, "user", "root", 1, 5)])
        keyed.merge_fibers({uid(2): uid(1), uid(3): uid(1), uid(4): uid(1)})
        assert _keys(keyed, 1, 2, 3, 4) == [
            key(1, "request", "7f3b", -1, 5),
            key(1, "request", "7f3a"),
            key(1, "user", "7f3a"),
            key(1, "user", "rooster"),
            key(1, "user", "root", 1, 5),
        ]

    def test_keys_stay_when_a_fiber_is_replaced(self, keyed: LifecycleStorage) -> None:
        before = _keys(keyed, 1)
        keyed.upsert_fibers([fiber(1, "other")])
        keyed.update_fiber(fiber(1, closed=True))
        assert _keys(keyed, 1) == before

    @pytest.mark.parametrize("way", ["delete", "prune", "drop"])
    def test_keys_go_with_their_fiber(self, keyed: LifecycleStorage, way: str) -> None:
        keyed.write_fibers([fiber(9, config_version=77)])
        keyed.write_keys([key(9, "a", "x")])
        going = Fibers.c.config_version == 77
        if way == "delete":
            keyed.fibers.where(going).delete()
        elif way == "prune":
            keyed.prune(fibers=going)
        else:
            keyed.versions.drop(77)
        keyed.write_fibers([fiber(9)])
        assert _keys(keyed, 9) == []
        assert len(_keys(keyed, 1, 2, 3)) == 6

    def test_fibers_are_found_by_their_keys(self, keyed: LifecycleStorage) -> None:
        c = Fibers.c.keys
        assert where(keyed.fibers, c["request"] == "7f3b") == [1, 2]
        assert where(keyed.fibers, c["request"] == "7f3a") == [1]
        assert where(keyed.fibers, c["request"] != "7f3a") == [2, 3, 4]
        assert where(keyed.fibers, c["request"] == "7f3") == []
        assert where(keyed.fibers, c["Request"] == "7f3a") == []
        assert where(keyed.fibers, c["request"].in_(["7f3a", "7f3b", "7f3a"])) == [1, 2]
        assert where(keyed.fibers, c["request"].in_([])) == []
        assert where(keyed.fibers, c["user"].in_([f"{n}" for n in range(60)] + ["root"])) == [1]
        assert where(keyed.fibers, c["user"].in_([f"{n}" for n in range(9)] + ["rooster"])) == [3]
        assert where(keyed.fibers, c["user"].startswith("roo")) == [1, 3]
        assert where(keyed.fibers, c["user"].startswith("")) == [1, 2, 3]
        assert where(keyed.fibers, c["user"].exists()) == [1, 2, 3]
        assert where(keyed.fibers, c["request"].exists() & ~(c["user"] == "root")) == [2]
        assert where(keyed.logs, Logs.c.fibers.any(c["request"] == "7f3b")) == [1, 2]

    def test_fibers_of_a_key_come_in_pages(self, keyed: LifecycleStorage) -> None:
        by_key = keyed.query_fibers_by_key
        keyed.write_keys([key(number, "shared", "x") for number in (3, 1, 2)])
        assert numbers(by_key("shared", "x")) == [1, 2, 3]
        assert numbers(by_key("shared", "x", 2)) == numbers(by_key("shared", "x", limit=2)) == [1, 2]
        assert numbers(by_key("shared", "x", 2, 2)) == [3]
        assert by_key("shared", "x", 0) == by_key("shared", "x", offset=3) == by_key("x", "shared") == []
        check_number(partial(by_key, "shared", "x"), "limit")
        check_number(partial(by_key, "shared", "x", 1), "offset")

    def test_a_key_is_found_by_the_text_that_it_is(self, storage: LifecycleStorage) -> None:
        storage.write_fibers([fiber(number) for number in range(len(_TEXTS))])
        storage.write_keys([key(number, text or "name", text) for number, text in enumerate(_TEXTS)])
        for number, text in enumerate(_TEXTS):
            assert numbers(storage.query_fibers_by_key(text or "name", text)) == [number]
            condition = Fibers.c.keys[text or "name"] == text
            assert numbers(storage.fibers.where(condition).iter_records()) == [number]

    def test_actions_take_conditions_on_keys(self, keyed: LifecycleStorage) -> None:
        assert keyed.fibers.where(Fibers.c.keys["request"] == "7f3b").close() == 2
        assert keyed.fibers.where(Fibers.c.keys["user"].in_(["root", "rooster"])).delete().fibers == 2
        assert numbers(keyed.fibers.iter_records()) == [2, 4]

    def test_names_and_values_are_counted(self, keyed: LifecycleStorage) -> None:
        assert _counts(keyed.fibers.key_names()) == [("user", 3), ("request", 2)]
        assert _counts(keyed.fibers.key_values("request")) == [("7f3b", 2), ("7f3a", 1)]
        assert _counts(keyed.fibers.key_values("user", prefix="roo")) == [("rooster", 1), ("root", 1)]
        assert _counts(keyed.fibers.key_values("user", limit=1)) == [("7f3a", 1)]
        assert keyed.fibers.key_values("user", limit=0) == keyed.fibers.key_values("absent") == []
        some = keyed.fibers.where(Fibers.c.keys["request"] == "7f3a")
        assert _counts(some.key_names()) == [("request", 1), ("user", 1)]

    @pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
    def test_exported_keys_are_imported_exactly(
        self, storage: LifecycleStorage, tmp_path: Path, suffix: str
    ) -> None:
        storage.write_fibers([fiber(number) for number in range(4)])
        written = [
            key(number % 3, f"{text}n", text, number, number or None) for number, text in enumerate(_TEXTS)
        ]
        storage.write_keys([*written, key(3, "a", "x", starts=True)])
        path, some = tmp_path / f"keys.{suffix}", tmp_path / f"some.{suffix}"
        assert storage.fibers.export_keys(path) == len(_TEXTS) + 1
        assert storage.fibers.where(Fibers.c.keys["a"] == "x").export_keys(some) == 1
        before = _keys(storage, 0, 1, 2, 3)
        storage.fibers.delete()
        with pytest.raises(NotFoundError):
            storage.import_keys(path)
        storage.write_fibers([fiber(number) for number in range(4)])
        storage.write_keys([written[2].model_copy(update={"first_timestamp": NOON + timedelta(days=1)})])
        assert storage.import_keys(some) == 1
        assert storage.import_keys(path) == len(_TEXTS) - 1
        assert _keys(storage, 0, 1, 2, 3) == before
        assert storage.import_keys(path) == 0

    def test_a_list_contains_its_items(self, storage: LifecycleStorage) -> None:
        lists = cast(
            "list[JsonValue]",
            [
                ["x", "y"],
                ["X", ["x"], {"x": "x"}],
                "x",
                {"x": "x"},
                [1, True, None],
                [1.5, "1", 2**63],
                [],
                None,
            ],
        )
        storage.write_fibers([fiber(n, attributes={"tags": tags}) for n, tags in enumerate(lists)])
        storage.write_fibers([fiber(20, attributes=["x", 1.0]), fiber(21, attributes=None)])
        tags = Fibers.c.attributes["/tags"]
        expected: list[tuple[str | int | float | bool | None, list[int]]] = [
            ("x", [0]), ("X", [1]), ("1", [5]), (1, [4]), (1.0, [4]), (True, [4]), (False, []),
            (None, [4]), (1.5, [5]), (2**63, [5]), (2**63 + 1, []), ("", []),
        ]  # fmt: skip
        for value, found in expected:
            assert where(storage.fibers, tags.contains(value)) == found, value
        assert where(storage.fibers, Fibers.c.attributes[""].contains("x")) == [20]
        assert where(storage.fibers, Fibers.c.attributes["/tags/1"].contains("x")) == [1]

    def test_a_condition_on_keys_is_text_that_says_it(self) -> None:
        c = Fibers.c.keys["request"]
        assert repr(c == "7f3a") == "(keys['request'] == '7f3a')"
        assert repr(c != "7f3a") == "~(keys['request'] == '7f3a')"
        assert repr(c.in_(["a", "b"])) == "keys['request'].in_(['a', 'b'])"
        assert (
            repr(c.startswith("a") & c.exists())
            == "(keys['request'].startswith('a') & keys['request'].exists())"
        )
        assert repr(Fibers.c.attributes["/tags"].contains("x")) == "attributes['/tags'].contains('x')"

    def test_a_key_is_compared_with_text_only(self) -> None:
        for call in (Fibers.c.keys["request"].__eq__, Fibers.c.keys["request"].startswith):
            check_refusal(call, TypeError, None, 1, None, b"a", ["a"])

    def test_a_key_has_a_name(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            Fibers.c.keys[""]
        with pytest.raises(TypeError):
            Fibers.c.keys["request"].in_("a")
