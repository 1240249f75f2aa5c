"""A message as a program gets it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from zenos.bus import operations
from zenos.bus.bodies import ARRAYS, SHARED, Encoded
from zenos.bus.codec import CONTENT_TYPE, MESSAGEPACK
from zenos.bus.envelope import close_all
from zenos.bus.inbox import Received
from zenos.bus.session import Session
from zenos.core.errors import ConflictError, InvalidError, UnavailableError

_UNREAD: Any = object()
_TO: Final = {"ack": "acknowledge", "nack": "give back"}
_WAS: Final = {"ack": "acknowledged", "nack": "given back", "reply": "replied to"}
NOTHING: Final = Encoded(b"\xc0", MESSAGEPACK)  # None


class BaseMessage:
    """What can be read of a message, however it came.

    missed: of a subscription, how many were published since the one before and dropped, because
    they came faster than they were taken.
    """

    def __init__(self, received: Received) -> None:
        self.received = received
        self._value: Any = _UNREAD
        self._settled = False

    @property
    def body(self) -> Any:
        """Its value: bytes, or what was sent as MessagePack, with its arrays.

        numpy's arrays are read-only, and lie where their sender put them; so do torch's tensors,
        of which a write is seen here alone. They stay there while they, or the message, live.
        """
        if self._value is _UNREAD:
            self._value = operations.value_of(self.received)
        return self._value

    def read(self, type_: Any) -> Any:
        """Its value as that type, checked by msgspec. InvalidError when it is something else.

        numpy.ndarray or torch.Tensor: the arrays as that library's, whosever they were.
        """
        return operations.value_of(self.received, type_)

    @property
    def raw(self) -> memoryview:
        """Its body as it came. Of many bytes these, read-only, where their sender put them."""
        if self.received.envelope.headers.get(CONTENT_TYPE) == SHARED:
            opened = operations.opened_of(self.received)
            if opened is not None:
                return opened.memory
        return self.received.body

    @property
    def topic(self) -> str:
        """Where it was sent to."""
        return self.received.envelope.topic

    @property
    def id(self) -> str:
        """Its own id on its topic; empty where its sender gave a transient message none."""
        return self.received.envelope.key

    @property
    def sender(self) -> str:
        """The connection that it came from: TASK.NUMBER, or user.NUMBER."""
        return self.received.envelope.sender

    @property
    def priority(self) -> int:
        """0 to 100, higher first."""
        return self.received.envelope.priority

    @property
    def headers(self) -> dict[str, str]:
        """Its sender's, and `content-type`: how its body is encoded."""
        return self.received.envelope.headers

    @property
    def failures(self) -> int:
        """Of a durable message: deliveries before this one that weren't acknowledged."""
        return self.received.envelope.failures

    @property
    def missed(self) -> int:
        """Of a subscription: how many before this one were dropped, since they came too fast."""
        return self.received.missed

    @property
    def is_durable(self) -> bool:
        """Whether it was kept by a durable topic, and is leased."""
        return self.received.envelope.durable

    @property
    def is_call(self) -> bool:
        """Whether its sender waits for a reply."""
        return self.received.envelope.verb == "call"

    def let_go(self) -> None:
        """Close the descriptors that nobody has taken. Shared memory goes with the message."""
        if self.received.envelope.headers.get(CONTENT_TYPE) in (ARRAYS, SHARED):
            return
        descriptors, self.received.descriptors = self.received.descriptors, ()
        close_all(descriptors)


class Acting(Protocol):
    """What a message needs of its bus."""

    session: Session

    def act(self, do: Any, *arguments: Any, **options: Any) -> Any:
        """Do something with the session that needn't be waited for."""
        ...


class Answerable(BaseMessage):
    """A message that may be a call."""

    def __init__(self, bus: Acting, received: Received) -> None:
        super().__init__(received)
        self._acting = bus
        self._said = ""  # what it was settled with, as far as that matters

    def fail(self, error: Exception) -> None:
        """Answer a call with an error: it is raised where the call was made."""
        self._answer(error=error)

    def _check_call(self) -> None:
        if not self.is_call:
            raise InvalidError("cannot reply to a message that is no call")

    def _answer(self, encoded: Encoded | None = None, error: Exception | None = None) -> None:
        self._check_call()
        self._acting.act(operations.reply, self.received, encoded, error)
        self._settled, self._said = True, self._said or "reply"

    def _end_call(self, verb: str, reason: str) -> None:
        """It was settled. If it was a call, without a reply: its caller needn't wait on."""
        self._said = verb
        if not self.is_call:
            return
        if verb == "ack":
            self._answer(NOTHING)
        else:
            self._answer(error=UnavailableError(f"cannot answer: {reason or 'it was given back'}"))

    def _was_settled(self, verb: str) -> bool:
        """Whether it was, and the same is said again. ConflictError when something else is."""
        if self._settled and self._said and verb != self._said:
            raise ConflictError(f"cannot {_TO[verb]} this message: it was {_WAS[self._said]}")
        return self._settled

    def _check_delay(self, delay_s: float) -> None:
        if delay_s and not self.is_durable:
            raise InvalidError("cannot deliver a transient message again: it is sent at most once")


def unsettled(messages: Iterable[Answerable]) -> list[Received]:
    """Those of them that nobody has acknowledged or given back."""
    return [message.received for message in messages if not message._settled]


def settled(messages: Iterable[Answerable], verb: str) -> None:
    """They have been acknowledged, or given back."""
    for message in messages:
        message._said = message._said or verb
        message._settled = True


def reason_of(error: BaseException) -> str:
    """Why a message was not processed, in one line."""
    return f"{type(error).__name__}: {error}"
