"""Counted failpoints: labelled points at which a test makes this process die or an action fail.

`ZENOS_FAILPOINTS="store.commit.before=kill@3,worker.fork=raise@1"` kills the process with SIGKILL
the third time it passes `store.commit.before`, and raises OSError the first time it passes
`worker.fork`. Without the variable a pass costs one truth test.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

LABELS: Final = frozenset(
    {
        "loop.decided",  # after step, before the commit
        "loop.committed",  # after the commit, before the actions
        "loop.performed",  # after the actions
        "worker.start.begin",  # the executor begins to start a worker
        "worker.start.spec",  # its spec file is written, nothing is forked yet
        "worker.start.forked",  # the shim was forked
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
        "durable.write",
        "durable.fsync",
        "durable.rename",
    }
)
VARIABLE: Final = "ZENOS_FAILPOINTS"

_plan: dict[str, tuple[str, int]] = {}
_passed: dict[str, int] = {}


def arm(text: str) -> None:
    """Read a plan: `label=action@count`, comma-separated; action is `kill`, `raise` or `enospc`."""
    _plan.clear()
    _passed.clear()
    for item in filter(None, (part.strip() for part in text.split(","))):
        label, _, rest = item.partition("=")
        action, _, count = rest.partition("@")
        if label not in LABELS or action not in {"kill", "raise", "enospc"}:
            raise ValueError(f"cannot arm failpoint {item!r}: unknown label or action")
        _plan[label] = (action, int(count or "1"))


def passing(label: str) -> None:
    """Say that this process passes `label` now; fails here when the plan says so."""
    if not _plan:
        return
    planned = _plan.get(label)
    if planned is None:
        return
    _passed[label] = _passed.get(label, 0) + 1
    action, count = planned
    if _passed[label] != count:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = errno.ENOSPC if action == "enospc" else errno.EIO
    raise OSError(code, f"failpoint {label}: {os.strerror(code)}")


arm(os.environ.get(VARIABLE, ""))
