"""Correlation: what joins what, and that neither batches nor restarts make a difference."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberstore.ids import stable_fiber_id, stable_log_id
from fiberstore.ingest.correlate import Changes, Correlator
from fiberstore.ingest.reader import read_sources
from fiberstore.ingest.rules import FiberType, Pattern, Rules, Source, load_rules
from fiberstore.records import FiberRecord, LogRecord

START = datetime(2024, 1, 1, tzinfo=UTC)
SOURCE = Source()
VERSION = 2**63 + 1


def pattern(source: str, regex: str, *, close: bool = False) -> Pattern:
    return Pattern(source=(source,), regex=re.compile(regex), close=close)


def rules(**types: tuple[int | None, list[Pattern]]) -> Rules:
    """Rules of two sources, a and b; a type is its max_gap in seconds and its patterns."""
    fibers = {
        name: FiberType(max_gap=None if gap is None else timedelta(seconds=gap), patterns=patterns)
        for name, (gap, patterns) in types.items()
    }
    return Rules(sources={"a": SOURCE, "b": SOURCE}, fibers=fibers, config_version=VERSION)


def line(second: int, text: str, source: str = "a", position: int = 0) -> LogRecord:
    timestamp = START + timedelta(seconds=second)
    log_id = stable_log_id(source, position, text, timestamp)
    return LogRecord(timestamp=timestamp, source_id=source, raw_text=text, log_id=log_id)


@dataclass
class Store:
    """What a database would hold."""

    fibers: dict[UUID, FiberRecord] = field(default_factory=dict)
    memberships: set[tuple[UUID, UUID]] = field(default_factory=set)

    def apply(self, changes: Changes) -> None:
        for fiber in changes.new:
            assert fiber.fiber_id not in self.fibers
            self.fibers[fiber.fiber_id] = fiber
        for fiber in changes.updated:
            assert self.fibers[fiber.fiber_id] != fiber
            assert not self.fibers[fiber.fiber_id].closed
            self.fibers[fiber.fiber_id] = fiber
        for loser in changes.merged:
            del self.fibers[loser]
        self.memberships = {(log, changes.merged.get(fiber, fiber)) for log, fiber in self.memberships}
        added = [(membership.log_id, membership.fiber_id) for membership in changes.memberships]
        assert len(set(added)) == len(added)
        assert self.memberships.isdisjoint(added)
        self.memberships.update(added)
        assert {fiber for _, fiber in self.memberships} == self.fibers.keys()

    def open(self) -> list[FiberRecord]:
        return [fiber for fiber in self.fibers.values() if not fiber.closed]


def correlate(rules: Rules, lines: Iterable[LogRecord]) -> Store:
    correlator = Correlator(rules)
    for log in lines:
        correlator.add(log)
    store = Store()
    store.apply(correlator.drain())
    return store


def groups(store: Store, lines: list[LogRecord]) -> list[str]:
    """Each fiber as the numbers of its lines, sorted; ``!`` marks a closed one."""
    numbers = {log.log_id: str(number) for number, log in enumerate(lines)}
    members: dict[UUID, list[str]] = {}
    for log_id, fiber_id in store.memberships:
        members.setdefault(fiber_id, []).append(numbers[log_id])
    return sorted(
        "".join(sorted(members[fiber.fiber_id])) + "!" * fiber.closed for fiber in store.fibers.values()
    )


def grouped(rules: Rules, *lines: LogRecord) -> list[str]:
    return groups(correlate(rules, lines), list(lines))


BY_X = rules(t=(10, [pattern("a", r"x=(?P<x>\w+)")]))
BY_X_OR_Y = rules(t=(10, [pattern("a", r"x=(?P<x>\w+)"), pattern("a", r"y=(?P<y>\w+)")]))


def test_the_first_line_of_a_key_begins_a_fiber() -> None:
    log = line(3, "x=1")
    store = correlate(BY_X, [log])
    assert list(store.fibers.values()) == [
        FiberRecord(
            fiber_id=stable_fiber_id("t", VERSION, log.log_id),
            fiber_type="t",
            config_version=VERSION,
            attributes={"x": ["1"]},
            first_activity=log.timestamp,
            last_activity=log.timestamp,
        )
    ]


def test_lines_that_share_a_key_share_a_fiber() -> None:
    assert grouped(BY_X, line(0, "x=1"), line(1, "x=2"), line(2, "x=1"), line(3, "none")) == ["02", "1"]


def test_equal_texts_of_different_groups_are_different_keys() -> None:
    assert grouped(BY_X_OR_Y, line(0, "x=1"), line(1, "y=1")) == ["0", "1"]


def test_one_group_name_joins_lines_of_several_patterns_and_sources() -> None:
    patterns = [pattern("a", r"x=(?P<id>\w+)"), pattern("b", r"<(?P<id>\w+)>")]
    assert grouped(rules(t=(10, patterns)), line(0, "x=1"), line(1, "<1>", "b"), line(2, "<1>", "a")) == [
        "01"
    ]


def test_groups_that_took_no_part_or_are_empty_are_no_keys() -> None:
    optional = rules(t=(10, [pattern("a", r"x=(?P<x>\w*)( y=(?P<y>\w+))?")]))
    store = correlate(optional, [line(0, "x="), line(1, "x=1"), line(2, "x= y=2")])
    assert sorted(str(fiber.attributes) for fiber in store.fibers.values()) == [
        "{'x': ['1']}",
        "{'y': ['2']}",
    ]


def test_a_line_may_be_in_fibers_of_several_types() -> None:
    both = rules(t=(10, [pattern("a", r"x=(?P<x>\w)")]), u=(10, [pattern("a", r"y=(?P<y>\w)")]))
    assert grouped(both, line(0, "x=1 y=1"), line(1, "x=1"), line(2, "y=1 x=2")) == ["01", "02", "2"]


def test_attributes_are_the_keys_in_order_of_appearance() -> None:
    store = correlate(BY_X_OR_Y, [line(0, "x=3 y=b"), line(1, "y=b x=1"), line(2, "y=a x=3")])
    assert [fiber.attributes for fiber in store.fibers.values()] == [{"x": ["3", "1"], "y": ["b", "a"]}]


def test_a_line_with_keys_of_several_fibers_makes_them_one_and_the_oldest_survives() -> None:
    lines = [line(1, "y=1"), line(2, "x=1"), line(3, "y=2"), line(4, "x=1 y=1"), line(5, "y=2")]
    store = correlate(BY_X_OR_Y, lines)
    assert groups(store, lines) == ["013", "24"]
    survivor = store.fibers[stable_fiber_id("t", VERSION, lines[0].log_id)]
    assert survivor.attributes == {"y": ["1"], "x": ["1"]}
    assert (survivor.first_activity, survivor.last_activity) == (lines[0].timestamp, lines[3].timestamp)


def test_of_fibers_equally_old_the_one_with_the_smaller_id_survives() -> None:
    lines = [line(0, "y=1"), line(0, "x=1"), line(0, "x=1 y=1")]
    ids = [stable_fiber_id("t", VERSION, log.log_id) for log in lines[:2]]
    assert list(correlate(BY_X_OR_Y, lines).fibers) == [min(ids)]


def test_a_gap_of_max_gap_is_bridged_and_a_longer_one_is_not() -> None:
    assert grouped(BY_X, line(0, "x=1"), line(10, "x=1"), line(21, "x=1")) == ["01!", "2"]


def test_max_gap_counts_from_the_last_line_not_the_first() -> None:
    assert grouped(BY_X, *(line(second, "x=1") for second in range(0, 50, 9))) == ["012345"]


def test_log_time_closes_fibers_even_if_none_of_their_lines_comes() -> None:
    assert grouped(BY_X, line(0, "x=1"), line(5, "x=2"), line(11, "x=3")) == ["0!", "1", "2"]


def test_an_infinite_max_gap_closes_nothing() -> None:
    endless = rules(t=(None, [pattern("a", r"x=(?P<x>\w+)")]))
    assert grouped(endless, line(0, "x=1"), line(10**9, "x=1")) == ["01"]


def test_a_closing_line_is_the_last_of_its_fiber() -> None:
    closing = rules(t=(10, [pattern("a", r"x=(?P<x>\w+)"), pattern("a", "end x=(?P<x>.)", close=True)]))
    assert grouped(closing, line(0, "x=1"), line(1, "end x=1"), line(2, "x=1"), line(3, "x=2")) == [
        "01!",
        "2",
        "3",
    ]


def test_a_late_line_joins_and_lowers_first_activity_only() -> None:
    lines = [line(20, "x=1"), line(25, "x=2"), line(2, "x=1")]
    store = correlate(BY_X, lines)
    assert groups(store, lines) == ["02", "1"]
    fiber = store.fibers[stable_fiber_id("t", VERSION, lines[0].log_id)]
    assert (fiber.first_activity, fiber.last_activity) == (lines[2].timestamp, lines[0].timestamp)


def test_lines_far_behind_log_time_are_still_grouped() -> None:
    """As when a clock was set back, or in the hour that the end of summer time repeats."""
    lines = [line(3600, "x=9"), *(line(second, "x=1") for second in (0, 5, 10, 30, 35))]
    assert grouped(BY_X, *lines) == ["0", "123!", "45"]


def test_lines_without_keys_may_be_skipped_or_added_again() -> None:
    lines = [line(0, "x=1"), line(30, "no key"), line(5, "x=2")]
    stored = correlate(BY_X, lines)
    assert groups(stored, lines) == ["0", "2"]
    for keyless in (Correlator.skip, Correlator.add):
        correlator = Correlator(BY_X, stored.open())
        for log, tell in zip(lines, (Correlator.skip, keyless, Correlator.skip), strict=True):
            tell(correlator, log)
        assert correlator.drain() == Changes([], [], {}, [])
        correlator.add(line(15, "x=3"))
        assert [fiber.attributes for fiber in correlator.drain().updated] == [{"x": ["1"]}]


def test_changes_are_told_once() -> None:
    correlator = Correlator(BY_X_OR_Y)
    assert correlator.drain() == Changes([], [], {}, [])
    for log in (line(0, "x=1"), line(1, "x=2"), line(1, "y=3")):
        correlator.add(log)
    born = correlator.drain()
    assert [fiber.attributes for fiber in born.new] == [{"x": ["1"]}, {"x": ["2"]}, {"y": ["3"]}]
    assert correlator.drain() == Changes([], [], {}, [])
    correlator.add(line(1, "x=2", position=1))
    same = correlator.drain()
    assert (same.new, same.updated, same.merged) == ([], [], {})
    assert len(same.memberships) == 1
    correlator.add(line(2, "x=2 y=3"))
    correlator.add(line(3, "x=1 y=3"))
    merged = correlator.drain()
    ids = [fiber.fiber_id for fiber in born.new]
    assert merged.merged == {ids[1]: ids[0], ids[2]: ids[0]}
    assert [fiber.fiber_id for fiber in merged.updated] == [ids[0]]
    assert {membership.fiber_id for membership in merged.memberships} == {ids[0]}


@pytest.mark.parametrize(
    "changes",
    [
        {"closed": True},
        {"config_version": 1},
        {"fiber_type": "u"},
        {"attributes": None},
        {"attributes": {"x": 1}},
    ],
)
def test_fibers_of_other_rules_are_refused(changes: dict[str, object]) -> None:
    fiber = FiberRecord(
        fiber_id=uuid4(),
        fiber_type="t",
        config_version=VERSION,
        attributes={"x": ["1"]},
        first_activity=START,
        last_activity=START,
    )
    Correlator(BY_X, [fiber])
    with pytest.raises(ValueError, match=str(fiber.fiber_id)):
        Correlator(BY_X, [FiberRecord.model_validate(fiber.model_dump() | changes)])


# Any lines, any batches, any restart.

RULES = rules(
    t=(
        10,
        [
            pattern("a", r"x=(?P<x>\w)( y=(?P<y>\w))?"),
            pattern("a", r"y=(?P<y>\w)"),
            pattern("b", r"x=(?P<x>\w)"),
            pattern("b", r"end y=(?P<y>\w)", close=True),
        ],
    ),
    u=(None, [pattern("a", r"z=(?P<z>\w)"), pattern("b", r"y=(?P<z>\w)"), pattern("b", r"x=(?P<x>\w)")]),
)
WORDS = st.sampled_from(["x=1", "x=2", "x=3", "x=1 y=2", "y=1", "y=2", "y=3", "z=1", "z=2", "end y=1", "-"])
STEPS = st.sampled_from([0, 0, 1, 2, 5, 10, 11, 25, -1, -9, -15, -40])


@st.composite
def some_lines(draw: st.DrawFn) -> list[LogRecord]:
    second = 100
    lines = []
    one = st.tuples(STEPS, st.lists(WORDS, min_size=1, max_size=2), st.sampled_from("ab"))
    count = draw(st.integers(0, 40))
    drawn = draw(st.lists(one, min_size=count, max_size=count))
    for position, (step, words, source) in enumerate(drawn):
        second += step
        lines.append(line(second, " ".join(words), source, position))
    return lines


@dataclass
class Plain:
    """A fiber of the reference."""

    fiber_type: str
    born_of: UUID
    first: datetime
    last: datetime
    keys: set[tuple[str, str]]
    logs: set[UUID]
    closed: bool = False

    @property
    def fiber_id(self) -> UUID:
        return stable_fiber_id(self.fiber_type, VERSION, self.born_of)


def reference(lines: list[LogRecord]) -> list[Plain]:
    """The rules as they are worded, without indexes: every line looks at every fiber."""
    fibers: list[Plain] = []
    log_time = START

    def close_silent(name: str, keys: set[tuple[str, str]] | None, now: datetime) -> None:
        gap = RULES.fibers[name].max_gap
        for fiber in fibers:
            concerned = fiber.fiber_type == name and (keys is None or fiber.keys & keys)
            if concerned and gap is not None and now - fiber.last > gap:
                fiber.closed = True

    for log in lines:
        hits = {
            name: [
                (pattern.close, match.groupdict())
                for pattern in rule.patterns
                if pattern.reads(log.source_id) and (match := pattern.regex.search(log.raw_text))
            ]
            for name, rule in RULES.fibers.items()
        }
        if any(hits.values()) and log.timestamp > log_time:
            log_time = log.timestamp
            for name in hits:
                close_silent(name, None, log_time)
        for name, found in hits.items():
            keys = {(group, text) for _, texts in found for group, text in texts.items() if text}
            if not keys:
                continue
            close_silent(name, keys, log.timestamp)
            joined = [
                fiber
                for fiber in fibers
                if fiber.fiber_type == name and not fiber.closed and fiber.keys & keys
            ]
            joined.sort(key=lambda fiber: (fiber.first, fiber.fiber_id))
            fibers = [fiber for fiber in fibers if fiber not in joined]
            new = Plain(name, log.log_id, log.timestamp, log.timestamp, keys, {log.log_id})
            joined.append(new)
            fibers.append(
                Plain(
                    name,
                    joined[0].born_of,
                    min(fiber.first for fiber in joined),
                    max(fiber.last for fiber in joined),
                    set().union(*(fiber.keys for fiber in joined)),
                    set().union(*(fiber.logs for fiber in joined)),
                    any(close for close, _ in found),
                )
            )
    return fibers


def keys_of(fiber: FiberRecord) -> set[tuple[str, str]]:
    assert isinstance(fiber.attributes, dict)
    keys = set()
    for name, texts in fiber.attributes.items():
        assert isinstance(texts, list)
        assert len(texts) == len(set(map(str, texts)))
        keys |= {(name, str(text)) for text in texts}
    return keys


@settings(max_examples=150, deadline=None, database=None)
@given(lines=some_lines())
def test_the_outcome_is_that_of_the_rules_as_they_are_worded(lines: list[LogRecord]) -> None:
    store = correlate(RULES, lines)
    expected = reference(lines)
    assert store.memberships == {(log_id, fiber.fiber_id) for fiber in expected for log_id in fiber.logs}
    assert {
        fiber.fiber_id: (fiber.first_activity, fiber.last_activity, keys_of(fiber), fiber.closed)
        for fiber in store.fibers.values()
    } == {fiber.fiber_id: (fiber.first, fiber.last, fiber.keys, fiber.closed) for fiber in expected}


@settings(max_examples=150, deadline=None, database=None)
@given(lines=some_lines(), data=st.data())
def test_batches_and_restarts_make_no_difference(lines: list[LogRecord], data: st.DataObject) -> None:
    """A restarted run reads all lines again; it may skip all it read before, or those that are in fibers."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(lines)), max_size=6)))
    store = Store()
    correlator = Correlator(RULES)
    for begin, end in zip([0, *cuts], [*cuts, len(lines)], strict=True):
        restart = data.draw(st.sampled_from(["", "skip all", "skip known"]))
        if restart:
            correlator = Correlator(RULES, store.open())
            known = {log_id for log_id, _ in store.memberships}
            for log in lines[:begin]:
                if restart == "skip all" or log.log_id in known:
                    correlator.skip(log)
                else:
                    correlator.add(log)
        for log in lines[begin:end]:
            correlator.add(log)
        store.apply(correlator.drain())
    assert store == correlate(RULES, lines)


