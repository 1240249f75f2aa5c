"""Weights that change while requests are answered.

Each version has an engine of its own, with its own cache, so that no sequence and no prefix ever
mixes two. The newest takes what is new; the one before finishes what it has begun. There are never
more than two, and together they have the rows and the positions of one. Requests that wait are
nobody's yet, and go with the newest.

Where there is no room for two sets of weights, `drain` ends the old one first: what is new waits.
"""

from __future__ import annotations

from typing import Final

from zenos.core import limits
from zenos.core.thread_views import ThreadState
from zenos.core.wire import Chunk, GenerateRequest
from zenos.runtime.engine.batch import Backend
from zenos.runtime.engine.engine import Engine
from zenos.runtime.engine.sequence import Sequence
from zenos.threads.machine import Counts

STATES: Final = ("queued", "prefill", "running")


class Generations:
    """The engines of one replica, used like one. Not for several threads at once."""

    def __init__(self, engine: Engine, slots: int, *, restart: bool = False) -> None:
        """restart: begin again what may be, once, rather than finish it with the old weights."""
        self._newest = engine
        self._before: Engine | None = None
        self._slots = slots
        self._positions = engine.positions
        self._taken = 0
        self._restart = restart
        self._again: dict[str, None] = {}  # requests that were begun again once
        self._said: list[Chunk] = []

    @property
    def version(self) -> str:
        """What new requests are answered with."""
        return self._newest.version

    @property
    def settled(self) -> bool:
        """Whether only one set of weights is held."""
        return self._before is None

    @property
    def drained(self) -> bool:
        """After `drain`: whether everything that was begun has ended."""
        return self._before is None and self._newest.paused and self._newest.drained

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        now = self._newest.drained if self._newest.paused else self._newest.idle
        return now and self._before is None and not self._said

    @property
    def empty(self) -> bool:
        """Whether no request is left, begun or not."""
        return self._newest.idle and self._before is None

    @property
    def slots(self) -> int:
        """Sequences that are decoded together."""
        return self._slots

    @property
    def counts(self) -> Counts:
        """What became of the sequences so far."""
        return self._newest.counts

    def sequences(self) -> list[tuple[Sequence, ThreadState]]:
        """What each one does, those that run first. From any thread."""
        newest, before = self._newest, self._before  # in this order: one may be handed over
        found = newest.sequences()
        if before is not None:
            found |= before.sequences()
        return sorted(found.values(), key=lambda each: -STATES.index(each[1]))

    def submit(
        self, request: GenerateRequest, prompt: list[int], arrival: int | None = None
    ) -> None:
        """As Engine.submit, with the newest weights."""
        self._newest.submit(request, prompt, arrival)

    def abort(self, request: str) -> None:
        """Forget a request, whichever weights answer it."""
        for engine in self._engines():
            engine.abort(request)

    def abort_all(self) -> None:
        """Forget everything."""
        for engine in self._engines():
            engine.abort_all()

    def step(self) -> list[Chunk]:
        """A step of each engine; the one before goes once it has nothing left."""
        chunks, self._said = self._said, []
        if self._before is not None:
            chunks += self._before.step()
            if self._before.drained:
                self._before = None
            self._share()
        chunks += self._newest.step()
        return chunks

    # -- other weights

    def adopt(self, engine: Engine, weights_positions: int = 0) -> None:
        """Answer with another version from now on. Only when `settled`.

        weights_positions: cache positions that a second set of weights takes the memory of.
        """
        old, self._taken = self._newest, weights_positions
        self._begin_again()
        old.hand_over(engine)
        self._newest = engine
        self._before = None if old.drained else old
        self._share()

    def drain(self) -> None:
        """Begin nothing more; when `drained`, `unload` and `load` come next."""
        self._newest.paused = True
        self._begin_again()

    def resume(self) -> None:
        """Begin requests again: the weights stay, after all."""
        self._newest.paused = False

    def unload(self) -> None:
        """Let go of the weights."""
        self._newest.unload()

    def load(self, backend: Backend, positions: int | None, version: str) -> None:
        """Go on, with other weights."""
        self._newest.load(backend, positions, version)
        self._positions = self._newest.positions

    def _begin_again(self) -> None:
        """Of what was begun, put back what nobody has seen anything of; each once."""
        if not self._restart:
            return
        for request in self._newest.begin_again(lambda r: r.whole and r.id not in self._again):
            self._again[request] = None
            self._said.append(Chunk(request=request, again=True))
        while len(self._again) > limits.REQUESTS_WAITING_MAX:
            del self._again[next(iter(self._again))]

    def _share(self) -> None:
        """What the engine before still claims, the newest may not take."""
        rows, positions = 0, 0
        if self._before is not None:
            rows, positions = self._before.claims()
            positions += self._taken
        self._newest.limit(max(0, self._slots - rows), max(0, self._positions - positions))

    def _engines(self) -> list[Engine]:
        return [self._newest] if self._before is None else [self._newest, self._before]
