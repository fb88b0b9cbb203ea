"""Memory, files, threads and descriptors stay level under a load that lasts."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.long_run import MIB, ROUNDS, Sample, growth, run

LEVEL = Sample(
    elapsed_s=0,
    calls=0,
    written_logs=0,
    live_logs=0,
    rss_bytes=250 * MIB,
    file_bytes=14 * MIB,
    wal_bytes=MIB,
    threads=21,
    descriptors=8,
)


def test_what_swings_is_level() -> None:
    rng = random.Random(1)
    warm_up = [replace(LEVEL, rss_bytes=number * 10 * MIB, threads=number) for number in range(20)]
    samples = [
        replace(
            LEVEL,
            rss_bytes=rng.randrange(240, 260) * MIB,
            file_bytes=(10 + number % 12) * MIB,
            wal_bytes=rng.randrange(5) * MIB,
        )
        for number in range(40)
    ]
    assert growth([*warm_up, *samples]) == []


@pytest.mark.parametrize(
    ("name", "step"),
    [("rss_bytes", 3 * MIB), ("file_bytes", MIB), ("wal_bytes", MIB), ("threads", 1), ("descriptors", 1)],
)
def test_what_grows_is_found(name: str, step: int) -> None:
    samples = [replace(LEVEL, **{name: getattr(LEVEL, name) + step * number}) for number in range(60)]
    found = growth(samples)
    assert len(found) == 1
    assert found[0].startswith(name)


def test_one_thread_that_stays_is_found() -> None:
    assert growth([LEVEL] * 59 + [replace(LEVEL, threads=22)]) == ["threads grew from 21 to 22"]


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_nothing_grows_under_a_load_that_lasts(db_file: Path, long_form: bool) -> None:
    samples = run(
        db_file, 3600 if long_form else 30, ROUNDS if long_form else 40, random.randrange(10**6), print
    )
    assert growth(samples) == []
