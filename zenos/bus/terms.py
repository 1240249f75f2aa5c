"""Bodies of what peers and the broker say to each other about topics."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from zenos.bus.envelope import Data, FrameError, body_in
from zenos.core import limits
from zenos.core.messages import TopicSettings, WhenFull

T = TypeVar("T")


def decode(frame: Data, kind: type[T]) -> T:
    """A frame's body, as the broker says it. FrameError when it is something else."""
    try:
        return msgspec.msgpack.decode(body_in(frame), type=kind)
    except msgspec.MsgspecError as error:
        raise FrameError(f"cannot read what the broker says: {error}") from None


def cost_of(descriptors: tuple[int, ...]) -> int:
    """What a published message counts of what its subscriber may be sent. What is there and not
    read yet can't be dropped, and keeps the memory that comes with it: so these are few."""
    return limits.SHARED_COST if descriptors else 1


class Terms(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How much may be sent to a transient topic before it is heard that it was taken."""

    when_full: WhenFull
    messages: int
    bytes: int


def terms_of(settings: TopicSettings) -> Terms:
    """Those of a topic with these settings."""
    return Terms(
        when_full=settings.when_full,
        messages=min(limits.WINDOW_MESSAGES, settings.messages),
        bytes=min(limits.WINDOW_BYTES, settings.bytes),
    )


class Want(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """So many more messages may come. lease_s: for how long each, of a durable topic."""

    count: int = 1
    lease_s: float | None = None


class Taken(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A topic has taken so many messages, of so many bytes as frames, since this was said last."""

    messages: int
    bytes: int


class Nacked(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Why a durable message was not processed. failed: it was tried."""

    reason: str = ""
    failed: bool = True
