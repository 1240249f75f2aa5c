"""How much text a training's data can be, as far as that is seen at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Final

from zenos.core import globs
from zenos.core.specs import DataSpec

FILES_MAX: Final = 10_000  # to look at; whoever submits waits for it
_PACKED: Final = ".parquet"  # whose bytes say little of how much text is in it


def data_bytes(data: DataSpec) -> int | None:
    """Bytes of the files that are there, at most, whatever is left out of them later.

    None where that can't be told: nothing is there yet, it is too much to look at, or packed.
    """
    size = count = 0
    try:
        for path in islice(_files(data.paths), FILES_MAX + 1):
            count += 1
            try:
                status = Path(path).stat()
            except OSError:
                if path in data.paths:
                    return None
                continue  # a link that leads nowhere
            if path.lower().endswith(_PACKED):
                return None
            size += status.st_size if S_ISREG(status.st_mode) else 0
    except (OSError, ValueError, RecursionError):  # it can't be looked at from here
        return None
    packed = data.format == "parquet"
    return size if size and count <= FILES_MAX and not packed else None


def _files(paths: Iterable[str]) -> Iterator[str]:
    """OSError where it is too much to look at."""
    looked = globs.at_most(FILES_MAX)
    for name in paths:
        if globs.has_magic(name) and not Path(name).exists():
            if globs.is_deep(name):
                raise OSError(errno.E2BIG, "there is too much to look at")
            yield from globs.expand(name, looked)
        elif Path(name).is_dir():
            for folder, folders, names in os.walk(name):
                looked()
                folders[:] = [each for each in folders if not each.startswith(".")]
                yield from (f"{folder}/{each}" for each in names)
        else:
            yield name
