"""Many durable messages at once, as steps over a session (see session.py): sent, received, settled.

Each is kept, lent and acknowledged as if it had come alone; what they share is the way and the
wait. Where the broker takes frames of several they go in few, elsewhere one by one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from zenos.bus import asking, operations
from zenos.bus.bodies import Encoded, stored
from zenos.bus.codec import encode_value
from zenos.bus.envelope import Verb, close_all
from zenos.bus.inbox import Received, Slot, raise_error
from zenos.bus.operations import Sending
from zenos.bus.session import GATHERED, Session, Steps
from zenos.bus.several import PART_BYTES_MAX, Lane, Part, bodies_of, cut, sizes_of
from zenos.bus.terms import Nacked
from zenos.core import failpoints, limits
from zenos.core.errors import ConflictError, DeadlineError, InvalidError

TOGETHER_BYTES: Final = 16 * limits.MIB  # what is beyond is asked when these are answered


class Together(Slot):
    """Answers that are waited for together. The first error is what they come to; that a lease has
    ended only where there is no other."""

    __slots__ = ("error", "missing")

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing
        self.error: Received | None = None

    @property
    def is_conflict(self) -> bool:
        """Whether leases had ended, and all others went well."""
        error = self.error
        return error is not None and error.envelope.headers["code"] == ConflictError.code

    def fill(self, value: Any = None, *, lost: bool = False) -> None:
        """One more has come; or none ever will."""
        self.missing -= 1
        code = None if lost else value.envelope.headers.get("code")
        if code is not None and (self.error is None or self.is_conflict):
            self.error = value
        if lost or self.missing == 0:
            super().fill(value, lost=lost)


def request(
    session: Session,
    lane: Lane,
    parts: Sequence[Part],
    deadline: float,
    *,
    passing: str,
    delay_s: float = 0.0,
    deadline_s: float | None = None,
) -> Steps[None]:
    """Ask for all of them, until they are answered, over as many connections as it takes.

    For what may be asked twice. Raises the first error, once all that went with it have been
    answered, a ConflictError once all have; DeadlineError. `delay_s` and `deadline_s` count from
    here, however often it is asked. passing: the failpoint where they were written.
    """
    begun = time.monotonic()

    def left(seconds: float) -> float:
        return max(0.001, seconds - (time.monotonic() - begun))

    sizes, ended = sizes_of(parts), None
    for which in cut(sizes, TOGETHER_BYTES):
        some = parts[which]
        while True:
            yield from session.arrive(deadline)
            slot = Together(len(some))
            numbers = _ask(
                session,
                lane,
                some,
                sizes[which],
                left(delay_s) if delay_s else 0.0,
                None if deadline_s is None else left(deadline_s),
            )
            session.expect_all(numbers, slot)
            failpoints.passing(passing)
            if not (yield slot, deadline):
                for number in numbers:
                    session.forget(number)
                raise DeadlineError(f"cannot finish in time: no answer about {lane.topic} came")
            if not slot.lost:
                break
        if slot.is_conflict:
            ended = ended or slot.error
        elif slot.error is not None:
            raise_error(slot.error)
    if ended is not None:
        raise_error(ended)


def _ask(
    session: Session,
    lane: Lane,
    parts: Sequence[Part],
    sizes: Sequence[int],
    delay_s: float,
    deadline_s: float | None,
) -> list[int]:
    """Emit them in their order, in as few frames as may be; their ids."""
    session.gather()  # what came before them goes before them
    verb, topic, kind, priority = lane
    asked, begin = list[int](), 0
    shared = session.several and verb in GATHERED
    for together, run in itertools.groupby(sizes, lambda size: shared and size <= PART_BYTES_MAX):
        end = begin + len(list(run))
        some = parts[begin:end]
        if together:
            numbers = session.numbers(len(some))
            for body in bodies_of(numbers, lane, some, sizes[begin:end], delay_s, deadline_s):
                session.emit("several", topic, body, kind=kind, priority=priority, durable=True)
            asked += numbers
        else:
            asked += _alone(session, lane, some, delay_s, deadline_s)
        begin = end
    return asked


def _alone(
    session: Session,
    lane: Lane,
    parts: Sequence[Part],
    delay_s: float,
    deadline_s: float | None,
) -> list[int]:
    verb, topic, kind, priority = lane
    return [
        session.emit(
            verb,
            topic,
            body,
            kind=kind,
            priority=priority,
            durable=True,
            key=key,
            delivery=delivery,
            headers=headers,
            delay_s=delay_s,
            deadline_s=deadline_s,
        )[0]
        for key, delivery, headers, body in parts
    ]


def send(
    session: Session, topic: str, bodies: Sequence[Any], ids: Sequence[str] | None, how: Sending
) -> Steps[list[str]]:
    """Send all; returns their ids after the commit. Repeated until then with the same ids."""
    keys = [operations.new_id() for _ in bodies] if ids is None else list(ids)
    if len(keys) != len(bodies):
        raise InvalidError(f"cannot send {len(bodies)} messages with {len(keys)} ids: give as many")
    parts = [_part(key, body, how) for key, body in zip(keys, bodies, strict=True)]
    wait_s = how.timeout_s if how.deadline_s is None else min(how.timeout_s, how.deadline_s)
    yield from request(
        session,
        Lane("send", topic, how.kind, how.priority),
        parts,
        time.monotonic() + wait_s,
        delay_s=how.delay_s,
        deadline_s=how.deadline_s,
        passing="bus.send.sent",
    )
    failpoints.passing("bus.send.answered")
    return keys


def _part(key: str, body: Any, how: Sending) -> Part:
    made = encode_value(body)
    encoded = made if isinstance(made, Encoded) else stored(made)
    if encoded.descriptors:
        close_all(encoded.descriptors)
        raise operations.not_to_be_stored(encoded)
    return Part(key, 0, operations.with_type(how.headers, encoded), encoded.body)


def receive(
    session: Session,
    topic: str,
    count: int,
    prefetch: int,
    timeout_s: float | None,
    lease_s: float | None,
) -> Steps[list[Received]]:
    """Lease as many as are there, at least one. DeadlineError when none came in time."""
    if not 1 <= count <= limits.PREFETCH_MAX:
        raise InvalidError(f"cannot receive {count} messages at once: 1 to {limits.PREFETCH_MAX}")
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        first = yield from operations.receive_durable(
            session, topic, prefetch, left_s, lease_s, count
        )
        inbox, found = session.inbox(topic, prefetch, durable=True), [first]
        try:
            while True:
                found += inbox.take_out(lease_s, count - len(found))
                if len(found) == count or not inbox.coming_for(lease_s):
                    return found
                # Its frame is on its way: what is left unread would fail when its lease ends.
                heard = yield from asking.stirred(inbox, deadline)
                if heard.lost:
                    break  # and so are the leases
                if not heard.done:
                    return found
        except GeneratorExit:
            for received in reversed(found):
                inbox.put_back(received)
            raise


def settle(
    session: Session, messages: Sequence[Received], verb: Verb, *, reason: str = ""
) -> Steps[None]:
    """`ack` or `nack` the leases of messages of one topic, at least one. ConflictError when that of
    one has ended."""
    body = msgspec.msgpack.encode(Nacked(reason=reason)) if verb == "nack" else b""
    parts = [
        Part(received.envelope.key, received.envelope.delivery, operations.NO_HEADERS, body)
        for received in messages
    ]
    lane = Lane(verb, messages[0].envelope.topic, "command", limits.PRIORITY_NORMAL)
    deadline = time.monotonic() + operations.TIMEOUT_S
    yield from request(session, lane, parts, deadline, passing="bus.ack.sent")
