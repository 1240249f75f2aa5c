"""A replica's sequences as threads: what `zenos ps --threads` shows of them.

A sequence waits for a row of the cache (queued), has its prompt run (prefill), and decodes
(running). The row is its lane.
"""

from __future__ import annotations

import time

from zenos.core import limits
from zenos.core.thread_views import PoolView, ThreadState, ThreadView
from zenos.runtime.engine.generations import Generations
from zenos.runtime.engine.sequence import Sequence


class ShownSequences:
    """The sequences of a replica, as a pool. Looked at from any thread, without a lock: between
    two looks at one list a sequence may have gone on to the next, and no more than that."""

    def __init__(self, engines: Generations) -> None:
        self._engines = engines
        self.finished = False

    def snapshot(self, threads_max: int = limits.THREADS_SHOWN_MAX) -> PoolView:
        """What each sequence does, those that run first."""
        now = time.monotonic()
        found, counts = self._engines.sequences(), self._engines.counts
        queued = sum(state == "queued" for _, state in found)
        return PoolView(
            name="sequences",
            kind="engine",
            policy="priority",
            wanted=self._engines.slots,
            queued=queued,
            running=len(found) - queued,
            submitted=counts.submitted,
            succeeded=counts.succeeded,
            failed=counts.failed,
            cancelled=counts.cancelled,
            retried=counts.retried,
            lanes_died=0,
            lanes=[],
            threads=[_view(*each, now) for each in found[:threads_max]],
        )


def _view(sequence: Sequence, state: ThreadState, now: float) -> ThreadView:
    """Of a sequence whose prompt is run the prompt's tokens, else those of the answer."""
    request = sequence.request
    began = now if request.admitted is None or state == "queued" else request.admitted
    done, total, unit = sequence.generated, request.limit - len(request.prompt), "tokens"
    if state == "prefill":
        done, total, unit = sequence.computed, len(sequence.ids), "tokens of the prompt"
    return ThreadView(
        id=sequence.number,
        name=request.id if request.sampling.n == 1 else f"{request.id}/{sequence.index}",
        state=state,
        priority=request.priority,
        attempt=int(state != "queued"),
        items=1,
        lane=None if state == "queued" else sequence.row,
        progress=done / total if total else 0.0,
        done=done,
        total=total,
        unit=unit,
        waited_s=max(0.0, began - request.arrived),
        ran_s=max(0.0, now - began),
    )
