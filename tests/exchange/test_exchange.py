"""Files that are not what they should be, connections that must come back, and the two commands."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberstore import DatabaseError, DuckDBStorage, SerializationError
from fiberstore.cli import main
from fiberstore.exchange import Stamp, read_records
from fiberstore.records import StoredLog
from fiberstore.testing.examples import at, fiber, log, member, stored, uid
from tests.support.parameters import parametrize_mostly_slow

ID = "00000000-0000-0000-0000-000000000001"
TIME = "2024-02-29T12:00:00Z"
LOG = {"log_id": ID, "timestamp": TIME, "source_id": "web", "raw_text": "GET /"}
FIBER = {
    "fiber_id": ID,
    "fiber_type": "request",
    "config_version": 3,
    "attributes": None,
    "first_activity": TIME,
    "last_activity": TIME,
    "closed": False,
}


@pytest.fixture
def one(store_file: Path) -> Iterator[DuckDBStorage]:
    """A storage with one connection: whoever keeps it makes the next call fail."""
    with DuckDBStorage(store_file, pool_size=1) as storage:
        storage.engine.pool._timeout = 0.05  # type: ignore[attr-defined]
        storage.write_logs([log(number) for number in range(3_000)])
        yield storage


# ---------------------------------------------------------------- connections


READERS: dict[str, Callable[[DuckDBStorage], object]] = {
    "iterator, read out": lambda storage: list(storage.logs.iter_records()),
    "iterator, closed": lambda storage: _begun(storage).close(),
    "iterator, dropped": lambda storage: next(storage.logs.iter_records()),
    "reader, read out": lambda storage: storage.logs.to_arrow(100).read_all(),
    "reader, dropped": lambda storage: storage.logs.to_arrow(100).read_next_batch(),
    "reader, never read": lambda storage: storage.logs.to_arrow(100) and None,
}


def _begun(storage: DuckDBStorage) -> Any:  # noqa: ANN401  # a generator, though the contract says iterator
    iterator = storage.logs.iter_records()
    next(iterator)
    return iterator


@pytest.mark.parametrize("read", READERS.values(), ids=list(READERS))
def test_a_stream_gives_its_connection_back(
    one: DuckDBStorage, read: Callable[[DuckDBStorage], object]
) -> None:
    for _ in range(2):
        kept = read(one)
        assert one.write_logs([log(1)]) == 0
        del kept


def test_a_reader_that_is_closed_gives_its_connection_back(one: DuckDBStorage) -> None:
    with one.logs.to_arrow(100) as reader:
        reader.read_next_batch()
        with pytest.raises(DatabaseError, match="no free connection"):
            one.logs.count()
    assert one.logs.count() == 3_000
    with pytest.raises(pa.ArrowInvalid, match="closed"):
        reader.read_next_batch()


def test_a_half_read_stream_leaves_no_snapshot_behind(store_file: Path) -> None:
    with DuckDBStorage(store_file, pool_size=2) as storage:
        storage.write_logs([log(number) for number in range(3_000)])
        for begin in (_begun, lambda storage: storage.logs.to_arrow(100)):
            begin(storage).close()
            storage.write_logs([log(20_000)])
            with storage.engine.connect() as first, storage.engine.connect() as second:
                for connection in (first, second):
                    raw: Any = connection.connection.dbapi_connection
                    raw._raw.execute("CHECKPOINT")


def test_a_stream_is_of_one_moment(storage: DuckDBStorage) -> None:
    storage.write_logs([log(number) for number in range(3_000)])
    records, reader = storage.logs.iter_records(), storage.logs.to_arrow(100)
    next(records)
    storage.write_logs([log(20_000)])
    assert 1 + sum(1 for _ in records) == reader.read_all().num_rows == 3_000


def test_in_a_transaction_other_statements_may_come_between(storage: DuckDBStorage) -> None:
    with storage.transaction() as transaction:
        transaction.logs.write_logs([log(number) for number in range(100)])
        records, reader = transaction.logs.iter_records(), transaction.logs.to_arrow(7)
        next(records)
        transaction.logs.write_logs([log(200)])
        assert transaction.logs.count() == 101
        batches = list(reader)
        assert max(batch.num_rows for batch in batches) <= 7
        assert 1 + sum(1 for _ in records) == sum(batch.num_rows for batch in batches) == 100


def test_what_no_record_can_hold_is_refused(storage: DuckDBStorage, tmp_path: Path) -> None:
    storage.write_logs([log(1)])
    storage.write_fiber(fiber(1))
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE raw_logs SET ingestion_time = NULL"))
        connection.execute(sa.text("UPDATE fibers SET attributes = '{\"a\": NaN}'"))
    for query in (storage.logs, storage.fibers):
        with pytest.raises(SerializationError):
            query.to_arrow()
        with pytest.raises(SerializationError):
            query.export(tmp_path / "x.parquet")
    assert list(tmp_path.glob("*x*")) == []


# ---------------------------------------------------------------- data frames


def test_pandas_and_polars_read_queries_and_what_they_write_is_read(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    storage.write_logs([stored(number) for number in range(5)])
    query = storage.logs.where(storage.logs.c.timestamp >= at(2))
    for frame in (pl.DataFrame(query), pl.from_arrow(query.to_arrow())):
        assert isinstance(frame, pl.DataFrame)
        assert frame["timestamp"].to_list() == [at(2), at(3), at(4)]
    assert pa.table(query)["log_id"].to_pylist() == [str(uid(number)) for number in (2, 3, 4)]
    panda = query.to_arrow().read_pandas()
    assert list(panda["timestamp"]) == [pd.Timestamp(at(number)) for number in (2, 3, 4)]
    panda.to_parquet(tmp_path / "pandas.parquet")
    panda.to_csv(tmp_path / "pandas.csv", index=False)
    pl.DataFrame(query).write_parquet(tmp_path / "polars.parquet")
    pl.DataFrame(query).write_csv(tmp_path / "polars.csv")
    for path in sorted(tmp_path.glob("pandas.*")) + sorted(tmp_path.glob("polars.*")):
        with DuckDBStorage(":memory:") as other:
            other.init_schema()
            assert other.import_logs(path) == 3
            assert list(other.logs.iter_records()) == list(query.iter_records())


def test_files_of_duckdb_are_read_and_ours_are_read_by_duckdb(storage: DuckDBStorage, tmp_path: Path) -> None:
    storage.write_logs([stored(number) for number in range(3)])
    ours, theirs = tmp_path / "ours.parquet", tmp_path / "theirs.parquet"
    storage.logs.export(ours)
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * REPLACE (log_id::UUID AS log_id) FROM '{ours}') TO '{theirs}'")
    with DuckDBStorage(":memory:") as other:
        other.init_schema()
        assert other.import_logs(theirs) == 3
        assert list(other.logs.iter_records()) == list(storage.logs.iter_records())


# ---------------------------------------------------------------- bad files


def _csv(**values: object) -> str:
    row = {**LOG, **values}
    return ",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()) + "\n"


def _json(record: dict[str, Any], **values: object) -> str:
    return json.dumps({**record, **values}) + "\n"


BAD_LOGS: dict[str, tuple[str, str, str]] = {
    "suffix": ("x.txt", "", "must end in .parquet, .csv or .jsonl"),
    "no suffix": ("x", "", "must end in .parquet, .csv or .jsonl"),
    "no parquet": ("x.parquet", "PAR1", ""),
    "empty csv": ("x.csv", "", "Empty CSV"),
    "cut off in quotes": ("x.csv", _csv()[:-3], "cut off inside quotes"),
    "cut off after a row in quotes": ("x.csv", _csv() + _csv().splitlines()[1][:-3] + "\n", "cut off inside"),
    "a short row": ("x.csv", _csv() + "1,2\n", "row 2: has 2 fields, the header 4"),
    "a long row": ("x.csv", f"{_csv()}1,2,3,4,5\n", "row 2: has 5 fields, the header 4"),
    "text after quotes": ("x.csv", _csv(raw_text='a"b'), "line 2: has text after a closing quote"),
    "backslashes for quotes": ("x.csv", _csv(raw_text='\\"b'), "line 2: has text after a closing quote"),
    "a quote in text": (
        "x.csv",
        f'{_csv()}\n1,2,3,4"\r5"\n',
        "line 4: has a quote in a field without quotes",
    ),
    "quotes that never end": ("x.csv", f'{_csv()}1,2,3,"4\n', "cut off inside quotes that begin in line 3"),
    "semicolons": ("x.csv", _csv().replace(",", ";"), "has fields separated by ';'; write it with commas"),
    "line breaks of two kinds": (
        "x.csv",
        f"{_csv()}1,2,3,4\r\n",
        r"line 3: ends in '\\r\\n', others in '\\n'",
    ),
    "index of pandas": ("x.csv", f",{_csv()}".replace('"0', '0,"0'), "has '', an index .* index=False"),
    "index read by pandas": (
        "x.csv",
        f"Unnamed: 0,{_csv()}".replace('"0', '0,"0'),
        "has 'Unnamed: 0', an in",
    ),
    "missing column": ("x.csv", "log_id,timestamp,source_id\n", "lacks raw_text"),
    "extra column": ("x.csv", _csv(level="INFO"), "has level, which no StoredLog has"),
    "column twice": ("x.csv", _csv().replace("source_id", "raw_text"), "lacks source_id"),
    "naive time": (
        "x.csv",
        _csv(timestamp="2024-02-29 12:00:00"),
        "row 1: timestamp must be a time in ISO 8601 with",
    ),
    "no time": ("x.csv", _csv(timestamp="noon"), "row 1: timestamp .*'noon'"),
    "nanoseconds": ("x.csv", _csv(timestamp="2024-02-29T12:00:00.123456789Z"), "at most 6 decimals"),
    "nanoseconds in JSON": (
        "x.jsonl",
        _json(LOG, timestamp="2024-02-29T12:00:00.123456789Z"),
        "row 1: timestamp must be a time .* at most 6 decimals",
    ),
    "year 0": ("x.csv", _csv(timestamp="0000-02-29T12:00:00Z"), "years 1 to 9999"),
    "no id": ("x.csv", _csv(log_id="1"), "row 1: log_id must be a UUID, got '1'"),
    "null": ("x.csv", _csv(timestamp="").replace('""', ""), "row 1: timestamp is missing"),
    "config_version": ("x.csv", _csv(config_version=2**64), "row 1: config_version must be an integer"),
    "negative": ("x.csv", _csv(config_version=-1), "row 1: config_version must be an integer"),
    "NUL": ("x.csv", _csv(raw_text="a\0b"), "row 1: raw_text holds NUL"),
    "NUL in JSON": ("x.jsonl", _json(LOG) + _json(LOG, raw_text="a\0b"), "row 2: raw_text: NUL"),
    "lone surrogate": ("x.jsonl", _json(LOG, raw_text="\ud800"), "row 1: raw_text: lone surrogate"),
    "no JSON": ("x.jsonl", _json(LOG) + "{\n", "row 2: is not JSON"),
    "no object": ("x.jsonl", "[1]\n", "row 1: must be a JSON object"),
    "a number for text": ("x.jsonl", _json(LOG, raw_text=5), "row 1: raw_text: expected a str, got 5"),
    "a bool for a number": ("x.jsonl", _json(LOG, config_version=True), "row 1: config_version"),
    "other keys": ("x.jsonl", _json(LOG) + _json(LOG, config_version=1), "row 2: has"),
    "later row": ("x.csv", _csv() * 1 + _csv(log_id="x").splitlines()[1] + "\n", "row 2: log_id"),
}


@parametrize_mostly_slow(("name", "text", "message"), BAD_LOGS.values(), quick=18, ids=list(BAD_LOGS))
def test_bad_logs_are_refused_with_file_row_and_column(
    *, storage: DuckDBStorage, tmp_path: Path, name: str, text: str, message: str
) -> None:
    bad = tmp_path / name
    bad.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(bad))}.*{message}") as caught:
        storage.import_logs(bad)
    assert "\n" not in str(caught.value)
    assert storage.logs.count() == 0


def test_nothing_of_a_folder_with_a_bad_file_is_kept(storage: DuckDBStorage, tmp_path: Path) -> None:
    good, bad = tmp_path / "a.csv", tmp_path / "b.csv"
    good.write_text(_csv(log_id=uid(9)))
    bad.write_text(_csv(log_id="1"))
    with pytest.raises(ValueError, match=re.escape(str(bad))):
        storage.import_logs(tmp_path)
    assert storage.logs.count() == 0
    assert storage.import_logs(good) == 1


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_byte_order_marks_blank_lines_and_empty_texts_are_fine(
    storage: DuckDBStorage, tmp_path: Path, line_break: str
) -> None:
    path = tmp_path / "x.csv"
    for number, (begin, end) in enumerate([("", "\n"), ("\ufeff", "\n\n"), ("\ufeff\n", "\n\n\n"), ("", "")]):
        row = _csv(log_id=uid(number), raw_text="").strip().replace('"web"', "")
        path.write_text(f"{begin}{row}{end}", newline=line_break)
        assert storage.import_logs(path) == 1
    assert {(found.source_id, found.raw_text) for found in storage.logs.iter_records()} == {("", "")}


def test_utf_16_is_named(storage: DuckDBStorage, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(_csv(), encoding="utf-16")
    with pytest.raises(ValueError, match=r"x\.csv: is UTF-16; write it as UTF-8"):
        storage.import_logs(tmp_path / "x.csv")


def test_an_index_of_pandas_in_parquet_is_named(storage: DuckDBStorage, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pd.DataFrame([LOG], index=["row"]).to_parquet(path)
    with pytest.raises(ValueError, match=r"has '__index_level_0__', an index that pandas .* index=False"):
        storage.import_logs(path)


STAMP = Stamp(at(0), 0)
ODD_TEXTS = [
    "", '"', '""', 'a"b', 'a"', "a,b", ",", "a;b", "\n", "a\nb", "a\r\nb", " a ", "\ufeffa", "NULL", "nan",
    "\\N", "\\.", "\\", '\\"', "\t", "#", "'a'", "é日\U0001f642", "\u2028", "\x1b",
]  # fmt: skip
CARRIAGE_RETURNS = ["\r", "a\rb", "\ra", "a\r", "a\r\r"]
CSV_WRITERS: dict[str, Callable[[pa.Table, Path], object]] = {
    "pandas": lambda table, path: table.to_pandas().to_csv(path, index=False),
    "pandas, CR LF": lambda table, path: table.to_pandas().to_csv(path, index=False, lineterminator="\r\n"),
    "polars": lambda table, path: pl.DataFrame(table).write_csv(path),
    "duckdb": lambda table, path: duckdb.from_arrow(table).to_csv(str(path)),
}


@pytest.mark.parametrize("write", CSV_WRITERS.values(), ids=list(CSV_WRITERS))
def test_odd_texts_in_csv_of_other_tools_are_read_as_they_were(
    tmp_path: Path, write: Callable[[pa.Table, Path], object]
) -> None:
    path = tmp_path / "x.csv"
    for texts in (ODD_TEXTS, *([text] for text in CARRIAGE_RETURNS)):
        columns = {name: [value] * len(texts) for name, value in LOG.items()}
        ids = [str(uid(number)) for number in range(len(texts))]
        write(pa.table({**columns, "log_id": ids, "source_id": texts, "raw_text": texts}), path)
        try:
            (batch,) = read_records(path, StoredLog, STAMP)
        except ValueError as error:  # pandas writes a carriage return without quotes
            assert texts != ODD_TEXTS
            assert "a line break in a text needs quotes" in str(error)  # noqa: PT017
        else:
            assert batch["source_id"].to_pylist() == batch["raw_text"].to_pylist() == texts


def test_null_attributes_in_csv_of_other_tools_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for write in CSV_WRITERS.values():
        rows = [{**FIBER, "attributes": None}, {**FIBER, "fiber_id": str(uid(2)), "attributes": "{}"}]
        write(pa.Table.from_pylist(rows), path)
        with DuckDBStorage(":memory:") as other:
            other.init_schema()
            assert other.import_fibers(path) == 2
            assert [record.attributes for record in other.fibers.iter_records()] == [None, {}]


SOUP = st.text('ab,"\r\n\ufeff', max_size=30)


@settings(max_examples=7 * settings().max_examples)
@given(soup=SOUP, first=st.sampled_from(["\n", "\r\n", "\r"]), block=st.integers(1, 9))
def test_csv_is_read_as_pythons_strict_reader_does_or_refused(soup: str, first: str, block: int) -> None:
    text = f"log_id,timestamp,source_id,raw_text{first}{ID},{TIME},{soup}"
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row][1:]
    except csv.Error:
        rows = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("fiberstore.exchange.reading._QUOTES_BLOCK_BYTES", block)
        path = Path(folder, "x.csv")
        path.write_text(text, newline="")
        try:
            batches = list(read_records(path, StoredLog, STAMP))
        except ValueError:
            return
    found = [[row["source_id"], row["raw_text"]] for batch in batches for row in batch.to_pylist()]
    assert found == [row[2:] for row in rows]


@settings(max_examples=7 * settings().max_examples)
@given(
    texts=st.tuples(SOUP, SOUP),
    line_break=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_csv_of_python_is_never_altered(
    texts: tuple[str, str], line_break: str, quoting: Literal[0, 1, 2]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.csv")
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator=line_break, quoting=quoting)
            writer.writerows([LOG, {**LOG, "source_id": texts[0], "raw_text": texts[1]}.values()])
        try:
            (batch,) = read_records(path, StoredLog, STAMP)
        except ValueError:
            assert quoting == csv.QUOTE_MINIMAL
            assert re.search("[\r\n]", "".join(texts))
            return
    assert (batch["source_id"].to_pylist(), batch["raw_text"].to_pylist()) == ([texts[0]], [texts[1]])


BAD_FIBERS: dict[str, tuple[dict[str, object], str]] = {
    "order": ({"last_activity": "2024-02-29T11:00:00Z"}, "row 1: first_activity .* is after last_activity"),
    "closed": ({"closed": 1}, "closed: expected true or false, got 1"),
    "NUL in attributes": ({"attributes": {"a": "\0"}}, "row 1: attributes: .*NUL"),
    "surrogate in attributes": ({"attributes": {"a": "\udfff"}}, "row 1: attributes: .*surrogate"),
    "NaN": ({"attributes": float("nan")}, "row 1: is not JSON: NaN"),
    "infinity": ({"attributes": [float("inf")]}, "row 1: is not JSON: Infinity"),
}


@pytest.mark.parametrize(("values", "message"), BAD_FIBERS.values(), ids=list(BAD_FIBERS))
def test_bad_fibers_are_refused(
    storage: DuckDBStorage, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(_json(FIBER, **values))
    with pytest.raises(ValueError, match=message):
        storage.import_fibers(path)
    assert storage.fibers.count() == 0


@pytest.mark.parametrize("text", ["{", "NaN", '{"a": -Infinity}', "1e999", '"\\u0000"', '"\\ud800"', ""])
def test_bad_attributes_of_a_table_are_refused(storage: DuckDBStorage, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.csv"
    row = {**FIBER, "attributes": text.replace('"', '""')}
    path.write_text(",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()) + "\n")
    with pytest.raises(ValueError, match="row 1: attributes cannot be stored"):
        storage.import_fibers(path)
    assert storage.fibers.count() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([0], pa.timestamp("us")), "timestamp has no time zone"),
        (pa.array([1_001], pa.timestamp("ns", "UTC")), "row 1: timestamp must be"),
        (pa.array([2**63 - 1], pa.timestamp("us", "UTC")), "row 1: timestamp must be in the years"),
        (pa.array([0]), "timestamp must hold times with a time zone, got int64"),
        (pa.array([None]), "row 1: timestamp is missing"),
    ],
)
def test_bad_times_of_parquet_are_refused(
    storage: DuckDBStorage, tmp_path: Path, values: pa.Array, message: str
) -> None:
    path = tmp_path / "x.parquet"
    columns = {name: pa.array([value]) for name, value in LOG.items()}
    pq.write_table(pa.table({**columns, "timestamp": values}), path)
    with pytest.raises(ValueError, match=message):
        storage.import_logs(path)


def test_ids_may_be_16_bytes_and_no_other_number_of_them(storage: DuckDBStorage, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for length in (15, 16):
        pq.write_table(
            pa.table({"log_id": [b"\1" * length], "fiber_id": [b"\2" * 16], "config_version": [3]}), path
        )
        if length == 16:
            assert storage.import_memberships(path) == 1
        else:
            with pytest.raises(ValueError, match="row 1: log_id must be a UUID"):
                storage.import_memberships(path)
    (found,) = storage.memberships.iter_records()
    assert (found.log_id.bytes, found.fiber_id.bytes) == (b"\1" * 16, b"\2" * 16)


def test_truncated_files_are_refused(storage: DuckDBStorage, tmp_path: Path) -> None:
    storage.write_logs([log(number) for number in range(1_000)])
    path = tmp_path / "x.parquet"
    storage.logs.export(path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            storage.import_logs(path)


def test_a_damaged_file_is_named(storage: DuckDBStorage, tmp_path: Path) -> None:
    storage.write_logs([log(number) for number in range(1_000)])
    path = tmp_path / "x.parquet"
    storage.logs.export(path)
    path.write_bytes(path.read_bytes().replace(b"\x28\xb5\x2f\xfd", b"\0\0\0\0"))  # what begins zstd
    with pytest.raises(OSError, match=re.escape(str(path))) as caught:
        storage.import_logs(path)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_cannot_be_read(storage: DuckDBStorage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        storage.import_logs(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.parquet, \.csv or \.jsonl file"):
        storage.import_logs(tmp_path / "empty")


# ---------------------------------------------------------------- all or nothing


def test_unfinished_files_of_a_folder_are_passed_over(storage: DuckDBStorage, tmp_path: Path) -> None:
    storage.write_logs([log(1)])
    for name in ("a.csv", ".b.csv", "_c.csv", ".fiberstore-0.partial/d.csv", "day/_temporary/e.csv"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("not a record")
    (tmp_path / "in" / "a.csv").unlink()
    with pytest.raises(ValueError, match=r"holds no \.parquet"):
        storage.import_logs(tmp_path / "in")
    storage.logs.export(tmp_path / "in" / "a.csv")
    assert storage.import_logs(tmp_path / "in") == 0


def _interrupt(_rows: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_ctrl_c_leaves_nothing_behind(storage: DuckDBStorage, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    storage.write_logs([log(number) for number in range(100)])
    for unit in (None, "hour"):
        with pytest.raises(KeyboardInterrupt):
            storage.logs.export(folder / f"x{suffix}", partition_by=unit, on_rows=_interrupt)
        assert list(folder.iterdir()) == []
    storage.logs.export(folder / f"x{suffix}")
    with DuckDBStorage(":memory:", pool_size=1) as other:
        other.init_schema()
        with pytest.raises(KeyboardInterrupt):
            other.import_logs(folder / f"x{suffix}", on_rows=_interrupt)
        assert other.logs.count() == 0


def test_an_export_overwrites_nothing(storage: DuckDBStorage, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for make in (path.touch, path.mkdir):
        make()
        for unit in (None, "day"):
            with pytest.raises(DatabaseError, match="exists already"):
                storage.logs.export(path, partition_by=unit)
        path.unlink() if path.is_file() else path.rmdir()
    for unit in (None, "day"):
        with pytest.raises(DatabaseError, match="does not exist; create it first"):
            storage.logs.export(tmp_path / "none" / "x.csv", partition_by=unit)  # type: ignore[arg-type]
    path.touch()
    for unit in (None, "day"):
        with pytest.raises(DatabaseError, match=re.escape(f"the folder {path} does not exist")):
            storage.logs.export(path / "y.csv", partition_by=unit)  # type: ignore[arg-type]


def test_what_cannot_be_split_is_refused(storage: DuckDBStorage, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(ValueError, match="have no time"):
        storage.memberships.export(path, partition_by="day")
    with pytest.raises(ValueError, match="must be ordered by time, not longest"):
        storage.fibers.order_by("longest").export(path, partition_by="day")
    with pytest.raises(ValueError, match="one of month, day, hour"):
        storage.logs.export(path, partition_by="week")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x\.txt must end in \.parquet, \.csv or \.jsonl"):
        storage.logs.export(tmp_path / "x.txt")
    storage.write_logs([log(number, 3_600 * number) for number in range(3)])
    assert storage.logs.order_by("newest").export(path, partition_by="hour") == 3
    assert len(list(path.iterdir())) == 3


@pytest.mark.parametrize("order", ["oldest", "newest"])
@pytest.mark.parametrize("kind", ["logs", "fibers"])
def test_row_groups_are_sorted_and_say_by_what(
    *,
    storage: DuckDBStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    order: Literal["oldest", "newest"],
) -> None:
    monkeypatch.setattr("fiberstore.exchange.writing._ROW_GROUP_ROWS", 10)
    monkeypatch.setattr("fiberstore.repositories.query._EXPORT_BATCH_ROWS", 10)
    numbers = [(number * 37) % 60 for number in range(60)]  # in no order, and two at each time
    storage.write_logs([log(number, 3_600 * (number // 2)) for number in numbers])
    storage.write_fibers(fiber(number, first=at(3_600 * (number // 2))) for number in numbers)
    query = getattr(storage, kind).order_by(order)
    names = ["timestamp", "log_id"] if kind == "logs" else ["first_activity", "fiber_id"]
    descending = order == "newest"

    query.export(tmp_path / "one.parquet")
    query.export(tmp_path / "days.parquet", partition_by="day")
    files = [tmp_path / "one.parquet", *(tmp_path / "days.parquet").rglob("*.parquet")]
    assert len(files) == 1 + 2
    for path in files:
        with pq.ParquetFile(path) as file:
            assert file.num_row_groups > 1
            for group in range(file.num_row_groups):
                assert _sorted_by(file, group) == [(name, descending) for name in names]
            rows = [(row[names[0]], row[names[1]]) for row in file.read().to_pylist()]
            assert rows == sorted(rows, reverse=descending)


def test_memberships_are_sorted_too_and_what_no_column_orders_does_not_say_so(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    storage.write_memberships([member(2, 1), member(1, 2), member(1, 1)])
    storage.write_fiber(fiber(1))
    storage.memberships.export(tmp_path / "members.parquet")
    with pq.ParquetFile(tmp_path / "members.parquet") as file:
        assert _sorted_by(file, 0) == [("log_id", False), ("fiber_id", False)]
        rows = [(row["log_id"], row["fiber_id"]) for row in file.read().to_pylist()]
        assert rows == sorted(rows)
    storage.fibers.order_by("longest").export(tmp_path / "longest.parquet")
    storage.fibers.order_by("most_logs").export(tmp_path / "most.parquet")
    for name in ("longest", "most"):
        with pq.ParquetFile(tmp_path / f"{name}.parquet") as file:
            assert (file.num_row_groups, _sorted_by(file, 0)) == (1, [])


def _sorted_by(file: pq.ParquetFile, group: int) -> list[tuple[str, bool]]:
    """The columns that a row group says it is sorted by, and whether descending."""
    keys = file.metadata.row_group(group).sorting_columns
    return [(file.schema_arrow.names[key.column_index], key.descending) for key in keys]


FULL = """
import resource, signal, sys
from pathlib import Path
from fiberstore import DatabaseError, DuckDBStorage
with DuckDBStorage(sys.argv[1], read_only=True) as storage:
    storage.logs.count()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    for unit in (None, "month"):
        try:
            storage.logs.export(sys.argv[2], partition_by=unit)
        except DatabaseError as error:
            assert "cannot be written: File too large" in str(error), error
        else:
            raise SystemExit("it was written")
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_full_disk_leaves_nothing_behind(store_file: Path, tmp_path: Path, suffix: str) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(n, text=os.urandom(50).hex()) for n in range(5_000)])
    folder = tmp_path / "out"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", FULL, store_file, folder / f"x{suffix}"], check=True)
    assert list(folder.iterdir()) == []


