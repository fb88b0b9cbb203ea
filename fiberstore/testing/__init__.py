"""The contract of ``Storage`` and of what extends it as tests, the same for every backend.

It needs pytest, and names no backend.

```python
# conftest.py
pytest.register_assert_rewrite("fiberstore.testing")  # before the import: failures then show the values

# test_my_storage.py
from fiberstore.testing import StorageContract

class TestMyStorage(StorageContract):
    config_version = 7

    @pytest.fixture
    def storage(self):
        with MyStorage(config_version=self.config_version) as storage:
            storage.init_schema()
            yield storage
```
"""

from fiberstore.testing.actions import ActionsContract
from fiberstore.testing.attribute_filters import AttributeFiltersContract
from fiberstore.testing.batch_writes import BatchWritesContract
from fiberstore.testing.batches import BatchesContract
from fiberstore.testing.checkpoints import CheckpointsContract
from fiberstore.testing.concurrency import ThreadsContract
from fiberstore.testing.context import ContextContract
from fiberstore.testing.diffs import DiffsContract
from fiberstore.testing.discovery import DiscoveryContract
from fiberstore.testing.fibers import FibersContract
from fiberstore.testing.filter_refusals import FilterRefusalsContract
from fiberstore.testing.filters import FiltersContract
from fiberstore.testing.histograms import HistogramsContract
from fiberstore.testing.invalid_arguments import RefusalsContract
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
from fiberstore.testing.values import ValuesContract
from fiberstore.testing.versions import VersionsContract
from fiberstore.testing.writers import WritersContract

__all__ = ["LifecycleContract", "QueryContract", "StorageContract"]


class StorageContract(
    ValuesContract,
    LogsContract,
    FibersContract,
    MembershipsContract,
    PagesContract,
    RefusalsContract,
    ThreadsContract,
):
    """Every line of the contract, as tests.

    A subclass has a fixture ``storage`` that gives an empty storage whose schema is built.

    Attributes:
        config_version: What that storage was opened with. A number other than 0 tests more.
    """


class QueryContract(
    FiltersContract,
    JoinedFiltersContract,
    AttributeFiltersContract,
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
):
    """Tests of ``fiberstore.contract.queries``, for a ``QueryStorage``.

    A subclass has fixtures ``storage`` and ``other`` that give empty storages whose schema is built.
    """


class LifecycleContract(
    ActionsContract,
    RedactionContract,
    BatchWritesContract,
    MergingContract,
    KeysContract,
    CheckpointsContract,
    VersionsContract,
    DiffsContract,
    RetentionContract,
    LifecycleThreadsContract,
    WritersContract,
):
    """Tests of ``fiberstore.contract.lifecycle`` and the actions of queries, for a ``LifecycleStorage``.

    A subclass has a fixture ``storage`` that gives an empty storage whose schema is built.
    """
