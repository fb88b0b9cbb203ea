"""Write and read a store with the installed package."""

import os
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config

import fiberstore

assert "site-packages" in fiberstore.__file__, fiberstore.__file__
noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
log = fiberstore.LogRecord(timestamp=noon, source_id="smoke", raw_text="it works")
with fiberstore.DuckDBStorage(Path("smoke.duckdb")) as storage:
    storage.init_schema()
    assert storage.write_logs([log]) == 1
with fiberstore.DuckDBStorage(Path("smoke.duckdb"), read_only=True) as storage:
    found = storage.get_log(log.log_id)
    assert found is not None
    print("read back:", found)
said = ""
try:
    fiberstore.open_storage("postgresql+psycopg://localhost/smoke")
except fiberstore.DatabaseError as error:  # its driver is an extra
    said = str(error)
assert "pip install 'fiberstore[postgresql]'" in said, said
os.environ["FIBERSTORE_URL"] = "migrated.duckdb"
config = Config()
config.set_main_option("script_location", "fiberstore:migrations")
config.set_main_option("path_separator", "os")
command.upgrade(config, "head")
command.check(config)
