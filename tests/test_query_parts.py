"""Parts of the contract of queries, on DuckDB in memory; ``QueryContract`` is to run them everywhere."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from fiberstore import Base, DuckDBStorage
from fiberstore.testing.batches import BatchesContract
from fiberstore.testing.context import ContextContract
from fiberstore.testing.discovery import DiscoveryContract
from fiberstore.testing.histograms import HistogramsContract


@pytest.fixture(scope="module")
def store() -> Iterator[DuckDBStorage]:
    with DuckDBStorage(":memory:") as store:
        store.init_schema()
        yield store


class TestDuckDB(BatchesContract, ContextContract, DiscoveryContract, HistogramsContract):
    @pytest.fixture
    def storage(self, store: DuckDBStorage) -> DuckDBStorage:
        with store.engine.begin() as connection:
            for table in Base.metadata.sorted_tables:
                connection.execute(sa.delete(table))
        return store
