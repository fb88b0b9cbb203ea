"""Fibers by their keys on the command line."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from fiberstore import DuckDBStorage, FiberKey, config_version
from fiberstore.cli import main
from fiberstore.testing.examples import NOON, fiber, log, member, uid
from fiberstore.testing.keys import key
from tests.support.command_line import Run, on_a_terminal, plain
from tests.support.parameters import parametrize_mostly_slow

GOLDEN = Path(__file__).parents[1] / "duckdb" / "golden"
RULES = """
[sources.app]
path = "app.log"
timestamp = '^\\d{4}-\\d\\d-\\d\\d[T ]\\d\\d:\\d\\d:\\d\\d'
format = "%Y-%m-%d %H:%M:%S"
timezone = "UTC"

[fibers.request]
max_gap = "60s"
[[fibers.request.patterns]]
source = "app"
regex = 'req=(?P<req>\\w+) order=(?P<order>\\d+)'
"""
OTHER_RULES = RULES.replace("req=(?P<req>", "req=(?P<request>")
LINES = "2024-05-01 12:00:00 req=a order=1\n2024-05-01 12:00:01 req=a order=2\n"


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with a request of two orders, and the same by rules that are not active; tests only read it."""
    path = ingested_by(tmp_path_factory.mktemp("generations"), RULES, OTHER_RULES)
    with DuckDBStorage(path, read_only=True):
        yield path


