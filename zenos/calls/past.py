"""What has become of durable calls that are over on a host, for programs that come back to it.

A program connects anew when its host has died and the next one has taken its calls over, which may
have ended by then. It sends again what it wasn't told was accepted: that must not run twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from zenos.calls import wire
from zenos.core import limits
from zenos.core.errors import WorkerError

Key = tuple[bytes, int]  # a program, its number of a call
RESULTS_BYTES_MAX: Final = 64 * limits.MIB
RESULT_BYTES: Final = 256  # of each, beside its payload
PROGRAMS_MAX: Final = 10_000


class Past:
    """Results that nobody was there to hear, and which calls were ever accepted. Both bounded: the
    oldest are forgotten."""

    def __init__(self) -> None:
        self._results: OrderedDict[Key, wire.Result] = OrderedDict()
        self._bytes = 0
        self._newest: OrderedDict[bytes, int] = OrderedDict()  # by program, the number of a call
        self._ended: frozenset[Key] = frozenset()  # on earlier hosts

    def read(self, ended: Iterable[Key]) -> None:
        """What the journal says of earlier hosts."""
        self._ended = frozenset(ended)
        for caller, id_ in self._ended:
            self.accept(caller, id_)

    def accept(self, caller: bytes, id_: int) -> None:
        """A call is kept. A program sends its calls in the order of their numbers."""
        self._newest[caller] = max(id_, self._newest.get(caller, 0))
        self._newest.move_to_end(caller)
        if len(self._newest) > PROGRAMS_MAX:
            self._newest.popitem(last=False)

    def knows(self, caller: bytes, id_: int) -> bool:
        """Whether a call was accepted before: by this host, or an earlier one."""
        return id_ <= self._newest.get(caller, 0)

    def keep(self, caller: bytes, result: wire.Result) -> None:
        """A call has ended whose program isn't there, or was gone before it had heard that."""
        self.drop(caller, result.id)
        self._results[caller, result.id] = result
        self._bytes += len(result.payload) + RESULT_BYTES
        while self._bytes > RESULTS_BYTES_MAX:
            self._forget(next(iter(self._results)))

    def take(self, caller: bytes, id_: int) -> wire.Result:
        """How a call has ended, or that nobody knows."""
        key = (caller, id_)
        if key in self._results:
            return self._forget(key)
        why = "nothing is known of it any more"
        if key in self._ended:
            why = "it has ended, and its host died before it could tell how"
        return wire.refused(WorkerError(f"cannot tell how the call has ended: {why}"), id_)

    def drop(self, caller: bytes, id_: int) -> None:
        """Nobody wants to hear of a call any more."""
        if (caller, id_) in self._results:
            self._forget((caller, id_))

    def _forget(self, key: Key) -> wire.Result:
        result = self._results.pop(key)
        self._bytes -= len(result.payload) + RESULT_BYTES
        return result
