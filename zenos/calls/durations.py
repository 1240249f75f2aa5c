"""How long calls take, learned from those that have ended: so that lanes have enough in advance,
and nobody waits long behind what they have."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from zenos.calls import wire

FUNCTIONS_MAX: Final = 4096  # that are remembered: the newest
UNKNOWN_S: Final = 0.002  # of a function that has not ended yet: a lane has two of its calls
OVERHEAD_S: Final = 20e-6  # of a lane, for each call
RISE: Final = 0.5  # of the way to a longer time, and
FALL: Final = 0.125  # to a shorter one: who waits behind too much is worse off than who waits idly


class Durations:
    """By function, the seconds of one item."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def of(self, call: wire.Call) -> float:
        """What a lane is expected to need for a call, in seconds."""
        seconds = self._known.get(call.key)
        return OVERHEAD_S + (UNKNOWN_S if seconds is None else seconds * call.items)

    def learn(self, call: wire.Call, seconds: float) -> None:
        """It has run so long."""
        each = seconds / max(1, call.items)
        before = self._known.get(call.key)
        if before is None:
            self._known[call.key] = each
            if len(self._known) > FUNCTIONS_MAX:
                self._known.popitem(last=False)
        else:
            self._known[call.key] = before + (RISE if each > before else FALL) * (each - before)
