"""Records for tests of DuckDB's own."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from fiberstore import (
    FiberRecord,
    LogRecord,
)

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def a_fiber(**fields: object) -> FiberRecord:
    values = {
        "fiber_id": uuid4(), "fiber_type": "request", "config_version": 1, "attributes": {"n": 0},
        "first_activity": NOON, "last_activity": NOON,
    }  # fmt: skip
    return FiberRecord.model_validate(values | fields)


def some_logs(count: int, source_id: str = "api") -> list[LogRecord]:
    return [
        LogRecord(timestamp=NOON + timedelta(seconds=number), source_id=source_id, raw_text=f"line {number}")
        for number in range(count)
    ]
