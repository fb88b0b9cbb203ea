"""Files that grow between runs: what is read on is what a reading of the whole file finds."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from fiberstore import DuckDBStorage, Logs
from fiberstore.ingest import ingest, parse_rules
from fiberstore.ingest.known_files import KnownFiles, places_from_text, places_to_text
from fiberstore.ingest.reader import LogReader
from fiberstore.ingest.rules import Rules
from fiberstore.sql.bulk import NewLog
from tests.support.parameters import parametrize_mostly_slow

BEGIN = datetime(2024, 10, 26, 22, tzinfo=UTC)
SOURCES = {
    "iso": """timestamp = '^(?P<ts>[-0-9]+T\\S+)'
format = "iso8601"
""",
    "without a year": """timestamp = '^\\w{3} +\\d+ [0-9:]+'
format = "%b %d %H:%M:%S"
timezone = "UTC"
year = 2024
""",
    "the hour that comes twice": """timestamp = '^(?P<ts>[-0-9]+ [0-9:.]+)'
format = "%Y-%m-%d %H:%M:%S.%f"
timezone = "Europe/Berlin"
""",
    "starts and drops": """timestamp = '^(?P<ts>[-0-9]+T\\S+)'
format = "iso8601"
record_start = '^#'
drop = ['GET /healthz']
on_bad_stamp = "previous"
""",
    "containers": """timestamp = '^(?P<ts>[-0-9]+T\\S+)'
format = "iso8601"
join = "cri"
""",
}


def rules_for(kind: str, log: Path) -> Rules:
    return parse_rules(
        f'[sources.app]\npath = "{log}"\n{SOURCES[kind]}'
        "[fibers.request]\nmax_gap = '1m'\n[[fibers.request.patterns]]\nregex = 'r=(?P<r>\\d+)'\n"
    )


def stamp(kind: str, at: datetime) -> str:
    match kind:
        case "without a year":
            return f"{at:%b %d %H:%M:%S}"
        case "the hour that comes twice":
            return f"{at.astimezone(ZoneInfo('Europe/Berlin')):%Y-%m-%d %H:%M:%S}.5"
    return f"{at:%Y-%m-%dT%H:%M:%S}Z"


def content(kind: str, dice: random.Random) -> str:
    """Lines of a kind: some late, some without a stamp, some that other lines continue."""
    lines, at = [f"{stamp(kind, BEGIN)} stdout F r=0"], BEGIN
    for number in range(dice.randrange(1, 40)):
        at += timedelta(seconds=dice.choice([0, 0, 1, 70, 1500]))
        at += timedelta(days=dice.choice([0, 0, 0, 25]) if kind == "without a year" else 0)
        late = timedelta(days=dice.choice([0, 0, 0, 20]) if kind == "without a year" else 0)
        start = stamp(kind, at - late)
        line = f"{start} r={dice.randrange(9)} {'é' * dice.randrange(3)}{number}"
        if kind == "containers":
            line = f"{start} {dice.choice(['stdout', 'stderr'])} {dice.choice('PF')} r=1 {number}"
        elif dice.random() < 0.2:
            odd = ["# User", f"{start} GET /healthz", "2024-99-99T99:99:99Z x"]
            line = dice.choice(["  at line 1", "", *(odd if kind == "starts and drops" else [])])
        lines.append(line)
    return "".join(line + dice.choice(["\n", "\n", "\r\n"]) for line in lines)


def taken(rules: Rules, known: dict[str, KnownFiles], dice: random.Random, killed: float) -> Iterator[NewLog]:
    """Read logs in batches; of each, the last one is only taken with the next."""
    reader = LogReader(rules, known)
    logs = reader.logs()
    kept = list(islice(logs, 1))
    while batch := list(islice(logs, dice.randrange(1, 9))):
        *before, last = [*kept, *batch]
        reader.note_places()
        yield from before
        kept = [last]
        if dice.random() < killed:
            return
    reader.note_places()
    yield from kept


def reloaded(files: KnownFiles) -> KnownFiles:
    again = KnownFiles.from_text(files.to_text())
    again.places = places_from_text(places_to_text(files.places))
    return again


@pytest.mark.parametrize("kind", SOURCES)
@parametrize_mostly_slow("seeds", [range(15), range(15, 60)], ids=["few", "more"])
def test_pieces_are_read_as_the_whole(kind: str, seeds: range, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    rules = rules_for(kind, log)
    continued = 0
    for seed in seeds:
        dice = random.Random(f"{kind} {seed}")
        data = content(kind, dice).encode()
        log.write_bytes(data)
        whole = list(LogReader(rules).logs())
        found: dict[int, NewLog] = {}
        known = KnownFiles()
        for size in [*sorted(dice.sample(range(80, len(data) + 80), 4)), len(data), len(data)]:
            cut = data[:size]
            if kind in ("starts and drops", "containers"):  # half a line may say something else there
                cut = cut[: cut.rfind(b"\n") + 1]
            log.write_bytes(cut)
            known = reloaded(known)
            for one in taken(rules, {"app": known}, dice, 0.1 if size < len(data) else 0):
                found[one[1]] = one
            continued += len(known.places)
            for tail in known.replaced.values():
                found.pop(tail.log_id.int, None)
        assert sorted(found.values()) == sorted(whole), f"seed {seed}"
    assert continued


def test_a_grown_file_costs_its_new_bytes(storage: DuckDBStorage, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    line = "2024-05-01T12:00:00Z r=1\n"
    log.write_text(line * 2_000)
    rules = rules_for("iso", log)
    assert ingest(storage, rules).sources["app"].lines == 2_000
    with log.open("a") as file:
        file.write(line * 3)
    before = storage.stats().calls["transaction"].calls
    again = ingest(storage, rules)
    assert (again.sources["app"].lines, again.sources["app"].continued) == (4, 1)
    assert (again.logs_read, again.logs_new) == (4, 3)
    assert storage.stats().calls["transaction"].calls == before + 2  # one reads the checkpoints


def test_a_file_that_was_changed_where_reading_continues_is_read_whole(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    lines = [f"2024-05-01T12:00:{second:02}Z r=1 {'x' * 40}\n" for second in range(60)]
    log.write_text("".join(lines))
    rules = rules_for("iso", log)
    ingest(storage, rules)
    log.write_text("".join([*lines[:40], "2024-05-01T12:01:00Z r=1 other\n", *lines[40:]]))
    assert ingest(storage, rules).sources["app"].lines == 61


def test_dropped_fibers_and_deleted_logs_are_read_again(storage: DuckDBStorage, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("2024-05-01T12:00:00Z r=1\n2024-05-01T12:00:01Z r=2\n")
    rules = rules_for("iso", log)
    ingest(storage, rules)
    storage.versions.activate(None)
    storage.versions.drop(rules.config_version)
    assert ingest(storage, rules).fibers_new == 2
    storage.logs.where(Logs.c.source_id == "app").delete()
    assert ingest(storage, rules).logs_new == 2
    assert ingest(storage, rules).logs_read == 1
