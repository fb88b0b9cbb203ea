"""Fixtures and options that every test file shares."""

import gc
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy.engine import URL

from fiberstore import DuckDBStorage
from fiberstore.postgresql import PostgresStorage
from fiberstore.repositories.storage import SqlStorage
from tests.support import postgres_server
from tests.support.databases import empty

pytest.register_assert_rewrite("fiberstore.testing")
# Python looks for garbage among all modules and tests, which are millions of objects, less often.
gc.set_threshold(20_000, 10, 1_000)

collect_ignore = ["dialect_suite"]  # it needs a pytest for itself


settings.register_profile(
    "quick",
    max_examples=5,
    deadline=None,
    suppress_health_check=[
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)
settings.register_profile("long", settings.get_profile("quick"), max_examples=1_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="the long form of the slow tests: hours instead of minutes"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples hypothesis tries, before test files are imported; let Ctrl-C be heard.

    A shell without a terminal has what it starts in the background ignore Ctrl-C, and so do their children.
    """
    settings.load_profile("long" if config.getoption("--long") else "quick")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> list[pytest.Item] | None:
    """Leave what is slow as a whole out where no slow test runs: to collect thousands takes seconds."""
    is_slow = isinstance(obj, type | FunctionType) and any(
        mark.name == "slow" for mark in getattr(obj, "pytestmark", ())
    )
    return [] if is_slow and collector.config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for the long form alone; begin with what may take long, so that none ends alone."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long") is not None]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("long") is None]


def pytest_sessionfinish() -> None:
    """Look for garbage once among all that the tests have left: pytest does it five times, 0.3 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def long_form(request: pytest.FixtureRequest) -> bool:
    """True if slow tests are to take their time."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def collects_garbage() -> Iterator[None]:
    """Let ``gc.collect()`` look at what the test makes, and not at millions of objects that are older.

    It also hides these from ``gc.get_referrers()``, which hypothesis asks.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def db_file(tmp_path: Path) -> Path:
    """A path for a database that does not exist yet."""
    return tmp_path / "store.duckdb"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that holds the tables and nothing else, for copies."""
    path = tmp_path_factory.mktemp("empty") / "store.duckdb"
    with DuckDBStorage(path) as storage:
        storage.init_schema()
    return path


@pytest.fixture
def store_file(empty_store: Path, db_file: Path) -> Path:
    """``db_file``, which holds the tables and which nobody has open; to make them takes DuckDB 40 ms."""
    shutil.copy(empty_store, db_file)
    return db_file


@pytest.fixture
def file_storage(store_file: Path) -> Iterator[DuckDBStorage]:
    """A storage on ``db_file``, empty, with its tables, for tests that look at the file or change tables."""
    with DuckDBStorage(store_file) as storage:
        yield storage


@pytest.fixture(scope="session")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBStorage]:
    """A storage that holds its file open, so that to open it once more takes 3 ms rather than 25."""
    with DuckDBStorage(tmp_path_factory.mktemp("opened") / "store.duckdb") as storage:
        storage.init_schema()
        with storage.engine.connect() as connection:  # for all who open it
            connection.exec_driver_sql("SET threads = 1")  # to wake a second one takes longer than it saves
        yield storage


@pytest.fixture
def opened_store(holder: DuckDBStorage) -> Path:
    """A file that tests use one after the other, held open, with the tables and nothing else."""
    empty(holder.engine)  # whose statements are compiled already
    return Path(str(holder.engine.url.database))


@pytest.fixture
def duckdb_storage(opened_store: Path) -> Iterator[DuckDBStorage]:
    """A storage on a file that tests use one after the other, empty, with its tables."""
    with DuckDBStorage(opened_store) as storage:
        yield storage


@pytest.fixture
def storage(duckdb_storage: DuckDBStorage) -> DuckDBStorage:
    """The same; a file of tests that are for every engine has ``any_storage`` by this name."""
    return duckdb_storage


@pytest.fixture(params=["duckdb", "postgresql"])
def any_storage(request: pytest.FixtureRequest) -> SqlStorage:
    """A storage of each engine, empty, with its tables."""
    storage: SqlStorage = request.getfixturevalue(f"{request.param}_storage")
    return storage


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[URL]:
    """The URL of a PostgreSQL server, on which databases can be made."""
    with postgres_server.server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server_url: URL) -> Iterator[str]:
    """The URL of a new, empty database."""
    with postgres_server.database(postgres_server_url) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_tables_url(postgres_server_url: URL) -> Iterator[str]:
    """The URL of a database with the tables, which tests use one after the other."""
    with postgres_server.database(postgres_server_url) as url:
        with PostgresStorage(url) as storage:
            storage.init_schema()
        yield url


@pytest.fixture
def postgresql_storage(postgres_tables_url: str) -> Iterator[PostgresStorage]:
    """A storage on a server, empty, with its tables."""
    with PostgresStorage(postgres_tables_url) as storage:
        empty(storage.engine)
        yield storage
