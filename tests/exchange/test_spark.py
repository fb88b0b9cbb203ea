"""Spark and DuckDB read what ``fiberstore export --partition-by day`` writes, and count the same in it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import duckdb
import pyarrow.parquet as pq
import pytest

from fiberstore import DuckDBStorage, FiberMembership
from fiberstore.cli import main
from fiberstore.ingest import demo
from fiberstore.ingest.pipeline import ingest
from fiberstore.ingest.rules import load_rules

Row: TypeAlias = tuple[str, str, int, int, int, str]  # the columns of QUESTION

DAYS = 3
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
QUESTION = """
SELECT CAST(logs.day AS STRING) AS log_day, fiber_type, count(DISTINCT fiber_id), count(*),
    min(unix_micros(timestamp)), CAST(max(logs.config_version) AS STRING)
FROM logs JOIN memberships USING (log_id) JOIN fibers USING (fiber_id)
GROUP BY log_day, fiber_type
"""
PROGRAM = Path(__file__).parents[1] / "support" / "spark_program.py"
TIMEOUT_S = 280  # on a busy machine; alone it takes a tenth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S + 20)]


@pytest.fixture
def spark_is_here() -> None:
    """Skip the test where Spark cannot run, but not in CI."""
    if importlib.util.find_spec("pyspark") is None:
        missing = "needs Spark: pip install --group spark"
    elif shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        missing = "needs Java 17 for Spark: apt-get install default-jre-headless"
    else:
        return
    if "CI" in os.environ:
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture
def shop(tmp_path: Path, db_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the demo's logs on several days, each of several row groups."""
    monkeypatch.setattr("fiberstore.exchange.writing._ROW_GROUP_ROWS", 500)
    monkeypatch.setattr("fiberstore.repositories.query._EXPORT_BATCH_ROWS", 100)
    begin = demo._START
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        for day in range(DAYS):
            monkeypatch.setattr(demo, "_START", begin + timedelta(days=day))
            ingest(storage, load_rules(demo.write_demo(tmp_path / "shop", 1_500 + 100 * day)))
    return db_file


def test_spark_and_duckdb_count_what_the_store_counts(
    spark_is_here: None, shop: Path, tmp_path: Path
) -> None:
    with DuckDBStorage(shop, read_only=True) as storage:
        expected = counts_of_store(storage)
    assert len({day for day, *_ in expected}) == DAYS
    assert {fiber_type for _, fiber_type, *_ in expected} == {"request", "job"}

    paths = {table: tmp_path / f"{table}.parquet" for table in ("logs", "fibers", "memberships")}
    for table, path in paths.items():
        split = [] if table == "memberships" else ["--partition-by", "day"]
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["export", table, "--db", str(shop), str(path), *split])
    for part in paths["logs"].glob("day=*/part-0.parquet"):
        assert pq.read_metadata(part).num_row_groups > 1

    assert counts_of_duckdb(paths) == expected
    assert counts_of_spark(paths, tmp_path) == expected


def counts_of_store(storage: DuckDBStorage) -> list[Row]:
    logs = {log.log_id: log for log in storage.logs.iter_records()}
    types = {fiber.fiber_id: fiber.fiber_type for fiber in storage.fibers.iter_records()}
    groups = defaultdict[tuple[str, str], list[FiberMembership]](list)
    for member in storage.memberships.iter_records():
        groups[logs[member.log_id].timestamp.date().isoformat(), types[member.fiber_id]].append(member)
    return [
        (
            *group,
            len({member.fiber_id for member in members}),
            len(members),
            min(logs[member.log_id].timestamp - EPOCH for member in members) // timedelta(microseconds=1),
            str(max(logs[member.log_id].config_version for member in members)),
        )
        for group, members in sorted(groups.items())
    ]


def counts_of_duckdb(paths: dict[str, Path]) -> list[Row]:
    with duckdb.connect() as connection:
        connection.execute("CREATE MACRO unix_micros(time) AS epoch_us(time)")  # as Spark calls it
        for name, path in paths.items():
            files = f"{path}/*/*.parquet" if path.is_dir() else str(path)
            connection.read_parquet(files, hive_partitioning=path.is_dir()).create_view(name)
        return sorted(connection.execute(QUESTION).fetchall())


def counts_of_spark(paths: dict[str, Path], folder: Path) -> list[Row]:
    views = [f"{name}={path}" for name, path in paths.items()]
    finished = subprocess.run(
        [sys.executable, PROGRAM, QUESTION, *views],
        cwd=folder, env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}, timeout=TIMEOUT_S,
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["executors"] == 2
    return sorted(tuple(row) for row in answer["rows"])
