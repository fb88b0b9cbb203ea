"""Many threads and tasks at once: what they were told and what is stored has one explanation."""

import asyncio
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

import fiberstore.duckdb.change_lock
from fiberstore import AsyncDuckDBStorage, DuckDBStorage, PostgresStorage
from tests.support.postgres_server import connections_in_use
from tests.support.serializability_checker import (
    Change,
    Entry,
    Outcome,
    Read,
    Values,
    contradictions,
    stale_register,
)
from tests.support.workload import Load, TaskLoad

POOL_SIZE = 2


def done(call: int, begin: float, end: float) -> Change:
    return Change(call, begin, end, Outcome.DONE)


ONE = Entry(1, 1, {"a": None}, {"a": 1, "b": 1})
TWO = Entry(2, 2, {"a": 1}, {"a": 2})
CALLS = [done(1, 0, 1), done(2, 2, 3)]
END: Values = {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("changes", "reads", "journal"),
    [
        (CALLS, [], [ONE, TWO]),
        (CALLS, [], [TWO, ONE]),
        (CALLS, [Read(1.5, 1.6, {"a": 1, "b": 1}, 1), Read(0.5, 2.5, {"a": None, "b": None}, 0)], [ONE, TWO]),
        (CALLS, [Read(0.5, 2.5, {"a": 2, "b": 1}), Read(4, 5, {"c": None})], [ONE, TWO]),
        ([*CALLS, Change(3, 0, 9, Outcome.FAILED)], [], [ONE, TWO]),
        ([CALLS[0], Change(2, 2, 2, Outcome.UNKNOWN)], [Read(8, 9, {"a": 2})], [ONE, TWO]),
        ([CALLS[0], Change(2, 2, 2, Outcome.UNKNOWN)], [Read(8, 9, {"a": 1})], [ONE, TWO]),
    ],
    ids=[
        "one after the other",
        "the journal in any order",
        "snapshots that are known",
        "snapshots that are not",
        "a failure",
        "a cancelled call that was in time",
        "a cancelled call that came later",
    ],
)
def test_a_history_that_can_be(changes: list[Change], reads: list[Read], journal: list[Entry]) -> None:
    assert contradictions(changes, reads, journal, END) == []


@pytest.mark.parametrize(
    ("changes", "reads", "journal", "final", "complaint"),
    [
        (CALLS, [], [ONE, Entry(2, 2, {"a": None}, {"a": 2})], END, "has not read"),
        (CALLS, [], [ONE, Entry(1, 2, {"a": 1}, {"a": 2})], END, "positions of the journal"),
        (CALLS, [], [ONE, TWO], {"a": 1, "b": 1}, "the end is"),
        (CALLS, [], [ONE, TWO], {"a": 2, "b": 1, "c": 1}, "the end is"),
        (CALLS, [], [ONE, TWO], {"a": 2}, "the end is"),
        (CALLS, [], [ONE], {"a": 1, "b": 1}, "is entered 0 times"),
        (CALLS[:1], [], [ONE, TWO], END, "nobody made call 2"),
        ([CALLS[0], Change(2, 2, 3, Outcome.FAILED)], [], [ONE, TWO], END, "is entered 1 times"),
        ([done(1, 2, 3), done(2, 0, 1)], [], [ONE, TWO], END, "does not follow"),
        (CALLS, [Read(1.5, 1.6, {"a": 1, "b": None}, 1)], [ONE, TWO], END, "nothing explains"),
        (CALLS, [Read(0.5, 9, {"a": 2, "b": None})], [ONE, TWO], END, "nothing explains"),
        (CALLS, [Read(4, 5, {"a": 1}, 1)], [ONE, TWO], END, "a read saw 1 entries"),
        (CALLS, [Read(4, 5, {"a": 1})], [ONE, TWO], END, "nothing explains"),
        (CALLS, [Read(0.5, 1.5, {"a": 2}, 2)], [ONE, TWO], END, "a read saw 2 entries"),
    ],
    ids=[
        "a lost update",
        "two transactions on one snapshot",
        "a change that the end lacks",
        "a value from nowhere",
        "a value that is missing",
        "an acknowledged call that is missing",
        "a call from nowhere",
        "a failure that was stored",
        "an order against time",
        "a torn read of a known snapshot",
        "a torn read",
        "a stale snapshot",
        "a stale read",
        "a read of the future",
    ],
)
def test_a_history_that_cannot_be(
    changes: list[Change], reads: list[Read], journal: list[Entry], final: Values, complaint: str
) -> None:
    found = contradictions(changes, reads, journal, final)
    assert found
    assert all(complaint in problem for problem in found)


@pytest.mark.parametrize(
    ("read", "complaint"),
    [
        (Read(1.5, 1.6, {"a": 1}), ""),
        (Read(2.5, 9, {"a": 1}), ""),  # while it is written over
        (Read(2.5, 2.6, {"a": 2}), ""),
        (Read(4, 5, {"a": 3}), ""),  # its writer was cancelled
        (Read(4, 5, {"a": 1}), "written over"),
        (Read(1.5, 1.6, {"a": 2}), "was not written"),
        (Read(4, 5, {"a": 4}), "was not written"),
        (Read(4, 5, {"a": None}), "was not written"),
    ],
)
def test_a_value_that_is_written_over_and_over(read: Read, complaint: str) -> None:
    writes = [(done(1, 0, 1), 1), (done(2, 2, 3), 2), (Change(3, 1, 1, Outcome.UNKNOWN), 3)]
    found = stale_register([*writes, (Change(4, 0, 1, Outcome.FAILED), 4)], [read], "a")
    assert len(found) == bool(complaint)
    assert complaint in "".join(found)


