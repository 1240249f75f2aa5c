"""What programs do with topics, as steps over a session (see session.py)."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import msgspec

from zenos.bus import asking
from zenos.bus.bodies import ARRAYS, SHARED, Encoded, Opened
from zenos.bus.codec import CONTENT_TYPE, decode_value, opened_value
from zenos.bus.envelope import Kind, close_all
from zenos.bus.inbox import Inbox, Received, ReceivedDescriptors, Slot, Wish, lost, raise_error
from zenos.bus.order import Item
from zenos.bus.session import Session, Steps
from zenos.bus.terms import Nacked, Want
from zenos.core import failpoints, limits
from zenos.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    InvalidError,
    WorkerError,
    ZenosError,
)

TIMEOUT_S: Final = 30.0  # for which is waited where nothing else is said
PREFETCH_SUBSCRIBED: Final = 256
NO_HEADERS: Final[dict[str, str]] = {}


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """How a message is sent.

    id: by which duplicates are known (durable). priority: 0 to 100. delay_s: not delivered before
    (durable). deadline_s: not delivered after so many seconds. timeout_s: how long its sender waits
    until it is taken.
    """

    id: str | None = None
    priority: int = limits.PRIORITY_NORMAL
    kind: Kind = "data"
    delay_s: float = 0.0
    deadline_s: float | None = None
    headers: dict[str, str] | None = None
    timeout_s: float = TIMEOUT_S


def new_id() -> str:
    """An id for a message whose sender gives none."""
    return os.urandom(12).hex()


def with_type(headers: dict[str, str] | None, encoded: Encoded) -> dict[str, str]:
    """The headers of a message with that body."""
    given = headers or NO_HEADERS
    if CONTENT_TYPE in given:
        raise InvalidError(f"cannot set the header {CONTENT_TYPE!r}: it tells what the body is")
    return {**given, CONTENT_TYPE: encoded.content_type} if encoded.content_type else given


def value_of(received: Received, type_: Any = Any) -> Any:
    """A message's body as a value; of a registered codec once: that takes its descriptors."""
    content_type = received.envelope.headers.get(CONTENT_TYPE, "")
    opened = opened_of(received)
    if opened is not None:
        return opened_value(opened, content_type, type_)
    descriptors, received.descriptors = received.descriptors, ()
    return decode_value(received.body, content_type, descriptors, type_)


def opened_of(received: Received) -> Opened | None:
    """The shared memory that came with a message, mapped; None when none did. HandleError."""
    if not isinstance(received, ReceivedDescriptors):
        return None
    if received.opened is None and received.envelope.headers.get(CONTENT_TYPE) in (ARRAYS, SHARED):
        descriptors, received.descriptors = received.descriptors, ()
        if not descriptors:
            raise ConflictError("cannot read this body: its message was let go of")
        received.opened = Opened(received.body, descriptors)
    opened: Opened | None = received.opened
    return opened


def not_to_be_stored(encoded: Encoded) -> InvalidError:
    """Why a body with descriptors isn't sent to a durable topic."""
    return InvalidError(
        f"cannot send {encoded.content_type} to a durable topic: it would have to be in the "
        "database; send where the data lies instead"
    )


def send_durable(session: Session, topic: str, encoded: Encoded, how: Sending) -> Steps[str]:
    """Send; returns the message's id after the commit. Repeated until then with the same id."""
    if encoded.descriptors:
        close_all(encoded.descriptors)
        raise not_to_be_stored(encoded)
    key = new_id() if how.id is None else how.id
    wait_s = how.timeout_s if how.deadline_s is None else min(how.timeout_s, how.deadline_s)
    yield from session.request(
        "send",
        topic,
        encoded.body,
        deadline=time.monotonic() + wait_s,
        passing=lambda: failpoints.passing("bus.send.sent"),
        kind=how.kind,
        key=key,
        durable=True,
        priority=how.priority,
        delay_s=how.delay_s,
        deadline_s=how.deadline_s,
        headers=with_type(how.headers, encoded),
    )
    failpoints.passing("bus.send.answered")
    return key


