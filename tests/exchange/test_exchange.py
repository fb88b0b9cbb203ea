"""Export and import: connections that must come back, files that are whole or not there, and the commands."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
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

from fiberstore import DatabaseError, DuckDBStorage, SerializationError
from fiberstore.cli import main
from fiberstore.testing.examples import at, fiber, log, member, stored, uid
from tests.support.parameters import parametrize_mostly_slow


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


@parametrize_mostly_slow("read", READERS.values(), ids=list(READERS), quick=2)
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


@parametrize_mostly_slow("suffix", [".parquet", ".csv", ".jsonl"])
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
            json.dumps({"log_id": str(uid(number)), "fiber_id": str(uid(2)), "config_version": 3}) + "\n"
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
