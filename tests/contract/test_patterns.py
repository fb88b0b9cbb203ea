"""Patterns find the same texts in both engines as in RE2 itself, or are refused."""

from collections.abc import Iterator
from contextlib import closing
from itertools import product
from typing import NamedTuple

import hypothesis.strategies as st
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from sqlalchemy.engine import URL, make_url

from fiberstore import create_engine
from fiberstore.contract.patterns import check_redaction, closed
from fiberstore.contract.queries import Logs
from fiberstore.postgresql.regex import _case_variants, to_postgres
from fiberstore.repositories.storage import SqlStorage
from fiberstore.sql.functions import RegexpMatches
from fiberstore.testing.examples import log
from tests.support import postgres_server


class Engines(NamedTuple):
    """Engines that search texts with a pattern."""

    duckdb: sa.Connection
    postgres: psycopg.Connection[tuple[object, ...]]

    def store(self, texts: list[str]) -> None:
        """Make the texts those that are looked for: the optimizer knows the values of no table."""
        self.duckdb.exec_driver_sql(
            "CREATE OR REPLACE TEMP TABLE texts AS SELECT unnest(?) AS text", (texts,)
        )

    def found_by_duckdb(self, pattern: str) -> list[str]:
        """Return the texts that DuckDB finds."""
        text = sa.column("text", sa.String)
        query = sa.select(text).select_from(sa.table("texts")).where(RegexpMatches(text, pattern))
        return list(self.duckdb.scalars(query.order_by(sa.text("rowid"))))

    def found_by_postgres(self, pattern: str, texts: list[str]) -> list[str] | None:
        """Return the texts that PostgreSQL finds with the translated pattern; None if it gives up.

        Repetitions of repetitions are too complex for it, or it tries them one by one.
        """
        query = 'SELECT text FROM unnest(%s::text[]) AS text WHERE text COLLATE "C" ~ %s'
        try:
            return [str(text) for (text,) in self.postgres.execute(query, [texts, to_postgres(pattern)])]
        except psycopg.errors.QueryCanceled:
            return None
        except psycopg.errors.InvalidRegularExpression as error:
            if "too complex" in str(error):
                return None
            raise


def found_by_re2(pattern: str, texts: list[str]) -> list[str]:
    found: list[str] = pa.array(texts).filter(pc.match_substring_regex(pa.array(texts), pattern)).to_pylist()
    return found


@pytest.fixture(scope="module")
def engines(postgres_server_url: URL) -> Iterator[Engines]:
    engine = create_engine(":memory:", threads=1)
    with (
        closing(engine.connect()) as one,
        postgres_server.database(postgres_server_url) as url,
        postgres_server.connected(make_url(url)) as other,
    ):
        other.execute("SET statement_timeout = '5s'")
        yield Engines(one, other)
    engine.dispose()


TEXTS = [
    "", "a", "A", "b", "ab", "aB", "Ab", "AB", "aab", "abab", "aaaa", "k", "K", "\u212a", "s", "S", "\u017f",
    "i", "I", "\u0131", "İ", "é", "É", "ß", "ẞ",
    "\u03c3", "ς", "Σ", "ǅ", "aéb", "éa", "é é", "日本", "🙂", "a\n", "\na", "a\nb", "\n", "\n\n", "\r\n",
    "\t", " ", "\v", "\f",
    "\x01", "\x7f", "\xa0", "٣", "0", "42", "_", "-", "]", "[", "^", "\\", ".", "*", "{", "}", "a{,2}",
    "a.b", "(a)", "|",
    "a b", "a-b", "a_b", "\U0010ffff", "\u2028", "***:a",
    "x" * 300, "x" * 999, "x" * 1000, "ab" * 200, "\\Y", "\\E", ":",
]  # fmt: skip

