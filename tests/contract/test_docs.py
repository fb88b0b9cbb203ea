"""Examples of the pages in docs/: every one runs, and prints what stands below it.

Blocks of ``sh`` are commands in a pipe; one of ``console`` is a command on a terminal, and what it prints.

Blocks of ``toml`` and ``log`` stand on the page of the rules file, whose examples have a test of their own.

The page on tests includes the files of ``docs/programs``, a suite that runs as a whole.

Where a page has the URL of a server, the tests' own server takes its place.

To write what the examples print into the pages: ``python -m tests.contract.test_docs``.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest

from fiberstore.cli import main
from tests.support import postgres_server

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SERVER = "postgresql+psycopg://user@host/database"
LANGUAGES = {"python", "sh", "console"}
EXAMPLE = re.compile(
    r"```(?:(?P<language>python|sh)\n(?P<code>.*?)```\n(?:\n```text\n(?P<shown>.*?)```\n)?"
    r"|console\n\$ (?P<command>.*?\n)(?P<seen>.*?)```\n)",
    re.DOTALL,
)
TERMINAL = {"TTY_COMPATIBLE": "1", "TERM": "dumb"}  # to Rich: a terminal without colours


@dataclass(frozen=True)
class Example:
    """A block of a page.

    Attributes:
        line: Where it begins.
        language: python, sh or console.
        code: What is run.
        shown: What it prints, as the page shows it; commands without such a block may print anything.
    """

    line: int
    language: str
    code: str
    shown: str | None


def examples(page: str) -> list[Example]:
    return [
        Example(
            page.count("\n", 0, found.start()) + 2,
            found["language"] or "console",
            found["code"] or found["command"],
            found["shown"] if found["language"] else found["seen"],
        )
        for found in EXAMPLE.finditer(page)
    ]


class Runner:
    """Runs the examples of a page one after the other, in the working directory.

    Args:
        name: Of the page.
        server_url: Of an empty database, in place of SERVER.
    """

    def __init__(self, name: str, server_url: str) -> None:
        self._page = name
        self._server_url = server_url
        self._names: dict[str, object] = {}

    def run(self, example: Example) -> str:
        run = replace(example, code=example.code.replace(SERVER, self._server_url))
        if example.language == "python":
            return self._run_python(run)
        return _run_commands(run.code, TERMINAL if example.language == "console" else {})

    def _run_python(self, example: Example) -> str:
        printed = io.StringIO()
        code = "\n" * (example.line - 1) + example.code  # errors tell the line of the page
        with contextlib.redirect_stdout(printed):
            exec(compile(code, self._page, "exec"), self._names)  # noqa: S102
        return printed.getvalue()


def _run_commands(code: str, terminal: dict[str, str]) -> str:
    printed = ""
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "fiberstore", f"only fiberstore is run here: {line}"
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, {"COLUMNS": "80", **terminal}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main(arguments)
        assert ended.value.code == 0, f"{line}\n{err.getvalue()}"
        printed += out.getvalue() + err.getvalue()
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.name))
def test_every_example_prints_what_stands_below_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    page = path.read_text()
    server_url = request.getfixturevalue("postgres_url") if SERVER in page else ""
    runner = Runner(path.name, server_url)
    for example in examples(page):
        printed = runner.run(example)
        if example.shown is not None or example.language == "python":
            assert printed == (example.shown or ""), f"{path.name}, line {example.line}"


@pytest.mark.slow
def test_the_programs_of_the_page_on_tests_pass(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "programs", tmp_path, dirs_exist_ok=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # not the settings of this project
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"\b9\d passed", ended.stdout)


def test_there_are_pages_and_no_block_is_left_out() -> None:
    assert PAGES
    for path in PAGES:
        page = path.read_text()
        languages = re.findall(r"^```(\w+)$", page, re.MULTILINE)
        assert len(examples(page)) == sum(language in LANGUAGES for language in languages)
        assert set(languages) <= {*LANGUAGES, "text", "toml", "log"}
    for path in set(DOCS.rglob("*.md")) - set(PAGES):
        assert not examples(path.read_text()), f"no test runs the examples of {path}"


def _rewritten(path: Path, server_url: str) -> Iterator[str]:
    runner, page, end = Runner(path.name, server_url), path.read_text(), 0
    for found, example in zip(EXAMPLE.finditer(page), examples(page), strict=True):
        printed = runner.run(example)
        yield page[end : found.start()]
        shown = printed if example.language == "python" or example.shown is not None else ""
        if example.language == "console":
            yield f"```console\n$ {example.code}{shown}```\n"
        else:
            yield f"```{example.language}\n{example.code}```\n"
            yield f"\n```text\n{shown}```\n" if shown else ""
        end = found.end()
    yield page[end:]


if __name__ == "__main__":
    with postgres_server.server() as started:
        for written in PAGES:
            with (
                postgres_server.database(started) as new_url,
                tempfile.TemporaryDirectory() as folder,
                contextlib.chdir(folder),
            ):
                text = "".join(_rewritten(written, new_url))
            written.write_text(text)