# Real log files. What must come out is counted by other programs on the same file.

LOGHUB = Path(__file__).parents[3] / "shared" / "loghub"

SSHD = r"""
[sources.log]
path = "{folder}/OpenSSH_2k.log"
timestamp = '^(?P<ts>\w{{3}} +\d+ \d\d:\d\d:\d\d)'
format = "%b %d %H:%M:%S"
timezone = "UTC"
year = 2024
[fibers.f]
max_gap = "infinite"
[[fibers.f.patterns]]
source = "log"
regex = 'sshd\[(?P<key>\d+)\]'
"""
HADOOP = r"""
[sources.log]
path = "{folder}/Hadoop_2k.log"
timestamp = '^\S+ \S+'
format = "%Y-%m-%d %H:%M:%S,%f"
timezone = "UTC"
[fibers.f]
max_gap = "infinite"
[[fibers.f.patterns]]
source = "log"
regex = '(?P<key>attempt_\d+_\d+_[mr]_\d+_\d+)'
"""
HDFS = r"""
[sources.log]
path = "{folder}/HDFS_2k.log"
timestamp = '^\d{{6}} \d{{6}}'
format = "%y%m%d %H%M%S"
timezone = "UTC"
[fibers.f]
max_gap = "infinite"
[[fibers.f.patterns]]
source = "log"
regex = '(?P<key>blk_-?\d+)'
"""
APACHE = r"""
[sources.log]
path = "{folder}/Apache_2k.log"
timestamp = '^\[(.*?)\]'
format = "%a %b %d %H:%M:%S %Y"
timezone = "UTC"
[fibers.f]
max_gap = "infinite"
[[fibers.f.patterns]]
source = "log"
regex = 'child (?P<key>\d+)'
"""
LINUX = r"""
[sources.log]
path = "{folder}/Linux_2k.log"
timestamp = '^\w{{3}} +\d+ [\d:]+'
format = "%b %d %H:%M:%S"
timezone = "UTC"
year = 2005
[fibers.f]
max_gap = "infinite"
[[fibers.f.patterns]]
source = "log"
regex = '\[(?P<key>\d+)\]:'
"""


