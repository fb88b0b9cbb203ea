"""The contract of ``Storage`` as tests, the same for every backend. It needs pytest, and names no backend.

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

from fiberstore.testing.concurrency import ThreadsContract
from fiberstore.testing.fibers import FibersContract
from fiberstore.testing.logs import LogsContract
from fiberstore.testing.memberships import MembershipsContract
from fiberstore.testing.pages import PagesContract
from fiberstore.testing.refusals import RefusalsContract
from fiberstore.testing.tails import TailsContract
from fiberstore.testing.values import ValuesContract

__all__ = ["QueryContract", "StorageContract"]


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


class QueryContract(TailsContract):
    """What a storage can be asked beyond the trait, as tests.

    A subclass has a fixture ``storage`` that gives an empty ``QueryStorage`` whose schema is built.
    """
