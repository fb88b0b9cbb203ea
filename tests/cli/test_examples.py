"""The examples of source formats in docs/examples/: each gives the logs and fibers of its expected.txt.

To write these files anew: ``python -m tests.cli.test_examples``, and read what has changed.
"""

import re
from pathlib import Path

import pytest

from fiberstore import DuckDBStorage
from fiberstore.ingest import load_rules, read_sources
from fiberstore.ingest.first_rules import find_first_rules, write_first_rules
from fiberstore.ingest.pipeline import check
from tests.support.command_line import Run, assert_refused
from tests.support.correlation import numbered_fibers
from tests.support.parameters import parametrize_mostly_slow

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
FORMATS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
PAGE = (EXAMPLES / "README.md").read_text()


@pytest.fixture(scope="module")
def filled() -> DuckDBStorage:
    storage = DuckDBStorage(":memory:")
    storage.init_schema()
    return storage


def found(storage: DuckDBStorage, name: str) -> str:
    """Each log with its number, source and time, then each fiber by the numbers of its logs."""
    rules = load_rules(EXAMPLES / name / "rules.toml")
    logs = [
        f"{number} {log.source_id} {log.timestamp.isoformat()}\n"
        for number, log in enumerate(read_sources(rules), 1)
    ]
    return "".join(logs) + numbered_fibers(storage, rules)


@parametrize_mostly_slow("name", FORMATS, quick=4)
def test_an_example_gives_its_logs_and_fibers(filled: DuckDBStorage, name: str) -> None:
    assert found(filled, name) == (EXAMPLES / name / "expected.txt").read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_an_example_has_no_warning_but_of_what_it_drops(name: str) -> None:
    rules = load_rules(EXAMPLES / name / "rules.toml")
    report = check(rules)
    assert [text for text in report.warnings(rules) if "left out by drop" not in text] == []
    assert sum(counts.bad_stamps + counts.held_back for counts in report.sources.values()) == 0
    assert all(matches for counts in report.matches.values() for matches in counts)


LOGHUB = Path(__file__).parents[3] / "shared" / "loghub"
NEEDS_LOGHUB = pytest.mark.skipif(not LOGHUB.is_dir(), reason=f"no sample logs in {LOGHUB}")
SAMPLES = {
    **{name: sorted((EXAMPLES / name).glob("*.log")) for name in FORMATS},
    **{name: [LOGHUB / f"{name}_2k.log"] for name in ("Apache", "HDFS", "Hadoop", "Linux", "OpenSSH")},
}


@parametrize_mostly_slow("paths", SAMPLES.values(), quick=6, ids=list(SAMPLES))
def test_first_rules_read_the_files_they_were_made_from(paths: list[Path], tmp_path: Path) -> None:
    if not paths[0].exists():
        pytest.skip(f"no sample logs in {LOGHUB}")
    text = write_first_rules(find_first_rules(paths), tmp_path)
    (tmp_path / "first.toml").write_text(text)
    rules = load_rules(tmp_path / "first.toml")
    report = check(rules)
    if paths[0].is_relative_to(EXAMPLES):
        own = load_rules(paths[0].parent / "rules.toml")
        ours, theirs = ([log.timestamp for log in read_sources(each)] for each in (rules, own))
        assert len(ours) == len(theirs)
        if all(source.timezone is None for source in own.sources.values()):
            assert ours == theirs
    else:
        assert report.logs_read == len(paths[0].read_bytes().splitlines())
    assert not any("no stamp" in warning for warning in report.warnings(rules))
    (tmp_path / "keys.toml").write_text(re.sub(r"(?m)^#(?=\S)", "", text))
    with_keys = load_rules(tmp_path / "keys.toml")
    assert all(matches for counts in check(with_keys).matches.values() for matches in counts)


def test_rules_init_writes_a_new_file_or_stdout(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for number in (1, 2):
        line = f"2024-05-01 12:00:0{number} request_id=a\n"
        (tmp_path / "logs" / f"app.log.{number}").write_text(line)
    made = run("rules", "init", "logs/app.log.*", "--output", "logs/rules.toml")
    assert (made.code, made.out) == (0, "")
    assert made.err.splitlines() == [
        "fiberstore: app: ISO 8601 at the beginning, stamps on 2 of 2 lines; 1 candidate key",
        "fiberstore: next: fiberstore ingest --check --rules logs/rules.toml",
    ]
    rules = (tmp_path / "logs" / "rules.toml").read_text()
    assert 'path = ["app.log.1", "app.log.2"]' in rules
    checked = run("ingest", "--check", "--rules", "logs/rules.toml").out
    assert checked == "2 logs read, none stored\napp: 2 lines, 2 logs\n"
    assert_refused(
        run("rules", "init", "logs/app.log.1", "--output", "logs/rules.toml"), "exists; give another"
    )
    assert 'path = "logs/app.log.1"' in run("rules", "init", "logs/app.log.1").out


def test_rules_init_proposes_a_key_under_one_name(tmp_path: Path) -> None:
    ids = [f"0193af35-b650-7000-8000-{number:012}" for number in range(3)]
    log = tmp_path / "app.log"
    log.write_text("".join(f"2024-05-01T12:00:00Z trace_id={id_} request_id={id_}\n" for id_ in ids))
    (source,) = find_first_rules([log])
    assert [(key.form.name, key.values) for key in source.keys] == [("trace", 3), ("request", 3)]
    log.write_text(f"{log.read_text()}2024-05-01T12:00:00Z device {ids[0]}\n")
    (source,) = find_first_rules([log])
    assert [key.form.name for key in source.keys] == ["trace", "request", "uuid"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no lines; give a file that has some"),
        (
            "no time\n",
            "no stamp of a well-known form in 1 lines, the first is 'no time'; leave the file out if",
        ),
    ],
)
def test_rules_init_of_a_file_that_it_cannot_read(run: Run, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "app.log").write_text(text)
    assert_refused(run("rules", "init", tmp_path / "app.log"), says)
    assert_refused(run("rules", "init", tmp_path / "none.log"), "none.log: No such file")


def test_the_page_names_every_example_and_its_command_works(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name for name in FORMATS if f"]({name}/rules.toml)" not in PAGE] == []
    monkeypatch.chdir(EXAMPLES)
    (command,) = re.findall(r"`fiberstore (ingest .*?)`", PAGE)
    assert run(*command.split()).out.startswith("4 logs read, none stored\n")


if __name__ == "__main__":
    store = DuckDBStorage(":memory:")
    store.init_schema()
    for each in FORMATS:
        (EXAMPLES / each / "expected.txt").write_text(found(store, each))