def send_transient(
    session: Session, topic: str, encoded: Encoded, how: Sending, *, publish: bool = False
) -> Steps[str]:
    """Send or publish, at most once. Waits for room, not for a receiver."""
    deadline = time.monotonic() + how.timeout_s
    # What the header takes isn't known before it is made: too much, for a message of any size.
    size = len(encoded.body) + limits.KIB + limits.DESCRIPTOR_BYTES * len(encoded.descriptors)
    try:
        if not limits.PRIORITY_MIN <= how.priority <= limits.PRIORITY_MAX:
            raise InvalidError(f"cannot use priority {how.priority}: from 0 to 100")
        if how.delay_s:
            raise InvalidError("cannot delay a transient message: use a durable topic for that")
        window = yield from session.room(topic, size, deadline)
        key = how.id or ""
        number, size = session.emit(
            "publish" if publish else "send",
            topic,
            encoded.body,
            kind=how.kind,
            key=key,
            priority=how.priority,
            deadline_s=how.deadline_s,
            headers=with_type(how.headers, encoded),
            descriptors=encoded.descriptors,
        )
    except BaseException:
        close_all(encoded.descriptors)
        raise
    if not publish:
        session.sent(window, topic, number)
    if not window.refuses:
        window.messages += 1
        window.bytes += size
        return key
    slot = session.expect(number)
    if not (yield slot, deadline):
        session.forget(number)
        raise DeadlineError(f"cannot send to {topic} in time: no answer came")
    if slot.lost:
        raise lost(session.closed)
    raise_error(slot.value)
    return key


def call(session: Session, topic: str, encoded: Encoded, how: Sending) -> Steps[Received]:
    """Call whoever serves the topic; returns the reply, raises its error."""
    deadline = time.monotonic() + how.timeout_s
    try:
        yield from session.arrive(deadline)
        fields: dict[str, Any] = {
            "kind": how.kind,
            "priority": how.priority,
            "deadline_s": max(0.001, deadline - time.monotonic()),
            "headers": with_type(how.headers, encoded),
        }
        number, slot = session.direct.call(topic, encoded.body, encoded.descriptors, fields)
    except BaseException:
        close_all(encoded.descriptors)
        raise
    answered = False
    try:
        answered = yield slot, deadline
    finally:
        # If not: it is too late, or whoever waited was interrupted.
        session.direct.done(topic, number, answered=answered)
    if not answered:
        raise DeadlineError(f"cannot finish the call of {topic} in time: no reply came")
    if slot.lost:
        raise lost(session.closed)
    raise_error(slot.value)
    replied: Received = slot.value
    return replied


def reply(
    session: Session,
    received: Received,
    encoded: Encoded | None = None,
    error: BaseException | None = None,
    *,
    credit: int = 0,
) -> None:
    """Answer a call; nobody hears it who has stopped waiting. credit: see the envelope."""
    asked, end, made = received.envelope, received.end, list[Item]()
    encoded = encoded or Encoded(b"")
    if end is not None and not end.has_room(len(encoded.body), len(encoded.descriptors)):
        encoded.close()
        encoded, error = Encoded(b""), BusyError("cannot reply: read what was replied before")
    if error is None:
        headers = with_type(None, encoded)
    else:
        known = isinstance(error, ZenosError)
        said = str(error) if known else f"cannot answer: {type(error).__name__}: {error}"
        code = error.code if isinstance(error, ZenosError) else WorkerError.code
        headers = {"code": code, "error": said[: limits.ERROR_CHARS_MAX]}
    if not session.is_connected or (end is not None and end.is_closed):
        close_all(encoded.descriptors)
        return
    try:
        session.emit(
            "reply",
            asked.topic,
            encoded.body,
            kind=asked.kind,
            to=asked.id,
            key=asked.sender,
            priority=asked.priority,
            headers=headers,
            descriptors=encoded.descriptors,
            credit=credit,
            into=None if end is None else made,
        )
    except BaseException:
        close_all(encoded.descriptors)
        raise
    if end is not None:
        end.reply(asked.id, made[0])


