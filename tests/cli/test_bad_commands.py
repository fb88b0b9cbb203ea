"""Every row of the table of bad command lines: exit code and words, an unchanged store that works."""

import itertools
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from fiberstore import DuckDBStorage
from fiberstore.cli import main
from fiberstore.testing.examples import NOON, at, fiber, log, member, uid
from tests.ingest.test_rules import GOOD
from tests.support.bad_commands import COMMANDS, FILES, LOG_FILES, RULES
from tests.support.parameters import parametrize_mostly_slow

WEB_RULES = r"""
[sources.web]
path = "web.log"
timestamp = '^\S+'
format = "%Y-%m-%dT%H:%M:%S%z"
"""
FIBER_IDS = [UUID(f"01930000-0000-0000-0000-00000000000{number}") for number in (1, 2)]
new_numbers = itertools.count(1_000)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIBERSTORE_URL", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "1000")


def make_store(folder: Path) -> None:
    (folder / "web.log").write_text("2024-05-01T10:00:00Z request=a1\n")
    (folder / "rules.toml").write_text(WEB_RULES)
    with DuckDBStorage(folder / "store.duckdb") as storage:
        storage.init_schema()
        storage.write_logs([log(8)])
        for fiber_id in FIBER_IDS:
            storage.write_fiber(fiber(fiber_id.int, attributes={"user": "ada"}, first=NOON))
        storage.write_memberships([member(8, FIBER_IDS[0].int)])


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good store, good rules and a log file, whose tests leave them good."""
    folder = tmp_path_factory.mktemp("commands")
    make_store(folder)
    return folder


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    """The same, for the test to break."""
    return shutil.copytree(shared_folder, tmp_path, dirs_exist_ok=True)


Refuse = Callable[[list[str], int, str], None]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command; see that it ends with the code and says the words, and nothing else."""

    def refuse(arguments: list[str], code: int, says: str) -> None:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (code, "")
        plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|[╭─╮│╰╯]", "", err).split())
        assert says in plain
        assert "Traceback" not in plain
        assert code == 2 or all(line.startswith("fiberstore: ") for line in err.splitlines())

    return refuse


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_usable(db: Path) -> None:
    number = next(new_numbers)
    with DuckDBStorage(db) as storage:
        assert storage.write_logs([log(number)]) == 1
        found = storage.get_log(uid(number))
        assert found is not None
        assert found.timestamp == at(number)


def test_the_table_is_long() -> None:
    assert len(COMMANDS) > 150


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({command.split()[0] for command, _, _ in COMMANDS}))
def test_a_command_line_is_refused(
    shared_folder: Path, monkeypatch: pytest.MonkeyPatch, refuse: Refuse, command: str
) -> None:
    monkeypatch.chdir(shared_folder)
    places = {
        "db": str(shared_folder / "store.duckdb"),
        "rules": str(shared_folder / "rules.toml"),
        "folder": str(shared_folder),
        "none": str(shared_folder / "none"),
    }
    for line, code, says in COMMANDS:
        if line.split()[0] == command:
            before = contents(shared_folder)
            try:
                refuse(shlex.split(line.format(**places)), code, says)
                assert contents(shared_folder) == before
            except BaseException as error:
                error.add_note(f"fiberstore {line}")
                raise
    assert_usable(shared_folder / "store.duckdb")


@parametrize_mostly_slow(("old", "new", "key", "what"), RULES, quick=3)
def test_rules_are_refused(  # noqa: PLR0917
    folder: Path, refuse: Refuse, old: str, new: str, key: str, what: str
) -> None:
    (folder / "auth.log").write_text("")
    (folder / "rules.toml").write_text(GOOD.replace(old, new))
    before = contents(folder)
    words = f"{key}: "
    refuse(["ingest", "--rules", str(folder / "rules.toml"), "--db", str(folder / "store.duckdb")], 1, words)
    assert contents(folder) == before
    assert_usable(folder / "store.duckdb")


@parametrize_mostly_slow(("content", "says"), LOG_FILES, quick=2)
def test_a_log_file_is_refused(folder: Path, refuse: Refuse, content: bytes, says: str) -> None:
    (folder / "web.log").write_bytes(content)
    before = contents(folder)
    refuse(["ingest", "--rules", str(folder / "rules.toml"), "--db", str(folder / "store.duckdb")], 1, says)
    assert contents(folder) == before
    assert_usable(folder / "store.duckdb")


@parametrize_mostly_slow("name", FILES)
def test_a_database_file_is_refused(folder: Path, refuse: Refuse, name: str) -> None:
    change, commands, says = FILES[name]
    db = folder / "store.duckdb"
    change(db)
    before = contents(folder)
    for command in commands:
        refuse([*shlex.split(command), "--db", str(db)], 1, says)
        assert contents(folder) == before
