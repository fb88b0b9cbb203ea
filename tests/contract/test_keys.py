"""The table of keys: its hash, its rows, and what the migration makes of older stores."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st

from fiberstore.ids import key_hash
from fiberstore.opening import open_storage
from fiberstore.records import FiberKey
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql import key_rows
from fiberstore.sql.functions import KeyHash
from fiberstore.sql.models import KeyedFiber
from tests.support.factories import NOON, a_fiber

ROOT = Path(__file__).parents[2]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["1:a", ":", "", "é", "é", "🧵" * 40, "'", "\\", "%", "\n"]
)


def test_key_hash_is_60_bits_of_an_md5() -> None:
    assert key_hash("request", "X") == 855136914235353603  # the first 15 digits of the MD5 of "7:requestX"


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=20))
def test_key_hash_is_the_same_in_sql(any_storage: SqlStorage, pairs: list[tuple[str, str]]) -> None:
    with any_storage.session() as session:
        for name, value in pairs:
            as_text = [sa.cast(sa.literal(text), sa.String) for text in (name, value)]
            assert session.scalar(sa.select(KeyHash(*as_text))) == key_hash(name, value), (name, value)


def a_key(fiber: int, name: str, value: str, second: int, line: int | None = None) -> FiberKey:
    return FiberKey(
        fiber_id=UUID(int=fiber),
        name=name,
        value=value,
        first_timestamp=NOON + timedelta(seconds=second),
        first_log_id=None if line is None else UUID(int=line),
    )


@pytest.mark.parametrize("fillers", [0, 300])  # few rows and many go different ways on PostgreSQL
def test_bulk_keys_keep_the_earliest_beginning(any_storage: SqlStorage, fillers: int) -> None:
    more = [a_key(9, "n", str(number), 0) for number in range(fillers)]
    known = [a_key(1, "req", "a", 5), a_key(1, "req", "b", 5, 7), a_key(2, "req", "a", 5, 7)]
    with any_storage.transaction() as unit:
        assert key_rows.insert_keys(unit.session, [*known, *more]) == 3 + fillers
    with any_storage.transaction() as unit:
        found = key_rows.insert_keys(
            unit.session,
            [
                a_key(1, "req", "a", 5, 3),
                a_key(1, "req", "a", 6, 2),
                a_key(1, "req", "b", 6, 1),
                a_key(2, "req", "a", 4),
                a_key(2, "user", "a", 9, 9),
                *more,
            ],
        )
        assert found == 1
    with any_storage.transaction() as unit:
        assert key_rows.keys_of(unit.session, [UUID(int=2), UUID(int=1)]) == [
            a_key(1, "req", "a", 5, 3),
            a_key(1, "req", "b", 5, 7),
            a_key(2, "req", "a", 4),
            a_key(2, "user", "a", 9, 9),
        ]
        assert key_rows.delete_keys(unit.session, [UUID(int=1)]) == 2
        assert len(list(unit.session.scalars(sa.select(KeyedFiber)))) == 2 + fillers


ATTRIBUTES = [
    ({"req": ["a", "b"], "größe/~'": ["\\x:é"]}, [("req", "a"), ("req", "b"), ("größe/~'", "\\x:é")]),
    ({"req": "a"}, []),
    ({"req": ["a"], "n": [1]}, []),
    ({"req": ["a"], "deep": {"x": ["y"]}}, []),
    (["a"], []),
    ("a", []),
    (None, []),
    ({}, []),
]


@pytest.fixture(params=["db_file", "postgres_url"])
def target(request: pytest.FixtureRequest) -> str:
    """A database without tables."""
    return str(request.getfixturevalue(request.param))


def test_migration_fills_the_table_from_attributes(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERSTORE_URL", target)
    config = Config(ROOT / "alembic.ini")
    with open_storage(target) as storage:
        storage.init_schema()
        fibers = [
            a_fiber(fiber_id=UUID(int=n), attributes=value) for n, (value, _) in enumerate(ATTRIBUTES, 1)
        ]
        storage.write_fibers(fibers)
    command.downgrade(config, "0003")
    with open_storage(target) as storage:
        storage.init_schema()
        with storage.transaction() as unit:
            found = key_rows.keys_of(unit.session, [fiber.fiber_id for fiber in fibers])
            hashes = {(key.name, key.value): key.hash for key in unit.session.scalars(sa.select(KeyedFiber))}
    assert {(key.fiber_id.int, key.name, key.value) for key in found} == {
        (number, *key) for number, (_, keys) in enumerate(ATTRIBUTES, 1) for key in keys
    }
    assert {(key.first_timestamp, key.first_log_id, key.starts) for key in found} == {
        (fibers[0].first_activity, None, False)
    }
    assert all(hashed == key_hash(*key) for key, hashed in hashes.items())
