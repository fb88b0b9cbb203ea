"""The README, the page of the contract, and the links of all pages."""

import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTRACT = (ROOT / "docs/contract.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests/README.md"]
MOST_WORDS = 600


def test_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(program, "README.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "request ['GET /cart 200 request=17']\nGET /cart 200 request=17\n"


def test_it_is_short() -> None:
    assert len(README.split()) <= MOST_WORDS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if ":" in target:
            continue
        name, _, anchor = unquote(target).partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page.read_text()), target


def test_the_architecture_names_every_part_in_the_order_of_the_import_rules() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    parts = [name for layer in reversed(rules["layers"]) for name in sorted(layer.replace("|", " ").split())]
    named = [name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row) if "." not in name]
    assert [name for name in named if name in parts] == parts


def anchors(page: str) -> set[str]:
    """Return the names by which links reach the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_has_every_public_name() -> None:
    import fiberstore

    reference = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    for name in fiberstore.__all__:
        home = getattr(fiberstore, name).__module__
        assert re.search(rf"\b{name}\b|automodule:: {home}\n +:members:", reference), name


def test_every_module_it_names_is_there() -> None:
    import fiberstore.testing

    tests = Path(__file__).parents[1]
    folders = [tests, tests.parent, *map(Path, fiberstore.testing.__path__)]
    named = set(re.findall(r"`(?:tests/)?([\w/]+\.py)`", CONTRACT))
    assert named > {"contract/test_contract.py", "reliability/test_disk.py", "timelines.py"}
    for name in named:
        assert any((folder / name).is_file() for folder in folders), name


def test_every_selection_of_the_contract_finds_tests() -> None:
    """The table's ``-k`` words name tests of the contract."""
    from fiberstore.testing import StorageContract

    names = [name for name in dir(StorageContract) if name.startswith("test_")]
    for word in re.findall(r"`-k (\w+)` of `contract/test_contract.py`", CONTRACT):
        assert any(word in name for name in names), word
