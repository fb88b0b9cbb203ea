"""A connection that ends at any point of a call: nothing is half, and the storage works afterwards."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from typing import NamedTuple

import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

from fiberstore import ConnectionLostError, PostgresStorage
from fiberstore.contract.lifecycle import CheckpointMove
from fiberstore.testing.examples import fiber, log, member, uid
from tests.support import cutting_proxy, postgres_server
from tests.support.cutting_proxy import Cut, Proxy
from tests.support.parameters import parametrize_mostly_slow
from tests.support.postgres_server import GIVEN, connections_in_use, idle_connections

CUT = "cut"  # the name of the sessions that are cut
# Fewer rows go in one statement, more by COPY in a transaction.
FEW, MANY = 20, 110


class Cutting(NamedTuple):
    """A storage behind a proxy, and a session that is not."""

    storage: PostgresStorage
    proxy: Proxy
    admin: psycopg.Connection[tuple[object, ...]]
    groups: Iterator[int]

    def number(self, sql: str) -> int:
        row = self.admin.execute(sql.encode()).fetchone()
        assert row is not None
        assert isinstance(row[0], int)
        return row[0]

    def wait_for_the_end(self) -> None:
        """Wait until there are no sessions but those of connections that are in the pools."""
        pooled = idle_connections(self.storage)
        sessions = "SELECT count(*) FROM pg_stat_activity, pg_sleep(0.005) WHERE application_name = "
        while self.number(f"{sessions}'{CUT}'") > pooled:
            pass

    def end_sessions(self) -> None:
        sql = "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity WHERE application_name = "
        self.number(f"{sql}'{CUT}'")

    def rows_of(self, group: int) -> int:
        """Return how many rows of all tables are there of one call."""
        names = ("raw_logs", "fibers", "fiber_memberships")
        id_ = f"'{uid(number_in(group, 0))}' AND '{uid(number_in(group + 1, -1))}'"
        keys = ("log_id", "fiber_id", "log_id")
        counts = (
            f"(SELECT count(*) FROM {name} WHERE {key} BETWEEN {id_})"
            for name, key in zip(names, keys, strict=True)
        )
        return self.number(f"SELECT {' + '.join(counts)}")


@pytest.fixture(scope="module")
def cutting(postgres_server_url: URL) -> Iterator[Cutting]:
    if GIVEN in os.environ:
        pytest.skip("the proxy is for a server with a socket in a folder")
    with postgres_server.database(postgres_server_url) as text:
        url = make_url(text)
        with (
            closing(psycopg.connect(postgres_server.plain(url), autocommit=True)) as admin,
            cutting_proxy.proxied(url.update_query_dict({"application_name": CUT})) as (proxy, cut_url),
            PostgresStorage(cut_url, pool_size=1) as storage,
        ):
            storage.init_schema()
            yield Cutting(storage, proxy, admin, count(1))


def number_in(group: int, row: int) -> int:
    return group * 1_000 + row


def write_logs(storage: PostgresStorage, group: int, rows: int) -> int:
    return storage.write_logs([log(number_in(group, row), 0) for row in range(rows)])


def write_memberships(storage: PostgresStorage, group: int) -> int:
    return storage.write_memberships([member(number_in(group, row), 1) for row in range(MANY)])


def write_fiber(storage: PostgresStorage, group: int) -> int:
    storage.write_fiber(fiber(number_in(group, 0)))
    return 1


def write_batch(storage: PostgresStorage, group: int, rows: int) -> int:
    numbers = [number_in(group, row) for row in range(rows)]
    storage.write_batch(
        logs=[log(number, 0) for number in numbers],
        fibers=[fiber(number) for number in numbers],
        memberships=[member(number, number) for number in numbers],
        checkpoint=CheckpointMove(f"group {group}", None, "written"),
    )
    return 3 * rows


def transaction(storage: PostgresStorage, group: int) -> int:
    with storage.transaction() as unit:
        unit.logs.write_logs([log(number_in(group, row), 0) for row in range(FEW)])
        unit.fibers.write_fiber(fiber(number_in(group, 0)))
        unit.memberships.write_memberships([member(number_in(group, row), 1) for row in range(FEW)])
    return 2 * FEW + 1


Write = Callable[[PostgresStorage, int], int]
"""Writes a group, and returns how many rows that is."""

WRITES: dict[str, Write] = {
    "a few logs": partial(write_logs, rows=FEW),
    "many logs": partial(write_logs, rows=MANY),
    "memberships": write_memberships,
    "a fiber": write_fiber,
    "a small batch": partial(write_batch, rows=FEW),
    "a unit of work": transaction,
}
LARGE_WRITES: dict[str, Write] = {"a large batch": partial(write_batch, rows=MANY)}


def terminating(cutting: Cutting) -> Cut:
    def terminate(said: bytes, _client: socket.socket, server: socket.socket) -> None:
        cutting.end_sessions()
        server.sendall(said)

    return terminate


def cut_everywhere(cutting: Cutting, write: Write, cut: Cut) -> None:
    """Cut the connection at each of the things that the client says in a call."""
    storage, proxy, groups = cutting.storage, cutting.proxy, cutting.groups
    storage.engine.dispose()  # what a call says depends on how often its connection has run the statements
    proxy.cut = cut
    write(storage, next(groups))
    proxy.said = 0
    whole = write(storage, next(groups))
    most = proxy.said
    for cut_at in range(1, most + 1):
        group = next(groups)
        proxy.said, proxy.cut_at = 0, cut_at
        lost = None
        try:
            write(storage, group)
        except ConnectionLostError as error:
            lost = error
        was_cut, proxy.cut_at = proxy.said >= cut_at, None
        assert was_cut == (lost is not None)
        if lost is None:  # the proxy has read more of a large write at once
            continue
        assert connections_in_use(storage) == 0
        other = next(groups)
        assert write(storage, other) == cutting.rows_of(other) == whole
        assert storage.fibers.count() >= 0
        cutting.wait_for_the_end()
        assert cutting.rows_of(group) in ((0, whole) if lost.may_be_stored else (0,))


@parametrize_mostly_slow("write", WRITES, quick=3)
@pytest.mark.parametrize("how", ["before", "after"])
def test_a_write_that_is_cut_off_is_whole_or_not_there(cutting: Cutting, write: str, how: str) -> None:
    cut_everywhere(cutting, WRITES[write], cutting_proxy.before if how == "before" else cutting_proxy.after)


@pytest.mark.slow
@pytest.mark.parametrize("write", [*WRITES, *LARGE_WRITES])
def test_a_write_that_the_server_ends_is_whole_or_not_there(cutting: Cutting, write: str) -> None:
    cut_everywhere(cutting, (WRITES | LARGE_WRITES)[write], terminating(cutting))


@pytest.mark.slow
@pytest.mark.parametrize("write", LARGE_WRITES)
@pytest.mark.parametrize("how", ["before", pytest.param("after", marks=pytest.mark.long)])
def test_a_large_write_that_is_cut_off_is_whole_or_not_there(cutting: Cutting, write: str, how: str) -> None:
    cut_everywhere(
        cutting, LARGE_WRITES[write], cutting_proxy.before if how == "before" else cutting_proxy.after
    )


@pytest.mark.parametrize("how", ["before", "by the server"])
def test_a_stream_whose_connection_ends_says_so(cutting: Cutting, how: str) -> None:
    storage, proxy = cutting.storage, cutting.proxy
    write_logs(storage, next(cutting.groups), FEW)
    proxy.cut = cutting_proxy.before if how == "before" else terminating(cutting)
    rows = storage.logs.iter_records()
    proxy.said, proxy.cut_at = 0, 4  # BEGIN, DECLARE, FETCH, and the next FETCH or what ends it
    with pytest.raises(ConnectionLostError):
        list(rows)
    proxy.cut_at = None
    assert connections_in_use(storage) == 0
    assert len(list(storage.logs.iter_records())) == storage.logs.count()
    cutting.wait_for_the_end()
