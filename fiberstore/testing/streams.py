"""Streams of a query, out and in: iterators, Arrow, files."""

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from fiberstore.contract.queries import Partition, Query, QueryStorage
from fiberstore.records import FiberRecord
from fiberstore.testing.examples import (
    ATTRIBUTES,
    IN_UTC,
    LONG_TEXT,
    NOON,
    TEXTS,
    at,
    fiber,
    log,
    member,
    stored,
    uid,
    write_fibers,
)
from fiberstore.testing.invalid_arguments import check_number

KINDS = ("logs", "fibers", "memberships")
SUFFIXES = (".parquet", ".csv", ".jsonl")
_ORDERS = {
    "logs": ("timestamp", "log_id"),
    "fibers": ("first_activity", "fiber_id"),
    "memberships": ("log_id", "fiber_id"),
}
_COLUMNS = {
    "logs": "log_id timestamp source_id raw_text ingestion_time config_version",
    "fibers": "fiber_id fiber_type config_version attributes first_activity last_activity closed",
    "memberships": "log_id fiber_id config_version",
}
_TIMES = ("timestamp", "ingestion_time", "first_activity", "last_activity")


def _query(storage: QueryStorage, kind: str) -> Query[Any]:
    query: Query[Any] = getattr(storage, kind)
    return query


def _import(storage: QueryStorage, kind: str) -> Callable[..., int]:
    store: Callable[..., int] = getattr(storage, f"import_{kind}")
    return store


def fill(storage: QueryStorage) -> None:
    """Store values that are easily damaged."""
    storage.write_logs([stored(number, text=text) for number, text in enumerate((*TEXTS, LONG_TEXT))])
    storage.write_logs([log(1_000 + number, when) for number, when in enumerate(IN_UTC.values())])
    storage.write_logs([log(2_000 + number, source=text) for number, text in enumerate(TEXTS)])
    write_fibers(
        storage,
        [
            fiber(number, TEXTS[number % len(TEXTS)], attributes, closed=number % 2 == 1, last=at(9_999))
            for number, attributes in enumerate(ATTRIBUTES)
        ],
    )
    write_fibers(
        storage,
        [
            fiber(1_000 + number, first=when, config_version=2**64 - 1)
            for number, when in enumerate(IN_UTC.values())
        ],
    )
    storage.write_memberships([member(a, b, 2**64 - 1 - a) for a in range(3) for b in range(a, 4)])


