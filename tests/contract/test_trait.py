"""The trait itself: two faces with one signature, documented, in a package whose imports point one way."""

import asyncio
import inspect
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import get_origin

import pytest

import fiberstore
from fiberstore import (
    AsyncDuckDBStorage,
    AsyncLifecycleStorage,
    AsyncPostgresStorage,
    AsyncQueryStorage,
    AsyncSqlStorage,
    AsyncStorage,
    DuckDBStorage,
    PostgresStorage,
)
from fiberstore.aio.queries import AsyncFibers, AsyncLogs, AsyncMemberships
from fiberstore.aio.storage import (
    AsyncCheckpoints,
    AsyncFiberRepository,
    AsyncLogRepository,
    AsyncMembershipRepository,
    AsyncVersions,
)
from fiberstore.contract.lifecycle import Checkpoints, LifecycleStorage, Versions
from fiberstore.contract.queries import Fibers, Logs, Memberships, QueryStorage
from fiberstore.contract.storage import Storage
from fiberstore.repositories.checkpoints import CheckpointRepository
from fiberstore.repositories.fibers import FiberRepository
from fiberstore.repositories.logs import LogRepository
from fiberstore.repositories.memberships import MembershipRepository
from fiberstore.repositories.versions import VersionRepository
from tests.support.oracle import MemoryStorage
from tests.support.oracle_lifecycle import MemoryCheckpoints, MemoryVersions
from tests.support.parameters import parametrize_mostly_slow

METHODS = {
    "init_schema": "()",
    "write_logs": "(logs)",
    "get_log": "(log_id)",
    "query_logs_by_time": "(start, end, limit=1000, offset=0, *, after=None)",
    "write_fiber": "(fiber)",
    "update_fiber": "(fiber)",
    "get_fiber": "(fiber_id)",
    "query_fibers_by_type": "(fiber_type, limit=1000, offset=0, *, after=None)",
    "write_memberships": "(memberships)",
    "get_log_fibers": "(log_id)",
    "get_fiber_logs": "(fiber_id, limit=1000, offset=0, *, after=None)",
}


def test_trait_has_the_eleven_methods_and_no_other() -> None:
    methods = {name: getattr(Storage, name) for name in _public(Storage)}
    assert {name: _without_types(method) for name, method in methods.items()} == METHODS
    assert Storage.__abstractmethods__ == set(METHODS)


def _public(contract: type) -> list[str]:
    return [name for name in sorted(dir(contract)) if not name.startswith("_")]


def _methods(contract: type) -> list[str]:
    return [name for name in _public(contract) if inspect.isfunction(getattr(contract, name))]


def _pairs(classes: dict[type, tuple[type, ...]]) -> pytest.MarkDecorator:
    pairs = [
        pytest.param(contract, cls, id=cls.__name__)
        for contract, implementations in classes.items()
        for cls in implementations
    ]
    return pytest.mark.parametrize(("contract", "cls"), pairs)


IMPLEMENTATIONS: dict[type, tuple[type, ...]] = {
    Logs: (LogRepository,),
    Fibers: (FiberRepository,),
    Memberships: (MembershipRepository,),
    Checkpoints: (CheckpointRepository, MemoryCheckpoints),
    Versions: (VersionRepository, MemoryVersions),
    LifecycleStorage: (DuckDBStorage, PostgresStorage, MemoryStorage),
}


@_pairs(IMPLEMENTATIONS)
def test_implementations_have_the_signatures_of_the_contract(contract: type, cls: type) -> None:
    for name in _methods(contract):
        method, expected = getattr(cls, name), getattr(contract, name)
        assert _without_types(method) == _without_types(expected), name
        assert inspect.getdoc(method) == inspect.getdoc(expected), name
        if name not in {"tail", "to_arrow"}:  # of which the types are closer, or not there at run time
            assert inspect.signature(method, eval_str=True) == inspect.signature(expected, eval_str=True), (
                name
            )


