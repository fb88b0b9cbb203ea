"""A copy holds what its source holds, and says so; whatever it met on its way.

As a program, ``python -m tests.exchange.test_copying SOURCE DESTINATION``, it is the victim of a kill.
"""

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings

from fiberstore import (
    Base,
    CheckpointError,
    CheckpointMove,
    DuckDBStorage,
    FiberMembership,
    FiberRecord,
    Fibers,
    Logs,
    StoredLog,
    config_version,
    copy_store,
)
from fiberstore.contract.lifecycle import LifecycleStorage
from fiberstore.copying.checksums import COPY_PREFIX
from fiberstore.copying.copy import Copied, TableDifference
from fiberstore.sql.models import EndedFiber
from fiberstore.testing.examples import (
    ATTRIBUTES,
    BEGIN_OF_TIME,
    END_OF_TIME,
    IDS,
    IN_UTC,
    NOON,
    TEXTS,
    fiber,
    log,
    member,
    nested,
    stored,
    uid,
)
from fiberstore.testing.keys import key
from tests.contract.test_lifecycle_oracle import content, fiber_lists, log_lists, membership_lists
from tests.support.databases import empty
from tests.support.oracle import MemoryStorage
from tests.support.parameters import parametrize_mostly_slow

Change: TypeAlias = Callable[[DuckDBStorage], object]
TABLES = tuple(sorted(Base.metadata.tables))


def rows_of(storage: DuckDBStorage) -> dict[str, set[tuple[str, ...]]]:
    """Return every row of every table; attributes by their JSON, and without the progress of copies."""
    with storage.engine.connect() as connection:
        rows = {
            name: {tuple(map(repr, row)) for row in connection.execute(sa.select(table))}
            for name, table in Base.metadata.tables.items()
        }
    rows["fiber_checkpoints"] = {row for row in rows["fiber_checkpoints"] if COPY_PREFIX not in str(row[0])}
    return rows


def progress_of(storage: LifecycleStorage) -> list[str]:
    return [row.value for row in storage.checkpoints.all() if row.name.startswith(COPY_PREFIX)]


def fill(storage: DuckDBStorage) -> None:
    """Store something of every kind: logs of one time, too, and what was pinned, merged and activated."""
    storage.write_logs(
        [
            *(log(number, 0, text=text) for number, text in enumerate(TEXTS)),
            *(log(100 + number, when) for number, when in enumerate(IN_UTC.values())),
            *(log(id_.int, 5, text=str(id_)) for id_ in IDS[4:]),
            stored(300, 2**64 - 1, ingested=BEGIN_OF_TIME),
            stored(301, 2**63, ingested=END_OF_TIME),
        ]
    )
    values = (*(value for value in ATTRIBUTES if "long" not in repr(value)), nested(100))
    storage.write_fibers(
        [
            *(fiber(n, attributes=value, closed=n % 2 == 0) for n, value in enumerate(values)),
            *(fiber(200 + n, text, config_version=2**64 - 1) for n, text in enumerate(TEXTS[::5])),
        ]
    )
    storage.write_memberships([member(n % 50, n % 30, n) for n in range(150)])
    storage.write_memberships([member(10**6, 10**6)])  # of neither a log nor a fiber
    storage.write_keys(
        [
            *(
                key(n % 30, f"{n % 3}é+", text, n, n or None, starts=n % 2 == 0)
                for n, text in enumerate(TEXTS)
            ),
            *(key(4, "shared", text, 1) for text in TEXTS[:3]),
            key(3, "shared", TEXTS[0], 0, 9),
        ]
    )
    storage.merge_fibers({uid(3): uid(4)})
    storage.merge_fibers({uid(4): uid(5), uid(6): uid(5)})
    storage.fibers.where(Fibers.c.fiber_id.in_([uid(5), uid(7)])).pin()
    with storage.transaction() as transaction:
        transaction.session.add(EndedFiber(fiber_id=uid(8), timestamp=NOON, before_log_id=uid(9)))
        transaction.session.add(EndedFiber(fiber_id=uid(9), timestamp=NOON))
    storage.logs.where(Logs.c.log_id.in_([uid(1)])).pin()
    for rules in ("", "é", "rules"):
        storage.versions.register(rules, parent=2**64 - 1 if rules else None)
    storage.versions.activate(3)  # known by its fibers, without its content
    storage.versions.activate(config_version("é".encode()))
    for name in ("é", "a%", COPY_PREFIX.strip()):
        storage.checkpoints.set(name, "")


