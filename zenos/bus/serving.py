"""The server's ends of direct sockets, and in which order it does what comes over them.

A server has the calls until one of its threads is free. Then it begins the most urgent, and of
equals the first. What waits at the broker for the same topic takes part in that: of that it knows
by a word how urgent it is, and asks for it when its turn has come.
"""

from __future__ import annotations

import heapq
import itertools
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from zenos.bus.end import End
from zenos.bus.envelope import FrameError, close_all
from zenos.bus.inbox import Inbox, Received, ReceivedDescriptors
from zenos.bus.order import Item
from zenos.bus.stream import Frame
from zenos.bus.terms import Want
from zenos.core import limits

if TYPE_CHECKING:
    from zenos.bus.session import Session

_ONE = msgspec.msgpack.encode(Want(count=1))
FEW: Final = 1000  # entries of calls that may have been taken back
_Entry: TypeAlias = "tuple[int, int, ServerEnd, int]"  # urgency, place among equals, where, its id


class Desk:
    """What waits for the threads that serve one topic.

    noted: how urgent is what waits at the broker, and its place among the equals here; None where
    nothing does, or it was asked for.
    """

    def __init__(self, session: Session, inbox: Inbox) -> None:
        self.inbox = inbox
        self._session = session
        self.ends: dict[int, ServerEnd] = {}
        self.noted: tuple[int, int] | None = None
        self._calls: list[_Entry] = []
        self._many = FEW
        self._numbers = itertools.count()

    def add(self, end: ServerEnd, received: Received) -> None:
        """A call has come."""
        if len(self._calls) >= self._many:  # most may have been taken back
            self._calls = [entry for entry in self._calls if entry[2].knows(entry[3])]
            heapq.heapify(self._calls)
            self._many = 2 * len(self._calls) + FEW
        envelope = received.envelope
        heapq.heappush(self._calls, (-envelope.priority, next(self._numbers), end, envelope.id))

    def note(self, priority: int) -> None:
        """So urgent a message waits at the broker."""
        if self.noted is None or -priority < self.noted[0]:
            self.noted = (-priority, next(self._numbers))

    @property
    def is_due(self) -> bool:
        """Whether somebody is free for something that waits."""
        return bool(self._calls or self.noted) and self._free() > 0

    def hand_out(self) -> None:
        """Give what waits to those who are free. Whom the broker will give to is not."""
        inbox = self.inbox
        while (self._calls or self.noted) and self._free() > 0:
            head = self._head()
            if self.noted is not None and (head is None or self.noted < head[:2]):
                self.noted = None
                inbox.credit += 1
                self._session.emit("want", inbox.topic, _ONE, kind="command")
            elif head is not None:
                heapq.heappop(self._calls)
                received = head[2].begin(head[3])
                if received is not None:
                    inbox.put_back(received)

    def _free(self) -> int:
        waiters = self.inbox.waiters
        if not waiters:
            return 0
        return sum(not slot.done for slot in waiters) - self.inbox.credit

    def _head(self) -> _Entry | None:
        """The next call that is still wanted."""
        while self._calls:
            *_, end, number = self._calls[0]
            if end.has(number):
                return self._calls[0]
            heapq.heappop(self._calls)
        return None


