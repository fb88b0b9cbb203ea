"""Databases that earlier revisions have left are upgraded with their rows, or stay as they were."""

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from shutil import copytree
from uuid import UUID

import duckdb
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from fiberstore import DatabaseError, DuckDBStorage, FiberMembership, FiberRecord, StoredLog, doctor
from fiberstore.records import FiberKey
from fiberstore.sql import key_rows, migrate, revisions
from tests.support.factories import NOON, a_fiber, some_logs
from tests.support.parameters import parametrize_mostly_slow

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
REVISIONS = [script.revision for script in ScriptDirectory(str(ROOT / "migrations")).walk_revisions()][::-1]
MAX_VERSION = 2**64 - 1

AT = NOON + timedelta(microseconds=123456)
FIRST_TIME, LAST_TIME = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
LOGS = [
    StoredLog(
        log_id=UUID(id_), timestamp=time, source_id=source, raw_text=text,
        ingestion_time=NOON + timedelta(seconds=ingested_s), config_version=version,
    )
    for id_, time, source, text, ingested_s, version in [
        ("00000000-0000-0000-0000-000000000000", FIRST_TIME, "api", "", 1e-6, 0),
        ("018f3406-9e00-7001-9bc3-41a4b42618a5", AT, "api",
         "GET /cart 200 🧵 \"it's\" \\ tab\tend", 1, MAX_VERSION),
        ("018f3406-9e00-7001-9bc3-41a4b42618a6", AT, "Größe", "the same moment, the next id", 1, 1),
        ("ffffffff-ffff-ffff-ffff-ffffffffffff", LAST_TIME, "worker", "the last", 2, 1),
    ]
]  # fmt: skip
FIRST, SECOND, THIRD, NOT_STORED = (UUID(f"018f3406-9e00-7001-9bc3-00000000000{n}") for n in (1, 2, 3, 9))
REQUESTS = [
    FiberRecord(
        fiber_id=FIRST, fiber_type="request", config_version=MAX_VERSION,
        attributes={"n": 17, "user": "Zoë", "deep": [[None, 1.5, True]]},
        first_activity=AT, last_activity=AT,
    ),
    FiberRecord(
        fiber_id=SECOND, fiber_type="request", config_version=1, attributes=None, closed=True,
        first_activity=AT, last_activity=NOON + timedelta(hours=1),
    ),
]  # fmt: skip
LOGIN = FiberRecord(
    fiber_id=THIRD, fiber_type="login", config_version=1, attributes=10**23, closed=True,
    first_activity=NOON, last_activity=NOON,
)  # fmt: skip


def build(revision: str, db_file: Path) -> None:
    with duckdb.connect(db_file) as connection:
        connection.execute((GOLDEN / f"{revision}.sql").read_text())


def definitions(db_file: Path) -> list[tuple[str]]:
    with duckdb.connect(db_file, read_only=True) as connection:
        return connection.execute(
            "SELECT sql FROM duckdb_tables() UNION ALL SELECT sql FROM duckdb_indexes() ORDER BY ALL"
        ).fetchall()


def assert_old_rows(storage: DuckDBStorage) -> None:
    assert storage.query_logs_by_time(FIRST_TIME, LAST_TIME) == LOGS
    assert [storage.get_log(log.log_id) for log in LOGS] == LOGS
    assert storage.query_fibers_by_type("request") == REQUESTS
    assert storage.get_fiber(THIRD) == LOGIN
    assert storage.get_fiber_logs(FIRST) == LOGS[1:3]
    assert storage.get_log_fibers(LOGS[2].log_id) == [FIRST, SECOND]
    assert storage.get_log_fibers(UUID("018f3406-9e00-7001-9bc3-ffffffffffff")) == [NOT_STORED]


# The first goes through every migration.
of_each_revision = parametrize_mostly_slow("revision", REVISIONS)


@pytest.fixture
def golden(revision: str, db_file: Path) -> Path:
    """A database at an earlier revision, with rows."""
    build(revision, db_file)
    return db_file


def test_every_revision_has_its_golden_database() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.sql")) == sorted(REVISIONS)


@of_each_revision
def test_the_golden_database_is_what_the_migrations_build(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(revision, tmp_path / "golden.duckdb")
    monkeypatch.setenv("FIBERSTORE_URL", str(tmp_path / "migrated.duckdb"))
    command.upgrade(Config(ROOT / "alembic.ini"), revision)
    assert definitions(tmp_path / "golden.duckdb") == definitions(tmp_path / "migrated.duckdb")


def test_keys_of_a_golden_database_are_still_there(db_file: Path) -> None:
    build("0004", db_file)
    with DuckDBStorage(db_file) as storage, storage.transaction() as unit:
        assert key_rows.keys_of(unit.session, [FIRST, SECOND]) == [
            FiberKey(
                fiber_id=FIRST, name="user", value="Zoë", first_timestamp=AT,
                first_log_id=LOGS[1].log_id, starts=True,
            )
        ]  # fmt: skip


@of_each_revision
def test_a_golden_database_is_upgraded_read_and_written(golden: Path) -> None:
    with DuckDBStorage(golden) as storage:
        storage.init_schema()
        assert migrate.differences(storage.engine) == []
        assert_old_rows(storage)
        new, fiber = some_logs(3), a_fiber(last_activity=NOON + timedelta(minutes=1))
        assert storage.write_logs([*new, *LOGS]) == 3
        storage.write_fiber(fiber)
        storage.update_fiber(LOGIN.model_copy(update={"fiber_type": "logout"}))
        storage.write_memberships(
            FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1) for log in new
        )
    with DuckDBStorage(golden) as storage:
        assert [log.log_id for log in storage.get_fiber_logs(fiber.fiber_id)] == [log.log_id for log in new]
        assert storage.query_fibers_by_type("login") == []
        assert [fiber.fiber_id for fiber in storage.query_fibers_by_type("logout")] == [THIRD]
        assert [finding for finding in doctor.examine(storage) if finding.is_problem] == []