FACES: dict[type, tuple[type, ...]] = {
    Logs: (AsyncLogs, AsyncLogRepository),
    Fibers: (AsyncFibers, AsyncFiberRepository),
    Memberships: (AsyncMemberships, AsyncMembershipRepository),
    Checkpoints: (AsyncCheckpoints,),
    Versions: (AsyncVersions,),
    Storage: (AsyncStorage,),
    QueryStorage: (AsyncQueryStorage,),
    LifecycleStorage: (AsyncLifecycleStorage, AsyncDuckDBStorage, AsyncPostgresStorage),
}
RETURNS_A_QUERY = {"where", "order_by"}
STREAMS = {"iter_records", "to_arrow"}


@_pairs(FACES)
def test_faces_have_the_signatures_and_words_of_the_contract(contract: type, cls: type) -> None:
    for name in _methods(contract):
        method, expected = getattr(cls, name), getattr(contract, name)
        evaluates = name != "to_arrow"  # pyarrow is not there for it
        found, wanted = (inspect.signature(each, eval_str=evaluates) for each in (method, expected))
        assert found.parameters == wanted.parameters, name
        if name not in STREAMS | {"tail"}:
            assert found.return_annotation == wanted.return_annotation, name
        assert inspect.iscoroutinefunction(method) == (name not in RETURNS_A_QUERY | STREAMS), name
        assert method.__name__ == name
        assert method.__qualname__ in {f"{owner.__name__}.{name}" for owner in cls.__mro__}
        assert name == "to_arrow" or inspect.getdoc(method) == inspect.getdoc(expected), name


@pytest.mark.parametrize("contract", FACES)
def test_faces_have_no_method_more_than_the_contract(contract: type) -> None:
    (face, *_) = FACES[contract]
    assert set(_public(face)) - set(_public(contract)) <= {"close"}
    assert getattr(face, "c", None) is getattr(contract, "c", None)


@pytest.mark.parametrize("name", ["logs", "fibers", "memberships", "checkpoints", "versions"])
def test_faces_have_the_properties_of_the_contract(name: str) -> None:
    face, contract = getattr(AsyncLifecycleStorage, name), getattr(LifecycleStorage, name)
    assert face.__doc__ == contract.__doc__
    returned = inspect.signature(contract.fget).return_annotation
    assert inspect.signature(face.fget).return_annotation is FACES[returned][0]


@pytest.mark.parametrize(
    ("contract", "name", "parameter"),
    [
        pytest.param(contract, name, parameter.name, id=f"{contract.__name__}.{name}-{parameter.name}")
        for contract in (Logs, Fibers, LifecycleStorage)
        for name in _methods(contract)
        for parameter in inspect.signature(getattr(contract, name)).parameters.values()
        if get_origin(parameter.annotation) is Iterable
    ],
)
def test_an_iterable_is_read_in_the_task_of_the_caller(contract: type, name: str, parameter: str) -> None:
    threads = []

    def items() -> Iterator[object]:
        threads.append(threading.current_thread())
        yield from ()

    async def call() -> None:
        storage = AsyncLifecycleStorage(MemoryStorage(), threads=1)
        owners: dict[type, object] = {Logs: storage.logs, Fibers: storage.fibers, LifecycleStorage: storage}
        await getattr(owners[contract], name)(**{parameter: items()})
        await storage.close()

    asyncio.run(call())
    assert threads == [threading.main_thread()]


def test_a_face_is_of_a_storage_of_its_contract() -> None:
    async def wrap() -> None:
        with pytest.raises(TypeError, match="expected a LifecycleStorage, got 'store'"):
            AsyncLifecycleStorage("store", threads=1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="threads must be at least 1"):
            AsyncLifecycleStorage(MemoryStorage(), threads=0)

    asyncio.run(wrap())
    assert issubclass(AsyncDuckDBStorage, AsyncSqlStorage)
    assert issubclass(AsyncSqlStorage, AsyncLifecycleStorage)
    assert issubclass(AsyncLifecycleStorage, AsyncQueryStorage)
    assert issubclass(AsyncQueryStorage, AsyncStorage)


