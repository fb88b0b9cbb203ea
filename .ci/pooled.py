"""Runs a command with the server of FIBERSTORE_TEST_POSTGRES_URL behind a PgBouncer that pools sessions."""

import os
import subprocess
import sys

from sqlalchemy.engine import make_url

from tests.postgresql.test_poolers import pooler
from tests.support.postgres_server import GIVEN

with pooler(make_url(os.environ[GIVEN]), "session") as url:
    sys.exit(subprocess.run(sys.argv[1:], env=os.environ | {GIVEN: url}, check=False).returncode)
