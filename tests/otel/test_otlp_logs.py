"""Logs of OTLP/JSON files: all that is in them, each once, and no malformed one without a word."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from fiberstore import DuckDBStorage, Fibers, SqlStorage
from fiberstore.otel import OtlpError, OtlpImport, import_logs
from fiberstore.testing.examples import fiber

TRACE = "5b8efff798038103d269b633813fc60c"
OTHER = "0af7651916cd43dd8448eb211c80319c"
SPANS = ("eee19b7ec3c1b174", "00f067aa0ba902b7")
FIRST_NS = 1_714_564_800_000_000_999


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


def record(number: int, trace_id: str = "", span_id: str = "", **fields: object) -> dict[str, Any]:
    return {
        "timeUnixNano": str(FIRST_NS + number * 1_000_000_000),
        "severityText": "INFO",
        "body": {"stringValue": f"line {number}"},
        "traceId": trace_id,
        "spanId": span_id,
        **fields,
    }


def request(*records: dict[str, Any], service: str = "shop", scope: str = "") -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    scopes = [{"scope": {"name": scope}, "logRecords": list(records)}]
    return {"resourceLogs": [{"resource": resource, "scopeLogs": scopes}]}


def written(path: Path, *requests: dict[str, Any], end: str = "\n") -> Path:
    path.write_text("\n".join(map(json.dumps, requests)) + end, encoding="utf-8")
    return path


def at(number: int) -> datetime:
    return datetime(2024, 5, 1, 12, tzinfo=UTC) + timedelta(seconds=number)


def test_otlp_logs_become_lines_and_traces(storage: SqlStorage, tmp_path: Path) -> None:
    path = written(
        tmp_path / "logs.json",
        request(record(2, TRACE, SPANS[0]), record(0, TRACE.upper(), SPANS[1]), record(1)),
        {},
        {"resourceSpans": []},
        request(record(5, TRACE), record(3, OTHER), record(4, timeUnixNano="0"), service="mail"),
    )
    assert import_logs(storage, path) == OtlpImport(6, 5, 2, 4, without_time=1, other_signals=1)
    texts = [(row.source_id, row.timestamp, row.raw_text) for row in storage.get_fiber_logs(UUID(hex=TRACE))]
    assert texts == [
        ("shop", at(0), f"INFO line 0 trace_id={TRACE} span_id={SPANS[1]}"),
        ("shop", at(2), f"INFO line 2 trace_id={TRACE} span_id={SPANS[0]}"),
        ("mail", at(5), f"INFO line 5 trace_id={TRACE}"),
    ]
    by_key = Fibers.c.keys["trace_id"] == TRACE
    (trace,) = storage.fibers.where(by_key, Fibers.c.keys["span_id"] == SPANS[0]).page().items
    assert (trace.fiber_id, trace.fiber_type, trace.attributes) == (UUID(TRACE), "trace", {"trace_id": TRACE})
    assert (trace.first_activity, trace.last_activity, trace.closed) == (at(0), at(5), False)
    assert storage.logs.count() == 5


def test_otlp_logs_read_again_or_grown_add_only_what_is_new(storage: SqlStorage, tmp_path: Path) -> None:
    first, second = request(record(1, TRACE), record(1, TRACE)), request(record(0, TRACE), record(9))
    path = written(tmp_path / "logs.json", first, second, end="")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # while the collector writes the last line
    assert import_logs(storage, path) == OtlpImport(2, 2, 1, 2, is_complete=False)
    path.write_bytes(whole)
    assert import_logs(storage, path, batch_rows=1) == OtlpImport(4, 2, 0, 1)
    changed = storage.get_fiber(UUID(TRACE))
    assert changed is not None
    assert (changed.first_activity, changed.last_activity) == (at(0), at(1))
    storage.update_fiber(changed.model_copy(update={"closed": True, "attributes": {"mine": 1}}))
    kept = storage.get_fiber(UUID(TRACE))
    assert import_logs(storage, path) == OtlpImport(4, 0, 0, 0)
    assert storage.get_fiber(UUID(TRACE)) == kept


def test_otlp_logs_of_a_merged_trace_join_the_survivor(storage: SqlStorage, tmp_path: Path) -> None:
    import_logs(storage, written(tmp_path / "1.json", request(record(1, TRACE), record(2, OTHER))))
    storage.merge_fibers({UUID(OTHER): UUID(TRACE)})
    import_logs(storage, written(tmp_path / "2.json", request(record(7, OTHER))))
    (survivor,) = storage.fibers.iter_records()
    assert (survivor.fiber_id, survivor.last_activity) == (UUID(TRACE), at(7))
    assert len(storage.get_fiber_logs(survivor.fiber_id)) == 3
    assert storage.fibers.where(Fibers.c.keys["trace_id"] == OTHER).count() == 1


def test_otlp_traces_belong_to_the_active_generation(storage: SqlStorage, tmp_path: Path) -> None:
    storage.write_fiber(fiber(1, config_version=7))
    storage.versions.activate(7)
    import_logs(storage, written(tmp_path / "logs.json", request(record(1, TRACE))))
    trace = storage.get_fiber(UUID(TRACE))
    assert trace is not None
    assert trace.config_version == 7


def test_otlp_lines_hold_every_part_of_a_record(duckdb_storage: DuckDBStorage, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "text": {"stringValue": "two words"},
        "empty": {"stringValue": ""},
        "odd": {"stringValue": "\0\ud800"},
        "yes": {"boolValue": True},
        "n": {"intValue": "-9223372036854775808"},
        "x": {"doubleValue": 1.5},
        "raw": {"bytesValue": "AAE="},
        "list": {"arrayValue": {"values": [{"intValue": 1}, {"stringValue": "é"}]}},
        "map": {"kvlistValue": {"values": [{"key": "a", "value": {}}]}},
        "later": {"kindOfLater": 1},
    }
    attributes = [{"key": key, "value": value} for key, value in values.items()]
    fields: dict[str, Any] = {"severityText": "", "severityNumber": 18, "eventName": "paid", "unknown": [1]}
    path = written(
        tmp_path / "logs.json",
        request(record(0, attributes=attributes, **fields), scope="shop.cart"),
        request({"observedTimeUnixNano": FIRST_NS, "body": {"kvlistValue": {"values": attributes[3:4]}}}),
    )
    import_logs(duckdb_storage, path)
    assert {row.raw_text for row in duckdb_storage.logs.iter_records()} == {
        (
            'ERROR2 line 0 event_name=paid text="two words" empty= odd="\\u0000\\ud800" yes=true '
            'n=-9223372036854775808 x=1.5 raw="AAE=" list=[1, "é"] map={"a": null} later=null '
            "otel.scope.name=shop.cart"
        ),
        '{"yes": true}',
    }


@pytest.mark.parametrize("indent", [None, 2])
def test_otlp_files_may_be_one_object(
    duckdb_storage: DuckDBStorage, tmp_path: Path, indent: int | None
) -> None:
    message = ExportLogsServiceRequest()
    json_format.ParseDict(request(record(0), record(1)), message)
    path = tmp_path / "logs.json"
    path.write_text("\ufeff" + json_format.MessageToJson(message, indent=indent), encoding="utf-8")
    assert import_logs(duckdb_storage, path).logs_new == 2


MALFORMED: dict[str, tuple[str, str]] = {
    "text": ("no json\n", "line 1: no JSON at column 1"),
    "a broken line": ('{}\n{"resourceLogs":\n{}\n', "line 2: no JSON at column"),
    "a list": ("[]", "line 1: no object with resourceLogs, but \\[\\]"),
    "another object": (
        '{}\n{"resource_logs": []}',
        'line 2: no object with resourceLogs, but {"resource_logs',
    ),
    "no UTF-8": ("{}\n\udcff{}\n", "line 2: no UTF-8"),
    "no list": ('{"resourceLogs": {}}', "resourceLogs must be a list of objects, got {}"),
    "no objects": ('{"resourceLogs": [1]}', "resourceLogs must be a list of objects, got \\[1\\]"),
    "no resource": ('{"resourceLogs": [{"resource": 1}]}', "resource must be an object, got 1"),
    "base64": (json.dumps(request(record(0, "W47/95gDgQPSabYzgT/GDA=="))), "traceId must be 32 hex digits"),
    "short id": (json.dumps(request(record(0, TRACE, "1"))), "spanId must be 16 hex digits, got '1'"),
    "no time": (json.dumps(request(record(0, timeUnixNano="now"))), "timeUnixNano must be a whole number"),
    "a late time": (
        json.dumps(request(record(0, timeUnixNano=2**64))),
        "timeUnixNano must be a whole number",
    ),
    "no body": (json.dumps(request(record(0, body="text"))), "body must be an object, got 'text'"),
    "no number": (json.dumps(request(record(0, body={"intValue": 1.5}))), "intValue must be a whole number"),
    "no text": (
        json.dumps(request(record(0, body={"stringValue": []}))),
        "stringValue must be a single value",
    ),
    "no bytes": (json.dumps(request(record(0, body={"bytesValue": "?"}))), "bytesValue must be base64"),
    "no key": (json.dumps(request(record(0, attributes=[{"key": 1}]))), "key must be text, got 1"),
    "deep values": (
        json.dumps(request(record(0))).replace(
            '{"stringValue": "line 0"}', '{"arrayValue": {"values": [' * 450 + "{}" + "]}}" * 450
        ),
        "nested too deeply",
    ),
    "too deep": ("[" * 100_000, "nested too deeply"),
}


def test_malformed_otlp_files_are_refused(duckdb_storage: DuckDBStorage, tmp_path: Path) -> None:
    path = tmp_path / "logs.json"
    for text, message in MALFORMED.values():
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(OtlpError, match=message) as refused:
            import_logs(duckdb_storage, path)
        assert str(refused.value).startswith(f"{path}, line ")
    assert duckdb_storage.logs.count() == 0
