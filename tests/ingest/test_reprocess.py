"""Stored logs into a generation of other rules: the same fibers as from the files, come what may."""

import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fiberstore import CheckpointError, DatabaseError, DuckDBStorage, LogRecord, config_version
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.ingest import ReprocessReport, Rules, RulesError, ingest, load_rules, reprocess
from fiberstore.ingest.correlator import CorrelationCounts, FiberJoiner
from fiberstore.ingest.demo import write_demo
from fiberstore.telemetry import Call
from fiberstore.testing.examples import NOON, all_logs, fiber, log, member, uid
from tests.ingest.test_ingest import State, state_of
from tests.ingest.test_real_files import APACHE, HADOOP, HDFS, LINUX, LOGHUB, SSHD
from tests.support.databases import empty
from tests.support.parameters import parametrize_mostly_slow

OTHERS = {"HDFS": HDFS, "Apache": APACHE, "Linux": LINUX}
RULES = r"""
[sources.web]
path = "web.log"
timestamp = '^\S+'
format = "%Y-%m-%dT%H:%M:%S.%f%z"

[fibers.request]
max_gap = "30s"
[[fibers.request.patterns]]
source = "web"
regex = 'key=(?P<key>\w+)'
[[fibers.request.patterns]]
source = "web"
regex = 'other=(?P<other>\w+)'
"""


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "rules.toml"


@pytest.fixture
def old(rules_file: Path, tmp_path: Path) -> Rules:
    """The rules that the logs came in by; the file is changed afterwards."""
    write_web(tmp_path, 900)
    found = load_rules(rules_file)
    rules_file.write_text(RULES.replace("30s", "4s"))
    return found


@pytest.fixture
def new(old: Rules, rules_file: Path) -> Rules:
    assert old.config_version
    return load_rules(rules_file)


@pytest.fixture(scope="module")
def opened() -> Iterator[list[DuckDBStorage]]:
    """The stores that tests have used."""
    opened: list[DuckDBStorage] = []
    yield opened
    for storage in opened:
        storage.close()


@pytest.fixture
def stores(opened: list[DuckDBStorage]) -> Callable[[], DuckDBStorage]:
    """Give an empty store at each call; one of a test before, if there is one, since that takes less time."""
    used = iter([*opened])

    def make() -> DuckDBStorage:
        storage = next(used, None)
        if storage is None:
            storage = DuckDBStorage(":memory:")
            storage.init_schema()
            opened.append(storage)
        empty(storage.engine)
        return storage

    return make


def write_web(folder: Path, lines: int) -> None:
    """Write a log file whose stamps ascend; some keys come again late, some lines join two fibers."""
    with (folder / "web.log").open("w") as file:
        for number in range(lines):
            stamp = (NOON + timedelta(seconds=number / 4)).isoformat(timespec="microseconds")
            text = f"key=k{number * 7 % (23 + number // 40)}"
            match number % 9:
                case 4:
                    text = "nothing to see"
                case 5:
                    text += f" other=o{number // 30}"
                case 6:
                    text = f"other=o{number // 30}"
            file.write(f"{stamp} {text}\n")


def generation(storage: DuckDBStorage, rules: Rules) -> State:
    """Everything that the rules have made."""
    version = repr(rules.config_version)
    logs, fibers, memberships = state_of(storage)
    return State(
        [row[:-1] for row in logs], [row for row in fibers if version in row],
        [row for row in memberships if version in row],
    )  # fmt: skip


def fresh(stores: Callable[[], DuckDBStorage], rules: Rules) -> State:
    """Return the state that the rules make of the files in a store of their own."""
    storage = stores()
    ingest(storage, rules)
    return generation(storage, rules)


