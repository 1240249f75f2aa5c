"""Small models for the registry's tests, written without torch, and what a registry consists of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from zenos.core import durable
from zenos.models.registry import ModelVersion, Registry

CONFIG = {"model_type": "llama", "hidden_size": 4}


def pack(header: object, data: bytes = b"") -> bytes:
    """A safetensors file of this header, true or not; bytes are taken as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(start: int, end: int, shape: list[Any] | None = None, dtype: str = "U8") -> Any:
    """An entry of a header; by default as many single bytes as the offsets say."""
    shape = [end - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def weights(data: bytes) -> bytes:
    """A safetensors file with one tensor of these bytes."""
    return pack({"w": tensor(0, len(data))}, data)


def write_model(
    directory: Path, data: bytes = b"some weights", config: dict[str, Any] | None = None
) -> dict[str, Path]:
    """The files of a model of `len(data)` parameters, in a new directory."""
    directory.mkdir(parents=True)
    contents = {
        "config.json": json.dumps(CONFIG if config is None else config).encode(),
        "model.safetensors": weights(data),
        "tokenizer.json": b'{"model": {}}',
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return {name: directory / name for name in contents}


def state(registry: Registry) -> dict[str, Any]:
    """All that a user sees of a registry: versions with their aliases, and their files' bytes."""
    found: dict[str, Any] = {}
    for version in registry.list():
        registry.verify(version)
        view = registry.path(version)
        files = {path.name: path.read_bytes() for path in sorted(view.iterdir())}
        assert list(files) == sorted(version.files)
        found[version.ref] = (tuple(version.aliases), version.lineage.parent, files)
    return found


def litter(root: Path) -> list[str]:
    """What lies in a registry's directory and belongs to no version, by relative path."""
    versions = Registry(root).list()
    blobs = {file.digest for version in versions for file in version.files.values()}
    views = {(version.name, str(version.version)) for version in versions}
    found = [p for p in root.rglob("*") if p.name.startswith(durable.TEMPORARY_PREFIX)]
    found += [p for p in (root / "blobs").rglob("*") if p.is_file() and p.name not in blobs]
    found += [p for p in root.glob("views/*/*") if (p.parent.name, p.name) not in views]
    found += [p for p in root.glob("manifests/*") if not any(p.iterdir())]
    return sorted(str(path.relative_to(root)) for path in set(found))


def blob(root: Path, version: ModelVersion, file: str) -> Path:
    """Where the content of a version's file lies."""
    digest = version.files[file].digest
    return root / "blobs" / "sha256" / digest[:2] / digest


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.chmod(0o600)
    path.write_bytes(content)
