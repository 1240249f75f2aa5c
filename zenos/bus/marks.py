"""What both ends of a direct socket know of each other's calls, though one of them be dead.

A page of shared memory with a place for each call that is on its way: two words, in which the
caller and the server write the call's number. The caller's word stands while it wants the call
done, the server's from right before the function begins. So whoever gives up the socket, or finds
that its other end was killed, knows which calls were never begun and may be made otherwise.

Each writes its own word first and then reads the other's (Dekker's rule). So of a call that is
taken back at the same moment as it is begun at least one of both hears; both may, and then the
server, which does not do it, says so.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from zenos.bus import segment
from zenos.bus.envelope import close_all
from zenos.core import limits
from zenos.core.errors import HandleError

BYTES: Final = 16 * limits.DIRECT_PENDING_MAX


def new_marks() -> int:
    """The descriptor of a new page. Errors as `segment.create`."""
    return segment.create(BYTES)


class Marks:
    """That page, mapped."""

    def __init__(self, descriptor: int) -> None:
        """Takes the descriptor. HandleError when it isn't such a page, UnavailableError."""
        try:
            inode = os.fstat(descriptor).st_ino
            size = segment.check(descriptor, inode, seals=segment.FIXED_SIZE)
            if size != BYTES:
                raise HandleError(f"cannot use marks of {size} bytes, only of {BYTES}")
            self._mapping = segment.Mapping(descriptor, BYTES, writable=True)
        finally:
            close_all((descriptor,))
        self._fence = threading.Lock()  # one for all might be held by another thread at a fork
        words = self._mapping.memory.cast("Q")
        self._wanted = words[: limits.DIRECT_PENDING_MAX]
        self._begun = words[limits.DIRECT_PENDING_MAX :]

    def want(self, place: int, call: int) -> None:
        """The caller: it is to be done."""
        self._wanted[place] = call

    def take_back(self, place: int, call: int) -> bool:
        """The caller: it is not to be done any more; whether it was not begun."""
        self._wanted[place] = 0
        self._settle()
        return bool(self._begun[place] != call)

    def is_wanted(self, place: int, call: int) -> bool:
        """The server: whether it is to be done."""
        return bool(self._wanted[place] == call)

    def begin(self, place: int, call: int) -> bool:
        """The server: it begins; whether it may. Else the caller may think that it has begun."""
        self._begun[place] = call
        self._settle()
        return bool(self._wanted[place] == call)

    def _settle(self) -> None:
        """What was written before is seen by others before what is read next: a processor may hold
        a write back behind a read, but not behind a lock."""
        with self._fence:
            pass
