"""The daemon's end of the bus: a unix socket to which workers and programs connect.

A peer has the daemon's uid and, in its first message, names a task, its generation and that
generation's token; or no task, and the home's token. It is answered with the policy by which it
shall order what it sends itself; for the order see order.py. What comes is for the daemon itself
(`tell`), or for other peers (exchange.py). A peer that doesn't read fills its own bounded queue and
nobody else's.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from zenos.bus.durable_topics import DurableTopics
from zenos.bus.envelope import (
    HELLO,
    Data,
    Envelope,
    FrameError,
    Hello,
    body_of,
    close_all,
    with_body,
)
from zenos.bus.envelope import Kind as MessageKind
from zenos.bus.exchange import Exchange
from zenos.bus.order import Policy
from zenos.bus.peer import MayUse, Peer
from zenos.bus.stream import Frame, Heartbeat
from zenos.core import limits
from zenos.core.errors import StorageError, ZenosError
from zenos.core.messages import TopicSettings
from zenos.core.seldom import Seldom

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S: Final = 5.0
ACCEPT_AGAIN_S: Final = 1.0  # when no descriptor is left
LOG_EVERY_S: Final = 10.0  # of what may come very often
USER: Final = "user"  # in the name of a peer outside any task
PROGRAMS_SAY: Final = ("threads",)  # what a task's programs may tell the daemon; the rest workers

Authenticate = Callable[[str, int, str], bool]
OnMessage = Callable[[str, int, Envelope], None]
OnChange = Callable[[str, int], None]
OnGone = Callable[[str, str], None]
IsPaused = Callable[[str], bool]


def make_private_directory(path: Path) -> None:
    """A directory of mode 0700 that is ours. StorageError when somebody else has put it there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the directory {path}: {error.strerror}") from error
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StorageError(f"cannot use {path}: it is not a directory of this user")
    path.chmod(0o700)


def no_grants(task: str, topic: str) -> bool:
    """Tasks may use their own topics alone."""
    return False


def never_paused(task: str) -> bool:
    """Nobody is frozen on purpose."""
    return False


def usual_settings(topic: str) -> TopicSettings:
    """Of a topic of which nothing else is said."""
    return _USUAL


_USUAL: Final = TopicSettings()


