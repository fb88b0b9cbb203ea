"""Correlation in memory: the definition against a plain reading of it, and batches against the definition."""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberstore.ingest.sweep import line_item, sweep
from tests.support.correlation import (
    SECOND,
    Line,
    MemoryStore,
    disjoint,
    line,
    new_id,
    plain_fibers,
)

GAP = 60


def swept(lines: Sequence[Line], max_gap: int | None = GAP) -> set[frozenset[int]]:
    """The fibers of the sweep, as sets of lines."""
    items = [
        line_item(line.second * SECOND, line.log_id, found) for line in lines for found in line.occurrences
    ]
    items.sort(key=lambda item: (item.position, item.match))
    fibers = sweep(items, None if max_gap is None else max_gap * SECOND)
    found = [frozenset(item.log_id for item in fiber.lines if item.log_id) for fiber in fibers]
    return set(found)


def seconds(lines: Sequence[Line], fibers: set[frozenset[int]]) -> list[list[int]]:
    by_id = {line.log_id: line.second for line in lines}
    return sorted(sorted(by_id[log_id] for log_id in fiber) for fiber in fibers)


def script(text: str) -> list[Line]:
    """Lines written as ``second: keys; second: keys``."""
    lines = []
    for number, part in enumerate(text.split(";"), 1):
        second, _, keys = part.partition(":")
        lines.append(line(int(second), number, *keys.split("|")))
    return lines


def batches_of(lines: Sequence[Line], cuts: Sequence[int]) -> list[list[Line]]:
    places = sorted({0, len(lines), *(cut % (len(lines) + 1) for cut in cuts)})
    return [list(lines[a:b]) for a, b in pairwise(places)]


WORDS = st.lists(
    st.sampled_from(["a", "b", "c", "d", "a", "b", "start", "close", "close+0", "close+2", "!x", "!y"]),
    min_size=1, max_size=4,
).map(" ".join).filter(lambda words: any(len(word) == 1 for word in words.split()))  # fmt: skip


@st.composite
def inputs(draw: Any) -> tuple[list[Line], int | None, list[list[Line]]]:  # noqa: ANN401
    """Lines, the gap, and batches of them in any order, some lines more than once."""
    words = draw(
        st.lists(st.tuples(st.integers(0, 24), st.lists(WORDS, min_size=1, max_size=2)), max_size=14)
    )
    numbers = draw(st.permutations(range(1, len(words) + 1)))
    lines = [line(second, number, *keys) for number, (second, keys) in zip(numbers, words, strict=True)]
    order = draw(st.permutations(lines))
    repeated = draw(st.lists(st.sampled_from(lines), max_size=3)) if lines else []
    batches = batches_of([*order, *repeated], draw(st.lists(st.integers(0, 17), max_size=4)))
    return lines, draw(st.sampled_from([0, 2, 4, 7, None])), batches


@given(inputs())
def test_sweep_reads_the_definition(given: tuple[list[Line], int | None, list[list[Line]]]) -> None:
    lines, max_gap, _ = given
    assert swept(lines, max_gap) == {fiber.log_ids for fiber in plain_fibers(lines, max_gap)}


def check(store: MemoryStore, ids: dict[int, int]) -> None:
    """Compare a store with the plain reading of its lines, and look whether every id resolves."""
    expected = {
        frozenset((line.log_id, one.match) for line, one in fiber.occurrences): fiber
        for fiber in plain_fibers(store.lines.values(), store.max_gap)
    }
    found = {}
    for fiber_id, fiber in store.fibers.items():
        logs = store.logs_of(fiber_id)
        members = frozenset(
            (log_id, one.match)
            for log_id in logs
            for one in store.lines[log_id].occurrences
            if all(
                key in fiber.keys
                and fiber.keys[key].position <= (store.lines[log_id].second * SECOND, log_id * 2)
                for key in one.keys
            )
        )
        found[members] = fiber_id
    assert found.keys() == expected.keys()
    assert disjoint(store.fibers.values(), store.max_gap_us)
    for members, fiber_id in found.items():
        plain, fiber = expected[members], store.fibers[fiber_id]
        assert fiber.keys.keys() == {key for _, one in plain.occurrences for key in one.keys}
        assert fiber.last_us == max(line.second for line, _ in plain.occurrences) * SECOND
        assert (fiber.end is None) == (plain.end is None)
        for log_id, match in members:
            ids.setdefault(fiber_id, fiber_id)
            made = new_id(log_id, match)
            if made in ids:
                assert store.resolve(made) == fiber_id
    assert ids.keys() <= store.fibers.keys() | store.merges.keys()


@given(inputs())
def test_batches_in_any_order_give_the_fibers_of_the_definition(
    given: tuple[list[Line], int | None, list[list[Line]]],
) -> None:
    _, max_gap, batches = given
    store = MemoryStore(max_gap)
    ids: dict[int, int] = {}
    for batch in batches:
        store.write(batch)
        check(store, ids)


def random_case(seed: int) -> None:
    """Compare batches with the definition, and the sweep, on denser input than hypothesis makes."""
    dice = random.Random(seed)

    def words(cuts: float) -> str:
        found = [dice.choice("abcd") for _ in range(dice.choice([1, 1, 1, 2, 2, 3]))]
        if dice.random() < cuts:
            found.append(dice.choice(["start", "close", "close+0", "close+2"]))
        if dice.random() < 0.1:
            found.append(dice.choice(["!x", "!y"]))
        return " ".join(dict.fromkeys(found))

    count, cuts, span = dice.randrange(1, 22), dice.choice([0, 0.1, 0.3, 0.6]), dice.choice([6, 12, 40, 100])
    numbers = [*range(1, count + 1)]
    dice.shuffle(numbers)
    lines = [
        line(dice.randrange(span), number, *[words(cuts) for _ in range(dice.choice([1, 1, 1, 2]))])
        for number in numbers
    ]
    max_gap = dice.choice([0, 2, 4, 7, None, 20])
    assert swept(lines, max_gap) == {fiber.log_ids for fiber in plain_fibers(lines, max_gap)}
    order = [*lines]
    if dice.random() < 0.2:
        order.sort()
    else:
        dice.shuffle(order)
    order += [dice.choice(lines) for _ in range(dice.randrange(3))]
    store = MemoryStore(max_gap)
    ids: dict[int, int] = {}
    for batch in batches_of(order, [dice.randrange(100) for _ in range(dice.randrange(6))]):
        store.write(batch)
        check(store, ids)


def test_random_batches_give_the_fibers_of_the_definition() -> None:
    for seed in range(300):
        random_case(seed)


def test_a_cut_within_a_timestamp_is_met_by_longer_uses() -> None:
    """Found by 40,000 random cases: a fiber that loses its end meets a start of the same timestamp."""
    random_case(29737)


def test_a_part_of_a_split_fiber_lasts_as_long_as_its_own_end() -> None:
    """The whole ended before a start within the timestamp to whose end the part lasts."""
    store = MemoryStore(GAP)
    found = [
        line(0, 1, "a b"), line(2, 2, "b close+2"), line(4, 3, "a start"), line(4, 4, "b"),
        line(1, 5, "a close"),
    ]  # fmt: skip
    store.write(found[:4])
    store.write(found[4:])
    assert sorted(sorted(log for log in store.logs_of(fiber)) for fiber in store.fibers) == [
        [1, 5], [2, 4], [3],
    ]  # fmt: skip


@pytest.mark.slow
def test_many_random_batches_give_the_fibers_of_the_definition(*, long_form: bool) -> None:
    for seed in range(1_000_000, 1_000_000 + (200_000 if long_form else 5_000)):
        random_case(seed)
