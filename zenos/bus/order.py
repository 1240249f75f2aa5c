"""The order in which messages are sent over a link.

By kind first, then by priority, then by the least expected latency `L = D / V + l`: a message's
bytes over the link's measured speed, and the link's own latency. A message that waits ages: it is
served as if its L were smaller by `ageing` seconds for each second that it has waited.

The key of a message that came at time t is `L + ageing · t`. That the time now doesn't appear in it
(it would be the same for all) has two consequences. Nothing has to be sorted again while messages
wait. And large ones get through: of the messages of its kind and priority, one that comes more than
`L / ageing` seconds after another has the larger key, whatever its size, and can't overtake it.

First in, first out holds for each sender, topic, kind and priority: these are lanes, and it is the
first of each lane that competes.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import Final

import msgspec

from zenos.bus.envelope import Data, Kind, close_all
from zenos.core import limits
from zenos.core.errors import BusyError

KINDS: Final[tuple[Kind, ...]] = ("command", "state", "data")
SPEED_BYTES_S: Final = 1e9  # of a link that hasn't been measured yet
MEMORY_BYTES: Final = 4 * limits.MIB  # a measured speed is a mean over about so many bytes


class Policy(msgspec.Struct, frozen=True):
    """Which kind goes first, and how fast messages age.

    order: each kind once. ageing: seconds of expected latency that a message is forgiven for each
    second of waiting.
    """

    order: tuple[Kind, ...] = KINDS
    ageing: float = 1.0


class Link:
    """What is known of a connection: its speed (bytes a second) and its latency (seconds)."""

    def __init__(self, speed: float = SPEED_BYTES_S, latency_s: float = 0.0) -> None:
        self.speed = speed
        self.latency_s = latency_s

    def observe(self, sent_bytes: int, seconds: float) -> None:
        """So many bytes have taken so long, while there was always something to send."""
        if seconds > 0 and sent_bytes > 0:
            weight = sent_bytes / (sent_bytes + MEMORY_BYTES)
            # The mean is one of times, not of speeds: seconds per byte.
            pace = (1 - weight) / self.speed + weight * seconds / sent_bytes
            self.speed = 1 / pace

    def expected_s(self, size: int) -> float:
        """The expected latency L of a message of `size` bytes."""
        return self.latency_s + size / self.speed


class Item(msgspec.Struct, frozen=True):
    """A message that waits: its place in the order, its frame, and the descriptors that go with it.

    Whoever has the item owns the descriptors.
    """

    kind: Kind
    priority: int
    sender: str
    topic: str
    frame: Data
    deadline: float = 0.0  # on the clock of `put` and `take`; 0: none
    descriptors: tuple[int, ...] = ()


_Lane = tuple[Kind, int, str, str]


class SendQueue:
    """Messages that wait for a link. Bounded in messages and in bytes; not thread-safe.

    `now` is any clock that doesn't go back, in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        link: Link,
        messages_max: int = limits.SEND_QUEUE_FRAMES_MAX,
        bytes_max: int = limits.SEND_QUEUE_BYTES_MAX,
    ) -> None:
        self.policy = policy
        self.link = link
        self.expired = 0  # messages whose deadline passed while they waited
        self.waiting_bytes = 0
        self.count = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._rank = {kind: rank for rank, kind in enumerate(policy.order)}
        # Of each message its number, when it came, and its expected latency then.
        self._lanes: dict[_Lane, deque[tuple[int, float, float, Item]]] = {}
        self._heads: list[tuple[int, int, float, int, _Lane]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return self.count

    def has_room(self, size: int) -> bool:
        """Whether a message of `size` bytes may be put. An empty queue takes one of any size."""
        if not self.count:
            return True
        return self.count < self._messages_max and self.waiting_bytes + size <= self._bytes_max

    def put(self, item: Item, now: float, *, always: bool = False) -> None:
        """Queue a message. BusyError when the queue is full, unless it must be taken `always`."""
        size = len(item.frame)
        if not (always or self.has_room(size)):
            raise BusyError(
                f"cannot send more: {self.count} messages with {self.waiting_bytes} bytes wait"
                " and aren't read",
                retry_after_s=1,
            )
        name = (item.kind, item.priority, item.sender, item.topic)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = deque()
        lane.append((next(self._numbers), now, self.link.expected_s(size), item))
        self.count += 1
        self.waiting_bytes += size
        if len(lane) == 1:
            self._compete(name)

    def take(self, now: float, bytes_max: int) -> list[Item]:
        """The next messages, in order: one, and more while they are `bytes_max` bytes together."""
        found: list[Item] = []
        size = 0
        if not self.count:
            return found
        if len(self._lanes) == 1:
            size = self._take_lane(found, now, bytes_max)
            if not self.count:
                return found
        while (name := self._next()) is not None:
            item = self._lanes[name][0][3]
            late = 0 < item.deadline <= now
            if found and not late and size + len(item.frame) > bytes_max:
                break
            self._remove_head(name)
            if late:
                self.expired += 1
                close_all(item.descriptors)
                continue
            found.append(item)
            size += len(item.frame)
        return found

    def _take_lane(self, found: list[Item], now: float, bytes_max: int) -> int:
        """Take from the only lane, in which there is nothing to compare; the bytes taken.

        One that is too late is left to `take`.
        """
        ((name, lane),) = self._lanes.items()
        size = 0
        while lane:
            item = lane[0][3]
            bytes_ = len(item.frame)
            if 0 < item.deadline <= now or (found and size + bytes_ > bytes_max):
                break
            lane.popleft()
            found.append(item)
            size += bytes_
        if found:
            self.count -= len(found)
            self.waiting_bytes -= size
            self._heads = []
            if lane:
                self._compete(name)
            else:
                self._lanes = {}
        return size

    def use(self, policy: Policy) -> None:
        """Go on with another policy. What waits keeps the age that it has."""
        self.policy = policy
        self._rank = {kind: rank for rank, kind in enumerate(policy.order)}
        self._heads = []
        for name in self._lanes:
            self._compete(name)

    def drop(self, kind: Kind, topic: str) -> list[Item]:
        """Take out all that wait of a kind on a topic, whoever sent them. They are the caller's."""
        found: list[Item] = []
        for name in [name for name in self._lanes if (name[0], name[3]) == (kind, topic)]:
            for *_, item in self._lanes.pop(name):
                found.append(item)
                self.count -= 1
                self.waiting_bytes -= len(item.frame)
        return found

    def clear(self) -> list[Item]:
        """Take out everything, in the order of arrival."""
        waiting = sorted(entry[::3] for lane in self._lanes.values() for entry in lane)
        self._lanes, self._heads, self.count, self.waiting_bytes = {}, [], 0, 0
        return [item for _, item in waiting]

    def _compete(self, name: _Lane) -> None:
        heapq.heappush(self._heads, self._head(name))

    def _head(self, name: _Lane) -> tuple[int, int, float, int, _Lane]:
        number, came, latency_s, _ = self._lanes[name][0]
        key = latency_s + self.policy.ageing * came
        return (self._rank[name[0]], -name[1], key, number, name)

    def _next(self) -> _Lane | None:
        """The lane that is served next. Heads that were dropped meanwhile are passed over."""
        while self._heads:
            *_, number, name = self._heads[0]
            lane = self._lanes.get(name)
            if lane and lane[0][0] == number:
                return name
            heapq.heappop(self._heads)
        return None

    def _remove_head(self, name: _Lane) -> None:
        lane = self._lanes[name]
        *_, item = lane.popleft()
        self.count -= 1
        self.waiting_bytes -= len(item.frame)
        if lane:
            heapq.heapreplace(self._heads, self._head(name))
        else:
            heapq.heappop(self._heads)
            del self._lanes[name]
