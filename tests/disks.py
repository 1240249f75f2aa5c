"""Small disks that can be filled: for whoever may mount, in a namespace for whoever may not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# Mounts what it is told, a line for each command, until its input ends; and the mount with it.
_MOUNTER = "while read -r line; do if $line; then echo yes; else echo no; fi; done"


class Disk:
    """A file system of 8 MiB, and a file that fills it. `path` is good while it is there."""

    def __init__(self, point: Path, mounter: subprocess.Popen[str]) -> None:
        self._point = point
        self._mounter = mounter
        # The mount is in the namespace of that process alone: this is its view of all files.
        self.path = Path(f"/proc/{mounter.pid}/root{point}")
        self._filler = self.path / "filler"

    def mount(self, options: str) -> bool:
        """Mount it, or with `remount` change it; whether that could be done."""
        assert self._mounter.stdin is not None
        assert self._mounter.stdout is not None
        try:
            self._mounter.stdin.write(f"mount -t tmpfs -o {options} none {self._point}\n")
            self._mounter.stdin.flush()
        except BrokenPipeError:
            return False  # there are no namespaces for us here
        return self._mounter.stdout.readline() == "yes\n"

    def fill(self) -> None:
        """Leave not a byte."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                with suppress(OSError):
                    while file.write(b"x" * size):
                        continue

    def clear(self) -> None:
        """Give the space back."""
        self._filler.unlink()

    def grow(self) -> None:
        """Make it eight times as large."""
        assert self.mount("remount,size=64m")


@contextmanager
def small_disk(point: Path) -> Iterator[Disk]:
    """A disk mounted at `point`; skips the test on a machine that gives nobody a namespace."""
    if shutil.which("unshare") is None:
        pytest.skip("cannot mount a small disk: there is no `unshare`")
    point.mkdir()
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as mounter:
        disk = Disk(point, mounter)
        if not disk.mount("size=8m"):
            pytest.skip("cannot mount a small disk: namespaces of users are not allowed here")
        yield disk