def loghub(tmp_path: Path, text: str) -> tuple[list[LogRecord], Store, Path]:
    if not LOGHUB.is_dir():
        pytest.skip(f"no sample logs in {LOGHUB}")
    path = tmp_path / "rules.toml"
    path.write_text(text.format(folder=LOGHUB.as_posix()))
    real = load_rules(path)
    lines = list(read_sources(real))
    return lines, correlate(real, lines), (real.sources["log"].path or ())[0]


def shell(command: str, path: Path) -> list[str]:
    """The lines that a shell command prints, run on the file ``$1``."""
    run = subprocess.run(["sh", "-c", command, "sh", path], check=True, capture_output=True, text=True)
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "regex", "fiber_count"),
    [
        pytest.param(SSHD, r"sshd\[[0-9]+\]", 519, id="OpenSSH"),
        pytest.param(HADOOP, "attempt_[0-9]+_[0-9]+_[mr]_[0-9]+_[0-9]+", 14, id="Hadoop"),
        pytest.param(HDFS, "blk_-?[0-9]+", None, id="HDFS"),
        pytest.param(APACHE, "child [0-9]+", None, id="Apache"),
        pytest.param(LINUX, r"\[[0-9]+\]:", None, id="Linux"),
    ],
)
def test_each_key_of_a_real_file_has_its_lines(
    tmp_path: Path, text: str, regex: str, fiber_count: int | None
) -> None:
    lines, store, path = loghub(tmp_path, text)
    assert [str(len(lines))] == shell("grep -c '' \"$1\"", path)
    assert not any("\r" in log.raw_text for log in lines)

    def number(key: str) -> str:
        return re.sub(r"^(sshd|child|)[ \[]|\]:?$", "", key)

    # The first key of each line, counted.
    awk = "awk '{ if (match($0, /%s/)) print substr($0, RSTART, RLENGTH) }' \"$1\" | sort | uniq -c"
    expected = {number(row.split(maxsplit=1)[1]): int(row.split()[0]) for row in shell(awk % regex, path)}
    sizes = Counter(fiber_id for _, fiber_id in store.memberships)
    assert {
        key: sizes[fiber.fiber_id] for fiber in store.fibers.values() for _, key in keys_of(fiber)
    } == expected
    assert len(store.fibers) == len(expected)
    assert fiber_count in {None, len(expected)}


