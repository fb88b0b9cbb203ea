"""The contract of streams, over every storage that has them."""

from collections.abc import Iterator

import pytest

from fiberstore import Base, DuckDBStorage
from fiberstore.testing.streams import StreamsContract


@pytest.fixture(scope="module")
def stores() -> Iterator[tuple[DuckDBStorage, DuckDBStorage]]:
    with DuckDBStorage(":memory:", config_version=7) as one, DuckDBStorage(":memory:") as two:
        one.init_schema()
        two.init_schema()
        yield one, two


def _emptied(store: DuckDBStorage) -> DuckDBStorage:
    with store.engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(table.delete())
    return store


class TestDuckDB(StreamsContract):
    @pytest.fixture
    def storage(self, stores: tuple[DuckDBStorage, DuckDBStorage]) -> DuckDBStorage:
        return _emptied(stores[0])

    @pytest.fixture
    def other(self, stores: tuple[DuckDBStorage, DuckDBStorage]) -> DuckDBStorage:
        return _emptied(stores[1])
