"""The command line on a PostgreSQL store: it prints what it prints of a DuckDB store of the same content."""

import re
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from fiberstore import DatabaseError, DuckDBStorage
from fiberstore.cli import main
from fiberstore.cli.commands.tail import ServerStore, TailFollower
from fiberstore.cli.options import LogFilter
from fiberstore.cli.render import LogLines
from fiberstore.cli.stores import open_read_only
from fiberstore.ingest.demo import write_demo
from fiberstore.ingest.pipeline import ingest
from fiberstore.ingest.reprocess import reprocess
from fiberstore.ingest.rules import load_rules
from fiberstore.opening import open_storage
from fiberstore.postgresql import PostgresStorage
from fiberstore.testing.examples import log
from tests.ingest.test_ingest import state_of
from tests.ingest.test_real_files import APACHE, HADOOP, HDFS, LINUX, LOGHUB, SSHD
from tests.support import postgres_server
from tests.support.command_line import Result, assert_refused, on_a_terminal, plain, runner, told_cursor
from tests.support.parameters import parametrize_mostly_slow

PASSWORD = "s3cret"  # noqa: S105  # of no server
LINES = 200

_SIZE = r"\d+(\.\d)? (bytes?|kB|MB)"
_UNLIKE = [  # what is not the same in two stores of the same content
    (r"""'?postgresql\+psycopg://[^\s'",]+'?""", "STORE"),
    (r"\d+\.\d\d s(, [\d,]+ logs/s)?", "TIME"),
    (_SIZE, "SIZE"),
    (r"(file_bytes\tSTORE\t)\d+", r"\1SIZE"),
    (
        r'"(seconds|logs_per_second|\w+_bytes|bytes_\w+|ingestion_time|created_at|updated_at)": [^,}]+',
        r'"\1"',
    ),
    (r"(?m)^(ingest \w+\t|read \w+ \w+\t)\S+", r"\1TIME"),
    (r"--cursor \S+ continues", "--cursor"),
    (r"--position \S+ resumes", "--position"),
]


def with_password(url: str) -> str:
    """The same database, with a password that must not be seen; servers that trust everybody ignore it."""
    parsed = make_url(url)
    return parsed.set(password=parsed.password or PASSWORD).render_as_string(hide_password=False)


class Both:
    """A DuckDB file and a PostgreSQL database, on which the same commands are run."""

    def __init__(self, file: Path, url: str) -> None:
        self.targets = (str(file), with_password(url))

    def results(self, capsys: pytest.CaptureFixture[str], command: str) -> list[Result]:
        """Run a command on both, and see that neither shows the password."""
        run = runner(capsys)
        found = [run(*shlex.split(command), "--db", target) for target in self.targets]
        password = make_url(self.targets[1]).password or PASSWORD
        assert password not in found[1].out + found[1].err
        return found

    def same(self, capsys: pytest.CaptureFixture[str], command: str) -> Result:
        """Run a command on both, see that they say the same, and return what DuckDB's says."""
        found = self.results(capsys, command)
        duckdb, postgresql = (
            (result.code, self.shown(result.out), self.shown(result.err)) for result in found
        )
        assert postgresql == duckdb, command
        return found[0]

    def shown(self, text: str) -> str:
        """Output, without the parts in which stores of the same content may differ."""
        text = text.replace(self.targets[0], "STORE")
        for pattern, replacement in _UNLIKE:
            text = re.sub(pattern, replacement, text)
        return text


def written_rules(folder: Path) -> Path:
    return write_demo(folder, LINES)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres_server_url: URL) -> Iterator[Both]:
    """Two filled stores that tests only read."""
    folder = tmp_path_factory.mktemp("both")
    rules = written_rules(folder)
    with postgres_server.database(postgres_server_url) as url:
        stores = Both(folder / "store.duckdb", url)
        for target in stores.targets:
            with pytest.raises(SystemExit) as ended:
                main(["ingest", "--rules", str(rules), "--db", target])
            assert not ended.value.code
        yield stores


@pytest.fixture
def empty(db_file: Path, postgres_url: str) -> Both:
    """A file that is not there, and a database without tables, for tests to change."""
    return Both(db_file, postgres_url)


