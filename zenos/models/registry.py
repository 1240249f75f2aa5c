"""The registry: models on disk.

    blobs/sha256/AB/DIGEST      contents, each once, read-only
    manifests/NAME/VERSION.json what a version consists of and where it comes from
    names/NAME.json             aliases, and the next version's number
    views/NAME/VERSION/         links to the blobs under their file names, made when asked for

A version exists when its manifest does; that is written last, beside and renamed, and removed
first. Whoever changes anything holds `lock`, in whichever process; views have `views.lock`, so that
a model opens while another is being stored. A crash leaves the state before, and at most blobs and
views that no manifest names, which the next garbage collection removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from zenos.core import durable, failpoints, limits
from zenos.core.errors import (
    KEY_TAKEN,
    ConflictError,
    InvalidError,
    NotFoundError,
    StorageError,
    ZenosError,
)
from zenos.core.names import ModelRef, check_name
from zenos.core.wording import followed, nearest
from zenos.models import copying, fitting, intake, outlet
from zenos.models.records import (
    FORMAT,
    Asked,
    FileInfo,
    Lineage,
    Manifest,
    ModelVersion,
    Names,
    family_of,
)

__all__ = ["Asked", "FileInfo", "Lineage", "ModelVersion", "Registry"]

log = logging.getLogger(__name__)

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")

ADDING: Final = "adding.lock"
Inspect = Callable[[Mapping[str, Path]], tuple[dict[str, Any], int]]


class Registry:
    """Model versions under one directory.

    lanes: files that are copied and hashed at once, and more than one for a large file.
    """

    def __init__(self, root: Path, lanes: int = 1) -> None:
        self._root = root
        self._lanes = min(lanes, limits.MODEL_LANES_MAX)
        self._blobs = root / "blobs" / "sha256"
        self._manifests = root / "manifests"
        self._names = root / "names"
        self._views = root / "views"

    # -- reading

    def list(self) -> list[ModelVersion]:
        """All versions, by name and number. Damaged manifests are left out."""
        found: list[ModelVersion] = []
        for name, number in self._stored():
            with contextlib.suppress(StorageError, NotFoundError):
                found.append(self._read(name, number))
        return found

    def resolve(self, ref: ModelRef | str) -> ModelVersion:
        """The version that is meant: by number, by alias, or the newest.

        Raises NotFoundError with the nearest name, InvalidError for an impossible one.
        """
        return self._read(*self._meant(ref))

    def path(self, version: ModelVersion) -> Path:
        """A directory with the version's files under their names; not to be written into.

        Raises NotFoundError when it was removed meanwhile, StorageError when a file is gone.
        """
        view = self._view(version.name, version.version)
        blobs = {name: self._blob(file.digest) for name, file in version.files.items()}
        for name, blob in blobs.items():
            if not blob.exists():
                if not self._manifest(version.name, version.version).exists():
                    raise NotFoundError(f"cannot open {version.ref}: it was removed")
                raise StorageError(
                    f"cannot open {version.ref}: {name} is gone from the disk; remove this "
                    "version and import or train it again"
                )
        if view.exists():
            return view
        with self._locked("views.lock"):
            if not self._manifest(version.name, version.version).exists():
                raise NotFoundError(f"cannot open {version.ref}: it was removed")
            if not view.exists():  # else another process was faster
                view.parent.mkdir(mode=0o700, exist_ok=True)
                with durable.new_directory(view) as directory:
                    for name, blob in blobs.items():
                        (directory / name).symlink_to(os.path.relpath(blob, view))
        return view

    def verify(self, version: ModelVersion) -> None:
        """Read every file of a version; StorageError names the one that is damaged."""

        def check(name: str) -> None:
            file = version.files[name]
            try:
                digest = copying.digest(self._blob(file.digest))
            except OSError as error:
                raise StorageError(f"cannot read {name} of {version.ref}: {error}") from error
            if digest != file.digest:
                raise StorageError(
                    f"cannot trust {name} of {version.ref}: it has changed on the disk; remove "
                    "this version and import or train it again"
                )

        copying.each(check, list(version.files), self._lanes)

    # -- writing

    def publish(
        self,
        name: str,
        files: Mapping[str, Path],
        *,
        lineage: Lineage | None = None,
        metrics: Mapping[str, Any] | None = None,
        curve: Sequence[Sequence[Any]] = (),
        asked: Asked | None = None,
        inspect: Inspect = intake.inspect,
    ) -> ModelVersion:
        """Register these files (by the names they shall have) as the next version of `name`.

        asked: the request that wants it; the same one again is answered with the same version.
        Raises InvalidError for pickles, lying headers and names that may not be used, StorageError
        when the disk is full; then nothing is registered.
        """
        name = check_name(name, "model name")
        inspect(files)  # before anything large is copied
        # Copying takes as long as it takes: others may read, register and add meanwhile. Only what
        # isn't named by a manifest yet must not be collected.
        with self._collecting_failures(), self._locked(ADDING, shared=True):
            names = sorted(files)
            added = copying.each(self._add, [files[file] for file in names], self._lanes)
            infos = dict(zip(names, added, strict=True))
            # Whoever owns the files may have changed them meanwhile: what counts is the copy.
            copies = {file: self._blob(info.digest) for file, info in infos.items()}
            config, parameters = inspect(copies)
            with self._locked():
                return self._register(
                    name,
                    lambda number: ModelVersion(
                        name=name,
                        version=number,
                        created=time.time(),
                        family=family_of(config),
                        arch=str(config.get("model_type") or ""),
                        parameters=parameters,
                        bytes=sum(info.size for info in infos.values()),
                        files=infos,
                        lineage=lineage or Lineage(),
                        metrics=dict(metrics or {}),
                        config=config,
                        curve=[list(point) for point in curve],
                        has_chat_template=intake.has_chat_template(copies),
                    ),
                    asked,
                )

    def alias(self, name: str, alias: str, version: int) -> None:
        """Let `name:alias` mean that version from now on."""
        alias = check_name(alias, "alias")
        if alias == "latest" or alias.isdigit():
            raise InvalidError(f"cannot use the alias {alias!r}: it means a version already")
        with self._locked():
            found = self.resolve(ModelRef(check_name(name, "model name"), str(version)))
            names = self._read_names(found.name)
            aliases = {**names.aliases, alias: found.version}
            self._write_names(found.name, replace(names, aliases=aliases))

    def copy(
        self,
        source: ModelRef | str,
        target: str,
        asked: Asked | None = None,
        project: str | None = None,
    ) -> ModelVersion:
        """The same files as the next version of another name; nothing is stored twice."""
        target = check_name(target, "model name")
        with self._locked():
            if known := self._answered(asked):  # its source may be gone
                return known
            old = self.resolve(source)
            lineage = replace(old.lineage, parent=old.ref, project=project)
            return self._register(
                target,
                lambda number: replace(
                    old,
                    name=target,
                    version=number,
                    created=time.time(),
                    lineage=lineage,
                    aliases=[],
                ),
                asked,
            )

    def remove(self, ref: ModelRef | str) -> int:
        """Remove a version and the blobs that no other has; returns the bytes freed.

        A version with a damaged manifest can be removed too, by its number.
        """
        with self._locked():
            name, number = self._meant(ref)
            path = self._manifest(name, number)
            path.unlink()
            durable.sync_directory(path.parent)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            names = self._read_names(name)
            kept = {a: v for a, v in names.aliases.items() if v != number}
            if kept != names.aliases:
                self._write_names(name, replace(names, aliases=kept))
            try:
                return self._collect()
            except StorageError as error:
                # The version is gone, as was asked for; what it took waits for the next collection.
                log.warning("removed %s:%d, its files are still there: %s", name, number, error)
                return 0

    def collect_garbage(self) -> int:
        """Remove what a crash has left: blobs that no version names, and half-written files."""
        with self._locked():
            return self._collect()

    def import_directory(
        self, path: Path | str, name: str, asked: Asked | None = None, project: str | None = None
    ) -> ModelVersion:
        """Register a Hugging Face directory: config, tokenizer and safetensors weights.

        Raises InvalidError for pickled weights, for links that lead out of the directory, and for
        files that don't belong together.
        """
        if known := self._answered(asked):  # the directory may be gone
            return known
        directory = Path(path)
        with intake.taken(directory) as (files, left_out):
            parent = f"import:{directory.name}"
            lineage = Lineage(parent=parent, project=project, left_out=left_out)
            return self.publish(name, files, lineage=lineage, asked=asked, inspect=fitting.inspect)

    def export(self, ref: ModelRef | str, path: Path | str) -> None:
        """Write a version as a directory that transformers opens.

        Nothing may be there, except for this very version: then all is done already.
        """
        version, target = self.resolve(ref), Path(path)
        if outlet.is_there(version, target):
            return
        self.verify(version)
        blobs = {name: self._blob(file.digest) for name, file in version.files.items()}
        outlet.write(version, blobs, target)

    # -- inside

    @contextlib.contextmanager
    def _locked(
        self, name: str = "lock", *, shared: bool = False, wait: bool = True
    ) -> Iterator[None]:
        """Hold a lock of the registry; BlockingIOError when it is taken and not waited for.

        Who holds ADDING may take "lock"; the other way round only without waiting.
        """
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            for directory in (self._blobs, self._manifests, self._names, self._views):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._root / name).open("a+b") as file:
                fcntl.flock(file, how)
                yield
        except BlockingIOError:
            raise
        except OSError as error:
            raise StorageError(
                f"cannot change the registry in {self._root}: {error.strerror or error}"
            ) from error

    @contextlib.contextmanager
    def _collecting_failures(self) -> Iterator[None]:
        """Free what was stored before a failure: on a full disk nobody else can."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, ZenosError):
                self.collect_garbage()
            raise

    def _answered(self, asked: Asked | None) -> ModelVersion | None:
        """The version that this very request has made; ConflictError if another one has its key."""
        if asked is None:
            return None
        oldest = time.time() - limits.IDEMPOTENCY_KEPT_S
        for name, number in self._stored():
            try:
                found = self._written(name, number)
            except (StorageError, NotFoundError):
                continue  # damaged, which `show` says, or removed meanwhile
            if found.asked is None or found.created < oldest:
                continue
            if found.asked == asked:
                return self._read(name, number)
            if (found.asked.user, found.asked.key) == (asked.user, asked.key):
                raise ConflictError(KEY_TAKEN)
        return None

    def _register(
        self, name: str, make: Callable[[int], ModelVersion], asked: Asked | None = None
    ) -> ModelVersion:
        """Write the manifest of the next version of `name`; on failure there is none."""
        if known := self._answered(asked):
            return known
        names = self._read_names(name)
        number = max([names.next_version, *(v + 1 for v in self._versions(name))])
        self._write_names(name, replace(names, next_version=number + 1))
        version = make(number)
        path = self._manifest(name, number)
        try:
            _make_directory(path.parent)
            durable.write_file(path, msgspec.json.encode(Manifest.of(version, asked)))
        except BaseException:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            raise
        return version

    def _blob(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise StorageError("cannot read the registry: a manifest has a malformed digest")
        return self._blobs / digest[:2] / digest

    def _add(self, source: Path) -> FileInfo:
        """Copy a file into the blobs, hashing it on the way."""
        fd, temporary = tempfile.mkstemp(prefix=durable.TEMPORARY_PREFIX, dir=self._blobs)
        try:
            with os.fdopen(fd, "wb") as target, source.open("rb") as file:
                failpoints.passing("durable.write")
                large = os.fstat(file.fileno()).st_size > copying.CHUNK_BYTES
                digest, size = copying.copy(file, target, beside=large and self._lanes > 1)
            path = self._blob(digest)
            _make_directory(path.parent)
            if path.exists() and copying.digest(path) == path.name:
                Path(temporary).unlink()
            else:  # new, or what lies there is damaged
                Path(temporary).chmod(0o400)
                durable.sync_file(Path(temporary))
                failpoints.passing("durable.rename")
                Path(temporary).replace(path)
            durable.sync_directory(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return FileInfo(digest=digest, size=size)

    def _manifest(self, name: str, version: int) -> Path:
        return self._manifests / check_name(name, "model name") / f"{version}.json"

    def _view(self, name: str, version: int) -> Path:
        return self._views / check_name(name, "model name") / str(version)

    def _stored(self) -> Sequence[tuple[str, int]]:
        """Name and number of every manifest; half-written files beside them are none."""
        found = (p for p in self._manifests.glob("*/*.json") if _NUMBER.fullmatch(p.stem))
        return sorted((path.parent.name, int(path.stem)) for path in found)

    def _versions(self, name: str) -> tuple[int, ...]:
        found = self._manifest(name, 0).parent.glob("*.json")
        return tuple(sorted(int(path.stem) for path in found if _NUMBER.fullmatch(path.stem)))

    def _meant(self, ref: ModelRef | str) -> tuple[str, int]:
        """Name and number of the version that is meant; its manifest is not read."""
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        name = check_name(ref.name, "model name")
        versions = self._versions(name)
        if not versions:
            known = sorted({found for found, _ in self._stored()})
            raise NotFoundError(
                followed(
                    f"cannot find the model {name!r}{nearest(name, known)}",
                    "'zenos list' shows all",
                )
            )
        if ref.tag is None or ref.tag == "latest":
            return name, versions[-1]
        aliases = {} if ref.version else self._read_names(name).aliases
        number = ref.version or aliases.get(ref.tag, 0)
        if number not in versions:
            hint = nearest(ref.tag, [a for a, v in aliases.items() if v in versions])
            what = f"the versions are {', '.join(map(str, versions[-10:]))}"
            if not ref.version:
                others = ", ".join(sorted(aliases)[:10])
                what += f", the aliases {others}" if others else ", and it has no aliases"
            raise NotFoundError(f"cannot find {ref}: {what}{hint}")
        return name, number

    def _read(self, name: str, version: int) -> ModelVersion:
        found, names = self._written(name, version), self._read_names(name)
        return found.plain(sorted(a for a, v in names.aliases.items() if v == version))

    def _written(self, name: str, version: int) -> Manifest:
        path = self._manifest(name, version)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise NotFoundError(f"cannot find {name}:{version}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise StorageError(f"cannot read the manifest {path}: {error}") from error
        if found.format > FORMAT:
            raise StorageError(f"cannot read {path}: it was written by a newer zenos")
        if found.ref != f"{name}:{version}":
            raise StorageError(f"cannot read the manifest {path}: it is of {found.ref[:100]!r}")
        for file, info in found.files.items():
            if not intake.FILE.fullmatch(file) or not _DIGEST.fullmatch(info.digest):
                raise StorageError(f"cannot read the manifest {path}: it names {file[:64]!r}")
        return found

    def _read_names(self, name: str) -> Names:
        path = self._names / f"{check_name(name, 'model name')}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Names)
        except FileNotFoundError:
            return Names()
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {path}: {error}") from error

    def _write_names(self, name: str, names: Names) -> None:
        durable.write_file(self._names / f"{name}.json", msgspec.json.encode(names))

    def _collect(self) -> int:
        """Remove what no manifest names; nothing while somebody adds what none names yet."""
        try:
            with self._locked(ADDING, wait=False):
                return self._collect_all()
        except BlockingIOError:
            log.info("somebody adds a model: what is not used any more is freed later")
            return 0

    def _collect_all(self) -> int:
        stored = self._stored()
        used: set[str] = set()
        for name, number in stored:
            # A manifest that cannot be read raises here: its blobs must not be taken for orphans.
            used |= {file.digest for file in self._read(name, number).files.values()}
        freed = 0
        for path in self._blobs.rglob("*"):
            if path.is_file() and path.name not in used:
                freed += path.stat().st_size
                path.unlink()
        temporary = f"{durable.TEMPORARY_PREFIX}*"
        for directory in (self._manifests, self._names):
            for path in directory.rglob(temporary):
                path.unlink()
        with self._locked("views.lock"):
            shown = {self._view(name, number) for name, number in stored}
            for path in set(self._views.glob("*/*")) - shown:
                shutil.rmtree(path)
            for directory in (self._manifests, self._views):
                for path in directory.glob("*"):
                    with contextlib.suppress(OSError):
                        path.rmdir()  # where nothing is left in it
        return freed


def _make_directory(path: Path) -> None:
    """Make one directory, durably, unless it is there."""
    if not path.exists():
        path.mkdir(mode=0o700, exist_ok=True)
        durable.sync_directory(path.parent)