@contextmanager
def changing_threads_often() -> Iterator[None]:
    """Let Python change between the threads 100 times as often as usual, so that they meet."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(usual_s / 100)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def assert_all_is_given_back(storage: DuckDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """See that every connection is in the pool without a transaction, and that the change lock is free."""
    for pool in (storage.engine.pool, storage._change_pool):
        assert "Current Checked out connections: 0" in pool.status()
    everything = [storage.engine.raw_connection() for _ in range(POOL_SIZE)]
    for pooled in everything:
        connection = cast("fiberstore.duckdb.connection.DuckDBConnection", pooled.dbapi_connection)
        assert not connection.in_transaction
        connection.begin()  # DuckDB refuses it in an open transaction
        pooled.close()
    monkeypatch.setattr(fiberstore.duckdb.change_lock, "LOCK_TIMEOUT_S", 0)
    with storage.transaction():
        pass
    monkeypatch.undo()


def run_threads(
    path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, calls: int, seed: int, *, beside: bool = False
) -> Load:
    """Let threads make calls by chance on a new store; check what they were told.

    Args:
        path: Of the store.
        monkeypatch: For the check of what is given back.
        threads: How many.
        calls: How many each of them makes.
        seed: Decides which.
        beside: Whether backups, compactions, copies and examinations are among them.
    """

    def work(name: str) -> None:
        rng = random.Random(name)
        steps = load.steps_beside() if beside else load.steps()
        for _ in range(calls):
            rng.choice(steps)(rng)

    with DuckDBStorage(path, pool_size=2 * threads if beside else POOL_SIZE) as storage:
        storage.init_schema()
        load = Load(storage)
        with changing_threads_often(), ThreadPoolExecutor(threads) as pool:
            for one in [pool.submit(work, f"{seed}/{number}") for number in range(threads)]:
                one.result()
        assert load.problems(storage) == []
        if beside:
            assert load.problems_beside() == []
            load.copy.close()
        assert_all_is_given_back(storage, monkeypatch)
    return load


def run_threads_on_server(url: str, threads: int, calls: int, seed: int) -> None:
    """Do the same on a PostgreSQL server."""

    def work(name: str) -> None:
        rng = random.Random(name)
        for _ in range(calls):
            rng.choice(load.steps_of_storage())(rng)

    with PostgresStorage(url, pool_size=POOL_SIZE) as storage:
        storage.init_schema()
        load = Load(storage)
        with changing_threads_often(), ThreadPoolExecutor(threads) as pool:
            for one in [pool.submit(work, f"{seed}/{number}") for number in range(threads)]:
                one.result()
        assert load.problems(storage) == []
        assert connections_in_use(storage) == 0


def run_tasks(path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int, calls: int, seed: int) -> Load:
    """Do the same with tasks, some of which are cancelled."""

    async def body(load: Load) -> None:
        async with AsyncDuckDBStorage(path, pool_size=POOL_SIZE) as storage:
            task_load = TaskLoad(load, storage)
            await asyncio.gather(*(task_load.run(f"{seed}/{number}", calls) for number in range(tasks)))

    threads = set(threading.enumerate())
    with DuckDBStorage(path, pool_size=POOL_SIZE) as storage:
        storage.init_schema()
        load = Load(storage)
        with changing_threads_often():
            asyncio.run(body(load))
        assert load.problems(storage) == []
        assert_all_is_given_back(storage, monkeypatch)
    assert set(threading.enumerate()) == threads
    return load


@pytest.mark.usefixtures("collects_garbage")
def test_a_few_threads(db_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_threads(db_file, monkeypatch, threads=4, calls=8, seed=1)


def test_a_few_threads_on_a_server(postgres_url: str) -> None:
    run_threads_on_server(postgres_url, threads=4, calls=15, seed=5)


@pytest.mark.slow
@pytest.mark.usefixtures("collects_garbage")
def test_a_few_tasks(db_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_tasks(db_file, monkeypatch, tasks=16, calls=6, seed=2)


@pytest.mark.slow
@pytest.mark.usefixtures("collects_garbage")
@pytest.mark.timeout(3600)
def test_sixteen_threads(db_file: Path, monkeypatch: pytest.MonkeyPatch, long_form: bool) -> None:
    load = run_threads(db_file, monkeypatch, threads=16, calls=400 if long_form else 20, seed=3)
    assert {change.outcome for change in load.changes} == {Outcome.DONE, Outcome.FAILED}


@pytest.mark.slow
@pytest.mark.usefixtures("collects_garbage")
@pytest.mark.timeout(3600)
def test_threads_beside_backups_compactions_and_copies(
    db_file: Path, monkeypatch: pytest.MonkeyPatch, long_form: bool
) -> None:
    run_threads(db_file, monkeypatch, threads=6, calls=200 if long_form else 20, seed=7, beside=True)


@pytest.mark.slow
@pytest.mark.usefixtures("collects_garbage")
@pytest.mark.timeout(3600)
def test_sixty_four_tasks(db_file: Path, monkeypatch: pytest.MonkeyPatch, long_form: bool) -> None:
    load = run_tasks(db_file, monkeypatch, tasks=64, calls=200 if long_form else 12, seed=4)
    assert {change.outcome for change in load.changes} == set(Outcome)


@pytest.mark.slow
@pytest.mark.usefixtures("collects_garbage")
@pytest.mark.timeout(3600)
def test_sixteen_threads_on_a_server(postgres_url: str, long_form: bool) -> None:
    run_threads_on_server(postgres_url, threads=16, calls=400 if long_form else 20, seed=6)
