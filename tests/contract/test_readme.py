"""Examples of the README."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_programs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for program in PROGRAMS:
        exec(compile(program, "README.md", "exec"), names)  # noqa: S102
    assert capsys.readouterr().out.splitlines() == [
        "GET /cart 200 request=17",
        "1",
        "request ['GET /cart 200 request=17']",
        "1",
        "['request']",
        "1",
        "1",
        "0 0 0",
        "0",
    ]


def test_the_rules_file_is_one(tmp_path: Path) -> None:
    from fiberstore.ingest.rules import load_rules

    (rules,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "rules.toml").write_text(rules)
    (tmp_path / "OpenSSH_2k.log").touch()
    assert list(load_rules(tmp_path / "rules.toml").fibers) == ["login"]


def test_every_module_it_names_is_there() -> None:
    import fiberstore.testing

    tests = Path(__file__).parents[1]
    folders = [tests, tests.parent, *map(Path, fiberstore.testing.__path__)]
    named = set(re.findall(r"`(?:tests/)?([\w/]+\.py)`", README))
    assert named > {"contract/test_contract.py", "reliability/test_disk.py", "timelines.py"}
    for name in named:
        assert any((folder / name).is_file() for folder in folders), name


def test_every_selection_of_the_contract_finds_tests() -> None:
    """The table's ``-k`` words name tests of the contract."""
    from fiberstore.testing import StorageContract

    names = [name for name in dir(StorageContract) if name.startswith("test_")]
    for word in re.findall(r"`-k (\w+)` of `contract/test_contract.py`", README):
        assert any(word in name for name in names), word
