"""What has come, and who waits for it; what a session (see session.py) keeps of a connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zenos.bus.envelope import Data, Envelope, body_in, close_all
from zenos.bus.terms import Terms, decode
from zenos.core.errors import UnavailableError, ZenosError, from_code

if TYPE_CHECKING:
    from zenos.bus.serving import Desk, ServerEnd

BEGUN_MAX: Final = 256  # requests that are remembered though all may have come


class Wish(NamedTuple):
    """What somebody waits for. lease_s: for how long a durable message is wanted; wanted: how
    many for this one alone, at least one; prefetch: how many may come in advance, for all."""

    lease_s: float | None = None
    wanted: int = 1
    prefetch: int = 1


ANY: Final = Wish()


class Asked:
    """A request for durable messages. count: how many it still stands for; left: how many of its
    messages are known to be on their way. is_withdrawn: nobody wants them any more."""

    __slots__ = ("count", "is_withdrawn", "lease_s", "left")

    def __init__(self, count: int, lease_s: float | None, left: int = 0) -> None:
        self.count = count
        self.lease_s = lease_s
        self.left = left
        self.is_withdrawn = False


class Slot:
    """Something that is waited for. lost: the connection ended before it came."""

    __slots__ = ("done", "inbox", "lost", "on_done", "value", "wish")

    def __init__(self, inbox: Inbox | None = None, wish: Wish = ANY) -> None:
        self.done = False
        self.lost = False
        self.value: Any = None
        self.inbox = inbox
        self.wish = wish
        self.on_done: Callable[[], object] | None = None

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
            if received.envelope.verb != "answer":  # else it is an error, and this one's alone
                self.inbox.put_back(received)


class Received:
    """A message that has come. Who has it owns its descriptors."""

    __slots__ = ("descriptors", "end", "envelope", "frame", "lease_s", "missed")

    def __init__(self, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]) -> None:
        self.envelope = envelope
        self.frame = frame
        self.descriptors = descriptors
        self.end: ServerEnd | None = None  # of a direct socket, if it came over one
        self.missed = 0  # messages that were too many for this subscriber, before this one
        self.lease_s: float | None = None  # for which a durable one was asked for

    @property
    def body(self) -> memoryview:
        """Where it lies in the frame."""
        return body_in(self.frame)


class ReceivedPart(Received):
    """A message that came with others in one frame; its envelope has its body."""

    __slots__ = ()

    def __init__(self, envelope: Envelope) -> None:
        super().__init__(envelope, b"", ())

    @property
    def body(self) -> memoryview:
        """Its own."""
        return memoryview(self.envelope.body)


class ReceivedDescriptors(Received):
    """A message with descriptors: nobody may ever look at it, and they must not stay open.

    opened: the shared memory that came with it, once somebody has looked at it.
    """

    __slots__ = ("opened",)

    def __init__(self, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]) -> None:
        super().__init__(envelope, frame, descriptors)
        self.opened: Any = None

    def __del__(self) -> None:
        # At a program's end this module may be gone already; so are the files, soon.
        if self.descriptors and close_all is not None:
            close_all(self.descriptors)


def raise_error(answer: Received) -> None:
    """Raise what a request was answered with, if that is an error."""
    headers = answer.envelope.headers
    if "code" in headers:
        wait_s = headers.get("retry_after_s")
        error = headers.get("error", "")
        raise from_code(headers["code"], error, retry_after_s=float(wait_s) if wait_s else None)


def lost(closed: ZenosError | None = None) -> ZenosError:
    """To be raised where the connection has ended before an answer came. closed: why for good.

    A new one each time: an error keeps the frames of all who have raised it, and what is in them.
    """
    if closed is not None:
        return type(closed)(closed.message)
    return UnavailableError(
        "cannot tell whether it was done: the daemon went away meanwhile; ask again if twice is as "
        "good as once"
    )


class Window:
    """How much of what was sent to a transient topic may be unconfirmed."""

    __slots__ = ("bytes", "last", "messages", "refuses", "terms", "waiters")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.refuses = terms.when_full == "refuse"
        self.messages = 0
        self.bytes = 0
        self.last = 0  # the number of the newest that was sent
        self.waiters: deque[Slot] = deque()

    def has_room(self, size: int) -> bool:
        """Whether a message of `size` bytes may be sent now."""
        if not self.messages:
            return True
        terms = self.terms
        return self.messages < terms.messages and self.bytes + size <= terms.bytes


class Inbox:
    """Messages of one topic that have come and were not taken yet.

    credit: how many more the broker may send. returned: how many it has said it won't, and owed: of
    these, the ones that are being asked back, too, and so aren't in `credit`. waiters: who waits
    for a message. cost: what the newest message counted of the credit.

    Of durable messages: asked are requests that nothing has come for yet. leaving: who gives up,
    and gets what is on its way before others do. listeners: to be filled when anything has come, or
    it is known that it won't. A message is for those alone who want the lease that it has.

    is_over: of a subscription that was closed. desk: while calls come over direct sockets, too.
    """

    def __init__(self, topic: str, prefetch: int) -> None:
        self.topic = topic
        self.prefetch = prefetch
        self.messages: deque[Received] = deque()
        self.waiters: deque[Slot] = deque()
        self.asked: dict[int, Asked] = {}
        self.leaving: deque[Slot] = deque()
        self.listeners: list[Slot] = []
        self.credit = 0
        self.arrived = 0
        self.returned = 0
        self.owed = 0
        self.missed = 0
        self.cost = 1
        self.is_over = False
        self.desk: Desk | None = None
        self._begun: dict[int, Asked] = {}  # of which some have come, and more may

    @property
    def coming(self) -> int:
        """How many durable messages are known to be on their way."""
        return sum(asked.left for asked in self._begun.values())

    def coming_for(self, lease_s: float | None) -> int:
        """How many of these have that lease."""
        return sum(asked.left for asked in self._begun.values() if asked.lease_s == lease_s)

    def take_in(self, envelope: Envelope, messages: Sequence[Received]) -> list[Received]:
        """Durable messages have come, of `credit` that were given together to a request: each for
        who waits longest, the rest is kept. Returns what nobody wants: it is to be given back."""
        number = envelope.to
        asked = self.asked.pop(number, None)
        if asked is not None:
            asked.left = envelope.credit
        else:
            asked = self._begun.pop(number, None) or Asked(0, None, envelope.credit)
        asked.left = max(0, asked.left - len(messages))
        if asked.left or not envelope.credit:
            self._remember(number, asked)
        unwanted: list[Received] = []
        for received in messages:
            received.lease_s = asked.lease_s
            if not self._give(received):
                (unwanted if asked.is_withdrawn else self.messages).append(received)
        self.stir()
        return unwanted

    def _remember(self, number: int, asked: Asked) -> None:
        self._begun[number] = asked
        if len(self._begun) > BEGUN_MAX:
            old = next((number for number, one in self._begun.items() if not one.left), None)
            if old is not None:
                del self._begun[old]

    def take_out(self, lease_s: float | None, count: int) -> list[Received]:
        """So many of the messages with that lease that are kept, or as many as there are."""
        found: list[Received] = []
        others: list[Received] = []
        while self.messages and len(found) < count:
            received = self.messages.popleft()
            (found if received.lease_s == lease_s else others).append(received)
        self.messages.extendleft(reversed(others))
        return found

    def stir(self) -> None:
        """Something has come, or won't: who listens looks again."""
        listeners, self.listeners = self.listeners, []
        for slot in listeners:
            slot.fill()

    def given_back(self, slot: Slot, credit: int, arrived: int, returned: int) -> int:
        """Credit was asked back, when so many had arrived and been returned: how many messages are
        still on their way. They are credit again."""
        if slot.lost:
            return 0
        on_its_way = credit - decode(slot.value.frame, int) - (self.arrived - arrived)
        owed = min(self.owed, max(0, on_its_way))
        self.owed -= owed
        self.credit += max(0, on_its_way - owed)
        return on_its_way - (self.returned - returned)

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
        if self.leaving and _fill_first(self.leaving, received):
            return True
        return _fill_first(self.waiters, received)

    def leave(self, slot: Slot) -> None:
        """It is waited for no more."""
        for line in (self.waiters, self.leaving):
            with suppress(ValueError):
                line.remove(slot)

    def lose(self) -> None:
        """The connection has ended: nothing more comes over it. Who waits has to ask again."""
        self.credit = self.owed = 0
        self._begun.clear()
        self.asked.clear()
        waiting = [*self.leaving, *self.waiters, *self.listeners]
        self.leaving.clear()
        self.waiters.clear()
        self.listeners.clear()
        for slot in waiting:
            slot.fill(lost=True)

    def clear(self) -> None:
        """Drop what nobody has taken."""
        self.messages.clear()


def _fill_first(line: deque[Slot], received: Received) -> bool:
    """Give it to the first in a line who wants its lease."""
    lease_s = received.lease_s
    passed: list[Slot] = []
    while line:
        slot = line.popleft()
        if slot.done:
            continue
        if slot.wish.lease_s == lease_s:
            line.extendleft(reversed(passed))
            slot.fill(received)
            return True
        passed.append(slot)
    line.extend(passed)
    return False
