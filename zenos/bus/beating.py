"""Heartbeats of programs that wait: one thread for all their connections.

A program may do other things for hours between two words to the bus. That it is there nevertheless,
and not stopped, is said by this thread.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final, Protocol

from zenos.core import limits


class Beating(Protocol):
    """What has to beat."""

    def beat(self) -> float:
        """Say that it is there, if it is time for that; in how many seconds it will be (again)."""
        ...


_beating: Final[weakref.WeakSet[Beating]] = weakref.WeakSet()
_changed = threading.Condition()
_thread: threading.Thread | None = None
_begun = 0  # how often something began: what came meanwhile isn't waited for


def begin(one: Beating) -> None:
    """Let it beat, from now on and while anybody refers to it."""
    global _thread, _begun
    with _changed:
        _beating.add(one)
        _begun += 1
        if _thread is None:
            _thread = threading.Thread(target=_beat_for_ever, name="bus-beat", daemon=True)
            _thread.start()
        _changed.notify()


def end(one: Beating) -> None:
    """It beats no more."""
    with _changed:
        _beating.discard(one)
        _changed.notify()


def _beat_for_ever() -> None:
    global _thread
    while True:
        with _changed:
            all_, begun = list(_beating), _begun
            if not all_:
                _thread = None
                return
        left_s = min([limits.HEARTBEAT_S, *(one.beat() for one in all_)])
        all_.clear()  # nobody is kept by being waited for
        with _changed:
            if _beating and begun == _begun:
                _changed.wait(left_s)


def _forget() -> None:
    """In a fork: the thread is the parent's."""
    global _changed, _thread
    _beating.clear()
    _changed, _thread = threading.Condition(), None


os.register_at_fork(after_in_child=_forget)
