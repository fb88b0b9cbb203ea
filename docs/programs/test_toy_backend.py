"""The contract, held to a backend of one's own."""

import pytest
from toy_backend import ToyStorage

from fiberstore import Storage
from fiberstore.testing import StorageContract


class TestToyStorage(StorageContract):
    config_version = 7

    @pytest.fixture
    def storage(self) -> Storage:
        return ToyStorage(self.config_version)