@pytest.mark.parametrize(
    ("text", "max_gap"),
    [
        *(
            pytest.param(text, max_gap, id=f"{name}-{max_gap}", marks=pytest.mark.slow)
            for name, text, max_gap in (
                ("Hadoop", HADOOP, "60s"),
                ("OpenSSH", SSHD, "infinite"),
                ("OpenSSH", SSHD, "60s"),
                ("Hadoop", HADOOP, "infinite"),
                *((name, text, "60s") for name, text in OTHERS.items()),
            )
        ),
    ],
)
def test_real_logs_make_the_same_fibers_as_their_files(
    stores: Callable[[], DuckDBStorage], tmp_path: Path, text: str, max_gap: str
) -> None:
    if not LOGHUB.is_dir():
        pytest.skip(f"no sample logs in {LOGHUB}")
    rules_file = tmp_path / "rules.toml"
    rules_file.write_text(text.format(folder=LOGHUB.as_posix()).replace("infinite", "7m"))
    storage = stores()
    ingest(storage, load_rules(rules_file), batch_rows=700)
    rules_file.write_text(text.format(folder=LOGHUB.as_posix()).replace("infinite", max_gap))
    rules = load_rules(rules_file)
    report = reprocess(storage, rules, batch_rows=300)
    made = generation(storage, rules)
    assert made == fresh(stores, rules)
    assert (report.logs_read, report.memberships_new) == (2_000, len(made.memberships))


@parametrize_mostly_slow("batch_rows", [37, 1])
def test_made_up_logs_make_the_same_fibers_as_their_files(
    stores: Callable[[], DuckDBStorage], tmp_path: Path, batch_rows: int
) -> None:
    rules_file = write_demo(tmp_path / "logs", 60)
    storage = stores()
    before = load_rules(rules_file)
    ingest(storage, before)
    rules_file.write_text(rules_file.read_text().replace('"10s"', '"2s"'))
    rules = load_rules(rules_file)
    of_before = generation(storage, before)
    reprocess(storage, rules, batch_rows=batch_rows)
    assert generation(storage, rules) == fresh(stores, rules)
    assert generation(storage, before) == of_before


def test_the_new_generation_is_registered_and_not_active(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules
) -> None:
    storage = stores()
    ingest(storage, old)
    reports: list[ReprocessReport] = []
    report = reprocess(storage, new, batch_rows=100, on_batch=reports.append)
    assert [found.logs_read for found in reports] == list(range(100, 901, 100))
    assert reports[-1] == report
    active, registered = storage.versions.active(), storage.versions.get(new.config_version)
    assert active is not None
    assert registered is not None
    assert (active.config_version, active.content) == (old.config_version, RULES)
    assert (registered.parent, registered.content) == (old.config_version, new.content)
    assert storage.versions.diff(old.config_version, new.config_version).counts["split"] > 0