PATTERNS = [
    # text and escapes
    "", "a", "ab", "é", "🙂", r"\.", r"\*\*\*:a", r"\_", r"\-", "]", "}", "{", "a{,2}", "a{", r"a{2,3",
    "a{01}", "-",
    r"\x41", r"\x{e9}", r"\x{10FFFF}", r"\x{1F642}", r"\101", r"\011", r"\08", r"\0", r"\x00", r"\x{D800}",
    r"\377",
    r"\a|\f|\t|\n|\r|\v", r"\n", r"\t", r"\v", r"\f", r"\\", r"\\Y", r"\Qa.b\E", r"\Q(a)", r"\Q\E",
    r"\Q\\E", r"\Qab\E+", r"\Qa.", "\\Qa.b\\", r"a\\Q", r"a\ b", r"\\.", r"a\.b",
    r"a\Q\E*b", "\n", " ", "#",
    # an empty group at an edge
    "(?:)a", "a(?:)", "(?i:)a", "(?:)(?:)b", "(?:)^a", "a$(?:)", "(?s)(?:).b", "(?s)a.(?:)", "(?:|)a",
    "(?:)a|k", r"^a\.b", "^^a", "^ab", "^aab",
    # any character, lines, the whole and words
    ".", "a.b", "(?s)a.b", "(?s:a.)b", "(?s).", "(?-s).", "^", "$", "^$", "^a", "a$", "(?m)^a", "(?m)a$",
    "(?m)^$",
    "(?m)^b$", "(?m:^)b", r"\Aa", r"a\z", r"(?m)\Ab", r"(?m)a\z", "(?m)$a", "a^", "$a", r"\b", r"\B",
    r"\ba", r"\Ba",
    r"a\b", r"a\B", r"\b\B", r"\bé", r"\Bé", r"é\B", r"\B$", r"^\B", r"\B\B", r"(?:\B)+", r"\B{2}", r"b|\B",
    r"\b_\b",
    # classes
    r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"^\d+$", r"^\W+$", r"^\S+$", r"[\d]", r"[^\d]", r"[\D]",
    r"[^\D]", r"[\W\d]",
    r"[^\W\d]", r"[\s\S]", r"[^\s\S]", "[a-c]", "[^a]", "[^a-z]", "[]a]", "[^]a]", r"[a\]b]", "[-a]",
    "[a-]", "[a-c-e]",
    "[+--]", r"[\x00-\x1f]", r"[^\x00-\x{10FFFF}]", r"[\x00-\x{10FFFF}]", r"[\n]", r"[^\n]", "[[]", "[[:]",
    "[[a]", "[a^]",
    r"[\^]", r"[\\]", "[.]", "[[.a.]]", "[[=a=]]", r"[\-a]", r"[\]-a]", "[é-ÿ]", "[^é]", r"[\w-z]",
    "[a-c[:digit:]]", "[(?<a>]",
    *(f"[[:{sign}{name}:]]" for sign in ("", "^") for name in (
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
        "upper", "word", "xdigit",
    )),
    "[^[:alpha:]]", "[^[:^alpha:]]", "[[:alpha:][:^digit:]]",
    # case
    "(?i)a", "(?i)k", "(?i)\u212a", "(?i)s", "(?i)\u017f", "(?i)i", "(?i)\u0131", "(?i)İ", "(?i)É", "(?i)ß",
    "(?i)ς", "(?i)ǆ", "(?i)[k]",
    "(?i)[^k]", "(?i)[^S]", "(?i)[a-z]", "(?i)[^a-z]", r"(?i)\w", r"(?i)\W", r"(?i)[\W]", r"(?i)[^\w]",
    "(?i)[[:lower:]]",
    "(?i)[[:^upper:]]", "(?i)[[:^ascii:]]", "(?i)aB", "a(?i)b", "(?i:a)b", "(?i:a(?-i)b)", "((?i)a|B)b",
    "(?:(?i)a)b", "(?i)a(?-i)b|B",
    r"(?i)\x41", r"(?i)\Qa\E", "(?is)a.b", "(?i-s)A.B", "(?im)^B$", "(?-i)a",
    # groups, alternatives and repetitions
    "(a)(b)", "(?:ab)+", "(?P<n>a)b", "(?P<n>a|b)+$", "()", "(|a)b", "a||b", "|", "(a|)", "a|b|", "(?:)",
    "(?:)*b", "(?)", "(a|b)*$",
    "a*", "a+b", "a?b$", "a*?b", "a+?$", "a??b", "a{2}", "a{2,}", "a{1,2}b", "a{2}?", "a{2,3}?$", "^a{0}b",
    "a{0,}", "a{0,0}$",
    "(?U)a+", "(?U)a+?b", "^*a", "$+", r"\b*a", r"(?:^)*b", "(?:a|^)+b", "(?m)(?:^|a)*$", "(?:a*)*b",
    "(?:a+)+$", "(?:a{2}){2}",
    "a(?i)*b", "a*(?i)*b", "ab*", "(?:ab)*$", "^x{300}$", "^x{255,300}$", "^x{999,}$", "x{256,1000}$",
    "^x{1000}$", "^x{0,299}$",
    "^(?:x{2}){500}$", "^(?:x{100,}){3}$", "(?:(?:(?:(?:(?:a+)+)+)+)+)+b",
]  # fmt: skip


