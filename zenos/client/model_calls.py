"""The registry's models: what both clients can do with them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from zenos.client import calls
from zenos.client.calls import Call
from zenos.client.types import ModelVersion, Removed

T = TypeVar("T")


class Models:
    """What a client can do with models."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def models(self) -> list[ModelVersion]:
        """All versions of all models that can be read."""
        return self._run(calls.models()).models

    def damaged_models(self) -> dict[str, str]:
        """What is wrong with the versions that cannot be read, by `name:version`."""
        return self._run(calls.models()).damaged

    def model(self, ref: str) -> ModelVersion:
        """`name` (the latest), `name:3` or `name:alias`."""
        return self._run(calls.model(ref))

    def remove(self, ref: str) -> Removed:
        """Remove a version."""
        return self._run(calls.remove(ref))

    def alias(self, name: str, alias: str, version: int) -> ModelVersion:
        """Let `name:alias` mean this version."""
        return self._run(calls.alias(name, alias, version))

    def copy(self, source: str, target: str) -> ModelVersion:
        """Register a version under another name too; its blobs are shared."""
        return self._run(calls.copy(source, target))

    def import_model(self, path: str | Path, name: str) -> ModelVersion:
        """Register a Hugging Face directory on the daemon's machine."""
        return self._run(calls.import_model(path, name))

    def export_model(self, ref: str, path: str | Path) -> Path:
        """Write a Hugging Face directory on the daemon's machine."""
        return Path(self._run(calls.export_model(ref, path)).path)


class AsyncModels:
    """The same, awaited."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def models(self) -> list[ModelVersion]:
        """All versions of all models that can be read."""
        return (await self._run(calls.models())).models

    async def damaged_models(self) -> dict[str, str]:
        """What is wrong with the versions that cannot be read, by `name:version`."""
        return (await self._run(calls.models())).damaged

    async def model(self, ref: str) -> ModelVersion:
        """`name` (the latest), `name:3` or `name:alias`."""
        return await self._run(calls.model(ref))

    async def remove(self, ref: str) -> Removed:
        """Remove a version."""
        return await self._run(calls.remove(ref))

    async def alias(self, name: str, alias: str, version: int) -> ModelVersion:
        """Let `name:alias` mean this version."""
        return await self._run(calls.alias(name, alias, version))

    async def copy(self, source: str, target: str) -> ModelVersion:
        """Register a version under another name too; its blobs are shared."""
        return await self._run(calls.copy(source, target))

    async def import_model(self, path: str | Path, name: str) -> ModelVersion:
        """Register a Hugging Face directory on the daemon's machine."""
        return await self._run(calls.import_model(path, name))

    async def export_model(self, ref: str, path: str | Path) -> Path:
        """Write a Hugging Face directory on the daemon's machine."""
        return Path((await self._run(calls.export_model(ref, path))).path)
