"""A lane's process: `python -P -m zenos.calls.lane SOCKET BOARD PARENT`.

It takes one call at a time from its socket, runs it, and answers before it takes the next. So what
it has not taken can be taken back by its host, which holds the same end of the socket; and when
the lane dies there is one call at most of which nobody knows whether it ran.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from zenos.calls import begun, values, wire
from zenos.calls.sources import Sources
from zenos.calls.where import where
from zenos.core import limits
from zenos.core.errors import LaneError, StorageError
from zenos.threads import current, inherited
from zenos.threads.current import Board

OOM_SCORE_ADJ: Final = "500"  # as if it had half of the memory more


class Lane:
    """What the process knows between two calls."""

    def __init__(self, link: socket.socket, board: Board, parent: int) -> None:
        self._parent = parent
        self._link = link
        self._board = board
        self._functions: dict[bytes, Any] = {}
        self._journal = Path()
        self._segment, self._begun = 0, -1
        self._sources = Sources()
        self._has_run = False

    def serve(self) -> None:
        """Answer each `Run` with a `Result`, until the host is gone."""
        owner = os.getpid()
        while True:
            try:
                packet = wire.receive_packet(self._link)
            except wire.BesideError as error:
                self._unreceived(error)
                return
            if packet is None:
                return
            message = wire.to_lane.decode(packet[0])
            if isinstance(message, wire.Run):
                if os.getppid() != self._parent:
                    return  # the next host gives it to another lane
                result = self._run(message, packet[1])
                if os.getpid() != owner:
                    os._exit(0)  # the function has forked, and this is the child
                if not self._answer(result) or result.outcome == wire.STALE:
                    return
            elif isinstance(message, wire.Learn):
                self._functions[message.key] = packet[1] or message.body
            elif isinstance(message, wire.Forget):
                self._functions.pop(message.key, None)
            else:
                sys.path[:] = message.paths
                self._journal = Path(message.journal)
                wire.send_packet(self._link, wire.Ready())
            del packet, message

    def _unreceived(self, error: wire.BesideError) -> None:
        """Descriptors or memory are short in this process, since its functions have taken too much.
        So it ends, and its calls go to another one, unless that would fare no better."""
        message = wire.to_lane.decode(error.body)
        if isinstance(message, wire.Run):
            why = f"cannot give the call to a lane: {error.strerror}; it has not run"
            refused = wire.refused(LaneError(why), message.serial)
            self._answer(wire.Result(message.serial, wire.STALE) if self._has_run else refused)

    def _run(self, message: wire.Run, beside: bytes) -> wire.Result:
        serial, board = message.serial, self._board
        if self._sources.have_changed():
            return wire.Result(serial, wire.STALE)
        board.begin(serial)
        if board.cancelled():
            return wire.Result(serial, wire.CANCELLED)
        if message.segment:
            try:
                self._note(message.segment, serial)
            except OSError as error:
                if error.errno == errno.EMFILE and self._has_run:
                    return wire.Result(serial, wire.STALE)
                said = f"cannot write down that the call begins: {error.strerror}; it does not run"
                return wire.refused(StorageError(said), serial)
        board.note_cpu()
        since = time.monotonic()
        current.here.token, current.here.done = board, serial
        self._has_run = True
        try:
            function = self._function(message.key)
            arguments = values.load(beside or message.arguments)
            if message.flags & wire.MANY:
                payload = _many(function, arguments, board)
            else:
                payload = values.result_of(function(*arguments[0], **arguments[1]))
        except BaseException as error:  # noqa: BLE001 - a lane outlives whatever functions raise
            seconds = time.monotonic() - since
            if board.cancelled():
                return wire.Result(serial, wire.CANCELLED, b"", seconds)
            payload = values.error_of(error, traceback.format_exc())
            return wire.Result(serial, wire.RAISED, payload, seconds)
        finally:
            current.here.token = None
            self._sources.learn()
        return wire.Result(serial, wire.DONE, payload, time.monotonic() - since)

    def _function(self, key: bytes) -> Any:
        function = self._functions[key]
        if type(function) is bytes:
            function = values.load(function)
            self._functions[key] = function
        return function

    def _note(self, segment: int, serial: int) -> None:
        """Write down that it begins: in the page cache by now, which outlives every process."""
        if segment != self._segment:
            if self._begun >= 0:
                os.close(self._begun)
                self._begun, self._segment = -1, 0  # should the next one not be there to be had
            path = self._journal / f"{segment:08d}.begun"
            self._begun = os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            self._segment = segment
        begun.note(self._begun, serial)

    def _answer(self, result: wire.Result) -> bool:
        """Whether that could be done; else that is said, and the lane isn't fit for more."""
        payload = result.payload
        if len(payload) <= limits.CALL_PACKET_BYTES_MAX:
            wire.send_packet(self._link, result)
            return True
        result.payload = b""
        try:
            wire.send_packet(self._link, result, payload)
        except OSError as error:
            why = f"cannot send a result of {len(payload)} bytes back: {error.strerror}"
            wire.send_packet(self._link, wire.refused(LaneError(why), result.id))
            return False
        return True


def _many(function: Any, items: list[Any], board: Board) -> bytes:
    """The results of the first items, and the error of the next, if one raised."""
    ran = current.run(function, items, board)
    if ran.stopped or board.cancelled():
        raise InterruptedError
    error = values.error_of(ran.error, ran.text) if ran.error is not None else b""
    return values.result_of((ran.results, error))


def main() -> None:
    """Serve until the host is gone."""
    where.is_lane = True
    with suppress(OSError):  # of the host's processes this is the one to kill for want of memory
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJ, "ascii")
    link, board, parent = inherited.take(sys.argv[1:])
    with link:
        Lane(link, board, parent).serve()


if __name__ == "__main__":
    main()