class StreamsContract:
    """``iter_records``, ``to_arrow``, ``export`` and ``import_…``.

    A subclass has the fixtures ``storage`` and ``other``, empty storages whose schema is built.
    """

    @pytest.mark.parametrize("kind", KINDS)
    def test_records_come_all_and_in_order(self, storage: QueryStorage, kind: str) -> None:
        assert list(_query(storage, kind).iter_records()) == []
        fill(storage)
        records = list(_query(storage, kind).iter_records())
        assert len(records) == _query(storage, kind).count() > 8
        assert records == sorted(records, key=attrgetter(*_ORDERS[kind]))

    def test_streams_have_the_order_and_the_conditions_of_the_query(self, storage: QueryStorage) -> None:
        fill(storage)
        query = storage.logs.where(storage.logs.c.timestamp >= at(3)).order_by("newest")
        ids = [row.log_id for row in query.iter_records()]
        assert 0 < len(ids) < storage.logs.count()
        assert ids == [row.log_id for row in storage.logs.iter_records() if row.timestamp >= at(3)][::-1]
        assert query.to_arrow(5).read_all()["log_id"].to_pylist() == [str(id_) for id_ in ids]
        for order in ("oldest", "newest", "longest", "most_logs"):
            fibers = storage.fibers.order_by(order)
            ids = [row.fiber_id for row in fibers.iter_records()]
            assert fibers.to_arrow().read_all()["fiber_id"].to_pylist() == [str(id_) for id_ in ids]

    @pytest.mark.parametrize("kind", KINDS)
    def test_arrow_has_the_documented_columns_and_types(self, storage: QueryStorage, kind: str) -> None:
        import pyarrow as pa

        types = dict.fromkeys(_TIMES, pa.timestamp("us", "UTC"))
        types |= {"config_version": pa.uint64(), "closed": pa.bool_()}
        names = _COLUMNS[kind].split()
        expected = pa.schema([(name, types.get(name, pa.large_string())) for name in names])
        assert _query(storage, kind).to_arrow().read_all().schema == expected
        fill(storage)
        assert _query(storage, kind).to_arrow().read_all().schema == expected

    @pytest.mark.parametrize("kind", KINDS)
    def test_arrow_holds_the_values_of_the_records(self, storage: QueryStorage, kind: str) -> None:
        fill(storage)
        rows = _query(storage, kind).to_arrow().read_all().to_pylist()
        records = list(_query(storage, kind).iter_records())
        assert len(rows) == len(records)
        for row, record in zip(rows, records, strict=True):
            if isinstance(record, FiberRecord):
                row["attributes"] = None if row["attributes"] is None else row["attributes"].encode()
                assert (row["attributes"] is None) == (record.attributes is None)
                del row["attributes"]
            values = record.model_dump(exclude={"attributes"})
            assert row == {
                name: str(value) if name.endswith("_id") and name != "source_id" else value
                for name, value in values.items()
            }

    def test_batches_are_as_small_as_asked(self, storage: QueryStorage) -> None:
        storage.write_logs(log(number) for number in range(10))
        sizes = [batch.num_rows for batch in storage.logs.to_arrow(3)]
        assert max(sizes) <= 3
        assert sum(sizes) == 10
        check_number(storage.logs.to_arrow, "batch_rows", least=1)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_what_is_exported_is_imported_exactly(
        self, storage: QueryStorage, other: QueryStorage, tmp_path: Path, suffix: str
    ) -> None:
        fill(storage)
        for kind in KINDS:
            path = tmp_path / f"{kind}{suffix}"
            seen: list[int] = []
            records = list(_query(storage, kind).iter_records())
            assert _query(storage, kind).export(path, on_rows=seen.append) == sum(seen) == len(records)
            seen.clear()
            assert _import(other, kind)(path, on_rows=seen.append) == sum(seen) == len(records)
            assert list(_query(other, kind).iter_records()) == records
            assert _import(other, kind)(path) == 0
        assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_an_empty_export_is_a_file_too(
        self, storage: QueryStorage, other: QueryStorage, tmp_path: Path, suffix: str
    ) -> None:
        for kind in KINDS:
            path = tmp_path / f"{kind}{suffix}"
            assert _query(storage, kind).export(path) == 0
            assert _import(other, kind)(path) == 0

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_an_empty_export_in_parts_is_an_empty_file_in_a_folder(
        self, storage: QueryStorage, other: QueryStorage, tmp_path: Path, suffix: str
    ) -> None:
        for kind in ("logs", "fibers"):
            path = tmp_path / f"{kind}{suffix}"
            assert _query(storage, kind).export(path, partition_by="day") == 0
            assert [str(file.relative_to(path)) for file in path.rglob("*")] == [f"part-0{suffix}"]
            assert _import(other, kind)(path) == 0

    @pytest.mark.parametrize(
        ("kind", "unit", "length", "suffix"),
        [
            *(("logs", "day", 10, suffix) for suffix in SUFFIXES),
            ("fibers", "month", 7, ".jsonl"),
            ("fibers", "hour", 13, ".jsonl"),
        ],
    )
    def test_parts_are_folders_by_utc_time(
        self,
        *,
        storage: QueryStorage,
        other: QueryStorage,
        tmp_path: Path,
        kind: str,
        suffix: str,
        unit: Partition,
        length: int,
    ) -> None:
        fill(storage)
        path = tmp_path / f"parts{suffix}"
        records = list(_query(storage, kind).iter_records())
        assert _query(storage, kind).export(path, partition_by=unit) == len(records)
        times = [
            record.first_activity if isinstance(record, FiberRecord) else record.timestamp
            for record in records
        ]
        assert sorted(str(file.relative_to(path)) for file in path.rglob("*.*")) == sorted(
            {f"{unit}={time.replace(tzinfo=None).isoformat()[:length]}/part-0{suffix}" for time in times}
        )
        assert _import(other, kind)(path) == len(records)
        assert list(_query(other, kind).iter_records()) == records

    def test_the_first_of_equal_keys_wins_in_a_file_and_against_the_store(
        self, *, storage: QueryStorage, other: QueryStorage, tmp_path: Path
    ) -> None:
        storage.write_logs([stored(1, text="file"), stored(2, text="file")])
        path = tmp_path / "logs.jsonl"
        storage.logs.export(path)
        path.write_text(path.read_text() + path.read_text().replace('"file"', '"again"'))
        other.write_logs([stored(2, text="store")])
        assert other.import_logs(path) == 1
        assert [row.raw_text for row in other.logs.iter_records()] == ["file", "store"]

    def test_stamps_are_given_where_a_file_of_logs_has_none(
        self, storage: QueryStorage, tmp_path: Path
    ) -> None:
        path = tmp_path / "logs.csv"
        path.write_text(f"raw_text,source_id,timestamp,log_id\nhello,web,{NOON.isoformat()},{uid(7)}\n")
        assert storage.import_logs(path) == 1
        storage.write_logs([log(8)])
        found, written = storage.logs.iter_records()
        values = found.log_id, found.timestamp, found.source_id, found.raw_text
        assert values == (uid(7), NOON, "web", "hello")
        assert found.config_version == written.config_version
        assert found.ingestion_time <= written.ingestion_time
