"""The trait itself: two faces with one signature, documented, in a package whose imports point one way."""

import inspect
import subprocess
import sys

import pytest
from oracle import MemoryStorage
from oracle_lifecycle import MemoryCheckpoints, MemoryVersions
from sync_face import (
    SyncCheckpoints,
    SyncFace,
    SyncFibers,
    SyncLogs,
    SyncMemberships,
    SyncVersions,
)

import fiberstore
from fiberstore import AsyncDuckDBStorage, DuckDBStorage
from fiberstore.aio.lifecycle import ThreadedCheckpoints, ThreadedVersions
from fiberstore.aio.queries import ThreadedFibers, ThreadedLogs, ThreadedMemberships
from fiberstore.aio.storage import AsyncFiberRepository, AsyncLogRepository, AsyncMembershipRepository
from fiberstore.contract.lifecycle import (
    AsyncCheckpoints,
    AsyncLifecycleStorage,
    AsyncVersions,
    Checkpoints,
    LifecycleStorage,
    Versions,
)
from fiberstore.contract.queries import (
    AsyncFibers,
    AsyncLogs,
    AsyncMemberships,
    AsyncQueryStorage,
    Fibers,
    Logs,
    Memberships,
    QueryStorage,
)
from fiberstore.contract.storage import AsyncStorage, Storage
from fiberstore.repositories.checkpoints import CheckpointRepository
from fiberstore.repositories.fibers import FiberRepository
from fiberstore.repositories.logs import LogRepository
from fiberstore.repositories.memberships import MembershipRepository
from fiberstore.repositories.versions import VersionRepository

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


@pytest.mark.parametrize("face", [Storage, AsyncStorage])
def test_trait_has_the_eleven_methods_and_no_other(face: type) -> None:
    methods = {name: getattr(face, name) for name in dir(face) if not name.startswith("_")}
    assert {name: _without_types(method) for name, method in methods.items()} == METHODS
    assert face.__abstractmethods__ == set(METHODS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("face", [AsyncStorage, DuckDBStorage, AsyncDuckDBStorage, MemoryStorage, SyncFace])
def test_every_face_has_the_signature_of_the_trait(face: type, name: str) -> None:
    method = getattr(face, name)
    # Compared as types, not text: parameters (names, kinds, defaults, annotations) and what is returned.
    assert inspect.signature(method, eval_str=True) == inspect.signature(
        getattr(Storage, name), eval_str=True
    )
    assert inspect.iscoroutinefunction(method) == face.__name__.startswith("Async")


def _methods(contract: type) -> list[str]:
    return [name for name in sorted(_public(contract)) if inspect.isfunction(getattr(contract, name))]


def _public(face: type) -> set[str]:
    return {name for name in dir(face) if not name.startswith("_")}


FACES_OF_QUERIES: dict[type, tuple[type, ...]] = {
    Logs: (AsyncLogs, ThreadedLogs, AsyncLogRepository, SyncLogs),
    Fibers: (AsyncFibers, ThreadedFibers, AsyncFiberRepository, SyncFibers),
    Memberships: (AsyncMemberships, ThreadedMemberships, AsyncMembershipRepository, SyncMemberships),
    QueryStorage: (AsyncQueryStorage, AsyncDuckDBStorage, SyncFace, DuckDBStorage),
}
FACES_OF_LIFECYCLE: dict[type, tuple[type, ...]] = {
    Checkpoints: (
        AsyncCheckpoints,
        ThreadedCheckpoints,
        SyncCheckpoints,
        CheckpointRepository,
        MemoryCheckpoints,
    ),
    Versions: (
        AsyncVersions,
        ThreadedVersions,
        SyncVersions,
        VersionRepository,
        MemoryVersions,
    ),
    LifecycleStorage: (
        AsyncLifecycleStorage,
        AsyncDuckDBStorage,
        SyncFace,
        DuckDBStorage,
        MemoryStorage,
    ),
}
ASKS_NOTHING = {"where", "order_by"}
STREAMS = {"iter_records", "to_arrow", "tail"}


@pytest.mark.parametrize(
    ("contract", "face", "name"),
    [
        pytest.param(contract, face, name, id=f"{face.__name__}.{name}")
        for contract, faces in (FACES_OF_QUERIES | FACES_OF_LIFECYCLE).items()
        for face in faces
        for name in _methods(contract)
    ],
)
def test_every_face_has_the_signatures_of_the_contract(contract: type, face: type, name: str) -> None:
    method = getattr(face, name)
    expected = inspect.signature(getattr(contract, name), eval_str=contract in FACES_OF_LIFECYCLE)
    found = inspect.signature(method, eval_str=contract in FACES_OF_LIFECYCLE)
    assert found.parameters == expected.parameters
    if name not in STREAMS:
        assert found.return_annotation == expected.return_annotation
    is_async = face.__name__.startswith(("Async", "Threaded"))
    asks_later = name in ASKS_NOTHING | {"iter_records", "to_arrow"}
    assert inspect.iscoroutinefunction(method) == (is_async and not asks_later)


@pytest.mark.parametrize(
    ("contract", "query"),
    [(Logs, LogRepository), (Fibers, FiberRepository), (Memberships, MembershipRepository)],
)
def test_queries_in_sql_have_the_arguments_of_the_contract(contract: type, query: type) -> None:
    assert {name: _without_types(getattr(query, name)) for name in _methods(contract)} == {
        name: _without_types(getattr(contract, name)) for name in _methods(contract)
    }


@pytest.mark.parametrize("contract", [Logs, Fibers, Memberships])
def test_every_face_of_a_query_has_no_method_more(contract: type) -> None:
    asynchronous, *_ = FACES_OF_QUERIES[contract]
    assert _public(asynchronous) == _public(contract)
    assert asynchronous.c is contract.c  # type: ignore[attr-defined]


@pytest.mark.parametrize("contract", FACES_OF_LIFECYCLE)
def test_every_face_of_the_lifecycle_has_no_method_more(contract: type) -> None:
    asynchronous, *_ = FACES_OF_LIFECYCLE[contract]
    assert _public(asynchronous) == _public(contract)
    assert asynchronous.__abstractmethods__ == contract.__abstractmethods__  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("name", fiberstore.__all__)
def test_every_public_name_is_the_one_that_is_defined(name: str) -> None:
    thing = getattr(fiberstore, name)
    assert thing is getattr(sys.modules[thing.__module__], name)
    assert name in dir(fiberstore)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'import_modul'"):
        fiberstore.import_modul  # type: ignore[attr-defined]  # noqa: B018


HEAVY = ("alembic", "duckdb", "pyarrow", "rich", "sqlalchemy", "typer")


@pytest.mark.parametrize(
    ("statement", "needed"),
    [
        ("import fiberstore", set()),
        ("from fiberstore import FiberRecord, LogRecord, StorageError, stable_log_id", set()),
        ("import fiberstore; fiberstore.errors.StorageError", set()),
        ("from fiberstore import DuckDBStorage", {"duckdb", "sqlalchemy"}),
    ],
)
def test_an_import_loads_what_it_needs_and_no_more(statement: str, needed: set[str]) -> None:
    program = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == needed


def _without_types(method: object) -> str:
    signature = inspect.signature(method)  # type: ignore[arg-type]
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters)).replace(" = ", "=")
