"""``tail -f`` on a server that restarts."""

import json
import threading

import pytest

from fiberstore import PostgresStorage
from fiberstore.cli.commands.tail import ServerStore, TailFollower
from fiberstore.cli.options import LogFilter
from fiberstore.cli.render import LogLines
from fiberstore.errors import DatabaseError
from fiberstore.testing.examples import log, uid
from tests.support.command_line import runner
from tests.support.postgres_server import killable_server


@pytest.mark.slow
def test_tail_resumes_after_a_restart_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    def printed() -> list[str]:
        return [json.loads(line)["log_id"] for line in capsys.readouterr().out.splitlines()]

    with killable_server() as server, PostgresStorage(server.url) as storage:
        storage.init_schema()
        follower = TailFollower(LogFilter(), ServerStore(storage), LogLines("json"), threading.Event())
        follower.begin(0)
        storage.write_logs([log(1)])
        follower.look()
        assert printed() == [str(uid(1))]
        server.kill()
        for _ in range(3):
            follower.look()
        told = capsys.readouterr().err.splitlines()
        assert told
        assert all(line.endswith("; waiting") for line in told)
        assert len(set(told)) == len(told)
        server.start()
        storage.write_logs([log(2)])
        follower.look()
        assert printed() == [str(uid(2))]
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE raw_logs DROP COLUMN arrived")
        with pytest.raises(DatabaseError, match="arrived"):
            follower.look()  # which is no restart


@pytest.mark.slow
def test_a_tail_that_fails_says_how_to_resume(
    postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with PostgresStorage(postgres_url) as storage:
        storage.init_schema()
        storage.write_logs([log(1)])

        def look_without_tables(follower: TailFollower) -> None:
            with storage.engine.begin() as connection:
                connection.exec_driver_sql("DROP TABLE raw_logs")
            look(follower)

        look = TailFollower.look
        monkeypatch.setattr(TailFollower, "look", look_without_tables)
        result = runner(capsys)("tail", "-f", "-n", "0", "--db", postgres_url)
    assert result.code == 1
    position, error = result.err.splitlines()
    assert position.startswith("fiberstore: --position ")
    assert 'relation "raw_logs" does not exist' in error
