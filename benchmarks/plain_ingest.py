"""The whole job of ``fiberstore ingest`` by hand, for one format: a mark to measure against.

It reads syslog lines, dates them, groups them by process id and silence, gives them stable ids, and writes
Arrow tables of 20,000 lines into DuckDB, into the same three tables with the same indexes. It checks nothing,
knows one file and one kind of line, cannot resume, and keeps all fibers in memory.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.stores.duckdb_alone import DDL

_LINE = re.compile(r"(\w{3} +\d+ \d\d:\d\d:\d\d) .*?sshd\[(\d+)\]")
_BATCH_LINES = 20_000
_GAP_US = 60_000_000
_TIME = pa.timestamp("us", "UTC")
_VERSION = 1


def ingest(log: Path, store: Path, year: int) -> tuple[int, int]:
    """Store the lines of a file with their fibers; return the numbers of both."""
    connection = duckdb.connect(store)
    for statement in DDL:
        connection.execute(statement)
    times: dict[str, int] = {}
    latest: dict[str, list] = {}  # type: ignore[type-arg]  # fiber id, first and last time, by process id
    fibers = []
    lines = 0
    with log.open(encoding="utf-8") as file:
        for batch in _batches(file):
            log_ids, fiber_ids, stamps = [], [], []
            for number, line in enumerate(batch, lines + 1):
                match = _LINE.match(line)
                assert match is not None
                stamp, pid = match.groups()
                time_us = times.get(stamp)
                if time_us is None:
                    parsed = datetime.strptime(f"{year} {stamp}", "%Y %b %d %H:%M:%S").replace(tzinfo=UTC)
                    time_us = times[stamp] = int(parsed.timestamp()) * 1_000_000
                digest = hashlib.blake2b(b"%d %b" % (number, line.encode()), digest_size=10).digest()
                log_id = (time_us // 1000).to_bytes(6, "big") + digest
                fiber = latest.get(pid)
                if fiber is None or time_us - fiber[2] > _GAP_US:
                    fiber = latest[pid] = [log_id, time_us, time_us, pid]
                    fibers.append(fiber)
                fiber[2] = time_us
                log_ids.append(log_id)
                fiber_ids.append(fiber[0])
                stamps.append(time_us)
            lines += len(batch)
            _write(
                connection,
                "raw_logs",
                {
                    "log_id": _uuids(log_ids),
                    "timestamp": pa.array(stamps, _TIME),
                    "source_id": pa.repeat("sshd", len(batch)),
                    "raw_text": pa.array(batch),
                    "ingestion_time": pa.repeat(datetime.now(UTC), len(batch)),
                    "config_version": pa.repeat(_VERSION, len(batch)),
                },
            )
            _write(
                connection,
                "fiber_memberships",
                {
                    "log_id": _uuids(log_ids),
                    "fiber_id": _uuids(fiber_ids),
                    "config_version": pa.repeat(_VERSION, len(batch)),
                },
            )
    _write(connection, "fibers", {
        "fiber_id": _uuids([fiber[0] for fiber in fibers]),
        "fiber_type": pa.repeat("login", len(fibers)),
        "config_version": pa.repeat(_VERSION, len(fibers)),
        "attributes": pa.array([f'{{"pid": ["{fiber[3]}"]}}' for fiber in fibers]),
        "first_activity": pa.array([fiber[1] for fiber in fibers], _TIME),
        "last_activity": pa.array([fiber[2] for fiber in fibers], _TIME),
        "closed": pa.repeat(True, len(fibers)),
    })  # fmt: skip
    connection.close()
    return lines, len(fibers)


def _batches(file: Iterator[str]) -> Iterator[list[str]]:
    batch = []
    for line in file:
        batch.append(line.rstrip("\n"))
        if len(batch) == _BATCH_LINES:
            yield batch
            batch = []
    if batch:
        yield batch


def _uuids(ids: list[bytes]) -> pa.Array:
    storage = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(ids), [None, pa.py_buffer(b"".join(ids))]
    )
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _write(connection: duckdb.DuckDBPyConnection, table: str, columns: dict[str, pa.Array]) -> None:
    rows = pa.table(columns)  # noqa: F841  # DuckDB finds it by its name
    names = ", ".join(columns)
    connection.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM rows")
