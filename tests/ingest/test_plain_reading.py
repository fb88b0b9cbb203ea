"""The reader of blocks and columns, against a plain reading line by line: the same logs, ids and counts."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fiberstore.ingest import parse_rules, read_source
from fiberstore.ingest.reader import LogReader
from tests.support.parameters import parametrize_mostly_slow
from tests.support.plain_reader import plain_records

RULES = {
    "plain": "format = 'iso8601'",
    "formats": "format = ['%Y-%m-%dT%H:%M:%S%z', '%Y-%m-%d %H:%M:%S.%f']\ntimezone = 'America/New_York'",
    "starts": "format = 'iso8601'\nrecord_start = '^#'\non_bad_stamp = 'previous'",
    "drops": "format = 'iso8601'\ndrop = ['GET /healthz', '^---']\non_bad_stamp = 'previous'",
}


def content(kind: str, dice: random.Random) -> str:
    """Lines of every sort, with long ones, so that blocks end anywhere."""
    time = datetime(2024, 5, 1, 12, tzinfo=UTC)
    lines = []
    for number in range(dice.choice([1, 5, 60])):
        time += timedelta(seconds=dice.choice([0, 0, 1, 1, 59, 3700, -5]))
        stamp = f"{time:%Y-%m-%dT%H:%M:%S}+00:00"
        if kind == "formats" and dice.random() < 0.3:
            stamp = f"{time:%Y-%m-%d %H:%M:%S}.{dice.choice(['5', '123456', '000001'])}"
        elif kind != "formats" and dice.random() < 0.3:
            stamp = f"{time:%Y-%m-%dT%H:%M:%S}.{dice.randrange(1000):03}Z"
        if kind in ("starts", "drops") and dice.random() < 0.1:
            stamp = "2024-05-99T00:00:00Z"
        line = f"{stamp} line {number} {'é' * dice.choice([0, 3, 9000])}"
        if dice.random() < 0.3:
            line = dice.choice(["  at x", "", "---", "# User", f"{stamp} GET /healthz", "\ttab\r", "# Q"])
        lines.append(line + dice.choice(["\n", "\n", "\r\n"]))
    text = "".join(lines)
    return text.removesuffix("\n") if dice.random() < 0.2 else text


@parametrize_mostly_slow("seeds", [range(15), range(15, 60)], ids=["few", "more"])
@pytest.mark.parametrize("kind", RULES)
def test_the_reader_finds_what_a_plain_reading_finds(kind: str, seeds: range, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    rules = parse_rules(
        f"[sources.app]\npath = '{log}'\ntimestamp = '^(?P<ts>2024\\S+(?: [0-9:.]+(?= ))?)'\n{RULES[kind]}\n"
        "[fibers.t]\nmax_gap = '1m'\n[[fibers.t.patterns]]\nregex = 'line (?P<n>.)'\n"
    )
    seen = 0
    for seed in seeds:
        dice = random.Random(f"{kind} {seed}")
        stamp = "2024-05-01T11:00:00+00:00 first\n"
        log.write_text(dice.choice(["", "no stamp\n", "\n"]) + stamp + content(kind, dice), newline="")
        source = rules.sources["app"]
        expected, counts = plain_records("app", source, log)
        assert list(read_source("app", source)) == expected, f"seed {seed}"
        reader = LogReader(rules)
        assert sum(1 for _ in reader.logs()) == len(expected)
        found = reader.counts["app"]
        assert {name: getattr(found, name) for name in counts} == counts, f"seed {seed}"
        seen += len(expected)
    assert seen > 500 * len(seeds) / 60
