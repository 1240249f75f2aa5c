"""A lane as its host has it: a process, what it was given, and what of that it has not taken."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from zenos.calls import wire
from zenos.calls.ends import used_up
from zenos.core import cgroups, limits
from zenos.core.errors import LaneError
from zenos.threads import starting

FUNCTIONS_MAX: Final = 256  # that a lane keeps
END_S: Final = 2.0  # of a killed process
_NOW: Final = int(socket.MSG_DONTWAIT)


class Work:
    """A call that has not ended.

    serial: on this host; caller, id: of whom, and there. segment: of the journal; 0: it is not in
    it. is_kept: that is on the disk. attempts: how often it has begun. given: when it was given to
    a lane, or came to be the first there (monotonic). function: with its name and pickle.
    """

    __slots__ = (
        "attempts",
        "call",
        "caller",
        "expected_s",
        "function",
        "given",
        "is_kept",
        "is_over",
        "lane",
        "segment",
        "serial",
        "since",
    )

    def __init__(
        self, serial: int, caller: bytes, call: wire.Call, function: wire.Function, segment: int
    ) -> None:
        self.serial = serial
        self.caller = caller
        self.call = call
        self.function = function
        self.segment = segment
        self.is_kept = False
        self.attempts = 0
        self.lane: Lane | None = None
        self.given = 0.0
        self.expected_s = 0.0
        self.since = time.monotonic()
        self.is_over = False

    @property
    def is_idempotent(self) -> bool:
        """Whether it may run again."""
        return bool(self.call.flags & wire.IDEMPOTENT)


class Lane:
    """One lane. number: as it is shown."""

    def __init__(self, number: int, environment: dict[str, str]) -> None:
        self.number = number
        self.given: OrderedDict[int, Work] = OrderedDict()  # by serial; the first one runs
        self.load_s = 0.0  # what it is thought to need for these
        self.is_ready = False
        self.is_leaving = False  # what it has imported has changed
        self.stopping = 0  # the serial of what was told to end
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._memory_kills = cgroups.MemoryKills()
        made = starting.start("zenos.calls.lane", socket.SOCK_SEQPACKET, environment)
        # The lane's own end stays open here, to take back what it hasn't taken.
        self.link, self._theirs = made.link, made.theirs
        self._process, self._board = made.process, made.board
        for end in made.link, made.theirs:
            wire.widen(end)
        self.link.setblocking(False)
        self.pid = self._process.pid
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self.pidfd = -1
            self.close()
            raise

    @property
    def takes_calls(self) -> bool:
        """Whether it may be given something."""
        return self.is_ready and not self.is_leaving

    @property
    def head(self) -> Work | None:
        """What it runs, or is about to."""
        return next(iter(self.given.values()), None)

    @property
    def late(self) -> float:
        """When what it runs takes so long that nothing should wait behind it (monotonic)."""
        head = self.head
        return math.inf if head is None else head.given + 2 * head.expected_s + limits.CALLS_LATE_S

    def begin(self, paths: list[str], journal: str) -> None:
        """Tell it its sys.path; it answers that it is ready."""
        wire.send_packet(self.link, wire.Paths(paths, journal))

    def give(self, work: Work) -> bool:
        """Give it a call; False when it takes no more at the moment. OSError when something is
        short here."""
        call = work.call
        try:
            if call.key not in self._known:
                self._teach(work.function)
            large = len(call.arguments) > limits.CALL_PACKET_BYTES_MAX
            run = wire.Run(
                work.serial, call.key, b"" if large else call.arguments, call.flags, work.segment
            )
            wire.send_packet(self.link, run, call.arguments if large else b"")
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        work.lane, work.given = self, time.monotonic()
        self.given[work.serial] = work
        self.load_s += work.expected_s
        return True

    def take(self, serial: int) -> Work | None:
        """A call isn't its any more."""
        work = self.given.pop(serial, None)
        if work is not None:
            work.lane = None
            self.load_s = self.load_s - work.expected_s if self.given else 0.0
        return work

    def _teach(self, function: wire.Function) -> None:
        large = len(function.body) > limits.CALL_PACKET_BYTES_MAX
        learn = wire.Learn(function.key, b"" if large else function.body)
        wire.send_packet(self.link, learn, function.body if large else b"")
        self._known[function.key] = None
        if len(self._known) > FUNCTIONS_MAX:
            oldest = next(iter(self._known))
            wire.send_packet(self.link, wire.Forget(oldest))
            del self._known[oldest]

    def results(self) -> Iterable[wire.Result | wire.Ready]:
        """What it has said since. Raises what is wrong with that."""
        while True:
            try:
                packet = wire.receive_packet(self.link, _NOW)
            except BlockingIOError:
                return
            except wire.BesideError as error:
                why = f"cannot take the result from its lane: {error.strerror}; it ran to its end"
                yield wire.refused(LaneError(why), wire.result_of.decode(error.body).id)
                continue
            if packet is None:
                return
            body, beside = packet
            if body == _READY:
                yield wire.Ready()
                continue
            result = wire.result_of.decode(body)
            if beside:
                result.payload = beside
            yield result
            if not self.given:
                return  # it has nothing to say

    def take_back(self) -> list[Work]:
        """What it has not taken yet, in order: it will not run here."""
        packets: list[Any] = []
        with suppress(BlockingIOError):
            while (body := wire.receive_body(self._theirs, _NOW)) is not None:
                packets.append(wire.to_lane.decode(body))
        found: list[Work] = []
        for message in reversed(packets):
            if isinstance(message, wire.Run):
                work = self.take(message.serial)
                if work is not None:
                    found.append(work)
            elif isinstance(message, wire.Learn):
                self._known.pop(message.key, None)
            elif isinstance(message, wire.Forget):
                self._known[message.key] = None
        found.reverse()
        return found

    def stop(self, work: Work) -> None:
        """Tell what it runs to end."""
        self.stopping = work.serial
        self._board.begin(work.serial)
        self._board.stop()

    def kill(self) -> None:
        """End it, with what it runs."""
        self._process.kill()

    def close(self, wait_s: float = END_S) -> str:
        """Its process has ended, or is to, for which this waits at most so long: how it has, in
        words."""
        self._process.kill()
        try:
            how = starting.how_ended(self._process.wait(max(0.0, wait_s)))
            if how == starting.KILLED and self._memory_kills.any():
                how += used_up(self._memory_kills.limit())
        except subprocess.TimeoutExpired:
            how = "does not end"  # the system has it in a call that can't be interrupted
        self.link.close()
        self._theirs.close()
        self._board.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        return how

    def cpu_s(self) -> float:
        """CPU time so far, in seconds; 0 when it can't be told."""
        return starting.cpu_s(self.pid)

    def used_s(self, serial: int) -> float:
        """CPU time of the call that it runs, in seconds; 0 when it can't be told."""
        begun_s = self._board.cpu_begun_s(serial)
        return 0.0 if begun_s is None else max(0.0, self.cpu_s() - begun_s)

    def progress(self) -> tuple[int, float]:
        """What `report` said last."""
        return self._board.progress()


_READY: Final = wire.encoder.encode(wire.Ready())
