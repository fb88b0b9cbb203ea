"""Real log files: the fibers are those that other programs count on the same file."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from fiberstore import DuckDBStorage
from fiberstore.ingest import ingest, load_rules
from fiberstore.records import FiberRecord
from tests.support.correlation import shown

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


class Found(NamedTuple):
    """The fibers of a file, and how many lines each has."""

    fibers: list[FiberRecord]
    sizes: dict[UUID, int]
    logs: int
    path: Path


def loghub(storage: DuckDBStorage, folder: Path, text: str) -> Found:
    if not LOGHUB.is_dir():
        pytest.skip(f"no sample logs in {LOGHUB}")
    path = folder / "rules.toml"
    path.write_text(text.format(folder=LOGHUB.as_posix()))
    rules = load_rules(path)
    report = ingest(storage, rules, batch_rows=700)
    (log_path,) = rules.sources["log"].path or ()
    fibers = storage.query_fibers_by_type("f", limit=10_000)
    sizes = Counter(member.fiber_id for member in storage.memberships.iter_records())
    return Found(fibers, sizes, report.logs_new, log_path)


def shell(command: str, path: Path) -> list[str]:
    """The lines that a shell command prints, run on the file ``$1``."""
    run = subprocess.run(["sh", "-c", command, "sh", path], check=True, capture_output=True, text=True)
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "regex", "fiber_count"),
    [
        pytest.param(SSHD, r"sshd\[[0-9]+\]", 519, id="OpenSSH"),
        pytest.param(HADOOP, "attempt_[0-9]+_[0-9]+_[mr]_[0-9]+_[0-9]+", 14, id="Hadoop"),
        pytest.param(HDFS, "blk_-?[0-9]+", None, id="HDFS", marks=pytest.mark.slow),
        pytest.param(APACHE, "child [0-9]+", None, id="Apache", marks=pytest.mark.slow),
        pytest.param(LINUX, r"\[[0-9]+\]:", None, id="Linux", marks=pytest.mark.slow),
    ],
)
def test_each_key_of_a_real_file_has_its_lines(
    storage: DuckDBStorage, tmp_path: Path, text: str, regex: str, fiber_count: int | None
) -> None:
    found = loghub(storage, tmp_path, text)
    path = found.path
    assert [str(found.logs)] == shell("grep -c '' \"$1\"", path)

    def number(key: str) -> str:
        return re.sub(r"^(sshd|child|)[ \[]|\]:?$", "", key)

    # The first key of each line, counted.
    awk = "awk '{ if (match($0, /%s/)) print substr($0, RSTART, RLENGTH) }' \"$1\" | sort | uniq -c"
    expected = {number(row.split(maxsplit=1)[1]): int(row.split()[0]) for row in shell(awk % regex, path)}
    assert {key: found.sizes[fiber.fiber_id] for fiber in found.fibers for _, key in shown(fiber)} == expected
    assert len(found.fibers) == len(expected)
    assert fiber_count in {None, len(expected)}


def test_login_sessions_are_those_of_openssh(storage: DuckDBStorage, tmp_path: Path) -> None:
    """One session per process; the only login that succeeded was silent for 13 minutes, more than 60 s."""
    fibers, _, _, path = loghub(storage, tmp_path, SSHD.replace("infinite", "60s"))
    split = r"""tr ':[]' '   ' < "$1" | awk '{ now = $3 * 3600 + $4 * 60 + $5; pid = $8
        if (!(pid in last) || now - last[pid] > 60) print pid; last[pid] = now }' | sort"""
    assert sorted(str(dict(shown(fiber))["key"]) for fiber in fibers) == shell(split, path)
    pids = Counter(dict(shown(fiber))["key"] for fiber in fibers)
    assert [pid for pid, count in pids.items() if count > 1] == ["24680"]


def test_task_attempts_and_their_containers_are_those_of_hadoop(
    storage: DuckDBStorage, tmp_path: Path
) -> None:
    """A second key, the container, brings in the lines that name the container but not the attempt."""
    container = "[[fibers.f.patterns]]\nsource = 'log'\nregex = '(?P<container>container_[0-9_]+)'\n"
    fibers, sizes, _, path = loghub(storage, tmp_path, HADOOP + container)
    attempts = {key: fiber for fiber in fibers for name, key in shown(fiber) if name == "key"}
    assert sorted(attempts) == shell(
        "grep -oE 'attempt_[0-9]+_[0-9]+_[mr]_[0-9]+_[0-9]+' \"$1\" | sort -u", path
    )
    pairs = shell("grep -oE 'Assigned container [^ ]+ to [^ \r]+' \"$1\"", path)
    assert len(pairs) == 10
    for pair in pairs:
        _, _, name, _, attempt = pair.split()
        assert ("container", name) in shown(attempts[attempt])
    count = shell("grep -cE 'attempt_[0-9]+_[0-9]+_[mr]|container_[0-9_]+' \"$1\"", path)
    assert [str(sum(sizes.values()))] == count
