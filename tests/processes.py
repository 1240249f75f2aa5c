"""Which processes there are, and waiting for what has no event."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def mentioning(text: str) -> dict[int, str]:
    """Processes with `text` in their command line or environment, without this one and zombies."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if command and text.encode() in command + (entry / "environ").read_bytes():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode("utf-8", "replace")
    return found


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait until `condition` holds; fails after the timeout."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it has not come to hold"
        time.sleep(0.01)


@contextmanager
def signalled_until(end: float) -> Iterator[None]:
    """A signal comes at once, and its handler takes until that time of the monotonic clock.

    So whoever waits for something meanwhile finds its time over. Main thread only.
    """

    def hold(*_: object) -> None:
        while time.monotonic() < end:
            pass

    before = signal.signal(signal.SIGALRM, hold)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