class Broker:
    """Listens, authenticates, delivers. Belongs to the daemon's event loop."""

    def __init__(
        self,
        authenticate: Authenticate,
        on_message: OnMessage,
        on_connect: OnChange | None = None,
        on_disconnect: OnChange | None = None,
        policy: Policy | None = None,
        durable: DurableTopics | None = None,
        *,
        may_use: MayUse = no_grants,
        settings: Callable[[str], TopicSettings] = usual_settings,
        on_program_gone: OnGone | None = None,
        heartbeat: Heartbeat | None = None,
        is_paused: IsPaused = never_paused,
    ) -> None:
        """authenticate: of a peer outside any task with an empty task. may_use: whether a task was
        granted a topic beside its own. durable: without them, only transient topics can be used.
        on_program_gone: the task and the name of one of its programs, which has disconnected.
        is_paused: whether a task's programs may be frozen, and so need not be heard.
        """
        self._policy = policy or Policy()
        self._authenticate = authenticate
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_program_gone = on_program_gone
        self._heartbeat = heartbeat or Heartbeat()
        self._is_paused = is_paused
        self._loop = asyncio.get_running_loop()
        self._exchange = Exchange(may_use, settings, durable)
        self._workers: dict[str, Peer] = {}  # by task
        self._peers: dict[Peer, asyncio.TimerHandle | None] = {}  # until it has said who it is
        self._dirty: dict[Peer, None] = {}
        self._flushing = False
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._looked = self._loop.time()
        self._looking = self._loop.call_later(self._heartbeat.every_s, self._look)
        self._refusals = Seldom(LOG_EVERY_S)
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)

    async def start(self, path: Path) -> None:
        """Listen at `path`; a socket that a dead daemon left there is replaced."""
        make_private_directory(path.parent)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        self._path, self._listener = path, listener
        self._loop.add_reader(listener, self._accept)

    @property
    def peers(self) -> int:
        """How many connections there are."""
        return len(self._peers)

    def waiting(self, topic: str) -> int:
        """How many messages wait on a transient topic for somebody who wants them."""
        return self._exchange.waiting(topic)

    async def listen_again(self, path: Path) -> None:
        """Listen at `path` instead; those who are connected stay so."""
        old = self._listener
        await self.start(path)
        if old is not None:
            self._loop.remove_reader(old)
            old.close()

    def connected(self, task: str) -> bool:
        """Whether a worker of that task is connected."""
        return task in self._workers

    def send(
        self,
        task: str,
        kind: MessageKind,
        topic: str,
        body: bytes,
        *,
        priority: int = limits.PRIORITY_NORMAL,
        headers: dict[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> bool:
        """Send to a task's worker, at most once; False when it isn't connected. BusyError: full.

        deadline_s: seconds from now after which it needn't be sent any more.
        """
        peer = self._workers.get(task)
        if peer is None:
            return False
        number, now = next(self._ids), time.time()
        envelope = Envelope(
            id=number,
            kind=kind,
            topic=topic,
            sequence=number,
            priority=priority,
            sent=now,
            deadline=now + deadline_s if deadline_s is not None else 0.0,
            headers=headers or {},
            body=body,
        )
        peer.send(envelope)
        return True

    async def close(self) -> None:
        """Cut all connections and stop listening."""
        self._stop_listening()
        self._looking.cancel()
        self._exchange.keep_leases()
        for peer in list(self._peers):
            self._cut(peer)
        self._exchange.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with_directory = self._path.parent
            if with_directory.exists() and not any(with_directory.iterdir()):
                with_directory.rmdir()

    # -- connections

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.error("no connection can be accepted for now: %s", error)  # noqa: TRY400
                self._loop.remove_reader(listener)
                self._loop.call_later(ACCEPT_AGAIN_S, self._accept_again)
            return
        if len(self._peers) >= limits.PEERS_MAX:
            log.warning("a connection was refused: there are %d already", limits.PEERS_MAX)
            connection.close()
            return
        connection.setblocking(False)
        peer = Peer(connection, self._policy, self._mark)
        self._peers[peer] = self._loop.call_later(HELLO_TIMEOUT_S, self._cut, peer)
        self._loop.add_reader(connection, self._readable, peer)

    def _accept_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _readable(self, peer: Peer) -> None:
        self._flushing = True  # below, once for all that comes of this
        try:
            frames = peer.reader.read()
            if frames is None:
                self._cut(peer)
                return
            peer.heard = self._loop.time()
            if peer.is_silent:
                peer.is_silent = False
                self._resume(peer)
            self._take_all(peer, frames)
        except BlockingIOError:
            return
        except FrameError as error:
            self._refuse(peer, error)
            self._cut(peer)
        except OSError as error:
            log.debug("a connection has ended: %s", error)
            self._cut(peer)
        finally:
            self._flush()

    def _refuse(self, peer: Peer, error: FrameError) -> None:
        """Whoever sent it hears so, if it can read that: else it would send the same again."""
        times = self._refusals.times(self._loop.time())
        if times:
            also = "" if times == 1 else f" (and {times - 1} others since that was said last)"
            log.warning("a connection was closed: %s%s", error, also)
        if peer.name and error.request is not None and not peer.is_writing:
            with suppress(OSError, ZenosError):  # its topic may be no topic, and too long
                peer.refuse(*error.request, error)
                peer.writer.write()

    def _take_all(self, peer: Peer, frames: list[Frame]) -> None:
        rest = iter(frames)
        try:
            if not peer.name:
                first = next(rest, None)
                if first is None:
                    return
                close_all(first[2])
                if not self._greet(peer, with_body(*first[:2])):
                    self._cut(peer)
            generation, sender = peer.generation, peer.name
            for envelope, frame, descriptors in rest:
                if peer.is_closed:
                    close_all(descriptors)
                    continue
                try:
                    if envelope.generation != generation:
                        raise FrameError(
                            "cannot take a message of another generation than its sender's"
                        )
                    if envelope.verb == "tell":
                        close_all(descriptors)
                        self._hear(peer, envelope, frame)
                    elif envelope.verb == "beat":
                        close_all(descriptors)
                        if envelope.to:
                            peer.answer(envelope.id, "")
                    elif envelope.sender != sender:
                        raise FrameError("cannot take a message in the name of somebody else")
                    else:
                        self._exchange.take(peer, envelope, frame, descriptors)
                except FrameError as error:
                    close_all(descriptors)
                    error.request = (envelope.id, envelope.topic)
                    raise
        finally:
            for *_, descriptors in rest:
                close_all(descriptors)

    def _greet(self, peer: Peer, first: Envelope) -> bool:
        """Decide from its first message who this is; whether it may come in."""
        if not peer.is_same_user(os.getuid()):
            log.warning("a connection was refused: another user's process")
            return False
        if first.topic != HELLO:
            raise FrameError(f"cannot begin with a message on {first.topic[:64]!r}")
        hello: Hello = body_of(first, Hello)
        if not self._authenticate(hello.task, hello.generation, hello.token):
            log.warning("a connection was refused: wrong token for %s", hello.task[:64] or "a user")
            return False
        timer = self._peers[peer]
        if timer is not None:
            timer.cancel()
        self._peers[peer] = None
        peer.reader.decoder.frame_bytes_max = limits.FRAME_BYTES_MAX
        peer.task, peer.generation, peer.beats = hello.task, hello.generation, hello.beats
        peer.direct, peer.several = hello.direct, hello.several
        peer.is_program = hello.program or not hello.task
        if peer.is_program:
            peer.name = f"{hello.task or USER}.{next(self._numbers)}"
            peer.welcome(self._heartbeat)
            return True
        peer.name = hello.task
        old = self._workers.get(peer.task)
        if old is not None:
            self._cut(old)
        self._workers[peer.task] = peer
        peer.welcome(self._heartbeat)
        if self._on_connect is not None:
            self._on_connect(peer.task, peer.generation)
        return True

    def _hear(self, peer: Peer, envelope: Envelope, frame: Data) -> None:
        """A worker tells the daemon something, or a program of a task what it may."""
        if peer.is_program and not (peer.task and envelope.topic in PROGRAMS_SAY):
            raise FrameError("cannot take what only a worker says")
        said = with_body(envelope, frame)
        if peer.is_program:
            said = replace(said, sender=peer.name)  # whatever it calls itself
        try:
            self._on_message(peer.task, peer.generation, said)
        except ZenosError as error:
            raise FrameError(str(error)) from error
        except msgspec.MsgspecError as error:
            raise FrameError(f"cannot read a message on {envelope.topic[:64]!r}: {error}") from None

    def _cut(self, peer: Peer) -> None:
        """End a connection: what the peer held is given back."""
        if peer not in self._peers:
            return
        timer = self._peers.pop(peer)
        if timer is not None:
            timer.cancel()
        peer.is_closed = True
        self._loop.remove_reader(peer.socket)
        self._loop.remove_writer(peer.socket)
        self._dirty.pop(peer, None)
        with suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RDWR)
        peer.socket.close()
        peer.reader.close()
        peer.writer.close()
        for item in peer.waiting.clear():
            close_all(item.descriptors)
        if not peer.name:
            return
        self._exchange.gone(peer)
        if peer.is_program and peer.task and self._on_program_gone is not None:
            self._on_program_gone(peer.task, peer.name)
        if self._workers.get(peer.task) is peer:
            del self._workers[peer.task]
            if self._on_disconnect is not None:
                self._on_disconnect(peer.task, peer.generation)

    def _look(self) -> None:
        """End the connections of those who are not heard any more: what they held is given back.

        1. Were we stopped ourselves, nobody is blamed for it: all have their time once more.
        2. Who is frozen on purpose keeps its connection, and is given nothing until it is heard.
        3. Everybody else can connect again, should it go on.
        4. Whoever has direct sockets still has to be allowed what they are for.
        """
        now, every_s = self._loop.time(), self._heartbeat.every_s
        late, self._looked = now - self._looked > 2 * every_s, now
        self._looking = self._loop.call_later(every_s, self._look)
        for peer in list(self._peers):
            if late:  # 1
                peer.heard = now
            self._exchange.check(peer)  # 4
            if not peer.beats or now - peer.heard <= self._heartbeat.silent_s:
                continue
            if peer.is_program and peer.task and self._is_paused(peer.task):  # 2
                peer.is_silent, peer.heard = True, now
                self._exchange.silent(peer)
                continue
            log.warning(  # 3
                "a connection was closed: nothing was heard of %s for %d s",
                peer.name,
                now - peer.heard,
            )
            self._cut(peer)

    # -- writing

    def _mark(self, peer: Peer) -> None:
        """Something is to be sent to a peer: at the end of this turn, with what else comes."""
        self._dirty[peer] = None
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = True  # what is marked meanwhile is written below
        try:
            while self._dirty:
                peer, _ = self._dirty.popitem()
                if peer.is_closed:
                    self._cut(peer)
                    continue
                if peer.taken or peer.answered:
                    peer.confirm()
                self._write(peer)
        finally:
            self._flushing = False

    def _write(self, peer: Peer) -> None:
        try:
            done = peer.writer.write()
        except OSError as error:
            log.debug("a connection has ended: %s", error)
            self._cut(peer)
            return
        if done == peer.is_writing:
            peer.is_writing = not done
            if done:
                self._loop.remove_writer(peer.socket)
            else:
                self._loop.add_writer(peer.socket, self._writable, peer)
        self._resume(peer)

    def _resume(self, peer: Peer) -> None:
        """Go on with who was passed over, if it may be sent something again."""
        if peer.is_stalled and peer.has_room:
            peer.is_stalled = False
            self._exchange.resume(peer)

    def _writable(self, peer: Peer) -> None:
        self._dirty[peer] = None
        self._flush()
