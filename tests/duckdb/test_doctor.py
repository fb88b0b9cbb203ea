"""Damage of a store is found, and repaired only where the repair can be proved."""

import gzip
import json
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from fiberstore import DatabaseError, DuckDBStorage, FiberKey, FiberMembership, FiberRecord, LogRecord, doctor
from fiberstore.cli import main
from tests.support.factories import NOON, a_fiber, some_logs

DATA = Path(__file__).parent / "data"


def member(log: LogRecord, fiber: FiberRecord) -> FiberMembership:
    return FiberMembership(log_id=log.log_id, fiber_id=fiber.fiber_id, config_version=1)


@pytest.fixture
def sound(storage: DuckDBStorage) -> DuckDBStorage:
    """A store in order: 1,100 logs, so that keys are looked up in several chunks, and their fiber."""
    logs = [
        log.model_copy(update={"source_id": f"source {number % 3}"})
        for number, log in enumerate(some_logs(1_100))
    ]
    storage.write_logs(logs)
    fiber = a_fiber(first_activity=logs[0].timestamp, last_activity=logs[-1].timestamp)
    other = a_fiber(fiber_type="login")
    storage.write_fiber(fiber)
    storage.write_fiber(other)
    storage.write_fiber(a_fiber(fiber_type="without logs"))
    storage.write_memberships(member(log, fiber) for log in logs)
    storage.write_memberships([member(logs[0], other)])
    return storage


def texts(storage: DuckDBStorage) -> list[str]:
    return [finding.text for finding in doctor.examine(storage)]


def run_sql(storage: DuckDBStorage, *statements: str) -> None:
    with storage.engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def index_settings(storage: DuckDBStorage) -> list[tuple[str, str]]:
    with storage.engine.connect() as connection:
        settings = "SELECT name, value FROM duckdb_settings() WHERE name LIKE 'index_scan_%' ORDER BY name"
        return [(row.name, row.value) for row in connection.execute(sa.text(settings))]


def test_nothing_is_wrong_with_a_sound_store_and_its_settings_stay(sound: DuckDBStorage) -> None:
    before = index_settings(sound)
    assert doctor.examine(sound) == []
    assert doctor.repair(sound) == []
    assert index_settings(sound) == before
    assert [name for name, _ in before] == ["index_scan_max_count", "index_scan_percentage"]


@pytest.fixture
def stale(db_file: Path) -> Path:
    """A file whose secondary indexes are empty.

    DuckDB 1.5.6 made it: 8 logs, fibers and memberships, each its own transaction, after a checkpoint;
    kill -9; open, ``SELECT count(*) FROM raw_logs``, close.
    """
    db_file.write_bytes(gzip.decompress((DATA / "stale-index.duckdb.gz").read_bytes()))
    return db_file


@pytest.mark.slow
def test_indexes_that_duckdb_1_has_emptied_are_found_and_built_anew(stale: Path) -> None:
    with DuckDBStorage(stale) as storage:
        storage.init_schema()
        assert texts(storage) == [
            f"index {index} does not find 8 rows"
            for index in (
                "idx_memberships_fiber on fiber_memberships",
                "idx_raw_logs_source on raw_logs",
                "idx_raw_logs_timestamp on raw_logs",
            )
        ]
        (fiber, *_) = storage.query_fibers_by_type("request")
        assert storage.get_fiber_logs(fiber.fiber_id) == []  # what is wrong with it
        assert doctor.repair(storage) == [
            f"index {index} is built anew"
            for index in (
                "idx_fiber_keys_hash",
                "idx_fibers_type",
                "idx_memberships_fiber",
                "idx_raw_logs_source",
                "idx_raw_logs_timestamp",
            )
        ]
        assert doctor.examine(storage) == []
        assert len(storage.get_fiber_logs(fiber.fiber_id)) == 1
        storage.write_fiber(a_fiber(fiber_type="login"))
        assert len(storage.query_fibers_by_type("request")) == 8  # this index was empty too, unnoticed


@pytest.mark.slow
def test_a_key_of_many_rows_is_looked_up_as_any_query_would(stale: Path) -> None:
    """DuckDB takes an index's answer up to 2,048 rows. Here it has 2,045 of a key that has more."""
    with DuckDBStorage(stale) as storage:
        storage.init_schema()
        run_sql(
            storage,
            "INSERT INTO raw_logs (log_id, timestamp, source_id, raw_text, config_version) "
            "SELECT uuid(), now(), (SELECT min(source_id) FROM raw_logs), '', 0 FROM range(2045)",
        )
        assert "index idx_raw_logs_source on raw_logs does not find 8 rows" in texts(storage)


