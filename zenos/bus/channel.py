"""A worker's end of the bus: plain threads, no event loop.

One thread connects (again and again, for a daemon may restart) and reads; one writes. Nothing here
blocks the worker's own work: what cannot be sent waits in a bounded queue, and of state messages
that wait, the newest on each topic replaces the older.
"""

from __future__ import annotations

import itertools
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from zenos.bus.envelope import (
    WELCOME,
    Envelope,
    FrameError,
    Hello,
    Kind,
    body_of,
    close_all,
    encode,
    with_body,
)
from zenos.bus.order import Item, Link, Policy, SendQueue
from zenos.bus.stream import FrameReader, FrameWriter, Heartbeat, Welcome, greet
from zenos.core import limits

BACKOFF_S: Final = 0.05
BACKOFF_S_MAX: Final = 2.0
SEND_WAIT_S: Final = 5.0


class Channel:
    """A connection to the daemon that comes back by itself."""

    def __init__(
        self, path: Path | Callable[[], Path], task: str, generation: int, token: str
    ) -> None:
        # Asked for at each connection: the next daemon may listen elsewhere.
        self._where = path if callable(path) else lambda: path
        self._task = task
        self._generation = generation
        self._token = token
        # No SimpleQueue: its `get` never returns when a signal comes shortly before its timeout
        # (CPython 3.11: the time that is left becomes negative, which means for ever).
        self._incoming: queue.Queue[Envelope] = queue.Queue()
        self._outgoing = SendQueue(Policy(), Link())
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None  # of a daemon that has let us in
        self._states: dict[str, Item] = {}  # the newest of each topic
        self._opening: socket.socket | None = None
        self._closed = threading.Event()
        self._drained = True
        self._heartbeat: Heartbeat | None = Heartbeat()  # as the daemon wants it
        self._beat_due = 0.0
        self._lost_at = time.monotonic()
        self._ids = itertools.count(1)
        self._threads = [
            threading.Thread(target=self._read_for_ever, name="bus-read", daemon=True),
            threading.Thread(target=self._write_for_ever, name="bus-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # -- for the worker

    @property
    def connected(self) -> bool:
        """Whether the daemon is there."""
        return self._socket is not None

    @property
    def disconnected_s(self) -> float:
        """For how many seconds the daemon has been away; 0 when it is there."""
        return 0.0 if self.connected else time.monotonic() - self._lost_at

    def send(
        self,
        kind: Kind,
        topic: str,
        body: bytes,
        *,
        priority: int = limits.PRIORITY_NORMAL,
        drop_if_full: bool = False,
    ) -> bool:
        """Queue a message. False when nobody is there to take data, or the queue is full.

        A full queue is waited for, at most SEND_WAIT_S seconds, unless `drop_if_full`.
        """
        item = Item(
            kind=kind,
            priority=priority,
            sender=self._task,
            topic=topic,
            frame=encode(
                Envelope(
                    id=(number := next(self._ids)),
                    kind=kind,
                    topic=topic,
                    sender=self._task,
                    generation=self._generation,
                    sequence=number,
                    priority=priority,
                    sent=time.time(),
                    body=body,
                )
            ),
        )
        with self._changed:
            if kind == "state":
                self._states[topic] = item
                if not self.connected:
                    self._outgoing.drop("state", topic)
            elif kind == "data" and not self.connected:
                return False
            if not self._has_room(len(item.frame), wait=not drop_if_full):
                return False
            self._outgoing.put(item, time.monotonic(), always=True)
            self._drained = False
            self._changed.notify_all()
        return True

    def _has_room(self, size: int, *, wait: bool) -> bool:
        def has_room() -> bool:
            return self._outgoing.has_room(size)

        return self._changed.wait_for(has_room, SEND_WAIT_S) if wait else has_room()

    def receive(self, timeout_s: float | None = None) -> Envelope | None:
        """The next message; None when none came within `timeout_s` seconds."""
        try:
            return self._incoming.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def poll(self) -> list[Envelope]:
        """All messages that have come, without waiting."""
        found: list[Envelope] = []
        with suppress(queue.Empty):
            while True:
                found.append(self._incoming.get_nowait())
        return found

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent; False when it isn't within `timeout_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._drained, timeout_s)

    def close(self) -> None:
        """Cut the connection and end both threads."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._cut(self._opening)
        for thread in self._threads:
            thread.join(timeout=5)

    # -- threads

    def _connect(self) -> socket.socket | None:
        hello = Hello(task=self._task, generation=self._generation, token=self._token)
        try:
            return greet(str(self._where()), hello, beats=True)
        except OSError:
            return None

    def _read_for_ever(self) -> None:
        wait_s = BACKOFF_S
        while not self._closed.is_set():
            connection = self._connect()
            if connection is None:
                self._closed.wait(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S_MAX)
                continue
            with self._changed:
                self._opening = connection
            welcome = self._read(connection)
            self._cut(connection)
            connection.close()
            # A daemon that refuses us closes at once: don't spin.
            wait_s = BACKOFF_S if welcome else min(2 * wait_s, BACKOFF_S_MAX)
            self._closed.wait(wait_s)

    def _read(self, connection: socket.socket) -> bool:
        """Until the connection ends; whether we were welcome."""
        reader, welcome = FrameReader(connection), False
        self._heartbeat, self._beat_due = Heartbeat(), 0.0
        with suppress(OSError, FrameError):
            while self._heard(connection) and (frames := reader.read()) is not None:
                for header, frame, descriptors in frames:
                    close_all(descriptors)
                    envelope = with_body(header, frame)
                    if envelope.topic == WELCOME:
                        self._welcomed(connection, body_of(envelope, Welcome))
                        welcome = True
                    elif envelope.verb != "answer":  # to a beat
                        self._incoming.put(envelope)
        reader.close()
        return welcome

    def _heard(self, connection: socket.socket) -> bool:
        """Wait until there is something to read, saying meanwhile that we are there.

        False when nothing is heard of the daemon for too long.
        """
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        rounds = 0  # and not the time: were we stopped ourselves, that is not the daemon's silence
        while (heartbeat := self._heartbeat) is not None:
            left_s = max(0.0, self._beat_due - time.monotonic())
            there = bool(poll.poll(1000 * left_s))
            if time.monotonic() >= self._beat_due:
                self._beat_due = time.monotonic() + heartbeat.every_s
                self._beat()
                rounds += 1
            if there:
                return True
            if rounds * heartbeat.every_s > heartbeat.silent_s:
                return False
        return True

    def _welcomed(self, connection: socket.socket, welcome: Welcome) -> None:
        """Say again what is so: a daemon that died may have taken what it was told with it."""
        with self._changed:
            self._heartbeat, self._beat_due = welcome.heartbeat, 0.0
            self._outgoing.use(welcome.policy)
            for topic, item in self._states.items():
                self._outgoing.drop("state", topic)
                self._outgoing.put(item, time.monotonic(), always=True)
            self._drained = not self._outgoing
            self._socket = connection
            self._changed.notify_all()

    def _write_for_ever(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed.is_set() or (self.connected and bool(self._outgoing))
                )
                if self._closed.is_set():
                    return
                connection = self._socket
                if connection is None:
                    continue
                writer = FrameWriter(connection, self._outgoing)
                writer.fill()
                self._changed.notify_all()
            try:
                writer.flush()
            except OSError:
                # State is said again to the next daemon; all else is sent at most once.
                self._cut(connection)
                writer.close()
            else:
                writer.written()
            with self._changed:
                self._drained = not self._outgoing
                self._changed.notify_all()

    def _beat(self) -> None:
        """Say that we are there, and ask whether the daemon is."""
        beat = Envelope(
            id=next(self._ids),
            kind="command",
            verb="beat",
            generation=self._generation,
            sent=time.time(),
            to=1,
        )
        with self._changed:
            if self.connected and not self._outgoing:  # else enough is said anyway
                item = Item("command", beat.priority, self._task, "", encode(beat))
                self._outgoing.put(item, time.monotonic())
                self._changed.notify_all()

    def _cut(self, connection: socket.socket | None) -> None:
        with self._changed:
            if connection is not None and self._socket is connection:
                self._socket = None
                self._lost_at = time.monotonic()
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
