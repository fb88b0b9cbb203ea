"""The contract suite, over every storage there is.

Building a schema takes longer than most of these tests, so the tests of a class share one DuckDB storage,
which is emptied before each of them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from fiberstore import (
    AsyncDuckDBStorage,
    AsyncLifecycleStorage,
    DuckDBStorage,
    FiberRepository,
    LogRepository,
    MembershipRepository,
)
from fiberstore.checks import MAX_CONFIG_VERSION
from fiberstore.contract.lifecycle import BatchStorage, FiberBatchStorage, LifecycleStorage
from fiberstore.contract.storage import LogStorage, MembershipStorage
from fiberstore.postgresql import AsyncPostgresStorage, PostgresStorage
from fiberstore.testing import LifecycleContract, QueryContract, StorageContract
from fiberstore.testing.actions import ActionsContract
from fiberstore.testing.attribute_filters import AttributeFiltersContract
from fiberstore.testing.batch_writes import BatchWritesContract
from fiberstore.testing.batches import BatchesContract
from fiberstore.testing.checkpoints import CheckpointsContract
from fiberstore.testing.concurrency import together
from fiberstore.testing.context import ContextContract
from fiberstore.testing.diffs import DiffsContract
from fiberstore.testing.discovery import DiscoveryContract
from fiberstore.testing.examples import IN_UTC, LONG_TEXT, all_logs, log
from fiberstore.testing.fibers import FibersContract
from fiberstore.testing.filter_refusals import FilterRefusalsContract
from fiberstore.testing.filters import FiltersContract
from fiberstore.testing.histograms import HistogramsContract
from fiberstore.testing.joined_filters import JoinedFiltersContract
from fiberstore.testing.keys import KeysContract
from fiberstore.testing.lifecycle_threads import LifecycleThreadsContract
from fiberstore.testing.logs import LogsContract
from fiberstore.testing.memberships import MembershipsContract
from fiberstore.testing.merging import MergingContract
from fiberstore.testing.orders import OrdersContract
from fiberstore.testing.pages import PagesContract
from fiberstore.testing.query_pages import QueryPagesContract
from fiberstore.testing.redaction import RedactionContract
from fiberstore.testing.retention import RetentionContract
from fiberstore.testing.streams import StreamsContract
from fiberstore.testing.tails import TailsContract
from fiberstore.testing.timelines import TimelinesContract
from fiberstore.testing.versions import VersionsContract
from fiberstore.testing.writers import WritersContract
from tests.support import postgres_server
from tests.support.databases import empty
from tests.support.oracle import MemoryStorage
from tests.support.sync_face import SyncFace, running_loop


@pytest.fixture(scope="module")
def memory_store() -> Iterator[DuckDBStorage]:
    # There are too few rows for two threads, and to wake them takes longer than to write.
    with DuckDBStorage("duckdb:///:memory:?threads=1") as store:
        store.init_schema()
        yield store


@pytest.fixture(scope="module")
def file_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBStorage]:
    path = tmp_path_factory.mktemp("contract") / "store.duckdb"
    with DuckDBStorage(path, config_version=TestDuckDBFile.config_version) as store:
        store.init_schema()
        yield store


@pytest.fixture(scope="module")
def async_store() -> Iterator[tuple[AsyncDuckDBStorage, SyncFace]]:
    with running_loop() as loop:
        store = AsyncDuckDBStorage(":memory:", config_version=_Async.config_version)
        face = SyncFace.of(store, loop)
        try:
            face.init_schema()
            yield store, face
        finally:
            face.run(store.close())


@pytest.fixture(scope="module")
def async_postgres_store(postgres_server_url: URL) -> Iterator[tuple[AsyncPostgresStorage, SyncFace]]:
    with postgres_server.database(postgres_server_url) as url, running_loop() as loop:
        store = AsyncPostgresStorage(url, config_version=_Async.config_version)
        face = SyncFace.of(store, loop)
        try:
            face.init_schema()
            yield store, face
        finally:
            face.run(store.close())


@pytest.fixture(scope="module")
def postgres_store(postgres_server_url: URL) -> Iterator[PostgresStorage]:
    with (
        postgres_server.database(postgres_server_url) as url,
        PostgresStorage(url, config_version=_Postgres.config_version) as store,
    ):
        store.init_schema()
        yield store


@pytest.fixture(scope="module")
def other_store() -> Iterator[DuckDBStorage]:
    with DuckDBStorage(":memory:") as store:
        store.init_schema()
        yield store


@pytest.mark.slow
class TestMemory(StorageContract, QueryContract, LifecycleContract):
    """The oracle, whose answers the tests with random calls compare with those of the databases."""

    config_version = 7

    @pytest.fixture
    def storage(self) -> LifecycleStorage:
        return MemoryStorage(config_version=self.config_version)

    @pytest.fixture
    def other(self) -> LifecycleStorage:
        return MemoryStorage()


@pytest.mark.slow
class TestAsyncMemory(StorageContract, QueryContract, LifecycleContract):
    """The async face of a storage that knows nothing of it: every method, with every argument."""

    config_version = TestMemory.config_version

    @pytest.fixture
    def storage(self) -> Iterator[LifecycleStorage]:
        with running_loop() as loop:
            store = AsyncLifecycleStorage(MemoryStorage(config_version=self.config_version), threads=8)
            face = SyncFace.of(store, loop)
            yield face
            face.run(store.close())

    @pytest.fixture
    def other(self) -> LifecycleStorage:
        return MemoryStorage()


class _DuckDB:
    @pytest.fixture
    def storage(self, memory_store: DuckDBStorage) -> LifecycleStorage:
        empty(memory_store.engine)
        return memory_store

    @pytest.fixture
    def other(self, other_store: DuckDBStorage) -> LifecycleStorage:
        empty(other_store.engine)
        return other_store


class TestDuckDBMemory(_DuckDB, StorageContract, QueryContract, LifecycleContract):
    pass


@pytest.mark.slow
class TestDuckDBFile(
    _DuckDB, StorageContract, ContextContract, TailsContract, StreamsContract, LifecycleContract
):
    """Promises that a file may break: writing, commits beside one another, and what is read while they come.

    Other queries are the same SQL on the same engine, wherever the rows lie.
    """

    config_version = MAX_CONFIG_VERSION - 1

    @pytest.fixture
    def storage(self, file_store: DuckDBStorage) -> LifecycleStorage:
        empty(file_store.engine)
        return file_store


class _Part(LogsContract, FibersContract, MembershipsContract, PagesContract):
    """The part of a storage's contract that a unit of work and repositories on a session have.

    The two are the same classes, on a session that somebody else owns; so one engine each will do.
    """

    config_version = MAX_CONFIG_VERSION - 1
    longest_name = LONG_TEXT[:2_000]
    keeps_negative_zero = False
    test_schema_built_again_keeps_every_row = None  # type: ignore[assignment]  # it is not theirs to build
    test_schema_built_again_keeps_every_fiber = None  # type: ignore[assignment]


class TestTransaction(_Part):
    @pytest.fixture
    def storage(self, postgres_store: PostgresStorage) -> Iterator[BatchStorage]:
        empty(postgres_store.engine)
        with postgres_store.transaction() as unit:
            yield unit


@pytest.mark.slow
class TestRepositories(_Part):
    """On DuckDB; ``TestTransaction`` has the same classes on PostgreSQL."""

    @pytest.fixture
    def storage(self, file_store: DuckDBStorage) -> Iterator[SimpleNamespace]:
        empty(file_store.engine)
        with file_store.session() as session:
            parts = LogRepository(session), FiberRepository(session), MembershipRepository(session)
            methods = {
                name: getattr(part, name)
                for part, trait in zip(parts, (LogStorage, FiberBatchStorage, MembershipStorage), strict=True)
                for name in trait.__abstractmethods__
            }
            yield SimpleNamespace(**methods, logs=parts[0], fibers=parts[1], memberships=parts[2])


class _Postgres:
    config_version = MAX_CONFIG_VERSION - 1
    longest_name = LONG_TEXT[:2_000]
    keeps_negative_zero = False

    @pytest.fixture
    def storage(self, postgres_store: PostgresStorage) -> LifecycleStorage:
        empty(postgres_store.engine)
        return postgres_store

    @pytest.fixture
    def other(self, other_store: DuckDBStorage) -> LifecycleStorage:
        empty(other_store.engine)
        return other_store


class TestPostgres(
    _Postgres,
    StorageContract,
    JoinedFiltersContract,
    AttributeFiltersContract,
    BatchWritesContract,
    KeysContract,
):
    """The trait, and what PostgreSQL is told in words of its own."""

    def test_databases_order_text_as_people_do(self, postgres_store: PostgresStorage) -> None:
        with postgres_store.engine.connect() as connection:
            by_locale = connection.scalar(sa.text("SELECT 'a' < 'Z'"))
        if not by_locale and "CI" not in os.environ:
            pytest.skip("no en_US.UTF-8 (Debian's package locales) and no ICU here")
        assert by_locale


@pytest.mark.slow
class TestMoreOfPostgres(
    _Postgres,
    FiltersContract,
    FilterRefusalsContract,
    QueryPagesContract,
    OrdersContract,
    BatchesContract,
    DiscoveryContract,
    HistogramsContract,
    ContextContract,
    TailsContract,
    StreamsContract,
    TimelinesContract,
    ActionsContract,
    RedactionContract,
    MergingContract,
    CheckpointsContract,
    VersionsContract,
    DiffsContract,
    RetentionContract,
    LifecycleThreadsContract,
    WritersContract,
):
    """The rest of the queries and of the lifecycle."""


class _Async:
    config_version = 2**63

    @pytest.fixture
    def storage(self, async_store: tuple[AsyncDuckDBStorage, SyncFace]) -> LifecycleStorage:
        store, face = async_store
        empty(store.engine)
        return face

    @pytest.fixture
    def other(self, other_store: DuckDBStorage) -> LifecycleStorage:
        empty(other_store.engine)
        return other_store


class TestAsync(_Async, LogsContract, FibersContract, MembershipsContract):
    """The methods of the trait; the coroutines are the same for all storages."""


@pytest.mark.slow
class TestStorageOfAsync(_Async, StorageContract):
    """All of the trait."""


@pytest.mark.slow
class TestAsyncPostgres(_Async, StorageContract):
    longest_name = _Postgres.longest_name
    keeps_negative_zero = _Postgres.keeps_negative_zero

    @pytest.fixture
    def storage(self, async_postgres_store: tuple[AsyncPostgresStorage, SyncFace]) -> LifecycleStorage:
        store, face = async_postgres_store
        empty(store.engine)
        return face


@pytest.mark.slow
@pytest.mark.long
class TestMoreOfAsync(
    _Async,
    OrdersContract,
    BatchesContract,
    DiscoveryContract,
    HistogramsContract,
    ContextContract,
    TailsContract,
    StreamsContract,
    TimelinesContract,
    LifecycleContract,
):
    """Promises that the async face may break: every method with every argument, and its streams.

    It hands on conditions and cursors as they are, which ``test_aio_queries.py`` sees.
    """


@pytest.mark.parametrize("target", [":memory:", "a file"])
def test_schema_may_be_built_first_by_many_threads_at_once(target: str, db_file: Path) -> None:
    with DuckDBStorage(target if target == ":memory:" else db_file) as store:

        def build_and_write(number: int) -> int:
            store.init_schema()
            return store.write_logs([log(number), log(99)])

        counts = together([partial(build_and_write, number) for number in range(8)])
        assert sum(counts) == 9
        assert [row.log_id.int for row in all_logs(store)] == [*range(8), 99]


ABROAD = """
import sys
import duckdb
from fiberstore import DuckDBStorage
from fiberstore.testing.examples import INSTANTS, IN_UTC, all_logs, log

assert duckdb.sql("SELECT current_setting('TimeZone')").fetchall() == [("America/New_York",)]
with DuckDBStorage(sys.argv[1]) as store:
    store.init_schema()
    store.write_logs([log(number, when) for number, when in enumerate(INSTANTS.values())])
    assert [row.timestamp for row in all_logs(store)] == sorted(IN_UTC.values())
"""


@pytest.mark.slow
def test_time_zone_of_the_machine_does_not_matter_to_duckdb(db_file: Path) -> None:
    # DuckDB asks for the machine's zone once in a process, so this takes another process.
    subprocess.run(
        [sys.executable, "-c", ABROAD, db_file], env={**os.environ, "TZ": "America/New_York"}, check=True
    )
    with DuckDBStorage(db_file) as store:
        assert [row.timestamp for row in all_logs(store)] == sorted(IN_UTC.values())
