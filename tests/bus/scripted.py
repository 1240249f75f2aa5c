"""A broker that says what a test makes it say, one frame after another."""

from __future__ import annotations

import socket
import time
from collections import deque
from pathlib import Path

import msgspec

from zenos.bus.envelope import WELCOME, Envelope, Hello, Verb, encode, with_body
from zenos.bus.several import body_of_numbers
from zenos.bus.stream import FrameReader, Welcome
from zenos.core.errors import ZenosError

HELLO = Hello(task="", generation=0, token="x", program=True)


class ScriptedBroker:
    """Serves one connection. several: it says that it takes frames of several."""

    def __init__(self, path: Path, *, several: bool = False) -> None:
        self.path = path
        self._several = several
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self._listening.settimeout(60)
        self._heard: deque[Envelope] = deque()

    def accept(self) -> None:
        """Let in who connects."""
        self._connection, _ = self._listening.accept()
        self._connection.settimeout(60)
        self._reader = FrameReader(self._connection)
        self._next()
        body = msgspec.msgpack.encode(Welcome(name="one", several=self._several))
        self._say(Envelope(kind="command", topic=WELCOME, sent=time.time(), body=body))

    def asked(self, verb: Verb) -> Envelope:
        """What it is asked next; nothing else may come before."""
        envelope = self._next()
        assert envelope.verb == verb, envelope
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

    def answer(self, request: int, value: object) -> None:
        """End a request."""
        body = msgspec.msgpack.encode(value)
        self._say(Envelope(kind="command", verb="answer", to=request, topic="jobs", body=body))

    def answers(self, requests: list[int]) -> None:
        """End several requests."""
        self._say(Envelope(kind="command", verb="answers", body=body_of_numbers(requests)))

    def refuse(self, request: int, error: ZenosError) -> None:
        """End a request with an error."""
        headers = {"code": error.code, "error": error.message}
        self._say(
            Envelope(kind="command", verb="answer", to=request, topic="jobs", headers=headers)
        )

    def close(self) -> None:
        self._connection.close()
        self._reader.close()
        self._listening.close()

    def _next(self) -> Envelope:
        while not self._heard:
            frames = self._reader.read()
            assert frames is not None
            self._heard += [with_body(envelope, frame) for envelope, frame, _ in frames]
        return self._heard.popleft()

    def _say(self, envelope: Envelope) -> None:
        self._connection.sendall(encode(envelope))
