"""Fibers become part of others, whole, and the old ids lead on; compared with plain dicts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given

from fiberstore import DuckDBStorage, Fibers, Memberships, NotFoundError
from fiberstore.contract.results import Merged, Upserted
from fiberstore.records import FiberRecord
from fiberstore.sql.models import MergedFiber, PinnedFiber
from fiberstore.testing.examples import ATTRIBUTES, at, fiber, log, member, uid
from tests.support import databases

NUMBERS = range(6)
RESOLVED = [uid(number) for number in reversed(range(8))]


@pytest.fixture(scope="module")
def module_storage() -> Iterator[DuckDBStorage]:
    with DuckDBStorage(":memory:") as storage:
        storage.init_schema()
        yield storage


@pytest.fixture
def empty(module_storage: DuckDBStorage) -> DuckDBStorage:
    databases.empty(module_storage.engine)
    return module_storage


def content(storage: DuckDBStorage) -> tuple[object, ...]:
    """Return all that is stored: fibers, memberships, pins and merges."""
    with storage.session() as session:
        pins = set(session.scalars(sa.select(PinnedFiber.fiber_id)))
        merges = {row.fiber_id: row.survivor_id for row in session.scalars(sa.select(MergedFiber))}
    fibers = {row.fiber_id: row for row in storage.fibers.iter_records()}
    members = {(row.log_id, row.fiber_id): row.config_version for row in storage.memberships.iter_records()}
    return fibers, members, pins, merges, storage.resolve_fibers(RESOLVED)


@dataclass
class Model:
    fibers: dict[UUID, FiberRecord] = field(default_factory=dict)
    members: dict[tuple[UUID, UUID], int] = field(default_factory=dict)
    pins: set[UUID] = field(default_factory=set)
    merges: dict[UUID, UUID] = field(default_factory=dict)

    def merge(self, survivors: dict[UUID, UUID]) -> Merged | type[Exception]:
        if set(survivors) & set(survivors.values()):
            return ValueError
        for loser, survivor in survivors.items():
            if not {loser, survivor} <= self.fibers.keys():
                return NotFoundError
            if self.fibers[loser].config_version != self.fibers[survivor].config_version:
                return ValueError
        gained: dict[tuple[UUID, UUID], int] = {}
        for (log_id, fiber_id), version in self.members.items():
            pair = (log_id, survivors.get(fiber_id, fiber_id))
            if fiber_id in survivors and pair not in self.members:
                gained[pair] = min(version, gained.get(pair, version))
        self.members.update(gained)
        for survivor in survivors.values():
            self.merges.pop(survivor, None)
        for loser, survivor in survivors.items():
            self._end(loser, survivor)
        return Merged(len(survivors), len(gained))

    def _end(self, loser: UUID, survivor: UUID) -> None:
        lost, kept = self.fibers.pop(loser), self.fibers[survivor]
        self.fibers[survivor] = kept.model_copy(
            update={
                "first_activity": min(lost.first_activity, kept.first_activity),
                "last_activity": max(lost.last_activity, kept.last_activity),
            }
        )
        self.members = {pair: version for pair, version in self.members.items() if pair[1] != loser}
        if loser in self.pins:
            self.pins = self.pins - {loser} | {survivor}
        self.merges = {key: survivor if end == loser else end for key, end in self.merges.items()}
        self.merges[loser] = survivor

    def delete(self, fiber_id: UUID) -> None:
        if self.fibers.pop(fiber_id, None) is not None:
            self.members = {pair: version for pair, version in self.members.items() if pair[1] != fiber_id}
            self.pins.discard(fiber_id)
            self.merges = {key: end for key, end in self.merges.items() if fiber_id not in (key, end)}

    def content(self) -> tuple[object, ...]:
        places = {}
        for fiber_id in RESOLVED:
            place = fiber_id if fiber_id in self.fibers else self.merges.get(fiber_id)
            if place in self.fibers:
                places[fiber_id] = place
        return self.fibers, self.members, self.pins, self.merges, places


numbers = st.sampled_from(NUMBERS)
Step = Callable[[DuckDBStorage, Model], None]


@st.composite
def upserts(draw: st.DrawFn) -> Step:
    rows = [
        fiber(
            number,
            draw(st.sampled_from(["request", "login"])),
            draw(st.sampled_from(ATTRIBUTES[:4])),
            first=at(begin := draw(st.integers(0, 9))),
            last=at(begin + draw(st.integers(0, 9))),
            closed=draw(st.booleans()),
            config_version=draw(st.sampled_from([3, 3, 3, 4])),
        )
        for number in draw(st.lists(numbers, unique=True))
    ]

    def step(storage: DuckDBStorage, model: Model) -> None:
        changed = sum(row.fiber_id in model.fibers for row in rows)
        assert storage.upsert_fibers(rows) == Upserted(len(rows) - changed, changed)
        model.fibers.update({row.fiber_id: row for row in rows})

    return step


@st.composite
def joins(draw: st.DrawFn) -> Step:
    rows = [
        member(draw(numbers), draw(numbers), draw(st.integers(1, 3))) for _ in range(draw(st.integers(0, 6)))
    ]

    def step(storage: DuckDBStorage, model: Model) -> None:
        storage.write_memberships(rows)
        for row in rows:
            model.members.setdefault((row.log_id, row.fiber_id), row.config_version)

    return step


@st.composite
def pins(draw: st.DrawFn) -> Step:
    fiber_id = uid(draw(numbers))

    def step(storage: DuckDBStorage, model: Model) -> None:
        storage.fibers.where(Fibers.c.fiber_id == fiber_id).pin()
        model.pins |= {fiber_id} & model.fibers.keys()

    return step


@st.composite
def deletions(draw: st.DrawFn) -> Step:
    fiber_id = uid(draw(numbers))

    def step(storage: DuckDBStorage, model: Model) -> None:
        storage.fibers.where(Fibers.c.fiber_id == fiber_id).delete()
        model.delete(fiber_id)

    return step


@st.composite
def merges(draw: st.DrawFn) -> Step:
    pairs = draw(st.dictionaries(numbers, numbers, max_size=4))
    survivors = {uid(loser): uid(survivor) for loser, survivor in pairs.items()}

    def step(storage: DuckDBStorage, model: Model) -> None:
        expected = model.merge(survivors)
        if isinstance(expected, Merged):
            assert storage.merge_fibers(survivors) == expected
        else:
            with pytest.raises(expected):
                storage.merge_fibers(survivors)

    return step


@given(
    first=st.just([fiber(number) for number in NUMBERS]) | st.just([]),
    steps=st.lists(upserts() | joins() | pins() | deletions() | merges() | merges() | merges(), max_size=12),
)
def test_merges_do_what_plain_dicts_do(
    module_storage: DuckDBStorage, first: list[FiberRecord], steps: list[Step]
) -> None:
    databases.empty(module_storage.engine)
    module_storage.write_fibers(first)
    model = Model({row.fiber_id: row for row in first})
    for step in steps:
        step(module_storage, model)
        assert content(module_storage) == model.content()


def test_old_ids_lead_to_the_survivor_of_the_survivor(empty: DuckDBStorage) -> None:
    empty.write_fibers([fiber(number) for number in range(5)])
    empty.merge_fibers({uid(0): uid(1)})
    empty.merge_fibers({uid(1): uid(2), uid(3): uid(2)})
    asked = [uid(0), uid(9), uid(3), uid(4), uid(2), uid(1), uid(0)]
    assert list(empty.resolve_fibers(asked).items()) == [
        (uid(0), uid(2)), (uid(3), uid(2)), (uid(4), uid(4)), (uid(2), uid(2)), (uid(1), uid(2)),
    ]  # fmt: skip
    empty.fibers.where(Fibers.c.fiber_id == uid(2)).delete()
    assert empty.resolve_fibers(iter(asked)) == {uid(4): uid(4)}
    assert empty.resolve_fibers([]) == {}


def test_a_fiber_may_survive_the_one_it_was_part_of(empty: DuckDBStorage) -> None:
    empty.write_fibers([fiber(1), fiber(2)])
    empty.merge_fibers({uid(1): uid(2)})
    empty.write_fiber(fiber(1))
    assert empty.resolve_fibers([uid(1)]) == {uid(1): uid(1)}
    empty.merge_fibers({uid(2): uid(1)})
    assert empty.resolve_fibers([uid(1), uid(2)]) == {uid(1): uid(1), uid(2): uid(1)}


def test_the_survivor_has_the_logs_of_all_and_spans_them(empty: DuckDBStorage) -> None:
    empty.write_logs([log(number) for number in range(1, 5)])
    empty.write_fibers([fiber(2, closed=True, attributes={"a": 1}), fiber(1), fiber(4), fiber(5)])
    empty.write_memberships([member(1, 1), member(2, 1), member(2, 2), member(4, 4), member(2, 4)])
    assert empty.merge_fibers({uid(1): uid(2), uid(4): uid(2)}) == Merged(2, 2)
    assert [row.log_id.int for row in empty.get_fiber_logs(uid(2))] == [1, 2, 4]
    assert empty.get_fiber(uid(2)) == fiber(2, attributes={"a": 1}, closed=True, first=at(1), last=at(4))
    assert empty.memberships.where(Memberships.c.fiber_id.in_([uid(1), uid(4)])).count() == 0


@pytest.mark.parametrize(
    ("survivors", "error", "named"),
    [
        ({1: 9, 2: 3}, NotFoundError, uid(9)),
        ({2: 3, 9: 1}, NotFoundError, uid(9)),
        ({2: 3, 1: 4}, ValueError, uid(1)),
        ({1: 2, 2: 3}, ValueError, uid(1)),
        ({2: 3, 1: 1}, ValueError, uid(1)),
    ],
)
def test_what_cannot_be_merged_changes_nothing(
    empty: DuckDBStorage, survivors: dict[int, int], error: type[Exception], named: UUID
) -> None:
    empty.write_fibers([*map(fiber, (1, 2, 3)), fiber(4, config_version=4)])
    empty.write_memberships([member(1, 1), member(2, 2)])
    empty.fibers.pin()
    before = content(empty)
    wanted = {uid(loser): uid(survivor) for loser, survivor in survivors.items()}
    with pytest.raises(error, match=str(named)) as caught:
        empty.merge_fibers(wanted)
    if isinstance(caught.value, NotFoundError):
        assert caught.value.fiber_id == named
    with empty.transaction() as transaction, pytest.raises(error):
        transaction.fibers.merge_fibers(wanted)
    assert content(empty) == before


def test_ids_that_are_none_are_refused(empty: DuckDBStorage) -> None:
    empty.write_fiber(fiber(1))
    with pytest.raises(TypeError, match=r"uuid\.UUID"):
        empty.merge_fibers({uid(1): "2"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"uuid\.UUID"):
        empty.resolve_fibers(["1"])  # type: ignore[list-item]


def test_merges_of_one_transaction_build_on_one_another(empty: DuckDBStorage) -> None:
    with empty.transaction() as transaction:
        transaction.fibers.write_fibers([fiber(number) for number in (1, 2, 3)])
        transaction.memberships.write_memberships([member(1, 1)])
        transaction.fibers.merge_fibers({uid(1): uid(2)})
        transaction.fibers.upsert_fibers([fiber(2, "login"), fiber(3, "login")])
        transaction.fibers.merge_fibers({uid(2): uid(3)})
        assert transaction.fibers.resolve_fibers([uid(1), uid(2)]) == {uid(1): uid(3), uid(2): uid(3)}
    assert content(empty) == (
        {uid(3): fiber(3, "login", first=at(2), last=at(3))},
        {(uid(1), uid(3)): 3},
        set(),
        {uid(1): uid(3), uid(2): uid(3)},
        {uid(1): uid(3), uid(2): uid(3), uid(3): uid(3)},
    )