# ---------------------------------------------------------------- what is copied


@pytest.mark.slow
def test_nothing_is_copied_as_nothing(source: DuckDBStorage, destination: DuckDBStorage) -> None:
    copied = copy_store(source, destination)
    assert copied.is_equal
    assert (copied.passes, copied.has_ended, copied.differing) == (1, True, [])
    assert copied.written == dict.fromkeys(copied.source, 0)
    assert set(copied.source) == set(TABLES)
    assert {held.rows for held in copied.source.values()} == {0}


@parametrize_mostly_slow("batch_rows", [7, 10_000])
def test_every_value_of_every_table_is_copied(
    source: DuckDBStorage, destination: DuckDBStorage, batch_rows: int
) -> None:
    fill(source)
    copied = copy_store(source, destination, batch_rows=batch_rows)
    assert copied.is_equal
    assert rows_of(destination) == rows_of(source)
    assert {name: held.rows for name, held in copied.source.items()} == {
        name: len(rows) for name, rows in rows_of(source).items()
    }
    assert copied.written == {name: held.rows for name, held in copied.destination.items()}
    assert min(copied.written.values()) > 0
    assert destination.resolve_fibers([uid(3)]) == {uid(3): uid(5)}


@pytest.mark.slow
def test_a_copy_of_a_copy_is_equal_and_has_no_progress_of_the_first(
    source: DuckDBStorage, destination: DuckDBStorage, store_file: Path
) -> None:
    fill(source)
    copy_store(source, destination, batch_rows=20)
    assert len(progress_of(destination)) == 1
    with DuckDBStorage(store_file) as third:
        assert copy_store(destination, third, batch_rows=20).is_equal
        assert rows_of(third) == rows_of(source)
        assert len(progress_of(third)) == 1