def test_login_sessions_are_those_of_openssh(tmp_path: Path) -> None:
    """One session per process; the only login that succeeded was silent for 13 minutes, more than 60 s."""
    _, store, path = loghub(tmp_path, SSHD.replace("infinite", "60s"))
    split = r"""tr ':[]' '   ' < "$1" | awk '{ now = $3 * 3600 + $4 * 60 + $5; pid = $8
        if (!(pid in last) || now - last[pid] > 60) print pid; last[pid] = now }' | sort"""
    assert sorted(str(dict(keys_of(fiber))["key"]) for fiber in store.fibers.values()) == shell(split, path)
    pids = Counter(dict(keys_of(fiber))["key"] for fiber in store.fibers.values())
    assert [pid for pid, count in pids.items() if count > 1] == ["24680"]


def test_task_attempts_and_their_containers_are_those_of_hadoop(tmp_path: Path) -> None:
    """A second key, the container, brings in the lines that name the container but not the attempt."""
    container = "[[fibers.f.patterns]]\nsource = 'log'\nregex = '(?P<container>container_[0-9_]+)'\n"
    _, store, path = loghub(tmp_path, HADOOP + container)
    attempts = {
        key: fiber for fiber in store.fibers.values() for name, key in keys_of(fiber) if name == "key"
    }
    assert sorted(attempts) == shell(
        "grep -oE 'attempt_[0-9]+_[0-9]+_[mr]_[0-9]+_[0-9]+' \"$1\" | sort -u", path
    )
    pairs = shell("grep -oE 'Assigned container [^ ]+ to [^ \r]+' \"$1\"", path)
    assert len(pairs) == 10
    for pair in pairs:
        _, _, name, _, attempt = pair.split()
        assert ("container", name) in keys_of(attempts[attempt])
    count = shell("grep -cE 'attempt_[0-9]+_[0-9]+_[mr]|container_[0-9_]+' \"$1\"", path)
    assert [str(len(store.memberships))] == count
