"""The bus for programs that wait: `zenos.bus.connect()`.

There is no thread that reads. Whoever waits reads for all, until what it waits for has come; then
another one does. So a call costs no change of thread beside those of the processes. What is sent
goes out at once, or, if much is sent, together: at the latest FLUSH_AFTER_S later.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from zenos.bus import address, beating, forks
from zenos.bus.bodies import Encoded, Own
from zenos.bus.checks import checked
from zenos.bus.codec import encode_value
from zenos.bus.envelope import FrameError, Hello
from zenos.bus.inbox import Received, Slot, lost
from zenos.bus.operations import TIMEOUT_S
from zenos.bus.polling import Polling, ready
from zenos.bus.session import Session, Steps
from zenos.bus.stream import Frame, FrameReader, FrameWriter, Heartbeat, enter
from zenos.bus.sync_topics import Topic
from zenos.core import limits
from zenos.core.errors import InvalidError, NoDaemonError, UnauthorizedError, UnavailableError
from zenos.core.messages import check_topic

T = TypeVar("T")
CONNECT_S: Final = 5.0  # for which is waited for one that is starting, or for its welcome
BACKOFF_S: Final = 0.02
BACKOFF_S_MAX: Final = 1.0
FLUSH_AFTER_S: Final = 0.0002
FLUSH_BYTES: Final = 32 * limits.KIB
CLOSE_S: Final = 2.0  # for which the end waits until what was sent is written
STUCK_S: Final = 0.2  # between two looks at whether a broker that doesn't read has gone


@checked
def connect(
    *,
    home: str | Path | None = None,
    timeout_s: float = CONNECT_S,
    shared_bytes_max: int = limits.SHARED_BYTES_MAX,
) -> Bus:
    """The bus of `home` (default `ZENOS_HOME`), as the task in which this runs, else as the user.

    shared_bytes_max: of the shared memory for arrays and many bytes that were sent from here.
    Raises NoDaemonError when no daemon lets it in within `timeout_s` seconds, UnauthorizedError for
    a token that it doesn't know.
    """
    where, hello = address.find(home)
    return Bus(where, hello, timeout_s=timeout_s, shared_bytes_max=shared_bytes_max)


class Bus:
    """A connection that comes back by itself. May be used by several threads; not after a fork."""

    def __init__(
        self,
        path: Path | Callable[[], Path],
        hello: Hello,
        *,
        timeout_s: float = CONNECT_S,
        shared_bytes_max: int = limits.SHARED_BYTES_MAX,
        direct: bool = True,
    ) -> None:
        """direct: calls may go over direct sockets. Else as `connect`."""
        # Asked for at each connection: the next daemon may listen elsewhere.
        self._where = path if callable(path) else lambda: path
        self._hello = hello
        self._direct = direct
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.session = Session(hello.generation, lambda: None)
        self.own = Own(shared_bytes_max)
        self._socket: socket.socket | None = None
        self._reader: FrameReader | None = None
        self._writer: FrameWriter | None = None
        self._polling = self.session.direct.watching = Polling(self._flush_later)
        self._leading = False
        self._wait_s = BACKOFF_S
        self._refused = False
        self._flushed_at = 0.0
        self._stuck = False  # the broker did not take all when it was last written to
        self._is_waiting = False  # the flusher waits for who reads slowly
        self._flush_due = threading.Event()
        self._flusher: threading.Thread | None = None
        self._heartbeat: Heartbeat | None = None  # as the broker wants it
        self._beat_due = 0.0
        self._asked = False  # the broker has to answer a beat; whoever reads will see
        self._unheard_s = 0.0  # for which whoever reads has waited for that
        forks.forget_in_child(self)
        beating.begin(self)
        try:
            self.run(self.session.arrive(time.monotonic() + timeout_s))
        except BaseException as error:
            self.close()
            if isinstance(error, NoDaemonError) and self._refused:
                raise UnauthorizedError(
                    "cannot use the bus: the daemon doesn't know this token; is ZENOS_HOME its "
                    "home, and this task still its own?"
                ) from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What messages from here say as their sender."""
        return self.session.name

    @property
    def task(self) -> str:
        """The task that this belongs to; empty outside of any. Its own topics begin with it."""
        return self._hello.task

    def topic(self, name: str, *, durable: bool = False, prefetch: int = 1) -> Topic:
        """A topic. prefetch: how many messages may come before they are asked for."""
        return Topic(self, check_topic(name), durable=durable, prefetch=prefetch)

    def flush(self) -> None:
        """Write what was sent, for as long as that takes."""
        with self._changed:
            if isinstance(self.session.closed, InvalidError):  # a fork's
                raise lost(self.session.closed)
            self._write(None)

    def close(self) -> None:
        """Write what was sent, and end the connection. What is leased goes to others.

        A daemon that does not read for CLOSE_S seconds misses what it hasn't read.
        """
        with self._changed:
            if self.session.closed is not None:
                return
            self.own.close()
            with suppress(OSError):
                if self._writer is not None and self.session.is_connected:
                    self.session.hand_back()
                    self._write_all(time.monotonic() + CLOSE_S)
            self.session.close(UnavailableError("cannot use the bus: it was closed"))
            self._drop_connection()
            with suppress(OSError):
                self._polling.wake()
            self._flush_due.set()
            self._polling.ring()
            beating.end(self)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._leading)
        if self._flusher is not None:
            self._flusher.join()
        self._polling.close()

    # -- waiting

    def run(self, steps: Steps[T]) -> T:
        """Do the steps of an operation, waiting where they wait."""
        with self._lock:
            try:
                slot, deadline = next(steps)
                while True:
                    slot, deadline = steps.send(self._wait(slot, deadline))
            except StopIteration as end:
                result: T = end.value
            finally:
                steps.close()  # here, where the lock is held
                self._write_soon()  # also what takes back what was asked for
            return result

    def send_now(self, topic: str, body: bytes, priority: int) -> bool:
        """Send bytes, if that needs no waiting; what `send` does otherwise, in fewer steps."""
        with self._lock:
            window = self.session.has_room(topic, len(body) + limits.KIB)
            if window is None or not limits.PRIORITY_MIN <= priority <= limits.PRIORITY_MAX:
                return False
            number, size = self.session.emit("send", topic, body, priority=priority)
            self.session.sent(window, topic, number)
            window.messages += 1
            window.bytes += size
            self._write_soon()
            return True

    def receive_now(self, topic: str) -> Received | None:
        """A transient message that has come already."""
        with self._lock:
            inbox = self.session.received.get((topic, False))
            if inbox is None or not inbox.messages:
                return None
            received = inbox.messages.popleft()
            if inbox.prefetch > 1 and inbox.credit <= inbox.prefetch // 4:
                self.session.top_up(inbox, subscribed=False)
            self._write_soon()
            return received

    def encode(self, body: Any, timeout_s: float = TIMEOUT_S) -> Encoded:
        """A value as it is sent. Shared memory that is full is waited for, without the lock."""
        made = encode_value(body)
        if isinstance(made, Encoded):
            return made
        return made.inline() if made.is_small else made.share(self.own.pool, timeout_s)

    def act(self, do: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Do something that needn't be waited for."""
        with self._lock:
            result = do(self.session, *arguments, **options)
            self._write_soon()
            return result

    def act_before_more(self, do: Callable[..., T], *arguments: Any) -> T:
        """Do something that goes out with what is received or sent next."""
        with self._lock:
            return do(self.session, *arguments)

    def wake(self) -> None:
        """Let those who wait look whether they still have to."""
        with self._changed:
            self._changed.notify_all()
            if self._leading and self.session.closed is None:
                self._polling.wake()

    def beat(self) -> float:
        """Say that we are there, if it is time; in how many seconds it will be again.

        The broker is asked to answer only if somebody reads.
        """
        with self._changed:
            heartbeat, now = self._heartbeat, time.monotonic()
            if heartbeat is None or not self.session.is_connected:
                return limits.HEARTBEAT_S
            if now < self._beat_due:
                return self._beat_due - now
            self._beat_due = now + heartbeat.every_s
            if not self.session.output:  # else enough is said anyway
                self.session.emit("beat", "", kind="command", to=int(self._leading))
                self._asked = self._asked or self._leading
            self.session.direct.tidy()
            self._write_now()
            return heartbeat.every_s

    def _wait(self, slot: Slot, deadline: float | None) -> bool:
        """Whether the slot was filled in time; the lock is held."""
        try:
            if self._leading:
                self.session.direct.hand_out()  # else once all has been read that is there
            self._write(deadline)
            while not slot.done:
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return False
                if self._leading:
                    self._changed.wait(left_s)
                    continue
                self._leading = True
                try:
                    self._lead(left_s)
                finally:
                    self._leading = False
                    self._changed.notify_all()
        except BaseException:
            slot.abandon()
            self._changed.notify_all()  # its message may be another thread's now
            raise
        return True

    def _lead(self, left_s: float | None) -> None:
        """Read what comes next, for all; at most for `left_s` seconds."""
        if self._socket is None:
            self._connect(left_s)
            return
        reader, direct = self._reader, self.session.direct
        assert reader is not None  # noqa: S101 - there is one with each socket
        wait_s, heartbeat = left_s, self._heartbeat
        if heartbeat is not None and (wait_s is None or wait_s > heartbeat.every_s):
            wait_s = heartbeat.every_s
        if direct.desks and direct.is_due:
            wait_s = 0.0
        begun, at, others = time.monotonic(), self._socket.fileno(), list[int]()
        self._changed.release()
        frames: list[Frame] | None = []
        heard = True
        try:
            others = self._polling.wait(wait_s)
            heard = at in others
            frames = reader.read() if heard else []
        except BlockingIOError:
            pass
        except (OSError, FrameError, ValueError):
            frames = None
        finally:
            self._changed.acquire()
        if self.session.closed is not None:
            return
        self._polling.calm()
        if not heard or len(others) > 1:
            direct.read(others)  # first: what was called later has come another way
        if frames:
            self._asked, self._unheard_s = False, 0.0
        elif self._asked and not heard and wait_s is not None and heartbeat is not None:
            # What was waited, not the time: were we stopped ourselves, that is not its fault.
            self._unheard_s += min(wait_s, time.monotonic() - begun)
            if self._unheard_s > heartbeat.silent_s:
                frames = None
        self._take(frames)
        if direct.desks:
            direct.hand_out()
        if self.session.output:
            self._write_now()

    def _take(self, frames: list[Frame] | None) -> None:
        """What the broker has said; None: it has gone."""
        try:
            if frames is None:
                raise FrameError
            for frame in frames:
                self.session.take(*frame)
        except FrameError:
            self._drop_connection()
            self.session.disconnect()

    def _connect(self, left_s: float | None) -> None:
        """Try to get in, once; wait a little if that fails."""
        self._changed.release()
        made = None
        try:
            wait_s = CONNECT_S if left_s is None else min(left_s, CONNECT_S)
            where = str(self._where())
            made = enter(where, self._hello, max(wait_s, 0.01), direct=self._direct)
            self._refused = False
        except (OSError, FrameError) as error:
            self._refused = isinstance(error, FrameError)
            pause_s = self._wait_s if left_s is None else min(self._wait_s, left_s)
            self._wait_s = min(2 * self._wait_s, BACKOFF_S_MAX)
            self._polling.rest(pause_s)
        finally:
            self._changed.acquire()
        if self.session.closed is None:
            self._polling.calm()
        if made is None:
            return
        connection, reader, welcome = made
        if self.session.closed is not None:
            connection.close()
            return
        self._wait_s = BACKOFF_S
        self._socket, self._reader = connection, reader
        self._polling.begin()
        self._polling.add(connection)
        self._writer = FrameWriter(connection, self.session.output)
        self._heartbeat, self._beat_due = welcome.heartbeat, 0.0
        self._asked, self._unheard_s = False, 0.0
        self.session.connect(welcome.name, welcome.policy, several=welcome.several)
        self._write_now()
        if welcome.heartbeat is not None:
            self._beat_due = time.monotonic() + welcome.heartbeat.every_s
            beating.begin(self)  # it may have to beat sooner than was known

    def _drop_connection(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.close()
        self._socket = self._reader = self._writer = None
        self._stuck = False

    def forget(self) -> None:
        """In a fork: let the parent's connection be; whatever is asked of this one is refused."""
        self._lock = threading.Lock()  # another thread may have held it
        self._changed = threading.Condition(self._lock)
        self.session.direct.forget()
        self.session = Session(self._hello.generation, lambda: None)
        self.session.closed = InvalidError(
            "cannot use a bus that was connected before a fork: connect again in this process"
        )
        self._polling.close()
        if self._socket is not None:
            self._socket.close()  # without a word to the broker
        self._socket = self._reader = self._writer = self._flusher = None
        self._leading = False

    # -- writing

    def _write(self, deadline: float | None) -> None:
        """Write everything that waits. A broker that reads slowly is waited for until then."""
        while not self._write_now():
            wait_s = STUCK_S if deadline is None else min(STUCK_S, deadline - time.monotonic())
            connection = self._socket
            if wait_s <= 0 or connection is None:
                return
            self._changed.release()
            try:
                ready([connection], wait_s, select.POLLOUT)
            finally:
                self._changed.acquire()

    def _write_now(self) -> bool:
        """Write what the broker takes at once; the rest is left to the flusher, and to who waits.

        Whether nothing is left, or nobody to write it to.
        """
        if self._writer is None:
            return True
        if self._writer.is_idle:
            self._stuck = False
            return True
        try:
            now = time.monotonic()
            if self._writer.write():
                self._flushed_at, self._stuck = now, False
                return True
        except OSError:
            if self.session.closed is None:
                self._drop_connection()
                self.session.disconnect()
                self._changed.notify_all()
            return True
        self._stuck = True
        self._flush_later()
        return False

    def _write_soon(self) -> None:
        """Write what waits: at once if that is rare or much, else together with what follows."""
        output = self.session.output
        if not output:
            return
        if not self._stuck and (
            self._is_waiting
            or output.waiting_bytes >= FLUSH_BYTES
            or time.monotonic() - self._flushed_at > FLUSH_AFTER_S
        ):
            self._write_now()
        else:
            self._flush_later()

    def _flush_later(self) -> None:
        if self._flush_due.is_set() or self.session.closed is not None:
            return
        if self._flusher is None:
            self._flusher = threading.Thread(
                target=self._flush_for_ever, name="bus-flush", daemon=True
            )
            self._flusher.start()
        self._flush_due.set()
        self._polling.ring()  # should it wait for somebody who doesn't read

    def _flush_for_ever(self) -> None:
        while self.session.closed is None:
            self._flush_due.wait()
            time.sleep(FLUSH_AFTER_S)
            with self._changed:
                self._flush_due.clear()
                self._write_all(None)

    def _write_all(self, deadline: float | None) -> None:
        """Write everything that waits, also to peers. Who reads slowly is in nobody's way."""
        while self.session.closed is None:
            for end in self.session.direct.stuck():
                end.flush()
            late = [end.socket for end in self.session.direct.stuck()]
            connection = self._socket
            if not self._write_now() and connection is not None:
                late.append(connection)
            wait_s = STUCK_S if deadline is None else min(STUCK_S, deadline - time.monotonic())
            if not late or wait_s <= 0:
                return
            self._flush_due.clear()
            self._polling.hush()
            self._is_waiting = True
            self._changed.release()
            try:
                self._polling.writable(late, wait_s)
            finally:
                self._changed.acquire()
                self._is_waiting = False
