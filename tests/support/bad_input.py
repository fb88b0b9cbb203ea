"""Bad input, as data: what is given, and the error it gets. ``test_bad_input.py`` gives it to every face.

Each error must be of the very class, and its message must hold the words: the value that is wrong, or the
fix. One row a line; the values of a type are listed once, and put into every field of that type.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel, ValidationError

from fiberstore import (
    DatabaseError,
    DuplicateError,
    FiberMembership,
    FiberRecord,
    LogRecord,
    NotFoundError,
    SerializationError,
    StoredLog,
)
from fiberstore.repositories.storage import Transaction
from fiberstore.testing.examples import (
    BEGIN_OF_TIME,
    END_OF_TIME,
    NOON,
    fiber,
    log,
    member,
    nested,
    stored,
    uid,
)

Kind: TypeAlias = type[LogRecord | FiberRecord | FiberMembership]

NAIVE = NOON.replace(tzinfo=None)
BEFORE_YEAR_1 = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))
AFTER_YEAR_9999 = datetime.max.replace(tzinfo=timezone(timedelta(microseconds=-1)))


class Value(NamedTuple):
    """A bad value of a field: what a record says of it, and what a store says if no record was asked."""

    value: object
    record_says: str
    error: type[Exception]
    store_says: str


_A_TIME, _AWARE = "valid datetime", "expected a timezone-aware datetime, got "
_TIMES = [
    Value(None, _A_TIME, TypeError, _AWARE + "None"),
    Value("2024-02-29T12:00:00Z", _A_TIME, TypeError, _AWARE + "'2024-02-29T12:00:00Z'"),
    Value(1709208000, _A_TIME, TypeError, _AWARE + "1709208000"),
    Value(1709208000.5, _A_TIME, TypeError, _AWARE + "1709208000.5"),
    Value(float("nan"), _A_TIME, TypeError, _AWARE + "nan"),
    Value(True, _A_TIME, TypeError, _AWARE + "True"),
    Value(NOON.date(), _A_TIME, TypeError, _AWARE + "datetime.date(2024, 2, 29)"),
    Value(NOON.timetz(), _A_TIME, TypeError, _AWARE + "datetime.time(12, 0"),
    Value(timedelta(days=1), _A_TIME, TypeError, _AWARE + "datetime.timedelta(days=1)"),
    Value(NAIVE, "naive", ValueError, "2024-02-29 12:00:00 is naive; give it a time zone"),
    Value(BEFORE_YEAR_1, "outside the years 1 to 9999", ValueError, "outside the years 1 to 9999"),
    Value(AFTER_YEAR_9999, "outside the years 1 to 9999", ValueError, "outside the years 1 to 9999"),
]
_OUTSIDE = _TIMES[-3:]
_TEXTS = [
    Value(None, "valid string", TypeError, "expected a str, got None"),
    Value(7, "valid string", TypeError, "expected a str, got 7"),
    Value(True, "valid string", TypeError, "expected a str, got True"),
    Value(b"bytes", "valid string", TypeError, "expected a str, got b'bytes'"),
    Value(b"\xff", "valid string", TypeError, r"expected a str, got b'\xff'"),
    Value(bytearray(b"x"), "valid string", TypeError, "expected a str, got bytearray(b'x')"),
    Value(["text"], "valid string", TypeError, "expected a str, got ['text']"),
    Value(uid(1), "valid string", TypeError, "expected a str, got UUID("),
    Value("a\0b", "NUL at character 1; remove", ValueError, "NUL at character 1; remove"),
    Value("é\0", "NUL at character 1; remove", ValueError, "NUL at character 1; remove"),
    Value("ab\ud800", r"surrogate '\ud800' at character 2", ValueError, r"surrogate '\ud800' at character 2"),
    Value("\udcff", "decode the bytes with errors=", ValueError, "decode the bytes with errors="),
]
_AN_ID = "expected a uuid.UUID, got "
_IDS = [
    Value(None, "UUID input", TypeError, _AN_ID + "None; uuid.UUID(text) makes one"),
    Value("no id", "valid UUID", TypeError, _AN_ID + "'no id'"),
    Value("", "valid UUID", TypeError, _AN_ID + "''"),
    Value(7, "UUID input", TypeError, _AN_ID + "7"),
    Value(True, "UUID input", TypeError, _AN_ID + "True"),
    Value(1.5, "UUID input", TypeError, _AN_ID + "1.5"),
    Value(b"short", "valid UUID", TypeError, _AN_ID + "b'short'"),
    Value((uid(1),), "UUID input", TypeError, _AN_ID + "(UUID("),
]
_VERSION = "config_version must be an int from 0 to 2**64 - 1, got "
_VERSIONS = [
    Value(None, "valid integer", ValueError, _VERSION + "None"),
    Value(True, "valid integer", ValueError, _VERSION + "True"),
    Value("1", "valid integer", ValueError, _VERSION + "'1'"),
    Value(1.0, "valid integer", ValueError, _VERSION + "1.0"),
    Value(float("nan"), "valid integer", ValueError, _VERSION + "nan"),
    Value(-1, "greater than or equal to 0", ValueError, _VERSION + "-1"),
    Value(2**64, "less than or equal to 18446744073709551615", ValueError, _VERSION + "18446744073709551616"),
    Value(10**400, "less than or equal to 18446744073709551615", ValueError, _VERSION + "1000"),
]
_FLAGS: list[object] = [None, 0, 1, 1.0, "yes", "true", b"x", []]
_NO_JSON: list[tuple[object, str]] = [
    (float("nan"), "finite number"),
    (float("inf"), "finite number"),
    ({"a": [1, {"b": -float("inf")}]}, "finite number"),
    (object(), "not a valid JSON value"),
    (b"bytes", "not a valid JSON value"),
    ((1, 2), "not a valid JSON value"),
    ({1, 2}, "not a valid JSON value"),
    (NOON, "not a valid JSON value"),
    ({"a": uid(1)}, "not a valid JSON value"),
    (1j, "not a valid JSON value"),
    ({1: "a key that is no text"}, "valid string"),
    ({None: 1}, "valid string"),
    ("a\0b", "holds NUL"),
    ({"a": ["\0"]}, "holds NUL"),
    ({"\0": 1}, "holds NUL"),
    ("\ud800", r"lone surrogate '\ud800'"),
    ({"\udfff": 1}, r"lone surrogate '\udfff'"),
    (10**5000, "4300"),
    ({"a": [10**4300]}, "4300"),
    (nested(300), "attributes."),
    (nested(2_000), "attributes."),
]

LOG_FIELDS = {"timestamp": _TIMES, "source_id": _TEXTS, "raw_text": _TEXTS, "log_id": _IDS}
FIELDS: dict[Kind, dict[str, list[Value]]] = {
    LogRecord: LOG_FIELDS,
    StoredLog: {"ingestion_time": _TIMES, "config_version": _VERSIONS, "timestamp": _OUTSIDE},
    FiberRecord: {
        "fiber_id": _IDS,
        "fiber_type": _TEXTS,
        "config_version": _VERSIONS,
        "first_activity": _TIMES,
        "last_activity": _TIMES,
        "closed": [Value(flag, "valid boolean", ValidationError, "valid boolean") for flag in _FLAGS],
        "attributes": [Value(value, says, SerializationError, says) for value, says in _NO_JSON],
    },
    FiberMembership: {"log_id": _IDS, "fiber_id": _IDS, "config_version": _VERSIONS},
}
GOOD: dict[Kind, LogRecord | FiberRecord | FiberMembership] = {
    LogRecord: log(1),
    StoredLog: stored(1),
    FiberRecord: fiber(1),
    FiberMembership: member(1, 1),
}


@dataclass(frozen=True)
class Refusal:
    """A call, and the error it gets."""

    method: str
    arguments: tuple[object, ...]
    options: dict[str, object]
    error: type[Exception]
    says: str
    note: str = ""

    def __str__(self) -> str:
        options = "".join(f", {name}={short(value)}" for name, value in self.options.items())
        return f"{self.method}({', '.join(map(short, self.arguments))}{options}){self.note}"


def short(value: object) -> str:
    """Return the value for the name of a test; some values are too deep for ``repr``."""
    if isinstance(value, list | BaseModel) or value is log:
        return type(value).__name__
    try:
        return re.sub(" at 0x.*", "", ascii(value))[:40]
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"


def bad_records() -> Iterator[tuple[str, Callable[[], object], type[Exception], tuple[str, ...]]]:
    """Yield what each record is called with, as a name and a call, the error and the words in it."""
    for kind, fields in FIELDS.items():
        good = dict(GOOD[kind])
        for field, values in fields.items():
            error = SerializationError if field == "attributes" else ValidationError
            for bad in values:
                changed = good | {field: bad.value}
                name = f"{kind.__name__}({field}={short(bad.value)})"
                yield name, partial(kind, **changed), error, (field, bad.record_says)
        for field in (name for name, about in kind.model_fields.items() if about.is_required()):
            rest = {name: value for name, value in good.items() if name != field}
            name = f"{kind.__name__} without {field}"
            yield name, partial(kind, **rest), ValidationError, (field, "required")
        name, extra = f"{kind.__name__}(surprise=1)", good | {"surprise": 1}
        yield (
            name,
            partial(kind, **extra),
            ValidationError,
            ("surprise", "not permitted"),
        )
    swapped = dict(fiber(1)) | {"first_activity": END_OF_TIME}
    words = ("first_activity 9999-12-31T23:59:59.999999+00:00 is after last_activity",)
    yield "FiberRecord ends before it begins", partial(FiberRecord, **swapped), ValidationError, words


def _unchecked_records() -> Iterator[Refusal]:
    """Yield records that ``model_copy`` made, and records that lack a field."""
    methods: dict[Kind, tuple[str, ...]] = {
        LogRecord: ("write_logs",),
        StoredLog: ("write_logs",),
        FiberRecord: ("write_fiber", "update_fiber"),
        FiberMembership: ("write_memberships",),
    }
    for kind, fields in FIELDS.items():
        good = GOOD[kind]
        for method in methods[kind]:
            alone = kind is FiberRecord  # a fiber has no batch; in one, the first record is good
            for field, values in fields.items():
                for bad in values:
                    record = good.model_copy(update={field: bad.value})
                    error, says = bad.error, bad.store_says
                    if alone and error is not SerializationError:
                        error, says = ValidationError, bad.record_says
                    note = f" with {field}={short(bad.value)}"
                    arguments = (record,) if alone else ([_first(kind), record],)
                    yield Refusal(method, arguments, {}, error, says, note)
            for field in (name for name in kind.model_fields if name not in ("attributes", "closed")):
                record = good.model_copy()
                del record.__dict__[field]
                error, says = (ValidationError, field) if alone else (TypeError, f"has no {field}")
                arguments = (record,) if alone else ([_first(kind), record],)
                yield Refusal(method, arguments, {}, error, says, f" without {field}")
    for text in (str(uid(1)), uid(1).bytes):  # a record makes an id of it, a copy does not
        says = _AN_ID + repr(text)
        yield Refusal(
            "write_logs", ([log(1).model_copy(update={"log_id": text})],), {}, TypeError, says, " copy"
        )
    late = fiber(8).model_copy(update={"first_activity": END_OF_TIME})
    yield Refusal("update_fiber", (late,), {}, ValidationError, "is after last_activity")


def _first(kind: Kind) -> LogRecord | FiberMembership:
    return member(2, 2) if kind is FiberMembership else log(2)


_A_LOG, _A_PAIR, _A_FIBER = (
    "item 0 must be a LogRecord",
    "item 0 must be a FiberMembership",
    "expected a FiberRecord",
)
_HAND_PICKED = [
    # what is no batch, or no batch of these
    Refusal("write_logs", (None,), {}, TypeError, "not iterable"),
    Refusal("write_logs", (7,), {}, TypeError, "not iterable"),
    Refusal("write_logs", (log,), {}, TypeError, "not iterable"),
    Refusal("write_logs", (log(1),), {}, TypeError, _A_LOG),
    Refusal("write_logs", ("logs",), {}, TypeError, _A_LOG + ", got 'l'"),
    Refusal("write_logs", ({"log_id": uid(1)},), {}, TypeError, _A_LOG + ", got 'log_id'"),
    Refusal("write_logs", ([log(1), None],), {}, TypeError, "item 1 must be a LogRecord, got None"),
    Refusal("write_logs", ([log(1), dict(log(2))],), {}, TypeError, "item 1 must be a LogRecord, got {"),
    Refusal("write_logs", ([LogRecord],), {}, TypeError, _A_LOG),
    Refusal("write_logs", ([fiber(1)],), {}, TypeError, _A_LOG + ", got FiberRecord"),
    Refusal("write_logs", ([member(1, 1)],), {}, TypeError, _A_LOG + ", got FiberMembership"),
    Refusal("write_memberships", (None,), {}, TypeError, "not iterable"),
    Refusal("write_memberships", (member(1, 1),), {}, TypeError, _A_PAIR),
    Refusal("write_memberships", ([member(1, 1), (uid(1), uid(2))],), {}, TypeError, "item 1 must be a F"),
    Refusal("write_memberships", ([log(1)],), {}, TypeError, _A_PAIR + ", got LogRecord"),
    Refusal("write_memberships", ([None],), {}, TypeError, _A_PAIR + ", got None"),
    # what is no fiber, or not the right one
    *(
        Refusal(method, (wrong,), {}, TypeError, f"{_A_FIBER}, got {says}")
        for method in ("write_fiber", "update_fiber")
        for wrong, says in [
            (None, "None"), (uid(1), "UUID("), (dict(fiber(1)), "{'fiber_id'"), (log(1), "LogRecord("),
            ([fiber(1)], "[FiberRecord("), (FiberRecord, "<class"),
        ]
    ),
    Refusal("write_fiber", (fiber(8),), {}, DuplicateError, f"fiber {uid(8)} exists already; update_fiber()"),
    Refusal("update_fiber", (fiber(1),), {}, NotFoundError, f"no fiber {uid(1)}; write_fiber() creates one"),
    # types
    *(Refusal("query_fibers_by_type", (bad.value,), {}, bad.error, bad.store_says) for bad in _TEXTS),
    *(Refusal("query_fibers_by_type", (bad.value, 0), {}, bad.error, bad.store_says) for bad in _TEXTS[-2:]),
    # bounds
    *(Refusal("query_logs_by_time", (bad.value, NOON), {}, bad.error, bad.store_says) for bad in _TIMES),
    *(Refusal("query_logs_by_time", (NOON, bad.value), {}, bad.error, bad.store_says) for bad in _TIMES),
    *(Refusal("query_logs_by_time", (NOON, bad.value, 0), {}, bad.error, bad.store_says) for bad in _OUTSIDE),
    # ids
    *(
        Refusal(method, (bad,), {}, TypeError, "; uuid.UUID(text) makes one")
        for method in ("get_log", "get_fiber", "get_log_fibers", "get_fiber_logs")
        for bad in [*(item.value for item in _IDS), str(uid(8)), uid(8).bytes, uid(8).int, log(8)]
    ),
]  # fmt: skip

_PAGES: dict[str, tuple[object, ...]] = {
    "query_logs_by_time": (BEGIN_OF_TIME, END_OF_TIME),
    "query_fibers_by_type": ("request",),
    "get_fiber_logs": (uid(8),),
}
_NUMBERS: list[tuple[object, type[Exception], str]] = [
    (None, TypeError, "must be an int, got None"),
    (True, TypeError, "must be an int, got True"),
    (1.0, TypeError, "must be an int, got 1.0"),
    (float("nan"), TypeError, "must be an int, got nan"),
    ("1", TypeError, "must be an int, got '1'"),
    ([1], TypeError, "must be an int, got [1]"),
    (-1, ValueError, "must be at least 0, got -1"),
    (2**63, ValueError, "must be at most 2**63 - 1, got 9223372036854775808"),
    (-(10**30), ValueError, "must be at least 0, got -1000"),
]
_KEYS: list[tuple[object, type[Exception], str]] = [
    (uid(1), TypeError, "after must be a "),
    (NOON, TypeError, "after must be a "),
    ("page 2", TypeError, "got 'page 2'"),
    (member(1, 1), TypeError, "got FiberMembership"),
    ([NOON, uid(1)], TypeError, "after must be a "),
    ((NOON,), TypeError, "after must be a "),
    ((NOON, uid(1), uid(1)), TypeError, "after must be a "),
    ((uid(1), NOON), TypeError, _AN_ID + "datetime.datetime("),
    ((NOON, str(uid(1))), TypeError, _AN_ID + "'0000"),
    ((NOON, None), TypeError, _AN_ID + "None"),
    ((None, uid(1)), TypeError, _AWARE + "None"),
    (("2024-02-29T12:00:00Z", uid(1)), TypeError, _AWARE + "'2024"),
    ((NAIVE, uid(1)), ValueError, "is naive"),
    ((BEFORE_YEAR_1, uid(1)), ValueError, "outside the years 1 to 9999"),
    ((AFTER_YEAR_9999, uid(1)), ValueError, "outside the years 1 to 9999"),
]


def _bad_pages() -> Iterator[Refusal]:
    for method, arguments in _PAGES.items():
        for name in ("limit", "offset"):
            for value, error, says in _NUMBERS:
                yield Refusal(method, arguments, {name: value}, error, f"{name} {says}")
        for value, error, says in _KEYS:
            yield Refusal(method, arguments, {"after": value}, error, says)
    yield Refusal(
        "query_logs_by_time", (NOON, NOON), {"after": fiber(1)}, TypeError, "after must be a LogRecord"
    )
    yield Refusal("get_fiber_logs", (uid(8),), {"after": fiber(1)}, TypeError, "after must be a LogRecord")
    yield Refusal(
        "query_fibers_by_type", ("login",), {"after": log(1)}, TypeError, "after must be a FiberRecord"
    )


CALLS: list[Refusal] = [*_unchecked_records(), *_HAND_PICKED, *_bad_pages()]

# What opening a store is refused for; {folder} is the test's own. AsyncDuckDBStorage gets the same.
_AT_LEAST_1, _NONE_SUCH = "must be at least 1, got ", "not supported; give a path or a duckdb:/// URL"
TARGETS: list[tuple[object, type[Exception] | str, str]] = [
    (None, TypeError, "NoneType"),
    (7, TypeError, "int"),
    (["a"], TypeError, "list"),
    (b"logs.duckdb", TypeError, "expected a str, got b'logs.duckdb'"),
    ("logs\0.duckdb", ValueError, "NUL at character 4"),
    ("logs\udcff.duckdb", ValueError, "lone surrogate"),
    ("duckdb://host:port/logs.duckdb", ValueError, "is not a database URL"),
    ("/dev/null", "DatabaseError", "is no regular file; give another path"),
    ("", ValueError, 'give a path, a duckdb:/// URL or ":memory:"'),
    ("://", ValueError, "'://' is not a database URL"),
    ("postgresql://localhost/logs", ValueError, "postgresql:// is " + _NONE_SUCH),
    ("sqlite:///logs.db", ValueError, "sqlite:// is " + _NONE_SUCH),
    ("s3://bucket/logs.duckdb", ValueError, "s3:// is " + _NONE_SUCH),
    ("https://localhost/logs.duckdb", ValueError, "https:// is " + _NONE_SUCH),
    ("duckdb+other:///logs.duckdb", ValueError, "duckdb+other:// is " + _NONE_SUCH),
    ("duckdb://logs.duckdb", ValueError, "names a host; a file's path stands after three slashes"),
    ("duckdb://user:secret@/logs.duckdb", ValueError, "user:***@/logs.duckdb' names a host"),
    ("{folder}", "DatabaseError", "is a folder; give the path of a file in it"),
    ("{folder}/none/store.duckdb", "DatabaseError", "none does not exist; create it first"),
    ("{folder}/file.txt/store.duckdb", "DatabaseError", "file.txt does not exist; create it first"),
    ("{folder}/file.txt", "DatabaseError", "file.txt is not a DuckDB database; give another path"),
    ("{folder}/" + "a" * 300, "DatabaseError", "File name too long"),
    ("duckdb:///{folder}/s.duckdb?no_such_setting=1", "DatabaseError", "no_such_setting"),
    ("duckdb:///{folder}/s.duckdb?threads=many", "DatabaseError", "'many'"),
]

_SECONDS = {
    "engine": ["pool_timeout_s"],
    "sync": ["lock_timeout_s", "slow_call_s"],
    "async": ["lock_timeout_s", "slow_call_s"],
}
NUMBERS_TO_OPEN: list[tuple[str, str, object, type[Exception], str]] = [
    *(
        (opener, "config_version", bad.value, ValueError, bad.store_says)
        for opener in ("sync", "async")
        for bad in _VERSIONS
    ),
    *(
        (opener, "pool_size", value, ValueError, f"pool_size {_AT_LEAST_1}{value}")
        for opener in ("engine", "sync", "async")
        for value in (0, -1)
    ),
    ("engine", "threads", 0, ValueError, f"threads {_AT_LEAST_1}0"),
    ("engine", "threads", -3, ValueError, f"threads {_AT_LEAST_1}-3"),
    ("engine", "memory_limit_bytes", 0, ValueError, f"memory_limit_bytes {_AT_LEAST_1}0"),
    (
        "engine",
        "checkpoint_threshold_bytes",
        -1,
        ValueError,
        "checkpoint_threshold_bytes must be at least 0, got -1",
    ),
    ("engine", "read_only", True, DatabaseError, "s.duckdb does not exist; a read-only store must"),
    ("sync", "read_only", True, DatabaseError, "s.duckdb does not exist; a read-only store must"),
    ("async", "read_only", True, DatabaseError, "s.duckdb does not exist; a read-only store must"),
    *(
        ("engine", name, value, TypeError, f"{name} must be an int, got {value!r}")
        for name in ("pool_size", "threads", "memory_limit_bytes", "checkpoint_threshold_bytes")
        for value in ("8", [8], b"8", 1.5, True, float("nan"))
    ),
    *(
        (opener, name, value, error, f"{name} must be {says}")
        for opener, names in _SECONDS.items()
        for name in names
        for value, error, says in (
            (-1, ValueError, "at least 0, got -1"),
            (float("nan"), ValueError, "at least 0, got nan"),
            ("1", TypeError, "a number of seconds, got '1'"),
            (None, TypeError, "a number of seconds, got None"),
            (True, TypeError, "a number of seconds, got True"),
        )
    ),
]


class InTransaction(NamedTuple):
    """A call in a transaction, and the error it gets."""

    name: str
    call: Callable[[Transaction], object]
    error: type[Exception]
    says: str


_WRONG: Any = None
_TEXT_ID: Any = str(uid(8))
_NUL, _NAN = (
    fiber(1).model_copy(update=wrong) for wrong in ({"fiber_type": "\0"}, {"attributes": float("nan")})
)
_A_ROW = {uid(8): uid(1), uid(1): uid(2)}
_NO_FIBER, _TWICE = "item 1 must be a FiberRecord, got None", f"fiber {uid(8)} is given twice"
IN_TRANSACTION = [
    InTransaction("write None", lambda t: t.logs.write_logs([_WRONG]), TypeError, _A_LOG),
    InTransaction("write a fiber", lambda t: t.fibers.write_fiber(_WRONG), TypeError, _A_FIBER),
    InTransaction(
        "write None too", lambda t: t.fibers.write_fibers([fiber(1), _WRONG]), TypeError, _NO_FIBER
    ),
    InTransaction("write twice", lambda t: t.fibers.write_fibers([fiber(8), fiber(8)]), ValueError, _TWICE),
    InTransaction("write NUL", lambda t: t.fibers.write_fibers([fiber(2), _NUL]), ValidationError, "NUL"),
    InTransaction(
        "write NaN", lambda t: t.fibers.write_fibers([fiber(2), _NAN]), SerializationError, "finite"
    ),
    InTransaction("upsert None", lambda t: t.fibers.upsert_fibers([fiber(8), _WRONG]), TypeError, _NO_FIBER),
    InTransaction("upsert twice", lambda t: t.fibers.upsert_fibers([fiber(8), fiber(8)]), ValueError, _TWICE),
    InTransaction("upsert NUL", lambda t: t.fibers.upsert_fibers([fiber(8), _NUL]), ValidationError, "NUL"),
    InTransaction(
        "merge text", lambda t: t.fibers.merge_fibers({_TEXT_ID: uid(1)}), TypeError, _AN_ID + "'0000"
    ),
    InTransaction(
        "merge into None", lambda t: t.fibers.merge_fibers({uid(8): _WRONG}), TypeError, _AN_ID + "None"
    ),
    InTransaction(
        "merge into itself", lambda t: t.fibers.merge_fibers({uid(8): uid(8)}), ValueError, "ends itself"
    ),
    InTransaction(
        "merge in a row", lambda t: t.fibers.merge_fibers(_A_ROW), ValueError, f"part of {uid(1)}, which"
    ),
    InTransaction("get text", lambda t: t.fibers.get_fiber(_TEXT_ID), TypeError, _AN_ID + "'0000"),
    InTransaction(
        "write a pair", lambda t: t.memberships.write_memberships([member(1, 1), _WRONG]), TypeError, "item 1"
    ),
]
