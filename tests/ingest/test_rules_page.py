"""The page on the rules file: it has every key, and its examples give what stands below them."""

import re
from pathlib import Path

import pytest

from fiberstore import DuckDBStorage
from fiberstore.ingest import Rules, load_rules, read_sources
from fiberstore.ingest.rules import FiberType, Pattern, Source
from tests.support.correlation import numbered_fibers

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
(BASE,) = re.findall(r"is meant:\n\n```toml\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = [
    pytest.param(rules, lines, shown, id=re.findall(r"^### `(\w+)`", PAGE[: match.start()], re.MULTILINE)[-1])
    for match in re.finditer(
        r"```toml\n([^`]*?)```\n\n```log\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL
    )
    for rules, lines, shown in (match.groups(),)
]


@pytest.fixture(scope="module")
def store() -> DuckDBStorage:
    storage = DuckDBStorage(":memory:")
    storage.init_schema()
    return storage


def logs(rules: Rules) -> str:
    return "".join(
        f"{log.timestamp.isoformat().replace('+00:00', 'Z')} {log.raw_text}".replace("\n", "⏎") + "\n"
        for log in read_sources(rules)
    )


@pytest.mark.parametrize(("text", "lines", "shown"), EXAMPLES)
def test_the_example_gives_what_stands_below_it(
    store: DuckDBStorage, tmp_path: Path, text: str, lines: str, shown: str
) -> None:
    (tmp_path / "app.log").write_text(lines)
    (tmp_path / "rules.toml").write_text(text if "[sources." in text else BASE + text)
    rules = load_rules(tmp_path / "rules.toml")
    assert (numbered_fibers(store, rules) if rules.fibers else logs(rules)) == shown


def test_every_key_of_the_models_has_its_place_on_the_page() -> None:
    keys = [*Source.model_fields, *FiberType.model_fields, *Pattern.model_fields]
    headings = re.findall(r"^### `(\w+)`", PAGE, re.MULTILINE)
    assert len(set(headings)) == len(headings)
    assert set(headings) == set(keys) - {"patterns"}
