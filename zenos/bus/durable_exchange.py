"""The way of peers to durable topics: what they ask becomes an event, and is answered after it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import msgspec

from zenos.bus import topics as ev
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.envelope import Data, Envelope, FrameError, body_in, body_of, encode, with_body
from zenos.bus.order import Item
from zenos.bus.peer import Peer
from zenos.bus.several import (
    PART_BYTES,
    SEVERAL_FRAME_BYTES_MAX,
    body_of_deliveries,
    cut,
    parts_of,
)
from zenos.bus.terms import Nacked, Want
from zenos.bus.topic import Delivery
from zenos.core import failpoints, limits
from zenos.core.errors import BusyError, InvalidError, UnavailableError, ZenosError
from zenos.core.messages import Message, check_public_topic

HEADERS_CHARS_SMALL: Final = 1000  # that fit into a frame's header, whatever they are
NO_FRAME: Final = "its headers are too large for a frame"


class DurableExchange:
    """Asks the durable topics on behalf of peers. A peer's name is its receiver's."""

    def __init__(self, topics: DurableTopics | None) -> None:
        self._topics = topics

    def send(self, peer: Peer, envelope: Envelope) -> None:
        """Answered when the message is remembered."""
        failpoints.passing("bus.send.received")
        message = _as_message(envelope, envelope.topic, peer.name)
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

    def several(self, peer: Peer, envelope: Envelope, frame: Data) -> None:
        """Several `send`s, or several `ack`s: each is answered, as if it had come alone."""
        if len(body_in(frame)) > SEVERAL_FRAME_BYTES_MAX:
            raise FrameError("cannot take so many bytes as several")
        parts = parts_of(frame)
        verbs, numbers = {part.verb for part in parts}, {part.id for part in parts}
        if not envelope.durable or verbs not in ({"send"}, {"ack"}):
            raise FrameError("cannot take anything but durable messages, or acks, as several")
        if len(numbers) < len(parts):
            raise FrameError("cannot take several that have one number")
        try:
            topic = check_public_topic(envelope.topic)
            many = len(peer.requests) + peer.parts + len(parts) > limits.PEER_REQUESTS_MAX
            again = envelope.id in peer.frames or not numbers.isdisjoint(peer.requests)
            if many or again:
                raise _too_much()
            request = self._there().next_request(len(parts))
            event: ev.Event
            if verbs == {"send"}:
                failpoints.passing("bus.send.received")
                parts, messages = _as_messages(peer, topic, parts)
                event = ev.SendSeveral(request=request, topic=topic, messages=messages)
            else:
                failpoints.passing("bus.ack.received")
                settled = [(part.delivery, part.key) for part in parts]
                event = ev.AckSeveral(request=request, topic=topic, settled=settled)
            self._post_several(peer, envelope, parts, event)
        except ZenosError as error:
            for part in parts:
                peer.refuse(part.id, envelope.topic, error)

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
        for request in (*peer.requests.values(), *peer.frames.values()):
            self._topics.withdraw(request)
        peer.requests.clear()
        peer.frames.clear()
        self._topics.gone(peer.name)

    def _there(self) -> DurableTopics:
        if self._topics is None:
            raise UnavailableError("cannot use durable topics: this daemon has none")
        return self._topics

    def _post(self, peer: Peer, envelope: Envelope, event: ev.Event) -> None:
        number, _ = envelope.id, check_public_topic(envelope.topic)
        if number in peer.requests or len(peer.requests) + peer.parts >= limits.PEER_REQUESTS_MAX:
            raise _too_much()
        self._there().post(event, lambda result: self._answer(peer, envelope, result))
        peer.requests[number] = event.request

    def _answer(self, peer: Peer, asked: Envelope, result: ev.Result) -> None:
        peer.requests.pop(asked.id, None)
        if isinstance(result, list):
            self._deliver(peer, asked, result)
        elif isinstance(result, ZenosError):
            peer.refuse(asked.id, asked.topic, result)
        else:
            duplicate = isinstance(result, ev.Accepted) and result.duplicate
            if peer.several and not duplicate:
                peer.answer_soon([asked.id])
            else:
                peer.answer(asked.id, asked.topic, msgspec.msgpack.encode(duplicate))

    def _post_several(
        self, peer: Peer, envelope: Envelope, parts: list[Envelope], event: ev.Event
    ) -> None:
        """The frame's own number stands for all that are answered together."""
        if not parts:
            return
        number, topics = envelope.id, self._there()

        def answer(result: ev.Result) -> None:
            peer.frames.pop(number, None)
            peer.parts -= len(parts)
            if isinstance(result, ev.Several):
                self._answer_several(peer, envelope.topic, parts, event.request, result)
            elif isinstance(result, ZenosError):
                for part in parts:
                    peer.refuse(part.id, envelope.topic, result)

        topics.post(event, answer)
        peer.frames[number] = event.request
        peer.parts += len(parts)

    def _answer_several(
        self, peer: Peer, topic: str, parts: list[Envelope], request: int, result: ev.Several
    ) -> None:
        if not (result.errors or result.later):
            peer.answer_soon([part.id for part in parts])
            return
        later = set(result.later)
        done = set(range(len(parts))) - later - set(result.errors)
        peer.answer_soon([parts[place].id for place in sorted(done)])
        for place, error in result.errors.items():
            peer.refuse(parts[place].id, topic, error)
        if self._topics is None:
            return  # its connection has ended; it asks again
        for place in later:
            part = _on(topic, parts[place])
            if part.id in peer.requests:  # it asked for something else by that number meanwhile
                self._topics.withdraw(request + place)
                peer.refuse(part.id, topic, _too_much())
                continue
            peer.requests[part.id] = request + place
            self._topics.expect(
                request + place,
                lambda result, part=part: self._answer(peer, part, result),  # type: ignore[misc]
            )

    def _deliver(self, peer: Peer, asked: Envelope, given: list[Delivery]) -> None:
        if unfit := [delivery for delivery in given if not _fits(delivery)]:
            self._bury(peer, asked, given, unfit)
            return
        size = sum(len(d.message.body) + limits.FRAME_HEADER_BYTES_MAX for d in given)
        together = len(given) if peer.takes(len(given), size) else 0
        for some in _frames_of(given) if peer.several else [[one] for one in given]:
            item = _as_item(some, asked, together, several=peer.several)
            try:
                peer.put(item)
            except BusyError:
                # It goes to somebody who reads; this one hears that it got nothing.
                if self._topics is not None:
                    for delivery in some:
                        self._topics.give_back(delivery)
                if some[-1] is given[-1]:
                    error = BusyError("cannot give you more: read what has come", retry_after_s=1)
                    peer.refuse(asked.id, asked.topic, error)
        failpoints.passing("bus.delivered")

    def _bury(
        self, peer: Peer, asked: Envelope, given: list[Delivery], unfit: list[Delivery]
    ) -> None:
        """Those that no frame can hold are dead; the others are delivered, or it is asked anew."""
        if self._topics is not None:
            for delivery in unfit:
                self._topics.bury(delivery, NO_FRAME)
        gone = {delivery.number for delivery in unfit}
        if left := [delivery for delivery in given if delivery.number not in gone]:
            self._deliver(peer, asked, left)
            return
        try:
            self.receive(peer, asked, body_of(asked, Want))
        except ZenosError as error:
            peer.refuse(asked.id, asked.topic, error)


