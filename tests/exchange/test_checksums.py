"""Checksums of tables, by which a copy and its source are compared."""

from datetime import timedelta

import pytest

from fiberstore import DuckDBStorage, Logs
from fiberstore.copying.checksums import canonical_json, table_checksums
from fiberstore.testing.examples import NOON, all_logs, stored, uid
from tests.exchange.test_copying import fill


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"b": 1, "a": [2]}', '{"a":[2],"b":1}'),
        ("1e16", "10000000000000000"),
        ("1e23", str(10**23)),
        ("-0.0", "0"),
        ("1.0", "1"),
        ('"\\u00e9"', '"é"'),
        ("5e-324", "0." + "0" * 323 + "5"),
    ],
)
def test_texts_of_one_json_value_are_alike(one: str, other: str) -> None:
    assert canonical_json(one) == canonical_json(other)


@pytest.mark.slow
def test_texts_of_other_json_values_are_not_alike() -> None:
    texts = ["1", "true", '"1"', "[1]", "null", '"null"', "0.1", "0", "false", "{}", "[]", '""', str(2**64)]
    assert len({canonical_json(text) for text in [*texts, "18446744073709551617"]}) == len(texts) + 1


@pytest.mark.slow
def test_sums_do_not_depend_on_the_order_and_tell_every_value_apart(
    source: DuckDBStorage, destination: DuckDBStorage
) -> None:
    fill(source)
    sums = table_checksums(source)
    destination.write_logs(reversed(all_logs(source)))
    destination.write_fibers(reversed(list(source.fibers.iter_records())))
    destination.write_memberships(reversed(list(source.memberships.iter_records())))
    for table in ("raw_logs", "fibers", "fiber_memberships"):
        assert table_checksums(destination)[table] == sums[table]

    log_of = {"timestamp": NOON + timedelta(microseconds=1), "source_id": "x", "raw_text": "y"}
    log_of |= {"ingestion_time": NOON + timedelta(microseconds=1), "config_version": 4}
    for name, value in log_of.items():
        seen = table_checksums(source)
        source.write_logs([stored(900)])
        plain = table_checksums(source)
        source.logs.where(Logs.c.log_id.in_([uid(900)])).delete()
        source.write_logs([stored(900).model_copy(update={name: value})])
        assert table_checksums(source)["raw_logs"] not in (plain["raw_logs"], seen["raw_logs"]), name
        source.logs.where(Logs.c.log_id.in_([uid(900)])).delete()
        assert table_checksums(source) == seen
