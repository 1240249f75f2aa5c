"""Small disks that can be filled: for whoever may mount, in a namespace for whoever may not."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

# Root of its own users and mounts; what it starts is in there too.
_NAMESPACE: Final = ("unshare", "--user", "--map-root-user", "--mount")
_WITHIN: Final = "_ZENOS_TESTS_WITHIN"  # set where a test runs within one
_ELSEWHERE: Final = pytest.StashKey[bool]()


class Disk:
    """A file system of some MiB, and a file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

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
        """Make it 64 MiB large."""
        # With its type and source said: else `mount` adds options that a namespace is refused.
        assert _done("mount", "-t", "tmpfs", "-o", "remount,size=64m", "none", str(self.path))


@contextmanager
def small_disk(node: pytest.Item, point: Path, size: str = "8m") -> Iterator[Disk]:
    """A disk mounted at `point`, for the fixture of a test.

    Who may not mount has the whole test run by another pytest, within a namespace: in this one
    `point` stays a directory, and the test's body isn't called. Skips the test on a machine that
    gives nobody a namespace.
    """
    point.mkdir()
    if _done("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(point)):
        try:
            yield Disk(point)
        finally:
            # Lazily: what this process has mapped of it may live as long as it does.
            subprocess.run(["umount", "--lazy", str(point)], check=True)
        return
    if not _namespaces():
        pytest.skip("cannot mount a small disk: namespaces of users are not allowed here")
    node.stash[_ELSEWHERE] = True
    yield Disk(point)


def called_elsewhere(item: pytest.Function) -> bool | None:
    """Runs a test within a namespace where its disk could not be mounted; None where it could."""
    if not item.stash.get(_ELSEWHERE, False):
        return None
    path = item.funcargs["tmp_path"]
    argv = [*_NAMESPACE, sys.executable, "-m", "pytest"]
    done = subprocess.run(
        [*argv, f"--basetemp={path}/within", f"{item.path}::{item.nodeid.partition('::')[2]}"],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            _WITHIN: "yes",
        },
        cwd=item.config.rootpath,
        capture_output=True,
        text=True,
    )
    if done.returncode or "1 passed" not in done.stdout:
        pytest.fail(f"within a namespace:\n{done.stdout}{done.stderr}", pytrace=False)
    return True


@functools.cache
def _namespaces() -> bool:
    """Whether one can be had in which a file system can be mounted; never so within one."""
    return _WITHIN not in os.environ and _done(
        *_NAMESPACE, "mount", "-t", "tmpfs", "none", tempfile.gettempdir()
    )


def _done(*argv: str) -> bool:
    with suppress(FileNotFoundError):
        return subprocess.run(argv, capture_output=True).returncode == 0
    return False