def reply_or_fail(
    session: Session, received: Received, encoded: Encoded | None, error: BaseException | None
) -> None:
    """Answer a call with what came of it, also if that can't be sent, and be ready for another."""
    inbox = session.received.get((received.envelope.topic, False))
    credit = int(
        session.is_connected
        and received.end is None
        and inbox is not None
        and inbox.desk is None
        and not (inbox.credit or inbox.messages or inbox.waiters)
    )
    try:
        reply(session, received, encoded, error, credit=credit)
    except ZenosError as unsendable:
        reply(session, received, error=unsendable, credit=credit)
    if inbox is not None:
        inbox.credit += credit


def receive_durable(
    session: Session,
    topic: str,
    prefetch: int,
    timeout_s: float | None,
    lease_s: float | None,
    count: int = 1,
) -> Steps[Received]:
    """Lease the next message of a durable topic. DeadlineError when none came in time.

    count: how many are to come if they are there. What follows the first is left in the inbox.
    """
    inbox = session.inbox(topic, prefetch, durable=True)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        if not inbox.messages:
            yield from session.arrive(deadline)
        if inbox.messages:
            if found := inbox.take_out(lease_s, 1):
                return found[0]
            # They were asked for by who wants another lease, and isn't here.
            asking.give_back(session, topic, inbox.messages)
            inbox.clear()
        slot = Slot(inbox, Wish(lease_s, count, prefetch))
        inbox.waiters.append(slot)
        session.seek_soon(inbox)
        try:
            came = yield slot, deadline
            if not came:
                came = yield from asking.give_up(session, inbox, slot)
        except GeneratorExit:
            slot.abandon()
            raise
        finally:
            asking.leave(session, inbox, slot)
        if not came:
            raise DeadlineError(f"cannot receive from {topic}: nothing came in time")
        if not slot.lost:
            raise_error(slot.value)
            failpoints.passing("bus.receive.taken")
            taken: Received = slot.value
            return taken


def receive_transient(
    session: Session, topic: str, prefetch: int, timeout_s: float | None
) -> Steps[Received]:
    """The next message of a transient topic. DeadlineError when none came in time."""
    inbox = session.inbox(topic, prefetch, durable=False)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    if not inbox.messages:
        yield from session.window(topic, deadline)  # raises what is to be said against it
    return (yield from session.next_of(inbox, deadline, subscribed=False))


def settle(
    session: Session,
    received: Received,
    verb: str,
    *,
    reason: str = "",
    delay_s: float = 0.0,
    lease_s: float = limits.LEASE_S,
    timeout_s: float = TIMEOUT_S,
) -> Steps[None]:
    """`ack`, `nack` or `extend` a durable message's lease. ConflictError when it has ended."""
    envelope = received.envelope
    body = b""
    if verb == "extend":
        body = msgspec.msgpack.encode(Want(lease_s=lease_s))
    elif verb == "nack":
        body = msgspec.msgpack.encode(Nacked(reason=reason))
    yield from session.request(
        verb,  # type: ignore[arg-type]  # one of the three
        envelope.topic,
        body,
        deadline=time.monotonic() + timeout_s,
        passing=lambda: failpoints.passing("bus.ack.sent"),
        kind="command",
        key=envelope.key,
        durable=True,
        delivery=envelope.delivery,
        delay_s=delay_s,
    )


def subscribe(session: Session, topic: str, timeout_s: float) -> Steps[Inbox]:
    """Take part in all that is published from now on."""
    if topic in session.subscribed:
        raise ConflictError(
            f"cannot subscribe to {topic} twice over one connection: open another one"
        )
    deadline = time.monotonic() + timeout_s
    # Known from now on: should the connection be lost, the next one begins with it.
    inbox = session.subscribed[topic] = Inbox(topic, PREFETCH_SUBSCRIBED)
    try:
        yield from session.request("subscribe", topic, deadline=deadline, kind="command")
    except BaseException:
        unsubscribe(session, inbox)
        raise
    session.top_up(inbox, subscribed=True)
    return inbox


def unsubscribe(session: Session, inbox: Inbox) -> None:
    """No more of that topic."""
    if session.subscribed.get(inbox.topic) is inbox:
        del session.subscribed[inbox.topic]
        if session.is_connected:
            session.emit("unsubscribe", inbox.topic, kind="command")
    inbox.is_over = True
    inbox.clear()
    inbox.lose()
