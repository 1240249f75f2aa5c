"""The input pipeline: the next step's batches are made ready while this one computes.

A thread on a lane of its own makes what `make(step)` gives for one step after the other, never more
than one ahead of whoever takes it. What a step is made of depends on its number alone. So a run
that goes on from another step, or does one again, asks for that and gets the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from zenos.threads import Future, Options, Pool
from zenos.threads.current import report

T = TypeVar("T")


class Inputs(Generic[T]):
    """Batches by step. `close` ends the thread.

    make: called on the lane; a pure function of the step, without any work for torch's own threads,
    of which a lane would have others than the step has.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._next = 0  # the step to make next
        self._made: tuple[int, T] | None = None
        self._last: int | None = None
        self._ended: Future[None] | None = None
        self._pool: Pool | None = None
        self._closed = False

    def take(self, step: int, last: int | None = None) -> T:
        """What that step is made of; waits for it. Raises what making it has raised.

        last: steps in all, where that is known, for the progress that the thread shows.
        """
        if self._pool is None:
            self._begin(step)
        with self._changed:
            self._last = last
            while self._made is None or self._made[0] != step:
                if self._ended is not None:
                    self._ended.result(0)
                    raise RuntimeError("closed")
                if self._made is not None:  # of another step: the run goes on elsewhere
                    self._made, self._next = None, step
                    self._changed.notify_all()
                self._changed.wait()
            (_, taken), self._made = self._made, None
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """End the thread, once what it makes at the moment is made."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._pool is not None:
            self._pool.close()

    def _begin(self, step: int) -> None:
        self._next = step
        self._pool = Pool(1, name="input")
        future = self._pool.submit(self._run, options=Options(name="batches"))
        future.add_done_callback(self._end)

    def _end(self, future: Any) -> None:
        with self._changed:
            self._ended = future
            self._changed.notify_all()

    def _run(self) -> None:
        """On the lane."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._made is None or self._closed)
                if self._closed:
                    return
                step, last = self._next, self._last
                self._next += 1
            made = self._make(step)
            if last:
                report((step + 1) / last)
            with self._changed:
                self._made = step, made
                self._changed.notify_all()