REFUSED = [
    (r"\pL", r"has \\pL"),
    (r"a\p{Greek}+", r"has \\p\{Greek\}, .* as ranges"),
    (r"[a\PN]", r"has \\PN"),
    (r"[^\p{^Lu}]", r"has \\p\{\^Lu\}"),
    ("(" * 101 + "a" + ")" * 101, "more than 100 deep"),
    ("(?<n>a)", r"has \(\?<, .* written \(\?P<name>"),
]

CHARACTERS = st.sampled_from("abAkKsSiIéÉßẞ\u017f\u212a\u0131\u03c3ς日🙂01_ -.\n\t\r\x01]^\\")
TEXT = st.text(CHARACTERS, max_size=6)
MEMBERS = st.sampled_from([
    "a", "a-k", "k", "S", "é", "É-ß", "ς", "0-9", "-", "_", "^", ".", " ", r"\]", r"\\", r"\n",
    r"\x{1F642}", r"\x00-\x1f",
    r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "[:alpha:]", "[:^alpha:]", "[:word:]", "[:^word:]",
    "[:upper:]", "[:punct:]",
])  # fmt: skip
CLASSES = st.builds(
    "[{}{}]".format, st.sampled_from(["", "^"]), st.lists(MEMBERS, min_size=1, max_size=3).map("".join)
)
ATOMS = st.one_of(
    CHARACTERS.map(lambda character: "\\" * (character in r".]^\-") + character),
    CLASSES,
    st.sampled_from([
        ".", "^", "$", r"\A", r"\z", r"\b", r"\B", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "(?i)", "(?m)",
        "(?s)", "(?-i)",
        r"\Qa.\E", r"\Q", r"\x41", r"\101", r"\0", "()", "(?:)", "(?i:)", "{", "}", "{,2}",
    ]),
)  # fmt: skip
GROUPS = st.sampled_from(["(", "(?:", "(?i:", "(?-i:", "(?m:", "(?s:", "(?im-s:", "(?U:"])
QUANTIFIERS = st.sampled_from(["*", "+", "?", "*?", "{2}", "{0}", "{1,}", "{0,2}", "{2,3}?"])
GRAMMAR = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join),
        st.builds("{}{})".format, GROUPS, inner),
        st.builds("{}{}){}".format, GROUPS, inner, QUANTIFIERS),
        st.builds("{}{}".format, ATOMS, QUANTIFIERS),
    ),
    max_leaves=8,
)
TOKENS = [
    *"aksé0_-.^$|()[]{}*+?,:\\n=!<", "(?i)", "(?:", "(?P<n>", "(?<n>", "[^", "[[:", ":]", "[:alpha:]",
    r"\Q", r"\E", r"\b", r"\B", r"\W", r"\x", "41",
    r"\1", r"\0", "{2}", "{1,", "2}", "&&", "(?", "(?-s:", "\n",
]  # fmt: skip
SOUP = st.lists(st.sampled_from(TOKENS), min_size=1, max_size=8).map("".join)


