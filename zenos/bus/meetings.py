"""Direct sockets between peers that talk much: the daemon's part, which brings them together.

A peer that calls a topic again and again, which one other peer alone serves, is given one end of a
pair of sockets, and that other peer the other end. Whom a topic's rights or settings keep from it,
and whoever has not said that it can, goes through the broker as ever. So does everything else.

1. A caller is counted for as long as one server has all its calls. At DIRECT_CALLS within
   DIRECT_WITHIN_S, with nothing waiting in the topic, both get their ends (`direct`).
2. From then on the broker has no credit of that server: it hands out nothing of its own accord,
   since it can't know when the server is idle. It says what waits (`waits`: how urgent it is), once
   and again when that rises; the server asks for it when its turn has come among the direct calls.
   What it asked for and is no longer there is said, too (credit: so much is taken back).
3. A direct socket ends (`indirect`) when either peer says so or has gone, when the server is not
   heard, when either may no longer have the topic, when so much comes through the broker that to
   ask for each costs more than is saved, and as soon as anybody else wants messages of the topic:
   then no server may be passed by. Calls that are not begun by then come to the broker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from zenos.bus.envelope import Envelope, close_all, encode
from zenos.bus.marks import new_marks
from zenos.bus.order import Item
from zenos.bus.peer import MayUse, Peer
from zenos.bus.transient import TransientTopic
from zenos.core import limits
from zenos.core.errors import ZenosError

log = logging.getLogger(__name__)


class Meeting:
    """A direct socket that two peers have."""

    __slots__ = ("caller", "number", "server", "topic")

    def __init__(self, number: int, topic: TransientTopic, caller: Peer, server: Peer) -> None:
        self.number = number
        self.topic = topic
        self.caller = caller
        self.server = server


class Talk:
    """Who has called one topic lately, and who has answered.

    counts: of each caller, its calls since a time. noted: the
    highest priority that the server was told of and has not asked for. asked: how often it has
    asked since a time.
    """

    def __init__(self) -> None:
        self.server: Peer | None = None
        self.counts: dict[Peer, tuple[int, float]] = {}
        self.meetings: dict[int, Meeting] = {}
        self.noted: int | None = None
        self.asked = (0, 0.0)

    def forget_others(self, server: Peer) -> None:
        """That one has been given a call: who was counted with another is counted anew."""
        if self.server is not server:
            self.server = server
            self.counts.clear()

    def forget(self, peer: Peer) -> None:
        """It has gone."""
        self.counts.pop(peer, None)
        if self.server is peer:
            self.server = None
            self.counts.clear()


class Meetings:
    """All direct sockets. Belongs to the daemon's event loop."""

    def __init__(self, may_use: MayUse, tidy: Callable[[TransientTopic], None]) -> None:
        """tidy: forget a topic, if nobody needs it any more."""
        self._may_use = may_use
        self._tidy = tidy
        self._time = asyncio.get_running_loop().time
        self._number = 0
        self._not_before: dict[str, float] = {}  # by topic: nobody meets until then

    def called(self, topic: TransientTopic, caller: Peer, server: Peer, number: int) -> None:
        """A call has gone to a server; it is that caller's `number`."""
        if not (server.direct and caller.direct):
            if topic.talk is not None:
                topic.talk.forget_others(server)
            return
        talk = topic.talk
        if talk is None:
            talk = topic.talk = Talk()
        talk.forget_others(server)
        now = self._time()
        count, since = talk.counts.get(caller, (0, now))
        if now - since > limits.DIRECT_WITHIN_S:
            count, since = 0, now
        if count + 1 < limits.DIRECT_CALLS:
            talk.counts[caller] = (count + 1, since)
            return
        talk.counts.pop(caller, None)
        if self._not_before.get(topic.name, 0.0) <= now and self._may_meet(topic, caller, server):
            self._introduce(topic, talk, caller, server, number)

    def sent(self, topic: TransientTopic, sender: Peer) -> None:
        """It also sends there: what is called after must not overtake that."""
        if topic.talk is not None:
            topic.talk.counts.pop(sender, None)

    def wanted(self, topic: TransientTopic, peer: Peer) -> None:
        """A peer wants messages of the topic."""
        talk = topic.talk
        if talk is None or talk.server is None:
            return
        talk.noted = None
        if talk.server is peer and not talk.meetings:
            return
        if talk.server is not peer or self._asks_much(talk):
            talk.counts.clear()
            self._wait(topic)
            self.end_all(topic)

    def _asks_much(self, talk: Talk) -> bool:
        """Whether so much comes through here that to ask for each costs more than is saved."""
        now = self._time()
        count, since = talk.asked
        if now - since > limits.DIRECT_WITHIN_S:
            count, since = 0, now
        talk.asked = (count + 1, since)
        return count >= limits.DIRECT_ASKED_MAX

    def look(self, topic: TransientTopic) -> None:
        """Tell the server what waits for it, or that nothing does."""
        talk = topic.talk
        if talk is None or not talk.meetings or talk.server is None:
            return
        server, head = talk.server, topic.backlog.head()
        if head is None:
            credit = topic.credit.pop(server, 0)
            if credit:
                self._say(server, "waits", topic, credit=credit)
        elif server not in topic.credit and (talk.noted is None or head.priority > talk.noted):
            talk.noted = head.priority
            self._say(server, "waits", topic, priority=head.priority, to=1)

    def ended(self, topic: TransientTopic, peer: Peer, number: int, *, not_soon: bool) -> None:
        """One of both has closed it, or doesn't want it. not_soon: nor another one."""
        talk = topic.talk
        meeting = talk.meetings.get(number) if talk is not None else None
        if talk is None or meeting is None or peer not in (meeting.caller, meeting.server):
            return  # both may have said so, or we
        if not_soon:
            self._wait(topic)
        self._end(meeting, by=peer)

    def end_all(self, topic: TransientTopic) -> None:
        """Nobody's calls go directly there any more."""
        if topic.talk is not None:
            for meeting in list(topic.talk.meetings.values()):
                self._end(meeting)

    def silent(self, peer: Peer) -> None:
        """It is not heard, with leave: what was to be its own waits here until it is."""
        for meeting in list(peer.meetings.values()):
            self._end(meeting)
            self._tidy(meeting.topic)

    def gone(self, peer: Peer) -> None:
        """It has gone away."""
        for meeting in list(peer.meetings.values()):
            self._end(meeting, by=peer, gone=peer is meeting.server)

    def check(self, peer: Peer) -> None:
        """End what would not be allowed now."""
        for meeting in list(peer.meetings.values()):
            if not self._is_allowed(peer, meeting.topic):
                self._end(meeting)
                self._tidy(meeting.topic)

    def _is_allowed(self, peer: Peer, topic: TransientTopic) -> bool:
        try:
            peer.allow(topic.name, self._may_use)
        except ZenosError:
            return False
        return True

    def _wait(self, topic: TransientTopic) -> None:
        """Nobody meets there for a while, though it be forgotten meanwhile."""
        now = self._time()
        if len(self._not_before) >= limits.TOPICS_MAX:
            self._not_before = {name: at for name, at in self._not_before.items() if at > now}
        self._not_before[topic.name] = now + limits.DIRECT_AGAIN_S

    def _may_meet(self, topic: TransientTopic, caller: Peer, server: Peer) -> bool:
        settings = topic.settings
        return (
            caller.direct
            and server.direct
            and caller is not server
            and not (caller.is_writing or server.is_writing)  # the descriptors would wait here
            and not topic.backlog.count
            and not topic.blocked
            and all(peer is server for peer in topic.credit)
            and settings.when_full == "block"
            and settings.messages >= limits.DIRECT_PENDING_MAX
            and settings.bytes >= limits.DIRECT_BYTES_MAX
            and max(len(caller.meetings), len(server.meetings)) < limits.PEER_DIRECT_MAX
            and not any(m.topic is topic for m in caller.meetings.values())
            and self._is_allowed(caller, topic)
            and self._is_allowed(server, topic)
        )

    def _introduce(
        self, topic: TransientTopic, talk: Talk, caller: Peer, server: Peer, call: int
    ) -> None:
        try:
            ours, theirs = _pair()
        except (OSError, ZenosError) as error:
            log.warning("no direct socket can be made for %s: %s", topic.name, error)
            self._wait(topic)
            return
        self._number += 1
        meeting = Meeting(self._number, topic, caller, server)
        for peer in (caller, server):
            peer.meetings[meeting.number] = meeting
        talk.meetings[meeting.number] = meeting
        credit = topic.credit.pop(server, 0)
        self._give(server, theirs, topic, meeting, key=caller.name, credit=credit)
        self._give(caller, ours, topic, meeting, key=server.name, delivery=call)

    def _give(
        self,
        peer: Peer,
        descriptors: tuple[int, ...],
        topic: TransientTopic,
        meeting: Meeting,
        *,
        key: str,
        credit: int = 0,
        delivery: int = 0,
    ) -> None:
        envelope = Envelope(
            kind="command",
            verb="direct",
            topic=topic.name,
            to=meeting.number,
            key=key,
            credit=credit,
            delivery=delivery,
            descriptors=len(descriptors),
        )
        frame, priority = encode(envelope), envelope.priority
        peer.put(Item("command", priority, "", topic.name, frame, 0.0, descriptors), always=True)

    def _end(self, meeting: Meeting, *, by: Peer | None = None, gone: bool = False) -> None:
        """gone: nothing more will come of what was begun."""
        talk = meeting.topic.talk
        assert talk is not None  # noqa: S101 - of each topic with meetings
        del talk.meetings[meeting.number]
        if not talk.meetings:
            talk.noted = None
        for peer in (meeting.caller, meeting.server):
            del peer.meetings[meeting.number]
            if peer is not by and not peer.is_closed:
                self._say(peer, "indirect", meeting.topic, to=meeting.number, credit=int(gone))

    def _say(self, peer: Peer, verb: str, topic: TransientTopic, **fields: int) -> None:
        said = Envelope(kind="command", verb=verb, topic=topic.name, **fields)  # type: ignore[arg-type]
        # In one lane, whatever priority it tells of: what is said first comes first.
        frame = encode(said)
        peer.put(Item("command", limits.PRIORITY_NORMAL, "", topic.name, frame), always=True)


def _pair() -> tuple[tuple[int, int], tuple[int, int]]:
    """Both ends, each with the marks: the descriptors are the caller's."""
    made: list[int] = []
    try:
        made += [one.detach() for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)]
        made.append(new_marks())
        made.append(os.dup(made[-1]))
    except BaseException:
        close_all(made)
        raise
    first, second, marks, same = made
    return (first, marks), (second, same)
