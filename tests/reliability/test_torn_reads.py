"""Readers see whole commits: all rows of each or none, small and large, of inserts, changes and deletes.

DuckDB 2.0.0 showed parts of a commit that was still on its way, if one statement of several threads had
inserted more rows than a row group has. This tells whether a release does:
``pytest -m slow tests/reliability/test_torn_reads.py``.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from fiberstore import DuckDBStorage, Fiber, FiberRecord, Fibers, LogRecord, Logs, RawLog
from fiberstore.repositories.storage import SqlStorage
from tests.support.factories import a_fiber

READERS = 3
LOOKS = 20  # of one session
SMALL, MIDDLE, LARGE = 10, 3_000, 150_000  # the last exceeds a row group of 122,880
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


class Commits:
    """Makes commits of known sizes, and looks at them.

    The ``source_id`` of a log and the ``fiber_type`` of a fiber begin with the number of rows of its commit.
    """

    def __init__(self, storage: SqlStorage) -> None:
        self._storage = storage
        self._names = count()
        self._over = threading.Event()
        self.looks = 0
        self.torn: list[str] = []

    def watch(self, change: Callable[[], None]) -> None:
        """Make a change while others look."""
        with ThreadPoolExecutor(READERS) as threads:
            readers = [threads.submit(self._look) for _ in range(READERS)]
            try:
                change()
            finally:
                self._over.set()
            for reader in readers:
                reader.result()

    def write_and_delete_logs(self, rows: int) -> None:
        source_id = f"{rows} {next(self._names)}"
        logs = [
            LogRecord(timestamp=NOON + timedelta(milliseconds=row), source_id=source_id, raw_text="GET /")
            for row in range(rows)
        ]
        assert self._storage.write_logs(logs) == rows
        assert self._storage.logs.where(Logs.c.source_id == source_id).delete().logs == rows

    def write_close_and_delete_fibers(self, rows: int) -> None:
        fiber_type = f"{rows} {next(self._names)}"
        fibers: list[FiberRecord] = [a_fiber(fiber_type=fiber_type) for _ in range(rows)]
        assert self._storage.write_fibers(fibers) == rows
        of_type = self._storage.fibers.where(Fibers.c.fiber_type == fiber_type)
        assert of_type.close() == rows
        assert of_type.delete().fibers == rows

    def _look(self) -> None:
        logs = sa.select(RawLog.source_id, sa.func.count()).group_by(RawLog.source_id)
        fibers = sa.select(Fiber.fiber_type, sa.func.count()).group_by(Fiber.fiber_type, Fiber.closed)
        while not self._over.is_set():
            with self._storage.session() as session:
                for _ in range(LOOKS):
                    for query in (logs, fibers):
                        for name, rows in session.execute(query):
                            if rows != int(name.split()[0]):
                                self.torn.append(f"{rows} of {name}")
                    self.looks += 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_readers_see_whole_commits(any_storage: SqlStorage, long_form: bool) -> None:
    commits = Commits(any_storage)

    def change() -> None:
        for _ in range(200 if long_form else 1):
            for rows in (SMALL, MIDDLE, LARGE):
                commits.write_and_delete_logs(rows)
            for rows in (SMALL, MIDDLE):
                commits.write_close_and_delete_fibers(rows)

    commits.watch(change)
    assert commits.torn == []
    assert commits.looks > READERS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_duckdb_shows_no_part_of_an_insert_of_several_threads(db_file: Path, long_form: bool) -> None:
    # Without optimistic writes, the moment in which DuckDB 2.0.0 showed parts was longer.
    with DuckDBStorage(f"duckdb:///{db_file}?enable_optimistic_write=false&threads=2") as storage:
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE ready AS SELECT range AS number FROM range(1_000_000)")
            connection.exec_driver_sql("CREATE TABLE filled (number BIGINT)")
        over = threading.Event()

        def look() -> list[tuple[int, int]]:
            torn = []
            while not over.is_set():
                with storage.engine.connect() as connection:
                    count_rows = sa.text("SELECT count(*) FROM filled WHERE number >= 0")
                    first = connection.scalar(count_rows)
                    later = [connection.scalar(count_rows) for _ in range(LOOKS)]
                    torn += [(first, rows) for rows in later if rows != first]
            return torn

        with ThreadPoolExecutor(1) as threads:
            reader = threads.submit(look)
            for _ in range(500 if long_form else 20):
                with storage.engine.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO filled SELECT number FROM ready")
            over.set()
            assert reader.result() == []
