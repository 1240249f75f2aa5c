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
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

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
from zenos.core.free import check_room
from zenos.core.names import ModelRef, check_name
from zenos.models import copying, fitting, intake, outlet
from zenos.models.manifests import DIGEST, Manifests, make_directory
from zenos.models.records import (
    Asked,
    FileInfo,
    Lineage,
    Manifest,
    ModelVersion,
    family_of,
)

__all__ = ["Asked", "FileInfo", "Lineage", "ModelVersion", "Registry"]

log = logging.getLogger(__name__)

ADDING: Final = "adding.lock"
# What is wrong with a file of a version, and what to do.
_ANEW: Final = "remove this version and import or train it again"
_GONE: Final = f"is gone from the disk; {_ANEW}"
_CHANGED: Final = f"has changed on the disk; {_ANEW}"
Inspect = Callable[[Mapping[str, Path]], tuple[dict[str, Any], int]]


class Survey(NamedTuple):
    """models: all that can be read. damaged: what is wrong with each other one (`name:number`)."""

    models: list[ModelVersion]
    damaged: dict[str, str]


class Registry:
    """Model versions under one directory.

    lanes: files that are copied and hashed at once, and more than one for a large file.
    """

    def __init__(self, root: Path, lanes: int = 1) -> None:
        self._root = root
        self._lanes = min(lanes, limits.MODEL_LANES_MAX)
        self._blobs = root / "blobs" / "sha256"
        self._manifests = Manifests(root)
        self._views = root / "views"

    # -- reading

    def list(self) -> list[ModelVersion]:
        """All versions, by name and number. Damaged ones are left out; `survey` says which."""
        return self.survey().models

    def survey(self) -> Survey:
        """All versions, by name and number, and what is wrong with those that are damaged."""
        found = Survey([], {})
        for name, number in self._manifests.stored():
            try:
                found.models.append(self._manifests.read(name, number))
            except NotFoundError:
                continue  # removed meanwhile
            except ZenosError as error:
                found.damaged[f"{name}:{number}"] = error.message
        return found

    def meant(self, ref: ModelRef | str) -> ModelRef:
        """Name and number of the version that is meant, be it damaged or not; as `resolve`."""
        name, number = self._manifests.meant(ref)
        return ModelRef(name, str(number))

    def resolve(self, ref: ModelRef | str) -> ModelVersion:
        """The version that is meant: by number, by alias, or the newest.

        Raises NotFoundError with the nearest name, InvalidError for an impossible one.
        """
        return self._manifests.read(*self._manifests.meant(ref))

    def path(self, version: ModelVersion) -> Path:
        """A directory with the version's files under their names; not to be written into.

        Raises NotFoundError when it was removed meanwhile, StorageError when a file is gone, or
        was written to since it was stored.
        """
        view = self._view(version.name, version.version)
        blobs = {name: self._blob(file.digest) for name, file in version.files.items()}
        for name, file in version.files.items():
            if wrong := self._wrong(blobs[name], file):
                if not self._manifests.path(version.name, version.version).exists():
                    raise NotFoundError(f"cannot open {version.ref}: it was removed")
                raise StorageError(f"cannot open {version.ref}: {name} {wrong}")
        if view.exists():
            return view
        with self._locked("views.lock"):
            if not self._manifests.path(version.name, version.version).exists():
                raise NotFoundError(f"cannot open {version.ref}: it was removed")
            if not view.exists():  # else another process was faster
                view.parent.mkdir(mode=0o700, exist_ok=True)
                with durable.new_directory(view) as directory:
                    for name, blob in blobs.items():
                        (directory / name).symlink_to(os.path.relpath(blob, view))
        return view

    def verify(self, version: ModelVersion) -> None:
        """Read every file of a version in full; StorageError names the one that is damaged."""

        def check(name: str) -> None:
            file = version.files[name]
            try:
                digest = copying.digest(self._blob(file.digest))
            except OSError as error:
                gone = isinstance(error, FileNotFoundError)
                why = _GONE if gone else f"cannot be read ({error.strerror or error})"
                raise StorageError(f"cannot read {version.ref}: {name} {why}") from error
            if digest != file.digest:
                raise StorageError(f"cannot trust {name} of {version.ref}: it {_CHANGED}")

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
            check_room(
                f"cannot store {name}",
                sum(path.stat().st_size for path in files.values()),
                self._root,
                "make room there ('zenos rm' removes models)",
            )
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
            names = self._manifests.names(found.name)
            aliases = {**names.aliases, alias: found.version}
            self._manifests.write_names(found.name, replace(names, aliases=aliases))

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
            name, number = self._manifests.meant(ref)
            path = self._manifests.path(name, number)
            gone = self._manifests.legible(name, number) or set()
            path.unlink()
            durable.sync_directory(path.parent)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            try:
                names = self._manifests.names(name)
                kept = {a: v for a, v in names.aliases.items() if v != number}
                if kept != names.aliases:
                    self._manifests.write_names(name, replace(names, aliases=kept))
                return self._collect(gone)
            except StorageError as error:
                # The version is gone, as was asked for; what it took waits for the next collection.
                log.warning("removed %s:%d, its files are still there: %s", name, number, error)
                return 0

    def collect_garbage(self) -> int:
        """Remove what a crash has left: blobs that no version names, and half-written files.

        As long as a version is damaged, blobs that none names stay: they may be its, and all that
        can be saved of it. Of a version that is removed, what no other one names goes even then.
        """
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
        if target.parent.resolve().is_relative_to(self._root.resolve()):
            raise InvalidError(
                f"cannot export to {target}: that is inside the registry's own {self._root}, where "
                "what is no version's is removed; give a directory elsewhere"
            )
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
            for directory in (
                self._blobs,
                self._manifests.root,
                self._manifests.names_root,
                self._views,
            ):
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
        for name, number in self._manifests.stored():
            try:
                found = self._manifests.written(name, number)
            except (StorageError, NotFoundError):
                continue  # damaged, which `show` says, or removed meanwhile
            if found.asked is None or found.created < oldest:
                continue
            if found.asked == asked:
                return self._manifests.read(name, number)
            if (found.asked.user, found.asked.key) == (asked.user, asked.key):
                raise ConflictError(KEY_TAKEN)
        return None

    def _register(
        self, name: str, make: Callable[[int], ModelVersion], asked: Asked | None = None
    ) -> ModelVersion:
        """Write the manifest of the next version of `name`; on failure there is none."""
        if known := self._answered(asked):
            return known
        names = self._manifests.names(name)
        number = max([names.next_version, *(v + 1 for v in self._manifests.versions(name))])
        self._manifests.write_names(name, replace(names, next_version=number + 1))
        version = make(number)
        self._manifests.write(version, Manifest.of(version, asked))
        return version

    def _blob(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise StorageError("cannot read the registry: a manifest has a malformed digest")
        return self._blobs / digest[:2] / digest

    def _wrong(self, blob: Path, file: FileInfo) -> str:
        """What is wrong with a file as it lies on the disk, as far as that is cheap; else ''."""
        try:
            return "" if copying.is_unchanged(blob, file.size, file.digest) else _CHANGED
        except FileNotFoundError:
            return _GONE
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"

    def _add(self, source: Path) -> FileInfo:
        """Copy a file into the blobs, hashing it on the way."""
        fd, temporary = tempfile.mkstemp(prefix=durable.TEMPORARY_PREFIX, dir=self._blobs)
        try:
            with os.fdopen(fd, "wb") as target, source.open("rb") as file:
                failpoints.passing("durable.write")
                large = os.fstat(file.fileno()).st_size > copying.CHUNK_BYTES
                digest, size = copying.copy(file, target, beside=large and self._lanes > 1)
            path = self._blob(digest)
            make_directory(path.parent)
            if path.exists() and copying.digest(path) == path.name:
                Path(temporary).unlink()
                copying.seal(path)
            else:  # new, or what lies there is damaged
                Path(temporary).chmod(0o400)
                copying.seal(Path(temporary))
                durable.sync_file(Path(temporary))
                failpoints.passing("durable.rename")
                Path(temporary).replace(path)
            durable.sync_directory(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return FileInfo(digest=digest, size=size)

    def _view(self, name: str, version: int) -> Path:
        return self._views / check_name(name, "model name") / str(version)

    def _collect(self, gone: Collection[str] = ()) -> int:
        """Remove what no manifest names; nothing while somebody adds what none names yet.

        gone: digests of a version that was removed.
        """
        try:
            with self._locked(ADDING, wait=False):
                return self._collect_all(gone)
        except BlockingIOError:
            log.info("somebody adds a model: what is not used any more is freed later")
            return 0

    def _collect_all(self, gone: Collection[str]) -> int:
        stored = self._manifests.stored()
        used: set[str] = set()
        damaged: list[str] = []
        for name, number in stored:
            try:
                used |= {f.digest for f in self._manifests.written(name, number).files.values()}
            except StorageError:
                damaged.append(f"{name}:{number}")
                legible = self._manifests.legible(name, number)
                if legible is None:  # it may have any of them
                    gone = ()
                else:
                    used |= legible
        if damaged:
            log.warning(
                "files that no model has are kept, since they may be of a damaged one (%s)",
                ", ".join(damaged),
            )
        freed = 0
        for path in self._blobs.rglob("*"):
            known = path.name in gone or path.name.startswith(durable.TEMPORARY_PREFIX)
            if path.is_file() and path.name not in used and (known or not damaged):
                freed += path.stat().st_size
                path.unlink()
        temporary = f"{durable.TEMPORARY_PREFIX}*"
        for directory in (self._manifests.root, self._manifests.names_root):
            for path in directory.rglob(temporary):
                path.unlink()
        with self._locked("views.lock"):
            shown = {self._view(name, number) for name, number in stored}
            for path in set(self._views.glob("*/*")) - shown:
                shutil.rmtree(path)
            for directory in (self._manifests.root, self._views):
                for path in directory.glob("*"):
                    with contextlib.suppress(OSError):
                        path.rmdir()  # where nothing is left in it
        return freed
