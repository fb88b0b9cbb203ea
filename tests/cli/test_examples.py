"""The examples of source formats in docs/examples/: each gives the logs and fibers of its expected.txt.

To write these files anew: ``python -m tests.cli.test_examples``, and read what has changed.
"""

from pathlib import Path

import pytest

from fiberstore import DuckDBStorage
from fiberstore.ingest import ingest, load_rules, read_sources
from tests.support.correlation import numbered_fibers

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


@pytest.mark.parametrize("name", FORMATS)
def test_an_example_gives_its_logs_and_fibers(filled: DuckDBStorage, name: str) -> None:
    assert found(filled, name) == (EXAMPLES / name / "expected.txt").read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_an_example_has_no_warning_but_of_what_it_drops(filled: DuckDBStorage, name: str) -> None:
    rules = load_rules(EXAMPLES / name / "rules.toml")
    report = ingest(filled, rules)
    assert [text for text in report.warnings(rules) if "left out by drop" not in text] == []
    assert sum(counts.bad_stamps + counts.held_back for counts in report.sources.values()) == 0
    assert all(matches for counts in report.matches.values() for matches in counts)


def test_the_page_names_every_example() -> None:
    assert [name for name in FORMATS if f"]({name}/rules.toml)" not in PAGE] == []


if __name__ == "__main__":
    store = DuckDBStorage(":memory:")
    store.init_schema()
    for each in FORMATS:
        (EXAMPLES / each / "expected.txt").write_text(found(store, each))
