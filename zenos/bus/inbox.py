"""What has come, and who waits for it; what a session (see session.py) keeps of a connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from zenos.bus.envelope import Data, Envelope, body_in, close_all
from zenos.bus.terms import Terms


class Slot:
    """Something that is waited for. lost: the connection ended before it came."""

    __slots__ = ("done", "inbox", "lost", "on_done", "value")

    def __init__(self, inbox: Inbox | None = None) -> None:
        self.done = False
        self.lost = False
        self.value: Any = None
        self.inbox = inbox
        self.on_done: Callable[[], None] | None = None

    def fill(self, value: Any = None, *, lost: bool = False) -> None:
        """It has come, or never will."""
        if not self.done:
            self.done, self.value, self.lost = True, value, lost
            if self.on_done is not None:
                self.on_done()

    def abandon(self) -> None:
        """Who waited was interrupted. A message that had come for it is for who waits next."""
        if not self.done:
            self.done = self.lost = True
        elif self.inbox is not None and self.value is not None:
            received, self.value = self.value, None
            self.inbox.put_back(received)


class Received:
    """A message that has come. Who has it owns its descriptors."""

    __slots__ = ("descriptors", "envelope", "frame", "missed")

    def __init__(self, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]) -> None:
        self.envelope = envelope
        self.frame = frame
        self.descriptors = descriptors
        self.missed = 0  # messages that were too many for this subscriber, before this one

    @property
    def body(self) -> memoryview:
        """Where it lies in the frame."""
        return body_in(self.frame)


class ReceivedDescriptors(Received):
    """A message with descriptors: nobody may ever look at it, and they must not stay open.

    opened: the shared memory that came with it, once somebody has looked at it.
    """

    __slots__ = ("opened",)

    def __init__(self, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]) -> None:
        super().__init__(envelope, frame, descriptors)
        self.opened: Any = None

    def __del__(self) -> None:
        close_all(self.descriptors)


class Window:
    """How much of what was sent to a transient topic may be unconfirmed."""

    __slots__ = ("bytes", "messages", "refuses", "terms", "waiters")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.refuses = terms.when_full == "refuse"
        self.messages = 0
        self.bytes = 0
        self.waiters: deque[Slot] = deque()

    def has_room(self, size: int) -> bool:
        """Whether a message of `size` bytes may be sent now."""
        if not self.messages:
            return True
        terms = self.terms
        return self.messages < terms.messages and self.bytes + size <= terms.bytes


class Inbox:
    """Messages of one topic that have come and were not taken yet.

    credit: how many more the broker may send. waiters: who waits for a message; of a durable topic,
    each has asked for some. followers: who waits for those that are `coming`, and has not asked.
    cost: what the newest message counted of the credit. is_over: of a subscription that was closed.
    """

    def __init__(self, topic: str, prefetch: int) -> None:
        self.topic = topic
        self.prefetch = prefetch
        self.messages: deque[Received] = deque()
        self.waiters: deque[Slot] = deque()
        self.followers: deque[Slot] = deque()
        self.credit = 0
        self.arrived = 0
        self.missed = 0
        self.cost = 1
        self.is_over = False
        self._rest: dict[int, int] = {}  # by request, how many of its messages are on their way

    @property
    def coming(self) -> int:
        """How many durable messages are known to be on their way."""
        return sum(self._rest.values())

    def count(self, envelope: Envelope) -> None:
        """A durable message has come, one of `credit` that were given together to a request."""
        left = self._rest.pop(envelope.to, max(1, envelope.credit)) - 1
        if left:
            self._rest[envelope.to] = left

    def put(self, received: Received) -> None:
        """Give it to who waits longest, or keep it."""
        self.arrived += 1
        if self.credit > 0:
            self.credit -= 1
        if not self._give(received):
            self.messages.append(received)

    def put_back(self, received: Received) -> None:
        """It was given to somebody who doesn't take it: it is still the next one."""
        if not self._give(received):
            self.messages.appendleft(received)

    def _give(self, received: Received) -> bool:
        for waiting in (self.followers, self.waiters):
            while waiting:
                slot = waiting.popleft()
                if not slot.done:
                    slot.fill(received)
                    return True
        return False

    def leave(self, slot: Slot) -> None:
        """It is waited for no more."""
        for waiting in (self.followers, self.waiters):
            with suppress(ValueError):
                waiting.remove(slot)

    def lose(self) -> None:
        """The connection has ended: nothing more comes over it. Who waits has to ask again."""
        self.credit = 0
        self._rest.clear()
        waiting = [*self.followers, *self.waiters]
        self.followers.clear()
        self.waiters.clear()
        for slot in waiting:
            slot.fill(lost=True)

    def clear(self) -> None:
        """Drop what nobody has taken."""
        self.messages.clear()
