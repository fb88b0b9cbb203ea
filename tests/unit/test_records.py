"""Records and ids: what is refused where it enters, and what ids promise."""

import os
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from fiberstore import (
    ConnectionLostError,
    DuplicateError,
    FiberMembership,
    FiberRecord,
    LogRecord,
    NotFoundError,
    SchemaVersionError,
    SerializationError,
    StorageClosedError,
    StorageLockedError,
    config_version,
    new_log_id,
    stable_fiber_id,
    stable_log_id,
)
from fiberstore.exchange.schemas import Kind, schema_of
from fiberstore.records import FiberKey, StoredLog
from fiberstore.sql.arrow import column_of
from fiberstore.sql.models import KeyedFiber, RegisteredVersion
from fiberstore.sql.rows import MODELS, columns_of

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
FINE = pd.Timestamp("2024-05-01T12:00:00.123456789Z")
AWARE = st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds it


def a_log(**fields: object) -> LogRecord:
    return LogRecord.model_validate({"timestamp": NOON, "source_id": "s", "raw_text": "t"} | fields)


def a_fiber(**fields: object) -> FiberRecord:
    values: dict[str, object] = {
        "fiber_id": UUID(int=1), "fiber_type": "t", "config_version": 0,
        "first_activity": NOON, "last_activity": NOON,
    }  # fmt: skip
    return FiberRecord(**(values | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"timestamp": NOON.replace(tzinfo=None)}, "is naive; give it a time zone"),
        ({"timestamp": FINE}, "finer than 1 µs"),
        ({"timestamp": pd.NaT}, "is no time"),
        ({"timestamp": 1714564800}, "datetime"),
        ({"timestamp": "2024-05-01T12:00:00Z"}, "datetime"),
        ({"timestamp": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))}, "years 1 to 9999"),
        ({"timestamp": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}, "years 1 to 9999"),
        ({"raw_text": "a\0b"}, "NUL at character 1"),
        ({"raw_text": "a\ud800"}, "lone surrogate .* at character 1"),
        ({"source_id": "\0"}, "NUL"),
        ({"raw_text": b"bytes"}, "valid string"),
        ({"raw_text": None}, "valid string"),
        ({"log_id": "no uuid"}, "valid UUID"),
        ({"surprise": 1}, "Extra inputs"),
    ],
)
def test_bad_logs_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        a_log(**fields)


@pytest.mark.parametrize("version", [-1, 2**64, True, 1.0, "1", None])
def test_bad_config_versions_are_refused(version: object) -> None:
    with pytest.raises(ValidationError, match="config_version"):
        FiberMembership(log_id=uuid4(), fiber_id=uuid4(), config_version=version)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [0, 2**63, 2**64 - 1])
def test_every_unsigned_64_bit_number_is_a_config_version(version: int) -> None:
    assert a_fiber(config_version=version).config_version == version


def deep(levels: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "attributes",
    [
        float("nan"), {"a": [float("inf")]}, -float("inf"), object(), {"a": uuid4()}, {1: "key"}, (1, 2),
        b"x",        {"a": "\0"}, {"\0": 1}, "\ud800", {"\ud800": 1}, {1, 2},
        pytest.param(10**5000, id="huge"), pytest.param(deep(5000), id="deep"),
    ],
)  # fmt: skip
def test_attributes_that_are_no_storable_json_raise_serialization_error(attributes: object) -> None:
    with pytest.raises(SerializationError, match="attributes"):
        a_fiber(attributes=attributes)


def test_a_serialization_error_is_a_value_error_and_other_faults_come_first() -> None:
    assert issubclass(SerializationError, ValueError)
    with pytest.raises(ValidationError, match="fiber_type"):
        a_fiber(attributes=float("nan"), fiber_type=None)


@pytest.mark.parametrize(
    "attributes", [None, {}, [], 0, "", "\\u0000", "\\\\u0000", {"a": {"b": [1, None, "é"]}}, deep(200)]
)
def test_any_other_json_value_is_taken(attributes: JsonValue) -> None:
    assert a_fiber(attributes=attributes).attributes == attributes


def test_a_fiber_does_not_end_before_it_begins() -> None:
    with pytest.raises(ValidationError, match="is after"):
        a_fiber(last_activity=NOON - timedelta(microseconds=1))


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        a_log().raw_text = "other"  # type: ignore[misc]


def test_times_are_kept_in_utc_to_the_microsecond() -> None:
    berlin = datetime(2024, 10, 27, 2, 30, 0, 123456, tzinfo=ZoneInfo("Europe/Berlin"))
    assert a_log(timestamp=berlin).timestamp == datetime(2024, 10, 27, 0, 30, 0, 123456, tzinfo=UTC)
    assert a_log(timestamp=berlin.replace(fold=1)).timestamp == datetime(
        2024, 10, 27, 1, 30, 0, 123456, tzinfo=UTC
    )
    assert a_log(timestamp=berlin).timestamp.tzinfo is UTC