def test_every_pattern_finds_the_same_texts(engines: Engines) -> None:
    engines.store(TEXTS)
    found = {}
    for pattern in PATTERNS:
        Logs.c.raw_text.regexp_match(pattern)
        found[pattern] = (engines.found_by_duckdb(pattern), engines.found_by_postgres(pattern, TEXTS))
    assert found == {pattern: (found_by_re2(pattern, TEXTS),) * 2 for pattern in PATTERNS}


@given(
    patterns=st.lists(GRAMMAR | SOUP, min_size=10, max_size=30), texts=st.lists(TEXT, min_size=5, max_size=15)
)
@settings(deadline=None)
def test_any_pattern_finds_the_same_texts(engines: Engines, patterns: list[str], texts: list[str]) -> None:
    _check_same(engines, patterns, texts)


@pytest.mark.slow
def test_many_patterns_find_the_same_texts(engines: Engines, long_form: bool) -> None:
    @given(
        patterns=st.lists(GRAMMAR | SOUP, min_size=10, max_size=50),
        texts=st.lists(TEXT, min_size=5, max_size=30),
    )
    @settings(
        max_examples=50_000 if long_form else 80, deadline=None, suppress_health_check=list(HealthCheck)
    )
    def check(patterns: list[str], texts: list[str]) -> None:
        _check_same(engines, patterns, texts)

    check()


@given(patterns=st.lists(GRAMMAR | SOUP, min_size=20, max_size=40))
@settings(deadline=None)
def test_no_pattern_that_is_redacted_matches_the_empty_text(patterns: list[str]) -> None:
    _check_refused_where_empty(patterns)


@pytest.mark.slow
def test_many_patterns_that_are_redacted_match_no_empty_text(long_form: bool) -> None:
    @given(patterns=st.lists(GRAMMAR | SOUP, min_size=20, max_size=40))
    @settings(max_examples=5_000 if long_form else 50, deadline=None)
    def check(patterns: list[str]) -> None:
        _check_refused_where_empty(patterns)

    check()


