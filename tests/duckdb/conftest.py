"""Tests of files have a file each."""

import pytest

from fiberstore import DuckDBStorage


@pytest.fixture
def storage(file_storage: DuckDBStorage) -> DuckDBStorage:
    """A storage on a file of its own, empty, with its tables."""
    return file_storage
