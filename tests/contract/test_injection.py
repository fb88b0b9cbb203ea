r"""Text that tries to be something else stays text: stored, found by equality, and shown without effect.

What reaches a terminal may hold colours of the command's own and nothing else: no other escape sequence, no
control, no change of direction.
"""

import contextlib
import json
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from fiberstore import (
    AsyncDuckDBStorage,
    DuckDBStorage,
    Fiber,
    LogRepository,
    RawLog,
    Storage,
    config_version,
)
from fiberstore.cli import main
from fiberstore.contract.queries import Logs
from fiberstore.contract.results import Deleted, Upserted
from fiberstore.postgresql import PostgresStorage
from fiberstore.sql.connection import ARROW_TABLE
from fiberstore.testing.examples import all_logs, at, fiber, log, member, uid
from fiberstore.testing.filters import numbers
from tests.support.command_line import shown_on_a_terminal
from tests.support.parameters import parametrize_mostly_slow
from tests.support.sync_face import SyncFace, running_loop

# What would be code somewhere: SQL, JSON paths, patterns, formats, names of variables and files, paths.
CODE = [
    "'; DROP TABLE raw_logs; --", "' OR '1'='1",
    '"; DELETE FROM fibers; --', "x' UNION SELECT 1,2,3 --", "/* */",
    "1; ATTACH 'other.duckdb'", "COPY raw_logs TO 'x.csv'", "SELECT * FROM raw_logs", "raw_logs", "fibers",
    "fiberstore_arrow_batch", "batch", "self", "__name__", "connection", "sql", "x.parquet",
    "x.csv", "'x.json'",
    "read_csv('x.csv')", "read_text('/etc/passwd')", "getenv('HOME')", "duckdb_secrets()", "range(3)",
    "$.a", "$", "$[*]", "$..a", "/a/b", "->>", "*", "%", "_", "[a-z]*", "h?tp", "{a,b}", "\\", "\\'", "\\\\",
    "%s", "%d%n", "%(x)s", "{0}", "{x.__class__}", "{", "}", "{{}}", "${HOME}", "$(id)", "`id`", "~", "~root",
    ":name", ":1", "$1", "?", "?1", "@x", "#{x}", "<script>", "&amp;", "NULL", "null", "None", "true", "nan",
    "DEFAULT", "now()", "infinity", "0", "1e5", "'", '"', "''", '""', "$$", "$$x$$", "E'\\n'", "\\N", "\\x41",
    "../../etc/passwd", "/etc/passwd", "C:\\x", "file:///etc/passwd", "duckdb:///x", "--db", "-v",
    "--", "a=b",
]  # fmt: skip
# What would be a command to a terminal, or would be read as markup.
ESCAPES = [
    "\x1b[31mred", "\x1b[2J\x1b[H", "\x1b[10A", "\x1b[?1049h", "\x1b[6n", "\x1b[38;5;1mX", "\x1bc", "\x1b(0",
    "\x1b]0;title\x07", "\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJm\x07", "\x1b[201~",
    "\x1bP$q\"p\x1b\\", "\x1b_apc\x1b\\", "\x1b^pm\x1b\\", "\x1bX sos\x1b\\", "\x1b",
    "\x9b31mred", "\x9d0;title\x9c", "\x90q\x9c", "\x85", "\x84", "\x8e",
    "password\rUSER: root", "abc\b\b\bxyz", "bell\a", "a\vb\fc", "tab\tend", "two\nlines", "\x0e\x0f", "\x7f",
    "\u202edesrever\u202c", "\u2066isolate\u2069", "\u202dforced", "\u2028line", "\u2029paragraph",
    "zero\u200bwidth\u2060\ufeff", "\u200e\u200f", "soft\xadhyphen", "\u180e\u034f\u3164\ue000\u0378",
    "🙂\ufe0f\u200d\U000e0041\U000e007f\U000e0100", f"pile{chr(0x336) * 30}", "[red]x[/red]", "[/]", "[link=http://evil.test]x[/link]",
    "[bold", ":smile: :bomb:", "[@click=app.quit]x[/]",
]  # fmt: skip
EVERYTHING = "".join(ESCAPES)  # for what takes a whole process to look at

