"""Every row of the table of bad input: the right error, an unchanged store, and one that works."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

import fiberstore
from fiberstore import AsyncDuckDBStorage, DuckDBStorage, Storage, create_engine
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from fiberstore.testing.examples import at, fiber, log, member, stored, uid
from tests.support.bad_input import (
    CALLS,
    IN_TRANSACTION,
    NUMBERS_TO_OPEN,
    TARGETS,
    InTransaction,
    bad_records,
)
from tests.support.databases import empty
from tests.support.parameters import parametrize_mostly_slow
from tests.support.sync_face import SyncFace, running_loop

FACES = ("sync", "async")
new_numbers = itertools.count(1_000)


@pytest.fixture(scope="module")
def stores(postgres_tables_url: str) -> Iterator[dict[str, tuple[Storage, sa.Engine]]]:
    with (
        running_loop() as loop,
        DuckDBStorage(":memory:") as store,
        PostgresStorage(postgres_tables_url) as on_server,
    ):
        empty(on_server.engine)
        other = AsyncDuckDBStorage(":memory:")
        face = SyncFace.of(other, loop)
        for storage in (store, face, on_server):
            storage.init_schema()
            storage.write_logs([log(8), stored(9)])
            storage.write_fiber(fiber(8, attributes={"user": "ada"}))
            storage.write_memberships([member(8, 8)])
        try:
            yield {
                "sync": (store, store.engine),
                "async": (face, other.engine),
                "postgresql": (on_server, on_server.engine),
            }
        finally:
            face.run(other.close())


EVERYTHING = " UNION ALL ".join(
    f"SELECT t::VARCHAR FROM {table} AS t" for table in ("raw_logs", "fibers", "fiber_memberships")
)


def all_rows(engine: sa.Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.exec_driver_sql(EVERYTHING).scalars().all())


def assert_usable(storage: Storage) -> None:
    """Add a log, read it, change the fiber, read it."""
    number = next(new_numbers)
    assert storage.write_logs([log(number)]) == 1
    found = storage.get_log(uid(number))
    assert found is not None
    assert found.timestamp == at(number)
    changed = fiber(8, attributes={"user": "ada", "number": number})
    storage.update_fiber(changed)
    assert storage.get_fiber(uid(8)) == changed


def assert_refused(call: Callable[[], object], error: type[Exception], says: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for words in says:
        assert words in str(caught.value)


@contextmanager
def telling(row: object) -> Iterator[None]:
    """Add to an error which row of the table it is about."""
    try:
        yield
    except BaseException as error:
        error.add_note(str(row))
        raise


def test_a_column_that_is_none_is_told_with_those_there_are() -> None:
    with pytest.raises(
        AttributeError, match=r"no column 'source'; there are .*log_id, .*source_id, timestamp"
    ):
        getattr(fiberstore.Logs.c, "source")  # noqa: B009  # as a type checker would refuse it
    assert not hasattr(fiberstore.Fibers.c, "timestamp")


def test_the_table_is_long() -> None:
    assert len(CALLS) > 300


def test_a_record_is_not_made() -> None:
    for name, call, error, says in bad_records():
        with telling(name):
            assert_refused(call, error, says)


@pytest.mark.slow
@pytest.mark.parametrize("face", [*FACES, "postgresql"])
@pytest.mark.parametrize("method", sorted({row.method for row in CALLS}))
def test_a_call_is_refused(stores: dict[str, tuple[Storage, sa.Engine]], face: str, method: str) -> None:
    storage, engine = stores[face]
    for row in CALLS:
        if row.method == method:
            before = all_rows(engine)
            call = partial(getattr(storage, method), *row.arguments, **row.options)
            with telling(row):
                assert_refused(call, row.error, (row.says,))
                assert all_rows(engine) == before
    assert_usable(storage)


@pytest.mark.parametrize("face", ["sync", "postgresql"])
@parametrize_mostly_slow("row", IN_TRANSACTION, quick=3, ids=[row.name for row in IN_TRANSACTION])
def test_a_call_of_a_repository_is_refused_and_rolls_its_transaction_back(
    stores: dict[str, tuple[Storage, sa.Engine]], row: InTransaction, face: str
) -> None:
    storage, engine = stores[face]
    assert isinstance(storage, SqlStorage)
    before = all_rows(engine)

    def call() -> None:
        with storage.transaction() as transaction:
            transaction.logs.write_logs([log(500)])
            row.call(transaction)

    assert_refused(call, row.error, (row.says,))
    assert all_rows(engine) == before
    assert_usable(storage)


# ---------------------------------------------------------------- opening


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file.txt").write_text("this is no database\n" * 500)
    return tmp_path


OPENERS = {"engine": create_engine, "sync": DuckDBStorage, "async": AsyncDuckDBStorage}


def assert_nothing_is_left(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["file.txt"]
    assert (folder / "file.txt").read_text() == "this is no database\n" * 500
    with DuckDBStorage(folder / "good.duckdb") as storage:
        assert storage.config_version == 0


@pytest.mark.parametrize("opener", FACES)
@parametrize_mostly_slow(("target", "error", "says"), TARGETS, quick=3)
def test_a_target_is_refused(
    *, folder: Path, opener: str, target: object, error: type[Exception] | str, says: str
) -> None:
    if isinstance(target, str):
        target = target.replace("{folder}", str(folder))
    kind = getattr(fiberstore, error) if isinstance(error, str) else error
    assert_refused(lambda: OPENERS[opener](target), kind, (says,))  # type: ignore[operator]
    assert_nothing_is_left(folder)


@parametrize_mostly_slow(("opener", "name", "value", "error", "says"), NUMBERS_TO_OPEN, quick=6)
def test_an_argument_of_opening_is_refused(
    *, folder: Path, opener: str, name: str, value: object, error: type[Exception], says: str
) -> None:
    assert_refused(lambda: OPENERS[opener](folder / "s.duckdb", **{name: value}), error, (says,))  # type: ignore[operator]
    assert_nothing_is_left(folder)
