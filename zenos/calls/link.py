"""A program's connection to its host of calls, over as many hosts as it takes.

Who calls alone, rarely, or waits, writes at once; else it is written together with what follows, at
the latest FLUSH_S later. A thread finds the host, and another when that is gone; it reads where
nobody waits (see reading.py). Another one writes what is left, and what a host that doesn't read
takes later (see outgoing.py): nobody else waits for that. Both end with the connection, where
nothing is to be called, and begin with the next call.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

import msgspec

from zenos.calls import finding, values, wire
from zenos.calls.finding import Place, Wanted
from zenos.calls.future import CallFuture
from zenos.calls.outgoing import Outgoing
from zenos.calls.reading import Connection, Turns
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    InvalidError,
    LaneError,
    NoDaemonError,
    UnavailableError,
    WorkerError,
    ZenosError,
    from_code,
)
from zenos.threads.lanes import RemoteTraceback

FLUSH_S: Final = 0.0003
FLUSH_CALLS: Final = 512  # that are written at once, and not waited with
FLUSH_BYTES: Final = 16 * limits.KIB  # of one call: to write it costs less than to wait with it
FRAME_BYTES: Final = limits.MIB  # of one frame, if its calls are small
AGAIN_S: Final = 0.2  # between two tries to find a host
HEARD_RESULTS: Final = 256  # after so many at the latest the host is told that they are here
HEARD_BYTES: Final = limits.MIB
PATIENCE_S: Final = 30.0  # for a daemon that is gone, while calls wait for a host
LOST: Final = (
    "cannot tell whether the call ran: its host, or the connection to it, died meanwhile; with "
    "idempotent=True it would run again"
)


class Pending:
    """A call that has not ended here."""

    __slots__ = ("call", "function", "future", "size")

    def __init__(self, future: CallFuture[Any], call: wire.Call, function: wire.Function) -> None:
        self.future = future
        self.call = call
        self.function = function
        self.size = len(call.arguments)


class Link:
    """Calls of this program to one host."""

    def __init__(self, wanted: Wanted) -> None:
        self._spec = wanted.spec()  # before anything is looked for: it may be wrong
        self._place = Place.here()
        self._name = secrets.token_bytes(12)
        self._pending: dict[int, Pending] = {}
        self._bytes = 0
        self._outbox: dict[int, Pending] = {}
        self._cancelled: list[int] = []  # what this connection is to say of that
        self._unwanted: set[int] = set()  # durable ones that were cancelled, until a host answers
        self._said = wire.Said()
        self._heard = self._heard_said = 0  # results that this connection has brought
        self._heard_bytes = 0  # of those that the host was not told of
        self._out: Outgoing | None = None  # while there is a connection
        self._connection: Connection | None = None
        self._turns = Turns()
        self._lock = threading.Lock()
        self._flush_due = threading.Event()
        self._flushed_at = 0.0
        self._number = 0
        self._ending = False
        self._asks = False
        self._run_number = 0  # of the threads that run now, or ran last
        self._threads: list[threading.Thread] = []
        self.is_at_rest = True  # it has no threads, and no connection

    # -- calling

    def submit(
        self,
        function: wire.Function,
        arguments: bytes,
        flags: int,
        retries: int,
        timeout_s: float,
        items: int = 1,
    ) -> CallFuture[Any]:
        """A call on its way. BusyError when too many are."""
        with self._lock:
            if self._ending:
                raise UnavailableError("cannot call any more: the program ends")
            if self.is_at_rest:
                self._begin()
            if (
                len(self._pending) >= limits.CALLS_IN_FLIGHT_MAX
                or self._bytes > limits.CALLS_BYTES_MAX
            ):
                raise BusyError(
                    f"cannot have more calls in flight: {len(self._pending)} with {self._bytes} "
                    "bytes wait already; wait for some of them, or use zenos.map"
                )
            self._number += 1
            number = self._number
            future: CallFuture[Any] = CallFuture(self, number, durable=bool(flags & wire.DURABLE))
            call = wire.Call(number, function.key, arguments, flags, retries, timeout_s, items)
            pending = Pending(future, call, function)
            self._pending[number] = pending
            self._bytes += pending.size
            self._outbox[number] = pending
            if self._out is None:
                pass  # they are sent as soon as there is a host
            elif (
                len(self._pending) == 1
                or len(self._outbox) >= FLUSH_CALLS
                or pending.size >= FLUSH_BYTES
                or time.monotonic() - self._flushed_at > FLUSH_S
            ):
                self._flush()
            elif not self._flush_due.is_set():
                self._flush_due.set()
        return future

    def _begin(self) -> None:
        """With the lock: start the threads."""
        self._run_number += 1
        threads = [
            threading.Thread(
                target=self._flush_for_ever,
                args=(self._run_number,),
                name="calls-flush",
                daemon=True,
            ),
            threading.Thread(target=self._run, name="calls-link", daemon=True),
        ]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as error:
            self._end_flushing()
            told = f"cannot call: no thread can be started here ({error})"
            raise UnavailableError(told) from error
        self._threads, self.is_at_rest = threads, False

    def cancel(self, number: int) -> None:
        """Nobody wants a call any more."""
        with self._lock:
            pending = self._forget(number)
            if pending is None:
                return
            if self._outbox.pop(number, None) is None:
                if pending.future.durable:  # its host may be gone, and the next one has it then
                    self._unwanted.add(number)
                if self._out is not None:
                    self._cancelled.append(number)
                    self._flush()
        self._turns.wake()

    def lead(self, is_done: Callable[[], bool], timeout_s: float | None = None) -> float | None:
        """Read until it is done, if nobody else reads; how long is still to be waited."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        if self._outbox:
            with self._lock:
                self._flush()
        connection = self._connection
        if connection is not None:
            self._turns.lead(connection, self._take, is_done, end)
        return None if end is None else max(0.0, end - time.monotonic())

    def ask(self) -> None:
        """Have it said at once, from now on, what is on the disk."""
        if not self._asks:
            with self._lock:
                self._asks = True
                if self._out is not None:
                    self._out.add(wire.Asking())
                    self._flush()

    def following(self, is_done: Callable[[], bool]) -> AbstractContextManager[None]:
        """Wait in here for what another reads."""
        return self._turns.following(is_done)

    def attend(self) -> None:
        """Somebody is to be told who doesn't wait here."""
        self._turns.attend()

    def _forget(self, number: int) -> Pending | None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            self._bytes -= pending.size
        return pending

    # -- writing, with the lock

    def _flush(self) -> None:
        """Write as much as the host takes now; the thread writes the rest."""
        out = self._out
        if out is None:
            return
        done = False
        try:
            while (done := out.write()) and (message := self._next_message()) is not None:
                out.add(message)
        except OSError:
            self._break(out)
        except BaseException:  # a signal's: nobody knows how much of a frame was written
            self._break(out)
            raise
        self._flushed_at = time.monotonic()
        if not done and self._out is not None:
            self._flush_due.set()

    def _break(self, out: Outgoing) -> None:
        """Nothing can be written any more; the reader sees that too, and looks for another host.
        What was not answered is still pending."""
        self._out = None
        out.end()

    def _next_message(self) -> wire.Cancel | wire.Calls | None:
        """What is to be written next: what isn't wanted any more, else a frame's worth of calls."""
        if self._cancelled:
            cancelled, self._cancelled = self._cancelled, []
            return wire.Cancel(cancelled)
        if not self._outbox:
            return None
        functions: list[wire.Function] = []
        calls: list[wire.Call] = []
        size = 0
        for pending in self._outbox.values():
            if size >= FRAME_BYTES and calls:
                break
            if pending.call.key not in self._said:
                self._said.say(pending.function)
                functions.append(pending.function)
                size += len(pending.function.body)
            calls.append(pending.call)
            size += pending.size + 32
        self._said.end_frame()
        if len(calls) == len(self._outbox):
            self._outbox = {}
        else:
            for call in calls:
                del self._outbox[call.id]
        self._heard_said, self._heard_bytes = self._heard, 0
        return wire.Calls(functions, calls, self._heard)

    def _flush_for_ever(self, run_number: int) -> None:
        while True:
            self._flush_due.wait()
            with self._lock:
                if self._run_number != run_number:
                    return
                stuck = self._out if self._out is not None and self._out.is_stuck else None
            if stuck is not None:
                stuck.wait()
            else:
                time.sleep(FLUSH_S)
            with self._lock:
                if self._run_number == run_number:
                    self._flush_due.clear()
                    self._flush()

    def _end_flushing(self) -> None:
        """With the lock."""
        self._run_number += 1
        self._flush_due.set()

    # -- the connection

    def _run(self) -> None:
        """Connect while there is something to do, and read until the connection ends."""
        while self._goes_on():
            link = self._connect()
            if link is None:
                continue
            self._connection = connection = Connection(link, self._turns.wake_fd)
            self._turns.serve(connection, self._take)
            self._connection = None
            self._disconnect(link, left=connection.left)

    def _goes_on(self) -> bool:
        with self._lock:
            if self._pending and not self._ending:
                return True
            self._end_flushing()
            self.is_at_rest = True
            return False

    def _connect(self) -> socket.socket | None:
        begun = time.monotonic()
        while True:
            try:
                link = finding.come_in(self._place, self._spec, self._name, lambda: self._ending)
                break
            except (NoDaemonError, UnavailableError) as error:
                if self._ending:
                    return None
                # What was accepted runs, whenever the daemon is back.
                self._fail_all(
                    error,
                    lambda p: not p.future.is_accepted,
                    late=time.monotonic() > begun + PATIENCE_S,
                )
                if not self._pending:
                    return None
                time.sleep(AGAIN_S)
            except ZenosError as error:
                self._fail_all(error)
                return None
            except Exception as error:  # noqa: BLE001 - whoever waits must hear
                self._fail_all(WorkerError(f"cannot reach a host of calls: {error!r}"))
                return None
        wire.widen(link)
        with self._lock:
            self._out = out = Outgoing(link)
            self._said = wire.Said()
            self._heard = self._heard_said = self._heard_bytes = 0
            waiting = list(self._pending.values())
            accepted = [p.call.id for p in waiting if p.future.is_accepted]
            self._outbox = {p.call.id: p for p in waiting if not p.future.is_accepted}
            self._cancelled = []
            if self._unwanted:
                out.add(wire.Cancel(sorted(self._unwanted)))
            if self._asks:
                out.add(wire.Asking())
            if accepted:
                out.add(wire.Resume(accepted))
            self._flush()
        return link

    def _take(self, message: Any) -> bool:
        """What the host says; whether it is the last."""
        if isinstance(message, wire.Results):
            for result in message.results:
                self._end(result)
            self._say_heard()
        elif isinstance(message, wire.Accepted):
            for id_ in message.ids:
                pending = self._pending.get(id_)
                if pending is not None:
                    pending.future.accept()
        elif isinstance(message, wire.Refused):
            self._fail_all(from_code(message.code, message.message))
            return True
        return isinstance(message, wire.Bye)

    def _disconnect(self, link: socket.socket, *, left: bool) -> None:
        """The connection has ended. left: the host had read nothing that it has not answered."""
        with self._lock:
            out, self._out = self._out, None
            if out is not None:
                out.end()
        link.close()
        if not left:
            self._fail_all(
                WorkerError(LOST),
                lambda p: (
                    not (
                        p.call.flags & (wire.DURABLE | wire.IDEMPOTENT) or p.call.id in self._outbox
                    )
                ),
            )

    def _end(self, result: wire.Result) -> None:
        """A call has ended. A signal may interrupt this at any point: it has ended then, or else it
        is pending still, and the next connection brings its result again."""
        pending = self._pending.get(result.id)
        end = None if pending is None else end_of(result, pending.function.name)
        ended = None
        try:
            with self._lock:
                ended = self._forget(result.id)
                self._unwanted.discard(result.id)
                self._heard += 1
                self._heard_bytes += len(result.payload)
        finally:
            if ended is not None and end is not None:
                settle(ended.future, result.seconds, end)

    def _say_heard(self) -> None:
        """The host needn't keep what is here. Mostly that is said with the next calls."""
        if self._heard - self._heard_said < HEARD_RESULTS and self._heard_bytes < HEARD_BYTES:
            return
        with self._lock:
            if self._out is not None:
                self._out.add(wire.Heard(self._heard))
                self._heard_said, self._heard_bytes = self._heard, 0
                self._flush()

    def _fail_all(self, error: ZenosError, which: Any = None, *, late: bool = True) -> None:
        """Those calls end with that error."""
        if not late:
            return
        with self._lock:
            chosen = [p for p in self._pending.values() if which is None or which(p)]
            for pending in chosen:
                self._forget(pending.call.id)
                self._outbox.pop(pending.call.id, None)
        for pending in chosen:
            if pending.future.takes_end():
                pending.future.set_exception(type(error)(error.message))

    # -- the end

    def close(self, wait_s: float) -> None:
        """Wait until what was called durably is accepted, at most so long; then nothing more."""
        end = time.monotonic() + wait_s
        for pending in list(self._pending.values()):
            left_s = end - time.monotonic()
            if left_s <= 0:
                break
            if pending.future.durable:
                pending.future.wait_accepted(left_s)
        with self._lock:
            self._ending = True
            if self._out is not None:
                with suppress(OSError):  # else its host would keep them for when we come back
                    self._out.add(wire.Heard(self._heard))
                    self._out.write()
                self._break(self._out)


def end_of(result: wire.Result, name: str) -> tuple[Any, BaseException | None]:
    """What a call came to: its value, or its error."""
    try:
        if result.outcome == wire.DONE:
            return values.load(result.payload), None
        return None, error_of(result, name)
    except Exception as reason:  # noqa: BLE001 - whatever unpickling raises
        told = InvalidError(f"cannot read the result of {name} here: {reason}")
        told.__cause__ = reason
        return None, told


def settle(future: CallFuture[Any], seconds: float, end: tuple[Any, BaseException | None]) -> None:
    """Give a future what its call came to, after so many seconds."""
    future.seconds = seconds
    if future.takes_end():
        value, error = end
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def error_of(result: wire.Result, name: str) -> BaseException:
    """The error that a call ended with."""
    if result.outcome == wire.RAISED:
        error: BaseException
        error, text = values.load(result.payload)
        error.__cause__ = RemoteTraceback(text)
        return error
    if result.outcome == wire.REFUSED:
        code, message = msgspec.msgpack.decode(result.payload, type=tuple[str, str])
        return LaneError(message) if code == wire.LANE else from_code(code, message)
    return WorkerError(f"cannot finish {name}: it was cancelled")
