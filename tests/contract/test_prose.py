"""The rules of prose: each kind of finding, and a tree without any."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "check_prose.py"


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = spec_from_file_location("check_prose", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("docstring", "words"),
    [
        ("What a store holds.", "What"),
        ("How many there are.", "How"),
        ("Whether it is so.", "Whether"),
        ("Who waits.", "Who"),
        ("Where to resume.", "Where"),
        ("Return what was found.", "Return what"),
        ("Return it.", "Return it"),
        ("See ``Storage.get_log``.", "See ``Storage.get_log``."),
        ("See ``Storage.close``; wait.\n\n    Args:", "See ``Storage.close``; wait."),
        ("Stop; the next call\n    goes on.", "goes on"),
        ("Look every key up by every index.", "Look every key up by every"),
    ],
)
def test_checker_finds_a_docstring_against_the_rules(checker: ModuleType, docstring: str, words: str) -> None:
    source = f'"""Module."""\n\n\ndef act() -> None:\n    """{docstring}"""\n'
    (found,) = checker.check_source(Path("a.py"), source)
    assert found.words == words
    assert str(found).startswith(f"a.py:{found.line}: {words!r}: ")
    assert found.line == source.count("\n", 0, source.index(words)) + 1


@pytest.mark.parametrize(
    "docstring",
    [
        "Result of a lookup.",
        "Return the whatever.",
        "See RFC 6901.\n\n    It is quoted.",
        "Whatever is left.",
    ],
)
def test_checker_passes_a_docstring_by_the_rules(checker: ModuleType, docstring: str) -> None:
    assert not [*checker.check_source(Path("a.py"), f'"""{docstring}"""\n')]


def test_checker_finds_words_in_messages_and_pages(checker: ModuleType) -> None:
    (found,) = checker.check_source(Path("a.py"), 'print(f"{1}: the run goes on")\n')
    assert (found.line, found.words) == (1, "goes on")
    (found,) = checker.check_words(Path("a.md"), "Stop here.\nLater, go\non.\n")
    assert (found.line, found.words) == (2, "go on")


@pytest.mark.slow  # the gate runs the checker itself, too
def test_tree_is_by_the_rules(checker: ModuleType) -> None:
    assert not [*map(str, checker.check_tree())]
