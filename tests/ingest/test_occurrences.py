"""Pattern search: the occurrences of a line, case by case."""

import pytest

from fiberstore.ingest.occurrences import Key, Occurrence, PatternSearch
from fiberstore.ingest.rules import parse_rules

SOURCES = "[sources.a]\n[sources.b]\n[sources.c]\n"


def search(*patterns: str) -> PatternSearch:
    """Search by patterns of one type, each a table of TOML without its head."""
    tables = "".join(f"[[fibers.t.patterns]]\n{pattern}\n" for pattern in patterns)
    return PatternSearch(parse_rules(f"{SOURCES}[fibers.t]\nmax_gap = '1m'\n{tables}"))


def found(line: str, *patterns: str, source: str = "a") -> list[Occurrence]:
    return [occurrence for _, occurrence in search(*patterns).find(source, line)]


def keys(line: str, *patterns: str, source: str = "a") -> list[list[str]]:
    """The keys of each occurrence, as ``name=value``."""
    return [
        [f"{key.name}={key.value}" for key in occurrence.keys]
        for occurrence in found(line, *patterns, source=source)
    ]


def test_every_named_group_with_text_is_a_key_of_its_own() -> None:
    assert found("x=1 y=", r"regex = 'x=(?P<x>\d) y=(?P<y>\d?)(?P<z>!)?'") == [Occurrence((Key("x", "1"),))]


def test_plain_patterns_make_one_occurrence_with_each_key_once() -> None:
    patterns = r"regex = 'x=(?P<x>\d)'", r"regex = 'y=(?P<x>\d)'", r"regex = 'z=(?P<z>\d)'"
    assert keys("z=1 x=1 y=1", *patterns) == [["x=1", "z=1"]]
    assert keys("nothing", *patterns) == []


def test_a_key_of_several_groups_is_one_key() -> None:
    pattern = r"""regex = '(?P<host>\S+) (?P<queue>\S*) (?P<level>\S*)'
    key = ["queue", "host"]"""
    occurrence = Occurrence((Key("queue+host", "Q1+mx1"),), (("level", "info"),))
    assert found("mx1 Q1 info", pattern) == [occurrence]
    assert found("mx1  info", pattern) == []


def test_a_key_of_several_groups_is_never_that_of_other_texts() -> None:
    pattern = r"""regex = '(?P<a>\S+) (?P<b>\S+)'
    key = ["a", "b"]"""
    texts = ["+", "\\", "\\+", "x+", "+x", "x", "\\x"]
    values = [keys(f"{a} {b}", pattern)[0][0] for a in texts for b in texts]
    assert len(set(values)) == len(texts) ** 2
    assert keys("x+ \\", pattern) == [["a+b=x\\++\\\\"]]


def test_groups_that_are_not_in_the_key_join_nothing() -> None:
    patterns = (
        r"""regex = '(?P<level>[A-Z]+) req=(?P<req>\w+)'
    key = "req" """,
        r"regex = 'user=(?P<user>\w+)'",
    )
    assert found("ERROR req=a user=u", *patterns) == [
        Occurrence((Key("req", "a"), Key("user", "u")), (("level", "ERROR"),))
    ]


def test_every_match_of_an_each_pattern_is_an_occurrence_with_a_number_of_its_own() -> None:
    blocks = r"""regex = '(?P<blk>blk_-?\d+)'
    each = true"""
    nodes = r"""regex = 'node=(?P<node>\d)(?P<up>!)?'
    key = "node"
    each = true
    close = true"""
    assert found("delete blk_1 blk_-2 node=7! job=9", blocks, nodes, r"regex = 'job=(?P<job>\d)'") == [
        Occurrence((Key("job", "9"),)),
        Occurrence((Key("blk", "blk_1"),), match=1),
        Occurrence((Key("blk", "blk_-2"),), match=2),
        Occurrence((Key("node", "7"),), (("up", "!"),), 3, close=True),
    ]


@pytest.mark.parametrize(
    ("spelling", "text", "value"),
    [
        ("lower", "4BF9-X", "4bf9-x"),
        ("hex", "4BF92F35-77B3", "4bf92f3577b3"),
        ("hex", "4bf92f3577b3", "4bf92f3577b3"),
    ],
)
def test_a_normalized_group_has_one_spelling(spelling: str, text: str, value: str) -> None:
    pattern = f"""regex = '(?P<id>\\S+)( (?P<other>\\S+))?'
    normalize = {{ id = "{spelling}" }}"""
    assert keys(text, pattern) == [[f"id={value}"]]
    assert keys(f"{text} {text}", pattern) == [[f"id={value}", f"other={text}"]]
    assert keys(text, pattern + '\nkey = ["id"]') == [[f"id={value}"]]
    assert keys(f"{text} {text}", pattern + '\nkey = ["other", "id"]') == [[f"other+id={text}+{value}"]]


def test_a_group_of_which_normalizing_leaves_nothing_is_no_key() -> None:
    assert keys("--", "regex = '(?P<id>.+)'\nnormalize.id = 'hex'") == []


def test_start_and_close_of_one_pattern_are_those_of_the_occurrence() -> None:
    thread = r"regex = '\[(?P<thread>w-\d)\]'"
    begin = r"""regex = '\[(?P<thread>w-\d)\] GET'
    start = true"""
    done = r"""regex = '(?P<thread>w-\d).* done'
    close = true"""
    graces = [f"{done}\nclose_grace = '{grace}'" for grace in ("0s", "1s", "500ms")]
    key = (Key("thread", "w-1"),)
    assert found("[w-1] query", thread, begin, done) == [Occurrence(key)]
    assert found("[w-1] GET /a", thread, begin, done) == [Occurrence(key, start=True)]
    assert found("[w-1] GET /a done", begin, thread, done) == [Occurrence(key, start=True, close=True)]
    for patterns, seconds in ((graces[:1], 0), (graces, 1), ([*graces, done], 1), ([done, graces[2]], 0.5)):
        (occurrence,) = found("[w-1] done", thread, *patterns)
        assert occurrence.close
        assert occurrence.close_grace is not None
        assert occurrence.close_grace.total_seconds() == seconds


def test_a_pattern_searches_its_sources_or_all() -> None:
    pattern = r"regex = 'x=(?P<x>\d)'"
    names = ("a", "b", "c", "undeclared")
    for source, read in (("", names), ("source = 'a'", ("a",)), ("source = ['c', 'a']", ("a", "c"))):
        assert [name for name in names if keys("x=1", f"{pattern}\n{source}", source=name)] == list(read)


def test_types_are_searched_one_by_one_in_their_order() -> None:
    table = "[fibers.{0}]\nmax_gap = '1m'\n[[fibers.{0}.patterns]]\nregex = '(?P<{0}>{0})'\n"
    finder = PatternSearch(parse_rules("".join(map(table.format, "zxy"))))
    assert [name for name, _ in finder.find("any", "x y z")] == ["z", "x", "y"]
    assert [name for name, _ in finder.find("any", "x")] == ["x"]


def test_matches_are_counted_by_pattern() -> None:
    finder = search("regex = 'x(?P<x>1?)'", "regex = '(?P<y>y)'\neach = true", "regex = '(?P<z>z)'")
    for line in ("x1", "x", "y y", "none"):
        finder.find("a", line)
    assert finder.matches == {"t": [2, 2, 0]}