READING = [
    "logs",
    "logs --limit 3 --json",
    "logs --order newest --limit 5",
    "logs --start 2026-03-02T09:00:03Z --end 2026-03-02T09:00:04Z --source orders --contains order",
    """logs --where 'raw_text.regexp_match("(?i)DECLINED|timeout") and source_id != "gateway"'""",
    "grep -c 'declined|timeout'",
    "grep -i 'DECLINED|Timeout' --limit 3",
    "grep -v -F '[' --json",
    "grep '(a' ",
    "histogram",
    "histogram --by source --bucket 1s --json",
    "histogram --fibers --by type",
    "tail -n 4",
    "tail --position nowhere",
    "fibers",
    "fibers --json --type request --closed",
    "fibers --order longest --limit 5",
    "fibers --order most-logs --limit 5 --json",
    """fibers --where 'attributes["/order"].exists() and duration > "100ms"'""",
    """fibers --where 'logs.any(raw_text.contains("declined"))' --open""",
    "fibers --version active --limit 2",
    "fibers --version 0000",
    "show 0000",
    "show 019c",
    "timeline",
    "timeline --json --fibers 3 --points 5",
    "stats",
    "stats --json",
    "versions list --json",
    "versions show {version}",
    "show {fiber}",
    "show {fiber} --json",
    "logs --fiber {fiber}",
    "context {log} -C 2",
    "context {log} -C 2 --within fibers --json",
    "context 00000000-0000-0000-0000-000000000000",
    "diff {version} {version}",
    "versions drop {version}",
    "checkpoint",
    "checkpoint get none",
    "db current --json",
    "db check",
    "doctor",
    "doctor --json",
]


@pytest.fixture(scope="module")
def names(both: Both) -> dict[str, str]:
    """Names that the commands are given: ids of a fiber and a log, and a version."""
    with DuckDBStorage(both.targets[0], read_only=True) as storage:
        fiber = storage.fibers.order_by("most_logs").page(1).items[0]
        (version,) = storage.versions.all()
        middle = storage.get_fiber_logs(fiber.fiber_id)[2]
    return {
        "fiber": str(fiber.fiber_id),
        "log": str(middle.log_id),
        "version": f"{version.config_version:016x}",
    }


