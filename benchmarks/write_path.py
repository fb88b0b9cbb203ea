"""Ways to write logs into a new file with all its indexes, side by side in one run; prints rates and ratios.

    python benchmarks/write_path.py [--rows 100000] [--rounds 5]

Every way writes the same records, made beforehand, in one transaction. The floor is DuckDB alone, with the
Arrow table already in memory. Row-by-row ways get a tenth of the rows, as they would take minutes; that
flatters them, for they get slower as the table grows.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import sqlalchemy as sa

from fiberstore import DuckDBStorage, LogRecord, RawLog
from fiberstore.dbapi import Connection

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
COLUMNS = "log_id, timestamp, source_id, raw_text, ingestion_time, config_version"


def make_logs(count: int) -> list[LogRecord]:
    """Return seeded records of about 100 bytes of text, one a millisecond, from ten sources."""
    dice = random.Random(7)
    return [
        LogRecord(
            timestamp=NOON + timedelta(milliseconds=number),
            source_id=f"source-{dice.randrange(10)}",
            raw_text=f"request {dice.randrange(10**9):09} took {dice.randrange(1000)} ms " + "x" * 68,
        )
        for number in range(count)
    ]


def columns(logs: list[LogRecord]) -> dict[str, list[object]]:
    """Return the values of each column."""
    return {
        "log_id": [log.log_id for log in logs],
        "timestamp": [log.timestamp for log in logs],
        "source_id": [log.source_id for log in logs],
        "raw_text": [log.raw_text for log in logs],
        "ingestion_time": [NOON for _ in logs],
        "config_version": [0 for _ in logs],
    }


def arrow_table(logs: list[LogRecord]) -> pa.Table:
    """Return the records as an Arrow table with DuckDB's types."""
    values = columns(logs)
    stamp = pa.timestamp("us", "UTC")
    ids = pa.array([log.log_id.bytes for log in logs], pa.binary(16))
    return pa.table(
        {
            "log_id": pa.ExtensionArray.from_storage(pa.uuid(), ids),
            "timestamp": pa.array(values["timestamp"], stamp),
            "source_id": values["source_id"],
            "raw_text": values["raw_text"],
            "ingestion_time": pa.array(values["ingestion_time"], stamp),
            "config_version": pa.array(values["config_version"], pa.uint64()),
        }
    )


def raw(connection: sa.Connection) -> Connection:
    """Return our DBAPI connection, whose ``_raw`` is DuckDB's own."""
    found: object = connection.connection.dbapi_connection
    assert isinstance(found, Connection)
    return found


def floor(storage: DuckDBStorage, _logs: list[LogRecord], table: pa.Table) -> None:
    """DuckDB alone, from the Arrow table."""
    with storage.engine.begin() as connection:
        batch = table
        raw(connection)._raw.execute(f"INSERT INTO raw_logs ({COLUMNS}) SELECT {COLUMNS} FROM batch")
        del batch


def fiberstore(storage: DuckDBStorage, logs: list[LogRecord], _table: pa.Table) -> None:
    """``write_logs``."""
    storage.write_logs(logs)


def appender(storage: DuckDBStorage, logs: list[LogRecord], _table: pa.Table) -> None:
    """DuckDB's appender, row by row in Python."""
    rows = list(zip(*columns(logs).values(), strict=True))
    with storage.engine.begin() as connection, raw(connection)._raw.appender("raw_logs") as buffer:
        buffer.append_rows(rows)


def unnest(storage: DuckDBStorage, logs: list[LogRecord], _table: pa.Table) -> None:
    """One statement with a list for each column."""
    types = ("UUID", "TIMESTAMPTZ", "VARCHAR", "VARCHAR", "TIMESTAMPTZ", "UBIGINT")
    lists = ", ".join(f"unnest(?::{name}[])" for name in types)
    with storage.engine.begin() as connection:
        raw(connection)._raw.execute(
            f"INSERT OR IGNORE INTO raw_logs ({COLUMNS}) SELECT {lists}", list(columns(logs).values())
        )


def add_all(storage: DuckDBStorage, logs: list[LogRecord], _table: pa.Table) -> None:
    """ORM ``add_all`` and ``commit``."""
    with storage.session() as session:
        session.add_all(
            RawLog(
                log_id=log.log_id,
                timestamp=log.timestamp,
                source_id=log.source_id,
                raw_text=log.raw_text,
                ingestion_time=NOON,
                config_version=0,
            )
            for log in logs
        )
        session.commit()


def executemany(storage: DuckDBStorage, logs: list[LogRecord], _table: pa.Table) -> None:
    """Core ``executemany``: ``OR IGNORE``, so that it does what ``write_logs`` does."""
    rows = [
        dict(zip(columns(logs[:1]), row, strict=True)) for row in zip(*columns(logs).values(), strict=True)
    ]
    with storage.engine.begin() as connection:
        connection.execute(sa.insert(RawLog).prefix_with("OR IGNORE"), rows)


WAYS: dict[Callable[[DuckDBStorage, list[LogRecord], pa.Table], None], int] = {
    floor: 1,
    fiberstore: 1,
    appender: 1,
    unnest: 1,
    add_all: 10,
    executemany: 10,
}


def main() -> None:
    """Run every way in turn, several rounds, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    logs = make_logs(arguments.rows)
    table = arrow_table(logs)
    rates: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
    for number in range(arguments.rounds):
        for way, part in WAYS.items():
            rows = logs[: len(logs) // part]
            with (
                tempfile.TemporaryDirectory() as folder,
                DuckDBStorage(Path(folder) / "store.duckdb") as storage,
            ):
                storage.init_schema()
                start_s = time.perf_counter()
                way(storage, rows, table)
                rates[way.__name__].append(len(rows) / (time.perf_counter() - start_s))
                with storage.session() as session:
                    assert session.scalar(sa.select(sa.func.count()).select_from(RawLog)) == len(rows)
        print(f"round {number + 1} of {arguments.rounds} done", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"{'way':<12}{'rows/s':>10}{'x floor':>10}{'x add_all':>11}")
    for name, rate in medians.items():
        print(f"{name:<12}{rate:>10,.0f}{rate / medians['floor']:>10.3f}{rate / medians['add_all']:>11.1f}")


if __name__ == "__main__":
    main()
