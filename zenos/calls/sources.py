"""Whether the code that a lane has imported is still what its files say.

A function of a module goes to a lane by its name. A lane that has the module already would run what
it was when that was imported, maybe for another program. So a lane looks at the files before a call
and, where one has changed, runs nothing any more: another lane, which has imported nothing, does.
Installed packages and the standard library aren't looked at.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import time
from typing import Final

import zenos

REST: Final = 20  # times as long as a look took, nobody looks again: so it costs a twentieth
Version = tuple[int, int, int] | None  # modified (ns), size, inode; None: there is none


class Sources:
    """The files of what was imported since this was made."""

    def __init__(self) -> None:
        self._seen = len(sys.modules)
        self._count = self._seen
        self._files: dict[str, Version] = {}
        self._installed = _installed()
        self._rest_until = 0.0

    def learn(self) -> None:
        """Note the files of what was imported since: right after it was."""
        if len(sys.modules) == self._count:
            return
        self._count = len(sys.modules)
        for module in list(sys.modules.values())[self._seen :]:
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and not path.startswith(self._installed):
                self._files.setdefault(path, _version(path))

    def have_changed(self) -> bool:
        """Whether one of them is another by now."""
        if not self._files:
            return False
        begun = time.monotonic()
        if begun < self._rest_until:
            return False
        changed = any(_version(path) != version for path, version in self._files.items())
        now = time.monotonic()
        self._rest_until = now + REST * (now - begun)
        return changed


def _installed() -> tuple[str, ...]:
    """Folders of the standard library and of packages, with a slash at their ends."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages()}
    paths.add(os.path.dirname(zenos.__file__))  # noqa: PTH120 - of one version with its host
    return tuple(os.path.join(path, "") for path in sorted(paths) if path)  # noqa: PTH118


def _version(path: str) -> Version:
    try:
        found = os.stat(path)  # noqa: PTH116 - several for each call
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
