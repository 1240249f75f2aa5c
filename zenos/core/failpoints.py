"""Failpoints: labelled points at which a test makes this process die or an action fail.

`ZENOS_FAILPOINTS="loop.committed=kill@3,durable.fsync=raise@1"` kills each process that has the
variable with SIGKILL the third time it passes `loop.committed`, and raises OSError the first time
it passes `durable.fsync`. `ZENOS_FAILPOINTS=dir:/a/folder` arms one process once, while all run: by
a file there called `shim.exit.before=kill`, or `shim.exit.before=kill@t7` for a shim of task t7
alone. Who fails takes the file away. Without the variable a pass costs one truth test.

`LABELS` is the one list of points; tests/crash/labels.py says what tries each of them.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

LABELS: Final = frozenset(
    {
        "loop.decided",  # after step, before the commit
        "store.commit.before",  # the transaction has not begun
        "store.commit.written",  # all is written in it, nothing is committed
        "store.commit.after",  # it is on the disk, and nobody has been told
        "loop.committed",  # after the commit, before the actions
        "loop.action",  # after each action of a batch: between it and the next
        "loop.performed",  # after the actions
        "worker.start.begin",  # the executor begins to start a worker
        "worker.start.spec",  # its spec file is written, nothing is forked yet
        "worker.start.forked",  # the shim was forked
        "worker.pause.marked",  # a program is to be frozen, nothing of it is stopped yet
        "worker.pause.stopped",  # all of it is stopped, the kernel has not heard
        "worker.resume.signalled",  # it goes on, and is still marked as frozen
        "launcher.fork.before",
        "launcher.fork.after",
        "zygote.fork.before",
        "zygote.fork.after",
        "shim.claim.before",  # before the run directory is claimed
        "shim.claim.after",
        "shim.fork.after",  # the worker is forked and waits for the word to go on
        "shim.started.after",  # `started` is written
        "shim.exit.before",  # the worker has ended, `exit` is not written
        "shim.exit.after",
        "topics.decided",  # after a step of the durable topics, before its commit
        "topics.committed",  # after that, before anybody is answered
        "bus.send.received",  # the broker has a durable message, nothing is decided
        "bus.ack.received",
        "bus.delivered",  # a durable message waits to be written to its receiver
        "bus.send.sent",  # a sender has written a durable message, nothing is answered
        "bus.send.answered",
        "bus.receive.taken",  # a receiver has a durable message
        "bus.ack.sent",
        "calls.received",  # a host has read calls, nothing is written
        "calls.written",  # they are in its journal, not synced
        "calls.kept",  # they are synced, nobody has been told
        "calls.ended",  # a host has the result of a call, nothing is written or told
        "calls.told",  # it was written to its program
        "durable.write",
        "durable.fsync",
        "durable.rename",
    }
)
VARIABLE: Final = "ZENOS_FAILPOINTS"

ACTIONS: Final = frozenset({"kill", "raise", "enospc"})
FOLDER: Final = "dir:"

_plan: dict[str, tuple[str, int]] = {}
_folder = ""
_passed: dict[str, int] = {}


def arm(text: str) -> None:
    """Read a plan: `label=action@count`, comma-separated, or `dir:FOLDER`.

    Actions are `kill`, `raise` (EIO) and `enospc`. ValueError for an unknown label or action.
    """
    global _folder
    _plan.clear()
    _passed.clear()
    _folder = text.removeprefix(FOLDER) if text.startswith(FOLDER) else ""
    if _folder:
        return
    for item in filter(None, (part.strip() for part in text.split(","))):
        label, _, rest = item.partition("=")
        action, _, count = rest.partition("@")
        if label not in LABELS or action not in ACTIONS:
            raise ValueError(f"cannot arm failpoint {item!r}: unknown label or action")
        _plan[label] = (action, int(count or "1"))


def passing(label: str) -> None:
    """Say that this process passes `label` now; fails here when the plan says so."""
    if not _plan and not _folder:
        return
    action = _taken(label) if _folder else _counted(label)
    if action is None:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = errno.ENOSPC if action == "enospc" else errno.EIO
    raise OSError(code, f"failpoint {label}: {os.strerror(code)}")


def _counted(label: str) -> str | None:
    """What the plan has for this pass."""
    planned = _plan.get(label)
    if planned is None:
        return None
    _passed[label] = _passed.get(label, 0) + 1
    action, count = planned
    return action if _passed[label] == count else None


def _taken(label: str) -> str | None:
    """What a file in the folder has for this process, if nobody else was faster to take it."""
    task = os.environ.get("ZENOS_TASK")
    for action in ACTIONS:
        for name in (f"{label}={action}", f"{label}={action}@{task}"):
            try:
                os.unlink(f"{_folder}/{name}")  # noqa: PTH108 - shims have no pathlib
            except OSError:
                continue
            return action
    return None


arm(os.environ.get(VARIABLE, ""))
