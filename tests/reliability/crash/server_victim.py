"""The program that writes to a server that is killed: ``server_victim.py URL LANE``.

It reports as ``victim.py`` does, and when it has lost a step. Then it waits for a line, reads something,
which has to work at once, and goes on with the same storage.
"""

import sys

from fiberstore import ConnectionLostError, DatabaseError, PostgresStorage
from tests.reliability.crash.victim import report
from tests.reliability.crash.workers import step


def write_lane(url: str, lane: str) -> None:
    number = 0
    with PostgresStorage(url, pool_size=2) as storage:
        while True:
            transaction = step(lane, number)
            report("begin", "step", lane, number)
            try:
                transaction.write(storage)
            except DatabaseError as error:
                may_be_stored = isinstance(error, ConnectionLostError) and error.may_be_stored
                report("lost", "step", lane, number, may_be_stored)
                sys.stdin.readline()
                storage.fibers.count()
            else:
                report("end", "step", lane, number)
                number += 1


if __name__ == "__main__":
    write_lane(*sys.argv[1:])
