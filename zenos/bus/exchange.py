"""Topics between peers: who sends, who receives, who may.

| verb | what it asks for | answered |
| --- | --- | --- |
| `open` | the terms on which a transient topic takes messages | Terms |
| `send` | one receiver gets it | durable: after the commit; transient: `taken` |
| `call` | one receiver gets it and replies | by the receiver's `reply` |
| `publish` | all subscribers get it | `taken` |
| `want` | so many more messages may come | durable: each message is an answer |
| `withdraw` | what was wanted or called is wanted no more | how many were taken back |
| `subscribe`, `unsubscribe` | all that is published from now on | when it is so |
| `ack`, `nack`, `extend` | of a durable message's lease | after the commit |
| `several` | durable `send`s, or `ack`s, of one topic | each: after the commit |
| `indirect` | a direct socket (meetings.py) is not wanted, or no more | no |

A request that can't be met is answered with an error. Frames are passed on as they came: nobody
here looks into a body. Durable topics are another module's: here is only the way to them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from zenos.bus.calls import Call, Calls
from zenos.bus.durable_exchange import DurableExchange
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.envelope import (
    Data,
    Envelope,
    FrameError,
    body_of,
    bytes_in,
    close_all,
    copied,
    with_body,
)
from zenos.bus.meetings import Meetings
from zenos.bus.order import Item
from zenos.bus.peer import MayUse, Peer
from zenos.bus.terms import Want, cost_of, terms_of
from zenos.bus.transient import Subscription, TransientTopic, Waiting
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    DeadlineError,
    InvalidError,
    ZenosError,
)
from zenos.core.messages import TopicSettings

log = logging.getLogger(__name__)

EXPIRE_EVERY_S: Final = 0.01


class Exchange:
    """Takes what peers say about topics. Belongs to the daemon's event loop."""

    def __init__(
        self,
        may_use: MayUse,
        settings: Callable[[str], TopicSettings],
        durable: DurableTopics | None = None,
    ) -> None:
        self._may_use = may_use
        self._settings = settings
        self._durable = DurableExchange(durable)
        self._topics: dict[str, TransientTopic] = {}
        self._calls = Calls()
        self._meetings = Meetings(may_use, self._tidy)
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._verbs: dict[str, Callable[[Peer, Envelope, Data], None]] = {
            "open": self._open,
            "want": self._want,
            "withdraw": self._withdraw,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "indirect": self._indirect,
            "ack": self._durable.settle,
            "nack": self._durable.settle,
            "extend": self._durable.settle,
            "several": self._durable.several,
        }

    def take(
        self, peer: Peer, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]
    ) -> None:
        """What a peer says. FrameError: close its connection."""
        verb = envelope.verb
        try:
            if envelope.topic not in peer.topics:
                peer.allow(envelope.topic, self._may_use)
            if verb not in ("call", "indirect") and not envelope.durable:
                peer.only_calls(envelope.topic)
            if verb in ("send", "call", "publish"):
                self._send(peer, envelope, frame, descriptors)
                return
            if verb == "reply":
                self._reply(peer, envelope, frame, descriptors)
                return
            do = self._verbs.get(verb)
            if do is None:
                raise FrameError(f"cannot do what a peer never asks for: {verb}")
            close_all(descriptors)
            do(peer, envelope, frame)
        except FrameError:
            raise
        except ZenosError as error:
            close_all(descriptors)
            peer.refuse(envelope.id, envelope.topic, error)

    def waiting(self, topic: str) -> int:
        """How many messages wait on a transient topic."""
        known = self._topics.get(topic)
        return known.backlog.count if known is not None else 0

    def gone(self, peer: Peer) -> None:
        """A peer has gone away: what it held is given back, what it wanted is forgotten."""
        self._durable.gone(peer)
        self._meetings.gone(peer)
        for call in self._calls.gone(peer):
            assert call.item is not None  # noqa: S101 - it waits
            self._remove(self._topics[call.topic], call.item)
        for topic in list(self._topics.values()):
            topic.credit.pop(peer, None)
            if topic.talk is not None:
                topic.talk.forget(peer)
            subscription = topic.subscriptions.pop(peer, None)
            if subscription is not None:
                subscription.backlog.clear()
            for item in topic.blocked:
                if item.sender is peer and not item.is_gone:
                    item.drop()
            self._serve(topic)

    def resume(self, peer: Peer) -> None:
        """A peer that didn't read does again."""
        for topic in list(self._topics.values()):
            if peer in topic.credit:
                self._serve(topic)
            if peer in topic.subscriptions:
                self._feed(topic, peer, topic.subscriptions[peer])

    def silent(self, peer: Peer) -> None:
        """A peer is not heard, with leave."""
        self._meetings.silent(peer)

    def check(self, peer: Peer) -> None:
        """End what a peer would not be allowed now."""
        self._meetings.check(peer)

    def keep_leases(self) -> None:
        """It is the broker that goes: who has durable messages is not to blame."""
        self._durable.close()

    def close(self) -> None:
        """Drop everything."""
        if self._timer is not None:
            self._timer.cancel()
        for topic in self._topics.values():
            topic.backlog.clear()
            for item in topic.blocked:
                item.drop()
        self._topics.clear()

    # -- sending

    def _open(self, peer: Peer, envelope: Envelope, _: Data) -> None:
        terms = terms_of(self._settings(envelope.topic))
        peer.answer(envelope.id, envelope.topic, msgspec.msgpack.encode(terms))

    def _send(
        self, peer: Peer, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]
    ) -> None:
        name, verb = envelope.topic, envelope.verb
        if not limits.PRIORITY_MIN <= envelope.priority <= limits.PRIORITY_MAX:
            raise InvalidError(f"cannot use priority {envelope.priority}: from 0 to 100")
        if envelope.durable:
            if descriptors or verb != "send":
                raise InvalidError(
                    "cannot do that with a durable topic: it takes 'send', without descriptors"
                )
            self._durable.send(peer, with_body(envelope, frame))
            return
        topic = self._topic(name)
        if verb == "send":
            self._meetings.sent(topic, peer)
        if topic.credit and verb != "publish" and not topic.backlog.count:
            receiver = topic.receiver()
            if receiver is not None and (not envelope.deadline or envelope.left_s > 0):
                self._pass_on(peer, topic, receiver, envelope, frame, descriptors)
                return
        waiting = Waiting(
            envelope.kind,
            envelope.priority,
            peer,
            name,
            envelope.id,
            frame,
            descriptors,
            self._loop.time() + envelope.left_s if envelope.deadline else 0.0,
            peer if verb == "call" else None,
        )
        if verb == "publish":
            self._publish(peer, topic, waiting)
            return
        if verb == "call":
            self._calls.begin(envelope.id, Call(peer, name, waiting))
        self._add(peer, topic, waiting)
        self._serve(topic)

    def _pass_on(
        self,
        peer: Peer,
        topic: TransientTopic,
        receiver: Peer,
        envelope: Envelope,
        frame: Data,
        descriptors: tuple[int, ...],
    ) -> None:
        """Hand over a message before which nobody waits: the same, in fewer steps."""
        name, number = topic.name, envelope.id
        if envelope.verb == "call":
            self._calls.begin(number, Call(peer, name, None, receiver))
        else:
            size = len(frame) + limits.DESCRIPTOR_BYTES * len(descriptors)
            self._confirm(peer, topic, number, size)
        topic.served(receiver)
        kind, priority = envelope.kind, envelope.priority
        item = Item(kind, priority, peer.name, name, frame, 0.0, descriptors)
        receiver.put(item, always=True)
        if envelope.verb == "call":
            self._meetings.called(topic, peer, receiver, number)

    def _add(self, peer: Peer, topic: TransientTopic, item: Waiting) -> None:
        """Take a message into its topic as the settings say; what they can't take is refused."""
        when_full = topic.settings.when_full
        if when_full == "drop_oldest":
            for dropped in topic.push_out(item):
                self._calls.fail(dropped, BusyError("cannot finish the call: newer ones came"))
                dropped.drop()
        elif when_full == "refuse" and not topic.backlog.has_room(item.size):
            if item.caller is not None:
                self._calls.end((peer.name, item.id))
            raise BusyError(
                f"cannot send to {topic.name}: {topic.backlog.count} messages wait there; "
                "receive some, or send fewer",
                retry_after_s=1,
            )
        elif not topic.add(item):
            peer.held += 1
            peer.held_bytes += item.size
            # Each topic has a window of its own, but who fills them all asks for too much.
            if peer.held > limits.PEER_HELD_MAX or peer.held_bytes > limits.SEND_QUEUE_BYTES_MAX:
                item.descriptors = ()  # whoever hears this closes them
                raise FrameError("cannot hold that many messages of one peer that wait for room")
        if item.deadline:
            self._watch(item.deadline)
        if item.caller is None and not item.is_held:
            self._confirm(peer, topic, item.id, item.size)

    def _confirm(self, sender: Peer, topic: TransientTopic, number: int, size: int) -> None:
        """A message is taken: its sender is told, with others if it need not wait for that."""
        if topic.settings.when_full == "refuse":
            sender.answer(number, topic.name)
            return
        taken = sender.taken.get(topic.name)
        if taken is None:
            sender.taken[topic.name] = [1, size]
            sender.mark()
        else:
            taken[0] += 1
            taken[1] += size

    def _remove(self, topic: TransientTopic, item: Waiting) -> None:
        """Drop a message that waits in a topic, or for room there."""
        if item.is_held:
            self._unhold(topic, item)
        topic.remove(item)

    def _unhold(self, topic: TransientTopic, item: Waiting) -> None:
        sender = item.sender
        sender.held -= 1
        sender.held_bytes -= item.size
        if item.caller is None and not sender.is_closed:
            self._confirm(sender, topic, item.id, item.size)

    def _publish(self, peer: Peer, topic: TransientTopic, item: Waiting) -> None:
        self._confirm(peer, topic, item.id, item.size)
        shared = bytes_in(item.descriptors) if topic.subscriptions else 0
        for subscriber, subscription in topic.subscriptions.items():
            try:
                descriptors = copied(item.descriptors)
            except OSError as error:
                log.warning("a subscriber of %s missed a message: %s", topic.name, error)
                subscription.missed += 1
                continue
            copy = Waiting(
                item.kind,
                item.priority,
                peer,
                topic.name,
                item.id,
                item.frame,
                descriptors,
                item.deadline,
                None,
            )
            copy.size += shared
            subscription.add(copy)
            self._feed(topic, subscriber, subscription)
        item.drop()
        self._tidy(topic)

    # -- receiving

    def _want(self, peer: Peer, envelope: Envelope, frame: Data) -> None:
        want: Want = body_of(with_body(envelope, frame), Want)
        if envelope.durable:
            self._durable.receive(peer, envelope, want)
            return
        topic = self._topic(envelope.topic)
        if envelope.to:
            subscription = topic.subscriptions.get(peer)
            if subscription is not None:
                subscription.credit = self._credit(subscription.credit, want.count)
                self._feed(topic, peer, subscription)
        else:
            self._more(peer, topic, want.count)

    def _more(self, peer: Peer, topic: TransientTopic, count: int) -> None:
        topic.credit[peer] = self._credit(topic.credit.get(peer, 0), count)
        self._meetings.wanted(topic, peer)
        self._serve(topic)

    def _credit(self, there: int, more: int) -> int:
        if not 1 <= more <= limits.PREFETCH_MAX or there + more > limits.PREFETCH_MAX:
            raise FrameError(f"cannot ask for more than {limits.PREFETCH_MAX} messages in advance")
        return there + more

    def _withdraw(self, peer: Peer, envelope: Envelope, _: Data) -> None:
        """Take back what was wanted (to: 0), a call, or a durable request (to: its id)."""
        count = 0
        topic = self._topics.get(envelope.topic)
        if envelope.durable:
            count = self._durable.withdraw(peer, envelope.to)
        elif envelope.to:
            call = self._calls.end((peer.name, envelope.to))
            if call is not None:
                count = 1
                if call.item is not None:
                    of = self._topics[call.topic]
                    self._remove(of, call.item)
                    self._serve(of)
        elif topic is not None:
            count = topic.credit.pop(peer, 0)
            self._tidy(topic)
        peer.answer(envelope.id, envelope.topic, msgspec.msgpack.encode(count))

    def _subscribe(self, peer: Peer, envelope: Envelope, _: Data) -> None:
        topic = self._topic(envelope.topic)
        if peer not in topic.subscriptions:
            topic.subscriptions[peer] = Subscription(topic.settings)
        peer.answer(envelope.id, envelope.topic)

    def _unsubscribe(self, peer: Peer, envelope: Envelope, _: Data) -> None:
        topic = self._topic(envelope.topic)
        subscription = topic.subscriptions.pop(peer, None)
        if subscription is not None:
            subscription.backlog.clear()
        self._tidy(topic)
        peer.answer(envelope.id, envelope.topic)

    def _reply(
        self, peer: Peer, envelope: Envelope, frame: Data, descriptors: tuple[int, ...]
    ) -> None:
        """Pass a reply on, if it is still wanted."""
        name = envelope.topic
        if envelope.credit:
            self._more(peer, self._topic(name), envelope.credit)
        call = self._calls.end((envelope.key, envelope.to), peer)
        if call is None:
            close_all(descriptors)
            return
        item = Item(envelope.kind, envelope.priority, peer.name, name, frame, 0.0, descriptors)
        try:
            call.caller.put(item)
        except BusyError as error:
            close_all(descriptors)
            call.caller.refuse(envelope.to, name, error)

    def _indirect(self, peer: Peer, envelope: Envelope, _: Data) -> None:
        topic = self._topics.get(envelope.topic)
        if topic is not None:
            not_soon = bool(envelope.credit)
            self._meetings.ended(topic, peer, envelope.to, not_soon=not_soon)
            self._tidy(topic)

    # -- what follows

    def _serve(self, topic: TransientTopic) -> None:
        """Hand out what waits to those who want it, and let in what waits for room."""
        while True:
            while topic.credit and (item := topic.backlog.head()) is not None:
                receiver = topic.receiver()
                if receiver is None:
                    break
                topic.backlog.take()
                topic.served(receiver)
                self._hand_over(receiver, item)
            admitted = topic.admit()
            if admitted is None:
                break
            self._unhold(topic, admitted)
        self._meetings.look(topic)
        self._tidy(topic)

    def _feed(self, topic: TransientTopic, peer: Peer, subscription: Subscription) -> None:
        backlog = subscription.backlog
        while subscription.credit > 0 and (item := backlog.head()) is not None and peer.has_room:
            if subscription.missed:
                missed = Envelope(
                    kind=item.kind,
                    priority=item.priority,
                    sender=item.sender.name,
                    verb="missed",
                    topic=topic.name,
                    to=subscription.missed,
                )
                peer.send(missed, always=True)
                subscription.missed = 0
            backlog.take()
            if 0 < item.deadline <= self._loop.time():
                item.drop()
                continue
            subscription.credit -= cost_of(item.descriptors)
            self._hand_over(peer, item)

    def _hand_over(self, peer: Peer, item: Waiting) -> None:
        if item.caller is not None:
            self._calls.serve(item, peer)
        peer.put(
            Item(
                item.kind,
                item.priority,
                item.sender.name,
                item.topic,
                item.frame,
                # It has its credit: were it dropped from here on, its receiver would wait for it.
                0.0,
                item.descriptors,
            ),
            always=True,
        )
        if item.caller is not None:
            self._meetings.called(self._topics[item.topic], item.caller, peer, item.id)
        item.is_gone = True
        item.frame, item.descriptors = b"", ()

    def _watch(self, deadline: float) -> None:
        """Look again when it has passed; for many at once only every so often."""
        when = max(deadline, self._loop.time() + EXPIRE_EVERY_S)
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        """Drop what is too late."""
        self._timer, now = None, self._loop.time()
        for topic in list(self._topics.values()):
            late = topic.late(now)
            error = f"cannot finish the call of {topic.name} in time: no reply came"
            for item in late:
                self._calls.fail(item, DeadlineError(error))
                self._remove(topic, item)
            if late:
                self._serve(topic)
            if first := topic.next_deadline():
                self._watch(first)

    def _topic(self, name: str) -> TransientTopic:
        topic = self._topics.get(name)
        if topic is None:
            if len(self._topics) >= limits.TOPICS_MAX:
                raise BusyError(f"cannot use the topic {name}: there are {limits.TOPICS_MAX}")
            topic = self._topics[name] = TransientTopic(name, self._settings(name))
        return topic

    def _tidy(self, topic: TransientTopic) -> None:
        if topic.is_empty:
            self._topics.pop(topic.name, None)