@pytest.mark.parametrize(
    "pattern",
    [
        r"x|\B", r"[^a0 \n]|\b", r"\w|\b", "(?m)a|$", "(?m)^(?:x|$)", r"(?m)^\B$", r"\B^", r"\b\A",
        r"(?m)^\b",
        r"\Qa\E|\b", r"a|\Q", "(?:a|(?:)){3}", "a{0}", "(?i)k??", r"[a0 \n]|\B\z", r"(?s).|\z", r"a|(?m:$)\b",
    ],
)  # fmt: skip
def test_what_matches_the_empty_text_beside_something_is_not_redacted(pattern: str) -> None:
    with pytest.raises(ValueError, match="matches the empty text"):
        check_redaction(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"a\b",
        r"\Ba",
        "(?m)^a$",
        "(?:)a",
        "a(?:)",
        r"\b\B",
        "(?-m)$a",
        r"a\zb*",
        r"\Q|",
        r"(?m)$\b^",
        "[^\\s\\S]",
    ],
)
def test_what_matches_some_text_only_is_redacted(pattern: str) -> None:
    check_redaction(pattern)


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_redact_replaces_what_re2_replaces(any_storage: SqlStorage, long: bool, long_form: bool) -> None:
    @given(
        patterns=st.lists(GRAMMAR, min_size=10, max_size=20), texts=st.lists(TEXT, min_size=5, max_size=15)
    )
    @settings(
        max_examples=1_000 if long and long_form else 10 if long else 2,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(patterns: list[str], texts: list[str]) -> None:
        for pattern in [*patterns, "(?:)a", "b(?:)", r"\Qa."]:
            _check_redacted(any_storage, pattern, [*texts, "xa", "ab", "a.b"])

    check()


@pytest.mark.parametrize(("pattern", "message"), REFUSED)
def test_what_postgres_cannot_say_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_postgres(pattern)


@pytest.mark.slow
def test_case_is_ignored_as_by_re2(engines: Engines) -> None:
    letters = [chr(code) for code in _case_variants()]
    query = r"SELECT regexp_extract_all(?, '(?i)' || letter) FROM (SELECT unnest(?) AS letter)"
    rows = engines.duckdb.exec_driver_sql(query, ("".join(letters), letters)).fetchall()
    assert [set(map(ord, same)) for (same,) in rows] == list(_case_variants().values())


@pytest.mark.slow
def test_what_is_no_such_letter_has_no_case_for_re2(engines: Engines) -> None:
    codes = [
        code for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000 and code not in _case_variants()
    ]
    assert _matched(engines, _class(list(_case_variants())), codes) == []
    for bit in range(8, 21):  # any two of them are in two blocks of 256, or in one
        members = _class([code for code in codes if code >> bit & 1])
        assert _matched(engines, members, [code for code in codes if not code >> bit & 1]) == []
    low = [code for code in codes if code < 0x20000]
    query = r"""
        WITH one AS (SELECT unnest(?) AS code),
        block AS (SELECT code // 256 AS number, string_agg(chr(code), '') AS text FROM one GROUP BY ALL)
        SELECT code FROM one JOIN block ON number = code // 256
        WHERE len(regexp_extract_all(text, printf('(?i)\x{%x}', code))) <> 1
    """
    assert engines.duckdb.exec_driver_sql(query, (low,)).fetchall() == []


def _class(codes: list[int]) -> str:
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if before != code - 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if after != code + 1]
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in zip(starts, ends, strict=True))


def _matched(engines: Engines, members: str, codes: list[int]) -> list[str]:
    query = "SELECT unnest(regexp_extract_all(?, ?))"
    rows = engines.duckdb.exec_driver_sql(query, ("".join(map(chr, codes)), f"(?i)[{members}]")).fetchall()
    return [character for (character,) in rows]


def _check_same(engines: Engines, patterns: list[str], texts: list[str]) -> None:
    engines.store(texts)
    for pattern in patterns:
        try:
            Logs.c.raw_text.regexp_match(pattern)
        except ValueError:
            continue
        found = found_by_re2(pattern, texts)
        assert engines.found_by_duckdb(pattern) == found, pattern
        assert engines.found_by_postgres(pattern, texts) in (found, None), pattern


def _check_refused_where_empty(patterns: list[str]) -> None:
    for pattern in patterns:
        try:
            check_redaction(pattern)
        except ValueError:
            continue
        marked = pc.replace_substring_regex(pa.array(_SHORT_TEXTS), closed(pattern), r"<\0>").to_pylist()
        assert not [text for text in marked if "<>" in text], pattern


_SHORT_TEXTS = ["".join(letters) for length in range(4) for letters in product("aA0_ \n-é", repeat=length)]


def _check_redacted(storage: SqlStorage, pattern: str, texts: list[str]) -> None:
    try:
        check_redaction(pattern)
    except ValueError:
        return
    new = pc.replace_substring_regex(pa.array(texts), closed(pattern), "[redacted]").to_pylist()
    number = sum(map(str.__ne__, texts, new))
    storage.logs.delete()
    storage.write_logs([log(place, text=text) for place, text in enumerate(texts)])
    assert storage.logs.where(Logs.c.raw_text.regexp_match(pattern)).count() == number, pattern
    assert storage.logs.redact(pattern) == number, pattern
    assert [row.raw_text for row in storage.logs.iter_records()] == new, pattern
