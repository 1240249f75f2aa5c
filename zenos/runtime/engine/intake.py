"""What comes to a replica: messages are taken from the bus, prompts tokenized, and handed over.

A short prompt is tokenized at once. One that may take long goes to a pool, on whose lanes it holds
up neither the engine's steps nor the prompts behind it. Whichever is ready first is handed over
first; with it goes its place in the order of coming, which is the order in which the engine begins
them.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from zenos.bus.envelope import Envelope, FrameError, body_of
from zenos.core import limits
from zenos.core.errors import WorkerError, ZenosError
from zenos.core.limits import KIB
from zenos.core.wire import Abort, Chunk, GenerateRequest, Stop, Weights
from zenos.runtime.context import WorkerContext
from zenos.runtime.engine.engine import failure
from zenos.threads import Future, Options, Pool

log = logging.getLogger(__name__)
IDLE_WAIT_S: Final = 0.2
LONG_CHARS: Final = 8 * KIB  # a few milliseconds; a lane costs a tenth of one

Tokenize = Callable[[GenerateRequest], list[int]]


class Prompted(NamedTuple):
    """A request with its prompt's tokens. arrival: lower came earlier."""

    request: GenerateRequest
    prompt: list[int]
    arrival: int


Incoming = Prompted | Abort | Chunk | Weights | Stop


class Intake(threading.Thread):
    """Takes messages from the bus, has prompts tokenized, and hands over.

    All that has come is looked at before the next prompt is tokenized: an abort frees what waits
    here as well, and cancels what is on a lane. One that comes before its request (commands go
    first) is remembered.
    """

    def __init__(
        self,
        context: WorkerContext,
        tokenize: Tokenize,
        is_slow: Callable[[GenerateRequest], bool] = lambda _: False,
    ) -> None:
        """is_slow: whether a request may take long to tokenize, however short it is."""
        super().__init__(name="intake", daemon=True)
        self._is_slow = is_slow
        self._context = context
        self._tokenize = tokenize
        self.handed: queue.Queue[Incoming] = queue.Queue()  # no SimpleQueue, as in the channel
        self.stop: Stop | None = None  # the last word to end
        self.done = threading.Event()
        self._arrivals = itertools.count()
        self._waiting: dict[str, tuple[GenerateRequest, int]] = {}
        self._on_lanes: dict[str, Future[list[int]]] = {}
        self._aborted: dict[str, None] = {}  # requests that need not be answered when they come

    def run(self) -> None:
        """Until the replica has ended; after the word to stop, requests are refused."""
        pool = Pool(name="tokenizing", policy="priority")
        try:
            while not self.done.is_set():
                self._turn(pool)
        finally:
            pool.close(cancel=True)

    def _turn(self, pool: Pool) -> None:
        envelope = self._context.receive(0.0 if self._waiting else IDLE_WAIT_S)
        stop = self._context.stop_requested()
        if stop is not None:
            if stop is not self.stop:
                self.stop = stop
                self.handed.put(stop)  # whoever waits for something to do wakes
            self.done.wait(0.01)
        while envelope is not None:
            try:
                self._sort(envelope)
            except FrameError as error:
                log.warning("a message was left out: %s", error)
            envelope = self._context.receive(0.0)
        if self._waiting:
            self._request(pool, *self._waiting.pop(next(iter(self._waiting))))

    def _sort(self, envelope: Envelope) -> None:
        if envelope.topic == "request":
            request: GenerateRequest = body_of(envelope, GenerateRequest)
            if request.id not in self._aborted:
                self._waiting[request.id] = request, next(self._arrivals)
        elif envelope.topic == "abort":
            self._abort(body_of(envelope, Abort))
        elif envelope.topic == "weights":
            self.handed.put(body_of(envelope, Weights))

    def _abort(self, abort: Abort) -> None:
        if self._waiting.pop(abort.request, None) is not None:
            return
        on_lane = self._on_lanes.pop(abort.request, None)
        if on_lane is not None and on_lane.cancel():
            return  # what comes of it is handed to nobody
        self._aborted[abort.request] = None
        if len(self._aborted) > limits.REQUESTS_WAITING_MAX:
            del self._aborted[next(iter(self._aborted))]
        self.handed.put(abort)

    def _request(self, pool: Pool, request: GenerateRequest, arrival: int) -> None:
        if self.stop is not None:
            self.handed.put(Chunk(request=request.id, refused=True))
            return
        try:
            if _chars(request) < LONG_CHARS and not self._is_slow(request):
                self.handed.put(Prompted(request, self._tokenize(request), arrival))
                return
            options = Options(name=request.id, priority=request.priority)
            future = pool.submit(self._tokenize, request, options=options)
        except Exception as error:
            if not isinstance(error, ZenosError):
                log.exception("a request failed")
            self.handed.put(failure(request.id, error))
        else:
            on_lanes = {name: each for name, each in self._on_lanes.items() if not each.done()}
            self._on_lanes = {**on_lanes, request.id: future}
            future.add_done_callback(partial(self._ended, request, arrival))

    def _ended(self, request: GenerateRequest, arrival: int, future: Future[list[int]]) -> None:
        """On a lane: hand over what has come of it."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self.handed.put(Prompted(request, future.result(), arrival))
            return
        if not isinstance(error, ZenosError):
            log.error("a request failed", exc_info=error)
        reason = error if isinstance(error, Exception) else WorkerError(str(error))
        self.handed.put(failure(request.id, reason))


def _chars(request: GenerateRequest) -> int:
    """About how much there is to tokenize."""
    texts = [str(value) for message in request.messages or [] for value in message.values()]
    return len(request.prompt or "") + sum(map(len, texts))
