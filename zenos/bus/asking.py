"""Asking for durable messages on behalf of all who wait for them on a topic.

Whoever receives waits in the topic's inbox; the session asks for as many as wait there, or for more
where so many are wanted at once or may come in advance, in as few requests as it takes: one for
each lease that is wanted. A request is answered once, with at least one message: who is left
without one is asked for again. What is asked for beyond what those who wait want is withdrawn, and
what comes of it in spite of that and nobody takes is given back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from zenos.bus.inbox import Asked, Inbox, Received, Slot, Wish
from zenos.bus.terms import Nacked, Want, decode
from zenos.core import limits

if TYPE_CHECKING:
    from zenos.bus.session import Session, Steps

SETTLE_S: Final = 1.0  # beyond its deadline in which a receiver takes back what it asked for
_UNREAD: Final = msgspec.msgpack.encode(Nacked(failed=False))


def seek(session: Session, inbox: Inbox) -> None:
    """Ask for what is missing for those who wait."""
    if not session.is_connected or not inbox.waiters:
        return
    there = inbox.coming + sum(asked.count for asked in inbox.asked.values())
    for lease_s, wishes in _wishes(inbox).items():
        own = inbox.coming_for(lease_s) + _asked(inbox, lease_s)
        missing = max(len(wishes), max(wish.wanted for wish in wishes)) - own
        if missing > 0:
            ahead = max(wish.prefetch for wish in wishes) - there
            count = min(max(missing, ahead), limits.PREFETCH_MAX)
            body = msgspec.msgpack.encode(Want(count=count, lease_s=lease_s))
            number, _ = session.emit("want", inbox.topic, body, kind="command", durable=True)
            inbox.asked[number] = Asked(count, lease_s)
            there += count


def arrived(session: Session, inbox: Inbox, unwanted: Iterable[Received]) -> None:
    """Something has come, of which this is nobody's: some wait no more, others need more."""
    give_back(session, inbox.topic, unwanted)
    if inbox.asked:
        _withdraw(session, inbox)
    if inbox.waiters:
        session.seek_soon(inbox)


def leave(session: Session, inbox: Inbox, slot: Slot) -> None:
    """One waits no more: what was asked for beyond what the others want is taken back."""
    inbox.leave(slot)
    _withdraw(session, inbox)
    if inbox.waiters:
        session.seek_soon(inbox)


def give_up(session: Session, inbox: Inbox, slot: Slot) -> Steps[bool]:
    """It is too late for one who waits; True when something came after all.

    What was asked for it is taken back first. What is on its way then is there soon, and its own.
    """
    inbox.leave(slot)
    inbox.leaving.append(slot)
    withdrawn, late = _withdraw(session, inbox), time.monotonic() + SETTLE_S
    if inbox.waiters:
        session.seek_soon(inbox)
    while any(number in inbox.asked for number in withdrawn):
        if not (yield from stirred(inbox, late)).done:
            break  # the broker is stopped, or busy: what it sends then is given back
    return slot.done and not slot.lost


def stirred(inbox: Inbox, deadline: float | None) -> Steps[Slot]:
    """Wait until something has come, or won't: done then, and lost with the connection."""
    slot = Slot()
    inbox.listeners.append(slot)
    try:
        yield slot, deadline
        return slot
    finally:
        with suppress(ValueError):
            inbox.listeners.remove(slot)


def refused(session: Session, inbox: Inbox, number: int, answer: Received) -> None:
    """A request was answered with an error: for who has waited least of those who wait on its
    terms, and for whom no other request stands."""
    asked = inbox.asked.pop(number)
    count = 0 if asked.is_withdrawn else asked.count
    waiting = [slot for slot in inbox.waiters if slot.wish.lease_s == asked.lease_s]
    stands = inbox.coming_for(asked.lease_s) + _asked(inbox, asked.lease_s)
    for slot in waiting[max(stands, len(waiting) - count) :]:
        inbox.waiters.remove(slot)
        slot.fill(answer)
    inbox.stir()
    if inbox.waiters:
        session.seek_soon(inbox)


def give_back(session: Session, topic: str, unread: Iterable[Received]) -> None:
    """Have others get messages that came here and that nobody has seen. They haven't failed."""
    for received in unread:
        envelope = received.envelope
        session.emit(
            "nack",
            topic,
            _UNREAD,
            kind="command",
            durable=True,
            key=envelope.key,
            delivery=envelope.delivery,
        )


def _withdraw(session: Session, inbox: Inbox) -> list[int]:
    """Take back what nobody wants; the numbers of these requests."""
    numbers = _beyond(inbox) if session.is_connected else []
    for number in numbers:
        asked = inbox.asked[number]
        asked.count, asked.is_withdrawn = 0, True
        _, answer = session.ask("withdraw", inbox.topic, kind="command", to=number, durable=True)
        answer.on_done = partial(_withdrawn, session, inbox, number, answer)
    return numbers


def _withdrawn(session: Session, inbox: Inbox, number: int, answer: Slot) -> None:
    """It is known whether what was withdrawn comes in spite of that."""
    if answer.lost or number not in inbox.asked:
        return
    received: Received = answer.value
    if "code" not in received.envelope.headers and not decode(received.frame, int):
        inbox.asked[number].count = 1  # at least
        return
    del inbox.asked[number]
    inbox.stir()
    if inbox.waiters:
        session.seek_soon(inbox)


def _beyond(inbox: Inbox) -> list[int]:
    """The requests that are too many for those who wait: of each lease, the newest."""
    most = {
        lease_s: max(len(wishes), *(max(wish.wanted, wish.prefetch) for wish in wishes))
        for lease_s, wishes in _wishes(inbox).items()
    }
    found: list[int] = []
    there = {asked.lease_s: _asked(inbox, asked.lease_s) for asked in inbox.asked.values()}
    for number, asked in reversed(inbox.asked.items()):
        lease_s = asked.lease_s
        if not asked.is_withdrawn and there[lease_s] > most.get(lease_s, 0):
            found.append(number)
            there[lease_s] -= asked.count
    return found


def _wishes(inbox: Inbox) -> dict[float | None, list[Wish]]:
    """Of those who wait, by lease."""
    found: dict[float | None, list[Wish]] = {}
    for slot in inbox.waiters:
        if not slot.done:
            found.setdefault(slot.wish.lease_s, []).append(slot.wish)
    return found


def _asked(inbox: Inbox, lease_s: float | None) -> int:
    """How many are asked for on these terms."""
    return sum(asked.count for asked in inbox.asked.values() if asked.lease_s == lease_s)
