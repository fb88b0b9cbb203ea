"""Running a command: in this process, or on a terminal."""

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import pytest

from fiberstore.cli import main


@dataclass
class Result:
    """Output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def usage(self) -> str:
        """The error of a wrong usage, without the frame around it."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", self.err)
        return " ".join(re.sub("[╭─╮│╰╯]", " ", text).split())

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def rows(self) -> list[list[str]]:
        """The tab-separated values, without the line of names."""
        return [line.split("\t") for line in self.out.splitlines()[1:]]


Run: TypeAlias = Callable[..., Result]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in this process."""

    def run(*arguments: str | Path) -> Result:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return run


def assert_refused(result: Result, *words: str) -> None:
    """One line on stderr that holds the words, nothing on stdout, exit code 1."""
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("fiberstore: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def told_cursor(result: Result) -> str:
    told = re.fullmatch(r"(?:.*\n)*fiberstore: there is more; .* --cursor (\S+) continues\n", result.err)
    assert told is not None
    return told[1]


def read_terminal(fd: int) -> Iterator[bytes]:
    """Yield what is written to a terminal until the other side is closed."""
    while True:
        try:
            chunk = os.read(fd, 65_536)
        except OSError:  # Linux reports the end of a terminal as an error
            return
        if not chunk:
            return
        yield chunk


@contextmanager
def _standard_streams_on(terminal: int) -> Iterator[None]:
    """Let this process have a terminal and nothing else for its standard streams, and close it in the end."""
    streams, kept = (sys.stdin, sys.stdout, sys.stderr), [os.dup(fd) for fd in range(3)]
    for fd in range(3):
        os.dup2(terminal, fd)
    os.close(terminal)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate("rww"))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for fd, copy in enumerate(kept):
            os.dup2(copy, fd)
            os.close(copy)


def shown_on_a_terminal(commands: Sequence[Sequence[str | Path]], columns: int = 80) -> list[tuple[int, str]]:
    """Run commands on a terminal, in this process; return the code and the output of each."""
    codes: list[int] = []
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with ThreadPoolExecutor(1) as reader, mock.patch.dict(os.environ, TERM="xterm-256color"):
        output = reader.submit(lambda: b"".join(read_terminal(ours)))
        with _standard_streams_on(theirs):
            for command in commands:
                with pytest.raises(SystemExit) as caught:
                    main([str(argument) for argument in command])
                codes.append(int(caught.value.code or 0))
                sys.stdout.write("-----\n")
    shown = output.result().decode().split("-----\r\n")
    os.close(ours)
    return list(zip(codes, shown, strict=False))


def on_a_terminal(commands: Sequence[Sequence[str | Path]], columns: int = 80) -> list[str]:
    """Run commands that end well on a terminal; return what each shows."""
    shown = shown_on_a_terminal(commands, columns)
    assert [code for code, _ in shown] == [0] * len(commands), shown
    return [output.replace("\r\n", "\n") for _, output in shown]


def plain(output: str) -> str:
    """Return the visible text, without colours; nothing else may steer the terminal."""
    seen = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", seen)
    return seen


def without_progress(output: str) -> str:
    """Return the text that stays on a terminal after the line of a spinner or a bar was erased."""
    return re.sub(r"(?s)^.*\x1b\[(?:2K|\?25h)", "", output)
