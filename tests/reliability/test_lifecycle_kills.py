"""Every destructive call is killed half-way, and has then happened wholly, or not at all, or up to a step.

As a program, ``python -m tests.reliability.test_lifecycle_kills FILE CALL``, it is the victim.
"""

import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from fiberstore import DamagedFileError, DuckDBStorage, Fibers, Logs
from fiberstore.contract.results import Pruned
from fiberstore.doctor import examine
from fiberstore.duckdb.rescue import rescue
from fiberstore.repositories import access
from fiberstore.sql.models import TABLES_BESIDE
from fiberstore.testing.examples import at, fiber, log, member, uid
from fiberstore.versioning import config_version

LOG_COUNT, FIBER_COUNT = 20_000, 1_000
HALF = FIBER_COUNT // 2
OLD, NEW = b"old rules", b"new rules"
TABLES = (
    "raw_logs",
    "fibers",
    "fiber_memberships",
    "fiber_config_versions",
    "fiber_checkpoints",
    "fiber_merges",
    "fiber_pins",
    "log_pins",
)

# Of many rows, these write tables anew.
WITH_NEW_TABLES = "logs.delete", "fibers.delete", "merge_fibers", "prune", "versions.drop"

State = tuple[tuple[int, str], ...]
OnStep = Callable[[Pruned], None] | None


def prune(storage: DuckDBStorage, on_step: OnStep = None) -> None:
    storage.prune(
        fibers=Fibers.c.last_activity < at(HALF),
        logs=Logs.c.source_id == "rare",
        step_rows=1_500,
        on_step=on_step,
    )


