"""Checkpoints on the command line."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.command_line import Run, assert_refused


@pytest.fixture(autouse=True)
def named_store(plain_environment: None, store_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store, which the environment names."""
    monkeypatch.setenv("FIBERSTORE_URL", str(store_file))


def test_checkpoints_are_set_got_listed_and_deleted(run: Run) -> None:
    assert run("checkpoint").out == "name\tupdated_at\tvalue\n"
    done = run("checkpoint", "set", "mail", '{"line": 7}')
    assert (done.code, done.out, done.err) == (0, 'mail: {"line": 7}\n', "")
    assert run("checkpoint", "set", "auth", "", "--json").objects == [{"name": "auth", "value": ""}]
    assert run("checkpoint", "get", "mail").out == '{"line": 7}\n'
    assert run("checkpoint", "get", "auth").out == "\n"
    result = run("checkpoint")
    assert [[row[0], row[2]] for row in result.rows] == [["auth", ""], ["mail", '{"line": 7}']]
    assert run("checkpoint", "list", "--json").objects == [
        {"name": row[0], "value": row[2], "updated_at": row[1]} for row in result.rows
    ]
    assert run("checkpoint", "get", "mail", "--json").objects == [
        {"name": "mail", "value": '{"line": 7}', "updated_at": result.rows[1][1]}
    ]

    deleted = run("checkpoint", "delete", "mail")
    assert (deleted.code, deleted.out) == (0, "mail deleted\n")
    again = re.fullmatch(r"fiberstore: fiberstore (.*) sets it again\n", deleted.err)
    assert again is not None
    assert_refused(
        run("checkpoint", "get", "mail"), "no checkpoint has the name 'mail'; fiberstore checkpoint"
    )
    nothing = run("checkpoint", "delete", "mail")
    assert (nothing.code, nothing.out) == (0, "nothing deleted; no checkpoint has the name 'mail'\n")
    assert run("checkpoint", "delete", "mail", "--json").objects == [{"deleted": False, "checkpoint": None}]
    run(*shlex.split(again[1]))
    (found,) = run("checkpoint", "delete", "mail", "--json").objects
    assert (found["deleted"], found["checkpoint"]["value"]) == (True, '{"line": 7}')


def test_a_deleted_value_that_looks_like_an_option_is_set_again(run: Run) -> None:
    run("checkpoint", "set", "--", "-mail", "-7")
    deleted = run("checkpoint", "delete", "--", "-mail")
    run(*shlex.split(deleted.err.removesuffix(" sets it again\n").removeprefix("fiberstore: fiberstore ")))
    assert run("checkpoint", "get", "--", "-mail").out == "-7\n"


@pytest.mark.slow
def test_a_checkpoint_moves_only_from_where_it_is_expected(run: Run) -> None:
    assert_refused(
        run("checkpoint", "set", "a", "2", "--expect", "1"), "checkpoint 'a': expected '1', found no value"
    )
    assert run("checkpoint", "set", "a", "1", "--expect-none").code == 0
    assert_refused(
        run("checkpoint", "set", "a", "2", "--expect-none"), "checkpoint 'a': expected no value, found '1'"
    )
    assert_refused(
        run("checkpoint", "set", "a", "2", "--expect", "0"), "checkpoint 'a': expected '0', found '1'"
    )
    assert run("checkpoint", "get", "a").out == "1\n"
    assert run("checkpoint", "set", "a", "2", "--expect", "1").code == 0
    assert run("checkpoint", "get", "a").out == "2\n"
    assert run("checkpoint", "set", "a", "", "--expect", "2").code == 0
    assert run("checkpoint", "set", "a", "3", "--expect", "").code == 0  # the empty text is a value
    assert_refused(
        run("checkpoint", "set", "a", "4", "--expect", ""), "checkpoint 'a': expected '', found '3'"
    )
    assert run("checkpoint", "get", "a").out == "3\n"


def test_a_value_is_exact_in_a_pipe_and_harmless_in_a_table(run: Run) -> None:
    evil = "a\tb\x1b[31m\nc"
    run("checkpoint", "set", evil, evil)
    assert run("checkpoint", "get", evil).out == f"{evil}\n"
    assert run("checkpoint").rows[0][::2] == [r"a\tb\x1b[31m\nc"] * 2
    assert "\x1b" not in run("checkpoint", "delete", evil).err
