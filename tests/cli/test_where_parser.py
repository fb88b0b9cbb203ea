"""``--where``: what a text becomes, what is refused and how, and that nothing else ever happens."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberstore.cli.where_parser import parse_fiber_condition, parse_log_condition
from fiberstore.contract.conditions import And, Condition, Or
from fiberstore.contract.queries import Fibers, Logs
from fiberstore.records import FiberRecord, StoredLog, parse_duration
from fiberstore.testing.examples import NOON, TEXTS, uid

LATER = NOON + timedelta(hours=1, microseconds=1)
ID = "00000000-0000-0000-0000-000000000008"


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ('source_id == "web"', Logs.c.source_id == "web"),
        ('"web" != source_id', Logs.c.source_id != "web"),
        ("source_id.in_(['a', 'b'])", Logs.c.source_id.in_(["a", "b"])),
        ("source_id.in_(('a',))", Logs.c.source_id.in_(["a"])),
        ('raw_text.contains("100%")', Logs.c.raw_text.contains("100%")),
        (' raw_text.startswith("GET") ', Logs.c.raw_text.startswith("GET")),
        (r'raw_text.regexp_match("\d+")', Logs.c.raw_text.regexp_match(r"\d+")),
        (r'raw_text.regexp_match(r"\bGET\b")', Logs.c.raw_text.regexp_match(r"\bGET\b")),
        (f'log_id == "{ID}"', Logs.c.log_id == uid(8)),
        (f'log_id.in_(["{ID}"])', Logs.c.log_id.in_([uid(8)])),
        ('timestamp >= "2024-02-29T13:00:00+01:00"', Logs.c.timestamp >= NOON),
        ('"2024-02-29T12:00Z" >= timestamp', Logs.c.timestamp <= NOON),
        ('"2024-02-29T12:00Z" < timestamp', Logs.c.timestamp > NOON),
        (
            'timestamp.between("2024-02-29T12:00Z", "2024-02-29T13:00:00.000001Z")',
            Logs.c.timestamp.between(NOON, LATER),
        ),
        (
            '"2024-02-29T12:00Z" <= timestamp < "2024-02-29T13:00:00.000001Z"',
            (Logs.c.timestamp >= NOON) & (Logs.c.timestamp < LATER),
        ),
        ("config_version > 18446744073709551614", Logs.c.config_version > 2**64 - 2),
        ("1 <= config_version <= 3", (Logs.c.config_version >= 1) & (Logs.c.config_version <= 3)),
        ("fibers.any(closed)", Logs.c.fibers.any(Fibers.c.closed)),
        ("pinned", Logs.c.pinned),
        (
            "fibers.any(config_version.is_active() and not pinned)",
            Logs.c.fibers.any(Fibers.c.config_version.is_active() & ~Fibers.c.pinned),
        ),
        (f'fibers.contains("{ID}", "{ID}")', Logs.c.fibers.contains(uid(8), uid(8))),
    ],
)
def test_a_text_says_a_condition_on_logs(text: str, condition: Condition[StoredLog]) -> None:
    assert repr(parse_log_condition(text)) == repr(condition)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("closed", Fibers.c.closed),
        ("not closed", ~Fibers.c.closed),
        ("~closed", ~Fibers.c.closed),
        ("closed.is_(False)", ~Fibers.c.closed),
        ("pinned", Fibers.c.pinned),
        ("pinned.is_(False)", ~Fibers.c.pinned),
        ("config_version.is_active()", Fibers.c.config_version.is_active()),
        (
            "not config_version.is_active() or config_version > 3",
            ~Fibers.c.config_version.is_active() | (Fibers.c.config_version > 3),
        ),
        ('duration > "1.5h"', Fibers.c.duration > timedelta(hours=1.5)),
        ("duration >= 0.000001", Fibers.c.duration >= timedelta(microseconds=1)),
        ('duration.between("250ms", 5)', Fibers.c.duration.between(timedelta(0, 0.25), timedelta(0, 5))),
        ('attributes["/user"] == "root"', Fibers.c.attributes["/user"] == "root"),
        ('attributes[""] != None', Fibers.c.attributes[""] != None),  # noqa: E711  # the value of JSON
        ('attributes["/n"] >= -1.5', Fibers.c.attributes["/n"] >= -1.5),
        ('attributes["/n"].between(1, 2)', Fibers.c.attributes["/n"].between(1, 2)),
        ('attributes["/n"].in_([1, "1", True, None])', Fibers.c.attributes["/n"].in_([1, "1", True, None])),
        ('attributes["/n"].in_([])', Fibers.c.attributes["/n"].in_([])),
        ('attributes["/a~1b"].exists()', Fibers.c.attributes["/a~1b"].exists()),
        (
            'activity.overlaps("2024-02-29T12:00Z", "2024-02-29T13:00:00.000001Z")',
            Fibers.c.activity.overlaps(NOON, LATER),
        ),
        ('logs.any(source_id == "db")', Fibers.c.logs.any(Logs.c.source_id == "db")),
        ("logs.any(fibers.any(closed))", Fibers.c.logs.any(Logs.c.fibers.any(Fibers.c.closed))),
        (f"logs.contains('{uid(8).hex}')", Fibers.c.logs.contains(uid(8))),
        ("True", And(FiberRecord, ())),
        ("closed or False", Or(FiberRecord, (Fibers.c.closed, Or(FiberRecord, ())))),
    ],
)
def test_a_text_says_a_condition_on_fibers(text: str, condition: Condition[FiberRecord]) -> None:
    assert repr(parse_fiber_condition(text)) == repr(condition)


@pytest.mark.parametrize(
    ("words", "signs"),
    [
        ("{a} and {b} and {c}", "{a} & {b} & {c}"),
        ("{a} or {b} and not {c}", "{a} | {b} & ~{c}"),
        ("({a} or {b}) and {c}", "({a} | {b}) & {c}"),
        ("not ({a} or {b}) or {c}", "~({a} | {b}) | {c}"),
    ],
)
def test_words_and_signs_join_alike(words: str, signs: str) -> None:
    parts = {"a": '(source_id == "a")', "b": '(raw_text.contains("b"))', "c": "(config_version < 3)"}
    a, b, c = Logs.c.source_id == "a", Logs.c.raw_text.contains("b"), Logs.c.config_version < 3
    expected = eval(signs.replace("{", "").replace("}", ""), {"a": a, "b": b, "c": c})  # noqa: S307  # our own
    assert repr(parse_log_condition(words.format(**parts))) == repr(expected)
    assert repr(parse_log_condition(signs.format(**parts))) == repr(expected)


REFUSED_OF_LOGS = [
    ("", "it is empty; give a condition"),
    ("x" * 20_001, "it has 20,001 characters; 20,000 are the most"),
    ("source_id ==", "source_id == cannot be read: invalid syntax"),
    ("source_id = 'a'", "cannot be read"),
    ("x\0", "null bytes"),
    ("\ud800", "is not UTF-8 at character 1"),
    ("sourc == 'a'", "sourc is no column; those of logs are log_id, timestamp, source_id, raw_text,"),
    ("closed", "closed is no column; those of logs are"),
    ("fibers.any(user == 'a')", "user is no column; those of fibers are fiber_id, fiber_type,"),
    ("fibers.any(user == 'a')", 'a key of that name is keys["user"]'),
    ("source_id", "source_id is no condition by itself; use one of ==, !=, .in_([…]), .contains(…)"),
    ("'a'", "'a' is no condition; write one such as config_version > 0"),
    ("source_id == config_version", "config_version is a column; source_id is compared with a value only"),
    ("1 == 2", "1 is no column"),
    ("source_id < 'a'", "source_id cannot be compared so; use one of ==, !=, .in_([…])"),
    ("source_id == 5", "5 is no text; write it in quotes"),
    ("source_id in ['a']", "source_id cannot be compared so; use one of ==, !=, .in_([…]), .contains(…)"),
    ('raw_text = "x"', 'raw_text = "x" cannot be read; to compare, write == for ='),
    ("config_version > 1 and source_id='a'", "to compare, write == for ="),
    ("source_id is None", "source_id cannot be compared so; use one of ==, !=, .in_([…])"),
    ("source_id == 'a' & raw_text.contains('b')", "binds tighter than a comparison; write and, or, not,"),
    ("raw_text.upper()", "raw_text.upper is not there; use one of"),
    ("raw_text.check('a')", "raw_text.check is not there"),
    ("raw_text.__class__", "raw_text.__class__ is no condition"),
    ("raw_text.__eq__('a')", "raw_text.__eq__ is not there"),
    ("raw_text.contains('a', 'b')", "has 2 values; contains() takes 1"),
    ("raw_text.contains(text='a')", "has names or stars"),
    ("raw_text.contains(*['a'])", "has names or stars"),
    ("raw_text.contains(raw_text)", "raw_text is no value"),
    ("raw_text.regexp_match('(')", "'(' is no regular expression of RE2"),
    (r"raw_text.regexp_match('\bGET')", "holds a backspace; put an r before the quotes"),
    ("raw_text['/a'] == 1", "only attributes have parts"),
    ("source_id.in_('web')", "'web' is no list; in_ takes one"),
    ("source_id.in_([['a']])", "['a'] is no value"),
    ("timestamp == '2024-12-10T06:55:46.123456789Z'", "finer than 1 µs; write at most 6 decimals"),
    (
        "timestamp > 'tomorrow'",
        "'tomorrow' is not ISO 8601, such as 2024-12-10T06:55:46Z; a time is 2024-05-01T",
    ),
    ("timestamp > '0001-01-01T00:00+01:00'", "is outside the years 1 to 9999 in UTC"),
    ("timestamp > 5", "5 cannot be used: 5 is no time"),
    ("log_id == 'web'", "'web' is no id; write its 32 hex digits in quotes"),
    ("log_id == 8", "8 is no id"),
    ("config_version == -1", "-1 cannot be used: config_version must be an int from 0"),
    ("config_version == 1.0", "got 1.0"),
    ("config_version == True", "got True"),
    ("config_version == -True", "-True is no value"),
    ("config_version == 1j", "1j is no value"),
    ("source_id == b'a'", "b'a' is no value"),
    ("source_id == f'a'", "f'a' is no value"),
    ("source_id == ...", "... is no value"),
    ("config_version == 1 + 1", "1 + 1 is no value"),
    ("config_version.is_active()", "config_version.is_active is not there; use one of ==, !=, <,"),
    ("pinned == True", "pinned cannot be compared so; write pinned or not pinned"),
    ("fibers.contains('a')", "'a' is no id"),
    ("fibers.any(True, True)", "has 2 values; any() takes 1"),
    ("fibers == 1", "fibers cannot be compared so; use one of .any(…), .contains(…)"),
    ("__import__('os').system('true')", "__import__('os') is no column"),
    ("__import__('os')", "__import__ cannot be called; only methods of columns can"),
    ("lambda: 1", "lambda: 1 is no condition"),
    ("(source_id := 'a')", "is no condition"),
    ("[c for c in 'a']", "is no condition"),
    ("not " * 200 + "True", "is nested too deep; 100 levels are the most"),
    ("~" * 15_000 + "True", "is nested too deep"),
    ("(" * 150 + "True" + ")" * 150 + " < 1", "True is no column"),
    ("(" * 250, "too many nested parentheses"),
    ("-" * 15_000 + "1 == config_version", "is nested too deep"),
    ("raw_text" + ".a" * 9_000, "raw_text.a.a.a"),
    ("9" * 5_000 + " == config_version", "cannot be read: Exceeds the limit"),
]
REFUSED_OF_FIBERS = [
    ("closed == True", "closed cannot be compared so; write closed or not closed"),
    ("closed.is_('x')", "expected True or False, got 'x'"),
    ("config_version.is_active", "config_version.is_active is no condition"),
    ("config_version.is_active(1)", "has 1 values; is_active() takes 0"),
    ("duration > '5x'", "'5x' is no duration; give one such as '250ms'"),
    ("duration > '0.5us'", "'0.5us' is finer than 1 µs"),
    ("duration > '1000000000d'", "is too long"),
    ("duration > 1e300", "seconds are more than a timedelta holds"),
    ("duration > 1e999", "cannot be used"),
    ("duration > True", "True is no duration"),
    ("attributes == 1", 'attributes cannot be compared so; take a part of it, such as attributes["/user"]'),
    ("attributes['user'] == 1", "'user' is no JSON pointer; for the key of that name, write '/user'"),
    ("attributes[0] == 1", "0 is no JSON pointer"),
    ("attributes['/a']['/b'] == 1", "attributes['/a']['/b'] is no column"),
    ("attributes['/a'] == [1]", "[1] is no value"),
    ("attributes['/a'] < None", "None cannot be used: an attribute is compared with"),
    ("attributes['/a'] == 1e999", "inf is beyond the numbers"),
    ("attributes['/a'].startswith('b')", "attributes['/a'].startswith is not there; use one of ==, !=, <,"),
    ("attributes['/a'].contains([1])", "[1] is no value"),
    ("keys == 'a'", "keys cannot be compared so; take those of a name, such as keys["),
    ("keys[1] == 'a'", "1 is no name of keys in quotes"),
    ("keys[''].exists()", "the name of a key has at least one character"),
    (
        "keys['a'] < 'b'",
        "keys['a'] cannot be compared so; use one of ==, !=, .exists(), .in_([…]), .startswith(…)",
    ),
    ("keys['a'] == 1", "1 is no text; write it in quotes"),
    ("activity > 1", "activity cannot be compared so; use one of .overlaps(…)"),
    ("activity.overlaps('2024-02-29T12:00Z')", "has 1 values; overlaps() takes 2"),
    ("logs.any(closed)", "closed is no column; those of logs are"),
]


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        *((parse_log_condition, *row) for row in REFUSED_OF_LOGS),
        *((parse_fiber_condition, *row) for row in REFUSED_OF_FIBERS),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, str) else "",
)
def test_anything_else_is_refused_by_its_name(
    parse: Callable[[str], Condition[Any]], text: str, says: str
) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        parse(text)
    assert says in caught.value.message
    assert len(caught.value.message) < 500


def test_many_conditions_may_be_joined() -> None:
    many = " or ".join(f'source_id == "s{number}"' for number in range(800))
    assert repr(parse_log_condition(many)).count("source_id") == 800


TIMES = st.datetimes(timezones=st.just(UTC))
TEXT = st.one_of(
    st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
)
SPANS = st.timedeltas()
IDS = st.builds(lambda number: UUID(int=number), st.integers(0, 2**128 - 1))
VERSIONS = st.integers(0, 2**64 - 1)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(-(2**63), 2**63)
SCALARS = st.none() | st.booleans() | TEXT | NUMBERS
POINTERS = st.lists(TEXT, max_size=3).map(
    lambda keys: "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
)
NAMES = TEXT.filter(bool)
ATTRIBUTES = POINTERS.map(lambda pointer: Fibers.c.attributes[pointer])


def joined(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.tuples(conditions, conditions)
    return st.one_of(
        conditions.map(lambda one: ~one),
        pairs.map(lambda pair: pair[0] & pair[1]),
        pairs.map(lambda pair: pair[0] | pair[1]),
    )


def log_conditions(fibers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    c = Logs.c
    return st.recursive(
        st.one_of(
            st.builds(lambda value: c.source_id == value, TEXT),
            st.builds(lambda value: c.source_id != value, TEXT),
            st.builds(c.source_id.in_, st.lists(TEXT)),
            st.builds(c.raw_text.contains, TEXT),
            st.builds(c.raw_text.startswith, TEXT),
            st.builds(
                c.raw_text.regexp_match, st.sampled_from([r"\d+", r"\bé'\"", "\\\\x08", "\x08", "(?i)a|b"])
            ),
            st.builds(lambda value: c.timestamp < value, TIMES),
            st.builds(lambda value: c.ingestion_time >= value, TIMES),
            st.builds(c.timestamp.between, TIMES, TIMES),
            st.builds(lambda value: c.config_version <= value, VERSIONS),
            st.builds(c.log_id.in_, st.lists(IDS)),
            st.builds(lambda value: c.log_id == value, IDS),
            st.builds(lambda ids: c.fibers.contains(*ids), st.lists(IDS)),
            st.builds(c.fibers.any, fibers),
        ),
        joined,
        max_leaves=6,
    )


def fiber_conditions(logs: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    c = Fibers.c
    return st.recursive(
        st.one_of(
            st.just(c.closed),
            st.builds(lambda value: c.duration > value, SPANS),
            st.builds(c.duration.between, SPANS, SPANS),
            st.builds(c.fiber_type.in_, st.lists(TEXT)),
            st.builds(c.activity.overlaps, TIMES, TIMES),
            st.builds(lambda attribute, value: attribute == value, ATTRIBUTES, SCALARS),
            st.builds(lambda attribute, value: attribute >= value, ATTRIBUTES, TEXT | NUMBERS),
            st.builds(lambda attribute, values: attribute.in_(values), ATTRIBUTES, st.lists(SCALARS)),
            st.builds(lambda attribute: attribute.exists(), ATTRIBUTES),
            st.builds(lambda attribute, value: attribute.contains(value), ATTRIBUTES, SCALARS),
            st.builds(lambda name, value: c.keys[name] == value, NAMES, TEXT),
            st.builds(lambda name, values: c.keys[name].in_(values), NAMES, st.lists(TEXT)),
            st.builds(lambda name, prefix: c.keys[name].startswith(prefix), NAMES, TEXT),
            st.builds(lambda name: c.keys[name].exists(), NAMES),
            st.builds(lambda ids: c.logs.contains(*ids), st.lists(IDS)),
            st.builds(c.logs.any, logs),
        ),
        joined,
        max_leaves=6,
    )


LEAF_FIBERS = st.builds(lambda value: Fibers.c.fiber_type == value, TEXT)
LEAF_LOGS = st.builds(lambda value: Logs.c.source_id == value, TEXT)


@settings(max_examples=12 * settings().max_examples, deadline=None, database=None)
@given(log_conditions(fiber_conditions(LEAF_LOGS)))
def test_what_a_condition_on_logs_is_printed_as_says_it(condition: Condition[StoredLog]) -> None:
    assert repr(parse_log_condition(repr(condition))) == repr(condition)


@settings(max_examples=12 * settings().max_examples, deadline=None, database=None)
@given(fiber_conditions(log_conditions(LEAF_FIBERS)))
def test_what_a_condition_on_fibers_is_printed_as_says_it(condition: Condition[FiberRecord]) -> None:
    assert repr(parse_fiber_condition(repr(condition))) == repr(condition)


def test_a_join_with_what_is_never_true_is_printed_as_the_other() -> None:
    never = Fibers.c.activity.overlaps(NOON, NOON - timedelta(seconds=1))
    assert repr(~(never | ~Fibers.c.closed)) == "closed"
    assert repr(never | never) == repr(never)


WORDS = st.sampled_from(
    [
        *(
            "log_id",
            "timestamp",
            "source_id",
            "raw_text",
            "fibers",
            "logs",
            "closed",
            "attributes",
            "duration",
        ),
        *("activity", "config_version", "any", "contains", "in_", "between", "is_", "exists", "overlaps"),
        *("regexp_match", "startswith", "__class__", "__import__", "and", "or", "not", "in", "is", "None"),
        *(
            "True",
            "False",
            "if",
            "else",
            "for",
            "lambda",
            "yield",
            "await",
            "%",
            "@",
            "#",
            "\\",
            ";",
            ":",
            ":=",
        ),
        *[
            ".",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            ",",
            "==",
            "!=",
            "<",
            "<=",
            ">",
            ">=",
            "&",
            "|",
            "~",
            "-",
            "+",
            "*",
            "**",
            "=",
        ],
        *(
            '"x"',
            "''",
            r'r"\b"',
            'f"x"',
            'b"x"',
            '"2024-01-01T00:00Z"',
            '"5s"',
            '["/a"]',
            '"',
            "'",
            "1",
            "0.5",
        ),
        *("1e999", "1j", "0777", "99999999999999999999", "True", "(True)"),
    ]
)
ANYTHING = st.text() | st.lists(WORDS, max_size=30).map(" ".join) | st.lists(WORDS, max_size=30).map("".join)


@pytest.mark.parametrize("parse", [parse_log_condition, parse_fiber_condition])
@settings(max_examples=12 * settings().max_examples, deadline=None, database=None)
@given(text=ANYTHING)
def test_whatever_is_given_is_a_condition_or_refused(
    parse: Callable[[str], Condition[Any]], text: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(typer.BadParameter):
            assert isinstance(parse(text), Condition)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("1us", timedelta(microseconds=1)),
        ("250ms", timedelta(milliseconds=250)),
        ("5 s", timedelta(seconds=5)),
        ("5m", timedelta(minutes=5)),
        ("5min", timedelta(minutes=5)),
        ("1.5h", timedelta(minutes=90)),
        ("-1d", timedelta(-1)),
        ("0.000001s", timedelta(microseconds=1)),
        ("86399999999999.999999s", timedelta.max),
        ("-86399999913600s", timedelta.min),
    ],
)
def test_durations_are_exact(text: str, span: timedelta) -> None:
    assert parse_duration(text) == span


@pytest.mark.parametrize(
    "text", ["", "5", "s", "5 sec", "1e3s", "nans", "\u0665s", "1_0s", "5s ", "+5s", "1" * 40 + "s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration; give one such as"):
        parse_duration(text)


def test_times_keep_their_instant() -> None:
    east = parse_log_condition('timestamp == "2024-02-29T17:30:00.000001+05:30"')
    assert repr(east) == repr(Logs.c.timestamp == datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC))