@pytest.mark.slow
def test_nothing_depends_on_the_time_zone_of_the_machine() -> None:
    program = (
        "from datetime import *; from fiberstore import *\n"
        "noon = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=3)))\n"
        "log = LogRecord(timestamp=noon, source_id='s', raw_text='t',"
        " log_id=stable_log_id('s', 1, 't', noon))\n"
        "with DuckDBStorage(':memory:') as storage:\n"
        "    storage.init_schema(); storage.write_logs([log])\n"
        "    print(storage.get_log(log.log_id).timestamp, log.log_id)\n"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"TZ": zone}, check=True, capture_output=True, text=True,
        ).stdout
        for zone in ("America/New_York", "Asia/Kathmandu")
    }  # fmt: skip
    assert len(answers) == 1
    assert answers.pop().startswith("2024-05-01 09:00:00+00:00 018f33")


@given(AWARE, AWARE)
def test_ids_sort_like_the_times_they_come_from(one: datetime, other: datetime) -> None:
    if one < other:
        assert new_log_id(one) < new_log_id(other)
        assert stable_log_id("b", 9, "b", one) < stable_log_id("a", 1, "a", other)


def test_ids_of_one_time_sort_as_they_were_made() -> None:
    ids = [a_log().log_id for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


@given(AWARE, st.text(), st.text(), st.integers(0, 2**70))
def test_stable_ids_are_the_same_again_and_are_uuids_of_version_7(
    time: datetime, source_id: str, text: str, position: int
) -> None:
    log_id = stable_log_id(source_id, position, text, time)
    assert log_id == stable_log_id(source_id, position, text, time.astimezone(timezone(timedelta(hours=5))))
    assert log_id.version == 7
    assert log_id.variant == "specified in RFC 4122"
    assert log_id.int >> 80 == (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def test_stable_ids_tell_sources_positions_and_texts_apart() -> None:
    ids = {
        stable_log_id(source_id, position, text, NOON)
        for source_id in ("a", "b", "ab") for position in range(100) for text in ("", "a", "b", "bc")
    }  # fmt: skip
    assert len(ids) == 1200
    in_order = [stable_log_id("a", position, "same", NOON) for position in range(100)]
    assert in_order == sorted(in_order)


def test_a_time_before_1970_has_an_id_too() -> None:
    assert new_log_id(datetime(1, 1, 1, tzinfo=UTC)) < new_log_id(NOON)


def test_a_position_is_not_negative() -> None:
    with pytest.raises(ValueError, match="-1"):
        stable_log_id("s", -1, "t", NOON)


def test_fiber_ids_depend_on_type_version_and_first_line() -> None:
    one, other = uuid4(), uuid4()
    ids = {
        stable_fiber_id(name, version, log)
        for name in "ab"
        for version in (0, 2**64 - 1)
        for log in (one, other)
    }
    assert len(ids) == 8
    assert stable_fiber_id("a", 0, one) in ids


def test_config_version_is_the_first_8_bytes_of_the_sha_256(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_bytes(b"abc")
    assert config_version(b"abc") == 0xBA7816BF8F01CFEA
    assert config_version("abc") == config_version(tmp_path / "rules.toml") == config_version(b"abc")


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError(UUID(int=1)), DuplicateError(UUID(int=2)), SchemaVersionError("2", "1"),
        StorageLockedError("file", 1), ConnectionLostError("broken", True), StorageClosedError(),
    ],
)  # fmt: skip
def test_errors_with_attributes_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_time_in_json_is_taken_whole_or_refused() -> None:
    text = '{"timestamp": "2024-05-01T14:00:00.123456%s+02:00", "source_id": "s", "raw_text": "t"}'
    log = LogRecord.model_validate_json(text % "")
    assert log.timestamp == NOON.replace(microsecond=123456)
    assert log.timestamp.tzinfo is UTC
    assert LogRecord.model_validate_json(log.model_dump_json()) == log
    with pytest.raises(ValidationError, match="more than 6 digits"):
        LogRecord.model_validate_json(text % "789")


@pytest.mark.parametrize("kind", [StoredLog, FiberRecord, FiberMembership, FiberKey])
def test_a_field_of_a_record_is_a_column_of_its_table_and_of_its_files(kind: Kind) -> None:
    assert [column.key for column in columns_of(kind, MODELS[kind].__table__)] == list(kind.model_fields)
    assert set(schema_of(kind).names) == set(kind.model_fields)


def test_a_column_that_may_be_null_holds_none_of_any_type() -> None:
    columns, id_ = RegisteredVersion.__table__.c, UUID(int=7)
    assert column_of(columns.content, ["a", None]).to_pylist() == ["a", None]
    assert column_of(columns.parent, [None, 3]).to_pylist() == [None, 3]
    assert column_of(KeyedFiber.__table__.c.first_log_id, [id_, None]).to_pylist() == [id_, None]