@pytest.mark.slow
def test_a_copy_that_is_run_twice_writes_nothing_more(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    fill(source)
    first = copy_store(source, destination, batch_rows=20)
    progress = progress_of(destination)
    again = copy_store(source, destination, batch_rows=20)
    assert again.written == dict.fromkeys(again.source, 0)
    assert (again.passes, again.source, again.destination) == (1, first.source, first.destination)
    assert progress_of(destination) == progress


@pytest.mark.slow
def test_rows_of_each_step_are_told(source: DuckDBStorage, destination: DuckDBStorage) -> None:
    fill(source)
    told: list[tuple[str, int]] = []
    copied = copy_store(source, destination, batch_rows=10, on_rows=lambda *step: told.append(step))
    rows = copied.source["raw_logs"].rows
    read = sum(number for step, number in told if step == "copy raw_logs")
    assert rows <= read <= rows + 10  # the last page is read again
    assert max(number for step, number in told if step == "copy raw_logs") == 10
    assert sum(number for step, number in told if step == "check raw_logs") == 2 * rows
    assert {step for step, _ in told} == {f"{what} {table}" for what in ("copy", "check") for table in TABLES}


# ---------------------------------------------------------------- going on


class StoppedError(Exception):
    pass


def stop_and_go_on(source: DuckDBStorage, destination: DuckDBStorage, told: int) -> None:
    """Let a copy fail after it has told so many steps of its progress, and run it again."""
    empty(destination.engine)
    steps = iter(range(told))

    def stop(_step: str, _rows: int) -> None:
        if next(steps, None) is None:
            raise StoppedError

    with pytest.raises(StoppedError):
        copy_store(source, destination, batch_rows=40, on_rows=stop)
    had = destination.logs.count()
    assert had == min(40 * (told + 1), source.logs.count())
    copied = copy_store(source, destination, batch_rows=40)
    assert copied.is_equal
    assert copied.written["raw_logs"] == copied.source["raw_logs"].rows - had
    assert rows_of(destination) == rows_of(source)


@parametrize_mostly_slow("told", [0, 1, 6])
def test_a_copy_that_fails_goes_on_from_there(
    source: DuckDBStorage, destination: DuckDBStorage, told: int
) -> None:
    fill(source)
    stop_and_go_on(source, destination, told)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_copy_that_fails_after_any_batch_goes_on_from_there(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    fill(source)
    steps: list[str] = []
    copy_store(source, destination, batch_rows=40, on_rows=lambda step, _rows: steps.append(step))
    for told in range(len(steps)):
        stop_and_go_on(source, destination, told)


@pytest.mark.slow
def test_a_copy_goes_on_though_the_newest_log_it_knew_is_deleted(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    source.write_logs([log(number) for number in range(10)])
    copy_store(source, destination, batch_rows=4)
    source.logs.where(Logs.c.log_id.in_([uid(9)])).delete()
    source.write_logs([log(10)])
    copied = copy_store(source, destination, batch_rows=4)
    assert copied.written["raw_logs"] == 1
    assert copied.differing == ["raw_logs"]  # what is deleted in the source stays
    assert destination.get_log(uid(9)) is not None


@pytest.mark.slow
def test_a_copy_goes_on_though_the_newest_log_is_deleted_meanwhile(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    source.write_logs([log(number) for number in range(10)])

    def on_rows(step: str, _rows: int) -> None:
        if step == "copy raw_logs" and source.logs.where(Logs.c.log_id.in_([uid(9)])).delete().logs:
            source.write_logs([log(10, -10)])

    copied = copy_store(source, destination, batch_rows=4, on_rows=on_rows)
    assert copied.is_equal
    assert copied.written["raw_logs"] == 10


@pytest.mark.slow
def test_a_copy_goes_on_though_the_newest_log_is_deleted_again_and_again(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    source.write_logs([log(number) for number in range(10)])
    newest = iter([9, 8, 7])

    def on_rows(step: str, _rows: int) -> None:
        number = next(newest, None) if step == "copy raw_logs" else None
        if number is not None:
            source.logs.where(Logs.c.log_id.in_([uid(number)])).delete()

    copied = copy_store(source, destination, batch_rows=4, on_rows=on_rows)
    assert copied.is_equal


@pytest.mark.slow
def test_what_was_copied_and_deleted_in_the_destination_is_copied_again(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    fill(source)
    copy_store(source, destination, batch_rows=20)
    destination.logs.where(Logs.c.source_id == "web").delete()
    destination.fibers.delete()
    assert copy_store(source, destination, batch_rows=20).is_equal
    assert rows_of(destination) == rows_of(source)


@pytest.mark.slow
def test_two_copies_at_once_are_told(source: DuckDBStorage, destination: DuckDBStorage) -> None:
    source.write_logs([log(number) for number in range(10)])

    def another(step: str, rows: int) -> None:
        if (step, rows) == ("copy raw_logs", 4):
            copy_store(source, destination, batch_rows=3)

    with pytest.raises(CheckpointError):
        copy_store(source, destination, batch_rows=4, on_rows=another)
    assert copy_store(source, destination).is_equal


# ---------------------------------------------------------------- a source that lives


def change_logs(storage: DuckDBStorage) -> None:
    storage.write_logs([log(500, -10), log(501, 10)])
    storage.write_memberships([member(500, 1), member(0, 29)])


def change_fibers(storage: DuckDBStorage) -> None:
    storage.fibers.where(Fibers.c.fiber_id.in_([uid(1)])).close()
    storage.upsert_fibers([fiber(2, "other", 1, first=NOON - timedelta(days=1)), fiber(8, attributes=True)])


def merge(storage: DuckDBStorage) -> None:
    storage.merge_fibers({uid(10): uid(11), uid(12): uid(11)})
    storage.merge_fibers({uid(11): uid(13)})


def switch(storage: DuckDBStorage) -> None:
    storage.versions.activate(config_version(b"rules"))
    storage.versions.register("more")
    storage.checkpoints.set("é", "further")


@pytest.mark.slow
@parametrize_mostly_slow("change", [change_logs, change_fibers, merge, switch])
def test_what_changes_in_the_source_after_it_was_copied_is_copied(
    source: DuckDBStorage, destination: DuckDBStorage, change: Callable[[DuckDBStorage], None]
) -> None:
    fill(source)
    copy_store(source, destination, batch_rows=10)
    change(source)
    copied = copy_store(source, destination, batch_rows=10)
    assert copied.is_equal
    assert 0 < sum(copied.written.values()) < 25
    assert rows_of(destination) == rows_of(source)


@pytest.mark.slow
def test_a_source_that_is_written_meanwhile_is_caught_up_with(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    fill(source)
    begun = threading.Event()

    def write() -> None:
        begun.wait()
        for number in range(1_000, 1_040):
            logs = [log(number, (-1) ** number * number), log(10_000 + number)]
            source.write_batch(
                logs=logs,
                fibers=[fiber(1_000 + number % 7, attributes=number)],
                memberships=[member(number, 1_000 + number % 7)],
                checkpoint=CheckpointMove("w", str(number - 1) if number > 1_000 else None, str(number)),
            )

    writer = threading.Thread(target=write)
    writer.start()

    def on_rows(step: str, _rows: int) -> None:
        begun.set()
        if step == "check raw_logs":  # from here on nobody writes
            writer.join()

    copied = copy_store(source, destination, batch_rows=20, max_passes=1_000, on_rows=on_rows)
    assert copied.is_equal
    assert rows_of(destination) == rows_of(source)
    assert source.logs.count() > 100


@pytest.mark.slow
def test_a_source_that_never_rests_is_told(source: DuckDBStorage, destination: DuckDBStorage) -> None:
    numbers = iter(range(10**6))

    def on_rows(step: str, _rows: int) -> None:
        if step in ("copy raw_logs", "copy fibers"):
            source.write_logs([log(next(numbers))])

    source.write_fibers([fiber(1)])
    copied = copy_store(source, destination, max_passes=3, on_rows=on_rows)
    assert (copied.passes, copied.has_ended, copied.differing) == (3, False, ["raw_logs"])
    assert (copied.source["raw_logs"].rows, copied.destination["raw_logs"].rows) == (5, 3)
    assert copy_store(source, destination).is_equal


# ---------------------------------------------------------------- fibers that end meanwhile


def while_copied(source: DuckDBStorage, destination: DuckDBStorage, *changes: tuple[str, Change]) -> Copied:
    """Copy a store, and change it once after each of these steps, in their order."""
    left = list(changes)

    def on_rows(step: str, _rows: int) -> None:
        while left and left[0][0] == step:
            left.pop(0)[1](source)

    copied = copy_store(source, destination, on_rows=on_rows)
    assert not left
    return copied


def one_fiber(storage: DuckDBStorage) -> None:
    storage.write_batch(logs=[log(1)], fibers=[fiber(1)], memberships=[member(1, 1)])
    storage.fibers.pin()
    storage.logs.pin()


def another(storage: DuckDBStorage) -> None:
    storage.write_batch(logs=[log(2)], fibers=[fiber(2)], memberships=[member(2, 2)])
    fibers_of(storage, 2).pin()


def merge_another(storage: DuckDBStorage) -> None:
    storage.merge_fibers({uid(2): uid(1)})


def delete_another(storage: DuckDBStorage) -> None:
    fibers_of(storage, 2).delete()


def fibers_of(storage: DuckDBStorage, *numbers: int) -> Fibers:
    return storage.fibers.where(Fibers.c.fiber_id.in_([uid(number) for number in numbers]))


def strays_of(storage: DuckDBStorage) -> list[FiberMembership]:
    """Return the memberships of no fiber."""
    stored = {record.fiber_id for record in storage.fibers.iter_records()}
    return [record for record in storage.memberships.iter_records() if record.fiber_id not in stored]


@pytest.mark.slow
@pytest.mark.parametrize("end", [merge_another, delete_another])
@pytest.mark.parametrize("stored_at", ["copy raw_logs", "copy fibers"])
@pytest.mark.parametrize("ended_at", ["copy fibers", "copy fiber_memberships", "copy fiber_pins"])
def test_a_fiber_that_comes_and_goes_while_it_is_copied_leaves_nothing_without_it(
    source: DuckDBStorage, destination: DuckDBStorage, stored_at: str, ended_at: str, end: Change
) -> None:
    one_fiber(source)
    copied = while_copied(source, destination, (stored_at, another), (ended_at, end))
    assert strays_of(destination) == []
    if end is merge_another:
        assert copied.is_equal
    assert copy_store(source, destination, mirror=True).is_equal
    assert rows_of(destination) == rows_of(source)


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [f"copy {table}" for table in TABLES])
def test_a_copy_that_is_stopped_leaves_no_membership_of_a_merged_fiber(
    source: DuckDBStorage, destination: DuckDBStorage, stopped_at: str
) -> None:
    one_fiber(source)
    another(source)
    copy_store(source, destination)
    merge_another(source)

    def stop(step: str, _rows: int) -> None:
        if step == stopped_at:
            raise StoppedError

    with suppress(StoppedError):  # some tables are empty
        copy_store(source, destination, on_rows=stop)
    assert strays_of(destination) == []
    fibers_of(source, 1).delete()  # and with it what tells where the other fiber has gone
    copy_store(source, destination)
    assert strays_of(destination) == []


@pytest.mark.slow
def test_a_merge_that_the_source_forgets_meanwhile_leaves_no_membership_of_its_fiber(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    one_fiber(source)
    another(source)
    copy_store(source, destination)
    merge_another(source)
    forgotten = ("copy fiber_memberships", lambda storage: fibers_of(storage, 1).delete())
    while_copied(source, destination, forgotten)
    assert strays_of(destination) == []


@pytest.mark.slow
def test_a_merge_of_a_fiber_whose_memberships_alone_were_copied_is_repeated(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    one_fiber(source)
    another(source)
    destination.write_memberships([member(2, 2)])  # as an older release has left it
    merge_another(source)
    copied = copy_store(source, destination)
    assert copied.is_equal
    assert copied.deleted["fiber_memberships"] == 1


@pytest.mark.slow
def test_a_merged_fiber_that_is_stored_again_is_copied_as_it_is(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    one_fiber(source)
    another(source)
    copy_store(source, destination)
    merge_another(source)
    source.write_batch(logs=[log(3)], fibers=[fiber(2)], memberships=[member(3, 2)])
    assert copy_store(source, destination).is_equal
    source.merge_fibers({uid(1): uid(2)})  # and is a survivor itself
    assert copy_store(source, destination).is_equal
    assert destination.resolve_fibers([uid(1), uid(2)]) == {uid(1): uid(2), uid(2): uid(2)}


@pytest.mark.slow
def test_a_membership_that_was_written_to_an_ended_fiber_stays_there(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    one_fiber(source)
    another(source)
    copy_store(source, destination)
    merge_another(source)
    source.write_memberships([member(1, 2)])
    assert copy_store(source, destination).is_equal
    assert strays_of(destination) == [member(1, 2)]


@pytest.mark.slow
def test_what_the_destination_alone_has_of_a_merged_fiber_goes_to_the_survivor(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    one_fiber(source)
    another(source)
    fibers_of(source, 1, 2).unpin()
    copy_store(source, destination)
    destination.write_batch(logs=[log(9)], fibers=[fiber(9)], memberships=[member(9, 2)])
    destination.merge_fibers({uid(9): uid(2)})
    fibers_of(destination, 2).pin()
    merge_another(source)
    copied = copy_store(source, destination)
    assert copied.differing == ["raw_logs", "fiber_memberships", "fiber_merges", "fiber_pins"]
    assert destination.get_log_fibers(uid(9)) == [uid(1)]
    assert destination.resolve_fibers([uid(9)]) == {uid(9): uid(1)}
    assert [row.fiber_id for row in destination.fibers.where(Fibers.c.pinned).iter_records()] == [uid(1)]


@pytest.mark.slow
def test_a_mirror_follows_a_merge_whose_survivor_was_deleted(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    one_fiber(source)
    another(source)
    copy_store(source, destination)
    merge_another(source)
    fibers_of(source, 1).delete()
    copied = copy_store(source, destination)
    assert (copied.is_equal, copied.has_ended) == (False, True)
    assert copied.differences["fibers"] == TableDifference(0, 2, 0, [str(uid(1)), str(uid(2))])
    assert copy_store(source, destination, mirror=True).is_equal
    assert rows_of(destination) == rows_of(source)


def delete_some(storage: DuckDBStorage) -> None:
    storage.logs.where(Logs.c.source_id == "web").delete()
    fibers_of(storage, 7, 8).delete()


def redact(storage: DuckDBStorage) -> None:
    assert storage.logs.redact("[a-z]")


def unpin(storage: DuckDBStorage) -> None:
    storage.logs.unpin()
    storage.fibers.unpin()


def prune(storage: DuckDBStorage) -> None:
    storage.prune(fibers=Fibers.c.last_activity < NOON + timedelta(seconds=9))


def forget(storage: DuckDBStorage) -> None:
    storage.checkpoints.delete("é")
    storage.versions.activate(None)
    storage.versions.drop(3)


def store_otherwise(storage: DuckDBStorage) -> None:
    storage.logs.where(Logs.c.log_id.in_([uid(1), uid(2)])).delete()
    storage.write_logs([log(1, -99), log(2, 99)])
    storage.memberships.delete()
    storage.write_memberships([member(5, 5, 77)])


@pytest.mark.slow
@parametrize_mostly_slow("change", [delete_some, redact, unpin, prune, forget, store_otherwise], quick=2)
def test_a_mirror_follows_whatever_was_taken_away(
    source: DuckDBStorage, destination: DuckDBStorage, change: Change
) -> None:
    fill(source)
    copy_store(source, destination, batch_rows=20)
    change(source)
    assert not copy_store(source, destination, batch_rows=20).is_equal
    assert copy_store(source, destination, batch_rows=20, mirror=True).is_equal
    assert rows_of(destination) == rows_of(source)


# ---------------------------------------------------------------- what differs


def other_log(storage: DuckDBStorage) -> None:
    storage.write_logs([stored(300, 7)])


def more_logs(storage: DuckDBStorage) -> None:
    storage.write_logs([log(900)])


def more_fibers(storage: DuckDBStorage) -> None:
    storage.write_fibers([fiber(900)])


def other_membership(storage: DuckDBStorage) -> None:
    storage.write_memberships([member(0, 0, 77)])


def more_of_a_life(storage: DuckDBStorage) -> None:
    storage.checkpoints.set("mine", "1")
    storage.versions.register("mine")
    storage.versions.activate(config_version(b"mine"))


@pytest.mark.slow
@parametrize_mostly_slow(
    ("change", "differing"),
    [
        (other_log, ["raw_logs"]),
        (more_logs, ["raw_logs"]),
        (more_fibers, ["fibers"]),
        (other_membership, ["fiber_memberships"]),
        (more_of_a_life, ["fiber_config_versions", "fiber_checkpoints"]),
    ],
)
def test_what_the_destination_holds_otherwise_stays_and_is_told(
    source: DuckDBStorage,
    destination: DuckDBStorage,
    change: Callable[[DuckDBStorage], None],
    differing: list[str],
) -> None:
    fill(source)
    change(destination)
    before = rows_of(destination)
    for _ in range(2):
        copied = copy_store(source, destination)
        assert not copied.is_equal
        assert (copied.differing, copied.has_ended) == (differing, True)
    after, wanted = rows_of(destination), rows_of(source)
    for name in TABLES:
        if name == "fiber_config_versions":  # of which one is active, that of the source
            assert destination.versions.active() == source.versions.active()
        elif name in differing:
            assert before[name] <= after[name]
        else:
            assert after[name] == wanted[name]
    assert {name: len(found.keys) for name, found in copied.differences.items()} == dict.fromkeys(
        differing, 1
    )
    mirrored = copy_store(source, destination, mirror=True)
    assert (mirrored.is_equal, mirrored.has_ended, mirrored.differences) == (True, True, {})
    assert sum(mirrored.deleted.values()) == len(differing)
    assert rows_of(destination) == wanted


def test_keys_of_a_fiber_are_made_those_of_the_source(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    for storage in (source, destination):
        storage.write_fibers([fiber(number) for number in (1, 2, 3)])
    source.write_fibers([fiber(4)])
    source.write_keys([key(1, "a", "x", 5), key(2, "a", "x"), key(4, "a", "x")])
    destination.write_fibers([fiber(9)])
    destination.write_keys([key(1, "a", "x", 4, 7), key(3, "a", "x"), key(9, "a", "x")])
    copied = copy_store(source, destination)
    assert (copied.written["fiber_keys"], copied.deleted["fiber_keys"]) == (3, 1)
    assert copied.differing == ["fibers", "fiber_keys"]
    assert copied.differences["fiber_keys"] == TableDifference(0, 1, 0, [f"{uid(9)} a x"])
    for storage in (source, destination):
        assert [*storage.get_keys(map(uid, (1, 2, 3, 4))).values()] == [
            [key(1, "a", "x", 5)],
            [key(2, "a", "x")],
            [],
            [key(4, "a", "x")],
        ]
    assert copy_store(source, destination, mirror=True).is_equal


@pytest.mark.slow
def test_rows_that_differ_are_counted_with_the_keys_of_the_first(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    fill(source)
    copy_store(source, destination)
    destination.write_logs([log(number) for number in range(900, 907)])
    destination.write_memberships([member(900, 1)])
    source.logs.where(Logs.c.log_id.in_([uid(301)])).redact("GET")
    found = copy_store(source, destination).differences
    assert found == {
        "raw_logs": TableDifference(0, 7, 1, [str(uid(number)) for number in (301, *range(900, 904))]),
        "fiber_memberships": TableDifference(0, 1, 0, [f"{uid(900)} {uid(1)}"]),
    }


@pytest.mark.slow
def test_fibers_that_the_destination_holds_otherwise_are_written_over(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    source.write_fibers([fiber(number, attributes=1) for number in range(4)])
    destination.write_fibers([fiber(0, attributes=True), fiber(1, attributes=1, closed=True)])
    assert copy_store(source, destination).written["fibers"] == 4
    assert list(destination.fibers.iter_records()) == list(source.fibers.iter_records())


@pytest.mark.slow
def test_one_database_is_not_copied_into_itself(db_file: Path) -> None:
    with DuckDBStorage(db_file) as storage, DuckDBStorage(db_file) as other:
        storage.init_schema()
        storage.write_logs([log(1)])
        for twin in (storage, other):
            with pytest.raises(ValueError, match="are the same database"):
                copy_store(storage, twin)
        assert storage.checkpoints.all() == []


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [{"batch_rows": 0}, {"max_passes": 0}, {"batch_rows": -1}])
def test_a_number_out_of_bounds_is_refused(
    source: DuckDBStorage, destination: DuckDBStorage, numbers: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        copy_store(source, destination, **numbers)  # type: ignore[arg-type]


# ---------------------------------------------------------------- whatever is stored


def check_copies(
    stores: tuple[DuckDBStorage, DuckDBStorage],
    steps: list[tuple[list[StoredLog], list[FiberRecord], list[FiberMembership]]],
) -> None:
    """Write into a source and an oracle, and copy after each step; the destination is as the oracle."""
    source, destination = stores
    empty(source.engine)
    empty(destination.engine)
    oracle = MemoryStorage()
    for logs, fibers, memberships in steps:
        storages: list[LifecycleStorage] = [source, oracle]
        for storage in storages:
            storage.write_batch(logs=logs, fibers=fibers, memberships=memberships)
        assert copy_store(source, destination, batch_rows=2).is_equal
        for name in [row.name for row in destination.checkpoints.all()]:
            assert name.startswith(COPY_PREFIX)
        found, expected = content(destination), content(oracle)
        assert found[:6] == expected[:6]


steps = st.lists(st.tuples(log_lists, fiber_lists, membership_lists), min_size=1, max_size=2)


@settings(deadline=None, max_examples=3, suppress_health_check=list(HealthCheck))
@given(steps)
def test_a_copy_is_what_the_oracle_says(
    two_stores: tuple[DuckDBStorage, DuckDBStorage],
    steps: list[tuple[list[StoredLog], list[FiberRecord], list[FiberMembership]]],
) -> None:
    check_copies(two_stores, steps)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(steps)
def test_many_copies_are_what_the_oracle_says(
    two_stores: tuple[DuckDBStorage, DuckDBStorage],
    steps: list[tuple[list[StoredLog], list[FiberRecord], list[FiberMembership]]],
) -> None:
    check_copies(two_stores, steps)


# ---------------------------------------------------------------- killed

KILLS = 3


def be_killed(source: str, destination: str) -> None:
    def on_rows(step: str, _rows: int) -> None:
        sys.stdout.write(f"{step}\n")
        sys.stdout.flush()

    with DuckDBStorage(source, read_only=True) as storage, DuckDBStorage(destination) as target:
        copy_store(storage, target, batch_rows=500, on_rows=on_rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_copy_that_is_killed_again_and_again_ends_equal(tmp_path: Path, long_form: bool) -> None:
    source, destination = tmp_path / "source.duckdb", tmp_path / "destination.duckdb"
    with DuckDBStorage(source) as storage:
        storage.init_schema()
        fill(storage)
        storage.write_logs([log(1_000 + number) for number in range(20_000)])
        storage.write_fibers([fiber(1_000 + number) for number in range(2_000)])
        storage.write_memberships([member(number, number % 2_000) for number in range(10_000)])
    with DuckDBStorage(destination) as target:
        target.init_schema()
    reached = []
    for _ in range(KILLS * (10 if long_form else 1)):
        command = [sys.executable, "-m", __name__, str(source), str(destination)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            for _ in range(9):
                victim.stdout.readline()
            victim.kill()
        with DuckDBStorage(destination) as target:
            reached.append(target.logs.count())
    assert reached == sorted(reached)
    assert 0 < reached[0] < reached[1]
    with DuckDBStorage(source, read_only=True) as storage, DuckDBStorage(destination) as target:
        copied = copy_store(storage, target)
        assert copied.is_equal
        assert copied.written["raw_logs"] == copied.source["raw_logs"].rows - reached[-1]
        assert rows_of(target) == rows_of(storage)


if __name__ == "__main__":
    be_killed(*sys.argv[1:])
