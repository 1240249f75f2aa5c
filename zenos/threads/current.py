"""What a running thread knows of itself: whether it should end, and how far it is."""

from __future__ import annotations

import mmap
import struct
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

BOARD_BYTES: Final = mmap.PAGESIZE
_SERIAL: Final = struct.Struct("=Q")
_PROGRESS: Final = struct.Struct("=Qd")
_CPU: Final = struct.Struct("=Qd")
# A cache line each: one side writes the first, one the others.
_CANCEL_AT, _PROGRESS_AT, _CPU_AT = 0, 64, 128
# Between two looks at the word to stop a piece of a chunk should take about so long.
PIECE_S_MIN, PIECE_S_MAX, PIECE_ITEMS_MAX = 0.001, 0.01, 4096


class Token(Protocol):
    """One attempt of a thread, as it is seen from inside and from outside."""

    def cancelled(self) -> bool:
        """Whether it should end."""
        ...

    def advance(self, done: int, fraction: float) -> None:
        """So many items are done, and that fraction of the next."""
        ...

    def progress(self) -> tuple[int, float]:
        """What was said last by `advance`."""
        ...


class Flag:
    """The token of a thread on an OS thread."""

    def __init__(self) -> None:
        self.stop = False
        self._progress = (0, 0.0)

    def cancelled(self) -> bool:
        return self.stop

    def advance(self, done: int, fraction: float) -> None:
        self._progress = (done, fraction)

    def progress(self) -> tuple[int, float]:
        return self._progress


class Board:
    """A page of memory that a lane's process and its parent share.

    The parent writes the serial number of the attempt that should end, the lane how far it is.
    """

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, BOARD_BYTES)
        self.serial = 0

    def begin(self, serial: int) -> None:
        """The attempt whose token this is from now on."""
        self.serial = serial

    def stop(self) -> None:
        """Tell the present attempt to end."""
        _SERIAL.pack_into(self._page, _CANCEL_AT, self.serial)

    def cancelled(self) -> bool:
        (serial,) = _SERIAL.unpack_from(self._page, _CANCEL_AT)
        return bool(serial == self.serial)

    def advance(self, done: int, fraction: float) -> None:
        _PROGRESS.pack_into(self._page, _PROGRESS_AT, done, fraction)

    def progress(self) -> tuple[int, float]:
        done, fraction = _PROGRESS.unpack_from(self._page, _PROGRESS_AT)
        return int(done), float(fraction)

    def note_cpu(self) -> None:
        """In the lane: what its process has used before the present attempt isn't that one's."""
        _CPU.pack_into(self._page, _CPU_AT, self.serial, time.process_time())

    def cpu_begun_s(self, serial: int) -> float | None:
        """CPU seconds that the process had used when that attempt began; None if it hasn't."""
        noted, cpu_s = _CPU.unpack_from(self._page, _CPU_AT)
        return float(cpu_s) if noted == serial else None

    def close(self) -> None:
        self._page.close()


class _Here(threading.local):
    token: Token | None = None
    pool: object = None
    done: int = 0


here: Final = _Here()


def cancelled() -> bool:
    """Whether the thread that asks should end: it was cancelled, or its time is over.

    What it returns then is not used. False outside of a pool's lanes.
    """
    return here.token is not None and here.token.cancelled()


def report(fraction: float) -> None:
    """Say how far the thread is with its present item, 0 to 1. Nothing outside of lanes."""
    if here.token is not None:
        here.token.advance(here.done, min(max(float(fraction), 0.0), 1.0))


class Ran(msgspec.Struct):
    """What an attempt came to: results of the first items, and the error of the next, if any.

    text: the error's traceback where that can't come along. seconds: how long it ran.
    stopped: it was told to end, and left out what it may have cut short. lasting: another try would
    end in the same error.
    """

    results: list[Any]
    error: BaseException | None = None
    text: str = ""
    seconds: float = 0.0
    stopped: bool = False
    lasting: bool = False


def run(function: Callable[[Any], Any], items: Sequence[Any], token: Token) -> Ran:
    """Call the function with each item, until one raises or the token says to end."""
    begun = time.monotonic()
    results: list[Any] = []
    ran = Ran(results)
    here.token, size, at = token, 1, 0
    try:
        while at < len(items):
            here.done = at
            token.advance(at, 0.0)
            if token.cancelled():
                ran.stopped = True
                break
            piece_begun = time.monotonic()
            # What was done before one raises stays in the list.
            results.extend(map(function, items[at : at + size]))
            if token.cancelled():
                ran.stopped = True
                del results[at:]
                break
            at += size
            took_s = time.monotonic() - piece_begun
            if took_s < PIECE_S_MIN:
                size = min(2 * size, PIECE_ITEMS_MAX)
            elif took_s > PIECE_S_MAX:
                size = max(1, size // 2)
    except BaseException as error:  # noqa: BLE001 - a lane outlives whatever its threads raise
        if token.cancelled():
            ran.stopped = True
            del results[at:]
        ran.error, ran.text = error, traceback.format_exc()
    finally:
        here.token = None
    ran.seconds = time.monotonic() - begun
    return ran