# ---------------------------------------------------------------- an upgrade that goes wrong


NEXT = """
import sys
import sqlalchemy as sa
from alembic import op
revision, down_revision, rewrites_data = "9000", "0005", {rewrites_data}

def upgrade():
    op.drop_index("idx_fibers_type", "fibers")
    op.add_column("fibers", sa.Column("note", sa.String(), server_default="new"))
    op.create_index("idx_fibers_type", "fibers", ["fiber_type"])
    op.execute("UPDATE raw_logs SET raw_text = 'rewritten'")
    {then}
"""
UPGRADE = """
import sys
from pathlib import Path
from fiberstore import DuckDBStorage
from fiberstore.sql import revisions
revisions.migrations = lambda: Path(sys.argv[2])
DuckDBStorage(sys.argv[1]).init_schema()
"""


@pytest.fixture
def with_next(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of migrations with one more, which changes every log."""

    def with_next(*, rewrites_data: bool, then: str = "") -> Path:
        folder = copytree(ROOT / "migrations", tmp_path / "next" / "migrations")
        (folder / "versions" / "9000_next.py").write_text(NEXT.format(rewrites_data=rewrites_data, then=then))
        return folder

    return with_next


def backups(db_file: Path) -> list[Path]:
    return list(db_file.parent.glob(f"{db_file.name}.before-*"))


@pytest.mark.slow
def test_an_upgrade_that_is_killed_half_way_leaves_the_revision_it_found(
    db_file: Path, with_next: Callable[..., Path]
) -> None:
    build("0001", db_file)
    before = definitions(db_file)
    folder = with_next(rewrites_data=False, then="print('half', flush=True); sys.stdin.read()")
    upgrade = subprocess.Popen(
        [sys.executable, "-c", UPGRADE, str(db_file), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert upgrade.stdout is not None
    assert upgrade.stdout.readline() == "half\n"
    upgrade.send_signal(signal.SIGKILL)
    upgrade.communicate()
    assert definitions(db_file) == before
    with DuckDBStorage(db_file) as storage:
        assert_old_rows(storage)
        storage.init_schema()
        assert migrate.differences(storage.engine) == []


def test_a_backup_is_taken_before_an_upgrade_that_rewrites_data(
    db_file: Path, with_next: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build("0001", db_file)
    folder = with_next(rewrites_data=True)
    with monkeypatch.context() as patch, DuckDBStorage(db_file) as storage:
        patch.setattr(revisions, "migrations", lambda: folder)
        storage.init_schema()
        storage.init_schema()
        found = storage.get_log(LOGS[0].log_id)
        assert found is not None
        assert found.raw_text == "rewritten"
    (copy,) = backups(db_file)
    assert copy.name.startswith("store.duckdb.before-9000-2")
    with DuckDBStorage(copy) as storage:
        assert_old_rows(storage)
        storage.init_schema()


@pytest.mark.slow
def test_the_alembic_command_takes_the_backup_too_and_only_when_it_moves(
    db_file: Path, with_next: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build("0001", db_file)
    folder = with_next(rewrites_data=True)
    monkeypatch.setattr(revisions, "migrations", lambda: folder)
    monkeypatch.setenv("FIBERSTORE_URL", str(db_file))
    config = Config(ROOT / "alembic.ini", stdout=StringIO())
    config.set_main_option("script_location", str(folder))
    command.current(config)
    assert backups(db_file) == []
    command.upgrade(config, "head")
    command.upgrade(config, "head")
    (copy,) = backups(db_file)
    monkeypatch.undo()
    with DuckDBStorage(copy) as storage:
        assert_old_rows(storage)


def test_without_a_backup_the_data_is_not_rewritten(
    db_file: Path, with_next: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build("0001", db_file)
    before = definitions(db_file)
    folder = with_next(rewrites_data=True)
    monkeypatch.setattr(revisions, "migrations", lambda: folder)
    with DuckDBStorage(f"duckdb:///{db_file}?enable_external_access=false") as storage:
        with pytest.raises(DatabaseError, match="disabled"):
            storage.init_schema()
        with storage.session() as session:
            assert migrate.current(session.connection()) == "0001"
    assert definitions(db_file) == before
    assert backups(db_file) == []


@pytest.mark.parametrize("rewrites_data", [True, False])
def test_a_new_database_and_one_that_is_only_added_to_need_no_backup(
    db_file: Path, with_next: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, rewrites_data: bool
) -> None:
    folder = with_next(rewrites_data=rewrites_data)
    if not rewrites_data:
        build("0001", db_file)
    monkeypatch.setattr(revisions, "migrations", lambda: folder)
    with DuckDBStorage(db_file) as storage:
        storage.init_schema()
        assert [column["name"] for column in sa.inspect(storage.engine).get_columns("fibers")][-1] == "note"
    assert backups(db_file) == []
