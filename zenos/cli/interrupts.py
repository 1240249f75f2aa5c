"""A signal is always noticed, and at once: one Ctrl-C is enough, whatever the program does.

CPython runs a handler between two instructions of the main thread, so a signal can come to nothing:

1. It arrives when the last look for signals is past and the system call that waits hasn't begun.
   Nobody looks again before the call returns: a minute later, on a silent stream. So a thread that
   hears of every signal by the wake-up descriptor interrupts the call.
2. Its exception is raised in a destructor or in a callback of an import, where it is printed and
   forgotten. So the signal is sent again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

# Its default is to be ignored, and nothing else here uses it; that it comes means nothing.
NUDGE: Final = signal.SIGURG
# A nudge can come too early for the call just as the signal itself did.
NUDGES_S: Final = (0.02, 0.1, 0.5)
LOST: Final = b"\0"
ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class Ended(SystemExit):
    """Told to end by a signal; number: its own."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def end_by_default() -> None:
    """Until `watch`: an interrupt ends the process by the signal, and shows no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def watch() -> None:
    """From now on an interrupt is a KeyboardInterrupt. Call it once, in the main thread.

    SIGTERM and SIGHUP raise `Ended`: who has hidden the cursor, or made a temporary file, undoes it
    on the way out, which ends in `end_as_told`.
    """
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    main = threading.get_ident()
    threading.Thread(target=_nudge, args=(heard, main), name="signals", daemon=True).start()
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(NUDGE, lambda *_: None)
    usual = sys.unraisablehook

    def forgotten(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt | SystemExit):
            os.write(tell, LOST)
        else:
            usual(what)

    sys.unraisablehook = forgotten
    # Who started us may have it ignored, as shells do for what runs in the background.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ENDING:  # likewise, as nohup does
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: Any) -> NoReturn:
    raise Ended(number)


@contextmanager
def held() -> Iterator[None]:
    """A signal that would end this comes at the end of the block.

    Blocking it would not do: it would come by any other thread, of which libraries make some.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    # What is ignored stays so, also for a process that is begun meanwhile.
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for told in came:
            signal.raise_signal(told)


def end_as_told(ended: Ended) -> NoReturn:
    """End by the signal itself, as whoever sent it expects to see."""
    from zenos.cli.streams import OutputError

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, OutputError):  # the terminal may be gone
            stream.flush()
    signal.signal(ended.number, signal.SIG_DFL)
    signal.raise_signal(ended.number)
    raise ended  # somebody has blocked it


def _nudge(heard: int, main: int) -> None:
    """Interrupt what the main thread waits in after each signal; send those again that it lost."""
    last: int = signal.SIGINT
    while told := os.read(heard, 1):
        if told == LOST:
            time.sleep(NUDGES_S[0])  # until the destructor has been left
            signal.pthread_kill(main, last)
        elif told[0] != NUDGE:
            last = told[0]
            for pause_s in NUDGES_S:
                time.sleep(pause_s)
                signal.pthread_kill(main, NUDGE)