WRITE_STUBS = Path(__file__).parents[2] / "tools" / "write_stubs.py"
ASYNCHRONOUS = """
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

class Rows:
    async def first(self) -> int:
        def rows() -> Iterator[int]:
            yield 1

        return next(rows())

    async def each(self) -> AsyncIterator[int]:
        yield 1

    @asynccontextmanager
    async def held(self) -> AsyncIterator[int]:
        yield 1
"""


def test_a_stub_tells_a_coroutine_from_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coroutines_and_generators.py").write_text(ASYNCHRONOUS)
    monkeypatch.syspath_prepend(tmp_path)
    stub = runpy.run_path(str(WRITE_STUBS))["_Stub"](import_module("coroutines_and_generators"))
    declared = [line.strip() for line in stub.text().splitlines() if "def " in line]
    assert declared == [
        "async def first(self) -> int:",
        "def each(self) -> AsyncIterator[int]:",
        "def held(self) -> AsyncIterator[int]:",
    ]


@pytest.mark.slow
def test_the_stubs_are_up_to_date() -> None:
    found = subprocess.run(
        [sys.executable, WRITE_STUBS, "--check"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_everything_public_has_a_docstring() -> None:
    undocumented = []
    for name in fiberstore.__all__:
        thing = getattr(fiberstore, name)
        undocumented += [] if thing.__doc__ else [name]
        if not inspect.isclass(thing):
            continue
        for owner in thing.__mro__:
            if owner.__module__.startswith("fiberstore"):
                undocumented += [
                    f"{name}.{member}"
                    for member, value in vars(owner).items()
                    if (inspect.isroutine(value) or isinstance(value, property))
                    and not member.startswith("_")
                    and not inspect.getdoc(getattr(thing, member))  # the trait's words count for its methods
                ]
    assert undocumented == []


def test_every_public_name_is_the_one_that_is_defined() -> None:
    for name in fiberstore.__all__:
        thing = getattr(fiberstore, name)
        assert thing is getattr(sys.modules[thing.__module__], name), name
        assert name in dir(fiberstore)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'import_modul'"):
        fiberstore.import_modul  # type: ignore[attr-defined]  # noqa: B018


HEAVY = ("alembic", "duckdb", "pyarrow", "rich", "sqlalchemy", "typer")


@parametrize_mostly_slow(
    ("statement", "needed"),
    [
        ("import fiberstore", set()),
        ("from fiberstore import FiberRecord, LogRecord, StorageError, stable_log_id", set()),
        ("import fiberstore; fiberstore.errors.StorageError", set()),
        ("import fiberstore.exchange", {"pyarrow"}),
        ("from fiberstore import DuckDBStorage", {"duckdb", "sqlalchemy"}),
        ("from fiberstore import PostgresStorage", {"sqlalchemy"}),
    ],
)
def test_an_import_loads_what_it_needs_and_no_more(statement: str, needed: set[str]) -> None:
    program = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == needed


@pytest.mark.slow
def test_every_name_is_there_without_the_driver_of_postgresql() -> None:
    program = """
import sys
sys.modules["psycopg"] = None  # to import it fails
import inspect
import fiberstore
from fiberstore import *
assert hasattr(fiberstore, "PostgresStorage")
inspect.getmembers(fiberstore)
try:
    PostgresStorage("postgresql://host/database")
except fiberstore.DatabaseError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'fiberstore[postgresql]'" in found.stdout


@pytest.mark.slow
def test_the_command_line_starts_without_the_driver_of_postgresql() -> None:
    program = """
import sys
sys.modules["psycopg"] = None  # to import it fails
from fiberstore.cli import main
sys.argv = ["fiberstore", "db", "distribute", "--help"]
main()
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def _without_types(method: object) -> str:
    signature = inspect.signature(method)  # type: ignore[arg-type]
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters)).replace(" = ", "=")
