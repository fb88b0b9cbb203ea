"""Commands on a whole database: ``fiberstore db``, and which revision all others need."""

from pathlib import Path

import duckdb
import pytest
import sqlalchemy as sa

from fiberstore import DuckDBStorage
from tests.support.command_line import Run, assert_refused
from tests.support.parameters import parametrize_mostly_slow
from tests.support.small_store import row_counts


def test_db_upgrade_builds_the_tables(run: Run, db_file: Path) -> None:
    for _ in range(2):
        result = run("db", "upgrade", "--db", db_file)
        assert (result.code, result.out, result.err) == (0, "0005 (head)\n", "")
    assert row_counts(db_file) == (0, 0, 0)
    assert run("db", "current", "--db", db_file).out == "0005 (head)\n"
    assert run("db", "current", "--db", db_file, "--json").objects == [{"revision": "0005", "head": "0005"}]
    check = run("db", "check", "--db", db_file)
    assert (check.code, check.out) == (0, "ok\n")
    assert run("db", "check", "--db", db_file, "--json").objects == [{"ok": True, "differences": []}]


def test_db_check_names_what_differs(run: Run, store_file: Path) -> None:
    with DuckDBStorage(store_file) as storage, storage.engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_fibers_type"))
    result = run("db", "check", "--db", store_file)
    assert (result.code, result.err) == (1, "")
    assert result.out.count("\n") == 1
    assert "idx_fibers_type" in result.out
    result = run("db", "check", "--db", store_file, "--json")
    assert result.code == 1
    assert result.objects[0]["ok"] is False


def test_a_database_without_the_tables(run: Run, db_file: Path) -> None:
    duckdb.connect(str(db_file)).close()
    assert_refused(run("logs", "--db", db_file), "no tables of fiberstore", "fiberstore db upgrade")
    assert run("db", "current", "--db", db_file).out == "none (head is 0005)\n"
    assert run("db", "check", "--db", db_file).code == 1


def test_a_database_of_a_later_release(run: Run, store_file: Path, rules_file: Path) -> None:
    with DuckDBStorage(store_file) as storage, storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE fiberstore_alembic_version SET version_num = '9999'"))
    assert run("db", "current", "--db", store_file).out == "9999 (head is 0005)\n"
    assert_refused(run("db", "upgrade", "--db", store_file), "9999", "install the release")
    assert_refused(run("ingest", "--rules", rules_file, "--db", store_file), "9999")
    assert row_counts(store_file) == (0, 0, 0)


def test_db_backup_copies_a_store(run: Run, alone: Path, tmp_path: Path) -> None:
    result = run("db", "backup", "--db", alone, tmp_path / "copy.duckdb")
    assert result.code == 0
    assert result.out.startswith(f"{tmp_path / 'copy.duckdb'}: ")
    assert row_counts(tmp_path / "copy.duckdb") == row_counts(alone)


@parametrize_mostly_slow(
    "command", ["logs", "fibers", "stats", "show 0193", "db current", "db check", "doctor"], quick=2
)
def test_commands_that_read_have_no_access_to_the_outside(
    run: Run, alone: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    seen = []

    def look(storage: DuckDBStorage) -> None:
        with storage.session() as session:
            seen.append(session.scalar(sa.text("SELECT current_setting('enable_external_access')")))
        close(storage)

    close = DuckDBStorage.close
    monkeypatch.setattr(DuckDBStorage, "close", look)
    run(*command.split(), "--db", alone)
    assert seen == [False]
