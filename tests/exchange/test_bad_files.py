"""Files that cannot be imported are refused with what is wrong and where; odd ones are read as they are."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberstore import DuckDBStorage
from fiberstore.exchange import Stamp, read_records
from fiberstore.records import StoredLog
from fiberstore.testing.examples import at, log, uid
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


@parametrize_mostly_slow(("name", "text", "message"), BAD_LOGS.values(), quick=9, ids=list(BAD_LOGS))
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


def test_null_attributes_in_csv_of_other_tools_are_none(storage: DuckDBStorage, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for write in CSV_WRITERS.values():
        rows = [{**FIBER, "attributes": None}, {**FIBER, "fiber_id": str(uid(2)), "attributes": "{}"}]
        write(pa.Table.from_pylist(rows), path)
        assert storage.import_fibers(path) == 2
        assert [record.attributes for record in storage.fibers.iter_records()] == [None, {}]
        storage.fibers.delete()


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
