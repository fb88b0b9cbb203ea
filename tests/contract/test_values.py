"""Values that nobody would pick: refused with nothing stored, or they come back equal and are found."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError
from sqlalchemy.exc import DBAPIError

from fiberstore import (
    DuckDBStorage,
    Fiber,
    FiberMembership,
    FiberRecord,
    Fibers,
    LogRecord,
    Logs,
    RawLog,
    SerializationError,
    StoredLog,
)
from fiberstore.json_text import MOST_NESTED
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.translate import translate_errors
from fiberstore.testing.examples import NOON, ClocksGoBack, fiber, log, stored, uid


@pytest.fixture(scope="module", params=["duckdb", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[SqlStorage]:
    if request.param == "postgresql":
        opened: SqlStorage = PostgresStorage(request.getfixturevalue("postgres_tables_url"))
    else:
        opened = DuckDBStorage(":memory:")
    with opened as store:
        store.init_schema()
        yield store


def empty(store: SqlStorage) -> None:
    with store.engine.begin() as connection:
        for table in ("raw_logs", "fibers", "fiber_memberships"):
            connection.exec_driver_sql(f"DELETE FROM {table}")


def is_empty(store: SqlStorage) -> bool:
    with store.session() as session:
        return not session.scalars(sa.select(RawLog)).all() and not session.scalars(sa.select(Fiber)).all()


# ---------------------------------------------------------------- text

PLANES = [
    (0x0, 0x7F), (0x80, 0x7FF), (0x300, 0x36F), (0x590, 0x8FF), (0x2000, 0x206F), (0x3400, 0x9FFF),
    (0xD800, 0xDFFF), (0xE000, 0xF8FF), (0xFDD0, 0xFDEF), (0xFE00, 0xFE0F), (0xFFF0, 0xFFFF),
    (0x1F000, 0x1FAFF), (0x2FFFE, 0x30000), (0x40000, 0x40FFF), (0xE0000, 0xE01EF), (0xF0000, 0xFFFFF),
    (0x10FF00, 0x10FFFF),
]  # fmt: skip
any_text = st.text(
    st.sampled_from("\0\ud800\udfff")
    | st.one_of([st.characters(min_codepoint=first, max_codepoint=last) for first, last in PLANES]),
    max_size=12,
)


def utf8_can_hold(text: str) -> bool:
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)


@example(text="a\0")
@example(text="a\ud800")
@example(text="\udfff")
@given(text=any_text)
def test_any_text_is_refused_or_comes_back_and_is_found(store: SqlStorage, text: str) -> None:
    empty(store)
    when = datetime(2024, 5, 1, tzinfo=UTC)
    if not utf8_can_hold(text):
        with pytest.raises(ValidationError, match=r"NUL at character|lone surrogate"):
            LogRecord(timestamp=when, source_id="s", raw_text=text)
        with pytest.raises(ValidationError, match=r"NUL at character|lone surrogate"):
            fiber(1, text)
        with pytest.raises(SerializationError, match=r"NUL|lone surrogate"):
            fiber(1, attributes={"key": [text]})
        with pytest.raises(SerializationError, match=r"NUL|lone surrogate"):
            fiber(1, attributes={text: 1})
        with pytest.raises(ValueError, match=r"NUL at character|lone surrogate"):
            store.query_fibers_by_type(text)
        assert is_empty(store)
        return
    log = LogRecord(timestamp=when, source_id=text, raw_text=text)
    group = fiber(1, text, {text: [text]})
    store.write_logs([log])
    store.write_fiber(group)
    found = store.get_log(log.log_id)
    assert found is not None
    assert (found.source_id, found.raw_text) == (text, text)
    assert store.get_fiber(uid(1)) == group
    assert store.query_fibers_by_type(text) == [group]
    assert store.query_fibers_by_type(text + "\u0301") == []
    with store.session() as session:
        by_text = sa.select(RawLog.log_id).where(RawLog.source_id == text, RawLog.raw_text == text)
        assert session.scalars(by_text).all() == [log.log_id]
        assert session.scalars(sa.select(Fiber.attributes).where(Fiber.fiber_type == text)).all() == [
            {text: [text]}
        ]


# ---------------------------------------------------------------- JSON

numbers = (
    st.integers()
    | st.integers(-(10**4299), 10**4299)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [1e308, -1e308, -0.0, 5e-324, sys.float_info.max, sys.float_info.min, 1e-320, 2**53 + 1]
    )
)
odd_keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["", " ", "$", "$.a", "a.b", "/a", "[0]", "*", '"', "\\", "\\u0000", "__proto__", "NaN", "null", "\n"]
)


@st.composite
def nested(draw: st.DrawFn) -> tuple[int, JsonValue]:
    depth = draw(st.integers(0, 600) | st.sampled_from([MOST_NESTED, MOST_NESTED + 1]))
    keys = draw(st.lists(odd_keys | st.none(), min_size=1, max_size=4))
    value: JsonValue = draw(numbers)
    for level in range(depth):
        key = keys[level % len(keys)]
        value = [value] if key is None else {key: value}
    return depth, value


def exactly(store: SqlStorage, value: JsonValue) -> str:
    """Return a text that tells 1, 1.0, True and -0.0 apart; JSONB keeps no order of keys, and no -0.0."""
    if is_postgresql(store):
        return re.sub(r"-0\.0(?![0-9e])", "0.0", json.dumps(value, sort_keys=True))
    return json.dumps(value)


def is_postgresql(store: SqlStorage) -> bool:
    return store.engine.dialect.name == "postgresql"


@given(
    value=st.recursive(
        st.none() | st.booleans() | numbers | odd_keys,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_keys, inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_json_comes_back_exactly(store: SqlStorage, value: JsonValue) -> None:
    empty(store)
    store.write_fiber(fiber(1, attributes=value))
    found = store.get_fiber(uid(1))
    assert found is not None
    assert exactly(store, found.attributes) == exactly(store, value)
    (by_type,) = store.query_fibers_by_type("request")
    assert exactly(store, by_type.attributes) == exactly(store, value)
    with store.session() as session:
        assert exactly(store, session.get_one(Fiber, uid(1)).attributes) == exactly(store, value)


@given(drawn=nested())
def test_deep_json_comes_back_or_is_refused(store: SqlStorage, drawn: tuple[int, JsonValue]) -> None:
    empty(store)
    depth, value = drawn
    if depth > MOST_NESTED:
        with pytest.raises(SerializationError, match=r"^attributes"):
            fiber(1, attributes=value)
        assert is_empty(store)
    else:
        group = fiber(1, attributes=value)
        store.write_fiber(group)
        found = store.get_fiber(uid(1))
        assert found is not None
        assert exactly(store, found.attributes) == exactly(store, value)


def put(store: SqlStorage, text: str) -> None:
    """Store attributes as another client would, which does not ask the records."""
    empty(store)
    store.write_fiber(fiber(1))
    value = "%s::jsonb" if is_postgresql(store) else "$1"
    with store.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE fibers SET attributes = {value}", (text,))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, "a": 2, "a": 3}', {"a": 3}),
        ('{"a": {"b": 1}, "a": {}}', {"a": {}}),
        (' [ 1 , 2 ] ', [1, 2]),
        ("-0", 0),
        ("-0.0", -0.0),
        ("1e-999", 0.0),
        ("1E5", 100000.0),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\u0041"', "A"),
        ("[" * 250 + "]" * 250, None),
        ('["' + r"[{\"" * 300 + '"]', ["[{\"" * 300]),
    ],
)  # fmt: skip
def test_json_of_another_client_is_read(store: SqlStorage, text: str, value: JsonValue) -> None:
    put(store, text)
    found = store.get_fiber(uid(1))
    assert found is not None
    expected = json.loads(text) if value is None else value
    assert found.attributes == expected
    if not is_postgresql(store):  # JSONB keeps numbers, not how they were written
        assert exactly(store, found.attributes) == exactly(store, expected)
    store.update_fiber(found)
    assert store.query_fibers_by_type("request") == [found]


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "[1,]"])
def test_what_is_no_json_is_refused_or_cannot_be_stored(store: SqlStorage, text: str) -> None:
    if is_postgresql(store):
        with pytest.raises(DBAPIError):
            put(store, text)
    else:
        put(store, text)
        assert_refused(store)


@pytest.mark.parametrize(("text", "value"), [("1e999", 10**999), ('{"a": [-1e400]}', {"a": [-(10**400)]})])
def test_a_number_beyond_floats_is_refused_or_a_whole_one(
    store: SqlStorage, text: str, value: JsonValue
) -> None:
    put(store, text)
    if is_postgresql(store):
        assert store.get_fiber(uid(1)) == fiber(1, attributes=value)
    else:
        assert_refused(store)


@pytest.mark.parametrize("text", ["1" * 5_000, "[" * 251 + "]" * 251, '{"a":' * 3_000 + "1" + "}" * 3_000])
def test_json_of_another_client_that_no_record_holds_is_refused(store: SqlStorage, text: str) -> None:
    put(store, text)
    assert_refused(store)


def assert_refused(store: SqlStorage) -> None:
    with pytest.raises(SerializationError, match="stored attributes are not JSON"):
        store.get_fiber(uid(1))
    with pytest.raises(SerializationError, match="stored attributes are not JSON"):
        store.query_fibers_by_type("request")
    with (
        store.session() as session,
        pytest.raises(SerializationError, match="stored attributes are not JSON"),
    ):
        session.scalars(sa.select(Fiber)).all()
    store.update_fiber(fiber(1, attributes="mended"))
    assert store.get_fiber(uid(1)) == fiber(1, attributes="mended")


# ---------------------------------------------------------------- time

MICROSECOND = timedelta(microseconds=1)
offsets = st.timedeltas(timedelta(hours=-24) + MICROSECOND, timedelta(hours=24) - MICROSECOND)
zones = st.builds(timezone, offsets) | st.just(UTC) | st.builds(ClocksGoBack)
near_the_edges = st.timedeltas(timedelta(0), timedelta(hours=30))
local_times = (
    st.datetimes()
    | near_the_edges.map(lambda gap: datetime.min + gap)  # noqa: DTZ901
    | near_the_edges.map(lambda gap: datetime.max - gap)  # noqa: DTZ901
)


@st.composite
def times(draw: st.DrawFn) -> datetime:
    return draw(local_times).replace(tzinfo=draw(zones | st.none()), fold=draw(st.sampled_from([0, 1])))


def in_utc(when: datetime) -> datetime | None:
    try:
        return None if when.tzinfo is None else when.astimezone(UTC)
    except OverflowError:
        return None


@given(when=times())
def test_any_time_is_refused_or_comes_back_and_is_found(store: SqlStorage, when: datetime) -> None:
    empty(store)
    expected = in_utc(when)
    if expected is None:
        complaint = r"is naive; give it|years 1 to 9999"
        with pytest.raises(ValidationError, match=complaint):
            LogRecord(timestamp=when, source_id="s", raw_text="t")
        with pytest.raises(ValidationError, match=complaint):
            fiber(1, first=when, last=when)
        with pytest.raises(ValueError, match=r"is naive; give it|years 1 to 9999"):
            store.query_logs_by_time(when, when)
        unchecked = LogRecord(timestamp=datetime(2024, 5, 1, tzinfo=UTC), source_id="s", raw_text="t")
        with pytest.raises(ValueError, match=r"is naive; give it|years 1 to 9999"):
            store.write_logs([unchecked.model_copy(update={"timestamp": when})])
        assert is_empty(store)
        return
    log = StoredLog(
        timestamp=when, source_id="s", raw_text="t", log_id=uid(1), ingestion_time=when, config_version=0
    )
    store.write_logs([log])
    store.write_fiber(fiber(1, first=when, last=when))
    store.write_memberships([FiberMembership(log_id=uid(1), fiber_id=uid(1), config_version=0)])
    found = store.get_log(uid(1))
    assert found is not None
    assert (found.timestamp, found.ingestion_time) == (expected, expected)
    assert found.timestamp.tzinfo is found.ingestion_time.tzinfo is UTC
    assert store.query_logs_by_time(when, when) == store.get_fiber_logs(uid(1)) == [found]
    assert store.query_logs_by_time(when, when, after=(when, uid(0))) == [found]
    assert store.query_logs_by_time(when, when, after=(when, uid(1))) == []
    group = store.get_fiber(uid(1))
    assert group is not None
    assert (group.first_activity, group.last_activity) == (expected, expected)
    with store.session() as session:
        assert session.scalars(sa.select(RawLog.timestamp).where(RawLog.timestamp == when)).all() == [
            expected
        ]


FINE = pd.Timestamp("2024-05-01T12:00:00.123456789Z")
FINE_SPAN = pd.Timedelta(1_500, "ns")
REFUSALS: dict[str, Callable[[SqlStorage], object]] = {
    "a log": lambda store: store.write_logs([log(1).model_copy(update={"timestamp": FINE})]),
    "a stored log": lambda store: store.write_logs([stored(1).model_copy(update={"ingestion_time": FINE})]),
    "fibers": lambda store: store.write_fibers([fiber(1).model_copy(update={"last_activity": FINE})]),
    "a fiber": lambda store: store.write_fiber(fiber(1).model_copy(update={"last_activity": FINE})),
    "a start": lambda store: store.query_logs_by_time(FINE, NOON),
    "an end": lambda store: store.query_logs_by_time(NOON, FINE),
    "a key": lambda store: store.query_logs_by_time(NOON, NOON, after=(FINE, uid(1))),
    "a condition": lambda store: store.logs.where(Logs.c.timestamp == FINE),
    "a list": lambda store: store.logs.where(Logs.c.timestamp.in_([NOON, FINE])),
    "an overlap": lambda store: store.fibers.where(Fibers.c.activity.overlaps(NOON, FINE)),
    "a duration": lambda store: store.fibers.where(Fibers.c.duration >= FINE_SPAN),
    "a width": lambda store: store.logs.histogram(FINE_SPAN),
    "a histogram": lambda store: store.logs.histogram(timedelta(days=1), start=FINE),
    "ORM": lambda store: store.session().scalar(sa.select(RawLog).where(RawLog.timestamp == FINE)),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_finer_than_a_microsecond_is_refused(store: SqlStorage, name: str) -> None:
    empty(store)
    with pytest.raises(ValueError, match=r"finer than 1 µs"), translate_errors():
        REFUSALS[name](store)
    assert is_empty(store)


def test_a_subclass_that_is_not_finer_is_taken(store: SqlStorage) -> None:
    empty(store)
    when = pd.Timestamp("2024-05-01T14:00:00.123456+02:00")
    assert type(log(1, when).timestamp) is datetime
    store.write_logs([log(1, when), log(2).model_copy(update={"timestamp": when})])
    at_that_time = [one.timestamp for one in store.query_logs_by_time(when, when)]
    assert at_that_time == [when.to_pydatetime()] * 2
    assert store.logs.where(Logs.c.timestamp == when).count() == 2
    assert sum(bucket.count for bucket in store.logs.histogram(pd.Timedelta("1h"))) == 2


# ---------------------------------------------------------------- ids


every_version = st.one_of([st.uuids(version=version) for version in (1, 2, 3, 4, 5)])
any_id = every_version | st.integers(0, 2**128 - 1).map(lambda number: UUID(int=number))


@given(key=any_id | st.sampled_from([UUID(int=0), UUID(int=2**128 - 1)]))
def test_every_id_comes_back_and_is_found(store: SqlStorage, key: UUID) -> None:
    empty(store)
    when = datetime(2024, 5, 1, tzinfo=UTC)
    other = UUID(int=key.int ^ 1 << 127)  # what a signed half would confuse it with
    store.write_logs([LogRecord(timestamp=when, source_id="s", raw_text="t", log_id=key)])
    group = FiberRecord(
        fiber_id=key, fiber_type="t", config_version=0, first_activity=when, last_activity=when
    )
    store.write_fiber(group)
    store.write_memberships([FiberMembership(log_id=key, fiber_id=key, config_version=0)])
    found = store.get_log(key)
    assert found is not None
    assert (found.log_id, type(found.log_id)) == (key, UUID)
    assert store.get_log(other) is None
    assert store.get_fiber(key) == group
    assert store.get_fiber(other) is None
    assert store.get_log_fibers(key) == [key]
    assert store.get_fiber_logs(key) == [found]
    assert store.get_log_fibers(other) == store.get_fiber_logs(other) == []
    with store.session() as session:
        assert session.scalars(sa.select(RawLog.log_id).where(RawLog.log_id == key)).all() == [key]