def test_an_import_that_meets_a_conflict_reads_its_file_again(storage: DuckDBStorage, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(
            _json({"log_id": str(uid(number)), "fiber_id": str(uid(2)), "config_version": 3})
            for number in (1, 3)
        )
    )
    seen = []

    def write_first(rows: int) -> None:
        seen.append(rows)
        storage.write_memberships([member(1, 2)])

    assert storage.import_memberships(path, on_rows=write_first) == 1
    assert seen == [2, 2]
    assert list(storage.memberships.iter_records()) == [member(1, 2), member(3, 2, 3)]


# ---------------------------------------------------------------- memory


BOUNDED = """
import sys
from datetime import UTC, datetime
import pyarrow as pa
from fiberstore.exchange import Stamp, read_records, schema_of, write_records
from fiberstore.records import StoredLog

def batch(begin):
    numbers, now = range(begin, begin + 1_000), datetime(2024, 2, 29, tzinfo=UTC)
    ids = [f"{number:032x}" for number in numbers]
    texts = [str(number) * 2_000 for number in numbers]
    columns = [ids, [now] * 1_000, ["web"] * 1_000, texts, [now] * 1_000, [3] * 1_000]
    schema = schema_of(StoredLog)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)

rows = write_records((batch(begin) for begin in range(100_000, 150_000, 1_000)), StoredLog, sys.argv[1])
assert rows == 50_000
stamp = Stamp(datetime.now(UTC), 3)
assert sum(found.num_rows for found in read_records(sys.argv[1], StoredLog, stamp)) == rows
print(pa.default_memory_pool().max_memory() / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix", [".parquet", *(pytest.param(suffix, marks=pytest.mark.long) for suffix in (".csv", ".jsonl"))]
)
def test_memory_for_files_is_bounded(tmp_path: Path, suffix: str) -> None:
    program = [sys.executable, "-c", BOUNDED, str(tmp_path / f"x{suffix}")]
    grown_mb = float(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    assert grown_mb < 450, f"{grown_mb} MB of Arrow for 600 MB of text"


# ---------------------------------------------------------------- the commands


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return (int(caught.value.code or 0), *capsys.readouterr())


@pytest.fixture
def filled(store_file: Path) -> Path:
    with DuckDBStorage(store_file) as storage:
        storage.write_logs([log(number) for number in range(30)])
        storage.write_fiber(fiber(1, attributes={"a": 1}))
        storage.write_memberships([member(1, 1)])
    return store_file


def test_commands_export_and_import(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, rows in (("logs", 30), ("fibers", 1), ("memberships", 1)):
        path, again = tmp_path / f"{what}.csv", tmp_path / "again.duckdb"
        code, out, err = run(capsys, "export", what, path, "--db", filled, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out).keys() == {"rows", "seconds"}
        assert json.loads(out)["rows"] == rows
        code, out, err = run(capsys, "import", what, path, "--db", again)
        assert (code, err) == (0, "")
        assert out.startswith(f"{rows} new {what if rows > 1 else what[:-1]}; ")
        assert json.loads(run(capsys, "import", what, path, "--db", again, "--json")[1])["rows"] == 0
    code, out, _ = run(
        capsys, "export", "logs", "--db", filled, tmp_path / "p.jsonl", "--partition-by", "day"
    )
    assert (code, out.startswith(f"{tmp_path / 'p.jsonl'}: 30 rows; ")) == (0, True)
    assert [part.name for part in (tmp_path / "p.jsonl").iterdir()] == ["day=2024-02-29"]


def test_commands_refuse_in_one_line(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken.csv").touch()
    for arguments, word in (
        (("export", "logs", "--db", filled, tmp_path / "x.txt"), "must end in"),
        (("export", "logs", "--db", filled, tmp_path / "taken.csv"), "exists already"),
        (("export", "logs", "--db", tmp_path / "none.duckdb", tmp_path / "x.csv"), "does not exist"),
        (("import", "logs", "--db", filled, tmp_path / "none.csv"), "does not exist"),
        (("import", "logs", "--db", filled, tmp_path / "taken.csv"), "taken.csv"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("fiberstore: ")
        assert word in err
    for wrong in (
        ("export", "rows", "--db", filled, "x.csv"),
        ("export", "memberships", "--db", filled, "x.csv", "--partition-by", "day"),
        ("import", "logs", "--db", filled),
    ):
        assert run(capsys, *wrong)[0] == 2
    assert run(capsys, "export", "logs", "--db", filled, "x.csv", "--partition-by", "week")[0] == 2
    for command in ("export", "import"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert "logs" in out
        assert f"Example: fiberstore {command} logs" in run(capsys, command, "logs", "--help")[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "import"])
def test_a_terminal_shows_a_bar(filled: Path, tmp_path: Path, command: str) -> None:
    path = tmp_path / "x.csv"
    if command == "import":
        with DuckDBStorage(filled) as storage:
            storage.logs.export(path)
            with storage.engine.begin() as connection:
                connection.execute(sa.text("DELETE FROM raw_logs"))
    program = "import sys; from fiberstore.cli import main; main(sys.argv[1:])"
    arguments = [sys.executable, "-c", program, command, "logs", "--db", str(filled), str(path)]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65_536):
            seen += chunk
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert b"30 " in out
    assert b"rows/s" in seen
    assert command.encode() in seen