class ServerEnd(End):
    """Calls that one peer makes. begun: those that have no reply yet."""

    frame_bytes_max = limits.DIRECT_CALL_BYTES_MAX + limits.FRAME_HEADER_BYTES_MAX

    def __init__(self, *arguments: Any, desk: Desk) -> None:
        super().__init__(*arguments)
        self.desk = desk
        self.begun: set[int] = set()
        self._calls: dict[int, tuple[Received, float]] = {}  # not begun, and when it is too late
        self._bytes = 0

    @property
    def waiting(self) -> int:
        """How many calls are not begun."""
        return len(self._calls)

    def take(self, frame: Frame) -> None:
        """See End."""
        envelope, data, descriptors = frame
        if (
            envelope.topic != self.topic
            or envelope.sender != self.peer
            or envelope.verb not in ("call", "withdraw")
            or envelope.durable  # or whoever serves it would acknowledge it to the broker
        ):
            close_all(descriptors)
            raise FrameError("cannot take this from a direct socket")
        if envelope.verb == "withdraw":
            close_all(descriptors)
            self._drop(envelope.to)
            return
        received = (ReceivedDescriptors if descriptors else Received)(envelope, data, descriptors)
        number, size = envelope.id, len(data)
        if (
            not 0 <= envelope.to < limits.DIRECT_PENDING_MAX
            or not limits.PRIORITY_MIN <= envelope.priority <= limits.PRIORITY_MAX
            or number in self._calls
            or number in self.begun
            or not self._has_room(size)
        ):
            raise FrameError("cannot take this call from a direct socket")
        if self.is_over:
            return  # its caller knows, or will
        late = time.monotonic() + envelope.left_s if envelope.deadline else 0.0
        self._calls[number] = (received, late)
        self._bytes += size
        self.desk.add(self, received)

    def knows(self, number: int) -> bool:
        """Whether a call waits here, as far as was heard."""
        return number in self._calls

    def has(self, number: int) -> bool:
        """Whether a call is to be done: it wasn't taken back, nor is it too late."""
        known = self._calls.get(number)
        if known is None:
            return False
        if self.marks.is_wanted(known[0].envelope.to, number) and not (
            0 < known[1] <= time.monotonic()
        ):
            return True
        self._drop(number)
        return False

    def begin(self, number: int) -> Received | None:
        """A thread is to do it, as `has` says; None when its caller has just taken it back."""
        received, _ = self._calls[number]
        self._drop(number)
        self.used = time.monotonic()
        if not self.marks.begin(received.envelope.to, number):
            self._say(number)
            return None
        self.begun.add(number)
        received.end = self
        return received

    def reply(self, call: int, item: Item) -> None:
        """Send the reply to a call, if it is still wanted. Takes the item's descriptors."""
        self.begun.discard(call)
        if self.is_closed:
            close_all(item.descriptors)
            return
        self.send(item)
        self._close_if_done()

    def finish(self, *, tell_broker: bool = False) -> None:
        """Begin nothing that came here any more; what is begun is answered."""
        if self.is_over:
            return
        self.is_over = True
        self._part(tell_broker=tell_broker)
        self._say(0)
        self._close_if_done()

    def lost(self) -> None:
        """The caller has gone, or makes no sense."""
        self.close()

    def flushed(self) -> None:
        """See End."""
        self._close_if_done()

    def close(self) -> None:
        """See End."""
        was_over = self.is_over
        super().close()
        if not was_over:
            self._part(tell_broker=True)

    def _part(self, *, tell_broker: bool) -> None:
        for number in list(self._calls):
            self._drop(number)
        if tell_broker and self.session.is_connected:
            credit = int(not self.is_closed)  # we want no other soon, unless this one was lost
            self.session.emit("indirect", self.topic, kind="command", to=self.number, credit=credit)
        self.directs.finished(self)

    def _say(self, call: int) -> None:
        """That a call is not begun and won't be; 0: nothing more."""
        if not self.is_closed:
            made: list[Item] = []
            self.session.emit("indirect", self.topic, kind="command", to=call, into=made)
            self.send(made[0])

    def _has_room(self, size: int) -> bool:
        """Whether a caller that keeps to the rules may have sent so much."""
        if self._fits(size):
            return True
        for number in list(self._calls):
            self.has(number)  # what was taken back, and not withdrawn, goes
        return self._fits(size)

    def _fits(self, size: int) -> bool:
        most = limits.DIRECT_BYTES_MAX + limits.DIRECT_CALL_BYTES_MAX
        return len(self._calls) < limits.DIRECT_PENDING_MAX and self._bytes + size <= most

    def _drop(self, number: int) -> None:
        known = self._calls.pop(number, None)
        if known is not None:
            self._bytes -= len(known[0].frame)

    def _close_if_done(self) -> None:
        if self.is_over and not self.begun and not self.is_stuck:
            self.close()
