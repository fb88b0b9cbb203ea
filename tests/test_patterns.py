"""Patterns of RE2 find the same texts in PostgreSQL as in DuckDB, or are refused."""

from collections.abc import Iterator
from typing import NamedTuple

import duckdb
import hypothesis.strategies as st
import postgres_server
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy.engine import URL

from fiberstore.patterns import _case_variants, to_postgres
from fiberstore.queries import Logs


class Engines(NamedTuple):
    """Where texts are looked for with a pattern."""

    duckdb: duckdb.DuckDBPyConnection
    postgres: psycopg.Connection

    def found(self, pattern: str, texts: list[str]) -> list[str]:
        """Return the texts that DuckDB finds, with a pattern it takes."""
        query = "SELECT text FROM (SELECT unnest(?) AS text) WHERE regexp_matches(text, ?)"
        return [text for (text,) in self.duckdb.execute(query, [texts, pattern]).fetchall()]

    def found_by_postgres(self, pattern: str, texts: list[str]) -> list[str]:
        """Return the texts that PostgreSQL finds with the translated pattern."""
        query = 'SELECT text FROM unnest(%s::text[]) AS text WHERE text COLLATE "C" ~ %s'
        return [text for (text,) in self.postgres.execute(query, [texts, to_postgres(pattern)])]


@pytest.fixture(scope="module")
def engines(postgres_server_url: URL) -> Iterator[Engines]:
    with (
        duckdb.connect(config={"threads": 1}) as one,
        psycopg.connect(postgres_server.plain(postgres_server_url), autocommit=True) as other,
    ):
        yield Engines(one, other)


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
    r"\Q\\E", r"\Qab\E+",
    r"a\Q\E*b", "\n", " ", "#",
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
    (r"a\C", r"has \\C, .* write \(\?s:\.\)"),
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
        r"\Qa.\E", r"\x41", r"\101", r"\0", "()", "{", "}", "{,2}",
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
    found = {}
    for pattern in PATTERNS:
        Logs.c.raw_text.regexp_match(pattern)
        found[pattern] = engines.found_by_postgres(pattern, TEXTS)
    assert found == {pattern: engines.found(pattern, TEXTS) for pattern in PATTERNS}


@given(
    patterns=st.lists(GRAMMAR | SOUP, min_size=10, max_size=30), texts=st.lists(TEXT, min_size=5, max_size=15)
)
@settings(max_examples=10, deadline=None)
def test_any_pattern_finds_the_same_texts(engines: Engines, patterns: list[str], texts: list[str]) -> None:
    _check_same(engines, patterns, texts)


@pytest.mark.slow
def test_many_patterns_find_the_same_texts(engines: Engines, long_form: bool) -> None:
    @given(
        patterns=st.lists(GRAMMAR | SOUP, min_size=10, max_size=50),
        texts=st.lists(TEXT, min_size=5, max_size=30),
    )
    @settings(
        max_examples=50_000 if long_form else 200, deadline=None, suppress_health_check=list(HealthCheck)
    )
    def check(patterns: list[str], texts: list[str]) -> None:
        _check_same(engines, patterns, texts)

    check()


@pytest.mark.parametrize(("pattern", "message"), REFUSED)
def test_what_postgres_cannot_say_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_postgres(pattern)


def test_case_is_ignored_as_by_re2(engines: Engines) -> None:
    letters = [chr(code) for code in _case_variants()]
    query = r"SELECT regexp_extract_all(?, '(?i)' || letter) FROM (SELECT unnest(?) AS letter)"
    rows = engines.duckdb.execute(query, ["".join(letters), letters]).fetchall()
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
    assert engines.duckdb.execute(query, [low]).fetchall() == []


def _class(codes: list[int]) -> str:
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if before != code - 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if after != code + 1]
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in zip(starts, ends, strict=True))


def _matched(engines: Engines, members: str, codes: list[int]) -> list[str]:
    query = "SELECT unnest(regexp_extract_all(?, ?))"
    rows = engines.duckdb.execute(query, ["".join(map(chr, codes)), f"(?i)[{members}]"]).fetchall()
    return [character for (character,) in rows]


def _check_same(engines: Engines, patterns: list[str], texts: list[str]) -> None:
    for pattern in patterns:
        try:
            Logs.c.raw_text.regexp_match(pattern)
        except ValueError:
            continue
        assert engines.found_by_postgres(pattern, texts) == engines.found(pattern, texts), pattern
