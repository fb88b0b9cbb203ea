"""``fiberstore ingest`` beside a plain program that does the whole job by hand.

``python -m benchmarks.ingest [--quick] [--lines N]`` makes log files of 500,000 lines in the kind of OpenSSH,
as JSON lines and in the format of container runtimes, and reads them into new stores. Each reading has a
process of its own, which measures its CPU seconds without start-up. Printed are medians, their ratios to
``plain_ingest``, and the marks that are set for them.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.clock import peak_mb

_YEAR = 2024
_BEGIN = datetime(_YEAR, 1, 1, tzinfo=UTC)
_GROWN_SHARE = 0.01
_SESSIONS: Sequence[Sequence[tuple[int, str]]] = [
    [
        (0, "reverse mapping checking getaddrinfo for host-{n}.example.net [10.{a}.{b}.7] failed - ATTEMPT!"),
        (0, "Invalid user {user} from 10.{a}.{b}.7"),
        (0, "input_userauth_request: invalid user {user} [preauth]"),
        (0, "pam_unix(sshd:auth): check pass; user unknown"),
        (
            0,
            "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= "
            "rhost=10.{a}.{b}.7 ",
        ),
        (2, "Failed password for invalid user {user} from 10.{a}.{b}.7 port {port} ssh2"),
        (2, "Connection closed by 10.{a}.{b}.7 [preauth]"),
    ],
    [(0, "Connection closed by 10.{a}.{b}.9 [preauth]")],
    [
        (0, "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= "
            "rhost=host-{n}.customers.example.org  user=root"),
        (1, "Failed password for root from 10.{a}.{b}.3 port {port} ssh2"),
        (2, "Received disconnect from 10.{a}.{b}.3: 11: Bye Bye [preauth]"),
    ],
    [
        (0, "Accepted password for {user} from 10.{a}.{b}.5 port {port} ssh2"),
        (0, "pam_unix(sshd:session): session opened for user {user} by (uid=0)"),
        (40, "Received disconnect from 10.{a}.{b}.5: 11: disconnected by user"),
        (40, "pam_unix(sshd:session): session closed for user {user}"),
    ],
]  # fmt: skip
_SOURCES = {
    "sshd": r"""
timestamp = '^(?P<ts>\w{3} +\d+ \d\d:\d\d:\d\d)'
format = "%b %d %H:%M:%S"
timezone = "UTC"
year = 2024
""",
    "json": """
timestamp = '"ts":"(?P<ts>[^"]+)"'
format = "iso8601"
""",
    "cri": r"""
