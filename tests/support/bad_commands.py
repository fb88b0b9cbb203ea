"""Bad command lines, rules and files, as data; ``test_bad_commands.py`` runs them.

{db} is a good store, {rules} good rules for it, {folder} the folder they are in, {none} a path where nothing
is. Wrong usage ends with 2, what the store or the input is refused for with 1.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb

from tests.ingest.test_rules import BAD

_NO_NUMBERS = ["many", "1.5", "1e3", "nan", "0x10", "''", "True"]
_LIMITS = [
    *(
        (value, 2, "Invalid value for '--limit'")
        for value in ("0", "-1", "-9999999999999999999", *_NO_NUMBERS)
    ),
    (str(2**63), 1, "limit must be at most 2**63 - 1, got 9223372036854775808"),
    (str(10**30), 1, "limit must be at most 2**63 - 1, got 1000"),
]
_CURSORS = [
    ("''", 1, "'' is no cursor, or not the whole of one"),
    ("x", 1, "'x' is no cursor"),
    ("é", 1, "'é' is no cursor"),
    ("lTnYRVsiMDE5YWRjYTdhM2QyNzAwMDgwMDI3MzUwYThkYTQwNjQiLDVd", 1, "not the cursor of a page"),
]
_CONDITIONS = [
    ("''", 2, "Invalid value for '--where': it is empty; give a condition such as config_version > 0"),
    ("'a b'", 2, "'--where': a b cannot be read at character 3"),
    ("nothing", 2, "'--where': nothing is no column; those of"),
    ("'1 == 2'", 2, "'--where': 1 is no column"),
    ("'config_version = 1'", 2, "config_version = 1 cannot be read; to compare, write == for ="),
    (
        "'config_version in [1]'",
        2,
        "config_version cannot be compared so; use one of ==, !=, <, <=, >, >=, .in_([…])",
    ),
    ("'config_version'", 2, "config_version is no condition by itself; use one of ==, !=, <, <="),
    ("'config_version < -1'", 2, "-1 cannot be used: config_version must be an int"),
    ("'__import__(1)'", 2, "__import__ cannot be called; only methods of columns can"),
    ("'[].__class__'", 2, "is no condition"),
    ("'" + "(" * 300 + "'", 2, "too many nested parentheses"),
    ("'" + "not " * 300 + "1'", 2, "is nested too deep; 100 levels are the most"),
]
_LOG_IDS = [
    ("''", 2, "'' is no log id; give its hex digits, at least the first four"),
    ("019", 2, "'019' is no log id"),
    ("0193", 1, "no log has an id that begins with 0193; fiberstore logs lists them"),
    ("0" * 33, 2, "is no log id"),
    (
        "9" * 32,
        1,
        "no log has the id 99999999-9999-9999-9999-999999999999; fiberstore logs lists them",
    ),
]
_TIMES = [
    ("tomorrow", 2, "'tomorrow' is not ISO 8601, such as 2024-12-10T06:55:46Z; a time is 2024-05-01T12:00Z,"),
    ("25:00", 2, "hour must be in 0..23"),
    ("5x", 2, "'5x' is no duration"),
    ("999999999d", 2, "'999999999d' ago was before the year 1; give a shorter one"),
    ("''", 2, "'' is not ISO 8601"),
    ("1709208000", 2, "'1709208000' is not ISO 8601"),
    ("2024-13-01T00:00Z", 2, "'2024-13-01T00:00Z' is not ISO 8601"),
    ("2024-02-30T00:00Z", 2, "'2024-02-30T00:00Z' is not ISO 8601"),
    ("2024-02-29T25:00Z", 2, "'2024-02-29T25:00Z' is not ISO 8601"),
    ("10000-01-01T00:00Z", 2, "'10000-01-01T00:00Z' is not ISO 8601"),
    ("0000-01-01T00:00Z", 2, "'0000-01-01T00:00Z' is not ISO 8601"),
    ("2024-02-29T12:00+25:00", 2, "'2024-02-29T12:00+25:00' is not ISO 8601"),
    ("2024-02-29T12:00:00.1234567Z", 2, "is finer than 1 µs; write at most 6 decimals"),
    ("0001-01-01T00:00+01:00", 1, "0001-01-01 00:00:00+01:00 is outside the years 1 to 9999 in UTC"),
    ("9999-12-31T23:59-00:01", 1, "9999-12-31 23:59:00-00:01 is outside the years 1 to 9999 in UTC"),
]
_IDS = [
    ("xyz", 2, "'xyz' is no fiber id; give its hex digits, at least the first four"),
    ("''", 2, "'' is no fiber id"),
    ("019", 2, "'019' is no fiber id"),
    ("0" * 33, 2, "is no fiber id"),
    ("----", 2, "'----' is no fiber id"),
    ("0193%", 2, "'0193%' is no fiber id"),
    ("٠١٢٣", 2, "'٠١٢٣' is no fiber id"),
    ("'0193 or true'", 2, "is no fiber id"),
    (
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        1,
        "no fiber has the id ffffffff-ffff-ffff-ffff-ffffffffffff; fiberstore fibers lists them",
    ),
    ("ffff", 1, "no fiber has an id that begins with ffff; fiberstore fibers lists them"),
    ("0193", 1, "0193 is the beginning of several ids, give more digits: 0193"),
]
_VERSIONS = [
    ("xyz", 2, "'xyz' is no config version; give its hex digits, at least the first four"),
    ("''", 2, "'' is no config version"),
    ("000", 2, "'000' is no config version"),
    ("0" * 17, 2, "is no config version"),
    ("0000-", 2, "'0000-' is no config version"),
    ("0x00", 2, "'0x00' is no config version"),
    ("٠١٢٣", 2, "'٠١٢٣' is no config version"),
    ("'0000 or 1=1'", 2, "is no config version"),
    ("ffff", 1, "no config version begins with ffff; fiberstore versions lists them"),
    ("f" * 16, 1, "no config version is ffffffffffffffff; fiberstore versions lists them"),
]
_TARGETS = [
    ("''", 1, 'the target is empty; give a path, a duckdb:/// URL or ":memory:"'),
    ("{none}/store.duckdb", 1, "none does not exist; create it first"),
    ("{folder}", 1, "is a folder; give the path of a file in it"),
    ("{folder}/web.log", 1, "web.log is not a DuckDB database; give another path"),
    ("{folder}/web.log/store.duckdb", 1, "web.log does not exist; create it first"),
    ("mysql://localhost/logs", 1, "mysql:// is not supported; give a path or a duckdb:/// URL"),
    ("duckdb://host/logs.duckdb", 1, "names a host"),
    ("duckdb:///{db}?no_such_setting=1", 1, "no_such_setting"),
    ("duckdb:///{db}?threads=many", 1, "'many'"),
    ("a" * 300, 1, "File name too long"),
]
_FIBER_ID = "01930000-0000-0000-0000-000000000001"
_LOG_ID = "00000000-0000-0000-0000-000000000008"
_FILTERED = ["logs", "grep a", "tail", "histogram", f"context {_LOG_ID}"]
_READERS = [
    *(*_FILTERED, "fibers", "stats", "show 0193", "db current", "db check", "doctor", "db backup {none}"),
    *("fibers --open --order longest", "tail --position ''", "histogram --fibers --by type"),
]
_FIBER_ACTIONS = ["pin", "unpin", "close", "reopen"]
_CHANGERS = [
    *("prune --older-than 1d", "prune --dry-run --max-size 1B", "redact a", "redact a --dry-run"),
    *(f"{action} --type request" for action in _FIBER_ACTIONS),
    *("merge 0193 0194", "db compact"),
]
_NO_STORE = [
    *_TARGETS,
    ("{none}", 1, "none does not exist; give the path of a store, `fiberstore ingest` makes one"),
    (":memory:", 1, ":memory: is empty, there is nothing to change; give the path of a store"),
]
_SPANS = [
    ("''", 2, "'' is no duration; give one such as '250ms'"),
    ("30", 2, "'30' is no duration"),
    ("30y", 2, "'30y' is no duration"),
    ("-1d", 2, "'-1d' is not positive"),
    ("0s", 2, "'0s' is not positive"),
    ("999999999d", 2, "'999999999d' ago was before the year 1; give a shorter one"),
    ("9999999999d", 2, "is too long; 999999999d is the longest"),
]
_SIZES = [
    *((value, 2, "is no size; give one such as '500MB', '10GB', '1.5GiB'") for value in ("''", "GB", "1EB")),
    *(
        (value, 2, f"'{value}' has no unit; give one such as '{value}GB', or B for bytes")
        for value in ("10", "1.5")
    ),
    ("0B", 2, "'0B' is not at least 1 byte"),
    ("0.0001KB", 2, "'0.0001KB' is not at least 1 byte"),
    ("--max-size=-1", 2, "'--max-size'"),
]
_VERSION_COMMANDS = [
    *("versions show", "versions drop", "versions drop --dry-run", "activate", "diff", "diff 0000"),
    *("fibers --version", "timeline --version", "histogram --fibers --version"),
]
_CHECKPOINTS = ["checkpoint", "checkpoint get a", "checkpoint set a 1", "checkpoint delete a"]
_INGEST = "ingest --rules {rules} --db {db} "

COMMANDS: list[tuple[str, int, str]] = [
    # commands and flags that are not there, or are not whole
    ("nothing", 2, "No such command 'nothing'"),
    ("LOGS --db {db}", 2, "No such command 'LOGS'"),
    ("db nothing", 2, "No such command 'nothing'"),
    ("db downgrade --db {db}", 2, "No such command 'downgrade'"),
    ("--nothing", 2, "No such option: --nothing"),
    ("logs --nothing --db {db}", 2, "No such option: --nothing"),
    ("logs --json=yes --db {db}", 2, "'--json' does not take a value"),
    ("logs more --db {db}", 2, "unexpected extra argument"),
    ("stats more --db {db}", 2, "unexpected extra argument"),
    ("db upgrade more --db {db}", 2, "unexpected extra argument"),
    ("show 0193 0194 --db {db}", 2, "unexpected extra argument"),
    ("show --db {db}", 2, "Missing argument 'FIBER'"),
    *((f"{command}", 2, "Missing option '--db'") for command in [*_READERS, "db upgrade"]),
    *((f"{command} --db", 2, "'--db' requires an argument") for command in [*_READERS, "db upgrade", "demo"]),
    *((f"{command} --limit", 2, "'--limit' requires") for command in ("logs --db {db}", "fibers --db {db}")),
    ("logs --db {db} --offset 1", 2, "No such option: --offset"),
    ("db backup --db {db}", 2, "Missing argument 'TARGET'"),
    ("db distribute --apply", 2, "give the server's URL, --db postgresql+psycopg://"),
    ("db distribute --apply --db {db}", 1, "only a server is distributed, not a file"),
    (
        "db distribute --apply --db duckdb:///{db}",
        1,
        "only a server is distributed, not a file; give a URL such as postgresql+psycopg://",
    ),
    (
        "db distribute --apply --db postgresql+psycopg://u:secret@127.0.0.1:1/x",
        1,
        "Connection refused",
    ),
    ("db backup {db} --db {db}", 1, "exists already, and nothing is overwritten; give another path"),
    ("db backup {folder} --db {db}", 1, "exists already, and nothing is overwritten"),
    ("db backup {none}/copy --db {db}", 1, "none does not exist; create it first"),
    ("db backup {none} more --db {db}", 2, "unexpected extra argument"),
    ("db backup {folder}/" + "a" * 300 + " --db {db}", 1, "File name too long"),
    ("copy", 2, "Missing argument 'SRC'"),
    ("copy {db}", 2, "Missing argument 'DST'"),
    ("copy {db} {none} more", 2, "unexpected extra argument"),
    ("copy {db} {db}", 1, "are the same store; give another DST"),
    ("copy {db} duckdb:///{db}", 1, "are the same store; give another DST"),
    ("copy {none} {none}.duckdb", 1, "none does not exist; a read-only store must be there"),
    ("copy {db} {none}/copy", 1, "none does not exist; create it first"),
    ("copy {db} {folder}/web.log", 1, "web.log is not a DuckDB database; give another path"),
    ("copy {folder}/web.log {none}", 1, "web.log is not a DuckDB database; give another path"),
    ("copy :memory: {none}", 1, "a database in memory is empty at first; it cannot be read_only"),
    ("copy '' {none}", 1, "the target is empty"),
    ("copy {db} ''", 1, "the target is empty"),
    ("db rescue --db {db}", 2, "Missing argument 'TARGET'"),
    ("db rescue {none} --db {db}", 1, "opens as it is; `fiberstore db backup` copies it"),
    ("db rescue {none} --db {folder}/web.log", 1, "web.log is not a DuckDB database"),
    (
        "db rescue {none} --db {none}",
        1,
        "does not exist; a read-only store must be there: `fiberstore ingest` makes one",
    ),
    ("doctor more --db {db}", 2, "unexpected extra argument"),
    ("doctor --repair=yes --db {db}", 2, "'--repair' does not take a value"),
    ("doctor --repair --db {none}/store.duckdb", 1, "none does not exist; create it first"),
    # numbers, times, ids
    *(
        (f"{command} --db {{db}} --limit {value}", code, says)
        for command in ("logs", "fibers", "grep a")
        for value, code, says in _LIMITS
    ),
    *(
        (f"{command} --db {{db}} --cursor {value}", code, says)
        for command in ("logs", "fibers", "grep a")
        for value, code, says in _CURSORS
    ),
    *(
        (f"{command} --db {{db}} {flag} {value}", code, says)
        for command in (*_FILTERED, "fibers")
        for flag in ("--start", "--end")
        for value, code, says in _TIMES
    ),
    *(
        (f"{command} --db {{db}} --where {value}", code, says)
        for command in (*_FILTERED, "fibers", "histogram --fibers")
        for value, code, says in _CONDITIONS
    ),
    *(
        (f"{command} --db {{db}} --fiber {value}", code, says)
        for command in _FILTERED
        for value, code, says in _IDS
    ),
    ("logs --db {db} --order longest", 2, "'longest' is not one of 'oldest', 'newest'"),
    ("fibers --db {db} --order most", 2, "'most' is not one of 'oldest', 'newest'"),
    ("logs --db {db} --source", 2, "'--source' requires an argument"),
    ("fibers --db {db} --where 'source_id == 1'", 2, "source_id is no column; those of fibers are"),
    ("grep --db {db}", 2, "Missing argument 'PATTERN'"),
    ("grep a b --db {db}", 2, "unexpected extra argument"),
    ("grep '(' --db {db}", 2, "'(' is no regular expression of RE2"),
    ("grep '(?=a)' --db {db}", 2, "is no regular expression of RE2"),
    ("context --db {db}", 2, "Missing argument 'LOG_ID'"),
    *((f"context {value} --db {{db}}", code, says) for value, code, says in _LOG_IDS),
    *((f"context {_LOG_ID} --db {{db}} {flag} -1", 2, f"'{flag}'") for flag in ("-A", "-B", "-C")),
    (f"context {_LOG_ID} --db {{db}} --within day", 2, "'day' is not one of 'source', 'fibers'"),
    (f"context {_LOG_ID} --db {{db}} -A {2**63}", 1, "2**63 - 1"),
    *((f"tail --db {{db}} -n {value}", 2, "'--lines'") for value in ("-1", *_NO_NUMBERS)),
    (f"tail --db {{db}} -n {2**63}", 1, "2**63 - 1"),
    ("tail --db {db} -n 1 --position ''", 2, "--position says where to begin"),
    ("tail --db {db} --position x", 1, "'x' is no cursor, or not the whole of one"),
    (
        "tail -f --db {none}",
        1,
        "does not exist; a read-only store must be there: `fiberstore ingest` makes one",
    ),
    ("histogram --db {db} --bucket 0s", 2, "'0s' is not positive"),
    ("histogram --db {db} --bucket -1s", 2, "'-1s' is not positive"),
    ("histogram --db {db} --bucket 1", 2, "'1' is no duration; give one such as '250ms'"),
    ("histogram --db {db} --bucket 999999999999d", 2, "is too long; 999999999d is the longest"),
    ("histogram --db {db} --bucket 1us --start 2024-01-01T00:00Z", 1, "100,000"),
    ("histogram --db {db} --by type", 2, "'--by': must be source for logs"),
    ("histogram --db {db} --by day", 2, "'day' is not one of 'source', 'type'"),
    ("histogram --db {db} --fibers --source web", 2, "'--source': is of logs; leave it out, or --fibers"),
    *((f"show --db {{db}} -- {value}", code, says) for value, code, says in _IDS),
    # what changes a store
    *((f"{command} more --db {{db}}", 2, "unexpected extra argument") for command in ("prune", "db compact")),
    *((f"{command} --dry-run=yes --db {{db}}", 2, "does not take a value") for command in _CHANGERS[:-1]),
    *((f"{command}", 2, "Missing option '--db'") for command in _CHANGERS),
    *((f"{command} --db", 2, "'--db' requires an argument") for command in _CHANGERS),
    *((f"{command} --db {value}", 1, says) for command in _CHANGERS for value, _, says in _NO_STORE),
    ("prune --db {db}", 2, "'--older-than': say what may go, by this, --type, --fibers, --source, --logs or"),
    ("prune --db {db} --compact --max-steps 1", 2, "'--older-than': say what may go"),
    *((f"prune --db {{db}} --older-than {value}", code, says) for value, code, says in _SPANS),
    *((f"prune --db {{db}} --max-size {value}", code, says) for value, code, says in _SIZES),
    *(
        (f"prune --db {{db}} --older-than 1d --max-steps {value}", 2, "'--max-steps'")
        for value in ("0", "-1", *_NO_NUMBERS)
    ),
    *(
        (f"prune --db {{db}} {flag} {value}", code, says.replace("--where", flag))
        for flag in ("--fibers", "--logs")
        for value, code, says in _CONDITIONS
    ),
    ("prune --db {db} --logs closed", 2, "'--logs': closed is no column; those of logs are"),
    ("prune --db {db} --fibers raw_text", 2, "'--fibers': raw_text is no column; those of fibers are"),
    ("redact --db {db}", 2, "Missing argument 'PATTERN'"),
    ("redact a b --db {db}", 2, "unexpected extra argument"),
    *(
        (f"redact {value} --db {{db}} {dry}", 2, f"Invalid value for PATTERN: {says}; -F takes it as plain")
        for dry in ("", "--dry-run")
        for value, says in (
            ("'x*'", "'x*' matches the empty text, so everywhere; write one that does not"),
            ("''", "'' matches the empty text, so everywhere; write one that does not"),
        )
    ),
    ("redact '(' --db {db}", 2, "'(' is no regular expression of RE2"),
    *((f"redact a --db {{db}} --fiber {value}", code, says) for value, code, says in _IDS),
    *((f"redact a --db {{db}} --where {value}", code, says) for value, code, says in _CONDITIONS),
    *(
        (f"{action} --db {{db}}", 2, f"'FIBER_ID': say which fibers to {action}, by their ids or by options")
        for action in _FIBER_ACTIONS
    ),
    *(
        (f"{action} --db {{db}} -- {value}", code, says)
        for action in (*_FIBER_ACTIONS, f"merge --dry-run --db {{db}} {_FIBER_ID}")
        for value, code, says in _IDS
    ),
    *(
        (f"{action} --db {{db}} --all-but {value}", code, says)
        for action in _FIBER_ACTIONS
        for value, code, says in _IDS
    ),
    *(
        (f"{action} --db {{db}} --idle {value}", code, says)
        for action in _FIBER_ACTIONS
        for value, code, says in _SPANS
    ),
    *(
        (f"{action} --db {{db}} --log {value}", code, says)
        for action in ("pin", "unpin")
        for value, code, says in _LOG_IDS
    ),
    (f"pin --db {{db}} --log {_LOG_ID} --open", 2, "'--log': chooses logs; leave it out, or the ids and"),
    ("close --db {db} --log 0193", 2, "No such option: --log"),
    ("merge --db {db}", 2, "Missing argument 'SURVIVOR'"),
    (f"merge {_FIBER_ID} --db {{db}}", 2, "Missing argument 'FIBER_ID"),
    (f"merge {_FIBER_ID} {_FIBER_ID} --db {{db}}", 1, _FIBER_ID),
    # generations and checkpoints
    *(
        (f"{command} {value} --db {{db}}", code, says)
        for command in _VERSION_COMMANDS
        for value, code, says in _VERSIONS
    ),
    *(
        (f"{command} --db", 2, "'--db' requires an argument")
        for command in ("versions", "activate 0000", "diff 0000", "reprocess --rules {rules}", *_CHECKPOINTS)
    ),
    *(
        (f"{command} --db {value}", 1, says)
        for command in ("versions", "diff 0000", "activate 0000", "checkpoint", "checkpoint get a")
        for value, _, says in _TARGETS
    ),
    *(
        (f"{command} --db {{none}}", 1, "none does not exist; give the path of a store")
        for command in ("activate 0000", "reprocess --rules {rules}", *_CHECKPOINTS[2:], "versions drop 0000")
    ),
    ("versions more --db {db}", 2, "No such command 'more'"),
    ("versions show 0000 more --db {db}", 2, "unexpected extra argument"),
    ("versions show --db {db}", 2, "Missing argument 'VERSION'"),
    ("versions show 0000 --db {db}", 1, "the rules of 0000000000000003 are not known"),
    ("activate --db {db}", 2, "give either a version or --none"),
    ("activate 0000 --none --db {db}", 2, "give either a version or --none"),
    ("diff --db {db}", 2, "Missing argument 'VERSION"),
    ("diff 0000 0000 0000 --db {db}", 2, "3 are too many; give the old and the new config version"),
    ("diff 0000 --db {db}", 1, "no config version is active, to compare with; give two"),
    ("diff 0000 0000 --kind all --db {db}", 2, "'all' is no kind of change; give one of split, merged,"),
    *((f"diff 0000 0000 --db {{db}} --limit {value}", code, says) for value, code, says in _LIMITS[:10]),
    ("fibers --version active --db {db}", 1, "no config version is active; fiberstore activate VERSION"),
    ("reprocess --db {db}", 2, "Missing option '--rules'"),
    ("reprocess --rules {none} --db {db}", 1, "No such file or directory; give the path of a rules file"),
    ("reprocess --rules {folder}/web.log --db {db}", 1, "correct the TOML there"),
    ("reprocess --rules {rules} --db {db}", 1, "no version is active"),
    ("checkpoint more --db {db}", 2, "No such command 'more'"),
    ("checkpoint get --db {db}", 2, "Missing argument 'NAME'"),
    ("checkpoint get a --db {db}", 1, "no checkpoint has the name 'a'; fiberstore checkpoint lists them"),
    ("checkpoint set a --db {db}", 2, "Missing argument 'VALUE'"),
    ("checkpoint set '' 1 --db {db}", 1, "a checkpoint needs a name, got an empty text"),
    ("checkpoint set a 1 --expect 2 --expect-none --db {db}", 2, "'--expect-none': contradicts --expect"),
    (
        "checkpoint set a 1 --expect 2 --db {db}",
        1,
        "checkpoint 'a': expected '2', found no value",
    ),
    # stores
    *((f"{command} --db {value}", 1, says) for command in _READERS for value, _, says in _TARGETS),
    *(
        (
            f"{command} --db {{none}}",
            1,
            "does not exist; a read-only store must be there: `fiberstore ingest` makes one",
        )
        for command in _READERS
    ),
    *((f"{command} --db :memory:", 1, "cannot be read_only") for command in _READERS),
    *((f"db upgrade --db {value}", 1, says) for value, _, says in _TARGETS),
    *((f"ingest --rules {{rules}} --db {value}", 1, says) for value, _, says in _TARGETS),
    ("demo --db {folder}", 1, "is a folder; give the path of a file in it"),
    ("demo --db {none}/store.duckdb", 1, "none does not exist; create it first"),
    ("demo --db {folder}/web.log", 1, "web.log is not a DuckDB database"),
    *((f"demo --db {{none}} --lines {value}", 2, "'--lines'") for value in ("0", "-5", *_NO_NUMBERS)),
    # ingest
    ("ingest --db {db}", 2, "Missing option '--rules'"),
    ("ingest --rules x", 2, "'--db': name the store, or add --check to store nothing"),
    ("ingest --rules --db {db}", 2, "'--db': name the store, or add --check to store nothing"),
    ("logs --tz Mars --db {db}", 2, "'Mars' is no time zone that this machine knows; give one such as"),
    ("logs --tz '' --db {db}", 2, "'' is no time zone that this machine knows"),
    ("logs --format csv --db {db}", 2, "'csv' is not one of"),
    ("logs --json --format tsv --db {db}", 2, "'--json': contradicts --format tsv; leave one of them out"),
    (
        "logs --version ffff --db {db}",
        1,
        "no config version begins with ffff; fiberstore versions lists them",
    ),
    ("rules init", 2, "Missing argument 'FILE'"),
    ("rules init {none}", 1, "none: No such file or directory"),
    ("rules init {db}", 1, "no stamp of a well-known form in"),
    ("ingest --rules {none} --db {db}", 1, "none: No such file or directory; give the path of a rules file"),
    ("ingest --rules {folder} --db {db}", 1, "Is a directory; give the path of a rules file"),
    ("ingest --rules {rules}/x --db {db}", 1, "Not a directory; give the path of a rules file"),
    ("ingest --rules {db} --db {db}", 1, "not UTF-8; save the file as UTF-8"),
    ("ingest --rules {folder}/web.log --db {db}", 1, "correct the TOML there"),
    ("ingest --rules '' --db {db}", 1, "give the path of a rules file"),
    (_INGEST + "web.log", 2, "'web.log' is not of the form SOURCE=PATH, such as sshd=auth.log"),
    (_INGEST + "web=", 2, "'web=' is not of the form SOURCE=PATH"),
    (_INGEST + "=web.log", 2, "'=web.log' is not of the form SOURCE=PATH"),
    (_INGEST + "=", 2, "'=' is not of the form SOURCE=PATH"),
    (_INGEST + "''", 2, "'' is not of the form SOURCE=PATH"),
    (_INGEST + "ftp={folder}/web.log", 1, "sources.ftp: given as ftp=FILE, but not declared; use one of web"),
    (_INGEST + "web={none}", 1, "none: No such file or directory; correct it, or give web=FILE"),
    (_INGEST + "web={db}", 1, "is not utf-8; set sources.web.encoding"),
    (_INGEST + "web={rules}", 1, "rules.toml:2: stamp '[sources.web]' does not fit format"),
]

RULES = BAD  # what is replaced in good rules, by what, the key and the words that the error holds

LOG_FILES: list[tuple[bytes, str]] = [
    (b" no stamp at all\n", "no line has a stamp that"),
    (b"2024-05-01T10:00:99Z a\n", "web.log:1: stamp '2024-05-01T10:00:99Z' does not fit format"),
    (b"2024-05-01T10:00:00Z a\n2024-02-30T10:00:00Z b\n", "web.log:2: stamp '2024-02-30T10:00:00Z'"),
    (b"2024-05-01T10:00:00Z a\n0001-01-01T00:00:00+0100 b\n", "web.log:2: stamp '0001-01-01T00:00:00+0100'"),
    (b"2024-05-01T10:00:00Z a\n9999-12-31T23:59:59-0100 b\n", "web.log:2: stamp '9999-12-31T23:59:59-0100'"),
    (b"2024-05-01T10:00:00Z caf\xe9\n", "web.log:1: byte 0xe9 at column 25 is not utf-8"),
    (b"2024-05-01T10:00:00Z \xed\xa0\x80\n", "web.log:1: byte 0xed at column 22 is not utf-8"),
    (b"2024-05-01T10:00:00Z a\0b\n", "web.log:1: NUL at character 23; remove it, or set sources.web.enc"),
    (b"\xff\xfe\x00\xd8\n\x00", "web.log:1: byte 0x00 at column 1 is not utf-16-le"),
    (b"\x1f\x8b\x08\x00 no gzip", "web.log: the compressed file is damaged or not complete"),
]


def _text(path: Path) -> None:
    path.write_text("this is no database\n" * 500)


def _magic_only(path: Path) -> None:
    path.write_bytes(bytes(8) + b"DUCK" + bytes(20_000))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5_000])


def _headers_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for position in (*range(8), *range(4_096, 4_104), *range(8_192, 8_200)):  # the checksums
        content[position] ^= 0xFF
    path.write_bytes(content)


def _sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with duckdb.connect(str(path)) as connection:
            connection.execute("SET TimeZone = 'UTC'").execute(statement)

    return change


_READING = (*_FILTERED, "fibers", "stats", "show 0193", "histogram --fibers")
_OPENING = (*_READERS, *_CHANGERS, "db upgrade")
_LOGS, _FIBERS, _SHOW = (
    ("logs", "grep ''", "tail", f"context {_LOG_ID}"),
    ("fibers", "fibers --json"),
    "show 01930000-0000-0000-0000-000000000001",
)
_NO_YEAR = "outside the years 1 to 9999"
_AT_9 = "UPDATE fiberstore_alembic_version SET version_num = '9'"
_AND_9 = "INSERT INTO fiberstore_alembic_version VALUES ('9')"
_OTHER_LOGS = "DROP TABLE fiberstore_alembic_version; DROP TABLE raw_logs; CREATE TABLE raw_logs (a INT)"

# What is done to a good store file, the commands that then refuse it, and the words.
FILES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "text": (_text, _OPENING, "is not a DuckDB database; give another path"),
    "magic only": (_magic_only, _OPENING, "fiberstore: "),
    "cut": (_cut, _OPENING, "fiberstore: "),
    "bad checksums": (_headers_flipped, _OPENING, "Corrupt"),
    "no tables": (
        _sql("DROP TABLE raw_logs"),
        _READING,
        "has no tables of fiberstore; fiberstore ingest fills",
    ),
    "other tables": (_sql(_OTHER_LOGS), ("db upgrade",), "raw_logs"),
    "later revision": (_sql(_AT_9), ("db upgrade",), "'9', which this release does not know"),
    "two revisions": (_sql(_AND_9), ("db current", "stats"), "has more than one head"),
    "no end": (_sql("UPDATE raw_logs SET timestamp = 'infinity'"), ("stats", _SHOW), _NO_YEAR),
    "year 20000": (_sql("UPDATE raw_logs SET timestamp = '20000-01-01'"), ("stats", _SHOW), _NO_YEAR),
    "no ingestion": (_sql("UPDATE raw_logs SET ingestion_time = NULL"), _LOGS, "ingestion_time of log_id"),
    "fiber's end": (_sql("UPDATE fibers SET last_activity = 'infinity'"), (*_FIBERS, _SHOW), _NO_YEAR),
    "NaN": (_sql("UPDATE fibers SET attributes = 'NaN'"), _FIBERS, "attributes are not JSON: NaN"),
    "Infinity": (_sql("UPDATE fibers SET attributes = '[-Infinity]'"), _FIBERS, "not JSON: -Infinity"),
    "1e999": (
        _sql("UPDATE fibers SET attributes = '[1e999]'"),
        _FIBERS,
        "1e999 is beyond what a float holds",
    ),
    "a comma": (_sql("UPDATE fibers SET attributes = '[1,]'"), _FIBERS, "attributes are not JSON"),
    "too deep": (
        _sql("UPDATE fibers SET attributes = repeat('[', 3000) || repeat(']', 3000)"),
        _FIBERS,
        "JSON",
    ),
    "long number": (
        _sql("UPDATE fibers SET attributes = repeat('1', 5000)"),
        _FIBERS,
        "attributes are not JSON",
    ),
}
