"""Values: what goes in comes out, as the same type, and belongs to the caller."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import ClassVar
from uuid import UUID

import pytest

from fiberstore.checks import MAX_CONFIG_VERSION
from fiberstore.contract.storage import Storage
from fiberstore.records import FiberRecord, LogRecord, StoredLog
from fiberstore.testing.examples import (
    ATTRIBUTES,
    BEGIN_OF_TIME,
    END_OF_TIME,
    IDS,
    IN_UTC,
    INSTANTS,
    LONG_TEXT,
    MICROSECOND,
    NOON,
    TEXTS,
    all_logs,
    at,
    fiber,
    log,
    member,
    nested,
    stored,
    uid,
)

# In the process's own zone (POSIX form, so that no zone files are needed); "" stands for UTC.
_MACHINE_ZONES = ("XYZ-13:45", "EST5EDT,M3.2.0,M11.1.0")


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)  # unlike values, texts tell 1, 1.0 and true apart


class ValuesContract:
    """Time, text, JSON, ids and versions come back as they went in; what is returned is the caller's.

    Attributes:
        config_version: What the storage stamps.
        longest_name: The longest ``source_id`` and ``fiber_type`` that it takes.
        keeps_negative_zero: Whether the number -0.0 in attributes is not read back as 0.0.
    """

    config_version: ClassVar[int] = 0
    longest_name: ClassVar[str] = LONG_TEXT
    keeps_negative_zero: ClassVar[bool] = True

    @pytest.fixture(params=_MACHINE_ZONES)
    def machine_zone(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """Move the machine to another time zone."""
        monkeypatch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
        monkeypatch.undo()
        time.tzset()

    # Time

    def test_time_any_zone_in_utc_out_exact_to_the_microsecond(self, storage: Storage) -> None:
        logs = [log(number, when, text=name) for number, (name, when) in enumerate(INSTANTS.items())]
        storage.write_logs(logs)
        for number, when in enumerate(INSTANTS.values()):
            storage.write_fiber(fiber(number, first=when, last=max(when, NOON)))

        by_time = {row.raw_text: row.timestamp for row in all_logs(storage)}
        assert by_time == IN_UTC
        for number, (name, when) in enumerate(IN_UTC.items()):
            row = storage.get_log(uid(number))
            assert row is not None, name
            group = storage.get_fiber(uid(number))
            assert group is not None, name
            assert (row.timestamp, group.first_activity, group.last_activity) == (when, when, max(when, NOON))
            assert {row.timestamp.tzinfo, group.first_activity.tzinfo, group.last_activity.tzinfo} == {UTC}

    def test_time_bounds_may_be_in_any_zone(self, storage: Storage) -> None:
        storage.write_logs(
            [log(number, when, text=name) for number, (name, when) in enumerate(IN_UTC.items())]
        )
        for name, when in INSTANTS.items():
            assert [row.raw_text for row in storage.query_logs_by_time(when, when)] == [name]

    def test_time_zone_of_the_machine_does_not_matter(self, machine_zone: str, storage: Storage) -> None:
        storage.write_logs([log(number, when) for number, when in enumerate(INSTANTS.values())])
        storage.write_fiber(fiber(1, first=NOON, last=END_OF_TIME))
        assert [row.timestamp for row in all_logs(storage)] == sorted(IN_UTC.values()), machine_zone
        assert [row.timestamp for row in storage.query_logs_by_time(NOON, NOON)] == [NOON]
        assert storage.get_fiber(uid(1)) == fiber(1, first=NOON, last=END_OF_TIME)
        written = storage.get_log(uid(0))
        assert written is not None
        assert abs(datetime.now(UTC) - written.ingestion_time) < timedelta(minutes=10)

    def test_time_naive_raises_value_error(self, storage: Storage) -> None:
        storage.write_logs([log(1)])
        naive = NOON.replace(tzinfo=None)
        with pytest.raises(ValueError, match="naive"):
            storage.query_logs_by_time(naive, END_OF_TIME)
        with pytest.raises(ValueError, match="naive"):
            storage.query_logs_by_time(BEGIN_OF_TIME, naive)
        with pytest.raises(ValueError, match="naive"):
            LogRecord(timestamp=naive, source_id="web", raw_text="GET /")
        assert [row.log_id for row in all_logs(storage)] == [uid(1)]

    def test_time_beyond_year_9999_in_utc_raises_value_error(self, storage: Storage) -> None:
        storage.write_logs([log(1)])
        beyond = datetime.max.replace(tzinfo=timezone(-MICROSECOND))
        with pytest.raises(ValueError, match="9999"):
            storage.query_logs_by_time(BEGIN_OF_TIME, beyond)
        with pytest.raises(ValueError, match="9999"):
            storage.query_logs_by_time(datetime.min.replace(tzinfo=timezone(MICROSECOND)), NOON)
        assert [row.log_id for row in all_logs(storage)] == [uid(1)]

    # Text

    def test_text_comes_back_unchanged_whatever_it_holds(self, storage: Storage) -> None:
        texts = dict(enumerate((*TEXTS, LONG_TEXT)))
        storage.write_logs([log(number, 0, text=text) for number, text in texts.items()])
        assert {row.log_id.int: row.raw_text for row in storage.query_logs_by_time(NOON, NOON)} == texts

    def test_source_comes_back_unchanged_whatever_it_holds(self, storage: Storage) -> None:
        texts = dict(enumerate((*TEXTS, self.longest_name)))
        storage.write_logs([log(number + 100, 1, source=text) for number, text in texts.items()])
        sources = {row.log_id.int - 100: row.source_id for row in storage.query_logs_by_time(at(1), at(1))}
        assert sources == texts

    def test_text_of_a_fiber_type_is_matched_exactly(self, storage: Storage) -> None:
        kinds = dict(enumerate((*TEXTS, self.longest_name)))
        for number, kind in kinds.items():
            storage.write_fiber(fiber(number, kind))
        for number, kind in kinds.items():
            assert storage.query_fibers_by_type(kind) == [fiber(number, kind)]
        assert storage.query_fibers_by_type("Http") == []

    # Attributes

    def test_attributes_may_be_any_json_value(self, storage: Storage) -> None:
        values = [*ATTRIBUTES, nested(100)]
        if not self.keeps_negative_zero:
            values = [value for value in values if repr(value) != "-0.0"]
        for number, value in enumerate(values):
            storage.write_fiber(fiber(number, "request", value))
        found = storage.query_fibers_by_type("request")
        assert [_json(row.attributes) for row in found] == [_json(value) for value in values]

        values = [*values[1:], values[0]]
        for number, value in enumerate(values):
            storage.update_fiber(fiber(number, "request", value))
            row = storage.get_fiber(uid(number))
            assert row is not None
            assert _json(row.attributes) == _json(value)

    # Ids

    def test_ids_of_every_version_find_their_row_and_no_other(self, storage: Storage) -> None:
        left_out = LogRecord(timestamp=NOON, source_id="web", raw_text="its id is made from its time")
        ids = (*IDS, left_out.log_id)
        rows = [left_out, *(log(key.int, text=str(key), when=0) for key in IDS)]
        assert storage.write_logs(rows) == len(ids)
        for key in ids:
            storage.write_fiber(fiber(key.int, "request", str(key), first=NOON))
            storage.write_memberships([member(key.int, key.int)])

        texts = {row.log_id: row.raw_text for row in rows}
        for key in ids:
            row = storage.get_log(key)
            assert row is not None
            assert (row.log_id, row.raw_text) == (key, texts[key])
            assert storage.get_fiber(key) == fiber(key.int, "request", str(key), first=NOON)
            assert storage.get_log_fibers(key) == [key]
            assert [found.log_id for found in storage.get_fiber_logs(key)] == [key]
        assert storage.get_log(UUID(int=2)) is None
        assert storage.get_fiber(UUID(int=2)) is None

    # Versions

    def test_config_version_of_the_storage_is_stamped_on_a_log_record(self, storage: Storage) -> None:
        before = datetime.now(UTC)
        storage.write_logs([log(1), stored(2, self.config_version + 1)])
        after = datetime.now(UTC)
        stamped = storage.get_log(uid(1))
        assert stamped is not None
        assert stamped.config_version == self.config_version
        assert before <= stamped.ingestion_time <= after

    def test_config_version_and_ingestion_time_of_a_stored_log_are_kept(self, storage: Storage) -> None:
        logs = [
            stored(1, 0, ingested=BEGIN_OF_TIME),
            stored(2, 2**63, ingested=END_OF_TIME),
            stored(3, MAX_CONFIG_VERSION, ingested=NOON.astimezone(timezone(timedelta(hours=9)))),
        ]
        assert storage.write_logs([*logs, log(4)]) == 4
        assert storage.query_logs_by_time(at(1), at(3)) == logs

    def test_config_version_is_kept_from_0_to_64_bits(self, storage: Storage) -> None:
        versions = (0, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, MAX_CONFIG_VERSION)
        fibers = [fiber(number, config_version=version) for number, version in enumerate(versions)]
        for row in fibers:
            storage.write_fiber(row)
        memberships = [member(1, number, version) for number, version in enumerate(versions)]
        assert storage.write_memberships(memberships) == len(versions)
        assert storage.query_fibers_by_type("request") == fibers

    # Ownership

    def test_ownership_changing_what_was_returned_changes_no_row(self, storage: Storage) -> None:
        written = fiber(1, attributes={"user": "ada", "ids": [1, 2]})
        storage.write_fiber(written)
        storage.write_logs([log(1)])
        storage.write_memberships([member(1, 1)])

        for _ in range(2):
            group = storage.get_fiber(uid(1))
            assert group == fiber(1, attributes={"user": "ada", "ids": [1, 2]})
            by_type = storage.query_fibers_by_type("request")
            assert by_type == [group]
            for row in (group, *by_type):
                assert isinstance(row.attributes, dict)
                ids = row.attributes["ids"]
                assert isinstance(ids, list)
                ids.append(3)
                row.attributes["user"] = "eve"
            ids_of_log = storage.get_log_fibers(uid(1))
            assert ids_of_log == [uid(1)]
            ids_of_log.clear()
            by_type.clear()
            for logs in (all_logs(storage), storage.get_fiber_logs(uid(1))):
                assert [row.log_id for row in logs] == [uid(1)]
                logs.clear()

    def test_ownership_changing_what_was_written_changes_no_row(self, storage: Storage) -> None:
        inner: list[object] = [1, 2]
        first = fiber(1, attributes={"ids": [1, 2]})
        second = fiber(2, attributes={"ids": "replaced"})
        storage.write_fiber(first)
        storage.write_fiber(second)
        storage.update_fiber(second := fiber(2, attributes={"ids": [1, 2]}))
        batch = [log(1)]
        storage.write_logs(batch)

        batch.append(log(2))
        for row in (first, second):
            assert isinstance(row.attributes, dict)
            ids = row.attributes["ids"]
            assert ids == inner
            assert isinstance(ids, list)
            ids.append(3)
            row.attributes["new"] = 1
        assert storage.query_fibers_by_type("request") == [
            fiber(1, attributes={"ids": [1, 2]}),
            fiber(2, attributes={"ids": [1, 2]}),
        ]
        assert [row.log_id for row in all_logs(storage)] == [uid(1)]

    def test_ownership_no_type_of_the_driver_leaks_out(self, storage: Storage) -> None:
        storage.write_logs([log(1)])
        storage.write_fiber(fiber(1, attributes={"a": [1]}))
        storage.write_memberships([member(1, 1)])

        for row in (storage.get_log(uid(1)), *all_logs(storage), *storage.get_fiber_logs(uid(1))):
            assert type(row) is StoredLog
            assert [type(value) for _, value in row] == [datetime, str, str, UUID, datetime, int]
            assert row.timestamp.tzinfo is row.ingestion_time.tzinfo is UTC
        for group in (storage.get_fiber(uid(1)), *storage.query_fibers_by_type("request")):
            assert type(group) is FiberRecord
            assert [type(value) for _, value in group] == [UUID, str, int, dict, datetime, datetime, bool]
            assert group.first_activity.tzinfo is group.last_activity.tzinfo is UTC
        assert [type(key) for key in storage.get_log_fibers(uid(1))] == [UUID]
        assert type(storage.write_logs([log(2)])) is int
        assert type(storage.write_memberships([member(2, 1)])) is int
