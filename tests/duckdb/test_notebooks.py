"""A store as a notebook reads it: with pandas, and with polars."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pandas as pd
import polars as pl
import pytest
import sqlalchemy as sa

from fiberstore import DuckDBStorage, LogRecord, RawLog

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
SELECT = sa.select(RawLog.timestamp, RawLog.source_id, RawLog.raw_text).order_by(RawLog.timestamp)


@pytest.fixture
def engine(duckdb_storage: DuckDBStorage) -> sa.Engine:
    duckdb_storage.write_logs(
        LogRecord(timestamp=NOON + timedelta(seconds=number), source_id="web", raw_text=f"line {number}")
        for number in range(5)
    )
    return duckdb_storage.engine


def test_pandas_reads_selects_and_tables(engine: sa.Engine) -> None:
    frame = pd.read_sql(SELECT, engine)
    assert frame["raw_text"].tolist() == [f"line {number}" for number in range(5)]
    assert str(frame["timestamp"].dtype.tz) == "UTC"
    assert len(pd.read_sql("SELECT * FROM raw_logs WHERE source_id = 'web'", engine)) == 5
    assert len(pd.read_sql("raw_logs", engine)) == 5
    with engine.connect() as connection:
        chunks = pd.read_sql(SELECT, connection, chunksize=2)
        assert [len(chunk) for chunk in chunks] == [2, 2, 1]


def test_pandas_writes_tables(engine: sa.Engine) -> None:
    frame = pd.DataFrame(
        {"number": [1, 2], "text": ["a", None], "time": pd.to_datetime([NOON, NOON]), "ratio": [0.1, 0.2]}
    )
    frame["exact"] = [Decimal("9007199254740993.01"), Decimal(1)]
    try:
        frame.to_sql("notes", engine, index=False, dtype={"exact": sa.Numeric(38, 2)})
        frame.to_sql("notes", engine, index=False, if_exists="replace", dtype={"exact": sa.Numeric(38, 2)})
        frame.to_sql("notes", engine, index=False, if_exists="append", method="multi")
        with pytest.raises(ValueError, match="already exists"):
            frame.to_sql("notes", engine)
        with engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT number, text, ratio, exact FROM notes")).all()
        assert [tuple(row) for row in rows] == 2 * [
            (1, "a", 0.1, Decimal("9007199254740993.01")), (2, None, 0.2, Decimal(1)),
        ]  # fmt: skip
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS notes"))


def test_polars_reads_selects(engine: sa.Engine) -> None:
    pytest.importorskip("greenlet")  # polars imports SQLAlchemy's asyncio, which needs it
    frame = pl.read_database(SELECT, engine)
    assert frame["raw_text"].to_list() == [f"line {number}" for number in range(5)]
    assert isinstance(frame.schema["timestamp"], pl.Datetime)
    with engine.connect() as connection:
        assert len(pl.read_database("SELECT * FROM raw_logs", connection)) == 5
