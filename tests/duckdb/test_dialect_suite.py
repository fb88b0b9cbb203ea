"""SQLAlchemy's own tests of a dialect, which need a pytest for themselves; see ``tests/dialect_suite``."""

import subprocess
import sys
from pathlib import Path

import pytest

_SUITE = Path(__file__).parents[1] / "dialect_suite"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sqlalchemys_tests_fail_only_where_the_list_says_so() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(_SUITE / "pytest.ini"), str(_SUITE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr
