"""Tests of invalid conditions: refused when they are made, with a message that names the fix."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from fiberstore.contract.queries import Fibers, Logs, Memberships, QueryStorage
from fiberstore.testing.examples import NOON, at, uid

_log, _fiber = Logs.c.source_id == "web", Fibers.c.closed
_naive = NOON.replace(tzinfo=None)
_value = Fibers.c.attributes["/v"]
_wrong = cast("Any", object())  # a value of no type that is asked for, which type checkers are not told

_TYPE_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "and": (lambda: cast("Any", _log) and _log, "join conditions with &"),
    "or": (lambda: cast("Any", _log) or _log, "join conditions with &"),
    "not": (lambda: not cast("Any", _log), "join conditions with &"),
    "a < column < b": (lambda: at(1) < Logs.c.timestamp < at(2), "between"),
    "a condition on another record": (lambda: _log & cast("Any", _fiber), "is a condition on a FiberRecord"),
    "or of another record": (lambda: cast("Any", _fiber) | _log, "is a condition on a StoredLog"),
    "logs.any of a fiber's": (lambda: Fibers.c.logs.any(cast("Any", _fiber)), "not on a StoredLog"),
    "fibers.any of a log's": (lambda: Logs.c.fibers.any(cast("Any", _log)), "not on a FiberRecord"),
    "no condition": (lambda: _log & cast("Any", True), "expected a condition, such as"),
    "logs.any of a bool": (lambda: Fibers.c.logs.any(_wrong), "expected a condition"),
    "an id as text": (lambda: Logs.c.log_id == cast("Any", str(uid(1))), "uuid.UUID"),
    "ids as text": (lambda: Fibers.c.fiber_id.in_([_wrong]), "uuid.UUID"),
    "contains text": (lambda: Fibers.c.logs.contains(cast("Any", "1")), "uuid.UUID"),
    "a time as text": (lambda: Logs.c.timestamp >= cast("Any", "2024-01-01"), "timezone-aware datetime"),
    "no time": (lambda: Logs.c.timestamp == cast("Any", None), "timezone-aware datetime"),
    "text as a number": (lambda: Logs.c.source_id == cast("Any", 1), "expected a str"),
    "no text": (lambda: Logs.c.source_id != cast("Any", None), "expected a str"),
    "a part as a number": (lambda: Logs.c.raw_text.contains(cast("Any", 1)), "expected a str"),
    "a pattern as bytes": (lambda: Logs.c.raw_text.regexp_match(cast("Any", b"a")), "expected a str"),
    "one text for several": (lambda: Logs.c.source_id.in_("web"), "use == for one"),
    "one text for several values": (lambda: _value.in_("web"), "use == for one"),
    "a duration as a number": (lambda: Fibers.c.duration > cast("Any", 5), "datetime.timedelta"),
    "a flag as a number": (lambda: Fibers.c.closed.is_(cast("Any", 1)), "True or False"),
    "a list as a value": (lambda: _value == cast("Any", ["a"]), "by their pointers"),
    "an object as a value": (lambda: _value == cast("Any", {"a": 1}), "by their pointers"),
    "a time as a value": (lambda: _value >= cast("Any", NOON), "compared with text, a number"),
    "a bool as a bound": (lambda: _value < True, "compared with text, a number"),
    "null as a bound": (lambda: _value >= cast("Any", None), "compared with text, a number"),
    "a pointer that is no text": (lambda: Fibers.c.attributes[cast("Any", 0)], "expected a str"),
}
_VALUE_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "a naive time": (lambda: Logs.c.timestamp >= _naive, "naive; give it a time zone"),
    "naive times": (lambda: Logs.c.ingestion_time.in_([NOON, _naive]), "naive; give it a time zone"),
    "a naive span": (lambda: Fibers.c.activity.overlaps(NOON, _naive), "naive; give it a time zone"),
    "a naive span, the other way": (lambda: Fibers.c.activity.overlaps(_naive, NOON), "naive"),
    "a negative version": (lambda: Logs.c.config_version > -1, "from 0 to 2"),
    "a version that is too large": (lambda: Memberships.c.config_version == 2**64, "from 0 to 2"),
    "NUL": (lambda: Logs.c.raw_text.contains("a\0"), "NUL at character 1; remove"),
    "a surrogate": (lambda: Fibers.c.fiber_type == "\ud800", "lone surrogate"),
    "NUL in a value": (lambda: _value == "\0", "NUL at character 0; remove"),
    "look-ahead": (lambda: Logs.c.raw_text.regexp_match("a(?=b)"), "no regular expression of RE2"),
    "look-behind": (lambda: Logs.c.raw_text.regexp_match("(?<!a)b"), "no regular expression of RE2"),
    "a back-reference": (lambda: Logs.c.raw_text.regexp_match(r"(a)\1"), "no regular expression of RE2"),
    "a byte": (lambda: Logs.c.raw_text.regexp_match(r"a\C"), r"has \\C, .* write \(\?s:\.\)"),
    "no pattern": (lambda: Logs.c.raw_text.regexp_match("a("), r"no regular expression of RE2.*missing \)"),
    "too many times": (lambda: Logs.c.raw_text.regexp_match("a{1001}"), "no regular expression of RE2"),
    "NUL in a pattern": (lambda: Logs.c.raw_text.regexp_match("\0"), "NUL"),
    "infinity": (lambda: _value < math.inf, r"beyond the numbers that are compared exactly, -2\*\*63"),
    "no number": (lambda: _value.in_([math.nan]), "beyond the numbers"),
    "a number that is too large": (lambda: _value == 2**64, "beyond the numbers"),
    "a float that is too large": (lambda: _value <= 2.0**64, "beyond the numbers"),
    "a number that is too small": (lambda: _value > -(2**63) - 1, "beyond the numbers"),
    "infinities": (lambda: _value.in_([1, -math.inf]), "beyond the numbers"),
    "a key": (lambda: Fibers.c.attributes["user"], "for the key of that name, write '/user'"),
    "a key with a slash": (lambda: Fibers.c.attributes["a/b~"], "write '/a~1b~0'"),
    "a path": (lambda: Fibers.c.attributes["$.user"], r"write '/\$.user'"),
    "a tilde": (lambda: Fibers.c.attributes["/a~b"], "write ~0 for ~ and ~1 for /"),
    "a tilde at the end": (lambda: Fibers.c.attributes["/a~"], "write ~0 for ~"),
    "tildes": (lambda: Fibers.c.attributes["/~~01"], "write ~0 for ~"),
    "NUL in a pointer": (lambda: Fibers.c.attributes["/\0"], "NUL"),
}


class FilterRefusalsContract:
    """Invalid conditions, and their messages."""

    @pytest.mark.parametrize("name", _TYPE_ERRORS)
    def test_what_is_no_condition_raises_type_error(self, name: str) -> None:
        make, message = _TYPE_ERRORS[name]
        with pytest.raises(TypeError, match=message):
            make()

    @pytest.mark.parametrize("name", _VALUE_ERRORS)
    def test_what_cannot_be_answered_exactly_raises_value_error(self, name: str) -> None:
        make, message = _VALUE_ERRORS[name]
        with pytest.raises(ValueError, match=message):
            make()

    def test_where_refuses_what_is_no_condition_on_its_records(self, storage: QueryStorage) -> None:
        for query, wrong in (
            (storage.logs, _fiber),
            (storage.fibers, _log),
            (storage.memberships, Logs.c.log_id == uid(1)),
            (storage.logs, Memberships.c.log_id == uid(1)),
        ):
            with pytest.raises(TypeError, match="is a condition on a"):
                cast("Any", query).where(wrong)
        for no_condition in (True, None, "source_id = 'web'", Logs.c.source_id, {"source_id": "web"}, [_log]):
            with pytest.raises(TypeError, match="expected a condition, such as"):
                storage.logs.where(cast("Any", no_condition))
        with pytest.raises(TypeError, match="expected a condition"):
            storage.logs.where(_log, cast("Any", False))

    def test_a_condition_shows_what_it_asks(self) -> None:
        condition = ~(_log & Logs.c.timestamp.between(NOON, NOON)) | Logs.c.fibers.any(
            (_value == "x") & Fibers.c.logs.contains(uid(1)) & (Fibers.c.duration > timedelta(1))
        )
        for part in (
            "source_id == 'web'",
            "2024-02-29T12:00:00+00:00",
            "'/v'",
            "'x'",
            "fibers.any(",
            "~",
            "|",
        ):
            assert part in repr(condition)
