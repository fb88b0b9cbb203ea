"""The rules file: what a good one becomes, and what each kind of bad one is told."""

import re
from datetime import UTC, timedelta
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from fiberstore.ingest.rules import (
    FiberType,
    Pattern,
    Rules,
    RulesError,
    Source,
    load_rules,
    parse_rules,
    require_files,
)
from fiberstore.versioning import config_version

GOOD = r"""
[sources.sshd]
path = "auth.log"
timestamp = '^(?P<ts>\w{3} +\d+ \d\d:\d\d:\d\d)'
format = "%b %d %H:%M:%S"
timezone = "Europe/Berlin"
year = 2024

[fibers.login]
max_gap = "60s"
[[fibers.login.patterns]]
source = "sshd"
regex = 'sshd\[(?P<pid>\d+)\]'
"""


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    (tmp_path / "auth.log").write_text("")
    return tmp_path / "rules.toml"


def load(rules_file: Path, text: str) -> Rules:
    rules_file.write_text(text)
    return load_rules(rules_file)


def refusal(rules_file: Path, text: str) -> str:
    """The lines of the error, each without the file's name and the line in front."""
    with pytest.raises(RulesError) as caught:
        load(rules_file, text)
    found = [re.fullmatch(r"(.*?\.toml)(?::\d+)?: (.*)", line) for line in str(caught.value).splitlines()]
    assert {match and match[1] for match in found} == {str(rules_file)}
    return "\n".join(match[2] for match in found if match)


def test_the_example_of_the_issue_is_read(rules_file: Path) -> None:
    rules = load(rules_file, GOOD)
    source, login = rules.sources["sshd"], rules.fibers["login"]
    assert source.path == (rules_file.parent / "auth.log",)
    assert source.timezone == ZoneInfo("Europe/Berlin")
    assert (source.year, source.encoding, source.encoding_errors) == (2024, "utf-8", "strict")
    assert login.max_gap == timedelta(seconds=60)
    assert login.patterns[0].regex == re.compile(r"sshd\[(?P<pid>\d+)\]")
    assert not login.patterns[0].close
    assert rules.config_version == config_version(rules_file)


def test_any_change_of_the_file_changes_its_version(rules_file: Path) -> None:
    assert load(rules_file, GOOD).config_version != load(rules_file, GOOD + "# note\n").config_version


@pytest.mark.parametrize(
    ("text", "gap"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("infinite", None),
    ],
)
def test_max_gap_is_a_number_with_a_unit(rules_file: Path, text: str, gap: timedelta | None) -> None:
    assert load(rules_file, GOOD.replace("60s", text)).fibers["login"].max_gap == gap


def test_rules_can_be_made_in_python_too(tmp_path: Path) -> None:
    source = Source(
        path=(tmp_path / "x",), timestamp=re.compile("^[^ ]+"), format=("%Y-%m-%d",), timezone=UTC
    )
    pattern = Pattern(source=("x",), regex=re.compile("(?P<id>.)"))
    fiber_type = FiberType(max_gap=timedelta(seconds=1), patterns=[pattern])
    rules = Rules(sources={"x": source}, fibers={"y": fiber_type}, config_version=0)
    assert rules.sources["x"].timezone is UTC
    with pytest.raises(ValidationError, match="frozen"):
        rules.sources["x"].year = 2024  # type: ignore[misc]


def test_a_zone_and_a_year_are_needed_only_for_stamps_without(rules_file: Path) -> None:
    text = GOOD.replace("%b %d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z").replace('timezone = "Europe/Berlin"', "")
    source = load(rules_file, text.replace("year = 2024", "")).sources["sshd"]
    assert source.timezone is None
    assert source.year is None


def test_a_file_without_fiber_types_is_good(rules_file: Path) -> None:
    assert load(rules_file, GOOD.partition("[fibers")[0]).fibers == {}


