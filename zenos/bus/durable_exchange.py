"""The way of peers to durable topics: what they ask becomes an event, and is answered after it."""

from __future__ import annotations

import msgspec

from zenos.bus import topics as ev
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.envelope import Data, Envelope, FrameError, body_of, encode, with_body
from zenos.bus.order import Item
from zenos.bus.peer import Peer
from zenos.bus.terms import Nacked, Want
from zenos.bus.topic import Delivery
from zenos.core import failpoints, limits
from zenos.core.errors import BusyError, InvalidError, UnavailableError, ZenosError
from zenos.core.messages import Message, check_public_topic


class DurableExchange:
    """Asks the durable topics on behalf of peers. A peer's name is its receiver's."""

    def __init__(self, topics: DurableTopics | None) -> None:
        self._topics = topics

    def send(self, peer: Peer, envelope: Envelope) -> None:
        """Answered when the message is remembered."""
        failpoints.passing("bus.send.received")
        message = Message(
            number=0,
            topic=envelope.topic,
            id=envelope.key,
            sender=peer.name,
            body=bytes(envelope.body),
            headers=envelope.headers,
            priority=envelope.priority,
            due=_seconds("delay_s", envelope.delay_s),
            deadline=_seconds("deadline_s", envelope.left_s),
        )
        topics = self._there()
        self._post(peer, envelope, ev.Send(request=topics.next_request(), message=message))

    def receive(self, peer: Peer, envelope: Envelope, want: Want) -> None:
        """Each message that comes is an answer; when they have come, the request has ended."""
        if not 1 <= want.count <= limits.PREFETCH_MAX:
            raise FrameError(f"cannot ask for {want.count} messages at once")
        event = ev.Receive(
            request=self._there().next_request(),
            topic=envelope.topic,
            receiver=peer.name,
            count=want.count,
            lease_s=want.lease_s,
        )
        self._post(peer, envelope, event)

    def settle(self, peer: Peer, envelope: Envelope, frame: Data) -> None:
        """An `ack`, `nack` or `extend`."""
        request = self._there().next_request()
        topic, delivery, id_ = envelope.topic, envelope.delivery, envelope.key
        event: ev.Event
        match envelope.verb:
            case "ack":
                failpoints.passing("bus.ack.received")
                event = ev.Ack(request=request, topic=topic, delivery=delivery, id=id_)
            case "extend":
                want: Want = body_of(with_body(envelope, frame), Want)
                lease_s = want.lease_s or limits.LEASE_S
                event = ev.Extend(
                    request=request, topic=topic, delivery=delivery, id=id_, lease_s=lease_s
                )
            case _:
                why: Nacked = body_of(with_body(envelope, frame), Nacked)
                event = ev.Nack(
                    request=request,
                    topic=topic,
                    delivery=delivery,
                    id=id_,
                    delay_s=envelope.delay_s,
                    reason=why.reason,
                    failed=why.failed,
                )
        self._post(peer, envelope, event)

    def withdraw(self, peer: Peer, number: int) -> int:
        """A request that wasn't answered yet is wanted no more; how many that were."""
        request = peer.requests.pop(number, None)
        if request is None:
            return 0
        self._there().withdraw(request)
        return 1

    def close(self) -> None:
        """Ask no more. What peers have stays theirs: after a restart they may acknowledge it."""
        self._topics = None

    def gone(self, peer: Peer) -> None:
        """A peer has gone away: what it was given goes to others."""
        if self._topics is None:
            return
        for request in peer.requests.values():
            self._topics.withdraw(request)
        peer.requests.clear()
        self._topics.gone(peer.name)

    def _there(self) -> DurableTopics:
        if self._topics is None:
            raise UnavailableError("cannot use durable topics: this daemon has none")
        return self._topics

    def _post(self, peer: Peer, envelope: Envelope, event: ev.Event) -> None:
        number, topic = envelope.id, check_public_topic(envelope.topic)
        if number in peer.requests or len(peer.requests) >= limits.PEER_REQUESTS_MAX:
            raise BusyError(
                f"cannot ask for more than {limits.PEER_REQUESTS_MAX} things at once: wait for some"
            )

        def answer(result: ev.Result) -> None:
            peer.requests.pop(number, None)
            if isinstance(result, list):
                self._deliver(peer, envelope, result)
            elif isinstance(result, ZenosError):
                peer.refuse(number, topic, result)
            else:
                duplicate = isinstance(result, ev.Accepted) and result.duplicate
                peer.answer(number, topic, msgspec.msgpack.encode(duplicate))

        self._there().post(event, answer)
        peer.requests[number] = event.request

    def _deliver(self, peer: Peer, asked: Envelope, given: list[Delivery]) -> None:
        size = sum(len(d.message.body) + limits.FRAME_HEADER_BYTES_MAX for d in given)
        together = len(given) if peer.takes(len(given), size) else 0
        for delivery in given:
            frame = encode(_as_envelope(delivery, asked.id, together))
            message = delivery.message
            item = Item("data", message.priority, message.sender, message.topic, frame)
            try:
                peer.put(item)
            except BusyError:
                # It goes to somebody who reads; this one hears that it got nothing.
                self._there().give_back(delivery)
                if delivery is given[-1]:
                    error = BusyError("cannot give you more: read what has come", retry_after_s=1)
                    peer.refuse(asked.id, asked.topic, error)
        failpoints.passing("bus.delivered")


def _as_envelope(delivery: Delivery, request: int, together: int) -> Envelope:
    message = delivery.message
    return Envelope(
        verb="send",
        durable=True,
        to=request,
        topic=message.topic,
        sender=message.sender,
        key=message.id,
        priority=message.priority,
        sent=message.sent,
        deadline=message.deadline,
        headers=message.headers,
        delivery=delivery.number,
        failures=message.failures,
        credit=together,
        body=message.body,
    )


def _seconds(name: str, value: float) -> float:
    if not 0 <= value <= limits.EXPECTED_S_MAX:
        raise InvalidError(f"cannot use {name} {value}: give seconds from now, 0 for none")
    return value
