"""Several processes on one PostgreSQL database: nothing is lost or half, and conflicts are run again."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from fiberstore import (
    ConflictError,
    DatabaseError,
    Fiber,
    LogRepository,
    Membership,
    PostgresStorage,
    RawLog,
)
from fiberstore.sql.translate import translate_errors
from fiberstore.testing.examples import fiber, log, uid
from tests.duckdb.test_processes import forks, in_a_child, needs_fork
from tests.support import postgres_programs
from tests.support.postgres_programs import PROCESSES, READ_BATCHES, READ_ROWS, ROWS, STEPS

Together = Callable[[str], list[Any]]
"""Lets all processes run a program of ``postgres_programs`` at once, and returns what they return."""


def impatient(url: str) -> str:
    """Let the server look for a deadlock sooner."""
    return make_url(url).update_query_dict({"options": "-c deadlock_timeout=20ms"}).render_as_string(False)


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, spawn, postgres_programs.prepare, (barrier,)) as pool:
        yield pool


@pytest.fixture
def together(processes: ProcessPoolExecutor, postgres_url: str) -> Together:
    def run(program: str) -> list[Any]:
        url = impatient(postgres_url)
        calls = [processes.submit(postgres_programs.run, program, number, url) for number in range(PROCESSES)]
        return [call.result(100) for call in calls]

    return run


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStorage]:
    with PostgresStorage(impatient(postgres_url)) as storage:
        storage.init_schema()
        yield storage


@pytest.mark.slow
def test_processes_build_the_tables_at_once(together: Together, postgres_url: str) -> None:
    together("build")
    with PostgresStorage(postgres_url) as storage:
        assert storage.write_logs([log(1)]) == 1


@pytest.mark.slow
def test_processes_that_append_the_same_rows_store_each_once(
    together: Together, store: PostgresStorage
) -> None:
    counts = together("append")
    assert sum(logs for logs, _ in counts) == store.logs.count() == 5 * (ROWS + PROCESSES)
    assert sum(memberships for _, memberships in counts) == store.memberships.count()


@pytest.mark.slow
def test_processes_that_count_in_one_fiber_lose_nothing(together: Together, store: PostgresStorage) -> None:
    store.write_fibers([fiber(1, attributes={}), fiber(2)])
    together("count_up")
    found = store.get_fiber(uid(1))
    assert found is not None
    own = {f"process {number}": STEPS for number in range(PROCESSES)}
    assert found.attributes == {"all": PROCESSES * STEPS, **own}


@pytest.mark.slow
def test_of_processes_that_write_one_fiber_one_is_first(together: Together, store: PostgresStorage) -> None:
    firsts = together("be_first")
    assert sorted(one for first in firsts for one in first) == list(range(STEPS))
    for number, first in enumerate(firsts):
        found = store.fibers.get_many([uid(100 + one) for one in first])
        assert {one.attributes for one in found.items} <= {number}


@pytest.mark.slow
def test_processes_that_move_a_checkpoint_lose_no_step(together: Together, store: PostgresStorage) -> None:
    moved = sum(together("step_on"))
    found = store.checkpoints.get("place")
    assert found is not None
    assert int(found.value) == moved >= STEPS


@pytest.mark.slow
def test_processes_that_write_over_fibers_in_other_orders_end(
    together: Together, store: PostgresStorage
) -> None:
    assert sum(together("upsert")) == ROWS
    left = {str(found.attributes) for found in store.fibers.iter_records()}
    assert len(left) == 1
    assert left <= {str([number, 2]) for number in range(PROCESSES)}


@pytest.mark.slow
def test_no_membership_of_a_batch_is_left_without_its_log(together: Together, store: PostgresStorage) -> None:
    together("write_and_delete")
    stored = sa.select(RawLog.log_id)
    with store.session() as session:
        strays = session.query(Membership).where(Membership.log_id.not_in(stored)).count()
    assert strays == 0


@pytest.mark.slow
def test_who_reads_beside_processes_that_write_meets_each_log_once(
    together: Together, store: PostgresStorage
) -> None:
    walks, tails, *_ = together("write_or_read")
    assert store.logs.count() == 2 * READ_BATCHES * READ_ROWS
    assert set(tails[0]) == set(walks[-1]) == {found.log_id for found in store.logs.iter_records()}
    assert all(len(set(met)) == len(met) for met in (*walks, *tails))


# ---------------------------------------------------------------- snapshots, conflicts and retries


def test_an_update_waits_for_a_unit_of_work(store: PostgresStorage) -> None:
    """Otherwise the unit, which has read the fiber, could not change it any more."""
    store.write_fiber(fiber(1))
    for attempt in range(7):  # psycopg prepares a statement that it runs often
        with ThreadPoolExecutor(1) as thread:
            with store.transaction() as unit:
                before = unit.fibers.get(uid(1))
                update = thread.submit(store.update_fiber, fiber(1, attributes=["update", attempt]))
                while not update.done() and not _waits(store):
                    pass
                unit.fibers.update(fiber(1, attributes=["unit", attempt]))
            update.result()
        assert before is not None
        found = store.get_fiber(uid(1))
        assert found is not None
        assert found.attributes == ["update", attempt]
    assert store.stats().conflicts == 0


def _waits(store: PostgresStorage) -> bool:
    with store.session() as session:
        waiting = session.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()
        return bool(waiting)


def test_a_deadlock_of_two_calls_is_run_again(store: PostgresStorage) -> None:
    """Each holds a fiber that the other wants next."""
    store.write_fibers([fiber(1), fiber(2)])
    with store.session() as session, ThreadPoolExecutor(1) as thread:
        session.execute(sa.update(Fiber).where(Fiber.fiber_id == uid(2)).values(closed=True))
        upsert = thread.submit(
            store.upsert_fibers, [fiber(1, attributes="upsert"), fiber(2, attributes="upsert")]
        )
        while not _waits(store):
            pass
        try:
            with translate_errors():
                session.execute(sa.update(Fiber).where(Fiber.fiber_id == uid(1)).values(closed=True))
                session.commit()
        except ConflictError:
            session.rollback()
        assert upsert.result().changed == 2
    assert {found.attributes for found in store.fibers.iter_records()} == {"upsert"}


def test_a_session_of_the_application_gets_a_conflict(store: PostgresStorage) -> None:
    store.write_fiber(fiber(1))
    with store.session() as session:
        row = session.get_one(Fiber, uid(1))
        store.update_fiber(fiber(1, "retyped"))
        row.closed = True
        with pytest.raises(ConflictError, match="concurrent update"), translate_errors():
            session.commit()
    found = store.get_fiber(uid(1))
    assert found is not None
    assert (found.fiber_type, found.closed) == ("retyped", False)


def test_a_tail_waits_for_who_has_begun_before(store: PostgresStorage) -> None:
    tail = store.logs.tail("", timeout_s=0)
    with store.session() as session:
        LogRepository(session).write([log(1)])
        store.write_logs([log(2)])
        assert list(tail) == []
        session.commit()
    assert [found.log_id for found in tail] == [uid(1), uid(2)]


def test_a_walk_meets_logs_of_who_has_begun_before_it(store: PostgresStorage) -> None:
    store.write_logs([log(number) for number in range(10, 20)])
    with store.session() as session:
        LogRepository(session).write([log(0), log(15, 5.5), log(30)])
        LogRepository(session).write([log(1)])
        first = store.logs.page(4)
        store.write_logs([log(2), log(31)])
        session.commit()
    met = [*first.items]
    page = first
    while page.next is not None:
        page = store.logs.page(4, page.next)
        met += [*page.items, *page.late]
    assert sorted(found.log_id for found in met) == sorted(
        found.log_id for found in store.logs.iter_records()
    )


HOLD = """
import sys
from fiberstore import PostgresStorage
from fiberstore.testing.examples import log
with PostgresStorage(sys.argv[1]) as storage, storage.transaction() as unit:
    unit.logs.write([log(number) for number in range(200)])
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_who_is_killed_in_a_transaction_leaves_nothing_and_holds_up_nobody(
    store: PostgresStorage, postgres_url: str
) -> None:
    command = [sys.executable, "-c", HOLD, postgres_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "written\n"
        holder.kill()
    with store.transaction() as unit:  # it waits for those who change rows
        assert unit.logs.write([log(number) for number in range(200)]) == 200
    assert store.stats().conflicts == 0


# ---------------------------------------------------------------- fork


@needs_fork
@forks
def test_a_forked_child_opens_connections_of_its_own_and_leaves_its_parents_alone(
    store: PostgresStorage,
) -> None:
    def session_number(session: Session) -> object:
        return session.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()

    store.write_logs([log(1)])
    with store.transaction() as unit, store.session() as session:
        number = session_number(session)
        unit.logs.write([log(2)])

        def work() -> bool:
            with pytest.raises(DatabaseError, match="before this process was forked"):
                unit.logs.write([log(3)])
            assert store.write_logs([log(4)]) == 1
            session.close()
            with store.session() as own:
                assert session_number(own) != number
            store.close()
            return True

        assert in_a_child(work) == 0
        assert session_number(session) == number
    assert [found.log_id for found in store.logs.iter_records()] == [uid(1), uid(2), uid(4)]


@needs_fork
@forks
def test_a_unit_of_work_cannot_be_committed_by_a_forked_child(store: PostgresStorage) -> None:
    unit = store.transaction()
    unit.__enter__().logs.write([log(1)])

    def work() -> bool:
        with pytest.raises(DatabaseError, match="before this process was forked"):
            unit.__exit__(None, None, None)
        return True

    assert in_a_child(work) == 0
    assert store.get_log(uid(1)) is None
    unit.__exit__(None, None, None)
    assert store.get_log(uid(1)) is not None
