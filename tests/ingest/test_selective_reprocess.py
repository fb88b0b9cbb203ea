"""New rules for some of the stored logs: the others keep their fibers, and readers see whole generations."""

from datetime import timedelta

import pytest

from fiberstore import DatabaseError, LogRecord, VersionNotFoundError
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.ingest import Rules, parse_rules, reprocess
from fiberstore.ingest.storage import CorrelatingStorage
from fiberstore.testing.examples import NOON, uid

PATTERN = r"""
[fibers.{name}]
max_gap = "{max_gap}"
[[fibers.{name}.patterns]]
regex = 'key=(?P<key>\w+)'
"""
LINES = [
    (0, "api", "key=a"),
    (1, "web", "key=a"),
    (2, "web", "key=b"),
    (9, "web", "key=b"),
    (3, "db", "key=c"),
]
IS_API = Logs.c.source_id == "api"


def rules(max_gap: str) -> Rules:
    return parse_rules(PATTERN.format(name="request", max_gap=max_gap))


OLD, NEW, OTHER = rules("60s"), rules("500ms"), rules("400ms")


# Which logs are chosen is decided above the statements that the correlator has for each engine.
@pytest.fixture(params=["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)])
def unfilled(request: pytest.FixtureRequest) -> CorrelatingStorage:
    storage: CorrelatingStorage = request.getfixturevalue(f"{request.param}_storage")
    return storage


@pytest.fixture
def storage(unfilled: CorrelatingStorage) -> CorrelatingStorage:
    write(unfilled, LINES)
    return unfilled


def write(storage: CorrelatingStorage, lines: list[tuple[int, str, str]]) -> None:
    storage.correlate(OLD).write(
        LogRecord(
            timestamp=NOON + timedelta(seconds=second), source_id=source, raw_text=text, log_id=uid(second)
        )
        for second, source, text in lines
    )


def fibers(storage: CorrelatingStorage, version: int) -> set[frozenset[int]]:
    """Return the fibers of a version as sets of the seconds of their lines."""
    found = storage.fibers.where(Fibers.c.config_version == version).iter_records()
    return {
        frozenset((log.timestamp - NOON).seconds for log in storage.get_fiber_logs(fiber.fiber_id))
        for fiber in found
    }


def test_chosen_logs_get_new_fibers_and_the_others_keep_theirs(storage: CorrelatingStorage) -> None:
    report = reprocess(storage, NEW, logs=IS_API)
    assert fibers(storage, NEW.config_version) == {
        frozenset({0}),
        frozenset({1}),
        frozenset({2, 9}),
        frozenset({3}),
    }
    assert fibers(storage, OLD.config_version) == {frozenset({0, 1}), frozenset({2, 9}), frozenset({3})}
    assert (report.logs_read, report.fibers_kept, report.fibers_new) == (2, 2, 2)
    active = storage.versions.active()
    assert active is not None
    assert active.config_version == OLD.config_version


def test_kept_fibers_have_their_keys_attributes_and_times(storage: CorrelatingStorage) -> None:
    reprocess(storage, NEW, logs=IS_API)
    ((old,), (new,)) = (
        storage.fibers.where(Fibers.c.config_version == version, Fibers.c.keys["key"] == "b").iter_records()
        for version in (OLD.config_version, NEW.config_version)
    )
    assert new.fiber_id != old.fiber_id
    assert new.model_copy(update={"fiber_id": old.fiber_id, "config_version": old.config_version}) == old


SEVERAL = r"""
[fibers.request]
max_gap = "{max_gap}"
[[fibers.request.patterns]]
regex = 'key=(?P<key>\w+)'
[fibers.session]
max_gap = "1h"
[[fibers.session.patterns]]
regex = 'session=(?P<session>\w+)'
[fibers.block]
max_gap = "1h"
[[fibers.block.patterns]]
regex = 'blk_(?P<block>\w+)'
each = true
"""


def test_a_log_of_a_kept_and_of_another_fiber_is_in_both(unfilled: CorrelatingStorage) -> None:
    old, new = (parse_rules(SEVERAL.format(max_gap=max_gap)) for max_gap in ("60s", "61s"))
    texts = ["key=a blk_1", "key=a session=s", "session=s", "blk_1 blk_2", "blk_2"]
    unfilled.correlate(old).write(
        LogRecord(
            timestamp=NOON + timedelta(seconds=second),
            source_id="web" if second else "api",
            raw_text=text,
            log_id=uid(second),
        )
        for second, text in enumerate(texts)
    )
    for _run in range(2):
        reprocess(unfilled, new, logs=IS_API)
        expected = {frozenset({0, 1}), frozenset({1, 2}), frozenset({0, 3}), frozenset({3, 4})}
        assert fibers(unfilled, new.config_version) == expected
        assert unfilled.fibers.where(Fibers.c.config_version == new.config_version).count() == 4


def test_a_later_log_joins_a_kept_fiber(storage: CorrelatingStorage) -> None:
    reprocess(storage, NEW, logs=IS_API)
    late = LogRecord(
        timestamp=NOON + timedelta(seconds=9.25), source_id="web", raw_text="key=b", log_id=uid(99)
    )
    counts = storage.correlate(NEW).write([late])
    assert (counts.fibers_new, counts.memberships_new) == (0, 1)


def test_a_run_that_is_repeated_changes_nothing(storage: CorrelatingStorage) -> None:
    reprocess(storage, NEW, logs=IS_API)
    before = list(storage.fibers.order_by("oldest").iter_records())
    report = reprocess(storage, NEW, logs=IS_API)
    assert (report.fibers_kept, report.fibers_new, report.memberships_new) == (0, 0, 0)
    assert list(storage.fibers.order_by("oldest").iter_records()) == before


def test_another_choice_is_refused_unless_it_begins_anew(storage: CorrelatingStorage) -> None:
    reprocess(storage, NEW, logs=IS_API)
    with pytest.raises(DatabaseError, match="another choice of logs; begin anew with again=True"):
        reprocess(storage, NEW, logs=Logs.c.source_id == "web")
    reprocess(storage, NEW, logs=Logs.c.source_id == "web", again=True)
    assert fibers(storage, NEW.config_version) == {frozenset({n}) for n in (0, 1, 2, 9, 3)}


def test_a_choice_after_a_whole_run_is_refused(storage: CorrelatingStorage) -> None:
    reprocess(storage, NEW)
    with pytest.raises(DatabaseError, match="has fibers already"):
        reprocess(storage, NEW, logs=IS_API)


def test_a_whole_run_after_a_choice_is_refused_unless_it_begins_anew(storage: CorrelatingStorage) -> None:
    """It would pass over the logs that have kept their fibers, and say that it had read them."""
    reprocess(storage, NEW, logs=IS_API)
    with pytest.raises(DatabaseError, match=r"give the same choice again \(--where\), or begin anew with"):
        reprocess(storage, NEW)
    assert reprocess(storage, NEW, logs=IS_API).fibers_new == 0
    reprocess(storage, NEW, again=True)
    assert fibers(storage, NEW.config_version) == {frozenset({n}) for n in (0, 1, 2, 9, 3)}


def test_a_whole_run_of_active_rules_after_a_choice_joins_what_has_no_fiber_yet(
    storage: CorrelatingStorage,
) -> None:
    storage.write_logs([LogRecord(timestamp=NOON, source_id="job", raw_text="key=d", log_id=uid(77))])
    reprocess(storage, NEW, logs=IS_API)
    storage.versions.activate(NEW.config_version)
    assert reprocess(storage, NEW).memberships_new == 1


def test_the_fibers_to_keep_may_be_of_any_version(storage: CorrelatingStorage) -> None:
    reprocess(storage, OTHER)
    reprocess(storage, NEW, logs=IS_API, from_version=OTHER.config_version)
    assert fibers(storage, NEW.config_version) == fibers(storage, OTHER.config_version)


@pytest.mark.parametrize("from_version", [4711, NEW.config_version])
def test_a_run_that_cannot_begin_anew_drops_nothing(storage: CorrelatingStorage, from_version: int) -> None:
    reprocess(storage, NEW)
    before = fibers(storage, NEW.config_version)
    with pytest.raises((VersionNotFoundError, ValueError)):
        reprocess(storage, NEW, logs=IS_API, from_version=from_version, again=True)
    assert fibers(storage, NEW.config_version) == before


def test_arguments_that_contradict_are_refused(storage: CorrelatingStorage) -> None:
    with pytest.raises(ValueError, match="give logs, too"):
        reprocess(storage, NEW, from_version=OLD.config_version)
    with pytest.raises(ValueError, match="change the rules, or give another from_version"):
        reprocess(storage, OLD, logs=IS_API)
    with pytest.raises(VersionNotFoundError):
        reprocess(storage, NEW, logs=IS_API, from_version=4711)
    with pytest.raises(DatabaseError, match="is the active one"):
        reprocess(storage, OLD, again=True)
    storage.versions.activate(None)
    storage.fibers.delete()
    with pytest.raises(DatabaseError, match="give from_version"):
        reprocess(storage, NEW, logs=IS_API)