def test_files_on_the_command_line_replace_those_of_the_rules(
    rules_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules_file.write_text(GOOD.replace('path = "auth.log"', ""))
    elsewhere = rules_file.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.log").write_text("")
    monkeypatch.chdir(elsewhere)
    rules = load_rules(rules_file, {"sshd": Path("other.log")})
    assert rules.sources["sshd"].path == (Path("other.log"),)


def test_a_file_on_the_command_line_for_an_unknown_source(rules_file: Path) -> None:
    rules_file.write_text(GOOD)
    with pytest.raises(RulesError, match=r"rules\.toml:2: sources\.nginx: .* not declared; use one of sshd"):
        load_rules(rules_file, {"nginx": Path("access.log")})


BAD = [
    ("timestamp = '^(", "timestamp = '^((", "sources.sshd.timestamp", "no regular expression"),
    ("timestamp = '^", "timestamp = 3 #", "sources.sshd.timestamp", "'3' is no regular expression"),
    (r"sshd\[(?P<pid>\d+)\]", "(?P<pid>", "fibers.login.patterns.0.regex", "no regular expression"),
    (r"sshd\[(?P<pid>\d+)\]", "(?P<pid>a{9999999999})", "fibers.login.patterns.0.regex", "no regular exp"),
    (r"sshd\[(?P<pid>\d+)\]", r"sshd\[(\d+)\]", "fibers.login.patterns.0.regex", "name the part"),
    ('source = "sshd"', 'source = "ssh"', "fibers.login.patterns.0.source", "use one of sshd"),
    (
        'source = "sshd"',
        'source = "sshd"\nclose = "no"',
        "fibers.login.patterns.0.close",
        "write true or false",
    ),
    ('source = "sshd"', 'source = ["sshd", "web"]', "fibers.login.patterns.0.source", "'web' is not a decl"),
    ('source = "sshd"', 'source = ["sshd", "sshd"]', "fibers.login.patterns.0.source", "'sshd' twice"),
    ('source = "sshd"', "source = []", "fibers.login.patterns.0.source", "empty list; name at least one"),
    ('source = "sshd"', "source = [3]", "fibers.login.patterns.0.source.0", "valid string, got 3"),
    ('source = "sshd"', 'key = ["id"]', "fibers.login.patterns.0.key", "'id' is no group of the regex"),
    ('source = "sshd"', 'key = ["pid", "pid"]', "fibers.login.patterns.0.key", "'pid' twice"),
    ('source = "sshd"', "key = []", "fibers.login.patterns.0.key", "empty list"),
    (r"(?P<pid>\d+)", r"(\d+)' #", "fibers.login.patterns.0.regex", "no named group; name the part"),
    (r"(?P<pid>\d+)\]'", "(\\d+)'\neach = true", "fibers.login.patterns.0.regex", "no named group"),
    ('source = "sshd"', 'normalize.id = "lower"', "fibers.login.patterns.0.normalize", "'id' is no group"),
    (
        'source = "sshd"',
        'normalize = {pid = "upper"}',
        "fibers.login.patterns.0.normalize.pid",
        "'upper' is no spelling; use 'lower' or 'hex'",
    ),
    (
        'source = "sshd"',
        'normalize = "hex"',
        "fibers.login.patterns.0.normalize",
        "write a spelling",
    ),
    ('source = "sshd"', 'close_grace = "1s"', "fibers.login.patterns.0.close_grace", "needs close = true"),
    ('source = "sshd"', "close_grace = 1", "fibers.login.patterns.0.close_grace", "'1' is no duration"),
    ('source = "sshd"', 'close_grace = "infinite"', "fibers.login.patterns.0.close_grace", "no duration"),
    ("year = 2024", 'clock_offset = "5m"', "sources.sshd.clock_offset", "'5m' is no offset; give sign"),
    ("year = 2024", 'clock_offset = "+5"', "sources.sshd.clock_offset", "'+5' is no offset"),
    ("year = 2024", "clock_offset = 300", "sources.sshd.clock_offset", "300 is no offset"),
    ('format = "%b %d %H:%M:%S"', "", "sources.sshd.format", "missing; add it"),
    ("timestamp = ", "#", "sources.sshd.timestamp", "missing; add it"),
    ("60s", "60", "fibers.login.max_gap", "'60' is no duration; give one such as '250ms', '5s'"),
    ("60s", "0s", "fibers.login.max_gap", "'0s' joins only lines of the very same time; give a longer one"),
    ("60s", "-5s", "fibers.login.max_gap", "'-5s' is negative; give the duration without a sign"),
    ("60s", "999999999999d", "fibers.login.max_gap", "is too long; 999999999d is the longest"),
    ('max_gap = "60s"', "", "fibers.login.max_gap", "missing; add it"),
    ('"Europe/Berlin"', '"Europe/Atlantis"', "sources.sshd.timezone", "give an IANA name"),
    ('"Europe/Berlin"', '"Europe"', "sources.sshd.timezone", "give an IANA name"),
    ('"Europe/Berlin"', '"../UTC"', "sources.sshd.timezone", "give an IANA name"),
    ('timezone = "Europe/Berlin"', "", "sources.sshd.timezone", 'add for example timezone = "UTC"'),
    ("year = 2024", "year = 20240", "sources.sshd.year", "less than or equal to 9999, got 20240"),
    ("year = 2024", 'year = "2024"', "sources.sshd.year", "valid integer, got '2024'"),
    ("%b %d", "%b %Q", "sources.sshd.format", "'Q' is a bad directive"),
    ("%b %d", "%b %d %d", "sources.sshd.format", "datetime.strptime"),
    ("%H:%M:%S", "%H:%M:%", "sources.sshd.format", "datetime.strptime"),
    ("%b %d", "%d", "sources.sshd.format", "needs the day and the month"),
    ("%H:%M", "%I:%M", "sources.sshd.format", "%I without %p leaves open which half of the day"),
    ("%b %d %H:%M:%S", "%s.%f", "sources.sshd.format", "or epoch_s, epoch_ms for numbers since 1970"),
    ("%b %d %H:%M:%S", "epoch", "sources.sshd.format", "use iso8601, epoch_s"),
    ("year = 2024", 'on_bad_stamp = "skip"', "sources.sshd.on_bad_stamp", "'error' or 'previous'"),
    ("year = 2024", 'drop = ["("]', "sources.sshd.drop", "'(' is no regular expression"),
    ("year = 2024", 'record_start = "("', "sources.sshd.record_start", "'(' is no regular expression"),
    ("year = 2024", 'join = "docker"', "sources.sshd.join", "'cri'"),
    ("year = 2024", 'encoding = "klingon"', "sources.sshd.encoding", "'klingon' is no text encoding"),
    ("year = 2024", 'encoding = "hex"', "sources.sshd.encoding", "'hex' is no text encoding"),
    ("year = 2024", 'encoding = "cp037"', "sources.sshd.encoding", "convert the file to UTF-8"),
    ("year = 2024", 'encoding_errors = "ignore"', "sources.sshd.encoding_errors", "'backslashreplace'"),
    ("year = 2024", "years = 2024", "sources.sshd.years", "unknown key; correct its spelling"),
    ('path = "auth.log"', "path = 3", "sources.sshd.path.0", "got 3"),
    ('path = "auth.log"', "path = []", "sources.sshd.path", "empty list"),
    ("auth.log", "*.none", "sources.sshd.path", "no file has such a name; correct it, or give sshd=FILE"),
    ("auth.log", "none.log", "sources.sshd.path", "No such file"),
    ("auth.log", "auth.log/x", "sources.sshd.path", "Not a directory"),
    ('"auth.log"', '["auth.log", "auth.log/x"]', "sources.sshd.path", "Not a directory"),
    ("auth.log", r"a\u0000b", "sources.sshd.path", "null"),
    ("[sources.sshd]", r'[sources."a\u0000b"]', r"sources.a\x00b.[key]", "NUL"),
    ("[sources.sshd]", "config_version = 1\n[sources.sshd]", "config_version", "remove it"),
    ("[sources.sshd]", "sources = 3\n[x]", "sources", "got 3"),
    ("[sources.sshd]", "[sources]\nsshd = 3\n[x]", "sources.sshd", "got 3"),
]


@pytest.mark.parametrize(("old", "new", "key", "what"), BAD)
def test_a_bad_value_is_named_with_its_key_and_what_to_change(
    rules_file: Path, old: str, new: str, key: str, what: str
) -> None:
    assert old in GOOD
    lines = [line for line in refusal(rules_file, GOOD.replace(old, new)).splitlines() if what in line]
    assert lines
    assert lines[0].startswith(key)


def test_a_fiber_type_without_patterns(rules_file: Path) -> None:
    text = GOOD.partition("[[fibers")[0]
    assert refusal(rules_file, text) == "fibers.login.patterns: missing; add it"
    assert "fibers.login.patterns: " in refusal(rules_file, text + "patterns = []")


def test_patterns_that_are_texts_are_refused_with_the_way_to_write_them(rules_file: Path) -> None:
    told = refusal(rules_file, "[fibers.login]\nmax_gap = '1m'\npatterns = ['pid=(?P<pid>x)']")
    assert "fibers.login.patterns.0:" in told
    assert told.endswith("; write [[fibers.NAME.patterns]], and below it regex = '…'")


@pytest.mark.parametrize("text", ["", "[sources]"])
def test_rules_without_a_source(rules_file: Path, text: str) -> None:
    assert refusal(rules_file, text).startswith("sources: missing, and so is fibers")


def test_all_problems_are_told_at_once(rules_file: Path) -> None:
    text = GOOD.replace("60s", "60").replace("Europe/Berlin", "Mars").replace("year = 2024", "")
    assert {line.partition(": ")[0] for line in refusal(rules_file, text).splitlines()} == {
        "fibers.login.max_gap",
        "sources.sshd.timezone",
    }


NESTED = """
[sources.web]
timestamp = \'\'\'
^.+\'\'\'
format = "%Y-%m-%d"
timezone = "UTC"

[[fibers.a.patterns]]
regex = '(?P<x>.)'
[[fibers.a.patterns]]
regex = '(?P<x>.)'
[fibers.a.patterns.normalize]
x = "upper"
[fibers.a]
max_gap = "1"  # \u2028 \x85 end no line
[fibers.b]
patterns = [
  { regex = "(?P<x>.)", key = ["y"] },
]
"""


def test_an_error_names_the_line_of_its_key_or_of_the_table_around_it() -> None:
    with pytest.raises(RulesError) as caught:
        parse_rules(NESTED, name="my rules")
    assert {line.split(": ")[0]: line.split(": ")[1] for line in str(caught.value).splitlines()} == {
        "my rules:13": "fibers.a.patterns.1.normalize.x",
        "my rules:15": "fibers.a.max_gap",
        "my rules:17": "fibers.b.patterns.0.key",
        "my rules:16": "fibers.b.max_gap",
    }


def test_keys_of_the_same_groups_in_another_order_are_refused(rules_file: Path) -> None:
    other = """[[fibers.login.patterns]]
    regex = '(?P<a>.)(?P<b>.)'
    key = """
    assert refusal(rules_file, f"{GOOD}{other}['a', 'b']\n{other}['b', 'a']") == (
        "fibers.login.patterns.2.key: ['b', 'a'] is another key than ['a', 'b'] of patterns.1; use one order"
    )


def test_rules_for_live_lines_need_no_files(tmp_path: Path) -> None:
    text = "[sources.app]\n[fibers.login]\nmax_gap = '5m'\n[[fibers.login.patterns]]\nregex = '(?P<x>.)'\n"
    rules = parse_rules(text)
    assert (rules.sources["app"].path, rules.content) == (None, text)
    assert rules.config_version == config_version(text)
    (tmp_path / "rules.toml").write_text(text)
    assert load_rules(tmp_path / "rules.toml") == rules
    with pytest.raises(RulesError, match=r"no source has a file to read; add path, timestamp and format"):
        require_files(rules)
    assert parse_rules(text.replace("[sources.app]", "")).sources == {}


def test_a_source_with_stamps_and_without_a_file_is_refused_by_ingest_alone() -> None:
    text = GOOD.replace('path = "auth.log"', "")
    rules = parse_rules(f"[sources.live]\n{text}")
    with pytest.raises(RulesError, match=r"^sources\.sshd\.path: missing.*; add it, or give sshd=FILE on"):
        require_files(rules)
    require_files(parse_rules(f"[sources.live]\n{GOOD}"))


def test_a_clock_offset_has_a_sign(rules_file: Path) -> None:
    for text, offset in (("+5m", timedelta(minutes=5)), ("-90s", timedelta(seconds=-90))):
        rules = load(rules_file, GOOD.replace("year = 2024", f'year = 2024\nclock_offset = "{text}"'))
        assert rules.sources["sshd"].clock_offset == offset


def test_a_syntax_error_is_named_with_its_line(rules_file: Path) -> None:
    assert "line 2" in refusal(rules_file, "\nsources =\n")


def test_a_rules_file_that_is_not_utf8(rules_file: Path) -> None:
    rules_file.write_bytes(b"# one\n# caf\xe9\n")
    with pytest.raises(RulesError, match=r"rules\.toml:2: not UTF-8; save the file as UTF-8"):
        load_rules(rules_file)


def test_a_rules_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RulesError, match=rf"^{re.escape(str(path))}: .*; give the path of a rules file"):
            load_rules(path)


def test_rules_that_are_no_text_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"expected the text of a rules file, got .*rules.toml.*; load_rules reads"
    ):
        parse_rules(cast("str", Path("rules.toml")))
