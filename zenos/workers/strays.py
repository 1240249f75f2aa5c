"""Runs that the database knows nothing of: it was put back from a backup, or begun anew.

New tasks get their numbers again, and must not be taken for them.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from zenos.core import processes, shim
from zenos.core.errors import StorageError
from zenos.core.home import Home
from zenos.workers import runs

log = logging.getLogger(__name__)
_TASK: Final = re.compile(r"t([0-9]{1,18})")
SUFFIX: Final = ".unknown"
LOOKS_MAX: Final = 20


def set_aside(home: Home, first: int, end_group: Callable[[str, int], None]) -> list[Path]:
    """Rename run directories and checkpoints of tasks from number `first` on; end what still runs.

    first: the number of the database's next task; no run begins before its task is in there.
    end_group: ends what is in the control groups of a generation. Nothing is removed: whoever puts
    the right database back finds them. Returns where they are now. Raises StorageError.
    """
    found = sorted(
        path
        for folder in (home.runs, home.checkpoints)
        for path in folder.glob("t*")
        if (match := _TASK.fullmatch(path.name)) and int(match[1]) >= first
    )
    moved: list[Path] = []
    for path in found:
        try:
            for generation in _generations(path) if path.parent == home.runs else ():
                end_group(path.name, int(generation.name))
                end_session(generation)
            moved.append(path.rename(_free(path)))
        except OSError as error:
            raise StorageError(
                f"cannot set aside {path}, of which the database knows nothing: "
                f"{error.strerror or error}; move it away"
            ) from error
    if moved:
        log.warning(
            "the database knows nothing of %s: what was left of them is set aside as %s",
            ", ".join(path.name for path in found if path.parent == home.runs)[:1000] or "them",
            ", ".join(map(str, moved))[:1000],
        )
    return moved


def _generations(path: Path) -> Iterator[Path]:
    for generation in path.iterdir():
        if generation.name.isdecimal() and generation.is_dir():
            yield generation


def _free(path: Path) -> Path:
    """What it is called from now on: a name that nothing has."""
    name, number = path.with_name(path.name + SUFFIX), 1
    while os.path.lexists(name):
        number += 1
        name = path.with_name(f"{path.name}{SUFFIX}-{number}")
    return name


def end_session(directory: Path) -> None:
    """End what is left of a run whose shim can't: its session, the shim included, and what has left
    that. Of these, without a control group, the environment tells whose they are."""
    record = runs.read_record(directory, "shim")
    if record is None or record.get("boot_id") != shim.boot_id():
        return
    with suppress(OSError):
        lock = (directory / "lock").stat().st_ino
        if record.get("lock", lock) != lock:
            return  # a copy: that shim is another home's
    # A session's number isn't given anew while it has members. So where another process has it by
    # now, nothing of ours is left, and those in the session of that number are strangers.
    if shim.start_time(int(record["pid"])) not in (0, record["start_time"]):
        return
    first = int(record["pid"])
    # While the shim lives, what has left its session is still below it.
    below = processes.descendants(first) if shim.start_time(first) else []
    began = int(record["start_time"])
    _kill({*shim.session_members(first), *below}, began)
    variables = {
        "ZENOS_TASK": directory.parent.name,
        "ZENOS_GENERATION": directory.name,
        "ZENOS_TASK_HOME": str(directory.parent.parent.parent),
    }
    for _ in range(LOOKS_MAX):  # one that was killed may have forked before
        if not _kill(processes.with_variables(variables), began):
            break


def _kill(pids: Iterable[int], began: int) -> bool:
    """Kill those that have started since; whether there were any."""
    found = False
    for pid in pids:
        if shim.start_time(pid) >= began and pid != os.getpid():
            found = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return found
