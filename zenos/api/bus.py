"""Durable topics: what waits on them, what is dead, and people's hands on both."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Final, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zenos.api.audit import audited
from zenos.api.bus_shapes import (
    Counted,
    MessageList,
    MessageView,
    PurgeBody,
    ReplayBody,
    SendBody,
    TopicList,
    TopicView,
)
from zenos.api.common import OPERATORS, IdempotencyKey, principal_of, refusing, system_of
from zenos.api.once import asked
from zenos.api.rights import check_may_use
from zenos.api.schema import operation, read, reply
from zenos.api.streams import Stream, until, with_pauses
from zenos.bus import topics as ev
from zenos.bus.durable_topics import DurableTopics, TopicEvent
from zenos.bus.topic import Topic
from zenos.core import limits
from zenos.core.errors import UnavailableError
from zenos.core.messages import Message, check_public_topic
from zenos.core.wording import FieldError

router = APIRouter(prefix="/api/bus", tags=["bus"])
_encode = msgspec.json.Encoder().encode
ANSWER_WAIT_S: Final = 5.0

TopicName = Annotated[
    str, Query(min_length=1, max_length=limits.TOPIC_CHARS_MAX, description="The topic's name.")
]
Which = Literal["waiting", "leased", "dead"]


@router.get("/topics", **operation(TopicList))
async def list_topics(
    request: Request, limit: Annotated[int, Query(ge=1, le=limits.TOPICS_MAX)] = 1000
) -> Response:
    """Durable topics by name, with how many messages wait, are being worked on, and are dead."""
    topics, now = _topics(request).topics.topics, time.time()
    chosen = itertools.islice(sorted(topics), limit)
    return reply(TopicList(topics=[_topic_view(topics[name], now) for name in chosen]))


@router.get("/messages", **operation(MessageList))
async def list_messages(
    request: Request,
    topic: TopicName,
    which: Annotated[
        Which,
        Query(description="waiting: for a receiver; leased: one has it; dead: given up, and why."),
    ] = "waiting",
    after: Annotated[
        int, Query(ge=0, le=2**62, description="Only with a higher `number`: the next page.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=limits.MESSAGES_LISTED_MAX)] = 100,
) -> Response:
    """A topic's messages in the order of arrival; looking takes none away.

    A topic is there as soon as somebody uses it: one of which nothing is known has no messages.
    """
    found = _topics(request).topics.topics.get(check_public_topic(topic))
    views: list[MessageView] = []
    size = 0
    for message, receiver in _chosen(found, which) if found is not None else ():
        if message.number <= after:
            continue
        size += message.size
        if len(views) == limit or (views and size > limits.MESSAGES_LISTED_BYTES_MAX):
            break
        views.append(_message_view(message, receiver))
    return reply(MessageList(messages=views))


@router.post("/messages", **operation(ev.Accepted, body=SendBody, status=201))
async def send(request: Request, key: IdempotencyKey = None) -> Response:
    """Send a message to a durable topic; answered once it is kept.

    Of several with one id on a topic the first counts; the id is the body's, else the
    Idempotency-Key. A full topic is waited for, at most `deadline_s` or 30 seconds.
    """
    body: SendBody = await read(request, SendBody)
    topics = _topics(request)
    topic = check_public_topic(body.topic)
    with refusing(request):
        check_may_use(request, topic)
    for name in ("delay_s", "deadline_s"):
        if not 0 <= getattr(body, name) <= limits.LEASE_S_MAX:
            raise FieldError(
                f"cannot use {name} {getattr(body, name)}: from 0 to {limits.LEASE_S_MAX:g}", name
            )
    event = ev.Send(
        request=topics.next_request(),
        message=Message(
            number=0,
            topic=topic,
            id=next(i for i in (body.id, key, secrets.token_urlsafe(16)) if i is not None),
            sender=principal_of(request).user,
            body=_bytes_of(body),
            headers=body.headers,
            priority=body.priority,
            due=body.delay_s,
            deadline=body.deadline_s,
        ),
    )
    try:
        # A topic that is full until the deadline says so by itself.
        async with asyncio.timeout((body.deadline_s or limits.SEND_WAIT_S) + ANSWER_WAIT_S):
            return reply(await topics.ask(event), 201)
    except TimeoutError:
        raise UnavailableError(
            f"cannot say whether this was accepted: {body.topic} is full, or the store does not "
            "answer; send it again with the same id",
            retry_after_s=5,
        ) from None


@router.post("/replay", **OPERATORS, **operation(Counted, body=ReplayBody, also=(404, 409)))
async def replay(request: Request, key: IdempotencyKey = None) -> Response:
    """Deliver dead messages again: those of `ids`, or all of the topic."""
    body: ReplayBody = await read(request, ReplayBody)
    topics = _topics(request)
    topic = check_public_topic(body.topic)
    event = ev.Replay(request=topics.next_request(), topic=topic, ids=body.ids)
    return await _counted(request, key, body, event, "replay")


@router.post("/purge", **OPERATORS, **operation(Counted, body=PurgeBody, also=(404, 409)))
async def purge(request: Request, key: IdempotencyKey = None) -> Response:
    """Drop a topic's waiting messages (not what a receiver has), or its dead ones."""
    body: PurgeBody = await read(request, PurgeBody)
    topics = _topics(request)
    topic = check_public_topic(body.topic)
    event = ev.Purge(request=topics.next_request(), topic=topic, select=body.which)
    return await _counted(request, key, body, event, "purge")


