"""What may well be missing when a task's turn comes; told at once, as it may still come to be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zenos.core import globs
from zenos.core.specs import ProgramSpec

if TYPE_CHECKING:
    from zenos.client.address import Address

NOTES_MAX: Final = 5
FOLDERS_MAX: Final = 1000  # that are looked at for a glob, before the task's id is told
NOTE_CHARS_MAX: Final = 500


def note_data(work: Any) -> None:
    """Data may come to be before the run's turn comes; more likely a path has a typo."""
    from zenos.cli.output import say

    if os.environ.get("ZENOS_HOST"):
        return  # the daemon may see other files than we do
    looked = globs.at_most(FOLDERS_MAX)
    for path in work.data.paths:
        try:
            if Path(path).exists():
                continue
            if not globs.has_magic(path):
                say(f"note: there is no {path} yet; without it the run will fail")
            elif globs.is_deep(path):
                continue
            elif not any(Path(match).is_file() for match in globs.expand(path, looked)):
                say(f"note: no file matches {path} yet; if that stays so, the run will fail")
        except (OSError, ValueError, RecursionError):
            continue  # it can't be looked at from here, or is too much: the run will see


def note_programs(address: Address, works: Iterable[object], *, json: bool) -> None:
    """Say of programs and their directories that they are not there, each once; not with json.

    Only where the daemon is on this machine: elsewhere there are other files.
    """
    from zenos.cli.output import say

    if address.daemon is None or json:
        return
    found = _path_of(address.daemon.pid)
    programs = [work for work in works if isinstance(work, ProgramSpec)]
    told = dict.fromkeys(filter(None, (_missing(work, found) for work in programs)))
    for text in list(told)[:NOTES_MAX]:
        text = text if len(text) <= NOTE_CHARS_MAX else f"{text[:NOTE_CHARS_MAX]}…"
        say(f"note: {text}; if that stays so, the task will fail")
    if len(told) > NOTES_MAX:
        say(f"note: {len(told) - NOTES_MAX} more like these")


def _missing(work: ProgramSpec, path: str) -> str:
    """What isn't there for this program, in words; nothing where all is."""
    name, directory = work.argv[0], Path(work.cwd or "/")
    try:
        if not directory.is_dir():
            return f"there is no directory {directory}"
        if "/" not in name:
            there = shutil.which(name, path=work.env.get("PATH", path))
            return "" if there else f"there is no program {name!r} in the PATH of the task"
        file = directory / name
        if not file.is_file():
            return f"there is no program {file}"
        return "" if os.access(file, os.X_OK) else f"{file} may not be executed"
    except (OSError, ValueError):  # it can't be looked at from here
        return ""


def _path_of(pid: int) -> str:
    """Where programs of tasks are looked for: the PATH that the daemon was started with."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it is another user's
        lines = []
    paths = [os.fsdecode(line[5:]) for line in lines if line.startswith(b"PATH=")]
    return paths[0] if paths else os.environ.get("PATH", os.defpath)
