"""``python -m tests.reliability.crash --kills 1000 --seed 7``, or ``--recovery``."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.reliability.crash.campaign import MODES, TURNS, Campaign
from tests.reliability.crash.recovery import LOG_SIZES_MB, table


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, which is printed")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=TURNS, help="default: all of them")
    parser.add_argument("--recovery", action="store_true", help="measure how long a store takes to open")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fiberstore-crash-"))
    if arguments.recovery:
        for line in table(folder, LOG_SIZES_MB):
            say(line)
        return 0
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    campaign = Campaign(folder, seed, arguments.modes)
    campaign.run(arguments.kills, say)
    say(campaign.summary())
    for violation in campaign.violations:
        say(violation)
    return 1 if campaign.violations else 0


if __name__ == "__main__":
    sys.exit(main())
