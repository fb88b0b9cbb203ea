"""Check docstrings and pages against the rules of prose: `python tools/check_prose.py`.

A docstring opens with a noun phrase or an imperative verb, and never only points elsewhere. A thing that has
a standard term is called by it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("fiberstore", "migrations", "benchmarks", "tools", "tests", ".ci")
PAGES = ("*.md", "docs/*.md", "docs/adr/*.md", "docs/reference/*.md")

#: Folders and files that are not checked, each with the reason.
EXEMPT = {
    "tests/contract/test_prose.py": "it quotes what is refused",
}

OPENING = re.compile(r"(What|How|Whether|Who|Whose|Where)\b|Return (what|it)\b", re.IGNORECASE)
POINTER = re.compile(r"See `.*|(See|As|Like) [`:\w][\w`.:~()]*\.?$")
#: Home-made words, and the standard ones.
WORDS = (
    (
        re.compile(r"\bgo(?:es|ing)? on\b(?! with the)|\bwent on\b|\bgone on\b", re.IGNORECASE),
        "continue, resume",
    ),
    (re.compile(r"\blook(?:s|ed|ing)? (?:\w+ ){0,3}up by every\b", re.IGNORECASE), "verify"),
)


@dataclass(frozen=True)
class Finding:
    """A place in a file, the words there and the fix."""

    path: Path
    line: int
    words: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path.as_posix()}:{self.line}: {self.words!r}: {self.fix}"


def check_source(path: Path, text: str) -> Iterator[Finding]:
    """Check the docstrings of a module, its classes and its functions, and the words of all its texts."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from check_words(path, node.value, node.lineno)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if docstring is None:
            continue
        line = node.body[0].lineno
        if opening := OPENING.match(docstring):
            yield Finding(path, line, opening[0], "open with a noun phrase or an imperative verb")
        if pointer := POINTER.match(docstring):
            yield Finding(path, line, pointer[0], "say it here, or inherit the docstring")


def check_words(path: Path, text: str, first_line: int = 1) -> Iterator[Finding]:
    """Check a text for home-made words, also across the ends of its lines."""
    unbroken = re.sub(r"\s", " ", text)
    for pattern, standard in WORDS:
        for match in pattern.finditer(unbroken):
            line = first_line + text.count("\n", 0, match.start())
            yield Finding(path, line, match[0], f"use the standard word: {standard}")


def check_tree(root: Path = ROOT) -> Iterator[Finding]:
    """Check every source and page of a tree but the exempt ones."""
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root)
            if not any(relative.is_relative_to(exempt) for exempt in EXEMPT):
                yield from check_source(relative, path.read_text(encoding="utf-8"))
    for pattern in PAGES:
        for path in sorted(root.glob(pattern)):
            yield from check_words(path.relative_to(root), path.read_text(encoding="utf-8"))


def main() -> int:
    """Print every finding; return the exit code."""
    findings = list(check_tree())
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
