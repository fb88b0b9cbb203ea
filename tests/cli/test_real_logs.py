"""The fibers of real log files, compared with what grep counts."""

import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import (
    Run,
)
from tests.support.small_store import row_counts

LOGHUB = Path(__file__).parents[3] / "shared" / "loghub"
LOGHUB_RULES = r"""
[sources.sshd]
path = "OpenSSH_2k.log"
timestamp = '^(?P<ts>\w{3} +\d+ \d\d:\d\d:\d\d)'
format = "%b %d %H:%M:%S"
timezone = "UTC"
year = 2024

[sources.hadoop]
path = "Hadoop_2k.log"
timestamp = '^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}'
format = "%Y-%m-%d %H:%M:%S,%f"
timezone = "UTC"

[fibers.login]
max_gap = "infinite"
[[fibers.login.patterns]]
source = "sshd"
regex = 'sshd\[(?P<pid>\d+)\]'

[fibers.attempt]
max_gap = "infinite"
[[fibers.attempt.patterns]]
source = "hadoop"
regex = '(?P<attempt>attempt_\d+_\d+_[mr]_\d+_\d+)'
"""


def grep_unique(pattern: str, name: str) -> int:
    command = f"grep -oE '{pattern}' '{LOGHUB / name}' | sort -u | wc -l"
    return int(subprocess.check_output(command, shell=True))  # noqa: S602 - our own text


def grep_lines(pattern: str, name: str) -> int:
    return int(subprocess.check_output(["grep", "-cE", pattern, LOGHUB / name]))


@pytest.mark.slow
@pytest.mark.skipif(not LOGHUB.is_dir(), reason=f"needs the sample log files in {LOGHUB}")
def test_real_logs_give_the_fibers_that_grep_counts(run: Run, tmp_path: Path, db_file: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(LOGHUB_RULES)
    files = [f"sshd={LOGHUB / 'OpenSSH_2k.log'}", f"hadoop={LOGHUB / 'Hadoop_2k.log'}"]
    assert run("ingest", "--rules", rules, "--db", db_file, *files).code == 0

    pid, attempt = r"sshd\[[0-9]+\]", "attempt_[0-9]+_[0-9]+_[mr]_[0-9]+_[0-9]+"
    logins = run("fibers", "--db", db_file, "--type", "login", "--limit", "9999", "--json").objects
    attempts = run("fibers", "--db", db_file, "--type", "attempt", "--limit", "9999", "--json").objects
    assert len(logins) == grep_unique(pid, "OpenSSH_2k.log") > 500
    assert len(attempts) == grep_unique(attempt, "Hadoop_2k.log") > 10
    assert sum(fiber["log_count"] for fiber in logins) == grep_lines(pid, "OpenSSH_2k.log")
    assert sum(fiber["log_count"] for fiber in attempts) == grep_lines(attempt, "Hadoop_2k.log")

    counts = row_counts(db_file)
    again = run("ingest", "--rules", rules, "--db", db_file, *files, "--json").objects[0]
    assert (again["logs_new"], again["fibers_new"], again["memberships_new"]) == (0, 0, 0)
    assert row_counts(db_file) == counts
