"""What ends a daemon from outside: signals while it boots, the end of a process it belongs to."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

log = logging.getLogger(__name__)


def end_boot_on_signals() -> None:
    """Until the loop runs: SIGTERM and SIGINT undo what of the boot was done. SIGHUP is nothing."""
    running, boot = asyncio.get_running_loop(), asyncio.current_task()
    assert boot is not None  # noqa: S101 - a coroutine calls this
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, boot.cancel)
    running.add_signal_handler(signal.SIGHUP, lambda: None)


def watch_process(pid: int, ended: Callable[[], None]) -> Callable[[], None]:
    """Call `ended` once that process has ended, even if before. What it returns undoes it."""
    running = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return running.call_soon(ended).cancel

    def undo() -> None:
        nonlocal fd
        if fd >= 0:
            running.remove_reader(fd)
            os.close(fd)
            fd = -1

    def on_end() -> None:
        undo()
        log.info("process %d, with which this daemon ends, has ended", pid)
        ended()

    running.add_reader(fd, on_end)
    return undo