@pytest.mark.slow
def test_two_that_look_at_once_leave_the_settings_alone(sound: DuckDBStorage) -> None:
    before, between, statements = index_settings(sound), [], []

    def note(_connection: object, _cursor: object, statement: str, *_arguments: object) -> None:
        statements.append(statement)
        if len(statements) == 5:
            between.extend([doctor.examine(sound), index_settings(sound)])

    event.listen(sound.engine, "before_cursor_execute", note)
    assert doctor.examine(sound) == []
    assert between == [[], before]
    assert not [statement for statement in statements if statement.startswith("SET")]


@pytest.mark.slow
def test_a_backup_of_a_store_with_broken_indexes_has_sound_ones(stale: Path, tmp_path: Path) -> None:
    with DuckDBStorage(stale) as storage:
        storage.init_schema()
        storage.backup(tmp_path / "copy.duckdb")
    with DuckDBStorage(tmp_path / "copy.duckdb") as copy:
        assert doctor.examine(copy) == []


def test_a_missing_index_is_built(sound: DuckDBStorage) -> None:
    run_sql(sound, "DROP INDEX idx_raw_logs_source")
    assert texts(sound) == ["index idx_raw_logs_source on raw_logs is missing"]
    doctor.repair(sound)
    assert doctor.examine(sound) == []


@pytest.mark.slow
def test_logs_outside_the_activity_of_their_fiber_widen_it(sound: DuckDBStorage) -> None:
    early, late, lone = a_fiber(), a_fiber(), a_fiber()
    logs = [log.model_copy(update={"log_id": uuid4()}) for log in some_logs(3)]
    for fiber in (early, late, lone):
        sound.write_fiber(
            fiber.model_copy(
                update={"first_activity": NOON + timedelta(1), "last_activity": NOON + timedelta(2)}
            )
        )
    sound.write_logs(
        [*logs, logs[0].model_copy(update={"log_id": uuid4(), "timestamp": NOON + timedelta(3)})]
    )
    sound.write_memberships([member(logs[1], early), member(logs[2], early), member(logs[2], late)])
    assert texts(sound) == ["2 fibers have logs outside their activity"]
    assert doctor.repair(sound) == ["the activity of 2 fibers is widened to that of their logs"]
    assert doctor.examine(sound) == []
    spans = []
    for fiber in (early, late, lone):
        found = sound.get_fiber(fiber.fiber_id)
        assert found is not None
        spans.append((found.first_activity, found.last_activity))
    assert spans == [
        (NOON + timedelta(seconds=1), NOON + timedelta(2)),
        (NOON + timedelta(seconds=2), NOON + timedelta(2)),
        (NOON + timedelta(1), NOON + timedelta(2)),
    ]


@pytest.mark.slow
def test_memberships_without_log_or_fiber_are_a_remark_and_stay(sound: DuckDBStorage) -> None:
    (log,) = some_logs(1)
    sound.write_memberships([member(log, a_fiber()), member(log, a_fiber())])
    findings = doctor.examine(sound)
    assert [(finding.text, finding.is_problem) for finding in findings] == [
        ("2 memberships have no log (it may come later)", False),
        ("2 memberships have no fiber (it may come later)", False),
    ]
    assert doctor.repair(sound) == []
    assert doctor.examine(sound) == findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("raw_logs SET timestamp = 'infinity' WHERE raw_text = 'line 7'", "1 rows of raw_logs have times"),
        ("raw_logs SET timestamp = '-infinity' WHERE raw_text = 'line 7'", "1 rows of raw_logs have times"),
        ("raw_logs SET ingestion_time = NULL WHERE raw_text = 'line 7'", "1 rows of raw_logs have times"),
        ("fibers SET last_activity = '12000-01-01 00:00:00+00'", "3 rows of fibers have times"),
        ("""fibers SET attributes = '{"n": NaN}'""", "3 rows of fibers have attributes that are not JSON"),
        (
            "fibers SET first_activity = last_activity + INTERVAL 1 DAY WHERE fiber_type = 'without logs'",
            "1 fibers end before they begin",
        ),
    ],
)
def test_rows_of_other_clients_that_make_no_sense_are_told_and_left_alone(
    sound: DuckDBStorage, statement: str, text: str
) -> None:
    run_sql(sound, f"UPDATE {statement}")
    before = [finding for finding in doctor.examine(sound) if text in finding.text]
    assert [(finding.is_problem, finding.is_repairable) for finding in before] == [(True, False)]
    doctor.repair(sound)
    assert before[0] in doctor.examine(sound)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil", ["DROP INDEX idx_fibers_type", "UPDATE fibers SET last_activity = first_activity"]
)
def test_repair_of_what_is_only_read_says_what_to_do(sound: DuckDBStorage, db_file: Path, spoil: str) -> None:
    run_sql(sound, spoil)
    sound.close()
    with DuckDBStorage(db_file, read_only=True) as storage:
        assert [finding.is_repairable for finding in doctor.examine(storage)] == [True]
        with pytest.raises(DatabaseError, match=r"Open the storage without read_only=True"):
            doctor.repair(storage)


