"""Fibers as OTLP traces: the protocol's own package reads the file, and finds what the store holds."""

import base64
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from google.protobuf import json_format
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from fiberstore import DatabaseError, DuckDBStorage, FiberKey, Fibers, SqlStorage
from fiberstore.otel import TraceExport, export_traces
from fiberstore.testing.examples import NOON, at, fiber, log, member, uid

if TYPE_CHECKING:
    from pydantic import JsonValue

TRACE = "5b8efff798038103d269b633813fc60c"


@pytest.fixture
def storage(any_storage: SqlStorage) -> SqlStorage:
    return any_storage


def spans_of(path: Path) -> list[tuple[str, Span]]:
    """Return the spans of a file, by their ids, each with its service."""
    data = json_format.Parse(path.read_text(encoding="utf-8"), TracesData(), ignore_unknown_fields=False)
    found = []
    for of_resource in data.resource_spans:
        (service,) = of_resource.resource.attributes
        assert service.key == "service.name"
        for of_scope in of_resource.scope_spans:
            assert of_scope.scope.name == "fiberstore"
            found += [(service.value.string_value, span) for span in of_scope.spans]
    return found


def plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


def attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    return {pair.key: plain(pair.value) for pair in pairs}


def time_of(time_ns: int) -> datetime:
    assert time_ns % 1_000 == 0
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1_000)


def key(number: int, name: str, value: str) -> FiberKey:
    return FiberKey(fiber_id=uid(number), name=name, value=value, first_timestamp=NOON)


def identifier(digits: str) -> bytes:
    """Return the bytes that JSON's hex digits are, where the protobuf package expects base64."""
    return base64.b64decode(digits)


def test_fibers_are_traces_with_a_span_for_each_source(storage: SqlStorage, tmp_path: Path) -> None:
    odd = 'é "quoted"\n\x1b \u2028'
    storage.write_logs([log(1, source="web"), log(2, source="db", text=odd), log(4, source="web", text="")])
    given: dict[str, JsonValue] = {"n": 1, "x": 1.5, "yes": True, "none": None}
    given |= {"list": ["a", {"b": 2**63}], "request": ["r"]}
    storage.write_fiber(fiber(9, attributes=given, first=at(0), last=at(5), closed=True))
    storage.write_keys([key(9, "request", "r"), key(9, "user", "ann"), key(9, "user", "bob")])
    storage.write_memberships([member(1, 9), member(2, 9), member(4, 9)])
    path = tmp_path / "traces.json"
    assert export_traces(storage, path) == TraceExport(1, 3, 0)
    spans = spans_of(path)
    assert [(service, span.name, len(span.events)) for service, span in spans] == [
        ("web", "request", 0),
        ("web", "web", 2),
        ("db", "db", 1),
    ]
    (_, root), (_, web), (_, db) = spans
    assert {span.trace_id for _, span in spans} == {identifier(uid(9).hex)}
    assert [span.parent_span_id for _, span in spans] == [b"", root.span_id, root.span_id]
    assert len({span.span_id for _, span in spans}) == 3
    lasted = [(time_of(span.start_time_unix_nano), time_of(span.end_time_unix_nano)) for _, span in spans]
    assert lasted == [(at(0), at(5)), (at(1), at(4)), (at(2), at(2))]
    assert [(event.name, time_of(event.time_unix_nano)) for event in [*web.events, *db.events]] == [
        ("GET /", at(1)),
        ("", at(4)),
        (odd, at(2)),
    ]
    assert attributes(web.events[0].attributes) == {"log.id": str(uid(1))}
    assert attributes(root.attributes) == {
        "fiber.id": str(uid(9)),
        "fiber.config_version": "0000000000000003",
        "fiber.closed": True,
        "fiber.key.request": "r",
        "fiber.key.user": ["ann", "bob"],
        "n": 1,
        "x": 1.5,
        "yes": True,
        "none": None,
        "list": ["a", {"b": float(2**63)}],
    }


def test_trace_ids_are_keys_of_fibers(storage: SqlStorage, tmp_path: Path) -> None:
    storage.write_fibers([fiber(number, attributes=[number]) for number in range(1, 5)])
    storage.write_keys(
        [
            key(1, "trace_id", TRACE.upper()),
            key(2, "trace_id", "0" * 32),
            key(3, "trace_id", "a" * 32),
            key(3, "trace_id", "b" * 32),
            key(4, "trace_id", "no trace"),
        ]
    )
    path = tmp_path / "traces.json"
    assert export_traces(storage, path) == TraceExport(4, 0, 0)
    found = spans_of(path)
    assert [span.trace_id for _, span in found] == [
        identifier(digits) for digits in (TRACE, uid(2).hex, uid(3).hex, uid(4).hex)
    ]
    assert {service for service, _ in found} == {"unknown_service"}
    assert [attributes(span.attributes)["fiber.attributes"] for _, span in found] == [[1], [2], [3], [4]]


def test_traces_of_one_source_are_one_span_each(storage: SqlStorage, tmp_path: Path) -> None:
    numbers = range(1, 451)
    storage.write_logs([log(number) for number in numbers])
    storage.write_fibers([fiber(number, "login" if number % 2 else "job") for number in numbers])
    storage.write_memberships([member(number, number) for number in numbers])
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    logins = storage.fibers.where(Fibers.c.fiber_type == "login")
    done: list[int] = []
    assert export_traces(storage, first, logins, on_fibers=done.append) == TraceExport(225, 225, 0)
    assert sum(done) == 225
    assert [span.name for _, span in spans_of(first)] == ["login"] * 225
    assert all(len(span.events) == 1 and not span.parent_span_id for _, span in spans_of(first))
    export_traces(storage, second, logins)
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(DatabaseError, match="exists already"):
        export_traces(storage, first)


def test_traces_before_1970_are_counted(duckdb_storage: DuckDBStorage, tmp_path: Path) -> None:
    old = datetime(1969, 12, 31, tzinfo=UTC)
    duckdb_storage.write_fibers([fiber(1, first=old, last=NOON), fiber(2), fiber(0)])
    path = tmp_path / "traces.json"
    assert export_traces(duckdb_storage, path) == TraceExport(2, 0, 1)
    ids = [span["spans"][0]["traceId"] for span in _scopes(path)]
    assert UUID(int=0).hex not in ids
    empty = tmp_path / "empty.json"
    assert export_traces(duckdb_storage, empty, duckdb_storage.fibers.where(Fibers.c.closed.is_(True))) == (
        TraceExport(0, 0, 0)
    )
    assert json.loads(empty.read_text()) == {"resourceSpans": []}


def _scopes(path: Path) -> list[dict[str, Any]]:
    return [scope for item in json.loads(path.read_text())["resourceSpans"] for scope in item["scopeSpans"]]