def _too_much() -> BusyError:
    return BusyError(
        f"cannot ask for more than {limits.PEER_REQUESTS_MAX} things at once: wait for some"
    )


def _as_message(envelope: Envelope, topic: str, sender: str) -> Message:
    return Message(
        number=0,
        topic=topic,
        id=envelope.key,
        sender=sender,
        body=envelope.body,
        headers=envelope.headers,
        priority=envelope.priority,
        due=_seconds("delay_s", envelope.delay_s) if envelope.delay_s else 0.0,
        deadline=_seconds("deadline_s", envelope.left_s) if envelope.deadline else 0.0,
    )


def _as_messages(
    peer: Peer, topic: str, parts: list[Envelope]
) -> tuple[list[Envelope], list[Message]]:
    """Those that can be sent, and their messages; the others are refused."""
    fit, messages = list[Envelope](), list[Message]()
    for part in parts:
        try:
            messages.append(_as_message(part, topic, peer.name))
            fit.append(part)
        except InvalidError as error:
            peer.refuse(part.id, topic, error)
    return fit, messages


def _on(topic: str, part: Envelope) -> Envelope:
    """A part as the request that it would have been alone, of which only this is needed."""
    return Envelope(id=part.id, topic=topic, verb=part.verb, durable=True)


def _frames_of(given: list[Delivery]) -> Iterator[list[Delivery]]:
    """Those that go together: of one priority, and not too much."""
    for _, group in itertools.groupby(given, lambda delivery: delivery.message.priority):
        alike = list(group)
        for part in cut(delivery.message.size + PART_BYTES for delivery in alike):
            yield alike[part]


def _fits(delivery: Delivery) -> bool:
    """Whether a frame can hold it. Older versions kept some that none can."""
    message = delivery.message
    if message.size - len(message.body) < HEADERS_CHARS_SMALL:
        return True
    try:
        encode(_as_envelope(delivery, 0, 0, body=b""))
    except InvalidError:
        return False
    return True


def _as_item(given: list[Delivery], asked: Envelope, together: int, *, several: bool) -> Item:
    """A frame. several: they are of one lane whoever sent them, for they may share frames."""
    message = given[0].message
    envelope = _as_envelope(given[0], asked.id, together)
    if len(given) > 1:
        envelope = Envelope(
            verb="several",
            durable=True,
            to=asked.id,
            credit=together,
            topic=message.topic,
            priority=message.priority,
            body=body_of_deliveries(given),
        )
    sender = "" if several else message.sender
    return Item("data", message.priority, sender, message.topic, encode(envelope))


def _as_envelope(
    delivery: Delivery, request: int, together: int, body: bytes | None = None
) -> Envelope:
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
        body=message.body if body is None else body,
    )


def _seconds(name: str, value: float) -> float:
    if not 0 <= value <= limits.EXPECTED_S_MAX:
        raise InvalidError(f"cannot use {name} {value}: give seconds from now, 0 for none")
    return value
