"""The order in which rows arrive, and cursors that know what of it they have seen."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import sqlalchemy as sa

from fiberstore import DuckDBStorage, RawLog
from fiberstore.contract.cursors import PagePosition, Watermark, encode
from fiberstore.contract.queries import LogOrder, Logs
from fiberstore.duckdb.arrival_order import RowidOrder
from fiberstore.duckdb.connection import DuckDBConnection
from fiberstore.errors import CursorError
from fiberstore.sql.conditions import LOGS
from fiberstore.testing.examples import at, fiber, log, uid
from fiberstore.testing.filters import numbers
from fiberstore.testing.query_pages import walk

if TYPE_CHECKING:
    from fiberstore.contract.results import Page

WRITERS = 4
COMMIT_ORDER = RowidOrder(LOGS, LOGS.c.log_id)


@contextmanager
def connected(storage: DuckDBStorage) -> Iterator[DuckDBConnection]:
    pooled = storage.engine.raw_connection()
    try:
        yield cast("DuckDBConnection", pooled.dbapi_connection)
    finally:
        pooled.close()


def delete(storage: DuckDBStorage, *log_numbers: int) -> None:
    with storage.session() as session:
        session.execute(sa.delete(RawLog).where(RawLog.log_id.in_(list(map(uid, log_numbers)))))
        session.commit()


def fill(storage: DuckDBStorage, count: int = 10) -> None:
    storage.write_logs([log(number) for number in range(count)])


def marked(storage: DuckDBStorage) -> Watermark:
    with storage.session() as session, COMMIT_ORDER.snapshot(session, None) as mark:
        return mark


def cursor_of(query: Logs, place: int, mark: Watermark) -> str:
    """Return a cursor right after the log of that number, of a walk that has seen what the mark says."""
    microseconds = round(at(place).timestamp()) * 10**6
    return encode(repr(query), PagePosition(True, (microseconds, uid(place)), mark))


def test_mark_is_the_newest_row(storage: DuckDBStorage) -> None:
    assert marked(storage) == Watermark(None, -1)
    storage.write_logs([log(5), log(3)])
    storage.write_logs([log(4)])
    assert marked(storage) == Watermark(uid(4), 2)


def test_a_cursor_with_holes_is_of_another_release(storage: DuckDBStorage) -> None:
    fill(storage)
    with pytest.raises(CursorError, match="another release"):
        storage.logs.page(3, cursor_of(storage.logs, 3, Watermark(uid(9), 9, ((7, 7),))))


def test_a_walk_beside_deleted_rows_meets_everything_once(storage: DuckDBStorage) -> None:
    fill(storage, 30)
    delete(storage, *range(5, 9), *range(12, 25, 3))
    there = numbers(storage.logs.iter_records())
    met, late, cursor = [], [], None
    for new in (None, -1, -2, None, -3, None, -4):
        page: Page[Any] = storage.logs.page(2, cursor)
        met += numbers(page.items)
        late += numbers(page.late)
        cursor = page.next
        if new is not None:
            storage.write_logs([log(100 - new, new)])
    for page in walk(storage.logs, 3, cursor):
        met += numbers(page.items)
        late += numbers(page.late)
    assert met == there
    assert late == [101, 102, 103, 104]


def test_rows_of_a_transaction_that_has_not_committed_are_no_marks(storage: DuckDBStorage) -> None:
    fill(storage)
    with storage.transaction() as transaction:
        transaction.logs.write_logs([log(50)])
        page = transaction.logs.page(4)
        assert len(transaction.logs.page(100).items) == 11
        outside = storage.logs.page(4)
        assert page.next == outside.next


def test_a_cursor_whose_newest_log_was_deleted_raises_cursor_error(storage: DuckDBStorage) -> None:
    fill(storage)
    page = storage.logs.order_by("newest").page(3)
    delete(storage, 9)
    with pytest.raises(CursorError, match=r"has been deleted.*start again without the cursor") as raised:
        storage.logs.order_by("newest").page(3, page.next)
    assert str(uid(9)) in str(raised.value)


@pytest.mark.slow
def test_a_cursor_outlives_rows_that_are_deleted_and_a_checkpoint(storage: DuckDBStorage) -> None:
    with storage.session() as session:
        session.execute(
            sa.text(
                "INSERT INTO raw_logs SELECT ('00000000-0000-0000-0000-' || printf('%012x', n))::UUID, "
                f"to_timestamp({int(at(0).timestamp())} + n), 'web', 'x', now(), 0 FROM range(300000) logs(n)"
            )
        )
        session.commit()
    first = storage.logs.page(10)
    with storage.session() as session:
        for start, end in ((5, 99), (200, 249), (1_000, 299_000)):
            session.execute(sa.delete(RawLog).where(RawLog.timestamp.between(at(start), at(end))))
        session.commit()
    with connected(storage) as connection:
        connection.cursor().execute("FORCE CHECKPOINT")
    storage.write_logs([log(400_000, -5), log(400_001, 20)])
    second = storage.logs.page(10, first.next)
    assert numbers(second.late) == [400_000]
    assert numbers(second.items) == [400_001, *range(100, 109)]


def test_a_cursor_outlives_the_storage_it_came_from(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        fill(storage)
        first = storage.logs.page(4)
    with DuckDBStorage(db_file) as storage:
        storage.write_logs([log(100, -1)])
        second = storage.logs.page(4, first.next)
        assert (numbers(second.items), numbers(second.late)) == ([4, 5, 6, 7], [100])
    with DuckDBStorage(db_file) as storage:
        third = storage.logs.page(4, second.next)
        assert (numbers(third.items), numbers(third.late)) == ([8, 9], [])


def test_a_cursor_is_good_for_a_backup_too(storage: DuckDBStorage, tmp_path: Path) -> None:
    fill(storage)
    delete(storage, 2, 5)
    first = storage.logs.page(3)
    storage.write_logs([log(100, -1), log(101, 20)])
    storage.backup(tmp_path / "copy.duckdb")
    with DuckDBStorage(tmp_path / "copy.duckdb") as copy:
        second = copy.logs.page(4, first.next)
        assert (numbers(second.items), numbers(second.late)) == ([4, 6, 7, 8], [100])
        copy.write_logs([log(102, -1)])
        third = copy.logs.page(4, second.next)
        assert (numbers(third.items), numbers(third.late)) == ([9, 101], [102])


def test_a_cursor_of_an_empty_store_knows_that_all_is_new(storage: DuckDBStorage) -> None:
    cursor = cursor_of(storage.logs, 5, Watermark(None, -1))
    fill(storage)
    page = storage.logs.page(100, cursor)
    assert (numbers(page.items), numbers(page.late)) == ([6, 7, 8, 9], [0, 1, 2, 3, 4, 5])


def test_fibers_that_change_all_at_once_behind_the_place_are_late_once(storage: DuckDBStorage) -> None:
    for number in range(10):
        storage.write_fiber(fiber(number))
    first = storage.fibers.page(6)
    with storage.transaction() as transaction:
        transaction.fibers.upsert_fibers([fiber(number, "login") for number in range(10)])
    pages = list(walk(storage.fibers, 2, first.next))
    assert sorted(number for page in pages for number in numbers(page.late)) == [0, 1, 2, 3, 4, 5]
    assert [number for page in pages for number in numbers(page.items)] == [6, 7, 8, 9]


class Writers:
    """Threads that store logs of random times in batches of many sizes.

    Attributes:
        committed: The ids of the logs of which that was acknowledged, in that order.
    """

    def __init__(self, storage: DuckDBStorage, sizes: list[int], batches: int, seed: int) -> None:
        self.committed: list[int] = []
        self._storage = storage
        self._sizes = sizes
        self._batches = batches
        self._seed = seed
        self._barrier = threading.Barrier(WRITERS + 1)

    def write(self, writer: int) -> None:
        chosen = random.Random(self._seed * WRITERS + writer)
        self._barrier.wait()
        number = (writer + 1) * 10**6
        for _ in range(self._batches):
            size = chosen.choice(self._sizes)
            self._storage.write_logs([log(number + step, chosen.randrange(10_000)) for step in range(size)])
            self.committed += range(number, number + size)
            number += size

    @contextmanager
    def running(self) -> Iterator[Callable[[], bool]]:
        """Let them write; give what tells whether all have ended."""
        with ThreadPoolExecutor(WRITERS) as pool:
            futures = [pool.submit(self.write, writer) for writer in range(WRITERS)]
            self._barrier.wait()
            yield lambda: all(future.done() for future in futures)
            for future in futures:
                future.result()


def check_walk(query: Logs, limit: int, writers: Writers) -> int:
    """Walk through all, and return how many came late."""
    met, late = [], 0
    known, cursor = 0, None
    while True:
        known = len(writers.committed)
        page = query.page(limit, cursor)
        met += [*numbers(page.items), *numbers(page.late)]
        late += len(page.late)
        cursor = page.next
        if cursor is None:
            break
    assert len(met) == len(set(met))
    assert set(writers.committed[:known]) - set(met) == set()
    return late


FEW, MANY = (40, [1, 2, 5, 30], 60), (1_500, [1, 50, 400, 3_000], 15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "limit", "sizes", "batches"),
    [
        pytest.param("oldest", *FEW, id="few-oldest"),
        pytest.param("newest", *FEW, id="few-newest", marks=pytest.mark.slow),
        pytest.param("oldest", *MANY, id="many-oldest", marks=pytest.mark.slow),
        pytest.param("newest", *MANY, id="many-newest"),
    ],
)
def test_a_walk_beside_writers_meets_every_log_exactly_once(
    storage: DuckDBStorage, order: LogOrder, limit: int, sizes: list[int], batches: int
) -> None:
    query = storage.logs.order_by(order)
    late = 0
    writers = Writers(storage, sizes, batches, seed=limit)
    with writers.running() as have_ended:
        while not have_ended():
            late += check_walk(query, limit, writers)
    assert late > 0  # or there was nothing to see
    assert check_walk(query, limit, writers) == 0
    assert sorted(numbers(query.iter_records())) == sorted(writers.committed)
