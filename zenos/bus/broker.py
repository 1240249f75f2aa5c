"""The daemon's end of the bus: a unix socket to which workers connect.

A peer has the daemon's uid and, in its first message, names a task, its generation and that
generation's token. It is answered with the policy by which it shall order what it sends itself; for
the order see order.py. A worker that doesn't read fills its own bounded queue and nobody else's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from zenos.bus.envelope import WELCOME, Decoder, Envelope, FrameError, Hello, body_of, encode
from zenos.bus.envelope import Kind as MessageKind
from zenos.bus.order import Item, Link, Policy, SendQueue
from zenos.core import limits
from zenos.core.errors import StorageError, ZenosError

log = logging.getLogger(__name__)

READ_BYTES: Final = 256 * limits.KIB
HELLO_TIMEOUT_S: Final = 5.0
HELLO_BYTES_MAX: Final = 4 * limits.KIB  # of frames, until it is known who sends them
CONNECTIONS_MAX: Final = 4096
_CREDENTIALS: Final = struct.Struct("iII")  # pid, uid, gid

Authenticate = Callable[[str, int, str], bool]
OnMessage = Callable[[str, int, Envelope], None]
OnChange = Callable[[str, int], None]


def make_private_directory(path: Path) -> None:
    """A directory of mode 0700 that is ours. StorageError when somebody else has put it there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StorageError(f"cannot use {path}: it is not a directory of this user")
    path.chmod(0o700)


class Peer:
    """One authenticated connection: what waits to be sent to it."""

    def __init__(
        self, task: str, generation: int, writer: asyncio.StreamWriter, policy: Policy
    ) -> None:
        self.task = task
        self.generation = generation
        self.waiting = SendQueue(policy, Link())
        self._writer = writer
        self._clock = asyncio.get_running_loop().time
        self._there = asyncio.Event()

    def welcome(self) -> None:
        """Send the policy, before everything else."""
        body = msgspec.msgpack.encode(self.waiting.policy)
        welcome = Envelope(kind="command", topic=WELCOME, sent=time.time(), body=body)
        self._writer.write(encode(welcome))

    def put(self, envelope: Envelope) -> None:
        """Queue a message. BusyError when too many wait."""
        now = self._clock()
        left_s = envelope.deadline - envelope.sent if envelope.deadline else 0.0
        item = Item(
            kind=envelope.kind,
            priority=envelope.priority,
            sender=envelope.sender,
            topic=envelope.topic,
            frame=encode(envelope),
            deadline=now + left_s if envelope.deadline else 0.0,
        )
        # Data that isn't read must not keep out the command that would end it.
        urgent = envelope.kind == "command" and len(self.waiting) < 2 * limits.SEND_QUEUE_FRAMES_MAX
        self.waiting.put(item, now, always=urgent)
        self._there.set()

    async def send_all(self) -> None:
        """Send what waits, for ever. Frames that are there together go out together."""
        while True:
            await self._there.wait()
            self._there.clear()
            while batch := self.waiting.take(begun := self._clock(), READ_BYTES):
                self._writer.writelines([item.frame for item in batch])
                await self._writer.drain()
                sent = sum(len(item.frame) for item in batch)
                self.waiting.link.observe(sent, self._clock() - begun)

    def close(self) -> None:
        """Cut the connection."""
        self._writer.close()


class Broker:
    """Listens, authenticates, delivers."""

    def __init__(
        self,
        authenticate: Authenticate,
        on_message: OnMessage,
        on_connect: OnChange | None = None,
        on_disconnect: OnChange | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._policy = policy or Policy()
        self._authenticate = authenticate
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._peers: dict[str, Peer] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._ids = itertools.count(1)

    async def start(self, path: Path) -> None:
        """Listen at `path`; a socket that a dead daemon left there is replaced."""
        make_private_directory(path.parent)
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, path, limit=READ_BYTES)
        path.chmod(0o600)
        self._path = path

    async def listen_again(self, path: Path) -> None:
        """Listen at `path` instead; those who are connected stay so."""
        if self._server is not None:
            self._server.close()
        await self.start(path)

    def connected(self, task: str) -> bool:
        """Whether a worker of that task is connected."""
        return task in self._peers

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
        peer = self._peers.get(task)
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
        peer.put(envelope)
        return True

    async def close(self) -> None:
        """Cut all connections and stop listening."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with_directory = self._path.parent
            if with_directory.exists() and not any(with_directory.iterdir()):
                with_directory.rmdir()

    # -- connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        if len(self._connections) >= CONNECTIONS_MAX:
            log.warning("a connection was refused: there are %d already", CONNECTIONS_MAX)
            writer.close()
            return
        if current is not None:
            self._connections.add(current)
        try:
            await self._serve(reader, writer)
        except FrameError as error:
            log.warning("a connection was closed: %s", error)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("a connection has ended: %s", error)
        except asyncio.CancelledError:
            log.debug("a connection was closed: the daemon goes down")
        finally:
            writer.close()
            if current is not None:
                self._connections.discard(current)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder(HELLO_BYTES_MAX)
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            peer, early = await self._greet(reader, writer, decoder)
        if peer is None:
            return
        decoder.frame_bytes_max = limits.FRAME_BYTES_MAX
        old = self._peers.get(peer.task)
        if old is not None:
            old.close()
        self._peers[peer.task] = peer
        peer.welcome()
        sending = asyncio.create_task(peer.send_all())
        try:
            if self._on_connect is not None:
                self._on_connect(peer.task, peer.generation)
            self._deliver(peer, early)
            while data := await reader.read(READ_BYTES):
                self._deliver(peer, decoder.feed(data))
        finally:
            sending.cancel()
            if self._peers.get(peer.task) is peer:
                del self._peers[peer.task]
                if self._on_disconnect is not None:
                    self._on_disconnect(peer.task, peer.generation)

    async def _greet(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: Decoder
    ) -> tuple[Peer | None, list[Envelope]]:
        """Read the first message and decide who this is; None when it may not come in."""
        if not _same_user(writer.get_extra_info("socket")):
            log.warning("a connection was refused: another user's process")
            return None, []
        envelopes: list[Envelope] = []
        while not envelopes:
            data = await reader.read(READ_BYTES)
            if not data:
                return None, []
            envelopes = decoder.feed(data)
        first = envelopes[0]
        if first.topic != "hello":
            raise FrameError(f"cannot begin with a message on {first.topic!r}")
        hello: Hello = body_of(first, Hello)
        if not self._authenticate(hello.task, hello.generation, hello.token):
            log.warning("a connection was refused: wrong token for %s", hello.task[:64])
            return None, []
        return Peer(hello.task, hello.generation, writer, self._policy), envelopes[1:]

    def _deliver(self, peer: Peer, envelopes: list[Envelope]) -> None:
        for envelope in envelopes:
            if envelope.generation != peer.generation:
                raise FrameError("cannot take a message of another generation than its sender's")
            try:
                self._on_message(peer.task, peer.generation, envelope)
            except ZenosError as error:
                raise FrameError(str(error)) from error


def _same_user(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return bool(uid == os.getuid())