timestamp = '^(?P<ts>\S+)'
format = "iso8601"
join = "cri"
""",
}
_FIBERS = r"""
[fibers.login]
max_gap = "60s"
[[fibers.login.patterns]]
regex = 'sshd\[(?P<pid>\d+)\]'
"""


@dataclass(frozen=True)
class Reading:
    """Cost of one reading.

    Attributes:
        cpu_s: CPU seconds of the process, without start-up.
        seconds: Seconds that it took.
        peak_mb: Most memory of the process.
        logs: Logs that are new.
        fibers: Fibers that are new.
    """

    cpu_s: float
    seconds: float
    peak_mb: float
    logs: int
    fibers: int


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small files: are the results right?")
    parser.add_argument("--lines", type=int, help="lines of a file; 500,000 by default")
    parser.add_argument("--rounds", type=int, help="readings of each kind; 3 by default")
    arguments = parser.parse_args()
    lines = arguments.lines or (5_000 if arguments.quick else 500_000)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    found: dict[str, list[Reading]] = {}
    try:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                for name, reading in _measure(Path(folder), lines):
                    found.setdefault(name, []).append(reading)
    finally:
        from benchmarks.stores import server

        server.stop()
    _print_table(found, lines)


def _measure(folder: Path, lines: int) -> Iterator[tuple[str, Reading]]:
    grown = max(1, int(lines * _GROWN_SHARE))
    files = {kind: _write_file(folder, kind, lines) for kind in _SOURCES}
    plain = _read(["plain", str(files["sshd"]), str(folder / "plain.duckdb")])
    yield "plain", plain
    from benchmarks.stores import server  # of which the children that are measured need nothing

    url = server.new_database()
    on_server = _ours(folder, "sshd", url.render_as_string(hide_password=False))
    assert (on_server.logs, on_server.fibers) == (plain.logs, plain.fibers), on_server
    yield "new, PostgreSQL", on_server
    server.drop(url)
    for kind in _SOURCES:
        ours = _ours(folder, kind, str(folder / f"{kind}.duckdb"))
        assert (ours.logs, ours.fibers) == (plain.logs, plain.fibers), (kind, ours, plain)
        yield f"new, {kind}", ours
    again = _ours(folder, "sshd", str(folder / "sshd.duckdb"))
    assert again.logs == 0, again
    yield "again", again
    _write_file(folder, "sshd", lines + grown)
    more = _ours(folder, "sshd", str(folder / "sshd.duckdb"))
    assert more.logs == grown, more
    yield "grown", more


def _print_table(found: dict[str, list[Reading]], lines: int) -> None:
    cpu_s = {name: statistics.median(one.cpu_s for one in readings) for name, readings in found.items()}
    seconds = {name: statistics.median(one.seconds for one in readings) for name, readings in found.items()}
    memory = statistics.median(one.peak_mb for one in found["new, sshd"])
    print(f"| {lines:,} lines | CPU s | lines a CPU s | s | peak MB |\n|---|---|---|---|---|")
    for name, readings in found.items():
        peak = statistics.median(one.peak_mb for one in readings)
        print(
            f"| {name} | {cpu_s[name]:.2f} | {lines / cpu_s[name]:,.0f} | {seconds[name]:.2f} | {peak:.0f} |"
        )
    print("\n| what | found | at most |\n|---|---|---|")
    for name, most in (
        ("new, sshd", 2),
        ("new, json", 3),
        ("new, cri", 3),
        ("again", 0.1),
        ("grown", 0.1),
    ):
        print(f"| {name}: CPU x plain | {cpu_s[name] / cpu_s['plain']:.2f} | {most} |")
    print(f"| new, sshd: peak MB | {memory:.0f} | 300 |")
    ratio = cpu_s["new, PostgreSQL"] / cpu_s["new, sshd"]
    print(f"| new, PostgreSQL: CPU of the client x DuckDB | {ratio:.2f} | 1.25 |")
    ratio = seconds["new, PostgreSQL"] / seconds["new, sshd"]
    print(f"| new, PostgreSQL: time x DuckDB | {ratio:.2f} | 1.25 |")


def _write_file(folder: Path, kind: str, count: int) -> Path:
    """Write the log file of a kind and its rules; equal lines whatever the count."""
    file = folder / f"{kind}.log"
    with file.open("w", encoding="utf-8") as stream:
        for at, text in _lines(count):
            if kind == "sshd":
                line = f"{at:%b %d %H:%M:%S} {text}"
            elif kind == "json":
                line = json.dumps({"level": "info", "ts": _iso(at), "msg": text}, separators=(",", ":"))
            else:
                line = f"{_iso(at)} stderr F {text}"
            stream.write(f"{line}\n")
    (folder / f"{kind}.toml").write_text(f'[sources.{kind}]\npath = "{file}"{_SOURCES[kind]}{_FIBERS}')
    return file


def _iso(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond:06}000Z"


def _lines(count: int) -> Iterator[tuple[datetime, str]]:
    """Yield the times and texts of so many lines: sessions, of which several are open at a time."""
    dice = random.Random(7)
    at, pid, waiting = _BEGIN, 1_000, list[tuple[datetime, int, str]]()
    while True:
        at += timedelta(microseconds=dice.randrange(20_000_000))
        pid += dice.randrange(1, 4)
        values = {
            "n": dice.randrange(10_000), "a": dice.randrange(256), "b": dice.randrange(256),
            "user": dice.choice(("admin", "oracle", "test", "webmaster", "fztu")),
            "port": dice.randrange(1024, 65536),
        }  # fmt: skip
        for after_s, text in dice.choice(_SESSIONS):
            line = f"LabSZ sshd[{pid}]: {text.format(**values)}"
            waiting.append((at + timedelta(seconds=after_s), pid, line))
        waiting.sort(key=lambda line: line[:2])
        while waiting and waiting[0][0] <= at:
            time_, _, line = waiting.pop(0)
            yield time_, line
            count -= 1
            if not count:
                return


def _ours(folder: Path, kind: str, target: str) -> Reading:
    return _read(["ours", str(folder / f"{kind}.toml"), target])


def _read(arguments: list[str]) -> Reading:
    command = [sys.executable, "-m", "benchmarks.ingest", "--child", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Reading(**json.loads(done.stdout))


def _child(way: str, source: str, target: str) -> None:
    """Read a file in this process, and print what it cost."""
    import pyarrow as pa

    pa.array([0])  # imports pandas, if it is there: start-up, too
    if way == "plain":
        from benchmarks import plain_ingest

        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        logs, fibers = plain_ingest.ingest(Path(source), Path(target), _YEAR)
    else:
        from fiberstore import open_storage
        from fiberstore.ingest.pipeline import ingest
        from fiberstore.ingest.rules import load_rules

        with open_storage(target) as storage:
            storage.init_schema()
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            report = ingest(storage, load_rules(Path(source)))
        logs, fibers = report.logs_new, report.fibers_new
    cpu_s, seconds = time.process_time() - begin_cpu_s, time.perf_counter() - begin_s
    print(json.dumps(vars(Reading(cpu_s, seconds, peak_mb(), logs, fibers))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        main()
