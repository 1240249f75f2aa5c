"""One transient topic: messages in memory, delivered at most once, and who takes part in it.

A topic is bounded. Who sends to one that is full waits, is refused, or pushes out the oldest, as
the topic's settings say. Whoever waits for room is not overtaken. Receivers ask for messages in
advance (*credit*); each message goes to one of them, in turn, and only as far as their credit goes.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

from zenos.bus.envelope import Data, Kind, close_all
from zenos.core import limits
from zenos.core.messages import TopicSettings

if TYPE_CHECKING:
    from zenos.bus.meetings import Talk
    from zenos.bus.peer import Peer


class Waiting:
    """A message in the broker. It owns its descriptors until it is handed on or dropped.

    deadline: on the event loop's clock; 0: none. caller: who wants a reply to it. is_gone: it was
    handed on, withdrawn or is too late, and is passed over. is_held: it waits for room. size: what
    it counts against a limit of bytes.
    """

    __slots__ = (
        "caller",
        "deadline",
        "descriptors",
        "frame",
        "id",
        "is_gone",
        "is_held",
        "kind",
        "priority",
        "sender",
        "size",
        "topic",
    )

    def __init__(
        self,
        kind: Kind,
        priority: int,
        sender: Peer,
        topic: str,
        number: int,
        frame: Data,
        descriptors: tuple[int, ...],
        deadline: float,
        caller: Peer | None,
    ) -> None:
        self.kind = kind
        self.priority = priority
        self.sender = sender
        self.topic = topic
        self.id = number
        self.frame = frame
        self.descriptors = descriptors
        self.deadline = deadline
        self.caller = caller
        self.is_gone = False
        self.is_held = False
        self.size = len(frame) + limits.DESCRIPTOR_BYTES * len(descriptors)

    def drop(self) -> None:
        """Let go of all that it holds."""
        self.is_gone = True
        self.frame = b""
        close_all(self.descriptors)
        self.descriptors = ()


class Backlog:
    """Messages that wait, the highest priority first, then in the order of arrival. Bounded."""

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.count = 0
        self.bytes = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._queues: dict[int, deque[Waiting]] = {}
        self._priorities: list[int] = []  # those that have messages, negative, in order

    def has_room(self, size: int) -> bool:
        """Whether one of `size` bytes fits; into an empty one any does."""
        if not self.count:
            return True
        return self.count < self._messages_max and self.bytes + size <= self._bytes_max

    def add(self, item: Waiting) -> None:
        """Put it behind its equals."""
        queue = self._queues.get(item.priority)
        if queue is None:
            queue = self._queues[item.priority] = deque()
            insort(self._priorities, -item.priority)
        queue.append(item)
        self.count += 1
        self.bytes += item.size

    def head(self) -> Waiting | None:
        """The next one."""
        while self._priorities:
            queue = self._queues[-self._priorities[0]]
            while queue and queue[0].is_gone:
                queue.popleft()
            if queue:
                return queue[0]
            del self._queues[-self._priorities.pop(0)]
        return None

    def take(self) -> Waiting:
        """Take out what `head` returned."""
        item = self._queues[-self._priorities[0]].popleft()
        self.count -= 1
        self.bytes -= item.size
        return item

    def remove(self, item: Waiting) -> None:
        """Drop one that waits, wherever it stands."""
        self.count -= 1
        self.bytes -= item.size
        item.drop()

    def oldest(self) -> Waiting | None:
        """What makes room first: the lowest priority's first."""
        for priority in reversed(self._priorities):
            for item in self._queues[-priority]:
                if not item.is_gone:
                    return item
        return None

    def clear(self) -> None:
        """Drop everything."""
        while (item := self.head()) is not None:
            self.remove(item)


