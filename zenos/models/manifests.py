"""The registry's manifests and names on disk: which versions there are, and what each consists of.

    manifests/NAME/VERSION.json what a version consists of and where it comes from
    names/NAME.json             aliases, and the next version's number

Nothing here takes a lock: who writes holds the registry's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from zenos.core import durable
from zenos.core.errors import NotFoundError, StorageError
from zenos.core.names import ModelRef, check_name
from zenos.core.wording import followed, nearest
from zenos.models import intake
from zenos.models.records import FORMAT, Manifest, ModelVersion, Names

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")
_LEGIBLE: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Manifests:
    """The manifests and names below a registry's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root / "manifests"
        self.names_root = root / "names"

    def path(self, name: str, version: int) -> Path:
        """Where a version's manifest is, or would be."""
        return self.root / check_name(name, "model name") / f"{version}.json"

    def stored(self) -> Sequence[tuple[str, int]]:
        """Name and number of every manifest; half-written files beside them are none."""
        found: list[tuple[str, int]] = []
        for folder in self.root.glob("*"):
            try:
                paths = list(folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed meanwhile
            # What can't be listed is raised: what is in there would be taken for garbage.
            stems = [path.stem for path in paths if path.suffix == ".json"]
            found += [(folder.name, int(stem)) for stem in stems if _NUMBER.fullmatch(stem)]
        return sorted(found)

    def versions(self, name: str) -> tuple[int, ...]:
        """The numbers of a name's versions."""
        found = self.path(name, 0).parent.glob("*.json")
        return tuple(sorted(int(path.stem) for path in found if _NUMBER.fullmatch(path.stem)))

    def meant(self, ref: ModelRef | str) -> tuple[str, int]:
        """Name and number of the version that is meant; its manifest is not read."""
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        name = check_name(ref.name, "model name")
        versions = self.versions(name)
        if not versions:
            known = sorted({found for found, _ in self.stored()})
            raise NotFoundError(
                followed(
                    f"cannot find the model {name!r}{nearest(name, known)}",
                    "'zenos list' shows all",
                )
            )
        if ref.tag is None or ref.tag == "latest":
            return name, versions[-1]
        aliases = {} if ref.version else self.names(name).aliases
        number = ref.version or aliases.get(ref.tag, 0)
        if number not in versions:
            hint = nearest(ref.tag, [a for a, v in aliases.items() if v in versions])
            what = f"the versions are {', '.join(map(str, versions[-10:]))}"
            if not ref.version:
                others = ", ".join(sorted(aliases)[:10])
                what += f", the aliases {others}" if others else ", and it has no aliases"
            raise NotFoundError(f"cannot find {ref}: {what}{hint}")
        return name, number

    def read(self, name: str, version: int) -> ModelVersion:
        """A version with its aliases; StorageError says what is damaged, and what to do."""
        found, names = self.written(name, version), self.names(name)
        return found.plain(sorted(a for a, v in names.aliases.items() if v == version))

    def written(self, name: str, version: int) -> Manifest:
        """What a manifest holds; NotFoundError without one, StorageError for a damaged one."""
        path = self.path(name, version)
        advice = f"'zenos rm {name}:{version}' removes this version; import or train it again then"
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise NotFoundError(f"cannot find {name}:{version}") from None
        except OSError as error:
            why = error.strerror or error
            raise StorageError(
                f"cannot read the manifest {path}: {why}; see to that file, or to its disk"
            ) from error
        except (ValueError, RecursionError) as error:
            raise StorageError(f"cannot read the manifest {path}: {error}; {advice}") from error
        if found.format > FORMAT:
            raise StorageError(
                f"cannot read {path}: it was written by a newer zenos; install that one again"
            )
        if found.ref != f"{name}:{version}":
            raise StorageError(
                f"cannot read the manifest {path}: it is of {found.ref[:100]!r}; {advice}"
            )
        for file, info in found.files.items():
            if not intake.FILE.fullmatch(file) or not DIGEST.fullmatch(info.digest):
                raise StorageError(
                    f"cannot read the manifest {path}: it names {file[:64]!r}; {advice}"
                )
        return found

    def legible(self, name: str, version: int) -> set[str] | None:
        """What may be digests in a manifest, be it whole or damaged; None if it can't be read."""
        try:
            found = _LEGIBLE.findall(self.path(name, version).read_bytes())
        except FileNotFoundError:
            return set()
        except OSError:
            return None
        return {digest.decode() for digest in found}

    def write(self, version: ModelVersion, content: Manifest) -> None:
        """Write a version's manifest; on failure there is none."""
        path = self.path(version.name, version.version)
        try:
            make_directory(path.parent)
            durable.write_file(path, msgspec.json.encode(content))
        except BaseException:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            raise

    def names(self, name: str) -> Names:
        """What is remembered of a name apart from its versions."""
        path = self.names_root / f"{check_name(name, 'model name')}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Names)
        except FileNotFoundError:
            return Names()
        except (OSError, ValueError, RecursionError) as error:
            raise StorageError(
                f"cannot read {path}: {error}; without that file {name} has no aliases, and "
                "works again: remove it"
            ) from error

    def write_names(self, name: str, names: Names) -> None:
        """Remember that of a name."""
        durable.write_file(self.names_root / f"{name}.json", msgspec.json.encode(names))


def make_directory(path: Path) -> None:
    """Make one directory, durably, unless it is there."""
    if not path.exists():
        path.mkdir(mode=0o700, exist_ok=True)
        durable.sync_directory(path.parent)
