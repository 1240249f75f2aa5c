"""Direct sockets: a program's ends of them, without waiting (see meetings.py for who gets one).

A caller's end (calling.py) carries calls of one topic; a server's end (serving.py) has them until
they are begun. The frames are those of the bus. No end outlives the connection to the broker, which
knows who may what and who has gone.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from zenos.bus.calling import CallerEnd
from zenos.bus.end import End, Watching
from zenos.bus.envelope import Data, Envelope, FrameError, close_all
from zenos.bus.inbox import Inbox, Slot
from zenos.bus.marks import Marks
from zenos.bus.order import Item
from zenos.bus.serving import Desk, ServerEnd
from zenos.core import limits
from zenos.core.errors import ZenosError

if TYPE_CHECKING:
    from zenos.bus.session import Session


class Directs:
    """All ends that a session has. watching: whoever waits for their sockets; None: nobody can."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.watching: Watching | None = None
        self.desks: dict[str, Desk] = {}  # by topic that is served
        self.callers: dict[str, CallerEnd] = {}  # by topic, those that new calls may take
        self._ends: dict[int, End] = {}  # by file descriptor
        self._going: dict[int, CallerEnd] = {}  # calls that were begun there, by number
        self._away: dict[str, set[int]] = {}  # by topic, calls that the broker has

    # -- calls

    def call(
        self, topic: str, body: Data, descriptors: tuple[int, ...], fields: dict[str, Any]
    ) -> tuple[int, Slot]:
        """Make a call, the shortest way; its number, and the slot of its reply. Takes the
        descriptors, unless it raises.

        What is called after it must not overtake what the broker has: that comes back first.
        """
        end = self.callers.get(topic)
        if (
            end is not None
            and topic not in self._away
            and end.takes(len(body) + limits.KIB)
            and limits.PRIORITY_MIN <= fields["priority"] <= limits.PRIORITY_MAX
        ):
            try:
                number, slot = end.call(body, descriptors, fields)
            except OSError:
                pass  # no descriptor is left to keep one of those: the broker needs none
            else:
                self._going[number] = end
                return number, slot
        number, slot = self.session.ask("call", topic, body, descriptors=descriptors, **fields)
        self._away.setdefault(topic, set()).add(number)
        return number, slot

    def done(self, topic: str, number: int, *, answered: bool) -> None:
        """Nobody waits for a call any more."""
        end = self._going.pop(number, None)
        away = self._away.get(topic)
        if away is not None:
            away.discard(number)
            if not away:
                del self._away[topic]
        if answered:
            return
        if end is not None and number in end.pending:
            end.withdraw(number)
            return
        self.session.forget(number)
        if self.session.is_connected:
            self.session.emit("withdraw", topic, kind="command", to=number)

    def sent(self, topic: str) -> None:
        """Something else goes to that topic, through the broker: calls must not overtake it."""
        end = self.callers.get(topic)
        if end is not None:
            end.retire()

    def reroute(self, topic: str, number: int, item: Item) -> None:
        """A call goes through the broker after all."""
        if not self.session.is_connected:
            close_all(item.descriptors)
            return
        self.session.output.put(item, time.monotonic(), always=True)
        self._away.setdefault(topic, set()).add(number)

    # -- what the broker says

    def hear(self, envelope: Envelope, descriptors: tuple[int, ...]) -> None:
        """One of the three. FrameError when it makes no sense."""
        if envelope.verb == "direct":
            self._met(envelope, descriptors)
            return
        close_all(descriptors)
        if envelope.verb == "indirect":
            self._parted(envelope)
        else:
            self._noted(envelope)

    def _met(self, envelope: Envelope, descriptors: tuple[int, ...]) -> None:
        """It gives us one end of a socket. FrameError when that is none."""
        if not descriptors:  # this process may open no more
            self._decline(envelope, not_soon=True)
            return
        if self.watching is None or len(descriptors) != 2:
            close_all(descriptors)
            raise FrameError("cannot use what is no direct socket")
        connection = socket.socket(fileno=descriptors[0])
        connection.setblocking(False)
        topic, session = envelope.topic, self.session
        try:
            marks = Marks(descriptors[1])
        except ZenosError:
            marks = None
        if envelope.delivery:
            window = session.windows.get(topic)
            ours = topic not in self.callers and (window is None or window.last < envelope.delivery)
            inbox = None
        else:
            inbox = session.received.get((topic, False))
            ours = inbox is not None and inbox.prefetch == 1
        if marks is None or not ours:
            connection.close()
            self._decline(envelope, not_soon=inbox is not None)
            return
        end: End
        if inbox is None:
            end = self.callers[topic] = CallerEnd(
                self, envelope.to, topic, envelope.key, connection, marks
            )
        else:
            end = self._serve(inbox, envelope, connection, marks)
            self._take_back(envelope)
        self._ends[connection.fileno()] = end
        self.watching.opened(end)

    def _serve(
        self, inbox: Inbox, envelope: Envelope, connection: socket.socket, marks: Marks
    ) -> ServerEnd:
        desk = inbox.desk
        if desk is None:
            desk = inbox.desk = self.desks[inbox.topic] = Desk(self.session, inbox)
        number = envelope.to
        end = desk.ends[number] = ServerEnd(
            self, number, inbox.topic, envelope.key, connection, marks, desk=desk
        )
        return end

    def _parted(self, envelope: Envelope) -> None:
        """A direct socket is to be given up. credit: with it, what was begun."""
        for end in list(self._ends.values()):
            if end.number != envelope.to:
                continue
            if isinstance(end, ServerEnd):
                end.finish()
            elif envelope.credit:
                end.give_up()
            elif isinstance(end, CallerEnd):
                end.retire()

    def _noted(self, envelope: Envelope) -> None:
        """What waits there for a topic that is served; credit: so much of it is taken back."""
        desk = self.desks.get(envelope.topic)
        if desk is not None and envelope.to:
            desk.note(envelope.priority)
        self._take_back(envelope)

    def _decline(self, envelope: Envelope, *, not_soon: bool) -> None:
        """We don't want it. not_soon: nor another one."""
        number, credit = envelope.to, int(not_soon)
        self.session.emit("indirect", envelope.topic, kind="command", to=number, credit=credit)
        self._take_back(envelope)

    def _take_back(self, envelope: Envelope) -> None:
        """So much of what may come from the broker will not."""
        inbox = self.session.received.get((envelope.topic, False))
        if inbox is not None and envelope.credit:
            inbox.returned += envelope.credit
            here = min(envelope.credit, inbox.credit)
            inbox.credit -= here
            inbox.owed += envelope.credit - here
            self.session.top_up(inbox, subscribed=False)

    # -- sockets

    @property
    def is_due(self) -> bool:
        """Whether somebody is free for what waits, once the sockets have been looked at."""
        return any(desk.is_due for desk in self.desks.values()) if self.desks else False

    def hand_out(self) -> None:
        """Give what waits to those who are free."""
        if self.desks:
            for desk in list(self.desks.values()):
                desk.hand_out()

    def read(self, descriptors: list[int]) -> None:
        """There is something to be read, as far as they are ours."""
        for descriptor in descriptors:
            end = self._ends.get(descriptor)
            if end is not None:
                end.read()

    def stuck(self) -> list[End]:
        """Those whose other end doesn't keep up."""
        return [end for end in self._ends.values() if end.is_stuck]

    def leave(self, inbox: Inbox) -> None:
        """Nobody waits for calls there any more, for now: others may be free."""
        if inbox.desk is not None:
            for end in list(inbox.desk.ends.values()):
                end.finish(tell_broker=True)

    def tidy(self) -> None:
        """Give up what isn't used."""
        before = time.monotonic() - limits.DIRECT_IDLE_S
        for end in list(self.callers.values()):
            if end.used < before and not end.pending:
                end.retire()

    def lose(self) -> None:
        """The broker has gone, and with it what it knew."""
        for end in list(self._ends.values()):
            end.close()
        self.callers.clear()
        self._away.clear()
        for desk in self.desks.values():
            desk.inbox.desk = None
        self.desks.clear()

    def forget(self) -> None:
        """In a fork: they are the parent's."""
        for end in self._ends.values():
            end.forget()

    # -- what ends say

    def retired(self, end: CallerEnd) -> None:
        """No new calls go there."""
        if self.callers.get(end.topic) is end:
            del self.callers[end.topic]

    def finished(self, end: ServerEnd) -> None:
        """Nothing new is begun there."""
        desk = end.desk
        desk.ends.pop(end.number, None)
        if not desk.ends and desk.inbox.desk is desk:
            desk.inbox.desk = desk.noted = None
            del self.desks[end.topic]
            self.session.top_up(desk.inbox, subscribed=False)

    def closing(self, end: End) -> None:
        """Its socket is closed right now."""
        self._ends.pop(end.socket.fileno(), None)
        if self.watching is not None:
            self.watching.closing(end)