def test_a_page_is_joined_in_parts_each_a_transaction_and_may_end_between_two(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = stores()
    ingest(storage, old)
    monkeypatch.setattr(sys.modules["fiberstore.ingest.reprocess"], "_PART_LOGS", 70)
    join, parts = FiberJoiner.join, list[int]()

    def join_five(joiner: FiberJoiner, *arguments: Any, **named: Any) -> CorrelationCounts:  # noqa: ANN401
        if len(parts) == 5:
            raise DatabaseError("the disk is gone")
        counts = join(joiner, *arguments, **named)
        parts.append(counts.memberships_new)
        return counts

    with monkeypatch.context() as patched:
        patched.setattr(FiberJoiner, "join", join_five)
        with pytest.raises(DatabaseError, match="is gone"):
            reprocess(storage, new, batch_rows=400)
    assert len(generation(storage, new).memberships) == sum(parts)
    assert 0 < max(parts) <= 70
    report = reprocess(storage, new, batch_rows=400)
    made = generation(storage, new)
    assert made == fresh(stores, new)
    assert (report.logs_read, report.memberships_new) == (900, len(made.memberships) - sum(parts))


@pytest.mark.slow
def test_ingestion_goes_on_meanwhile(stores: Callable[[], DuckDBStorage], old: Rules, new: Rules) -> None:
    storage = stores()
    ingest(storage, old, on_batch=lambda _: None)
    storage.logs.delete()
    storage.fibers.delete()
    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(ingest, storage, old, batch_rows=20)
        while not going_on.done():
            reprocess(storage, new, batch_rows=30)
        assert going_on.result().logs_new == 900
    reprocess(storage, new, batch_rows=30)
    assert generation(storage, new) == fresh(stores, new)
    assert generation(storage, old) == fresh(stores, old)


@pytest.mark.slow
@pytest.mark.parametrize("run", [pytest.param(ingest, marks=pytest.mark.long), reprocess])
@pytest.mark.parametrize("change", ["delete", "prune", "merge"])
def test_fibers_that_others_delete_or_merge_meanwhile_go_on(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules, run: Callable[..., object], change: str
) -> None:
    storage = stores()
    if run is reprocess:
        ingest(storage, old)
    theirs = storage.fibers.where(Fibers.c.config_version == new.config_version)
    seen = set()

    def meddle(_report: object) -> None:
        held = {row.log_id for row in storage.memberships.iter_records()}
        seen.update(held)
        ids = [row.fiber_id for row in theirs.iter_records()]
        match change:
            case "delete":
                theirs.where(Fibers.c.fiber_id.in_(ids[::2])).delete()
            case "prune":
                storage.prune(fibers=Fibers.c.fiber_id.in_(ids[1::2]))
            case _:
                storage.merge_fibers({ids[place]: ids[place - 1] for place in range(1, len(ids), 2)})
        kept = {row.fiber_id for row in storage.fibers.iter_records()}
        assert {row.fiber_id for row in storage.memberships.iter_records()} <= kept

    run(storage, new, batch_rows=50, on_batch=meddle)
    logs = {row.log_id for row in all_logs(storage)}
    expected = {row.log_id for row in all_logs(storage) if "=" in row.raw_text}
    assert seen & logs == expected
    if change == "merge":
        held = {
            row.log_id
            for row in storage.memberships.iter_records()
            if row.config_version == new.config_version
        }
        assert held == expected


def test_ingest_goes_on_where_reprocess_ended(
    stores: Callable[[], DuckDBStorage], tmp_path: Path, old: Rules, new: Rules
) -> None:
    text = (tmp_path / "web.log").read_text()
    (tmp_path / "web.log").write_text("".join(text.splitlines(keepends=True)[:300]))
    storage = stores()
    ingest(storage, old)
    reprocess(storage, new)
    storage.versions.activate(new.config_version)
    (tmp_path / "web.log").write_text(text)
    ingest(storage, new)
    assert generation(storage, new) == fresh(stores, new)
    assert reprocess(storage, new).memberships_new == 0


@pytest.mark.slow
def test_a_later_run_adds_what_was_stored_since(
    stores: Callable[[], DuckDBStorage], tmp_path: Path, old: Rules, new: Rules
) -> None:
    text = (tmp_path / "web.log").read_text().splitlines(keepends=True)
    storage = stores()
    for end in (0, 7, 200, 200, 900):
        (tmp_path / "web.log").write_text("".join(text[:end]))
        ingest(storage, old)
        before = storage.memberships.count()
        report = reprocess(storage, new, batch_rows=50)
        assert storage.memberships.count() == before + report.memberships_new
        assert generation(storage, new) == fresh(stores, new)
    assert report.logs_read <= 700 + 50


def late(number: int, seconds: float, text: str) -> LogRecord:
    return log(number, seconds, source="web", text=text)


LATE = [late(10, 10, "key=z"), late(11, 50, "key=w"), late(9, 35, "key=z"), late(12, 51, "nothing")]


@pytest.mark.slow
def test_late_logs_are_joined_however_the_run_was_cut(
    stores: Callable[[], DuckDBStorage], rules_file: Path, tmp_path: Path
) -> None:
    """Log time is 100 s when they come, also to a run that begins then: the line at 50 s closes nothing."""
    (tmp_path / "web.log").touch()
    rules = load_rules(rules_file)
    made = []
    for is_cut in (False, True):
        storage = stores()
        storage.write_logs([late(n, 100, f"key=k{n}") for n in range(100, 104)])

        def write_late(
            report: ReprocessReport, storage: DuckDBStorage = storage, stop: bool = is_cut
        ) -> None:
            if report.logs_read == 2:
                storage.write_logs(LATE[:2])
                storage.write_logs(LATE[2:])
                if stop:
                    raise KeyboardInterrupt

        if is_cut:
            with pytest.raises(KeyboardInterrupt):
                reprocess(storage, rules, batch_rows=2, on_batch=write_late)
        reprocess(storage, rules, batch_rows=2, on_batch=None if is_cut else write_late)
        made.append(generation(storage, rules))
        sizes = [
            storage.logs.where(Logs.c.fibers.contains(found.fiber_id)).count()
            for found in storage.fibers.iter_records()
        ]
        assert sorted(sizes) == [1, 1, 1, 1, 1, 2]
    assert made[0] == made[1]


@pytest.mark.slow
def test_deleted_logs_are_not_missed(stores: Callable[[], DuckDBStorage], old: Rules, new: Rules) -> None:
    """The newest log tells the position of the run; without it, all is read again."""
    storage = stores()
    ingest(storage, old)

    def delete_newest(report: ReprocessReport) -> None:
        if report.logs_read == 300:
            *_, newest = storage.logs.tail("", timeout_s=0)  # the last in the order of arrival
            storage.logs.where(Logs.c.log_id == newest.log_id).delete()

    report = reprocess(storage, new, batch_rows=100, on_batch=delete_newest)
    assert report.logs_read == 300 + 899
    stored = {found.log_id for found in all_logs(storage)}
    assert {found.log_id for found in storage.memberships.iter_records()} <= stored
    again = stores()
    again.write_logs(all_logs(storage))
    reprocess(again, new)
    assert generation(storage, new) == generation(again, new)


def test_a_log_that_is_deleted_before_its_batch_is_stored_joins_nothing(
    stores: Callable[[], DuckDBStorage], new: Rules
) -> None:
    storage = stores()
    storage.write_logs([late(number, number, f"key=k{number}") for number in range(6)])
    storage.write_memberships([member(0, 77, 77)])

    def delete(call: Call) -> None:
        if call.method == "logs.page" and storage.logs.count() == 6:
            storage.logs.where(Logs.c.log_id == uid(1)).delete()

    storage.on_call(delete)
    reprocess(storage, new, batch_rows=3)
    joined = storage.fibers.where(Fibers.c.config_version == new.config_version)
    assert joined.count() == 5
    assert [found.log_id.int for found in storage.memberships.iter_records()] == [0, 0, 2, 3, 4, 5]


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from fiberstore import DuckDBStorage
from fiberstore.ingest import ingest, load_rules, reprocess
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
path, rules, stop_after, batch_rows, delay_s = sys.argv[1:]
with DuckDBStorage(path) as storage:
    if float(delay_s):
        threading.Timer(float(delay_s), kill).start()
    def stop(report):
        if report.logs_read >= int(stop_after):
            kill()
    reprocess(storage, load_rules(Path(rules), check_files=False), batch_rows=int(batch_rows), on_batch=stop)
    os._exit(0)
"""


def run_killed(path: Path, rules_file: Path, stop_after: int, batch_rows: int, delay_s: float = 0) -> int:
    arguments = map(str, (path, rules_file, stop_after, batch_rows, delay_s))
    return subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode


@pytest.mark.slow
def test_a_killed_run_started_again_ends_like_one_that_was_not(
    stores: Callable[[], DuckDBStorage], store_file: Path, rules_file: Path, old: Rules, new: Rules
) -> None:
    with DuckDBStorage(store_file) as storage:
        ingest(storage, old)
    for stop_after, batch_rows in ((100, 10), (300, 33)):
        assert run_killed(store_file, rules_file, stop_after, batch_rows) == -signal.SIGKILL
    with DuckDBStorage(store_file) as storage:
        assert 400 < reprocess(storage, new, batch_rows=50).logs_read < 900
        assert generation(storage, new) == fresh(stores, new)
        assert generation(storage, old) == fresh(stores, old)


@pytest.mark.slow
def test_a_run_may_be_killed_at_any_moment(
    stores: Callable[[], DuckDBStorage], store_file: Path, rules_file: Path, old: Rules, new: Rules
) -> None:
    with DuckDBStorage(store_file) as storage:
        ingest(storage, old)
    ends = [run_killed(store_file, rules_file, 10**9, 5, 0.35 + step * 0.085) for step in range(4)]
    assert set(ends) <= {0, -signal.SIGKILL}
    assert ends.count(-signal.SIGKILL) > 1
    with DuckDBStorage(store_file) as storage:
        reprocess(storage, new)
        assert generation(storage, new) == fresh(stores, new)


def test_fibers_of_others_need_an_active_version(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules
) -> None:
    storage = stores()
    ingest(storage, old)
    storage.versions.activate(None)
    with pytest.raises(DatabaseError, match=f"{old.config_version:016x}.*activate") as caught:
        reprocess(storage, new)
    assert str(old.config_version) in str(caught.value)
    assert storage.versions.get(new.config_version) is None
    storage.versions.activate(old.config_version)
    assert reprocess(storage, new).memberships_new > 0


@pytest.mark.slow
def test_a_store_without_fibers_needs_no_active_version(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules
) -> None:
    storage = stores()
    ingest(storage, old)
    logs = all_logs(storage)
    only_logs = stores()
    only_logs.write_logs(logs)
    reprocess(only_logs, new, batch_rows=100)
    assert only_logs.versions.active() is None
    assert generation(only_logs, new) == fresh(stores, new)
    assert reprocess(only_logs, new).memberships_new == 0


def test_the_active_version_catches_up(stores: Callable[[], DuckDBStorage], old: Rules) -> None:
    storage = stores()
    ingest(storage, old)
    assert reprocess(storage, old).memberships_new == 0
    storage.write_logs([late(1, 10_000, "key=new"), late(2, 10_001, "key=new")])
    report = reprocess(storage, old)
    assert (report.fibers_new, report.memberships_new) == (1, 2)


def test_a_dropped_generation_can_be_made_again(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules
) -> None:
    storage = stores()
    ingest(storage, old)
    reprocess(storage, new)
    made = generation(storage, new)
    assert storage.versions.drop(new.config_version).memberships == len(made.memberships)
    left = [checkpoint.name for checkpoint in storage.checkpoints.all()]
    assert left == ["ingest web", f"read {old.config_version:016x} web"]
    reprocess(storage, new)
    assert generation(storage, new) == made


KILLED_DROP = """
import os, signal, sys
from fiberstore import DuckDBStorage
with DuckDBStorage(sys.argv[1]) as storage:
    storage.on_call(lambda call: os.kill(os.getpid(), signal.SIGKILL))
    storage.versions.drop(int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way_on", ["drop", "reprocess"])
def test_a_drop_that_was_killed_has_dropped_all_fibers(
    stores: Callable[[], DuckDBStorage], store_file: Path, old: Rules, new: Rules, way_on: str
) -> None:
    with DuckDBStorage(store_file) as storage:
        ingest(storage, old)
        reprocess(storage, new)
        made = generation(storage, new)
    arguments = [str(store_file), str(new.config_version)]
    assert subprocess.run([sys.executable, "-c", KILLED_DROP, *arguments], check=False).returncode < 0
    with DuckDBStorage(store_file) as storage:
        left = generation(storage, new)
        assert (left.fibers, left.memberships) == ([], made.memberships)
        if way_on == "drop":
            assert storage.versions.drop(new.config_version).memberships == len(made.memberships)
            assert generation(storage, new).memberships == []
        reprocess(storage, new)
        assert generation(storage, new) == made
        assert generation(storage, old) == fresh(stores, old)


def test_a_run_whose_version_is_dropped_ends(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules
) -> None:
    storage = stores()
    ingest(storage, old)

    def drop(report: ReprocessReport) -> None:
        if report.logs_read == 200:
            storage.versions.drop(new.config_version)

    with pytest.raises(CheckpointError):
        reprocess(storage, new, batch_rows=100, on_batch=drop)
    assert not generation(storage, new).fibers
    assert not generation(storage, new).memberships


@pytest.mark.slow
def test_the_second_of_two_runs_stops_the_first(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules
) -> None:
    storage = stores()
    ingest(storage, old)

    def run_another(report: ReprocessReport) -> None:
        if report.logs_read == 200:
            reprocess(storage, new)

    with pytest.raises(CheckpointError):
        reprocess(storage, new, batch_rows=100, on_batch=run_another)
    assert generation(storage, new) == fresh(stores, new)


def test_the_files_are_not_needed(
    stores: Callable[[], DuckDBStorage], rules_file: Path, tmp_path: Path, old: Rules
) -> None:
    storage = stores()
    ingest(storage, old)
    (tmp_path / "web.log").unlink()
    with pytest.raises(RulesError, match=r"web\.log"):
        load_rules(rules_file)
    reprocess(storage, load_rules(rules_file, check_files=False))
    rules_file.write_text(RULES.replace('path = "web.log"\n', ""))
    rules = load_rules(rules_file, check_files=False)
    with pytest.raises(RulesError, match=r"sources.web.path: missing"):
        ingest(storage, rules)
    reprocess(storage, rules)
    assert storage.fibers.where(Fibers.c.config_version == rules.config_version).count() > 0


def test_a_batch_has_a_row(stores: Callable[[], DuckDBStorage], old: Rules) -> None:
    with pytest.raises(ValueError, match="batch_rows"):
        reprocess(stores(), old, batch_rows=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(
    stores: Callable[[], DuckDBStorage], rules_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "web.log").touch()
    rules = load_rules(rules_file)
    peaks = []
    for logs in (2_000, 12_000):
        storage = stores()
        storage.write_logs(
            [late(number, number, f"key=k{number // 5} {'x' * 200}") for number in range(logs)]
        )
        tracemalloc.start()
        reprocess(storage, rules, batch_rows=500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


# What ingest does to the registry


def test_the_first_rules_of_a_store_become_the_active_ones(
    stores: Callable[[], DuckDBStorage], old: Rules, new: Rules
) -> None:
    storage = stores()
    ingest(storage, old)
    first = storage.versions.active()
    assert first is not None
    assert (first.config_version, first.content, first.parent) == (old.config_version, RULES, None)
    ingest(storage, new)
    second = storage.versions.get(new.config_version)
    assert second is not None
    assert (second.parent, second.active) == (old.config_version, False)
    ingest(storage, old)
    assert storage.versions.active() == first


def test_a_store_of_before_keeps_its_generation(stores: Callable[[], DuckDBStorage], old: Rules) -> None:
    storage = stores()
    storage.write_fiber(fiber(1, config_version=5))
    ingest(storage, old)
    assert storage.versions.active() is None
    assert [found.config_version for found in storage.versions.all()] == [old.config_version]


def test_rules_know_what_their_file_holds(rules_file: Path) -> None:
    rules_file.write_bytes(RULES.replace("\n", "\r\n").encode())
    rules = load_rules(rules_file, check_files=False)
    assert rules.content is not None
    assert rules.content.encode() == rules_file.read_bytes()
    assert config_version(rules.content) == rules.config_version
    assert rules.content not in repr(rules)
    rules_file.write_text('content = ""\n' + RULES)
    with pytest.raises(RulesError, match="content: is computed"):
        load_rules(rules_file, check_files=False)
