"""Bad input: an error of the right class, nothing stored, and the next call works."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import pytest

from fiberstore.contract.storage import Storage
from fiberstore.records import FiberMembership, LogRecord
from fiberstore.testing.examples import NOON, all_rows, at, fiber, log, member, stored, uid


class _ReaderError(Exception):
    """Error of a reader of files in the middle of a batch."""


_GOOD = 6_000
_T = TypeVar("_T", LogRecord, FiberMembership)
_NOT_A_LOG: tuple[object, ...] = (None, "a line", {"log_id": uid(1)}, fiber(1), member(1, 1), LogRecord)
_NOT_A_MEMBERSHIP: tuple[object, ...] = (None, "a pair", (uid(1), uid(2)), fiber(1), log(1), FiberMembership)
_NOT_A_BATCH: tuple[object, ...] = (log(1), member(1, 1), None, 7, "logs", log)
_NOT_A_FIBER: tuple[object, ...] = (None, "a fiber", {"fiber_id": uid(1)}, log(1), uid(1), [fiber(1)])
_NOT_AN_ID: tuple[object, ...] = (None, str(uid(1)), uid(1).int, uid(1).bytes, (uid(1),), "no id at all")
_NOT_A_TIME: tuple[object, ...] = (None, "2024-02-29", NOON.isoformat(), NOON.timestamp(), NOON.date())
_NOT_TEXT: tuple[object, ...] = (None, 7, b"request", ["request"], uid(1))


@functools.cache  # for every storage that is tested
def _good_logs() -> list[LogRecord]:
    return [log(number) for number in range(_GOOD)]


@functools.cache
def _good_memberships() -> list[FiberMembership]:
    return [member(number, 9) for number in range(_GOOD)]


def _with_5000th(good: list[_T], item: object) -> Iterator[_T]:
    """Return the good records, and in their midst the item, or the error it is."""
    yield from good[:4_999]
    if isinstance(item, Exception):
        raise item
    yield cast("_T", item)
    yield from good[4_999:]


def check_refusal(
    call: Callable[[Any], object], error: type[Exception], match: str | None, *wrong: object
) -> None:
    """Check that a call refuses each of these arguments, with a message that matches if that is said."""
    for argument in wrong:
        with pytest.raises(error, match=match):
            call(argument)


def check_number(
    call: Callable[[Any], object], name: str, *, least: int = 0, may_be_none: bool = False
) -> None:
    """Check that a call refuses numbers that are out of bounds, and what is none, and names the argument."""
    check_refusal(call, ValueError, name, least - 1, -(2**70), 2**63, 2**70)
    check_refusal(call, TypeError, name, True, 1.0, "1", [1], *([] if may_be_none else [None]))


class RefusalsContract:
    """Refusal of wrong arguments. A refused batch stores nothing, and the storage works after each error."""

    @pytest.fixture
    def filled(self, storage: Storage) -> Iterator[Storage]:
        """Give a store with rows; see that the test changed none of them, and that it still works."""
        storage.write_logs([log(8), stored(9)])
        storage.write_fiber(fiber(8, attributes={"user": "ada"}))
        storage.write_memberships([member(8, 8)])
        before = all_rows(storage)
        yield storage
        assert all_rows(storage) == before
        assert storage.write_logs([log(1), log(8)]) == 1
        assert storage.write_memberships([member(1, 9), member(8, 8)]) == 1
        storage.write_fiber(fiber(9))
        storage.update_fiber(fiber(8, "login"))
        assert [row.log_id for row in storage.get_fiber_logs(uid(9))] == [uid(1)]
        assert storage.query_fibers_by_type("login") == [fiber(8, "login")]

    def test_atomic_batch_whose_reader_fails_stores_nothing(self, filled: Storage) -> None:
        error = _ReaderError("the disk is gone")
        with pytest.raises(_ReaderError) as raised:
            filled.write_logs(_with_5000th(_good_logs(), error))
        assert raised.value is error
        with pytest.raises(_ReaderError) as raised:
            filled.write_memberships(_with_5000th(_good_memberships(), error))
        assert raised.value is error

    def test_atomic_batch_with_a_bad_5000th_log_stores_nothing(self, filled: Storage) -> None:
        check_refusal(
            lambda wrong: filled.write_logs(_with_5000th(_good_logs(), wrong)), TypeError, None, *_NOT_A_LOG
        )
        check_refusal(lambda wrong: filled.write_logs([log(1), wrong]), TypeError, None, *_NOT_A_LOG)

    def test_atomic_batch_with_a_bad_5000th_membership_stores_nothing(self, filled: Storage) -> None:
        write = filled.write_memberships
        check_refusal(
            lambda wrong: write(_with_5000th(_good_memberships(), wrong)), TypeError, None, *_NOT_A_MEMBERSHIP
        )
        check_refusal(lambda wrong: write([member(1, 1), wrong]), TypeError, None, *_NOT_A_MEMBERSHIP)

    def test_refused_one_record_instead_of_a_batch(self, filled: Storage) -> None:
        check_refusal(filled.write_logs, TypeError, None, *_NOT_A_BATCH)
        check_refusal(filled.write_memberships, TypeError, None, *_NOT_A_BATCH)

    def test_refused_something_that_is_no_fiber(self, filled: Storage) -> None:
        check_refusal(filled.write_fiber, TypeError, None, *_NOT_A_FIBER)
        check_refusal(filled.update_fiber, TypeError, None, *_NOT_A_FIBER)

    def test_refused_an_id_that_is_no_uuid(self, filled: Storage) -> None:
        for method in (filled.get_log, filled.get_fiber, filled.get_log_fibers, filled.get_fiber_logs):
            check_refusal(method, TypeError, r"uuid\.UUID", *_NOT_AN_ID)

    def test_refused_a_bound_that_is_no_datetime(self, filled: Storage) -> None:
        check_refusal(lambda wrong: filled.query_logs_by_time(wrong, NOON), TypeError, None, *_NOT_A_TIME)
        check_refusal(lambda wrong: filled.query_logs_by_time(NOON, wrong), TypeError, None, *_NOT_A_TIME)

    def test_refused_a_fiber_type_that_is_no_text(self, filled: Storage) -> None:
        check_refusal(filled.query_fibers_by_type, TypeError, None, *_NOT_TEXT)

    def test_refused_a_fiber_type_that_cannot_be_stored(self, filled: Storage) -> None:
        with pytest.raises(ValueError, match="NUL"):
            filled.query_fibers_by_type("request\0")
        with pytest.raises(ValueError, match="surrogate"):
            filled.query_fibers_by_type("request\udcff")

    def test_refused_even_when_the_answer_would_be_empty(self, filled: Storage) -> None:
        naive = NOON.replace(tzinfo=None)
        with pytest.raises(ValueError, match="naive"):
            filled.query_logs_by_time(NOON, naive, 0)
        with pytest.raises(ValueError, match="naive"):
            filled.query_logs_by_time(naive, NOON, 0)
        with pytest.raises(ValueError, match="offset"):
            filled.query_logs_by_time(NOON, at(-1), 0, -1)
        with pytest.raises(ValueError, match="surrogate"):
            filled.query_fibers_by_type("\udcff", 0)
        with pytest.raises(TypeError):
            filled.get_fiber_logs("no id", 0)  # type: ignore[arg-type]
