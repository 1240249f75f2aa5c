"""The registry: models on disk.

    blobs/sha256/AB/DIGEST      contents, each once, read-only
    manifests/NAME/VERSION.json what a version consists of and where it comes from
    names/NAME.json             aliases, and the next version's number
    views/NAME/VERSION/         links to the blobs under their file names, made when asked for

A version exists when its manifest does; that is written last, beside and renamed. Whoever changes
anything holds the lock, in whichever process. A crash leaves the state before, and at most blobs
that nobody names, which the next garbage collection removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from zenos.core import durable, limits
from zenos.core.config import nearest
from zenos.core.errors import ConflictError, InvalidError, NotFoundError, StorageError
from zenos.core.names import ModelRef, check_name
from zenos.models import safetensors
from zenos.models.records import FORMAT, FileInfo, Lineage, ModelVersion, Names, family_of

__all__ = ["FileInfo", "Lineage", "ModelVersion", "Registry"]

_DIGEST: Final = re.compile(r"^[0-9a-f]{64}$")
_FILE: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$")
CHUNK_BYTES: Final = 4 * limits.MIB
CONFIG_BYTES_MAX: Final = 16 * limits.MIB
FILES_MAX: Final = 1000
# What of a model's directory is taken in: weights, configs, tokenizers, templates.
SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})


class Registry:
    """Model versions under one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._manifests = root / "manifests"
        self._names = root / "names"
        self._views = root / "views"

    # -- reading

    def list(self) -> list[ModelVersion]:
        """All versions, by name and number. Damaged manifests are left out."""
        found: list[ModelVersion] = []
        for path in sorted(self._manifests.glob("*/*.json")):
            with contextlib.suppress(StorageError, NotFoundError):
                found.append(self._read(path.parent.name, int(path.stem)))
        return sorted(found, key=lambda v: (v.name, v.version))

    def resolve(self, ref: ModelRef | str) -> ModelVersion:
        """The version that is meant: by number, by alias, or the newest.

        Raises NotFoundError with the nearest name, InvalidError for an impossible one.
        """
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        versions = self._versions(ref.name)
        if not versions:
            known = [p.name for p in self._manifests.glob("*")] if self._manifests.exists() else []
            raise NotFoundError(
                f"cannot find the model {ref.name!r}{nearest(ref.name, known)}; "
                "'zenos list' shows all"
            )
        if ref.tag is None or ref.tag == "latest":
            return self._read(ref.name, versions[-1])
        number = ref.version or self._read_names(ref.name).aliases.get(ref.tag, 0)
        if number not in versions:
            raise NotFoundError(
                f"cannot find {ref}: the versions are {', '.join(map(str, versions[-10:]))}"
            )
        return self._read(ref.name, number)

    def path(self, version: ModelVersion) -> Path:
        """A directory with the version's files under their names; read-only."""
        view = self._views / version.name / str(version.version)
        if not view.exists():
            view.parent.mkdir(parents=True, exist_ok=True)
            try:
                with durable.new_directory(view) as directory:
                    for name, file in version.files.items():
                        blob = self._blob(file.digest)
                        if not blob.exists():
                            raise StorageError(f"cannot open {version.ref}: {name} is gone")
                        (directory / name).symlink_to(os.path.relpath(blob, view))
            except OSError as error:
                if not view.exists():  # else another process was faster
                    raise StorageError(f"cannot open {version.ref}: {error}") from error
        return view

    def verify(self, version: ModelVersion) -> None:
        """Read every file of a version; StorageError names the one that is damaged."""
        for name, file in version.files.items():
            try:
                digest = _digest(self._blob(file.digest))
            except OSError as error:
                raise StorageError(f"cannot read {name} of {version.ref}: {error}") from error
            if digest != file.digest:
                raise StorageError(
                    f"cannot trust {name} of {version.ref}: it has changed on the disk; remove "
                    "this version and import or train it again"
                )

    # -- writing

    def publish(
        self,
        name: str,
        files: Mapping[str, Path],
        *,
        lineage: Lineage | None = None,
        metrics: Mapping[str, Any] | None = None,
        curve: Sequence[Sequence[Any]] = (),
    ) -> ModelVersion:
        """Register these files (by the names they shall have) as the next version of `name`.

        Raises InvalidError for pickles, lying headers and names that may not be used, StorageError
        when the disk is full; then nothing is registered.
        """
        name = check_name(name, "model name")
        config, parameters = inspect(files)
        with self._locked():
            infos = {file: self._add(path) for file, path in sorted(files.items())}
            names = self._read_names(name)
            number = max([names.next_version, *(v + 1 for v in self._versions(name))])
            self._write_names(name, replace(names, next_version=number + 1))
            version = ModelVersion(
                name=name,
                version=number,
                created=time.time(),
                family=family_of(config),
                arch=str(config.get("model_type", "")),
                parameters=parameters,
                bytes=sum(info.size for info in infos.values()),
                files=infos,
                lineage=lineage or Lineage(),
                metrics=dict(metrics or {}),
                config=config,
                curve=[list(point) for point in curve],
            )
            self._write_manifest(version)
        return version

    def alias(self, name: str, alias: str, version: int) -> None:
        """Let `name:alias` mean that version from now on."""
        check_name(alias, "alias")
        if alias == "latest" or ModelRef(name, alias).version is not None:
            raise InvalidError(f"cannot use the alias {alias!r}: it means a version already")
        with self._locked():
            found = self.resolve(ModelRef(check_name(name, "model name"), str(version)))
            names = self._read_names(found.name)
            aliases = {**names.aliases, alias: found.version}
            self._write_names(found.name, replace(names, aliases=aliases))

    def copy(self, source: ModelRef | str, target: str) -> ModelVersion:
        """The same files as the next version of another name; nothing is stored twice."""
        target = check_name(target, "model name")
        with self._locked():
            old = self.resolve(source)
            names = self._read_names(target)
            number = max([names.next_version, *(v + 1 for v in self._versions(target))])
            self._write_names(target, replace(names, next_version=number + 1))
            lineage = replace(old.lineage, parent=old.ref)
            new = replace(
                old, name=target, version=number, created=time.time(), lineage=lineage, aliases=[]
            )
            self._write_manifest(new)
        return new

    def remove(self, ref: ModelRef | str) -> int:
        """Remove a version and the blobs that no other has; returns the bytes freed."""
        with self._locked():
            version = self.resolve(ref)
            names = self._read_names(version.name)
            kept = {a: v for a, v in names.aliases.items() if v != version.version}
            self._write_names(version.name, replace(names, aliases=kept))
            path = self._manifest(version.name, version.version)
            path.unlink()
            durable.sync_directory(path.parent)
            shutil.rmtree(self._views / version.name / str(version.version), ignore_errors=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            return self._collect()

    def collect_garbage(self) -> int:
        """Remove what a crash has left: blobs that no version names, and half-written files."""
        with self._locked():
            return self._collect()

    def import_directory(self, path: Path | str, name: str) -> ModelVersion:
        """Register a Hugging Face directory: config, tokenizer and safetensors weights.

        Raises InvalidError for pickled weights, and for links that lead out of the directory.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise InvalidError(f"cannot import {directory}: it is no directory")
        entries = sorted(p for p in directory.iterdir() if p.is_file())
        files = {p.name: _inside(p, directory) for p in entries if p.suffix in SUFFIXES}
        if not any(file.endswith(".safetensors") for file in files):
            for entry in entries:
                safetensors.refuse_pickle(entry)
            raise InvalidError(f"cannot import {directory}: it has no safetensors weights")
        return self.publish(name, files, lineage=Lineage(parent=f"import:{directory.name}"))

    def export(self, ref: ModelRef | str, path: Path | str) -> None:
        """Write a version as a directory that transformers opens. It must not exist yet."""
        version, target = self.resolve(ref), Path(path)
        if target.exists():
            raise ConflictError(f"cannot export to {target}: it exists already")
        if not target.parent.is_dir():
            raise InvalidError(f"cannot export to {target}: {target.parent} is no directory")
        self.verify(version)
        try:
            with durable.new_directory(target, mode=0o755) as directory:
                for name, file in version.files.items():
                    shutil.copyfile(self._blob(file.digest), directory / name)
        except OSError as error:
            raise StorageError(f"cannot export to {target}: {error.strerror or error}") from error

    # -- inside

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            for directory in (self._blobs, self._manifests, self._names, self._views):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._root / "lock").open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise StorageError(
                f"cannot change the registry in {self._root}: {error.strerror or error}"
            ) from error

    def _blob(self, digest: str) -> Path:
        if not _DIGEST.match(digest) or digest.endswith("\n"):
            raise StorageError("cannot read the registry: a manifest has a malformed digest")
        return self._blobs / digest[:2] / digest

    def _add(self, source: Path) -> FileInfo:
        """Copy a file into the blobs, hashing it on the way."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        hasher, size = hashlib.sha256(), 0
        fd, temporary = tempfile.mkstemp(prefix=durable.TEMPORARY_PREFIX, dir=self._blobs)
        try:
            with os.fdopen(fd, "wb") as target, source.open("rb") as file:
                while data := file.read(CHUNK_BYTES):
                    hasher.update(data)
                    target.write(data)
                    size += len(data)
            path = self._blob(hasher.hexdigest())
            if path.exists():
                Path(temporary).unlink()
            else:
                path.parent.mkdir(exist_ok=True)
                Path(temporary).chmod(0o400)
                durable.sync_file(Path(temporary))
                Path(temporary).rename(path)
                durable.sync_directory(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return FileInfo(digest=hasher.hexdigest(), size=size)

    def _manifest(self, name: str, version: int) -> Path:
        return self._manifests / check_name(name, "model name") / f"{version}.json"

    def _versions(self, name: str) -> tuple[int, ...]:
        directory = self._manifests / check_name(name, "model name")
        return tuple(sorted(int(p.stem) for p in directory.glob("*.json") if p.stem.isdigit()))

    def _read(self, name: str, version: int) -> ModelVersion:
        path = self._manifest(name, version)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=ModelVersion)
        except FileNotFoundError:
            raise NotFoundError(f"cannot find {name}:{version}") from None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot read the manifest {path}: {error}") from error
        if found.format > FORMAT:
            raise StorageError(f"cannot read {path}: it was written by a newer zenos")
        for file, info in found.files.items():
            if not _FILE.match(file) or not _DIGEST.match(info.digest):
                raise StorageError(f"cannot read the manifest {path}: it names {file[:64]!r}")
        aliases = self._read_names(name).aliases
        return replace(found, aliases=sorted(a for a, v in aliases.items() if v == version))

    def _write_manifest(self, version: ModelVersion) -> None:
        path = self._manifest(version.name, version.version)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_file(path, msgspec.json.encode(replace(version, aliases=[])))

    def _read_names(self, name: str) -> Names:
        path = self._names / f"{check_name(name, 'model name')}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Names)
        except FileNotFoundError:
            return Names()
        except (OSError, msgspec.DecodeError) as error:
            raise StorageError(f"cannot read {path}: {error}") from error

    def _write_names(self, name: str, names: Names) -> None:
        durable.write_file(self._names / f"{name}.json", msgspec.json.encode(names))

    def _collect(self) -> int:
        used: set[str] = set()
        for path in self._manifests.glob("*/*.json"):
            # A manifest that cannot be read raises here: its blobs must not be taken for orphans.
            version = self._read(path.parent.name, int(path.stem))
            used |= {file.digest for file in version.files.values()}
        freed = 0
        for path in self._blobs.rglob("*"):
            if path.is_file() and path.name not in used:
                freed += path.stat().st_size
                path.unlink()
        for directory in (self._manifests, self._names, self._views):
            for path in directory.rglob(f"{durable.TEMPORARY_PREFIX}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return freed


def inspect(files: Mapping[str, Path]) -> tuple[dict[str, Any], int]:
    """Check a version's files before anything is stored: its config, and its number of parameters.

    Raises InvalidError.
    """
    if len(files) > FILES_MAX:
        raise InvalidError(f"cannot register {len(files)} files: at most {FILES_MAX}")
    parameters = 0
    for name, path in files.items():
        if not _FILE.match(name) or name.endswith("\n"):
            raise InvalidError(f"cannot register a file called {name[:64]!r}")
        if not path.is_file():
            raise InvalidError(f"cannot register {name}: {path} is no file")
        if name.endswith(".safetensors"):
            parameters += safetensors.check(path).parameters
        elif Path(name).suffix in safetensors.PICKLE_NAMES:
            safetensors.refuse_pickle(path)
    if "config.json" not in files:
        raise InvalidError("cannot register a model without a config.json")
    return _read_config(files["config.json"]), parameters


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise InvalidError("cannot read config.json: it is too large")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"cannot read config.json: {error}") from error
    if not isinstance(config, dict):
        raise InvalidError("cannot read config.json: it is no object")
    return config


def _inside(path: Path, directory: Path) -> Path:
    """`path` without links, if it stays inside, or in the blobs of the hub's cache beside it."""
    real, root = path.resolve(), directory.resolve()
    cache = root.parent.parent / "blobs"  # .../models--X/snapshots/REVISION → .../models--X/blobs
    if real.is_relative_to(root) or (root.parent.name == "snapshots" and real.parent == cache):
        return real
    raise InvalidError(f"cannot import {path.name}: it is a link that leads out of the directory")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
