"""Durable on return: programs that write are killed, and what they had acknowledged is there, whole."""

import random
from pathlib import Path

import pytest

from fiberstore import DuckDBStorage
from tests.reliability.crash.campaign import CALLS, MODES, Campaign
from tests.reliability.crash.crash_points import INDEXED, look_up
from tests.reliability.crash.recovery import recover
from tests.reliability.crash.workers import rows, step

GROUPS = {
    ("plain", "threshold", "threads-threshold", "checkpoint", "threads"): 5,
    ("bulk", "recovery"): 2,
    ("migrate-empty", "migrate-tables"): 2,
    ("ingest",): 2,
    tuple(CALLS): 5,
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("modes", "kills"), GROUPS.items(), ids=["lanes", "bulk", "migration", "ingest", "calls"]
)
def test_what_was_acknowledged_is_whole_after_a_kill_and_nothing_is_half(
    tmp_path: Path, long_form: bool, modes: tuple[str, ...], kills: int
) -> None:
    campaign = Campaign(tmp_path, random.SystemRandom().randrange(10**6), modes)
    lines: list[str] = []
    campaign.run(kills * (20 if long_form else 1), lines.append)
    assert campaign.violations == [], "\n".join(lines)


def test_no_mode_is_forgotten() -> None:
    assert sorted(mode for modes in GROUPS for mode in modes) == sorted(MODES)


@pytest.mark.slow
def test_a_write_ahead_log_is_recovered_with_all_its_rows(tmp_path: Path) -> None:
    found = recover(tmp_path, 16)
    assert found.log_mb >= 16
    assert found.rows >= 50_000


def test_the_look_ups_of_the_check_go_through_the_indexes(storage: DuckDBStorage) -> None:
    for number in range(30):
        step("a", number).write(storage)
    for table, column, _, keys_at_once in INDEXED:
        keys = [row[0] for row in rows(storage, f"SELECT {column} FROM {table} LIMIT {keys_at_once}")]
        ((_, plan),) = rows(storage, f"EXPLAIN ANALYZE {look_up(table, column, len(keys))}", keys)
        assert "Index Scan" in plan, f"{table}.{column}"
