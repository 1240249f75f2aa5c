"""One connection to the broker: who it is, what it says, and what waits to be sent to it."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from zenos.bus.envelope import WELCOME, Envelope, encode
from zenos.bus.order import Item, Link, Policy, SendQueue
from zenos.bus.several import body_of_numbers
from zenos.bus.stream import FrameReader, FrameWriter, Heartbeat, Welcome
from zenos.core import limits
from zenos.core.errors import InvalidError, RefusedError, ZenosError
from zenos.core.names import check_topic, is_internal

if TYPE_CHECKING:
    from zenos.bus.meetings import Meeting

HELLO_BYTES_MAX: Final = 4 * limits.KIB  # of frames, until it is known who sends them
MayUse = Callable[[str, str], bool]  # a task, a topic
_CREDENTIALS: Final = struct.Struct("iII")  # pid, uid, gid


class Peer:
    """A connection. It has no name until it has said who it is.

    on_dirty: is told when something waits to be sent. taken: by topic, what is to be confirmed.
    answered: requests that went well, to be said together.
    """

    def __init__(
        self, connection: socket.socket, policy: Policy, on_dirty: Callable[[Peer], None]
    ) -> None:
        self.socket = connection
        self.name = ""
        self.task = ""
        self.generation = 0
        self.is_program = False
        self.is_closed = False
        self.is_writing = False  # its socket took no more; it is told when it does
        self.is_stalled = False  # it was passed over since it doesn't read
        self.beats = False  # it says regularly that it is there
        self.is_silent = False  # it doesn't, with leave: it is given nothing meanwhile
        self.reader = FrameReader(connection, HELLO_BYTES_MAX)
        self.waiting = SendQueue(policy, Link())
        self.writer = FrameWriter(connection, self.waiting)
        self.taken: dict[str, list[int]] = {}
        self.answered: list[int] = []
        self.topics: set[str] = set()  # that it may use, as far as it was asked
        self.requests: dict[int, int] = {}  # its numbers → those of the durable topics
        self.frames: dict[int, int] = {}  # the same of frames of several: of each the first
        self.parts = 0  # how many are in these
        self.calls: set[tuple[str, int]] = set()  # that it made, or that it is to answer
        self.direct = False  # it takes direct sockets
        self.several = False  # it takes frames of several
        self.meetings: dict[int, Meeting] = {}  # those that it has
        self.held = 0  # of its messages, those that wait for room
        self.held_bytes = 0
        self._clock = asyncio.get_running_loop().time
        self.heard = self._clock()  # when anything came from it
        self._on_dirty = on_dirty

    @property
    def has_room(self) -> bool:
        """Whether more may be sent to it. One that hasn't is told of later."""
        queue = self.waiting
        if queue.count < limits.SEND_QUEUE_FRAMES_MAX // 2 and (
            queue.waiting_bytes < limits.SEND_QUEUE_BYTES_MAX // 4 and not self.is_silent
        ):
            return True
        self.is_stalled = True
        return False

    def takes(self, frames: int, size: int) -> bool:
        """Whether so many frames, of `size` bytes together, can be put without a BusyError."""
        queue = self.waiting
        return queue.count + frames <= limits.SEND_QUEUE_FRAMES_MAX and (
            queue.waiting_bytes + size <= limits.SEND_QUEUE_BYTES_MAX
        )

    def mark(self) -> None:
        """There is something to be said to it."""
        self._on_dirty(self)

    def is_same_user(self, uid: int) -> bool:
        """Whether the process at the other end has that uid."""
        raw = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(raw)[1] == uid)

    def allow(self, name: str, may_use: MayUse) -> None:
        """Raises InvalidError for a bad name, RefusedError where the peer's task may not be."""
        if check_topic(name) != name:
            raise InvalidError(f"cannot use the topic {name!a}: write it in Unicode's form NFC")
        own = self.task and (name == self.task or name.startswith(f"{self.task}/"))
        if self.task and not own and not may_use(self.task, name):
            raise RefusedError(
                f"cannot use the topic {name}: {self.task} may use {self.task}/… and what it was"
                " granted; submit it with '--topic'"
            )
        if len(self.topics) >= limits.PEER_TOPICS_MAX:
            self.topics.clear()
        self.topics.add(name)

    def only_calls(self, topic: str) -> None:
        """Raises RefusedError: whom an internal topic doesn't belong to may call there, no more."""
        if not self.task and is_internal(topic):
            raise RefusedError(f"cannot use {topic}: it belongs to a task, and can only be called")

    def welcome(self, heartbeat: Heartbeat) -> None:
        """Send the policy and its name, before everything else."""
        body = msgspec.msgpack.encode(
            Welcome(policy=self.waiting.policy, name=self.name, heartbeat=heartbeat, several=True)
        )
        welcome = Envelope(kind="command", topic=WELCOME, sent=time.time(), body=body)
        first = Item("command", limits.PRIORITY_MAX + 1, "", WELCOME, encode(welcome))
        self.put(first, always=True)

    def put(self, item: Item, *, always: bool = False) -> None:
        """Queue a frame. BusyError when too many wait, unless it must be taken `always`."""
        if not self.waiting.count:
            self._on_dirty(self)
        self.waiting.put(item, self._clock(), always=always)

    def send(self, envelope: Envelope, *, always: bool = False) -> None:
        """Queue a message of the daemon's. BusyError when too many wait."""
        left_s = envelope.left_s
        item = Item(
            kind=envelope.kind,
            priority=envelope.priority,
            sender=envelope.sender,
            topic=envelope.topic,
            frame=encode(envelope),
            deadline=self._clock() + left_s if envelope.deadline else 0.0,
        )
        # Data that isn't read must not keep out the command that would end it.
        urgent = envelope.kind == "command" and len(self.waiting) < 2 * limits.SEND_QUEUE_FRAMES_MAX
        self.put(item, always=always or urgent)

    def answer(self, request: int, topic: str, body: bytes = b"") -> None:
        """End a request of its."""
        self._end(Envelope(kind="command", verb="answer", to=request, topic=topic, body=body))

    def refuse(self, request: int, topic: str, error: ZenosError) -> None:
        """End a request of its with an error."""
        headers = {"code": error.code, "error": error.message}
        if error.retry_after_s is not None:
            headers["retry_after_s"] = str(error.retry_after_s)
        self._end(Envelope(kind="command", verb="answer", to=request, topic=topic, headers=headers))

    def _end(self, answer: Envelope) -> None:
        """An answer is never too much for who reads: what may be asked at once is bounded."""
        if len(self.waiting) < limits.PEER_REQUESTS_MAX + 2 * limits.SEND_QUEUE_FRAMES_MAX:
            self.send(answer, always=True)
        else:  # it asks and asks, and reads nothing
            self.is_closed = True
            self._on_dirty(self)

    def answer_soon(self, requests: list[int]) -> None:
        """End requests of its that went well, with others that end in this turn."""
        if not self.answered:
            self._on_dirty(self)
        self.answered += requests

    def confirm(self) -> None:
        """Say which of its requests have ended, and which of its messages were taken."""
        answered, self.answered = self.answered, []
        for begin in range(0, len(answered), limits.SEVERAL_MAX):
            numbers = answered[begin : begin + limits.SEVERAL_MAX]
            body = body_of_numbers(numbers)
            self._end(Envelope(kind="command", verb="answers", body=body))
        for topic, (messages, size) in self.taken.items():
            body = msgspec.msgpack.encode((messages, size))
            self.send(Envelope(kind="command", verb="taken", topic=topic, body=body), always=True)
        self.taken.clear()
