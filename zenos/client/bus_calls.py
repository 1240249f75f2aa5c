"""The requests about durable topics as values, and what they are answered with."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from zenos.client.calls import Call
from zenos.client.calls import _post as post
from zenos.client.decoding import decode
from zenos.client.sse import SseDecoder
from zenos.core import limits
from zenos.core.errors import UnavailableError
from zenos.core.messages import TopicSettings, check_topic

Which = Literal["waiting", "leased", "dead"]
SEND_TIMEOUT_S = limits.SEND_WAIT_S + 30.0


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A durable topic: how many messages wait for a receiver, are with one, and are dead.

    bytes: of those that are not dead. receivers, senders: who waits there for a message, or for
    room. oldest_s: for how many seconds the oldest waiting one has been there.
    """

    name: str
    waiting: int
    leased: int
    dead: int
    bytes: int
    receivers: int = 0
    senders: int = 0
    oldest_s: float | None = None
    settings: TopicSettings = msgspec.field(default_factory=TopicSettings)


class MessageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a durable topic. See `content` for its bytes.

    sent, due, deadline: seconds since 1970. failures: deliveries that ended without an
    acknowledgement. reason: why it is dead. receiver: who has it. event: what has just become of
    it (`tail`).
    """

    number: int
    topic: str
    id: str
    sender: str
    receiver: str = ""
    priority: int
    sent: float
    due: float | None = None
    deadline: float | None = None
    failures: int = 0
    reason: str | None = None
    headers: dict[str, str] = {}
    size: int = 0
    body: str | None = None
    body_base64: str | None = None
    event: str = ""

    @property
    def content(self) -> bytes:
        """The body."""
        if self.body is not None:
            return self.body.encode()
        try:
            return base64.b64decode(self.body_base64 or "")
        except ValueError:
            raise UnavailableError("cannot read the message's body: it is no base64") from None


class Sent(msgspec.Struct, frozen=True):
    """A message is kept. duplicate: one of this id was already; this one was dropped."""

    id: str
    duplicate: bool = False


class TopicList(msgspec.Struct):
    """Answer of GET /api/bus/topics."""

    topics: list[TopicInfo]


class MessageList(msgspec.Struct):
    """Answer of GET /api/bus/messages."""

    messages: list[MessageInfo]


class Counted(msgspec.Struct):
    """Answer of POST /api/bus/replay and purge."""

    count: int


def topics() -> Call[TopicList]:
    """All durable topics."""
    params = {"limit": limits.TOPICS_MAX}
    return Call(method="GET", path="/api/bus/topics", into=TopicList, params=params)


def messages(topic: str, which: Which, after: int, limit: int) -> Call[MessageList]:
    """A page of a topic's messages."""
    params: dict[str, str | int] = {
        "topic": check_topic(topic),
        "which": which,
        "after": after,
        "limit": limit,
    }
    return Call(method="GET", path="/api/bus/messages", into=MessageList, params=params)


def send(
    topic: str,
    body: str | bytes,
    *,
    id_: str | None,
    headers: Mapping[str, str] | None,
    priority: int,
    delay_s: float,
    deadline_s: float,
) -> Call[Sent]:
    """Send a message."""
    said: dict[str, object] = {
        "topic": check_topic(topic),
        "headers": dict(headers or {}),
        "priority": priority,
        "delay_s": delay_s,
        "deadline_s": deadline_s,
    }
    if isinstance(body, str):
        said["body"] = body
    else:
        said["body_base64"] = base64.b64encode(body).decode()
    if id_ is not None:
        said["id"] = id_
    timeout_s = max(SEND_TIMEOUT_S, deadline_s + 30.0)
    return post("/api/bus/messages", said, Sent, timeout_s=timeout_s)


def replay(topic: str, ids: Sequence[str] | None) -> Call[Counted]:
    """Deliver dead messages again."""
    body = {"topic": check_topic(topic), "ids": None if ids is None else list(ids)}
    return post("/api/bus/replay", body, Counted)


def purge(topic: str, which: Literal["waiting", "dead"]) -> Call[Counted]:
    """Drop messages."""
    body = {"topic": check_topic(topic), "which": which}
    return post("/api/bus/purge", body, Counted)


def tail(topic: str) -> Call[bytes]:
    """What happens on a topic, from now on."""
    params = {"topic": check_topic(topic)}
    headers = {"Accept": "text/event-stream"}
    return Call(method="GET", path="/api/bus/tail", into=bytes, params=params, headers=headers)


class TailFeed:
    """Messages of the stream of events."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()

    def feed(self, part: bytes) -> Iterator[MessageInfo]:
        """The messages that this part of the stream completes."""
        for event in self._decoder.feed(part):
            found = decode(event.data, MessageInfo, "event")
            yield msgspec.structs.replace(found, event=event.type)
