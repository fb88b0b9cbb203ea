"""Correlation in memory: the definition against a plain reading of it, and batches against the definition."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID

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


def swept(lines: Sequence[Line], max_gap: int | None = GAP) -> set[frozenset[UUID]]:
    """The fibers of the sweep, as sets of lines."""
    items = [
        line_item(line.second * SECOND, line.log_id, found) for line in lines for found in line.occurrences
    ]
    items.sort(key=lambda item: (item.position, item.match))
    fibers = sweep(items, None if max_gap is None else max_gap * SECOND)
    found = [frozenset(item.log_id for item in fiber.lines if item.log_id) for fiber in fibers]
    return set(found)


def seconds(lines: Sequence[Line], fibers: set[frozenset[UUID]]) -> list[list[int]]:
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


def check(store: MemoryStore, ids: dict[UUID, UUID]) -> None:
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
                and fiber.keys[key].position <= (store.lines[log_id].second * SECOND, log_id.int * 2)
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
    ids: dict[UUID, UUID] = {}
    for batch in batches:
        store.write(batch)
        check(store, ids)
