"""Globs over files: `*`, `?` and `[…]` within a name, `**` for any directories between."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Callable, Iterator
from typing import Final

LEVELS_MAX: Final = 2  # of `*` between directories, where somebody waits


def has_magic(name: str) -> bool:
    """Whether a path is a glob."""
    return glob.has_magic(name)


def at_most(count: int) -> Callable[[], None]:
    """To be called for each directory that is looked at: OSError once there are more."""
    left = iter(range(count))

    def looked() -> None:
        if next(left, None) is None:
            raise OSError(errno.E2BIG, "there is too much to look at")

    return looked


def is_deep(pattern: str) -> bool:
    """Whether it may lead through very many directories without `**`: each `*` is a level."""
    return sum(map(has_magic, os.path.dirname(pattern).split("/"))) > LEVELS_MAX  # noqa: PTH120


def expand(pattern: str, looked: Callable[[], None] = lambda: None) -> Iterator[str]:
    """What a glob matches, in no order, some perhaps twice; hidden names as glob.glob has them.

    looked: called for each directory that `**` leads into; may raise OSError.

    Links to directories are followed where the pattern names them or matches them with `*`, but not
    by `**`: one that leads to a directory above it would be a loop.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.iglob(pattern)  # noqa: PTH207 - the pattern is absolute
        return
    at = parts.index("**")
    rest = parts[at + 1 :]
    while rest[:1] == ["**"]:  # the same again
        rest = rest[1:]
    for root in glob.iglob("/".join(parts[:at]) + "/"):  # noqa: PTH207
        for folder, folders, names in os.walk(root):
            looked()
            folders[:] = [each for each in folders if not each.startswith(".")]
            if rest:
                yield from expand("/".join([glob.escape(folder.rstrip("/")), *rest]), looked)
            else:
                yield folder
                yield from (f"{folder}/{name}" for name in names if not name.startswith("."))
