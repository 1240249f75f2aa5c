"""What a worker has at hand: its task, its directory, the bus, the registry, and the word to stop.

Signal handlers and the bus both end in `stop_requested`, which long work asks at each boundary
(a training step, a decoding step). Whoever waits for messages does so through `receive`, never
through the channel itself, so that a `stop` is seen whoever waits.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from zenos.core import durable, limits
from zenos.core.errors import ZenosError
from zenos.core.home import Home
from zenos.core.resources import parse_size
from zenos.core.task import Task
from zenos.core.wire import Pause, Progress, Stop
from zenos.runtime import allocator

if TYPE_CHECKING:
    from zenos.bus.envelope import Envelope
    from zenos.models.registry import Registry
    from zenos.runtime.train.gang import Gang

log = logging.getLogger(__name__)

# A worker that saved its state and ended because it was told to (EX_TEMPFAIL of sysexits.h).
EXIT_SUSPENDED: Final = 75
REPORT_EVERY_S: Final = 0.2
_WAIT_SLICE_S: Final = 0.25


class Messages(Protocol):
    """What a context needs of `zenos.bus.channel.Channel`."""

    @property
    def disconnected_s(self) -> float:
        """Seconds without a daemon; 0 while connected."""
        ...

    def send(
        self,
        kind: Any,
        topic: str,
        body: bytes,
        *,
        priority: int = 50,
        drop_if_full: bool = False,
    ) -> bool:
        """Queue one message to the daemon; whether it was taken."""
        ...

    def receive(self, timeout_s: float | None) -> Envelope | None:
        """The next message, waiting at most `timeout_s`."""
        ...

    def poll(self) -> list[Envelope]:
        """All messages that have arrived."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class WorkerContext:
    """The surroundings of one generation of one task.

    task: with its allocation. run_dir: `home.run(task.id, task.generation)`, where `result.json`
    and `error.json` go. cache_bytes_max: of what is kept in the home to be used again. paused_s:
    seconds in which it did nothing because it was told to pause. gang: the other processes of a
    training that has several. Used from one thread, except `report`, `send` and `stop_requested`'s
    signal handler.
    """

    def __init__(
        self, task: Task, home: Home, run_dir: Path, channel: Messages, registry: Registry
    ) -> None:
        self.task = task
        self.home = home
        self.run_dir = run_dir
        self.channel = channel
        self.registry = registry
        self.cache_bytes_max = parse_size(limits.CACHE_SIZE)
        self.gang: Gang | None = None
        self._waiting: deque[Envelope] = deque()
        self._word: Stop | None = None  # what the daemon has said
        self._assumed: Stop | None = None  # what is done without its word
        self._signalled: float | None = None
        self._reported_stage = ""
        self._report_next = 0.0
        self._paused = False  # what the daemon wants
        self.paused_s = 0.0

    # -- what the daemon hears

    def send(self, kind: str, topic: str, body: msgspec.Struct, *, priority: int = 50) -> bool:
        """Send one message of zenos.core.wire; whether the bus took it."""
        return self.channel.send(kind, topic, msgspec.msgpack.encode(body), priority=priority)

    def report(self, progress: Progress, *, force: bool = False) -> None:
        """Say how far it is: at most five times a second, and always when the stage changes."""
        now = time.monotonic()
        due = force or progress.note or progress.stage != self._reported_stage
        if not due and now < self._report_next:
            return
        if progress.stage != self._reported_stage or progress.note:
            log.info("%s%s", progress.stage, f": {progress.note}" if progress.note else "")
        self._reported_stage = progress.stage
        self._report_next = now + REPORT_EVERY_S
        body = msgspec.msgpack.encode(progress)
        self.channel.send("state", "progress", body, drop_if_full=True)

    def write_result(self, result: dict[str, Any]) -> None:
        """Leave `result.json` (a JSON object), durably: it goes to the task's outcome."""
        durable.write_file(self.run_dir / "result.json", msgspec.json.encode(result))

    def write_error(self, error: ZenosError) -> None:
        """Leave `error.json`, durably: its message goes to the task's outcome."""
        record = {"code": error.code, "message": error.message}
        durable.write_file(self.run_dir / "error.json", msgspec.json.encode(record))

    # -- what the worker hears

    def stop_requested(self) -> Stop | None:
        """Whether to end now: a `stop` of the bus, SIGTERM or SIGINT, or too long without a daemon.

        The word stays once given, and of several the last one counts. A signal alone means to
        save; but the daemon's word, which says whether, is waited for a moment.

        Where one can stop, one can pause: this returns only when it may go on, or is to stop.
        """
        for envelope in self.channel.poll():
            self._take(envelope)
        stop = self._stop()
        return self._wait_paused() if self._paused and stop is None else stop

    def _wait_paused(self) -> Stop | None:
        """Say so, and do nothing until told to go on or to stop; both are seen at once."""
        began = time.monotonic()
        self.send("state", "paused", Pause(on=True))
        log.info("paused")
        allocator.give_back()  # others may want it meanwhile
        while (stop := self._stop()) is None and self._paused:
            envelope = self.channel.receive(_WAIT_SLICE_S)
            if envelope is not None:
                self._take(envelope)
                if envelope.topic == "pause" and self._paused:
                    self.send("state", "paused", Pause(on=True))  # asked again
        self.paused_s += time.monotonic() - began
        self.send("state", "paused", Pause(on=False))
        log.info("going on" if stop is None else "told to end while paused")
        return stop

    def _stop(self) -> Stop | None:
        if self._word is None and self._assumed is None:
            if self._signalled is not None:
                self._wait_for_word(self._signalled + limits.STOP_WORD_WAIT_S)
                self._assumed = Stop(save=True)
            elif self.channel.disconnected_s > limits.ORPHAN_WAIT_S:
                log.warning("no daemon for %d s: saving and ending", limits.ORPHAN_WAIT_S)
                self._assumed = Stop(save=True)
        return self._word or self._assumed

    def _wait_for_word(self, deadline: float) -> None:
        while self._word is None and not self.channel.disconnected_s:
            left_s = deadline - time.monotonic()
            envelope = self.channel.receive(left_s) if left_s > 0 else None
            if envelope is None:
                return
            self._take(envelope)

    def receive(self, timeout_s: float | None) -> Envelope | None:
        """The next message that is not `stop`; None after `timeout_s`, or as soon as it is to stop.

        timeout_s: 0 only looks, None waits until there is one.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self.stop_requested() is not None and not self._waiting:
                return None
            if self._waiting:
                return self._waiting.popleft()
            left_s = _WAIT_SLICE_S if deadline is None else deadline - time.monotonic()
            envelope = self.channel.receive(min(max(left_s, 0.0), _WAIT_SLICE_S))
            if envelope is not None:
                self._take(envelope)
            elif left_s <= 0:
                return None

    def install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT ask to stop; SIGHUP does nothing. Main thread only."""

        def hear(*_: object) -> None:
            if self._signalled is None:
                self._signalled = time.monotonic()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hear)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _take(self, envelope: Envelope) -> None:
        if envelope.topic == "pause":
            with suppress(msgspec.DecodeError):
                self._paused = msgspec.msgpack.decode(envelope.body, type=Pause).on
            return
        if envelope.topic != "stop":
            self._waiting.append(envelope)
            return
        try:
            stop = msgspec.msgpack.decode(envelope.body, type=Stop)
        except msgspec.DecodeError:
            log.warning("a `stop` that cannot be read: saving and ending")
            stop = Stop(save=True)
        self._word = stop  # the last one counts: who was to save first may be cancelled since
