"""Bodies of the paths of durable topics."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from zenos.api.shapes import Answer, Body
from zenos.core import limits
from zenos.core.fields import within
from zenos.core.messages import TopicSettings

Topic = Annotated[str, within(minLength=1, maxLength=limits.TOPIC_CHARS_MAX)]
Headers = dict[str, str]
Priority = Annotated[int, msgspec.Meta(ge=limits.PRIORITY_MIN, le=limits.PRIORITY_MAX)]


class TopicView(Answer, frozen=True, kw_only=True):
    """A durable topic.

    waiting, leased, dead: messages that wait for a receiver, that one has, that were given up.
    bytes: of those that are not dead. receivers, senders: who waits there for a message, or for
    room. oldest_s: for how many seconds the oldest waiting one has been there.
    """

    name: str
    waiting: int
    leased: int
    dead: int
    bytes: int
    receivers: int
    senders: int
    oldest_s: float | None
    settings: TopicSettings


class TopicList(Answer, frozen=True, kw_only=True):
    """Durable topics, by name."""

    topics: list[TopicView]


class MessageView(Answer, frozen=True, kw_only=True):
    """A message of a durable topic.

    number: counts over all topics, in the order of arrival. sent, due, deadline: seconds since
    1970. failures: deliveries that ended without an acknowledgement. reason: why it is dead.
    receiver: who has it. body: as text, or body_base64 where it isn't UTF-8.
    """

    number: int
    topic: str
    id: str
    sender: str
    receiver: str
    priority: int
    sent: float
    due: float | None
    deadline: float | None
    failures: int
    reason: str | None
    headers: Headers
    size: int
    body: str | None
    body_base64: str | None


class MessageList(Answer, frozen=True, kw_only=True):
    """Messages, in the order of arrival."""

    messages: list[MessageView]


class SendBody(Body, frozen=True, kw_only=True):
    """A message for a durable topic.

    body: text, or body_base64: any bytes. id: of several with one id on a topic the first counts.
    delay_s: it isn't delivered before; deadline_s: nor after, it is dead then (0: never). Seconds
    from now.
    """

    topic: Topic
    body: str | None = None
    body_base64: str | None = None
    id: str | None = None
    headers: Headers = msgspec.field(default_factory=dict)
    priority: Priority = limits.PRIORITY_NORMAL
    delay_s: float = 0.0
    deadline_s: float = 0.0


class ReplayBody(Body, frozen=True, kw_only=True):
    """Which dead messages are delivered again: those of `ids`, or all."""

    topic: Topic
    ids: Annotated[list[str], msgspec.Meta(max_length=limits.DEAD_MESSAGES_KEPT)] | None = None


class PurgeBody(Body, frozen=True, kw_only=True):
    """Which messages are dropped."""

    topic: Topic
    which: Literal["waiting", "dead"] = "waiting"


class Counted(Answer, frozen=True, kw_only=True):
    """How many messages it was."""

    count: int