# What is not seen but acts, by Unicode's categories; and what is in others: fillers and variation selectors.
ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
FILLING = re.compile("[\u034f\u115f\u1160\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]|\u0336{9}")
# What the commands themselves write to a terminal: colours, and the bar of an ingest, drawn over and over.
OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\r?\x1b\[1A\x1b\[2K|\r\x1b\[2K|\r\n")
EVIL_COLOURS = ("\x1b[31mred", "\x1b[31mX", "\x1b[38;5;1mX")


def assert_without_effect(output: str, *, terminal: bool = False) -> None:
    """Nothing in the output acts; on a terminal, nothing but what the command itself draws."""
    assert [output[i - 60 : i + 30] for c in EVIL_COLOURS if (i := output.find(c)) >= 0] == []
    rest = (OWN.sub("", output) if terminal else output).replace("\t", "")
    assert [sign for sign in rest if unicodedata.category(sign) in ACTING and sign != "\n"] == []
    assert FILLING.findall(rest) == []


# ---------------------------------------------------------------- the store


@pytest.fixture(params=["sync", "async"], scope="module")
def any_store(request: pytest.FixtureRequest) -> Iterator[tuple[Storage, sa.Engine]]:
    if request.param == "sync":
        with DuckDBStorage(":memory:") as store:
            store.init_schema()
            yield store, store.engine
        return
    with running_loop() as loop:
        other = AsyncDuckDBStorage(":memory:")
        face = SyncFace.of(other, loop)
        face.init_schema()
        yield face, other.engine
        face.run(other.close())


@pytest.mark.slow
def test_texts_are_stored_and_found_as_they_are(
    any_store: tuple[Storage, sa.Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, engine = any_store
    monkeypatch.chdir(tmp_path)
    for name in ("x.csv", "x.parquet", "x.json"):  # what a replacement scan would open
        (tmp_path / name).write_text("log_id,timestamp\n1,2\n")
    texts = [*CODE, *ESCAPES]
    assert store.write_logs([log(n, source=text, text=text) for n, text in enumerate(texts)]) == len(texts)
    for number, text in enumerate(texts):
        store.write_fiber(fiber(number, text, {text: [text]}))
    store.write_memberships([member(number, number) for number in range(len(texts))])

    with sa.orm.Session(engine) as session:
        for number, text in enumerate(texts):
            row, group = store.get_log(uid(number)), store.get_fiber(uid(number))
            assert row is not None
            assert group is not None
            assert (row.source_id, row.raw_text) == (text, text)
            assert (group.fiber_type, group.attributes) == (text, {text: [text]})
            assert store.query_fibers_by_type(text) == [group]
            assert store.get_fiber_logs(uid(number)) == [row]
            by_text = sa.select(RawLog.log_id).where(RawLog.source_id == text, RawLog.raw_text == text)
            assert session.scalars(by_text).all() == [uid(number)]
            by_type = sa.select(Fiber.fiber_id).where(Fiber.fiber_type == text)
            assert session.scalars(by_type).all() == [uid(number)]
            by_list = sa.select(Fiber.fiber_id).where(Fiber.fiber_type.in_([text, "no such type"]))
            assert session.scalars(by_list).all() == [uid(number)]
    assert len(all_logs(store)) == len(texts)
    for number, text in enumerate(texts):
        store.update_fiber(fiber(number, f"changed {text}", text))
        assert store.query_fibers_by_type(f"changed {text}") == [fiber(number, f"changed {text}", text)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.json", "x.parquet"]


def test_a_key_of_attributes_is_a_key_and_no_path(any_store: tuple[Storage, sa.Engine]) -> None:
    store, engine = any_store
    keys = [*CODE, *ESCAPES, "", "~0", "~1", "/~01", " "]
    store.write_fiber(fiber(10_000, "keys", {key: f"value of {key}" for key in keys}, first=at(0)))
    with sa.orm.Session(engine) as session:
        for key in keys:
            value = session.scalar(
                sa.select(Fiber.attributes[key].as_string()).where(Fiber.fiber_id == uid(10_000))
            )
            assert value == f"value of {key}"


@pytest.mark.parametrize("settings", ["", "?enable_external_access=false"])
def test_no_table_of_an_application_stands_in_for_what_is_written(
    empty_store: Path, db_file: Path, settings: str
) -> None:
    shutil.copy(empty_store, db_file)
    with DuckDBStorage(f"duckdb:///{db_file}{settings}") as store:
        with store.session() as session:
            for schema in ("system", "store.system.main"):  # where DuckDB's own catalog has this name
                session.execute(sa.text(f"CREATE SCHEMA {schema}"))
            for created in ("TABLE ", "TEMPORARY TABLE ", "TABLE store.system.", "TABLE store.system.main."):
                session.execute(sa.text(f"CREATE {created}{ARROW_TABLE} AS SELECT * FROM raw_logs"))
            session.commit()
        assert store.write_logs([log(1), log(2)]) == 2
        assert store.upsert_fibers([fiber(1), fiber(2)]) == Upserted(2, 0)
        assert store.upsert_fibers([fiber(1, "login")]) == Upserted(0, 1)
        assert numbers(all_logs(store)) == [1, 2]
        assert store.fibers.get_many([uid(1), uid(2)]).items == [fiber(1, "login"), fiber(2)]


def test_no_table_of_an_application_stands_in_for_a_temporary_one(
    postgresql_storage: PostgresStorage,
) -> None:
    """PostgreSQL lets an application have temporary tables looked for last."""
    many = [log(number) for number in range(300)]
    with postgresql_storage.session() as session:
        session.execute(sa.text("SET LOCAL search_path = public, pg_temp"))
        for name in (f"{ARROW_TABLE}_0", "fiberstore_chosen_log_id"):
            session.execute(sa.text(f"CREATE TABLE {name} AS TABLE raw_logs"))
        logs = LogRepository(session)
        assert logs.write_logs(many) == 300
        assert logs.write_logs([*many, log(1_000)]) == 1
        session.execute(sa.text("INSERT INTO fiberstore_chosen_log_id TABLE raw_logs"))
        assert logs.where(Logs.c.log_id == uid(1_000)).delete() == Deleted(1, 0, 0)
        assert logs.count() == 300


@parametrize_mostly_slow(
    "statement",
    [
        "CREATE TEMP TABLE raw_logs AS SELECT * FROM raw_logs",
        "/* mine */ create or replace temporary view Raw_Logs AS SELECT * FROM other.raw_logs",
        "CREATE TEMP TABLE mine (i INT); ALTER TABLE mine RENAME TO raw_logs",
        "USE other",
        "SET search_path = 'other'",
        "CREATE SCHEMA mine; USE mine",
    ],
    quick=3,
)
def test_a_session_does_not_lead_later_calls_to_other_tables(
    file_storage: DuckDBStorage, db_file: Path, statement: str
) -> None:
    """They use the connection that it has given back."""
    with file_storage.session() as session:
        session.execute(sa.text("ATTACH ':memory:' AS other"))
        session.execute(sa.text("CREATE TABLE other.raw_logs AS SELECT * FROM raw_logs"))
        session.commit()
        with pytest.raises(sa.exc.ProgrammingError, match="calls"):
            session.execute(sa.text(statement))
        session.rollback()
        session.execute(sa.text("CREATE TEMP TABLE no_name_of_ours AS SELECT 1"))
        session.commit()
    assert file_storage.write_logs([log(1)]) == 1
    file_storage.close()
    with DuckDBStorage(db_file) as store:
        assert numbers(all_logs(store)) == [1]


def test_a_temporary_table_of_a_session_does_not_hide_ours(postgresql_storage: PostgresStorage) -> None:
    store = postgresql_storage
    with store.session() as session:
        session.execute(sa.text("CREATE TEMPORARY TABLE raw_logs (LIKE raw_logs)"))
        assert LogRepository(session).write_logs([log(1)]) == 1
        session.commit()
    store.engine.dispose()
    assert numbers(all_logs(store)) == [1]


@parametrize_mostly_slow("text", CODE, quick=6)
def test_a_file_may_be_called_anything(tmp_path: Path, text: str) -> None:
    path = tmp_path / name_of(text)
    with DuckDBStorage(path) as store:
        assert store.engine.url.database == str(path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


# ---------------------------------------------------------------- the command line


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIBERSTORE_URL", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def name_of(text: str) -> str:
    return text.replace("/", "|").replace("\\", "|")[:80]  # DuckDB takes a backslash for a slash


@pytest.fixture(scope="module")
def evil_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose every text tries something: names, values, the file's own name, revision and indexes."""
    path = tmp_path_factory.mktemp("evil") / f"store{name_of(EVERYTHING)}.duckdb"
    with DuckDBStorage(path) as store:
        store.init_schema()
        texts = [*ESCAPES, *CODE]
        store.write_logs([log(n, source=text, text=text) for n, text in enumerate(texts)])
        store.write_fibers([fiber(number, text, {text: [text]}) for number, text in enumerate(texts)])
        with store.transaction() as unit:
            for text in texts:
                unit.checkpoints.set(text, text)
        store.write_memberships([member(number, 0) for number in range(len(texts))])
        text = ESCAPES[1]
        store.write_fiber(fiber(10_000, text, {text: [text]}, config_version=1))
        store.write_memberships([member(0, 10_000, 1)])
        store.versions.register(EVERYTHING)
        with store.engine.begin() as connection:
            revision = sa.text("UPDATE fiberstore_alembic_version SET version_num = :text")
            connection.execute(revision, {"text": EVERYTHING})
        index = EVERYTHING.replace('"', "")
        with store.engine.begin() as connection:
            connection.exec_driver_sql(f'CREATE INDEX "ix{index}" ON raw_logs (raw_text)'.replace("%", "%%"))
    return path


FIRST = "00000000-0000-0000-0000-000000000000"
SHOW_RULES = ("versions", "show", f"{config_version(EVERYTHING):016x}")
READERS = [
    ("logs",), ("grep", "."), ("grep", "-F", "\x1b"), ("context", FIRST), ("tail", "-n", "500"), ("fibers",),
    ("show", FIRST), ("timeline",),
    ("histogram", "--by", "source"), ("histogram", "--fibers", "--by", "type"),
    ("stats",), ("checkpoint", "list"), ("versions", "list"), SHOW_RULES, ("diff", f"{3:016x}", f"{1:016x}"),
    ("doctor",), ("db", "current"), ("db", "check"), ("db", "upgrade"),
    *(("fibers", "--type", text) for text in ("\x1b[31mred", "\u202edesrever\u202c")),
]  # fmt: skip


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@parametrize_mostly_slow("options", [(), ("--json",)])
@parametrize_mostly_slow("command", READERS, quick=6)
def test_what_is_stored_has_no_effect_in_a_pipe(
    evil_store: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    if command == ("db", "upgrade"):
        options = ()
    code = run(*command, *options, "--db", str(evil_store))
    out, err = capsys.readouterr()
    assert code == (1 if command in (("db", "check"), ("db", "upgrade"), ("doctor",)) else 0)
    if command == SHOW_RULES and not options:
        assert out == EVERYTHING
        return
    assert_without_effect(out)
    assert_without_effect(err)
    assert "Traceback" not in err
    if options:
        assert out.isascii()
        assert [json.loads(line) for line in out.splitlines()]
    elif command in (("logs",), ("fibers",), ("show", FIRST)):
        assert r"\x1b]52;c;cm0gLXJm\x07" in out
        assert "[red]x[/red]" in out
        assert ":smile: :bomb:" in out


def test_json_holds_the_very_texts(evil_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {*ESCAPES, *CODE}
    run("logs", "--json", "--db", str(evil_store))
    logs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {found["raw_text"] for found in logs} == {found["source_id"] for found in logs} == texts
    run("fibers", "--json", "--db", str(evil_store))
    fibers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {found["fiber_type"] for found in fibers} == texts
    assert all(found["attributes"] == {found["fiber_type"]: [found["fiber_type"]]} for found in fibers)
    run("stats", "--json", "--db", str(evil_store))
    stats = json.loads(capsys.readouterr().out)
    assert stats["sources"].keys() == texts
    assert stats["file"] == str(evil_store)
    run("db", "current", "--json", "--db", str(evil_store))
    assert json.loads(capsys.readouterr().out)["revision"] == EVERYTHING


@pytest.mark.slow
def test_types_are_found_by_the_command_line(evil_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, text in list(enumerate([*ESCAPES, *CODE]))[::7]:
        assert run("fibers", f"--type={text}", "--json", "--db", str(evil_store)) == 0
        (found,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert found["fiber_id"] == str(uid(number))


def on_a_terminal(commands: Sequence[Sequence[str | Path]], folder: Path) -> str:
    with contextlib.chdir(folder):
        return "".join(output for _, output in shown_on_a_terminal(commands))


@pytest.mark.slow
def test_what_is_stored_has_no_effect_on_a_terminal(evil_store: Path) -> None:
    commands = [[*command, "--db", str(evil_store)] for command in READERS]
    commands += [[*command, "--json"] for command in commands if command[:2] != ["db", "upgrade"]]
    output = on_a_terminal(commands, evil_store.parent)
    assert_without_effect(output, terminal=True)
    assert "[red]x[/red]" in output
    assert ":smile: :bomb:" in output


@pytest.mark.slow
def test_what_changes_or_is_written_is_told_without_effect_on_a_terminal(tmp_path: Path) -> None:
    name = name_of(EVERYTHING)
    store = tmp_path / f"{name}.duckdb"
    with DuckDBStorage(store) as storage:
        storage.init_schema()
        storage.write_logs([log(number, source=text, text=text) for number, text in enumerate(ESCAPES)])
        for number, text in enumerate(ESCAPES):
            storage.write_fiber(fiber(number, text, {text: [text]}))
    copy, again = tmp_path / f"copy{name}", tmp_path / f"again{name}"
    commands: list[list[str | Path]] = [
        *(["export", kind, f"{copy}.{kind}.csv", "--db", store] for kind in ("logs", "fibers")),
        *(["import", kind, f"{copy}.{kind}.csv", "--db", again] for kind in ("logs", "fibers")),
        ["timeline", "--html", f"{copy}.html", "--db", store],
        ["db", "backup", f"{copy}.backup", "--db", store],
        ["copy", store, copy], ["copy", store, store],
        *([verb, f"--type={ESCAPES[1]}", "--db", store] for verb in ("close", "reopen", "pin", "unpin")),
        ["merge", FIRST, str(uid(1)), "--db", store], ["prune", f"--type={ESCAPES[2]}", "--db", store],
        ["checkpoint", "set", EVERYTHING, EVERYTHING, "--db", store],
        ["checkpoint", "delete", EVERYTHING, "--db", store],
        ["redact", "-F", "\x1b", "--with", "\u202e", "--keep-file", "--db", store],
        ["db", "compact", "--db", store],
    ]  # fmt: skip
    output = on_a_terminal([[*map(str, command)] for command in commands], tmp_path)
    assert_without_effect(output, terminal=True)
    assert "Traceback" not in output
    assert rf"copy{name.encode('unicode_escape').decode()[:20]}" in output


# ---------------------------------------------------------------- what is given on the command line

EVIL = [
    "\x1b[2J\x1b[31mX",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x9b31mX",
    "a\rb",
    "a\bb",
    "\u202edesrever",
    "[red]x[/red]",
]


def evil_arguments(text: str) -> list[list[str]]:
    return [
        [text], ["db", text], ["--" + text], ["logs", text, "--db", "none"], ["logs", "--" + text],
        ["logs", "-" + text],
        ["logs", "--db", text], ["logs", "--db", f"x{text}://y"], ["logs", "--db", f"duckdb://{text}/y"],
        ["logs", "--db", f"duckdb:///none?{text}=1"], ["logs", "--db", f"none/{text}"],
        ["stats", "--db", text],
        ["logs", "--limit", text, "--db", "none"], ["fibers", "--offset", text, "--db", "none"],
        ["logs", "--json=" + text], ["logs", "--start", text, "--db", "none"],
        ["logs", "--end", text, "--db", "none"],
        ["logs", "--db", "none", "--", text, text], ["show", text, "--db", "none"],
        ["show", "0193", "--db", text],
        ["fibers", "--type", text, "--db", "none"], ["demo", "--lines", text],
        ["demo", "--db", f"none/{text}"],
        ["ingest", "--rules", text, "--db", "none"], ["ingest", "--rules", "x", "--db", "none", text],
        ["ingest", "--rules", "x", "--db", "none", f"{text}=a", f"{text}=b"], ["db", "check", "--db", text],
        ["db", "current", "--db", text], ["db", "upgrade", "--db", f"none/{text}"],
    ]  # fmt: skip


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_arguments_in_an_error_have_no_effect_in_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in evil_arguments(text):
        assert run(*arguments) in (1, 2)
        out, err = capsys.readouterr()
        assert out == ""
        assert err
        assert_without_effect(err)
        assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_arguments_in_an_error_have_no_effect_on_a_terminal(tmp_path: Path) -> None:
    commands = [arguments for text in EVIL for arguments in evil_arguments(text)]
    output = on_a_terminal(commands, tmp_path)
    assert_without_effect(output, terminal=True)
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- rules and log files


def toml(text: str) -> str:
    """Return the text as a basic string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def rules(*, source: str, fiber_type: str, path: str, pattern: str = "request=(?P<request>.+)") -> str:
    return f"""
[sources.{toml(source)}]
path = {toml(path)}
timestamp = '^\\S+'
format = "%Y-%m-%dT%H:%M:%S%z"
[fibers.{toml(fiber_type)}]
max_gap = "60s"
[[fibers.{toml(fiber_type)}.patterns]]
source = {toml(source)}
regex = {toml(pattern)}
"""


@parametrize_mostly_slow("step", [8, 1])  # each type of fibers takes 50 ms
def test_names_in_rules_are_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int) -> None:
    texts = [*CODE, *ESCAPES][::step]
    lines = [f"2024-05-01T10:00:00Z request={text}".replace("\n", " ") for text in texts]
    names = [f"{number}{name_of(text)}.log" for number, text in enumerate(texts)]
    for name, line in zip(names, lines, strict=True):
        (tmp_path / name).write_text(f"{line}\n", newline="")
    file, db = tmp_path / f"{name_of(EVERYTHING)}.toml", tmp_path / "store.duckdb"
    file.write_text(
        "".join(
            rules(source=text, fiber_type=text, path=name) for text, name in zip(texts, names, strict=True)
        )
    )
    assert run("ingest", "--rules", str(file), "--db", str(db)) == 0
    assert_without_effect("".join(capsys.readouterr()))
    with DuckDBStorage(db) as store:
        assert {row.source_id: row.raw_text for row in all_logs(store)} == dict(
            zip(texts, lines, strict=True)
        )
        for text in texts:
            (group,) = store.query_fibers_by_type(text)
            assert group.attributes == {"request": [text.replace("\n", " ")]}
    assert {path.name for path in tmp_path.iterdir()} == {*names, file.name, db.name}


def broken_rules(text: str) -> list[str]:
    good = rules(source=text, fiber_type=text, path="good.log")
    return [
        good.replace('"60s"', toml(text)),
        good.replace("%Y-%m-%dT", f"%Q{json.dumps(text)[1:-1]}"),
        good.replace("good.log", json.dumps(f"none{text}")[1:-1]),
        good.replace('path = "good.log"', ""),
        good.replace("path =", f"{toml(text)} = 1\npath ="),
        good.replace('path = "good.log"', f'path = "good.log"\ntimezone = {toml(text)}'),
        good.replace('path = "good.log"', f'path = "good.log"\nencoding = {toml(text)}'),
        good.replace('path = "good.log"', f'path = "good.log"\nencoding_errors = {toml(text)}'),
        good.replace('path = "good.log"', f'path = "good.log"\nyear = {toml(text)}'),
        good.replace("request=(?P<request>.+)", json.dumps(f"({text}")[1:-1]),
        good.replace("request=(?P<request>.+)", json.dumps(re.escape(text))[1:-1]),
        good.replace(f"\nsource = {toml(text)}", f"\nsource = {toml(text + text)}"),
        good.replace("[fibers.", "[["),
        f"{toml(text)} = 1\n" + good,
        text,
    ]


@pytest.mark.slow
def test_rules_in_an_error_have_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.log").write_text("2024-05-01T10:00:00Z request=1\n")
    commands: list[list[str]] = []
    for text in EVIL:
        for number, broken in enumerate(broken_rules(text)):
            file = tmp_path / f"{number}{name_of(text)}.toml"
            file.write_text(broken, newline="")
            commands.append(["ingest", "--rules", str(file), "--db", str(tmp_path / "store.duckdb")])
            assert run(*commands[-1]) == 1
            out, err = capsys.readouterr()
            assert out == ""
            assert_without_effect(err)
            assert all(line.startswith("fiberstore: ") for line in err.splitlines())
    output = on_a_terminal(commands, tmp_path)
    assert_without_effect(output, terminal=True)
    assert not (tmp_path / "store.duckdb").exists()


@pytest.mark.slow
def test_log_files_in_an_error_have_no_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[list[str]] = []
    for text in EVIL:
        for number, content in enumerate(
            [f"{text}\n", f" {text}\n", f"2024-05-01T10:00:00Z ok\n2024{text} x\n"]
        ):
            log_file = tmp_path / f"{number}{name_of(text)}.log"
            log_file.write_text(content, newline="")
            file = tmp_path / f"{len(commands)}.toml"
            pattern = f"(?P<a>{re.escape(text)})"
            file.write_text(rules(source=text, fiber_type=text, path=log_file.name, pattern=pattern))
            commands.append(["ingest", "--rules", str(file), "--db", str(tmp_path / "store.duckdb")])
            assert run(*commands[-1]) == 1
            out, err = capsys.readouterr()
            assert out == ""
            assert_without_effect(err)
            assert err.startswith("fiberstore: ")
    assert_without_effect(on_a_terminal(commands, tmp_path), terminal=True)


@pytest.mark.slow
def test_the_demo_shows_the_name_of_its_store_without_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J\x1b[31mX\x9b31mX\rY\b\u202e"
    assert run("demo", "--lines", "60", "--db", str(tmp_path / f"{name}.duckdb")) == 0
    out, err = capsys.readouterr()
    assert_without_effect(out)
    assert err == ""
    command = ["demo", "--lines", "60", "--db", str(tmp_path / f"{name}2.duckdb")]
    assert_without_effect(on_a_terminal([command], tmp_path), terminal=True)
