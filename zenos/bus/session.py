"""What a program and the broker have to say to each other, without a socket and without waiting.

Operations are generators: each yields the slot it waits for and until when (on the monotonic
clock; None for ever), and is told whether the slot was filled. So a thread that blocks (sync.py)
and an event loop (aio.py) run the same ones.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from zenos.bus import asking
from zenos.bus.direct import Directs
from zenos.bus.envelope import Data, Envelope, FrameError, Kind, Verb, close_all, frame_of
from zenos.bus.inbox import (
    Inbox,
    Received,
    ReceivedDescriptors,
    ReceivedPart,
    Slot,
    Window,
    lost,
    raise_error,
)
from zenos.bus.order import Item, Link, Policy, SendQueue
from zenos.bus.several import Gathering, numbers_of, parts_of
from zenos.bus.terms import Taken, Terms, Want, cost_of, decode
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    DeadlineError,
    NoDaemonError,
    ZenosError,
)

T = TypeVar("T")
_NO_HEADERS: Final[dict[str, str]] = {}
GATHERED: Final = ("send", "ack")  # what goes in frames of several
QUEUE_MESSAGES: Final = 1_000_000  # bounded by windows and requests; the bytes by the usual limit


Steps = Generator[tuple[Slot, float | None], bool, T]


class EndedError(Exception):
    """No more comes of a subscription. Whoever iterates ends."""


class Session:
    """One program's side of its connection, over as many connections as it takes.

    Not thread-safe. on_output: something was put into `output`, or will be by `gather`. gathers:
    whoever writes the output calls that before; else nothing is put off.
    """

    def __init__(
        self, generation: int, on_output: Callable[[], None], *, gathers: bool = False
    ) -> None:
        self.generation = generation
        self.name = ""
        self.is_connected = False
        self.closed: ZenosError | None = None
        self.output = SendQueue(Policy(), Link(), QUEUE_MESSAGES, limits.SEND_QUEUE_BYTES_MAX)
        self.windows: dict[str, Window] = {}
        self.received: dict[tuple[str, bool], Inbox] = {}  # by topic, and whether it is durable
        self.subscribed: dict[str, Inbox] = {}
        self._ids = itertools.count(1)
        self._pending: dict[int, Slot] = {}
        self._arrivals: list[Slot] = []  # who waits for a connection
        self._on_output = on_output
        self.direct = Directs(self)
        self.several = False  # the broker takes frames of several
        self._gathers = gathers
        self._gathering = Gathering()
        self._seeking: dict[str, Inbox] = {}

    # -- the connection

    def connect(self, name: str, policy: Policy, *, several: bool = False) -> None:
        """A broker has let us in."""
        self.name, self.several = name, several
        self.output.use(policy)
        self.is_connected = True
        for topic, inbox in self.subscribed.items():
            inbox.credit = 0
            self.emit("subscribe", topic, kind="command")
            self.top_up(inbox, subscribed=True)
        arrivals, self._arrivals = self._arrivals, []
        for slot in arrivals:
            slot.fill()

    def disconnect(self) -> None:
        """The connection has ended: what was asked over it is never answered."""
        self.is_connected = False
        self._gathering.clear()
        self._seeking.clear()
        for item in self.output.clear():
            close_all(item.descriptors)
        pending, self._pending = self._pending, {}
        for slot in pending.values():
            slot.fill(lost=True)
        self.direct.lose()
        windows, self.windows = self.windows, {}
        for window in windows.values():
            for slot in window.waiters:
                slot.fill(lost=True)
        for (_, durable), inbox in self.received.items():
            if durable:
                inbox.clear()  # their leases have ended
            inbox.lose()

    def hand_back(self) -> None:
        """Before the end: durable messages that nobody has taken go to others, unfailed."""
        for (topic, durable), inbox in self.received.items():
            if durable and self.is_connected:
                asking.give_back(self, topic, inbox.messages)
                inbox.clear()

    def close(self, error: ZenosError) -> None:
        """Nothing more will come: who waits hears why."""
        self.closed = error
        self.disconnect()
        for inbox in [*self.received.values(), *self.subscribed.values()]:
            inbox.clear()
            inbox.lose()
        arrivals, self._arrivals = self._arrivals, []
        for slot in arrivals:
            slot.fill(lost=True)

    # -- what comes

    def take(self, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]) -> None:
        """A frame of the broker. FrameError when it makes no sense."""
        verb = envelope.verb
        if verb in ("send", "call", "publish", "reply"):
            self._message(envelope, frame, descriptors)
            return
        if verb in ("direct", "indirect", "waits"):
            self.direct.hear(envelope, descriptors)
            return
        close_all(descriptors)
        match verb:
            case "answer":
                self._answer(Received(envelope, frame, ()))
            case "answers":
                answer = Received(envelope, frame, ())
                for number in numbers_of(frame):
                    self._finish(number, answer)
            case "several":
                self._lent(envelope, [ReceivedPart(part) for part in parts_of(frame)])
            case "taken":
                self._taken(envelope.topic, decode(frame, Taken))
            case "missed":
                inbox = self.subscribed.get(envelope.topic)
                if inbox is not None:
                    inbox.missed += envelope.to
            case _:
                raise FrameError(f"cannot take {verb!r} from the broker")

    def _message(self, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]) -> None:
        verb = envelope.verb
        received = (ReceivedDescriptors if descriptors else Received)(envelope, frame, descriptors)
        if verb == "reply":
            self._finish(envelope.to, received)
        elif verb == "publish":
            inbox = self.subscribed.get(envelope.topic)
            if inbox is not None:
                received.missed, inbox.missed = inbox.missed, 0
                inbox.put(received)
                inbox.cost = cost_of(descriptors)
                inbox.credit -= inbox.cost - 1
        elif envelope.durable:
            self._lent(envelope, [received])
        else:
            inbox = self.received.get((envelope.topic, False))
            if inbox is not None:
                inbox.put(received)

    def _lent(self, envelope: Envelope, messages: Sequence[Received]) -> None:
        """Durable messages have come, in a frame with that header."""
        inbox = self.received.get((envelope.topic, True))
        if inbox is None:
            return
        asking.arrived(self, inbox, inbox.take_in(envelope, messages))

    def _answer(self, answer: Received) -> None:
        envelope = answer.envelope
        inbox = self.received.get((envelope.topic, True))
        if inbox is not None and envelope.to in inbox.asked:
            asking.refused(self, inbox, envelope.to, answer)
        else:
            self._finish(envelope.to, answer)

    def _finish(self, number: int, received: Received) -> None:
        slot = self._pending.pop(number, None)
        if slot is not None:
            slot.fill(received)

    def _taken(self, topic: str, taken: Taken) -> None:
        window = self.windows.get(topic)
        if window is None:
            return
        window.messages = max(0, window.messages - taken.messages)
        window.bytes = max(0, window.bytes - taken.bytes)
        waiters, window.waiters = window.waiters, deque()
        for slot in waiters:  # each looks again, in the order in which they came
            slot.fill()

    # -- what goes

    def emit(
        self,
        verb: Verb,
        topic: str,
        body: Data = b"",
        *,
        kind: Kind = "data",
        to: int = 0,
        key: str = "",
        durable: bool = False,
        priority: int = limits.PRIORITY_NORMAL,
        delivery: int = 0,
        delay_s: float = 0.0,
        deadline_s: float | None = None,
        headers: dict[str, str] | None = None,
        descriptors: tuple[int, ...] = (),
        credit: int = 0,
        into: list[Item] | None = None,
    ) -> tuple[int, int]:
        """Put a frame into the output, or `into` something else; its id, and its size in bytes.
        InvalidError: too large."""
        number, now = next(self._ids), time.time()
        frame = frame_of(
            body,
            number,
            kind,
            topic,
            self.name,
            self.generation,
            number,
            priority,
            now,
            now + deadline_s if deadline_s is not None else 0.0,
            headers or _NO_HEADERS,
            verb,
            to,
            key,
            durable,
            delivery,
            0,
            delay_s,
            len(descriptors),
            credit,
        )
        item = Item(kind, priority, self.name, topic, frame, 0.0, descriptors)
        if into is None:
            self.output.put(item, time.monotonic(), always=True)
            self._on_output()
        else:
            into.append(item)
        return number, len(frame) + limits.DESCRIPTOR_BYTES * len(descriptors)

    def gather(self) -> None:
        """Put what was put off into the output: what came together goes together."""
        for inbox in self._seeking.values():
            asking.seek(self, inbox)
        self._seeking.clear()
        for lane, body in self._gathering.take():
            _, topic, kind, priority = lane
            self.emit("several", topic, body, kind=kind, priority=priority, durable=True)

    def seek_soon(self, inbox: Inbox) -> None:
        """Ask for durable messages for who waits there, once for all who begin to now."""
        if not self._gathers:
            asking.seek(self, inbox)
        elif inbox.topic not in self._seeking:
            self._seeking[inbox.topic] = inbox
            self._on_output()

    def _ask_soon(self, verb: Verb, topic: str, body: Data, **fields: Any) -> tuple[int, Slot]:
        """As `ask`, together with what else is asked now, if that takes so much."""
        number = next(self._ids)
        if not self._gathering.add(number, verb, topic, body, **fields):
            self.gather()  # what came before it goes before it
            return self.ask(verb, topic, body, **fields)
        self._on_output()
        return number, self.expect(number)

    def ask(self, verb: Verb, topic: str, body: Data = b"", **fields: Any) -> tuple[int, Slot]:
        """Emit a request; its id, and the slot of its answer."""
        number, _ = self.emit(verb, topic, body, **fields)
        return number, self.expect(number)

    def numbers(self, count: int) -> list[int]:
        """So many ids, for requests that go in frames of several."""
        return list(itertools.islice(self._ids, count))

    def expect_all(self, numbers: Iterable[int], slot: Slot) -> None:
        """Have the answers to requests that were emitted just now fill one slot."""
        self._pending.update(dict.fromkeys(numbers, slot))

    def expect(self, number: int) -> Slot:
        """The slot of the answer to a frame that was emitted just now."""
        slot = self._pending[number] = Slot()
        return slot

    def forget(self, number: int) -> bool:
        """Nobody waits for that answer any more; whether it was still to come."""
        return self._pending.pop(number, None) is not None

    def arrive(self, deadline: float | None) -> Steps[None]:
        """Wait until there is a connection. Raises NoDaemonError at the deadline."""
        while not self.is_connected:
            if self.closed is not None:
                raise lost(self.closed)
            slot = Slot()
            self._arrivals.append(slot)
            if not (yield slot, deadline):
                self._arrivals.remove(slot)
                raise NoDaemonError("cannot reach the daemon in time: start it with 'zenos up'")
        if self.closed is not None:
            raise lost(self.closed)

    def request(
        self,
        verb: Verb,
        topic: str,
        body: Data = b"",
        *,
        deadline: float | None,
        passing: Callable[[], None] | None = None,
        **fields: Any,
    ) -> Steps[Received]:
        """Ask until it is answered, over as many connections as it takes.

        For what may be asked twice. passing: called when it was written. Raises the answer's error,
        and DeadlineError. `delay_s` and `deadline_s` count from here, however often it is asked.
        """
        begun, times = time.monotonic(), _times(fields)
        while True:
            if not self.is_connected or self.closed is not None:
                yield from self.arrive(deadline)
            if times:
                passed_s = time.monotonic() - begun
                fields |= {name: max(0.001, value - passed_s) for name, value in times.items()}
            together = self._gathers and self.several and verb in GATHERED
            number, slot = (self._ask_soon if together else self.ask)(verb, topic, body, **fields)
            if passing is not None:
                passing()
            if not (yield slot, deadline):
                self.forget(number)
                raise DeadlineError(f"cannot finish in time: no answer about {topic} came")
            if not slot.lost:
                answer: Received = slot.value
                raise_error(answer)
                return answer

    # -- inboxes

    def inbox(self, topic: str, prefetch: int, *, durable: bool) -> Inbox:
        """Where messages of a topic come in."""
        key = (topic, durable)
        if key not in self.received:
            self.received[key] = Inbox(topic, prefetch)
        found = self.received[key]
        found.prefetch = prefetch
        return found

    def next_of(self, inbox: Inbox, deadline: float | None, *, subscribed: bool) -> Steps[Received]:
        """The next message of a transient inbox. DeadlineError when none came in time.

        EndedError of a subscription that was closed, maybe while it was waited for.
        """
        while True:
            if inbox.is_over:
                raise EndedError
            if inbox.messages:
                found = inbox.messages.popleft()
                self.top_up(inbox, subscribed=subscribed)
                return found
            if not subscribed or self.closed is not None:
                yield from self.arrive(deadline)
            slot = Slot(inbox)
            inbox.waiters.append(slot)
            self.top_up(inbox, subscribed=subscribed)
            if not (yield slot, deadline):
                inbox.waiters.remove(slot)
                if not subscribed:
                    yield from self._take_credit_back(inbox)
                if not inbox.messages:
                    raise DeadlineError(f"cannot receive from {inbox.topic}: nothing came in time")
            elif not slot.lost:
                taken: Received = slot.value
                self.top_up(inbox, subscribed=subscribed)
                return taken

    def top_up(self, inbox: Inbox, *, subscribed: bool) -> None:
        """Say that more may come, in large enough steps. With direct sockets that is asked for one
        by one (serving.py)."""
        if inbox.desk is not None and inbox.prefetch > 1:
            self.direct.leave(inbox)  # who wants many in advance has them come by the broker alone
        if inbox.desk is not None:
            return
        wanted = min(max(inbox.prefetch, len(inbox.waiters)), limits.PREFETCH_MAX)
        there = inbox.credit + len(inbox.messages) * inbox.cost
        idle = not subscribed and not inbox.waiters and inbox.prefetch == 1
        if self.is_connected and not idle and there <= wanted // 2:
            count = wanted - there
            body = msgspec.msgpack.encode(Want(count=count))
            self.emit("want", inbox.topic, body, kind="command", to=int(subscribed))
            inbox.credit += count

    def _take_credit_back(self, inbox: Inbox) -> Steps[None]:
        """Who has stopped waiting must not be sent anything. What was sent already still comes."""
        if not inbox.waiters:
            self.direct.leave(inbox)
        if not self.is_connected or inbox.waiters or not inbox.credit:
            return
        _, slot = self.ask("withdraw", inbox.topic, kind="command")
        credit, inbox.credit = inbox.credit, 0
        arrived, returned = inbox.arrived, inbox.returned
        count = partial(inbox.given_back, slot, credit, arrived, returned)
        late = time.monotonic() + asking.SETTLE_S
        if not (yield slot, late):
            # The broker is stopped, or busy: what it says is counted when it comes, and what it has
            # sent till then is for who receives next.
            slot.on_done = count
            return
        if count() > 0 and not inbox.messages:
            arrival = Slot(inbox)
            # Before those who have asked for more since: what is on its way may be all that comes.
            inbox.waiters.appendleft(arrival)
            if not (yield arrival, late):
                inbox.leave(arrival)
            elif not arrival.lost:
                inbox.messages.appendleft(arrival.value)

    # -- windows

    def window(self, topic: str, deadline: float | None) -> Steps[Window]:
        """The terms of a transient topic, asked for once for each connection."""
        while topic not in self.windows:
            answer = yield from self.request("open", topic, deadline=deadline, kind="command")
            if topic not in self.windows and self.is_connected:
                self.windows[topic] = Window(decode(answer.frame, Terms))
        return self.windows[topic]

    def has_room(self, topic: str, size: int) -> Window | None:
        """The topic's window, if it is known to have room and nobody waits for it."""
        window = self.windows.get(topic)
        if window is None or window.refuses or window.waiters or not window.has_room(size):
            return None
        return window

    def sent(self, window: Window, topic: str, number: int) -> None:
        """A message went to a topic: what is called there from now on mustn't overtake it."""
        window.last = number
        self.direct.sent(topic)

    def room(self, topic: str, size: int, deadline: float | None) -> Steps[Window]:
        """A window with room for a message of about `size` bytes. BusyError at the deadline."""
        while True:
            window = yield from self.window(topic, deadline)
            if window.refuses or (not window.waiters and window.has_room(size)):
                return window
            slot = Slot()
            window.waiters.append(slot)
            if not (yield slot, deadline):
                window.waiters.remove(slot)
                raise BusyError(
                    f"cannot send to {topic}: it was full until the deadline; receive some, or "
                    "send fewer",
                    retry_after_s=1,
                )
            if not slot.lost and self.windows.get(topic) is window and window.has_room(size):
                return window


def _times(fields: dict[str, Any]) -> dict[str, float]:
    """Those fields of a request that are seconds from now, and count."""
    return {name: fields[name] for name in ("delay_s", "deadline_s") if fields.get(name)}
