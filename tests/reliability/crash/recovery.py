"""Time that a store takes to open after a kill, by the size of its write-ahead log."""

import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fiberstore import DuckDBStorage
from tests.reliability.crash.kills import Aim, ViolationError, kill

LOG_SIZES_MB = (16, 64, 256, 1024)
_MB = 2**20
_FILL_TIMEOUT_S = 1800.0


class Recovery(NamedTuple):
    """One opening.

    Attributes:
        log_mb: Size of the write-ahead log.
        seconds: How long the store took to open.
        rows: How many logs there are, all of which were acknowledged.
    """

    log_mb: float
    seconds: float
    rows: int


def recover(folder: Path, size_mb: int) -> Recovery:
    """Write logs until the write-ahead log has that size, kill the writer, open the file again.

    Raises:
        ViolationError: An acknowledged row is missing, or one is there twice.
    """
    path = folder / f"recovery-{size_mb}.duckdb"
    settings = f"?checkpoint_threshold={4 * size_mb}MB"
    aim = Aim("full", 1, 0, "step")
    death = kill(
        aim, random.Random(0), "fill", path, size_mb * _MB, settings=settings, timeout_s=_FILL_TIMEOUT_S
    )
    acknowledged = max(int(words[1]) for words in death.lines if words[0] == "rows")
    log_mb = Path(f"{path}.wal").stat().st_size / _MB
    begin = time.perf_counter()
    storage = DuckDBStorage(f"duckdb:///{path}{settings}")
    seconds = time.perf_counter() - begin
    with storage, storage.engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT count(*), count(DISTINCT log_id), count(DISTINCT timestamp) FROM raw_logs"
        ).one()
    if set(row) != {acknowledged}:
        raise ViolationError(f"{acknowledged} rows acknowledged; rows, ids and times: {tuple(row)}")
    return Recovery(log_mb, seconds, acknowledged)


def table(folder: Path, sizes_mb: Iterable[int]) -> Iterator[str]:
    """Yield the lines of a table, one for each size."""
    DuckDBStorage(folder / "first.duckdb").close()  # the first in a process takes longer
    yield f"{'log, MB':>10}{'seconds to open':>20}{'rows':>12}"
    for size_mb in sizes_mb:
        found = recover(folder, size_mb)
        yield f"{found.log_mb:10.1f}{found.seconds:20.2f}{found.rows:12,}"
