"""Rows of the tables as records.

Times are selected as numbers, which come three times as fast as datetimes.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import sqlalchemy as sa

from fiberstore.errors import SerializationError
from fiberstore.json_text import load_json
from fiberstore.records import FiberKey, FiberRecord, StoredLog, construct_unvalidated
from fiberstore.sql.functions import TimeUs
from fiberstore.sql.models import check_stored_version

T = TypeVar("T")
LogRow: TypeAlias = tuple[UUID, T, str, str, T | None, int]
FiberRow: TypeAlias = tuple[UUID, str, int, str | None, T, T, bool]
KeyRow: TypeAlias = tuple[UUID, str, str, T, UUID | None, bool]


def log_columns(logs: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """Return the columns that ``to_logs`` needs, of ``raw_logs`` or of what has its columns."""
    columns = logs.c
    return [
        columns.log_id,
        TimeUs(columns.timestamp),
        columns.source_id,
        columns.raw_text,
        TimeUs(columns.ingestion_time),
        columns.config_version,
    ]


def fiber_columns(fibers: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """Return the columns that ``to_fibers`` needs, of ``fibers`` or of what has its columns."""
    columns = fibers.c
    return [
        columns.fiber_id,
        columns.fiber_type,
        columns.config_version,
        columns.attributes,
        TimeUs(columns.first_activity),
        TimeUs(columns.last_activity),
        columns.closed,
    ]


def key_columns(keys: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """Return the columns that ``to_keys`` needs, of ``fiber_keys`` or of what has its columns."""
    columns = keys.c
    return [
        columns.fiber_id,
        columns.name,
        columns.value,
        TimeUs(columns.first_timestamp),
        columns.first_log_id,
        columns.starts,
    ]


def to_logs(rows: Iterable[LogRow[T]], to_time: Callable[[T], datetime]) -> list[StoredLog]:
    """Make records of rows of ``raw_logs``."""
    logs = []
    for log_id, timestamp, source_id, raw_text, ingestion_time, config_version in rows:
        if ingestion_time is None:
            raise SerializationError(f"log {log_id} has no finite ingestion_time; another client wrote it")
        logs.append(
            construct_unvalidated(
                StoredLog,
                {
                    "timestamp": to_time(timestamp),
                    "source_id": source_id,
                    "raw_text": raw_text,
                    "log_id": log_id,
                    "ingestion_time": to_time(ingestion_time),
                    "config_version": check_stored_version(config_version),
                },
            )
        )
    return logs


def to_fibers(rows: Iterable[FiberRow[T]], to_time: Callable[[T], datetime]) -> list[FiberRecord]:
    """Make records of rows of ``fibers``."""
    return [
        construct_unvalidated(
            FiberRecord,
            {
                "fiber_id": fiber_id,
                "fiber_type": fiber_type,
                "config_version": check_stored_version(config_version),
                "attributes": load_json(attributes),
                "first_activity": to_time(first_activity),
                "last_activity": to_time(last_activity),
                "closed": closed,
            },
        )
        for fiber_id, fiber_type, config_version, attributes, first_activity, last_activity, closed in rows
    ]


def to_keys(rows: Iterable[KeyRow[T]], to_time: Callable[[T], datetime]) -> list[FiberKey]:
    """Make records of rows of ``fiber_keys``."""
    return [
        construct_unvalidated(
            FiberKey,
            {
                "fiber_id": fiber_id,
                "name": name,
                "value": value,
                "first_timestamp": to_time(first_timestamp),
                "first_log_id": first_log_id,
                "starts": starts,
            },
        )
        for fiber_id, name, value, first_timestamp, first_log_id, starts in rows
    ]
