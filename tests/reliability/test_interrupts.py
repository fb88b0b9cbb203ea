"""Ctrl-C at every place of a call: nothing stays owned by nobody, and the call has happened wholly or not."""

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Never

import pytest
from sqlalchemy.exc import SQLAlchemyError

import fiberstore
from fiberstore import DuckDBStorage, Fiber
from fiberstore.duckdb.change_lock import ChangeLock
from fiberstore.testing.examples import fiber, log, uid
from tests.support.parameters import parametrize_mostly_slow

# What is raised in a destructor, Python prints and drops.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Call = Callable[[DuckDBStorage, int], object]
Scope = Callable[[CodeType], bool]

_OURS = Path(fiberstore.__file__).parent
_OWNERS = ("change_lock", "write_signal", "compact", "storage", "connection")
_GUARDS = {
    str(_OURS / file)
    for file in (
        "sql/holds.py",
        "sql/pool.py",
        "repositories/access.py",
        *(f"duckdb/{owner}.py" for owner in _OWNERS),
    )
}


def guards(code: CodeType) -> bool:
    """Tell whether a function has to do with what others wait for."""
    return code.co_filename in _GUARDS or code.co_filename.endswith("contextlib.py")


def python_in_duckdb(code: CodeType) -> bool:
    """Tell what DuckDB calls while it looks for an Arrow batch and reads it."""
    return "pyarrow" in code.co_filename or code.co_filename.endswith("inspect.py")


def commits(code: CodeType) -> bool:
    """Tell what SQLAlchemy does between a session's ``commit()`` and that of the connection."""
    return code.co_name in ("_do_commit", "_connection_commit_impl", "_commit_impl")


def everything(code: CodeType) -> bool:
    """Tell that any function will do."""
    return code.co_filename != __file__


class Interrupt:
    """Raises ``KeyboardInterrupt`` once, where Python itself would handle a signal.

    That is at the beginning of a function, and when one of C's has returned, before its value is used. Python
    lets a profiler raise at just these places.
    """

    def __init__(self, countdown: int, scope: Scope) -> None:
        self.rest = countdown
        self._scope = scope

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_return") and self._scope(frame.f_code):
            self.rest -= 1
            if self.rest == 0:
                raise KeyboardInterrupt


def interrupted(call: Callable[[], object], countdown: int, scope: Scope) -> bool:
    """Make the call; return whether it came to the interrupt."""
    interrupt = Interrupt(countdown, scope)
    sys.setprofile(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        assert interrupt.rest <= 0
    except (SQLAlchemyError, AssertionError):  # of SQLAlchemy, for a session whose flush was interrupted
        assert interrupt.rest <= 0
    finally:
        sys.setprofile(None)
    return interrupt.rest <= 0


def unit_of_work(storage: DuckDBStorage, number: int) -> None:
    with storage.transaction() as unit:
        unit.logs.write_logs([log(number), log(number + 1)])
        unit.fibers.update_fiber(fiber(0, kind=f"t{number}"))


def orm_session(storage: DuckDBStorage, number: int) -> None:
    with storage.session() as session:
        session.get_one(Fiber, uid(0)).fiber_type = f"t{number}"
        session.commit()


CALLS: dict[str, Call] = {
    "update": lambda storage, number: storage.update_fiber(fiber(0, kind=f"t{number}")),
    "write": lambda storage, number: storage.write_logs([log(number), log(number + 1)]),
    "unit": unit_of_work,
    "session": orm_session,
    "page": lambda storage, _number: storage.logs.page(2),
    "stream": lambda storage, _number: list(storage.logs.iter_records()),
}


def check(storage: DuckDBStorage, helper: ThreadPoolExecutor, number: int) -> None:
    """Look whether another thread can do all there is to do, and whether any call has happened by half."""
    helper.submit(storage.update_fiber, fiber(1, kind=f"t{number}")).result(timeout=30)
    assert storage._calls._running.alive() == []
    for pool in (storage.engine.pool, storage._change_pool):
        assert "Current Checked out connections: 0" in pool.status()
    assert storage.logs.count() % 2 == 0


def interrupt_everywhere(call: Call, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> int:
    """Interrupt a call at each place in turn; return how many there are."""
    monkeypatch.setattr("fiberstore.duckdb.change_lock.LOCK_TIMEOUT_S", 1.0)
    monkeypatch.setattr("fiberstore.repositories.access.RETRY_TIMEOUT_S", 0.0)
    # SQLAlchemy logs such an error with its traceback, and what pytest keeps of it owns what it refers to.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    with DuckDBStorage(":memory:", pool_size=2) as storage, ThreadPoolExecutor(1) as helper:
        storage.init_schema()
        storage.write_fibers([fiber(0), fiber(1)])
        call(storage, 0)
        place = 1
        while interrupted(partial(call, storage, 2 * place), place, scope):
            try:
                check(storage, helper, place)
            except BaseException as error:
                raise AssertionError(f"after an interrupt at place {place}") from error
            place += 1
        return place - 1


def test_the_guards_are_files() -> None:
    assert [file for file in _GUARDS if not Path(file).is_file()] == []


@parametrize_mostly_slow("name", CALLS, quick=1)
def test_an_interrupt_leaves_nothing_owned_by_nobody(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interrupt_everywhere(CALLS[name], guards, monkeypatch) > 10


def test_an_interrupt_before_a_commit_leaves_no_transaction_in_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert interrupt_everywhere(CALLS["session"], commits, monkeypatch) >= 3


def test_an_interrupt_while_duckdb_reads_a_batch_is_a_keyboard_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DuckDB itself says that there is no such table, or that an object could not be read."""
    assert interrupt_everywhere(CALLS["write"], python_in_duckdb, monkeypatch) > 5


def test_an_interrupt_while_a_storage_is_opened_is_a_keyboard_interrupt(
    db_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_database: str) -> Never:
        raise RuntimeError("Query interrupted")  # what DuckDB raises

    with monkeypatch.context() as patch:
        patch.setattr(ChangeLock, "of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            DuckDBStorage(db_file)
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CALLS if name != "session"])  # it is SQLAlchemy's own
def test_an_interrupt_anywhere_leaves_nothing_owned_by_nobody(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interrupt_everywhere(CALLS[name], everything, monkeypatch) > 100
