"""A command in this process, and the small store that commands read."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fiberstore import DuckDBStorage
from fiberstore.cli import main
from tests.support.command_line import Run, runner
from tests.support.small_store import write_files


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIBERSTORE_URL", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""
    return runner(capsys)


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled store, for copies."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.raises(SystemExit):
        main(["ingest", "--rules", str(write_files(folder)), "--db", str(folder / "s.duckdb"), "--json"])
    return folder / "s.duckdb"


@pytest.fixture(scope="module")
def store(ingested: Path) -> Iterator[Path]:
    """A filled store that tests only read; to open a file takes DuckDB far longer than to read it."""
    with DuckDBStorage(ingested, read_only=True):
        yield ingested


@pytest.fixture
def alone(ingested: Path, db_file: Path) -> Path:
    """A copy, which nobody has open."""
    shutil.copy(ingested, db_file)
    return db_file
