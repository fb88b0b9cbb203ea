"""Runs the victim, interrupts it at random moments, and kills it at another."""

import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

VICTIM = "tests.reliability.crash.victim"
VICTIM_TIMEOUT_S = 60.0


class ViolationError(AssertionError):
    """The store broke a promise."""


class Aim(NamedTuple):
    """When to kill: a random time after the n-th line of the report that begins with some words.

    Attributes:
        event: Those words.
        most_events: n is drawn from 1 to this.
        most_ms: The time is drawn from 0 to this.
        phase: What the kill is to hit: something of that name has begun and not ended.
        in_checkpoint: Whether the time begins when the database file is written next, which only a checkpoint
            does.
    """

    event: str
    most_events: int
    most_ms: float
    phase: str
    in_checkpoint: bool = False


@dataclass(frozen=True)
class Death:
    """Report of a killed program.

    Attributes:
        lines: Its report, in words.
        aimed: Where the kill was aimed at, for messages.
    """

    lines: list[list[str]]
    aimed: str

    @property
    def in_flight(self) -> Counter[str]:
        """Number of things of each phase that had begun and not ended, since the last interrupt."""
        checked = [place for place, words in enumerate(self.lines) if words[0] == "checked"]
        since = self.lines[checked[-1] :] if checked else self.lines
        begun = Counter(words[1] for words in since if words[0] == "begin")
        return begun - Counter(words[1] for words in since if words[0] == "end")

    @property
    def interrupts(self) -> int:
        """Number of calls that Ctrl-C ended."""
        return sum(words[0] == "cut" for words in self.lines)

    def steps(self, word: str) -> list[tuple[str, int]]:
        """Return lane and number of each step of which this was reported."""
        return [(words[2], int(words[3])) for words in self.lines if words[:2] == [word, "step"]]


def kill(
    aim: Aim,
    dice: random.Random,
    program: str,
    file: Path,
    *arguments: object,
    settings: str = "",
    interrupts: int = 0,
    timeout_s: float = VICTIM_TIMEOUT_S,
) -> Death:
    """Run the victim, and kill it when the dice say so.

    Before that, Ctrl-C comes so many times, each when the victim has seen that the last has left no harm.

    Args:
        aim: When.
        dice: Choose the moment.
        program: What the victim does.
        file: To which database.
        arguments: More of the victim's.
        settings: DuckDB's, as the query of a URL.
        interrupts: How many times.
        timeout_s: The victim is ended after this time, whatever it does; it begins anew after each Ctrl-C.

    Raises:
        ViolationError: The victim ended before that moment.
    """
    command = [sys.executable, "-m", VICTIM, program, f"duckdb:///{file}{settings}", *map(str, arguments)]
    moments = [
        (dice.randint(1, aim.most_events), dice.uniform(0, aim.most_ms)) for _ in range(interrupts + 1)
    ]
    count, delay_ms = moments.pop()
    aimed = f"{delay_ms:.1f} ms after {aim.event!r} no. {count}{' and a write' * aim.in_checkpoint}"
    with tempfile.TemporaryFile() as errors:
        victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert victim.stdout is not None
            lines: list[list[str]] = []
            for moment in moments:
                with _ended_after(timeout_s, victim):
                    _interrupt(victim, aim, *moment, lines)
            with _ended_after(timeout_s, victim):
                for line in victim.stdout:
                    lines.append(line.split())
                    count -= line.startswith(aim.event)
                    if count == 0:
                        if aim.in_checkpoint:
                            _wait_for_change(file, victim)
                        time.sleep(delay_ms / 1000)  # the moment of the kill
                        victim.kill()
                        break
            lines += [line.split() for line in victim.stdout]
        finally:
            victim.kill()
            victim.communicate()
        errors.seek(0)
        said = errors.read().decode(errors="replace")[-20_000:]
    if count or victim.returncode != -signal.SIGKILL or said:
        raise ViolationError(
            f"the victim ended before {aimed}: code {victim.returncode}, report {lines[-5:]}\n{said}"
        )
    return Death(lines, aimed)


@contextmanager
def _ended_after(timeout_s: float, victim: subprocess.Popen[str]) -> Iterator[None]:
    """End the victim if the block takes longer than that."""
    watchdog = threading.Timer(timeout_s, victim.kill)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _interrupt(
    victim: subprocess.Popen[str], aim: Aim, count: int, delay_ms: float, lines: list[list[str]]
) -> None:
    """Send Ctrl-C at that moment, and read on until the victim has checked what it has left."""
    assert victim.stdout is not None
    for line in victim.stdout:
        lines.append(line.split())
        if line.startswith("checked"):
            return
        if line.startswith(aim.event):
            count -= 1
            # Again if the call went on: CPython drops what is raised in some callbacks.
            if count == 0 or (count < 0 and aim.event != "begin step"):
                time.sleep(delay_ms / 1000)  # the moment of the interrupt
                victim.send_signal(signal.SIGINT)


def _wait_for_change(file: Path, victim: subprocess.Popen[str]) -> None:
    written_ns = file.stat().st_mtime_ns
    while file.stat().st_mtime_ns == written_ns and victim.poll() is None:
        pass


class Strike(NamedTuple):
    """One kill and what it hit; nothing was found wrong after it.

    Attributes:
        death: The kill.
        hit: Whether it landed in the phase it was aimed at.
        in_flight: How many transactions had begun and were not acknowledged.
        whole: How many of these were found whole; the others had left no trace.
        ended: Whether the file is not to be used again.
        rescued: Whether it opened only as a copy by ``fiberstore.duckdb.rescue``.
        left: How many unfinished files the kill left.
    """

    death: Death
    hit: bool
    in_flight: int = 0
    whole: int = 0
    ended: bool = False
    rescued: bool = False
    left: int = 0
