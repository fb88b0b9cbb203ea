"""Batches and ids that statements read as arrays in PostgreSQL's own format."""

from datetime import UTC, datetime
from uuid import UUID

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from fiberstore.contract.queries import Fibers
from fiberstore.contract.results import Upserted
from fiberstore.errors import DatabaseError, SerializationError
from fiberstore.postgresql import PostgresStorage, connection, kept_ids
from fiberstore.postgresql.arrays import array_of
from fiberstore.sql.arrow import joined_uuids, uuids
from fiberstore.sql.prepared import connection_of
from fiberstore.testing.examples import all_logs, fiber, log, member
from tests.support import postgres_server

NOON_US = 1_709_208_000_000_000
COLUMNS: dict[str, pa.Array] = {
    "uuid": uuids([1, 2**128 - 1]),
    "text": pa.array(["", "äö\U0001f600", None], pa.large_string()),
    "timestamptz": pa.array([NOON_US, None, -1], pa.timestamp("us", "UTC")),
    "boolean": pa.array([True, None, False]),
    "numeric": pa.array([0, 10_000, 2**64 - 1, None], pa.uint64()),
    "jsonb": pa.array(['{"a": [1, null]}', "null"], pa.large_string()),
}


@pytest.mark.parametrize("type_", COLUMNS)
@pytest.mark.parametrize("length", [0, None])
def test_a_server_reads_an_array_as_it_was(
    postgresql_storage: PostgresStorage, type_: str, length: int | None
) -> None:
    column = COLUMNS[type_].slice(0, length)
    sql = f"SELECT unnest($1::{type_}[])"
    with postgresql_storage._sessions.read(None) as session:
        rows = connection_of(session).fetch_rows(sql, [array_of(column, type_)])
        found = [row[0] for row in rows]
    if type_ == "timestamptz":
        column = column.view(pa.int64())
        found = [_as_us(time) for time in found]
    assert found == column.to_pylist()


def _as_us(time: object) -> object:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return round((time - epoch).total_seconds() * 1_000_000) if isinstance(time, datetime) else time


def test_ids_are_given_as_they_are_kept(postgresql_storage: PostgresStorage) -> None:
    ids = [UUID(int=number) for number in (3, 1, 2**127)]
    given = array_of(joined_uuids(b"".join(id_.bytes for id_ in ids)), "uuid")
    with postgresql_storage._sessions.read(None) as session:
        rows = connection_of(session).fetch_rows("SELECT array_send($1::uuid[])", [given])
        assert [*rows] == [(given,)]


def test_a_batch_of_any_size_is_inserted_whole_or_not_at_all(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgresql_storage.write_logs([log(3)])
    monkeypatch.setattr(connection, "MOST_BYTES", 200)
    assert postgresql_storage.write_logs([log(number) for number in range(20)]) == 19
    assert [stored.log_id.int for stored in all_logs(postgresql_storage)] == [*range(20)]
    postgresql_storage.write_memberships([member(0, 1)])
    monkeypatch.setattr(connection, "LARGEST_BYTES", 20)
    memberships = [member(number, 1) for number in range(20)]
    with pytest.raises(SerializationError, match="bytes at once; write them in batches of less than 1 GB"):
        postgresql_storage.write_memberships(memberships)
    assert postgresql_storage.memberships.count() == 1


def test_changes_of_any_size_are_made_in_parts(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, numbers = postgresql_storage, range(20)
    storage.write_logs([log(number, text="secret") for number in numbers])
    storage.write_fibers([fiber(number) for number in numbers])
    monkeypatch.setattr(connection, "MOST_BYTES", 200)
    monkeypatch.setattr(connection, "LARGEST_BYTES", 400)
    fibers = [fiber(number, ("login", "other")[number % 2]) for number in range(21)]
    assert storage.upsert_fibers(fibers) == Upserted(1, 20)
    assert [storage.get_fiber(each.fiber_id) for each in fibers] == fibers
    assert storage.logs.redact("secret", "***") == 20
    assert {stored.raw_text for stored in all_logs(storage)} == {"***"}


def test_who_changes_more_ids_than_fit_is_told_what_to_do(
    postgresql_storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_long = sa.select(sa.cast(sa.func.repeat("x", 2**30), sa.Uuid).label("id"))  # for the server as well
    with (
        postgresql_storage._sessions.read(None) as session,
        pytest.raises(DatabaseError, match=r"^requested length too large: .* condition on the time"),
        kept_ids.keep(session, too_long),
    ):
        pass
    postgresql_storage.write_logs([log(1), log(2)])
    monkeypatch.setattr(kept_ids, "LARGEST_BYTES", 50)
    with pytest.raises(DatabaseError, match=r"take 60 bytes: .* condition on the time"):
        postgresql_storage.logs.delete()
    assert postgresql_storage.logs.count() == 2


def test_nothing_takes_a_temporary_table(postgres_server_url: URL, postgres_url: str) -> None:
    url = make_url(postgres_url)
    with PostgresStorage(postgres_url) as storage:
        storage.init_schema()
    with (
        postgres_server.role(postgres_server_url, "password") as role,
        postgres_server.connected(url) as owner,
    ):
        owner.execute(
            f'REVOKE TEMPORARY ON DATABASE "{url.database}" FROM PUBLIC; '
            f"GRANT ALL ON SCHEMA public TO {role}; "
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode()
        )
        with PostgresStorage(url.set(username=role, password="password")) as storage:  # noqa: S106
            _take_many_ways(storage)
        owner.execute(f"DROP OWNED BY {role}".encode())


def _take_many_ways(storage: PostgresStorage) -> None:
    logs = [log(number) for number in range(300)]
    storage.write_logs(logs)
    assert storage.write_logs([*logs, log(300)]) == 1  # the others are stored
    storage.write_fibers([fiber(1), fiber(2), fiber(3)])
    storage.write_memberships([member(number, 1 + number % 2) for number in range(300)])
    assert storage.merge_fibers({fiber(2).fiber_id: fiber(1).fiber_id}).fibers == 1
    assert storage.fibers.copy_to(9) == 2
    assert storage.versions.drop(9).fibers == 2
    assert storage.prune(fibers=Fibers.c.fiber_id == fiber(1).fiber_id).logs == 300
    assert storage.fibers.delete().fibers == 1
    assert storage.logs.delete().logs == 1