def ingested_by(folder: Path, *rules: str) -> Path:
    (folder / "app.log").write_text(LINES)
    for text in rules:
        (folder / "rules.toml").write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["ingest", "--rules", str(folder / "rules.toml"), "--db", str(folder / "store.duckdb")])
        assert caught.value.code == 0
    return folder / "store.duckdb"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two fibers of one composite key, and one without keys, which tests only read."""
    path = tmp_path_factory.mktemp("keys") / "store.duckdb"
    with DuckDBStorage(path) as storage:
        storage.init_schema()
        storage.write_logs([log(number) for number in (1, 2, 3)])
        storage.write_fibers([fiber(1), fiber(2, attributes={"rack": 7}), fiber(3)])
        storage.write_memberships([member(number, number) for number in (1, 2, 3)])
        storage.write_keys(
            [
                key(1, "host+queue", r"web\+1+A=1"),
                key(2, "host+queue", r"web\+1+A=1"),
                key(2, "user", "John Smith"),
                FiberKey(fiber_id=uid(2), name="user", value="root", first_timestamp=NOON),
            ]
        )
    with DuckDBStorage(path, read_only=True):
        yield path


@pytest.mark.parametrize(
    "options",
    [
        ("--key", "order=2"),
        ("--key", "order=1", "--key", "order=2"),
        ("--key", "order"),
        ("--where", 'keys["order"] == "2"'),
        ("--where", 'attributes["/order"].contains("2")'),
    ],
)
def test_an_ingested_fiber_is_found_by_any_of_its_keys(
    run: Run, generations: Path, options: tuple[str, ...]
) -> None:
    (found,) = run("fibers", "--db", generations, "--json", *options).objects
    assert found["keys"] == {"req": ["a"], "order": ["1", "2"]}


def test_a_key_leads_to_the_lines_of_its_fibers(run: Run, generations: Path) -> None:
    (shown,) = run("show", "order=2", "--db", generations, "--json").objects
    assert [line["raw_text"] for line in shown["logs"]] == LINES.splitlines()
    assert run("fibers", "--db", generations, "--key", "order=1", "--key", "order=3").rows == []


def test_a_histogram_takes_a_key(run: Run, generations: Path) -> None:
    for options in ([], ["--fibers"]):
        counts = {
            given: sum(
                int(row[-1]) for row in run("histogram", *options, "--key", given, "--db", generations).rows
            )
            for given in ("order=2", "order=3")
        }
        assert counts == {"order=2": 1 if options else 2, "order=3": 0}


@pytest.mark.parametrize("command", ["fibers", "logs", "grep req", "tail"])
def test_every_list_takes_a_key(run: Run, generations: Path, command: str) -> None:
    assert run(*command.split(), "--db", generations, "--key", "order=2").rows
    assert run(*command.split(), "--db", generations, "--key", "order=3").rows == []


def test_a_list_that_is_compared_with_a_value_is_told(run: Run, generations: Path) -> None:
    for options in (
        ("fibers", "--where", 'attributes["/order"] == "2"'),
        ("fibers", "--where", 'fiber_type == "request" and attributes["/order"].in_(["2"])'),
        ("logs", "--where", 'fibers.any(attributes["/order"] < "2")'),
    ):
        result = run(*options, "--db", generations)
        assert result.rows == []
        assert "write attributes['/order'].contains(…) for an item of a list, keys[…] ==" in result.err
    for condition in (
        'attributes["/order"].contains("3")',
        'attributes["/order"].contains("3") or attributes["/order"] == "3"',
        'attributes["/absent"] == "2"',
        'attributes["/order"] == "2" and fiber_type == "other"',
    ):
        assert run("fibers", "--where", condition, "--db", generations).err == ""


def test_all_fibers_of_a_key_are_shown(run: Run, store: Path) -> None:
    name_and_value = r"host+queue=web\+1+A=1"
    shown = run("show", name_and_value, "--db", store, "--json").objects
    assert [(one["fiber_id"], len(one["logs"])) for one in shown] == [(str(uid(n)), 1) for n in (1, 2)]
    assert run("show", name_and_value, "--db", store).out.count("fiber_id\t") == 2
    none = run("show", "user=ann", "--db", store)
    assert (none.code, none.out) == (1, "")
    assert none.err == "fiberstore: no fiber has the key user=ann; fiberstore keys user lists the values\n"


@parametrize_mostly_slow("command", ["fibers", "logs", "grep req", "tail", "keys", "show"], quick=2)
def test_a_key_that_no_fiber_has_is_told(run: Run, generations: Path, command: str) -> None:
    """A misspelt name, a value in another spelling, and fibers of rules that are not active find nothing."""
    option = [] if command == "show" else ["--key"]
    for given, said in (
        ("req=A", "no fiber has the key req=A; fiberstore keys req lists the values"),
        ("rek=a", "no fiber has the key rek=a; fiberstore keys lists the names of keys"),
        (
            "request=a",
            "has the key request=a, but 1 of other versions: fiberstore fibers --version all shows",
        ),
    ):
        result = run(*command.split(), *option, given, "--db", generations)
        assert result.rows == []
        assert said in result.err


def test_a_key_that_a_fiber_has_is_not_told(run: Run, generations: Path) -> None:
    assert run("fibers", "--key", "req=a", "--db", generations).err == ""
    assert (
        "no fiber has" not in run("fibers", "--key", "request=a", "--version", "all", "--db", generations).err
    )


def test_names_and_values_of_keys_are_listed(run: Run, store: Path) -> None:
    assert [row[:2] for row in run("keys", "--db", store).rows] == [["host+queue", "2"], ["user", "1"]]
    assert [row[:2] for row in run("keys", "user", "--db", store).rows] == [
        ["John Smith", "1"],
        ["root", "1"],
    ]
    assert [row[0] for row in run("keys", "user", "--prefix", "ro", "--db", store).rows] == ["root"]
    limited = run("keys", "user", "--limit", "1", "--db", store)
    assert (len(limited.rows), limited.err) == (1, "fiberstore: there is more; --limit N shows more\n")
    assert run("keys", "--prefix", "a", "--db", store).code == 2
    assert run("keys", "--key", "user=root", "--db", store, "--json").objects[0]["fibers"] == 1


def test_fibers_show_their_keys_rather_than_their_ids(store: Path) -> None:
    commands = ["fibers"], ["show", "user=root"], ["timeline"]
    fibers, show, timeline = (
        plain(output) for output in on_a_terminal([[*command, "--db", store] for command in commands])
    )
    assert r"""  'host+queue=web\+1+A=1' 'user=John Smith' user=root  {"rack":7}""" in fibers.splitlines()
    assert f"  {uid(3)}  null" in fibers.splitlines()
    assert "keys        'host+queue=web" in show
    assert "'host+queue=web" in timeline


@pytest.mark.slow
def test_a_store_of_an_older_release_is_read_without_keys(run: Run, db_file: Path) -> None:
    with duckdb.connect(db_file) as connection:
        connection.execute((GOLDEN / "0003.sql").read_text())
    (found, *_) = run("fibers", "--db", db_file, "--version", "all", "--json").objects
    assert found["keys"] == {}
    assert run("show", found["fiber_id"], "--db", db_file).code == 0
    assert run("timeline", "--db", db_file, "--version", "all").code == 0
    for command in ("fibers --key a=b", "logs --key a", "show a=b", "keys", "tail --key a=b"):
        result = run(*command.split(), "--db", db_file)
        assert result.code == 1
        assert "of an older release, without keys; fiberstore db upgrade" in result.err


@pytest.mark.slow
def test_an_upgrade_tells_which_fibers_depend_on_the_order_of_reading(run: Run, tmp_path: Path) -> None:
    """Keys that the migration has taken from attributes have no first line until ``reprocess`` finds it."""
    ingested = ingested_by(tmp_path, RULES)
    rules = ingested.with_name("rules.toml")
    with duckdb.connect(ingested) as connection:
        connection.execute("UPDATE fiber_keys SET first_log_id = NULL")
    result = run("db", "upgrade", "--db", ingested)
    version = f"{config_version(rules):016x}"
    assert f"an older release has made the fibers of config version {version}" in result.err
    assert run("versions", "show", version, "--db", ingested).out == RULES
    assert run("reprocess", "--rules", rules, "--db", ingested).code == 0
    assert run("db", "upgrade", "--db", ingested).err == ""


def test_values_that_are_all_in_lists_are_told(
    file_storage: DuckDBStorage, caplog: pytest.LogCaptureFixture
) -> None:
    file_storage.write_fibers([fiber(1, attributes={"order": ["1"], "user": "ann"})])
    assert file_storage.fibers.attribute_values("/order") == []
    assert "attributes['/order'] is a list in 1 of the fibers" in caplog.text
    caplog.clear()
    assert file_storage.fibers.attribute_values("/user")
    assert file_storage.fibers.attribute_values("/absent") == []
    assert not caplog.text


@pytest.mark.parametrize("wrong", ["=x", "="])
def test_a_key_without_a_name_is_refused(run: Run, store: Path, wrong: str) -> None:
    result = run("fibers", "--db", store, "--key", wrong)
    assert result.code == 2
    assert "is no key" in result.err
