"""Checkpoints and versions in coroutines: each asks what it wraps, in a thread."""

from pathlib import Path

from fiberstore.aio.workers import Threads
from fiberstore.contract.lifecycle import (
    AsyncCheckpoints,
    AsyncVersions,
    Checkpoint,
    Checkpoints,
    ConfigVersion,
    GenerationDiff,
    Versions,
)
from fiberstore.contract.queries import Deleted


class ThreadedCheckpoints(AsyncCheckpoints):
    """``AsyncCheckpoints`` on ``Checkpoints``.

    Args:
        checkpoints: What is asked.
        threads: Where.
    """

    def __init__(self, checkpoints: Checkpoints, threads: Threads) -> None:
        self._checkpoints = checkpoints
        self._threads = threads

    async def get(self, name: str) -> Checkpoint | None:
        """See ``Checkpoints.get``."""
        return await self._threads.run(self._checkpoints.get, name)

    async def all(self) -> list[Checkpoint]:
        """See ``Checkpoints.all``."""
        return await self._threads.run(self._checkpoints.all)

    async def set(self, name: str, value: str) -> None:
        """See ``Checkpoints.set``."""
        await self._threads.run(self._checkpoints.set, name, value)

    async def compare_and_set(self, name: str, expected: str | None, value: str) -> None:
        """See ``Checkpoints.compare_and_set``."""
        await self._threads.run(self._checkpoints.compare_and_set, name, expected, value)

    async def delete(self, name: str) -> bool:
        """See ``Checkpoints.delete``."""
        return await self._threads.run(self._checkpoints.delete, name)


class ThreadedVersions(AsyncVersions):
    """``AsyncVersions`` on ``Versions``.

    Args:
        versions: What is asked.
        threads: Where.
    """

    def __init__(self, versions: Versions, threads: Threads) -> None:
        self._versions = versions
        self._threads = threads

    async def register(self, content: bytes | str | Path, *, parent: int | None = None) -> ConfigVersion:
        """See ``Versions.register``."""
        return await self._threads.run(self._versions.register, content, parent=parent)

    async def get(self, config_version: int) -> ConfigVersion | None:
        """See ``Versions.get``."""
        return await self._threads.run(self._versions.get, config_version)

    async def all(self) -> list[ConfigVersion]:
        """See ``Versions.all``."""
        return await self._threads.run(self._versions.all)

    async def active(self) -> ConfigVersion | None:
        """See ``Versions.active``."""
        return await self._threads.run(self._versions.active)

    async def activate(self, config_version: int | None) -> ConfigVersion | None:
        """See ``Versions.activate``."""
        return await self._threads.run(self._versions.activate, config_version)

    async def diff(self, old: int, new: int, limit: int = 1_000) -> GenerationDiff:
        """See ``Versions.diff``."""
        return await self._threads.run(self._versions.diff, old, new, limit)

    async def drop(self, config_version: int) -> Deleted:
        """See ``Versions.drop``."""
        return await self._threads.run(self._versions.drop, config_version)
