"""One durable topic: what waits, what is leased, what is dead, and which ids it has seen."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from zenos.core import limits
from zenos.core.errors import ConflictError, NotFoundError
from zenos.core.messages import Message, MessageChanges, TopicSettings

LATE: Final = "its deadline passed before it was delivered"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message on loan. number: of this delivery, to acknowledge it by. until: kernel time."""

    number: int
    message: Message
    receiver: str
    until: float


class Topic:
    """Messages of one name, highest priority first, then in the order of arrival.

    Heaps hold numbers of messages and deliveries that may be gone or have moved on since: they are
    passed over when they come up.
    """

    def __init__(self, name: str, settings: TopicSettings) -> None:
        self.name = name
        self.settings = settings
        self.live: dict[int, Message] = {}  # waiting and leased, in the order of arrival
        self.dead: dict[int, Message] = {}  # in the order of their deaths
        self.leases: dict[int, Delivery] = {}
        self.bytes = 0  # of the live ones
        # Requests in the order in which they came: who receives, how many, for how long; and what
        # is to be sent as soon as there is room.
        self.receivers: dict[int, tuple[str, int, float]] = {}
        self.senders: dict[int, Message] = {}
        self._leased: dict[int, int] = {}  # a message's number → its delivery's
        self._numbers: dict[str, int] = {}  # by id, of all messages that are known
        self._done: deque[Message] = deque()
        self._ready: list[tuple[int, int]] = []  # priority (negative), number
        self._due: list[tuple[float, int]] = []
        self._delayed: dict[int, float] = {}  # those that are not ready yet, and when they will be
        self._deadlines: list[tuple[float, int]] = []
        self._ends: list[tuple[float, int]] = []  # of leases

    # -- looking

    @property
    def is_empty(self) -> bool:
        """Whether nothing needs it any more."""
        return not (self._numbers or self.receivers or self.senders)

    def knows(self, id_: str) -> bool:
        """Whether a message of this id was accepted, and not so long ago that it is forgotten."""
        return id_ in self._numbers

    def waiting(self) -> Iterator[Message]:
        """Those that nobody has, in the order of arrival."""
        return (message for number, message in self.live.items() if number not in self._leased)

    def has_ready(self) -> bool:
        """Whether one may be delivered now."""
        while self._ready and not self._is_ready(self._ready[0][1]):
            heapq.heappop(self._ready)
        return bool(self._ready)

    def wake(self) -> float:
        """When something happens here by itself; infinite when nothing does."""
        while self._ends and self._ends[0][1] not in self.leases:
            heapq.heappop(self._ends)
        while self._due and self._delayed.get(self._due[0][1]) != self._due[0][0]:
            heapq.heappop(self._due)
        while self._deadlines and not self._waits(self._deadlines[0][1]):
            heapq.heappop(self._deadlines)
        firsts = [heap[0][0] for heap in (self._ends, self._due, self._deadlines) if heap]
        if self._done:
            firsts.append(self._done[0].ended + limits.DEDUPLICATION_S)
        firsts += [message.deadline for message in self.senders.values() if message.deadline]
        return min(firsts, default=math.inf)

    # -- coming in

    def restore(self, message: Message) -> None:
        """Take back a message that was remembered."""
        self._numbers[message.id] = message.number
        if message.dead is not None:
            self.dead[message.number] = message
        elif message.is_done:
            self._done.append(message)
        else:
            self._enqueue(message)

    def add(self, message: Message, changes: MessageChanges) -> None:
        """Take a new message."""
        self._numbers[message.id] = message.number
        self._enqueue(message)
        changes.put[message.number] = message

    def make_room(self, message: Message, changes: MessageChanges) -> bool:
        """Whether it fits; a topic that drops its oldest makes it fit, if it can."""
        while self.live and (
            len(self.live) >= self.settings.messages
            or self.bytes + message.size > self.settings.bytes
        ):
            oldest = next(self.waiting(), None)
            if self.settings.when_full != "drop_oldest" or oldest is None:
                return False
            self._remove(oldest, changes)
        return True

    # -- going out

    def lease(self, number: int, receiver: str, until: float) -> Delivery:
        """Lend the first that is ready. See `has_ready`."""
        message = self.live[heapq.heappop(self._ready)[1]]
        delivery = Delivery(number=number, message=message, receiver=receiver, until=until)
        self.leases[number] = delivery
        self._leased[message.number] = number
        heapq.heappush(self._ends, (until, number))
        return delivery

    def extend(self, number: int, id_: str, until: float) -> None:
        """Let a lease end later, or sooner. ConflictError when it has ended."""
        delivery = self._lease(number, id_, "extend the lease")
        self.leases[number] = replace(delivery, until=until)
        heapq.heappush(self._ends, (until, number))

    def acknowledge(
        self, number: int, id_: str, now: float, changes: MessageChanges, *, old: bool
    ) -> None:
        """Be done with a message. old: it was delivered before the last restart.

        Nothing happens when it was acknowledged before. ConflictError when its lease has ended.
        """
        known = self._numbers.get(id_)
        if known is not None and known not in self.live and known not in self.dead:
            return
        if old and known in self.live and known not in self._leased:
            message = self.live[known]
        else:
            message = self._lease(number, id_, "acknowledge a message").message
            self._end_lease(number)
        self._drop_live(message)
        done = replace(message, body=b"", headers={}, ended=now)
        self._done.append(done)
        changes.put[message.number] = done

    def give_back(
        self, number: int, id_: str, reason: str, due: float, now: float, changes: MessageChanges
    ) -> None:
        """A delivery failed. ConflictError when its lease has ended."""
        message = self._lease(number, id_, "give back a message").message
        self._end_lease(number)
        self._fail(message, reason, due, now, changes)

    def bury(self, number: int, id_: str, reason: str, now: float, changes: MessageChanges) -> None:
        """It cannot be delivered, to nobody. ConflictError when its lease has ended."""
        message = self._lease(number, id_, "give up a message").message
        self._end_lease(number)
        self._bury(message, reason, now, changes)

    def take_back(self, number: int, id_: str) -> None:
        """A delivery never reached its receiver. ConflictError when its lease has ended."""
        message = self._lease(number, id_, "take back a message").message
        self._end_lease(number)
        self._queue(message)

    def let_go(self, receiver: str, now: float, changes: MessageChanges) -> list[int] | None:
        """All deliveries to a receiver failed, and it wants and sends no more.

        Returns the requests that were withdrawn; None: it had nothing to do with this topic.
        """
        receiving = [request for request, (who, *_) in self.receivers.items() if who == receiver]
        sending = [request for request, m in self.senders.items() if m.sender == receiver]
        for request in receiving:
            del self.receivers[request]
        for request in sending:
            del self.senders[request]
        numbers = [number for number, lease in self.leases.items() if lease.receiver == receiver]
        for number in numbers:
            message = self.leases[number].message
            self._end_lease(number)
            self._fail(message, "its receiver went away", 0.0, now, changes)
        requests = receiving + sending
        return requests if requests or numbers else None

    # -- time

    def expire(self, now: float, changes: MessageChanges) -> None:
        """Leases that ran out are failed deliveries; messages past their deadline are dead."""
        while self._ends and self._ends[0][0] <= now:
            number = heapq.heappop(self._ends)[1]
            lease = self.leases.get(number)
            if lease is not None and lease.until <= now:
                self._end_lease(number)
                reason = "its receiver did not acknowledge it in time"
                self._fail(lease.message, reason, 0.0, now, changes)
        while self._deadlines and self._deadlines[0][0] <= now:
            number = heapq.heappop(self._deadlines)[1]
            if self._waits(number):
                self._bury(self.live[number], LATE, now, changes)

    def wake_due(self, now: float) -> None:
        """Those whose time has come are ready."""
        while self._due and self._due[0][0] <= now:
            due, number = heapq.heappop(self._due)
            if self._delayed.get(number) == due:
                del self._delayed[number]
                heapq.heappush(self._ready, (-self.live[number].priority, number))

    def forget(self, now: float, changes: MessageChanges) -> None:
        """Forget ids that duplicates can no longer have, and dead messages beyond what is kept."""
        while self._done and (
            len(self._done) > limits.DEDUPLICATION_IDS_MAX
            or self._done[0].ended + limits.DEDUPLICATION_S <= now
        ):
            self._erase(self._done.popleft(), changes)
        while len(self.dead) > limits.DEAD_MESSAGES_KEPT:
            number = next(iter(self.dead))
            self._erase(self.dead.pop(number), changes)

    # -- by hand

    def replay(self, ids: list[str] | None, changes: MessageChanges) -> int:
        """Deliver dead messages again, as if they were new; returns how many.

        NotFoundError when one of `ids` is not dead; then none is touched.
        """
        chosen = None if ids is None else set(ids)
        again = [m for m in self.dead.values() if chosen is None or m.id in chosen]
        unknown = sorted((chosen or set()) - {m.id for m in again})
        if unknown:
            raise NotFoundError(
                f"cannot find a dead message {unknown[0][:64]!r} on {self.name}: 'zenos bus dead "
                f"{self.name}' lists them"
            )
        for message in again:
            del self.dead[message.number]
            fresh = replace(message, dead=None, ended=0.0, failures=0, due=0.0, deadline=0.0)
            self._enqueue(fresh)
            changes.put[fresh.number] = fresh
        return len(again)

    def purge(self, select: str, changes: MessageChanges) -> int:
        """Drop what waits, or what is dead; returns how many."""
        if select == "waiting":
            gone = list(self.waiting())
            for message in gone:
                self._remove(message, changes)
            return len(gone)
        count = len(self.dead)
        for message in self.dead.values():
            self._erase(message, changes)
        self.dead.clear()
        return count

    # -- inside

    def _enqueue(self, message: Message) -> None:
        self.live[message.number] = message
        self.bytes += message.size
        self._queue(message)
        if message.deadline:
            heapq.heappush(self._deadlines, (message.deadline, message.number))

    def _queue(self, message: Message) -> None:
        if message.due:
            self._delayed[message.number] = message.due
            heapq.heappush(self._due, (message.due, message.number))
        else:
            heapq.heappush(self._ready, (-message.priority, message.number))

    def _waits(self, number: int) -> bool:
        return number in self.live and number not in self._leased

    def _is_ready(self, number: int) -> bool:
        return self._waits(number) and number not in self._delayed

    def _lease(self, number: int, id_: str, what: str) -> Delivery:
        # With the id, as numbers of deliveries are told apart over restarts by the clock alone.
        if number not in self.leases or self.leases[number].message.id != id_:
            raise ConflictError(
                f"cannot {what} of {self.name}: the lease has ended, the message goes to another "
                "receiver; ask for a longer lease, or extend it while you work"
            )
        return self.leases[number]

    def _end_lease(self, number: int) -> None:
        del self._leased[self.leases.pop(number).message.number]

    def _fail(
        self, message: Message, reason: str, due: float, now: float, changes: MessageChanges
    ) -> None:
        failures = message.failures + 1
        message = replace(message, failures=failures)
        if failures >= self.settings.deliveries:
            self._bury(message, reason, now, changes)
        elif 0 < message.deadline <= now:
            self._bury(message, LATE, now, changes)
        else:
            backoff_s = min(
                self.settings.backoff_s * 2 ** min(failures - 1, 60), limits.LEASE_S_MAX
            )
            due = max(due, now + backoff_s if backoff_s else 0.0)
            message = replace(message, due=due)
            self.live[message.number] = changes.put[message.number] = message
            self._queue(message)

    def _bury(self, message: Message, reason: str, now: float, changes: MessageChanges) -> None:
        self._drop_live(message)
        self.dead[message.number] = changes.put[message.number] = replace(
            message, dead=reason, ended=now
        )

    def _remove(self, message: Message, changes: MessageChanges) -> None:
        self._drop_live(message)
        self._erase(message, changes)

    def _drop_live(self, message: Message) -> None:
        self._delayed.pop(message.number, None)
        self.bytes -= self.live.pop(message.number).size

    def _erase(self, message: Message, changes: MessageChanges) -> None:
        if self._numbers.get(message.id) == message.number:
            del self._numbers[message.id]
        changes.put.pop(message.number, None)
        changes.deleted.append(message.number)