class Subscription:
    """What one subscriber of a topic has not taken yet: the newest, as many as fit."""

    def __init__(self, settings: TopicSettings) -> None:
        self.backlog = Backlog(
            min(settings.messages, limits.SUBSCRIPTION_MESSAGES_MAX),
            min(settings.bytes, limits.SUBSCRIPTION_BYTES_MAX),
        )
        self.credit = 0
        self.missed = 0  # since the last one that went out

    def add(self, item: Waiting) -> None:
        """Keep a message; the oldest give way to it."""
        while not self.backlog.has_room(item.size):
            oldest = self.backlog.oldest()
            if oldest is None:
                break
            self.backlog.remove(oldest)
            self.missed += 1
        self.backlog.add(item)


class TransientTopic:
    """Messages of one name, and the peers that take part."""

    def __init__(self, name: str, settings: TopicSettings) -> None:
        self.name = name
        self.settings = settings
        self.backlog = Backlog(settings.messages, settings.bytes)
        self.blocked: deque[Waiting] = deque()  # that wait for room
        self.credit: dict[Peer, int] = {}  # of receivers; who was served last stands last
        self.subscriptions: dict[Peer, Subscription] = {}
        self.talk: Talk | None = None  # once it was called
        self._deadlines: list[tuple[float, int, Waiting]] = []
        self._number = 0

    @property
    def is_empty(self) -> bool:
        """Whether nobody needs it any more."""
        talks = self.talk is not None and self.talk.meetings
        return not (
            self.backlog.count or self.blocked or self.credit or self.subscriptions or talks
        )

    def add(self, item: Waiting) -> bool:
        """Take a message in; False when it has to wait for room."""
        if self.blocked or not self.backlog.has_room(item.size):
            item.is_held = True
            self.blocked.append(item)
            self._watch(item)
            return False
        self.backlog.add(item)
        self._watch(item)
        return True

    def push_out(self, item: Waiting) -> list[Waiting]:
        """Take a message in, whatever it costs: those that had to go, not dropped yet."""
        gone = []
        while not self.backlog.has_room(item.size):
            oldest = self.backlog.oldest()
            if oldest is None:
                break
            gone.append(oldest)
            self.backlog.count -= 1
            self.backlog.bytes -= oldest.size
            oldest.is_gone = True
        self.backlog.add(item)
        self._watch(item)
        return gone

    def admit(self) -> Waiting | None:
        """The first that waited for room and has it now; it is in."""
        while self.blocked and self.blocked[0].is_gone:
            self.blocked.popleft()
        if not self.blocked or not self.backlog.has_room(self.blocked[0].size):
            return None
        item = self.blocked.popleft()
        item.is_held = False
        self.backlog.add(item)
        return item

    def receiver(self) -> Peer | None:
        """Who gets the next message: who has waited longest and reads what it is sent."""
        for peer in self.credit:
            if peer.has_room:
                return peer
        return None

    def served(self, peer: Peer) -> None:
        """It was given one: it is the others' turn."""
        left = self.credit[peer] - 1
        if left and len(self.credit) == 1:
            self.credit[peer] = left
            return
        del self.credit[peer]
        if left:
            self.credit[peer] = left

    def late(self, now: float) -> list[Waiting]:
        """Those whose deadline has passed; see `remove`."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            item = heapq.heappop(self._deadlines)[2]
            if not item.is_gone:
                found.append(item)
        return found

    def next_deadline(self) -> float:
        """The earliest; 0 when there is none."""
        return self._deadlines[0][0] if self._deadlines else 0.0

    def remove(self, item: Waiting) -> None:
        """Drop a message that waits here, in or for room."""
        if item.is_held:
            item.drop()
        else:
            self.backlog.remove(item)

    def _watch(self, item: Waiting) -> None:
        if item.deadline:
            if len(self._deadlines) > 2 * self.backlog.count + 1000:
                self._deadlines = [entry for entry in self._deadlines if not entry[2].is_gone]
                heapq.heapify(self._deadlines)
            self._number += 1
            heapq.heappush(self._deadlines, (item.deadline, self._number, item))
