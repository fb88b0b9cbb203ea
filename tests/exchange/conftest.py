"""Two stores in memory, one of which is copied into the other."""

from collections.abc import Iterator

import pytest

from fiberstore import DuckDBStorage
from tests.support.databases import empty


@pytest.fixture(scope="module")
def two_stores() -> Iterator[tuple[DuckDBStorage, DuckDBStorage]]:
    with DuckDBStorage(":memory:") as one, DuckDBStorage(":memory:") as other:
        one.init_schema()
        other.init_schema()
        yield one, other


@pytest.fixture
def source(two_stores: tuple[DuckDBStorage, DuckDBStorage]) -> DuckDBStorage:
    empty(two_stores[0].engine)
    return two_stores[0]


@pytest.fixture
def destination(two_stores: tuple[DuckDBStorage, DuckDBStorage]) -> DuckDBStorage:
    empty(two_stores[1].engine)
    return two_stores[1]