@parametrize_mostly_slow("command", READING, quick=4)
def test_a_command_that_reads_prints_the_same(
    both: Both, names: dict[str, str], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for name, value in names.items():
        command = command.replace(f"{{{name}}}", value)
    both.same(capsys, command)


@pytest.mark.parametrize("command", ["logs --limit 60", "fibers --order longest --limit 20"])
def test_pages_go_on_alike(both: Both, capsys: pytest.CaptureFixture[str], command: str) -> None:
    firsts = both.results(capsys, command)
    run = runner(capsys)
    seconds = [
        run(*shlex.split(command), "--db", target, "--cursor", told_cursor(first))
        for target, first in zip(both.targets, firsts, strict=True)
    ]
    assert [both.shown(first.out) for first in firsts] == [both.shown(firsts[0].out)] * 2
    assert seconds[0].rows == seconds[1].rows != []


@pytest.mark.slow
def test_a_terminal_and_a_page_show_the_same(both: Both, tmp_path: Path) -> None:
    seen = []
    for number, target in enumerate(both.targets):
        commands = [
            "stats",
            "fibers",
            "timeline",
            "histogram",
            f"timeline --html {tmp_path / str(number)}.html",
        ]
        shown = on_a_terminal([[*shlex.split(command), "--db", target] for command in commands], columns=200)
        seen.append([both.shown(plain(text)).replace(f"{number}.html", "html") for text in shown])
        assert PASSWORD not in "".join(shown) + (tmp_path / f"{number}.html").read_text(encoding="utf-8")
    assert seen[0] == seen[1]


CHANGING = [
    "pin {one} --dry-run",
    "pin {one}",
    "pin {one}",
    "pin",
    "pin --log {log}",
    "unpin --log {log}",
    "close --type request --idle 1h",
    "reopen {one}",
    "reopen --closed --dry-run",
    "merge {one} {two} --dry-run",
    "merge {one} {two}",
    "merge {one} {two}",
    "show {two}",
    "redact 'N1000[0-9]' --with X --dry-run",
    "redact 'N1000[0-9]' --with X",
    "redact 'req=[0-9a-f]' --keep-file --source gateway",
    "redact '(?<!a)b'",
    "checkpoint set a 1 --expect-none",
    "checkpoint set a 2 --expect 3",
    "checkpoint set a 2 --expect 1",
    "checkpoint get a",
    "checkpoint list --json",
    "checkpoint delete a",
    "checkpoint delete a",
    "reprocess --rules {other_rules}",
    "versions list --json",
    "diff {version} {other_version}",
    "diff {version} {other_version} --kind moved --limit 2 --json",
    "activate {other_version}",
    "fibers --limit 3",
    "versions drop {version} --dry-run",
    "versions drop {version}",
    "activate --none",
    "activate --none",
    "ingest --rules {rules}",
    "prune --type job --dry-run",
    "prune --type job",
    "prune --older-than 1d --source gateway --json",
    "prune --older-than 1d --logs 'raw_text.contains(\"declined\")' --compact",
    "db compact",
    "db upgrade",
    "db check",
    "doctor --repair",
    "fibers --version all --json",
    "logs --json",
    "stats",
]
QUICK = [
    "pin {one}",
    "close --type request --idle 1h",
    "merge {one} {two}",
    "redact 'N1000[0-9]' --with X",
    "checkpoint set a 1 --expect-none",
    "prune --type job",
    "fibers --json",
    "logs --json",
]


@pytest.mark.parametrize(
    "commands", [QUICK, pytest.param(CHANGING, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_commands_that_change_a_store_do_the_same(
    empty: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str], commands: list[str]
) -> None:
    rules = written_rules(tmp_path)
    other_rules = tmp_path / "other.toml"
    other_rules.write_text(rules.read_text().replace('max_gap = "', 'max_gap = "1'))
    assert other_rules.read_text() != rules.read_text()
    empty.same(capsys, f"ingest --rules {rules}")
    with DuckDBStorage(empty.targets[0], read_only=True) as storage:
        one, two = storage.fibers.order_by("most_logs").page(2).items
        names = {
            "one": str(one.fiber_id),
            "two": str(two.fiber_id),
            "log": str(storage.get_fiber_logs(one.fiber_id)[0].log_id),
            "rules": str(rules),
            "other_rules": str(other_rules),
            "version": f"{load_rules(rules).config_version:016x}",
            "other_version": f"{load_rules(other_rules).config_version:016x}",
        }
    for command in commands:
        empty.same(capsys, command.format(**names))


@pytest.mark.slow
def test_the_demo_shows_the_same(
    empty: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, url = empty.targets
    duckdb, postgresql = empty.results(capsys, "demo --lines 100")
    folder = f"{make_url(url).database}-logs"
    assert (tmp_path / folder / "rules.toml").is_file()
    assert (duckdb.code, postgresql.code) == (0, 0)
    beside = f"{Path(file).with_suffix('')}-logs"
    assert empty.shown(duckdb.out.replace(beside, folder)) == empty.shown(postgresql.out)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["from PostgreSQL", "into PostgreSQL"])
def test_what_one_exports_the_other_imports(
    both: Both, empty: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    run = runner(capsys)
    number = 1 if way == "from PostgreSQL" else 0
    source, target = both.targets[number], empty.targets[1 - number]
    for what, suffix in (("logs", "parquet"), ("fibers", "jsonl"), ("memberships", "csv"), ("keys", "csv")):
        file = tmp_path / f"{what}.{suffix}"
        exported = run("export", what, file, "--db", source, "--json")
        imported = run("import", what, file, "--db", target, "--json")
        assert imported.objects[0]["rows"] == exported.objects[0]["rows"] > 0
        assert PASSWORD not in exported.out + exported.err + imported.out + imported.err
    for command in ("logs", "fibers"):
        assert run(command, "--json", "--db", source) == run(command, "--json", "--db", target)


# ---------------------------------------------------------------- tail


def test_tail_prints_what_others_store_and_nothing_twice(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with PostgresStorage(postgres_url) as storage, open_read_only(postgres_url) as reader:
        storage.init_schema()
        following = TailFollower(LogFilter(), ServerStore(reader), LogLines("tsv"), threading.Event())
        with storage.transaction() as slow:  # what comes after it is not in its place yet
            slow.logs.write_logs([log(1, text="slow")])
            storage.write_logs([log(2, text="quick")])
            following.begin(10)
        storage.write_logs([log(3, text="last")])
        following.look()
        following.look()
    texts = [line.split("\t")[3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert texts[0] == "quick"
    assert sorted(texts) == ["last", "quick", "slow"]


def test_tail_goes_on_from_where_another_ended(postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner(capsys)
    with PostgresStorage(postgres_url) as storage:
        storage.init_schema()
        storage.write_logs([log(1)])
        told = re.search(r"--position (\S+) resumes", run("tail", "--db", postgres_url).err)
        assert told is not None
        storage.write_logs([log(2, text="later")])
        rest = run("tail", "--db", postgres_url, "--position", told[1])
    assert [row[3] for row in rest.rows] == ["later"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("db backup copy", "pg_dump copies a PostgreSQL database"),
        ("db rescue copy", "PostgreSQL recovers by itself when it is started"),
    ],
)
def test_what_is_for_files_names_the_tool_of_postgresql(
    both: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    copy = tmp_path / "copy"
    _, result = both.results(capsys, command.replace("copy", str(copy)))
    assert_refused(result, words)


def test_a_store_is_not_copied_into_itself(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    result = runner(capsys)("copy", both.targets[1], both.targets[1])
    assert_refused(result, "are the same store")
    assert PASSWORD not in result.err


OPENING = [
    "logs",
    "tail",
    "stats",
    "db current",
    "doctor --repair",
    "db compact",
    "checkpoint set a 1",
    "prune --older-than 1d",
    "db upgrade",
]


@parametrize_mostly_slow("command", OPENING, quick=2)
def test_a_database_that_is_not_there_is_refused(
    both: Both, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    url = make_url(both.targets[1]).set(database="none_such").render_as_string(hide_password=False)
    result = runner(capsys)(*shlex.split(command), "--db", url)
    assert_refused(result, "none_such", "does not exist")
    assert PASSWORD not in result.err


@pytest.mark.parametrize("command", OPENING)
def test_a_server_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], command: str) -> None:
    url = f"postgresql+psycopg://ann:{PASSWORD}@127.0.0.1:1/logs"
    result = runner(capsys)(*shlex.split(command), "--db", url)
    assert_refused(result, "127.0.0.1")
    assert PASSWORD not in result.err


@pytest.mark.parametrize("command", ["logs", "stats", "db compact", "prune --older-than 1d"])
def test_a_database_without_tables_is_told_by_its_url(
    empty: Both, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    _, result = empty.results(capsys, command)
    assert_refused(result, str(make_url(empty.targets[1]).database), "has no tables of fiberstore")


def test_tables_of_other_releases_are_refused(empty: Both, capsys: pytest.CaptureFixture[str]) -> None:
    run, url = runner(capsys), empty.targets[1]
    run("db", "upgrade", "--db", url)
    with open_storage(url) as storage:
        for revision, words in (("0002", "of an older release (revision 0002"), ("9", "does not know")):
            with storage.session() as session:
                session.execute(
                    sa.text("UPDATE fiberstore_alembic_version SET version_num = :found"), {"found": revision}
                )
                session.commit()
            _, result = empty.results(capsys, "checkpoint set a 1")
            assert_refused(result, words)
    assert_refused(run("db", "upgrade", "--db", url), "does not know")
    assert run("doctor", "--db", url).code == 1


def test_the_driver_that_is_missing_is_named(
    both: Both, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    result = runner(capsys)("logs", "--db", both.targets[1])
    assert_refused(result, "pip install 'fiberstore[postgresql]'")


def test_what_commands_only_read_the_server_lets_nobody_write(both: Both) -> None:
    with open_read_only(both.targets[1]) as storage, pytest.raises(DatabaseError, match="read-only"):
        storage.write_logs([log(1)])


def test_the_url_may_come_from_the_environment(
    both: Both, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIBERSTORE_URL", both.targets[1])
    run = runner(capsys)
    assert run("logs", "--limit", "2").rows == run("logs", "--limit", "2", "--db", both.targets[0]).rows
    assert PASSWORD not in run("logs", "--help").out


# ---------------------------------------------------------------- real logs


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [SSHD, HADOOP, HDFS, APACHE, LINUX], ids=["OpenSSH", "Hadoop", "HDFS", "Apache", "Linux"]
)
def test_real_logs_make_the_same_fibers(empty: Both, tmp_path: Path, text: str) -> None:
    if not LOGHUB.is_dir():
        pytest.skip(f"no sample logs in {LOGHUB}")
    rules = []
    for name, max_gap in (("first", "7m"), ("second", "60s")):
        file = tmp_path / f"{name}.toml"
        file.write_text(text.format(folder=LOGHUB.as_posix()).replace("infinite", max_gap))
        rules.append(load_rules(file))
    states = []
    for target in empty.targets:
        with open_storage(target) as storage:
            storage.init_schema()
            reports = (
                ingest(storage, rules[0], batch_rows=700),
                reprocess(storage, rules[1], batch_rows=300),
            )
            states.append((reports, state_of(storage)))
    assert states[0] == states[1]
