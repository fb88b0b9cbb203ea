"""Named checkpoints, which move by compare-and-set."""

from datetime import UTC, datetime
from functools import partial
from typing import ClassVar

import pytest

from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.contract.results import Checkpoint
from fiberstore.errors import CheckpointError
from fiberstore.testing.examples import LONG_TEXT, TEXTS
from fiberstore.testing.invalid_arguments import check_refusal


def _values(storage: LifecycleStorage) -> list[tuple[str, str]]:
    return [(checkpoint.name, checkpoint.value) for checkpoint in storage.checkpoints.all()]


class CheckpointsContract:
    """``storage.checkpoints``.

    Attributes:
        longest_name: The longest name that the storage takes.
    """

    longest_name: ClassVar[str] = LONG_TEXT

    def test_there_is_no_checkpoint_before_it_is_set(self, storage: LifecycleStorage) -> None:
        assert storage.checkpoints.get("at") is None
        assert storage.checkpoints.get("") is None
        assert storage.checkpoints.all() == []

    def test_a_checkpoint_is_set_whatever_it_was(self, storage: LifecycleStorage) -> None:
        storage.checkpoints.set("at", "1")
        storage.checkpoints.set("at", "2")
        storage.checkpoints.set("at", "2")
        storage.checkpoints.set("other", '{"line": 7}')
        assert _values(storage) == [("at", "2"), ("other", '{"line": 7}')]

    def test_a_checkpoint_tells_when_it_was_set(self, storage: LifecycleStorage) -> None:
        before = datetime.now(UTC)
        storage.checkpoints.set("at", "1")
        between = datetime.now(UTC)
        first = storage.checkpoints.get("at")
        storage.checkpoints.compare_and_set("at", "1", "1")
        second = storage.checkpoints.get("at")
        assert first is not None
        assert second is not None
        assert first == Checkpoint("at", "1", first.updated_at)
        assert before <= first.updated_at <= between <= second.updated_at <= datetime.now(UTC)
        assert first.updated_at.tzinfo is UTC

    def test_a_checkpoint_moves_from_the_value_it_has(self, storage: LifecycleStorage) -> None:
        storage.checkpoints.compare_and_set("at", None, "1")
        storage.checkpoints.compare_and_set("at", "1", "")
        storage.checkpoints.compare_and_set("at", "", "1")
        storage.checkpoints.compare_and_set("other", None, "2")
        assert _values(storage) == [("at", "1"), ("other", "2")]

    @pytest.mark.parametrize(("name", "expected"), [("at", "0"), ("at", ""), ("at", None), ("new", "1")])
    def test_a_checkpoint_stays_when_it_has_another_value(
        self, storage: LifecycleStorage, name: str, expected: str | None
    ) -> None:
        storage.checkpoints.set("at", "1")
        before = storage.checkpoints.all()
        with pytest.raises(CheckpointError) as caught:
            storage.checkpoints.compare_and_set(name, expected, "2")
        found = "1" if name == "at" else None
        assert (caught.value.name, caught.value.expected, caught.value.found) == (name, expected, found)
        assert storage.checkpoints.all() == before

    def test_a_checkpoint_that_is_deleted_is_no_more(self, storage: LifecycleStorage) -> None:
        storage.checkpoints.set("at", "1")
        storage.checkpoints.set("other", "1")
        assert storage.checkpoints.delete("at") is True
        assert storage.checkpoints.delete("at") is False
        assert storage.checkpoints.get("at") is None
        assert _values(storage) == [("other", "1")]
        storage.checkpoints.compare_and_set("at", None, "2")
        assert _values(storage) == [("at", "2"), ("other", "1")]

    def test_checkpoints_come_in_the_order_of_their_names(self, storage: LifecycleStorage) -> None:
        names = [text for text in TEXTS if text]
        for name in reversed(names):
            storage.checkpoints.set(name, f"of {name}")
        assert _values(storage) == [(name, f"of {name}") for name in sorted(names)]

    def test_a_checkpoint_has_any_name_and_any_value(self, storage: LifecycleStorage) -> None:
        for text in [*TEXTS, LONG_TEXT]:
            name = (text or "empty")[: len(self.longest_name)]
            storage.checkpoints.compare_and_set(name, None, text)
            storage.checkpoints.compare_and_set(name, text, f"{text}.")
            assert _values(storage) == [(name, f"{text}.")]
            assert storage.checkpoints.delete(name)
        assert storage.checkpoints.all() == []

    def test_what_cannot_be_a_checkpoint_is_refused(self, storage: LifecycleStorage) -> None:
        checkpoints = storage.checkpoints
        for name, value in (("", "1"), ("\0", "1"), ("a", "\0"), ("\ud800", "1"), ("a", "\ud800")):
            check_refusal(partial(checkpoints.set, name), ValueError, r"name|NUL|surrogate", value)
            for expected in (None, "1"):
                move = partial(checkpoints.compare_and_set, name, expected)
                check_refusal(move, ValueError, r"name|NUL|surrogate", value)
        check_refusal(partial(checkpoints.compare_and_set, "a", value="1"), ValueError, "NUL", "\0")
        for call in (
            checkpoints.get,
            checkpoints.delete,
            partial(checkpoints.set, "a"),
            partial(checkpoints.compare_and_set, "a", value="1"),
        ):
            check_refusal(call, TypeError, "expected a str", 1, b"a")
        assert storage.checkpoints.all() == []
