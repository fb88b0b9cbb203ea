"""What every test file shares."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite("fiberstore.testing")


@pytest.fixture
def db_file(tmp_path: Path) -> Path:
    """A path for a database that does not exist yet."""
    return tmp_path / "store.duckdb"
