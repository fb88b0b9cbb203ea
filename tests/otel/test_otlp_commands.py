"""``import otlp`` and ``export traces``."""

import json
from pathlib import Path

import pytest

from fiberstore import DuckDBStorage
from fiberstore.testing.examples import fiber
from tests.otel.test_otlp_logs import OTHER, SPANS, TRACE, record, request, written
from tests.support.command_line import Run, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def test_traces_go_in_and_out_by_commands(run: Run, db_file: Path, tmp_path: Path) -> None:
    path = written(
        tmp_path / "logs.json",
        request(record(1, TRACE, SPANS[0]), record(2, OTHER), record(3, timeUnixNano=0)),
        {"resourceMetrics": []},
        request(record(4, TRACE), service="mail"),
        {"resourceLogs": []},
    )
    path.write_bytes(path.read_bytes()[:-4])
    done = run("import", "otlp", path, "--db", db_file)
    assert done.code == 0
    assert done.out.startswith("4 logs read, 3 new; 2 new fibers, 3 new memberships; ")
    assert done.err.splitlines() == [
        "fiberstore: 1 log without a time left out",
        "fiberstore: 1 line of spans, metrics or profiles left out",
        "fiberstore: the last line is cut off, and left out; the same command adds it once it is whole",
    ]
    again = run("import", "otlp", path, "--db", db_file, "--json").objects[0]
    assert (again["logs_read"], again["logs_new"], again["is_complete"]) == (4, 0, False)
    assert "line 4 trace_id" in run("show", TRACE, "--db", db_file).out
    out = tmp_path / "traces.json"
    key = f'keys["span_id"] == "{SPANS[0]}"'
    written_out = run("export", "traces", out, "--db", db_file, "--where", key)
    assert written_out.out.startswith(f"{out}: 1 fiber with 2 logs; ")
    names = [
        span["name"]
        for resource in json.loads(out.read_text())["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert names == ["trace", "shop", "mail"]


def test_traces_are_those_of_the_active_version(run: Run, store_file: Path, tmp_path: Path) -> None:
    with DuckDBStorage(store_file) as storage:
        storage.write_fibers([fiber(1, config_version=1), fiber(2, config_version=2)])
        storage.versions.activate(2)
    done = run("export", "traces", tmp_path / "traces.json", "--db", store_file, "--json")
    assert done.objects[0]["fibers"] == 1
    assert "--version all is every one" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "otlp", "missing.json"), "missing.json is no file; give one that the collector"),
        (("import", "otlp", "wrong.json"), "wrong.json, line 1: no JSON at column 1"),
        (("export", "traces", "wrong.json"), "wrong.json exists already"),
    ],
)
def test_wrong_files_are_told(
    run: Run, store_file: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "wrong.json").write_text("no json\n")
    done = run(*arguments[:2], tmp_path / arguments[2], "--db", store_file)
    assert done.code == 1
    assert message in done.err
