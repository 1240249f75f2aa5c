"""Which process holds a home's lock: it is written into the lock's file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from zenos.core.home import Home


def write_holder(lock: int) -> None:
    """Say in the lock's file that this process holds it. lock: its descriptor."""
    with suppress(OSError):  # on a full disk nobody is named
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())


def holder(home: Home) -> int | None:
    """The process that holds the home's lock; None when there is none, or another user's.

    It is the one named there if it has the file open. To try to lock it might keep a daemon out.
    """
    try:
        pid, lock = int(home.lock.read_bytes()), home.lock.stat()
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # it may just have been closed
                if os.path.samestat(file.stat(), lock):
                    return pid
    except (OSError, ValueError):
        return None
    return None
