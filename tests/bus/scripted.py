"""A broker that says what a test makes it say, one frame after another."""

from __future__ import annotations

import socket
import time
from collections import deque
from pathlib import Path

import msgspec

from zenos.bus.envelope import WELCOME, Envelope, Hello, Verb, encode
from zenos.bus.stream import FrameReader, Welcome

HELLO = Hello(task="", generation=0, token="x", program=True)


class ScriptedBroker:
    """Serves one connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self._heard: deque[Envelope] = deque()

    def accept(self) -> None:
        """Let in who connects."""
        self._connection, _ = self._listening.accept()
        self._connection.settimeout(60)
        self._reader = FrameReader(self._connection)
        self._next()
        body = msgspec.msgpack.encode(Welcome(name="one"))
        self._say(Envelope(kind="command", topic=WELCOME, sent=time.time(), body=body))

    def asked(self, verb: Verb) -> Envelope:
        """What it is asked next; nothing else may come before."""
        envelope = self._next()
        assert envelope.verb == verb
        return envelope

    def give(self, request: int, body: bytes, together: int = 0) -> None:
        """A durable message, one of those that were given to that request together."""
        self._say(
            Envelope(
                verb="send",
                topic="jobs",
                durable=True,
                to=request,
                key=body.decode(),
                delivery=int(body) + 1,
                credit=together,
                body=body,
            )
        )

    def close(self) -> None:
        self._connection.close()
        self._reader.close()
        self._listening.close()

    def _next(self) -> Envelope:
        while not self._heard:
            frames = self._reader.read()
            assert frames is not None
            self._heard += [envelope for envelope, *_ in frames]
        return self._heard.popleft()

    def _say(self, envelope: Envelope) -> None:
        self._connection.sendall(encode(envelope))
