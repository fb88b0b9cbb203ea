"""Durable on return, with a server: it is killed while programs write, and they continue once it is back."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import NamedTuple

import pytest

from fiberstore import PostgresStorage
from tests.reliability.crash.workers import LOGS, Contents, step
from tests.support import postgres_server

VICTIM = "tests.reliability.crash.server_victim"
WRITTEN = ("a", "b", LOGS)


class Lost(NamedTuple):
    """A step that was being written when the server was killed."""

    lane: str
    number: int
    may_be_stored: bool


class Victim:
    """A program that writes a lane."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def until_end(self, steps: int, expected: Contents) -> None:
        """Read its report until it has written so many steps, and expect them."""
        while steps:
            steps -= self._next(expected)[0] == "end"

    def until_lost(self, expected: Contents) -> Lost:
        """Read its report to the step that it lost, and expect those before it."""
        while True:
            word, _, lane, number, *rest = self._next(expected)
            if word == "lost":
                return Lost(lane, int(number), rest[0] == "True")

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _next(self, expected: Contents) -> list[str]:
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        assert words, "it has ended"
        if words[0] == "end":
            expected.add(step(words[2], int(words[3])))
        return words


@contextmanager
def victim(url: str, lane: str) -> Iterator[Victim]:
    command = [sys.executable, "-m", VICTIM, url, lane]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            yield Victim(process)
        finally:
            process.kill()


def with_those_that_are_there(found: Contents, expected: Contents, lost: Sequence[Lost]) -> Contents:
    """Return the expected rows with the lost steps that are there, whole.

    Raises:
        AssertionError: No choice of them, of those that may be stored, is what was found.
    """
    for choice in product(*((False, True) if one.may_be_stored else (False,) for one in lost)):
        chosen = expected.copy()
        for one, is_there in zip(lost, choice, strict=True):
            if is_there:
                chosen.add(step(one.lane, one.number))
        if not found.differences(chosen):
            return chosen
    raise AssertionError(f"{found.differences(expected)}; lost were {lost}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_is_whole_after_the_server_was_killed(long_form: bool) -> None:
    dice, expected, unknown = random.Random(), Contents(), 0
    with postgres_server.killable_server() as server, ExitStack() as stack:
        url = server.url.render_as_string()
        storage = stack.enter_context(PostgresStorage(url))
        storage.init_schema()
        victims = [stack.enter_context(victim(url, lane)) for lane in WRITTEN]
        for _ in range(60 if long_form else 2):
            for one in victims[:-1]:
                one.until_end(dice.randint(1, 12), expected)
            time.sleep(dice.uniform(0, 0.2))  # the moment of the kill
            server.kill()
            lost = [one.until_lost(expected) for one in victims]
            unknown += sum(one.may_be_stored for one in lost)
            server.start()
            expected = with_those_that_are_there(Contents.read(storage), expected, lost)
            for one in victims:
                one.go_on()
    assert len(expected.memberships) > 20