@pytest.mark.slow
def test_a_log_without_an_end_widens_nothing(sound: DuckDBStorage) -> None:
    (fiber,) = sound.query_fibers_by_type("request")
    run_sql(sound, "UPDATE raw_logs SET timestamp = 'infinity' WHERE raw_text = 'line 7'")
    assert doctor.repair(sound) == []
    assert sound.get_fiber(fiber.fiber_id) == fiber


@pytest.mark.slow
def test_settings_of_the_application_come_back(db_file: Path) -> None:
    with DuckDBStorage(f"duckdb:///{db_file}?index_scan_max_count=7") as storage:
        storage.init_schema()
        storage.write_logs(some_logs(3))
        assert doctor.examine(storage) == []
        assert dict(index_settings(storage))["index_scan_max_count"] == "7"


@pytest.mark.slow
def test_repair_makes_no_new_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "doctor", "--repair", "--db", tmp_path / "typo.duckdb") == (1, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_schema_comes_first(sound: DuckDBStorage) -> None:
    run_sql(sound, "UPDATE fiberstore_alembic_version SET version_num = '9999'", "DROP INDEX idx_fibers_type")
    assert texts(sound) == ["the tables are at revision 9999, and this release expects 0005"]
    assert doctor.repair(sound) == []
    run_sql(sound, "UPDATE fiberstore_alembic_version SET version_num = '0005'",
            "ALTER TABLE fibers ALTER closed SET DEFAULT true")  # fmt: skip
    assert texts(sound) == ["column fibers.closed has default true, and should have false"]
    run_sql(sound, "DROP TABLE fiberstore_alembic_version")
    assert texts(sound) == ["the tables are missing; `fiberstore db upgrade` builds them"]


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0), capsys.readouterr().out


@pytest.mark.slow
def test_the_command_prints_what_it_found_and_repairs_only_when_asked(
    stale: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "db", "upgrade", "--db", stale) == (0, "0005 (head)\n")
    before = stale.read_bytes()
    code, out = command(capsys, "doctor", "--db", stale)
    assert code == 1
    assert out.splitlines()[1] == (
        "problem: index idx_raw_logs_source on raw_logs does not find 8 rows (--repair mends it)"
    )
    assert stale.read_bytes() == before
    code, out = command(capsys, "doctor", "--db", stale, "--json")
    assert (code, len(json.loads(out)["findings"]), json.loads(out)["repaired"]) == (1, 3, [])
    code, out = command(capsys, "doctor", "--db", stale, "--repair")
    assert (code, out.splitlines()[0]) == (0, "repaired: index idx_fiber_keys_hash is built anew")
    assert command(capsys, "doctor", "--db", stale) == (0, "ok\n")


def test_keys_that_are_wrong_are_found_and_those_that_can_be_are_mended(sound: DuckDBStorage) -> None:
    fiber = a_fiber()
    sound.write_fiber(fiber)
    sound.write_keys(
        FiberKey(fiber_id=fiber.fiber_id, name="a", value=value, first_timestamp=NOON) for value in "xyz"
    )
    copied = "SELECT uuid(), name, value, hash, first_timestamp, NULL, starts FROM fiber_keys"
    run_sql(
        sound,
        "UPDATE fiber_keys SET hash = hash + 1 WHERE value <> 'x'",
        f"INSERT INTO fiber_keys {copied}",  # of no fiber
    )
    assert texts(sound) == [
        "4 keys have a wrong hash, and are not found",
        "3 rows of fiber_keys have no fiber",
    ]
    assert sound.query_fibers_by_key("a", "y") == []
    assert doctor.repair(sound) == ["4 keys have their right hash"]
    assert sound.query_fibers_by_key("a", "y") == [fiber]
    run_sql(sound, "INSERT INTO fiber_keys SELECT * FROM fiber_keys")
    assert texts(sound) == ["6 keys of fiber_keys are there more than once"]