CALLS: dict[str, Callable[[DuckDBStorage], object]] = {
    "logs.delete": lambda storage: storage.logs.where(Logs.c.timestamp < at(-LOG_COUNT // 2)).delete(),
    "fibers.delete": lambda storage: storage.fibers.where(Fibers.c.last_activity < at(HALF)).delete(),
    "redact": lambda storage: storage.logs.redact("user=[0-9]+", "user=***"),
    "merge_fibers": lambda storage: storage.merge_fibers(
        {uid(number): uid(number + 2) for number in range(0, FIBER_COUNT, 4)}
    ),
    "fibers.close": lambda storage: storage.fibers.where(Fibers.c.last_activity < at(HALF)).close(),
    "prune": prune,
    "versions.drop": lambda storage: storage.versions.drop(config_version(NEW)),
    "versions.activate": lambda storage: storage.versions.activate(config_version(NEW)),
    "compact": DuckDBStorage.compact,
}


def state_of(storage: DuckDBStorage) -> State:
    """Return a digest of the tables' content that the order of rows does not change."""
    with storage.engine.connect() as connection:
        return tuple(
            (count, str(digest))
            for table in TABLES
            for count, digest in connection.execute(
                sa.text(f"SELECT count(*), sum(hash(rows)::HUGEINT) FROM (SELECT rows FROM {table} AS rows)")
            )
        )


def table_names(storage: DuckDBStorage) -> list[str]:
    with storage.engine.connect() as connection:
        return sa.inspect(connection).get_table_names()


def checkpoint(storage: DuckDBStorage) -> None:
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("CHECKPOINT")


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def be_killed(file: str, call: str, many_rows: str) -> None:
    access.MANY_ROWS = int(many_rows)
    with DuckDBStorage(file) as storage:
        storage.fibers.count()
        say("begin")
        CALLS[call](storage)
        say("end")
        checkpoint(storage)
        say("checkpointed")
        time.sleep(3_600)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was written and closed, so that all is in its file, and then has a log as well."""
    path = tmp_path_factory.mktemp("seed") / "store.duckdb"
    with DuckDBStorage(path) as storage:
        storage.init_schema()
        storage.write_logs(
            log(
                n,
                n - LOG_COUNT,
                source="rare" if n % 100 == 0 else "web",
                text=f"{n} user={n * 7919} {uid(n)}",
            )
            for n in range(LOG_COUNT)
        )
        storage.versions.register(OLD)
        storage.versions.activate(config_version(OLD))
        storage.versions.register(NEW)
    with DuckDBStorage(path) as storage:
        storage.write_fibers(
            [
                fiber(
                    n,
                    first=at(-LOG_COUNT),
                    last=at(LOG_COUNT + n) if n % 10 == 0 else at(n),
                    config_version=config_version((OLD, NEW)[n % 2]),
                )
                for n in range(FIBER_COUNT)
            ]
        )
        storage.write_memberships(
            [
                member(n, one % FIBER_COUNT, config_version((OLD, NEW)[one % 2]))
                for n in range(LOG_COUNT // 2)
                for one in (n, n * 31 + 1)  # each log in two
            ]
        )
        storage.fibers.where(Fibers.c.fiber_id.in_([uid(4), uid(9)])).pin()
        storage.logs.where(Logs.c.log_id.in_([uid(100), uid(200)])).pin()
    return path


class Undisturbed(NamedTuple):
    """A run that nobody killed.

    Attributes:
        states: That before, those after each step, and that at the end.
        duration_s: How long the call took, with a checkpoint after it.
    """

    states: list[State]
    duration_s: float


def undisturbed(path: Path, call: str) -> Undisturbed:
    with DuckDBStorage(path) as storage:
        states = [state_of(storage)]
        begin = time.perf_counter()
        CALLS[call](storage)
        checkpoint(storage)
        duration_s = time.perf_counter() - begin
        states.append(state_of(storage))
    return Undisturbed(states, duration_s)


def steps_of(path: Path) -> list[State]:
    states: list[State] = []
    with DuckDBStorage(path) as storage:
        prune(storage, lambda _done: states.append(state_of(storage)))
    return states


def copied(seed: Path, folder: Path) -> Path:
    shutil.copytree(seed.parent, folder)
    return folder / seed.name


def kill(path: Path, call: str, after_s: float, many_rows: int) -> str:
    """Kill the victim so long after its call has begun; return what it has said last."""
    # With this threshold the commit itself is a checkpoint, too.
    command = [sys.executable, "-m", __name__, f"duckdb:///{path}?checkpoint_threshold=1MB"]
    command += [call, str(many_rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "begin\n"
        time.sleep(after_s)  # the moment of the kill
        victim.kill()
        return ("begin\n" + victim.stdout.read()).split()[-1]


def reopened(path: Path) -> DuckDBStorage:
    try:
        return DuckDBStorage(path)
    except DamagedFileError:  # see fiberstore.duckdb.rescue
        rescued = path.with_name("rescued.duckdb")
        rescue(path, rescued)
        return DuckDBStorage(rescued)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("call", "many_rows"),
    [*((call, access.MANY_ROWS) for call in CALLS), *((call, 100) for call in WITH_NEW_TABLES)],
)
def test_a_call_that_is_killed_has_happened_wholly_or_not_at_all(
    seed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    long_form: bool,
    call: str,
    many_rows: int,
) -> None:
    monkeypatch.setattr(access, "MANY_ROWS", many_rows)
    states, duration_s = undisturbed(copied(seed, tmp_path / "undisturbed"), call)
    before, after = states
    assert (before == after) == (call == "compact")
    if call == "prune":
        states += steps_of(copied(seed, tmp_path / "steps"))
        assert len(set(states)) > 5
    if call == "versions.drop":  # the fibers, then their memberships
        place = TABLES.index("fiber_memberships")
        states.append((*after[:place], before[place], *after[place + 1 :]))
        assert len(set(states)) == 3
    last_words: list[str] = []
    while "begin" not in last_words or len(last_words) < (40 if long_form else 1):  # one in the call at least
        folder = tmp_path / f"kill {len(last_words)}"
        path = copied(seed, folder)
        last_words.append(kill(path, call, random.uniform(0, 0.8 * duration_s), many_rows))
        with reopened(path) as storage:
            found = state_of(storage)
            assert not {*table_names(storage)} & {*TABLES_BESIDE.values()}
            assert found in states, f"killed after {last_words[-1]}"
            assert [finding.text for finding in examine(storage) if finding.is_problem] == []
            if found != after or call == "compact":
                CALLS[call](storage)
                assert state_of(storage) == after
        others = [
            file for file in folder.iterdir() if not file.name.startswith((path.name, "rescued.duckdb"))
        ]
        assert all(re.fullmatch(r"\.fiberstore-[0-9a-f]{32}\.partial", file.name) for file in others), others
        shutil.rmtree(folder)


if __name__ == "__main__":
    be_killed(*sys.argv[1:])