async def _counted(
    request: Request,
    key: str | None,
    body: ReplayBody | PurgeBody,
    event: ev.Replay | ev.Purge,
    action: Literal["replay", "purge"],
) -> Response:
    async with asked(request, key, body) as said:
        if said.before is not None:
            return reply(Counted(count=int(said.before)))
        async with audited(request, action, body.topic, said.once) as done:
            count = _count(await _topics(request).ask(event))
            done.result = str(count)
    return reply(Counted(count=count))


@router.get("/tail", **operation(media="text/event-stream"))
async def tail(request: Request, topic: TopicName) -> Response:
    """What happens on a topic from now on, once it is kept; the topic need not be there yet.

    `event:` is `waiting`, `delivered`, `failed`, `acknowledged` or `dead`; `data:` the message. A
    comment comes when nothing happens. A reader that is too slow is cut.
    """
    closing = request.app.state.closing
    return Stream(_tail(_topics(request), check_public_topic(topic), closing), "text/event-stream")


async def _tail(
    topics: DurableTopics, topic: str, closing: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    with topics.watch(topic) as queue:
        # The stream opens with a comment, so that the client knows that it listens.
        yield b": zenos\n\n"
        happening = until(_until_none(queue), closing)
        async with aclosing(with_pauses(happening, limits.EVENT_HEARTBEAT_S)) as paced:
            async for event in paced:
                if event is None:
                    yield b":\n\n"
                else:
                    view = _message_view(event.message, event.receiver)
                    yield b"event: %b\ndata: %b\n\n" % (event.type.encode(), _encode(view))


async def _until_none(queue: asyncio.Queue[TopicEvent | None]) -> AsyncGenerator[TopicEvent, None]:
    while (event := await queue.get()) is not None:
        yield event


def _topics(request: Request) -> DurableTopics:
    return system_of(request).topics


def _chosen(topic: Topic, which: Which) -> Iterator[tuple[Message, str]]:
    if which == "waiting":
        return ((message, "") for message in topic.waiting())
    if which == "dead":
        return iter([(topic.dead[number], "") for number in sorted(topic.dead)])
    leases = sorted(topic.leases.values(), key=lambda lease: lease.message.number)
    return iter([(lease.message, lease.receiver) for lease in leases])


def _topic_view(topic: Topic, now: float) -> TopicView:
    oldest = next(topic.waiting(), None)
    return TopicView(
        name=topic.name,
        waiting=len(topic.live) - len(topic.leases),
        leased=len(topic.leases),
        dead=len(topic.dead),
        bytes=topic.bytes,
        receivers=len(topic.receivers),
        senders=len(topic.senders),
        oldest_s=max(0.0, now - oldest.sent) if oldest is not None else None,
        settings=topic.settings,
    )


def _message_view(message: Message, receiver: str) -> MessageView:
    try:
        text, raw = message.body.decode(), None
    except UnicodeDecodeError:
        text, raw = None, base64.b64encode(message.body).decode()
    return MessageView(
        number=message.number,
        topic=message.topic,
        id=message.id,
        sender=message.sender,
        receiver=receiver,
        priority=message.priority,
        sent=message.sent,
        due=message.due or None,
        deadline=message.deadline or None,
        failures=message.failures,
        reason=message.dead,
        headers=message.headers,
        size=message.size,
        body=text,
        body_base64=raw,
    )


def _bytes_of(body: SendBody) -> bytes:
    if (body.body is None) == (body.body_base64 is None):
        raise FieldError("cannot tell what to send: give either body or body_base64", "body")
    if body.body is not None:
        return body.body.encode()
    try:
        return base64.b64decode(body.body_base64 or "", validate=True)
    except binascii.Error as error:
        raise FieldError(f"cannot use body_base64: {error}", "body_base64") from None


def _count(result: ev.Result) -> int:
    if not isinstance(result, int):
        raise TypeError("the topics answered with another type")
    return result
