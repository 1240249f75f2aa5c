"""Durable messages: what is kept of them, and what is asked of their topics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.names import check_public_topic as check_public_topic
from zenos.core.names import check_topic as check_topic
from zenos.core.names import is_internal as is_internal
from zenos.core.wording import FieldError

WhenFull = Literal["block", "refuse", "drop_oldest"]
ANY: Final = "*"  # of a pattern: every topic below
# Of its frame's header, what is there beside texts: numbers, and what is said of a delivery.
HEADER_REST_BYTES: Final = 512
_encode: Final = msgspec.msgpack.Encoder().encode


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A durable message, as the store keeps it.

    number: counts over all topics, in the order of arrival. id: the sender's; of several messages
    with one id on a topic the first counts. sent, due, deadline, ended: kernel time in seconds
    (0: none); it isn't delivered before `due`, nor after `deadline`. failures: deliveries that
    ended without an acknowledgement. dead: why it was given up. ended: when it was acknowledged or
    given up; of an acknowledged one only the id is kept, against duplicates.
    """

    number: int
    topic: str
    id: str
    sender: str = ""
    body: bytes = b""
    headers: dict[str, str] = {}
    priority: int = limits.PRIORITY_NORMAL
    sent: float = 0.0
    due: float = 0.0
    deadline: float = 0.0
    failures: int = 0
    dead: str | None = None
    ended: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether it was acknowledged."""
        return self.ended > 0 and self.dead is None

    @property
    def size(self) -> int:
        """What counts against its topic's limit."""
        size = len(self.body)
        if self.headers:
            size += sum(len(name) + len(value) for name, value in self.headers.items())
        return size


class TopicSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a topic is served.

    lease_s: how long a receiver has a message before it goes to another. deliveries: after so many
    without an acknowledgement a message is given up as dead. backoff_s: wait after the first failed
    delivery, doubled with each. messages and bytes: how many may wait or be worked on; when_full:
    what a sender meets then.
    """

    lease_s: float = limits.LEASE_S
    deliveries: int = limits.DELIVERIES_MAX
    backoff_s: float = 0.0
    messages: int = limits.TOPIC_MESSAGES_MAX
    bytes: int = limits.TOPIC_BYTES_MAX
    when_full: WhenFull = "block"

    def check(self) -> None:
        """Raises FieldError for numbers that may not be used."""
        check_seconds("lease_s", self.lease_s, 0.01)
        check_seconds("backoff_s", self.backoff_s, 0)
        if not 1 <= self.deliveries <= 1000:
            raise FieldError("cannot use these deliveries: from 1 to 1000", "deliveries")
        if not 1 <= self.messages <= limits.TOPIC_MESSAGES_MAX:
            most = limits.TOPIC_MESSAGES_MAX
            raise FieldError(f"cannot use this number of messages: from 1 to {most}", "messages")
        if not 1 <= self.bytes <= limits.TOPIC_BYTES_MAX:
            most = limits.TOPIC_BYTES_MAX
            raise FieldError(f"cannot use this number of bytes: from 1 to {most}", "bytes")


NO_SETTINGS: Final = TopicSettings()


def settings_for(topic: str, given: Mapping[str, TopicSettings]) -> TopicSettings:
    """What is said of that topic: under its name, else under the longest `PREFIX/*` it is below."""
    if topic in given:
        return given[topic]
    parts = topic.split("/")
    for count in range(len(parts) - 1, 0, -1):
        pattern = "/".join([*parts[:count], ANY])
        if pattern in given:
            return given[pattern]
    return given.get(ANY, NO_SETTINGS)


def check_settings(given: Mapping[str, TopicSettings]) -> None:
    """Raises InvalidError for a name or pattern that no topic can have, and for wrong numbers."""
    for name, settings in given.items():
        if name != ANY:
            check_topic(name.removesuffix(f"/{ANY}"))
        try:
            settings.check()
        except FieldError as error:
            raise InvalidError(f"{error.message} (topics: {name})") from None


class MessageChanges(msgspec.Struct, kw_only=True):
    """All that one step of the topics changed: one transaction. put: by number, whole messages."""

    put: dict[int, Message] = {}
    deleted: list[int] = []
    now: float = 0.0

    def __bool__(self) -> bool:
        """Whether there is anything to remember."""
        return bool(self.put or self.deleted)


def check_message(message: Message) -> None:
    """Raises FieldError when it may not be sent."""
    if not 1 <= len(message.id) <= limits.MESSAGE_ID_CHARS_MAX or not message.id.isprintable():
        most = limits.MESSAGE_ID_CHARS_MAX
        raise FieldError(f"cannot use this message id: 1 to {most} printable characters", "id")
    if message.size > limits.MESSAGE_BYTES_MAX:
        raise FieldError(
            f"cannot send a message of {message.size} bytes: a durable one has at most "
            f"{limits.MESSAGE_BYTES_MAX}; send where the data lies instead",
            "body",
        )
    most = limits.FRAME_HEADER_BYTES_MAX - HEADER_REST_BYTES
    if message.headers and (size := _header_bytes(message)) > most:
        raise FieldError(
            f"cannot send a message with headers of {size} bytes, with its topic and its id: at "
            f"most {most}; put less into its headers and more into its body",
            "headers",
        )
    if not limits.PRIORITY_MIN <= message.priority <= limits.PRIORITY_MAX:
        raise FieldError(f"cannot use priority {message.priority}: from 0 to 100", "priority")
    if not (math.isfinite(message.due) and math.isfinite(message.deadline)):
        raise FieldError("cannot use these times: they must be finite", "deadline")


def _header_bytes(message: Message) -> int:
    """Of its texts, as they go in the header of the frame that brings it to a receiver."""
    return len(_encode((message.topic, message.id, message.sender, message.headers)))


def check_seconds(name: str, value: float, least: float) -> None:
    """Raises FieldError when `value` is no duration from `least` to a day."""
    if not (math.isfinite(value) and least <= value <= limits.LEASE_S_MAX):
        raise FieldError(
            f"cannot use {name} {value}: from {least:g} to {limits.LEASE_S_MAX:g} seconds", name
        )
