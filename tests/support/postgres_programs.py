"""Programs of processes that use one PostgreSQL database at once; each is given its number."""

import random
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar
from uuid import UUID

from fiberstore import (
    CheckpointError,
    CheckpointMove,
    DuplicateError,
    Fibers,
    Logs,
    NotFoundError,
    PostgresStorage,
)
from fiberstore.testing.examples import fiber, log, member, uid

T = TypeVar("T")

PROCESSES = 4
STEPS = 25
ROWS = 150  # by COPY, in a transaction
READ_BATCHES, READ_ROWS = 20, 10
_barriers: list[Barrier] = []


def prepare(barrier: Barrier) -> None:
    """Keep what lets the processes begin together."""
    _barriers.append(barrier)


def _shuffled(items: Sequence[T], seed: object) -> list[T]:
    return random.Random(str(seed)).sample(items, len(items))


def run(program: str, number: int, url: str) -> Any:  # noqa: ANN401  # what the program returns
    """Run one of the programs below, when all processes have come to this point."""
    with PostgresStorage(url, pool_size=2) as storage:
        _barriers[0].wait(60)
        return globals()[program](storage, number)


def build(storage: PostgresStorage, _number: int) -> None:
    storage.init_schema()


def append(storage: PostgresStorage, number: int) -> tuple[int, int]:
    """Write the same logs and memberships as the others, in another order, and some of its own."""
    logs = memberships = 0
    for step in range(5):
        rows = [*range(step * ROWS, (step + 1) * ROWS), -1 - number * 10 - step]
        logs += storage.write_logs([log(row + 100) for row in _shuffled(rows, (number, step))])
        memberships += storage.write_memberships(
            [member(row + 100, 1) for row in _shuffled(rows, (step, number))]
        )
    return logs, memberships


def count_up(storage: PostgresStorage, number: int) -> None:
    """Count in one attribute of a fiber with all, and in another alone; every third time by its own call."""
    for step in range(STEPS):
        with storage.transaction() as unit:
            found = unit.fibers.get_fiber(uid(1))
            assert found is not None
            assert isinstance(found.attributes, dict)
            counts = {**found.attributes}
            for name in ("all", f"process {number}"):
                counts[name] = int(str(counts.get(name, 0))) + 1
            unit.fibers.update_fiber(fiber(1, attributes=counts))
        if step % 3 == 0:
            storage.update_fiber(fiber(2, attributes=number))


def be_first(storage: PostgresStorage, number: int) -> list[int]:
    """Write the same fibers as the others; return those it has written first."""
    first = []
    for one in range(STEPS):
        with suppress(DuplicateError):
            storage.write_fiber(fiber(100 + one, attributes=number))
            first.append(one)
    return first


def step_on(storage: PostgresStorage, number: int) -> int:
    """Move a checkpoint on by one, with a log, if nobody else has; return how often it has."""
    moved = 0
    for step in range(STEPS):
        found = storage.checkpoints.get("place")
        value = 0 if found is None else int(found.value)
        expected = None if found is None else found.value
        try:
            if step % 2:
                storage.checkpoints.compare_and_set("place", expected, str(value + 1))
            else:
                move = CheckpointMove("place", expected, str(value + 1))
                storage.write_batch(logs=[log(10_000 + number * STEPS + step)], checkpoint=move)
            moved += 1
        except CheckpointError:
            pass
    return moved


def upsert(storage: PostgresStorage, number: int) -> int:
    """Write over the same fibers as the others, in the other order, and return how many were new."""
    new = 0
    for step in range(3):
        numbers = range(200, 200 + ROWS)
        fibers = [
            fiber(one, attributes=[number, step]) for one in (numbers if number % 2 else reversed(numbers))
        ]
        new += storage.upsert_fibers(fibers).new
    return new


def write_and_delete(storage: PostgresStorage, number: int) -> None:
    """Write batches of logs that are there with new memberships, or delete, prune and merge beside it."""
    dice = random.Random(number)
    for _ in range(STEPS):
        rows = dice.sample(range(40), 8)
        if number % 2:
            storage.write_batch(
                logs=[log(row) for row in rows],
                fibers=[fiber(300 + rows[0] % 4)],
                memberships=[member(row, 300 + row % 4) for row in rows],
            )
            continue
        match dice.randrange(4):
            case 0:
                storage.logs.where(Logs.c.log_id.in_([uid(row) for row in rows])).delete()
            case 1:
                storage.prune(fibers=Fibers.c.fiber_id == uid(300 + rows[0] % 4), step_rows=3)
            case 2:
                with suppress(NotFoundError):
                    storage.merge_fibers({uid(300): uid(301)})
            case _:
                storage.fibers.where(Fibers.c.fiber_id == uid(302)).close()


def write_or_read(storage: PostgresStorage, number: int) -> list[list[UUID]]:
    """Write logs anywhere in time; the first two processes read them, until they have met all."""
    if number > 1:
        for batch in range(READ_BATCHES):
            rows = range(number * 10_000 + batch * READ_ROWS, number * 10_000 + (batch + 1) * READ_ROWS)
            storage.write_logs([log(row, row * 7_919 % 1_000) for row in rows])
        return []
    wanted = 2 * READ_BATCHES * READ_ROWS
    if number == 1:
        tail = storage.logs.tail("")
        return [[next(tail).log_id for _ in range(wanted)]]
    walks: list[list[UUID]] = []
    while not walks or len(walks[-1]) < wanted:
        met, cursor = list[UUID](), None
        while cursor is not None or not met:
            page = storage.logs.page(40, cursor)
            met += [found.log_id for found in (*page.items, *page.late)]
            cursor = page.next
            assert len(list(storage.logs.iter_records())) % READ_ROWS == 0
            if not met:
                break
        walks.append(met)
    return walks
