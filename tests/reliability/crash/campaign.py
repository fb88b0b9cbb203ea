"""Kills in many modes, one after the other, and what they came to."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import duckdb
from sqlalchemy.exc import SQLAlchemyError

from fiberstore import StorageError
from tests.reliability.crash.crash_points import (
    CalledFile,
    IngestedFile,
    IngestInputs,
    LaneFile,
    MigratedFile,
    Mode,
    kept_files,
)
from tests.reliability.crash.kills import Aim
from tests.reliability.crash.workers import BULK, LANES, LOGS

ATTEMPTS = 20
_MIGRATION = Aim("statement", 25, 3, "migration")  # of 39 statements; of an empty database, of 19
_ONE_LANE = LANES[:1]

MODES = {
    "plain": Mode("lanes", Aim("commit", 40, 4, "step"), "lanes", _ONE_LANE),
    "threshold": Mode(
        "lanes",
        Aim("end step", 40, 2, "step", in_checkpoint=True),
        "lanes",
        _ONE_LANE,
        "?checkpoint_threshold=16KB",
    ),
    "threads-threshold": Mode(
        "lanes",
        Aim("end step", 40, 2, "step", in_checkpoint=True),
        "lanes",
        LANES,
        "?checkpoint_threshold=16KB",
    ),
    "checkpoint": Mode(
        "checkpoints", Aim("begin checkpoint", 6, 2, "checkpoint", in_checkpoint=True), "lanes", _ONE_LANE
    ),
    "threads": Mode("lanes", Aim("end step", 150, 10, "step"), "lanes", LANES),
    "bulk": Mode("bulk", Aim("row", 8, 150, "step"), "bulk", (BULK,)),
    "recovery": Mode("open", Aim("begin opening", 1, 120, "opening"), "logs"),
    "migrate-empty": Mode("migrate", _MIGRATION._replace(most_events=12), "empty"),
    "migrate-tables": Mode("migrate", _MIGRATION, "tables"),
    "ingest": Mode("ingest", Aim("commit", 20, 6, "batch"), "ingest"),
}
CALLS = {"step": 8.0, "backup": 120.0, "compact": 180.0, "copy": 60.0, "doctor": 60.0}  # most ms
MODES |= {
    call: Mode("calls", Aim(f"begin {call}", 3, most_ms, call), "calls", LANES[:2], most_interrupts=4)
    for call, most_ms in CALLS.items()
}
_QUICK = tuple(mode for mode in MODES if mode not in {"bulk", "recovery", *CALLS})
TURNS = (*_QUICK, "bulk", *CALLS, *_QUICK, "recovery", *CALLS)


class Campaign:
    """Kills in several modes, in turn, each on a file of its mode that is used several times.

    Args:
        folder: For the files; those of a violation stay there.
        seed: Decides everything but where exactly a kill lands.
        modes: Which of ``MODES``, in turn.

    Attributes:
        kills: How many there were, by mode.
        hits: How many of them hit what the mode is for.
        violations: What was wrong.
    """

    def __init__(self, folder: Path, seed: int, modes: Iterable[str] = TURNS) -> None:
        self.kills: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.violations: list[str] = []
        self._in_flight = self._whole = self._rescued = self._left = self._interrupts = 0
        self._folder = folder
        self._seed = seed
        self._modes = list(modes)
        self._scenes: dict[str, LaneFile | MigratedFile | IngestedFile] = {}

    def run(self, kills: int, say: Callable[[str], object]) -> None:
        """Kill that many times, and then in each mode that has not hit yet, until it does.

        Args:
            kills: How many times; once in each mode at least.
            say: Called with a line for each kill.
        """
        for number in range(kills):
            say(self._kill(self._modes[number % len(self._modes)]))
        for mode in dict.fromkeys(self._modes):
            for _ in range(ATTEMPTS):
                if not self.hits[mode] and not self.violations:
                    say(self._kill(mode))
            if not self.hits[mode] and not self.violations:
                self.violations.append(f"{mode}: no kill landed in a {MODES[mode].aim.phase}")

    def summary(self) -> str:
        """Return the figures."""
        modes = "\n".join(
            f"  {mode:16}{self.hits[mode]:5} of {self.kills[mode]}" for mode in dict.fromkeys(self._modes)
        )
        return (
            f"seed {self._seed}: {self.kills.total()} kills, {len(self.violations)} violations\n"
            f"kills that landed in what the mode is for:\n{modes}\n"
            f"{self._in_flight} transactions had begun and were not acknowledged, {self._whole} of them "
            f"whole\n{self._rescued} stores opened only as a rescued copy\n"
            f"{self._interrupts} calls ended by Ctrl-C, {self._left} unfinished files were left by kills"
        )

    def _kill(self, name: str) -> str:
        mode, number = MODES[name], self.kills.total() + 1
        dice, begin = random.Random(f"{self._seed}/{number}"), time.perf_counter()
        self.kills[name] += 1
        line = f"kill {number}, seed {self._seed}, {name}"
        scene = self._scenes.pop(mode.scene, None) or self._scene(mode.scene, number, dice)
        try:
            strike = scene.strike(mode, dice)
        except (AssertionError, StorageError, SQLAlchemyError, duckdb.Error) as error:
            self.violations.append(
                f"{line}: {type(error).__name__}: {error}\nits files after the kill: {kept_files(scene.path)}"
            )
            return f"VIOLATION: {self.violations[-1]}"
        self.hits[name] += strike.hit
        self._in_flight += strike.in_flight
        self._whole += strike.whole
        self._rescued += strike.rescued
        self._left += strike.left
        self._interrupts += strike.death.interrupts
        if not strike.ended:
            self._scenes[mode.scene] = scene
        return (
            f"{line}: {strike.death.aimed}, {'hit' if strike.hit else 'missed'}; in flight: "
            f"{dict(strike.death.in_flight)}; {strike.death.interrupts} interrupts; "
            f"{time.perf_counter() - begin:.1f} s"
        )

    def _scene(self, kind: str, number: int, dice: random.Random) -> LaneFile | MigratedFile | IngestedFile:
        path = self._folder / f"{kind}-{number}.duckdb"
        match kind:
            case "lanes":
                return LaneFile(path, LANES, dice.randint(3, 9))
            case "bulk":
                return LaneFile(path, (BULK,), 2)
            case "logs":
                return LaneFile(path, (LOGS,), 3)
            case "calls":
                return CalledFile(self._folder / f"calls-{number}" / "store.duckdb", dice.randint(2, 6))
            case "ingest":
                return IngestedFile(path, self._ingest_inputs, dice.randint(1, 4))
            case _:
                return MigratedFile(path, with_tables=kind == "tables")

    @cached_property
    def _ingest_inputs(self) -> IngestInputs:
        return IngestInputs(self._folder)
