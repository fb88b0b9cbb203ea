"""Let the assertions of the contract show their values."""

import pytest

pytest.register_assert_rewrite("fiberstore.testing")
