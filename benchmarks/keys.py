"""Keys: what it takes to write many of them, and to find a fiber by one.

``python -m benchmarks.keys`` builds a store of a million fibers with two keys each. It prints the seconds
that the keys took, beside DuckDB alone from a ready Arrow table, and the median milliseconds of ways to find
a fiber, beside ``get_fiber``.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from benchmarks.clock import medians_s
from fiberstore import DuckDBStorage, FiberKey, FiberRecord, Fibers, new_log_id
from fiberstore.ids import key_hash
from fiberstore.sql import arrow, key_rows

_BEGIN = datetime(2024, 12, 10, tzinfo=UTC)
_ROWS_AT_ONCE = 100_000


def main() -> None:
    """Build the store, ask, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keys", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small store: are the answers right?")
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    fibers = 10_000 if arguments.quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder, DuckDBStorage(Path(folder) / "store.duckdb") as storage:
        storage.init_schema()
        ids = _write_fibers(storage, fibers)
        keys = _make_keys(ids)
        print(f"| {fibers:,} fibers, {len(keys):,} keys | s |\n|---|---|")
        print(
            f"| DuckDB alone, from an Arrow table | {_by_hand_s(Path(folder) / 'alone.duckdb', keys):.2f} |"
        )
        print(f"| the same into a store, hashed and compared with what is there | {_columns_s(keys):.2f} |")
        print(f"| write_keys | {_seconds(lambda: storage.write_keys(keys)):.2f} |", flush=True)
        _print_lookups(storage, keys, 2 if arguments.quick else arguments.rounds)


def _write_fibers(storage: DuckDBStorage, count: int) -> list[UUID]:
    ids = [new_log_id(_BEGIN + timedelta(milliseconds=number)) for number in range(count)]
    for start in range(0, count, _ROWS_AT_ONCE):
        times = [_BEGIN + timedelta(milliseconds=number) for number in range(start, start + _ROWS_AT_ONCE)]
        storage.write_fibers(
            FiberRecord(
                fiber_id=fiber_id, fiber_type="request", config_version=1, first_activity=at, last_activity=at
            )
            for fiber_id, at in zip(ids[start : start + _ROWS_AT_ONCE], times, strict=False)
        )
    return ids


def _make_keys(ids: list[UUID]) -> list[FiberKey]:
    dice = random.Random(7)
    return [
        FiberKey.model_construct(
            fiber_id=fiber_id,
            name=name,
            value=f"{dice.getrandbits(64):016x}",
            first_timestamp=_BEGIN + timedelta(milliseconds=number),
            first_log_id=fiber_id,
            starts=False,
        )
        for number, fiber_id in enumerate(ids)
        for name in ("request", "session")
    ]


def _by_hand_s(path: Path, keys: list[FiberKey]) -> float:
    import duckdb

    rows = pa.table(
        {
            "fiber_id": arrow.uuids([key.fiber_id.int for key in keys]),
            "name": [key.name for key in keys],
            "value": [key.value for key in keys],
            "hash": [key_hash(key.name, key.value) for key in keys],
            "first_timestamp": arrow.timestamps([key.first_timestamp for key in keys]),
            "first_log_id": arrow.uuids([key.fiber_id.int for key in keys]),
            "starts": [key.starts for key in keys],
        }
    )
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE TABLE fiber_keys (fiber_id UUID, name VARCHAR, value VARCHAR, hash BIGINT, "
            "first_timestamp TIMESTAMPTZ, first_log_id UUID, starts BOOLEAN)"
        )
        connection.execute("CREATE INDEX by_hash ON fiber_keys (hash)")
        connection.register("rows", rows)
        return _seconds(lambda: connection.execute("INSERT INTO fiber_keys SELECT * FROM rows"))


def _columns_s(keys: list[FiberKey]) -> float:
    columns = {
        "fiber_id": arrow.uuids([key.fiber_id.int for key in keys]),
        "name": pa.array([key.name for key in keys], pa.large_string()),
        "value": pa.array([key.value for key in keys], pa.large_string()),
        "first_timestamp": arrow.timestamps([key.first_timestamp for key in keys]),
        "first_log_id": arrow.uuids([key.fiber_id.int for key in keys]),
        "starts": pa.array([key.starts for key in keys]),
    }
    with tempfile.TemporaryDirectory() as folder, DuckDBStorage(Path(folder) / "store.duckdb") as storage:
        storage.init_schema()
        with storage.transaction() as unit:
            return _seconds(lambda: key_rows.insert_key_columns(unit.session, columns, of_stored=False))


def _print_lookups(storage: DuckDBStorage, keys: list[FiberKey], rounds: int) -> None:
    some = random.Random(3).sample(keys, rounds + 1)

    def by_key(number: int) -> list[FiberRecord]:
        key = some[number]
        return storage.fibers.where(Fibers.c.keys[key.name] == key.value).page(10).items

    def streamed(number: int) -> list[FiberRecord]:
        key = some[number]
        return list(storage.fibers.where(Fibers.c.keys[key.name] == key.value).iter_records())

    def by_id(number: int) -> list[FiberRecord]:
        found = storage.get_fiber(some[number].fiber_id)
        return [found] if found else []

    ways: dict[str, Callable[[int], Any]] = {
        "get_fiber": by_id,
        "query_fibers_by_key": lambda number: storage.query_fibers_by_key(
            some[number].name, some[number].value
        ),
        "fibers.where(keys[name] == value).iter_records()": streamed,
        "fibers.where(keys[name] == value).page()": by_key,
        "get_keys of a fiber": lambda number: storage.get_keys([some[number].fiber_id]),
        "fibers.key_values(name, prefix)": lambda number: storage.fibers.key_values(
            "request", some[number].value[:4]
        ),
    }
    for name in list(ways):
        if name.startswith(("fibers.where", "query", "get_fiber")):
            for number, key in enumerate(some):
                assert [fiber.fiber_id for fiber in ways[name](number)] == [key.fiber_id], name
    found_s = medians_s(ways, rounds)
    print("\n| look-up | ms | ratio to get_fiber |\n|---|---|---|")
    for name, seconds in found_s.items():
        print(f"| {name} | {seconds * 1e3:.2f} | {seconds / found_s['get_fiber']:.2f} |", flush=True)


def _seconds(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
