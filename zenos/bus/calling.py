"""The caller's end of a direct socket."""

from __future__ import annotations

import time
from typing import Any, Final

from msgspec.structs import replace

from zenos.bus.end import End
from zenos.bus.envelope import Data, Envelope, FrameError, close_all, copied
from zenos.bus.inbox import Received, ReceivedDescriptors, Slot
from zenos.bus.order import Item
from zenos.bus.stream import Frame
from zenos.core import limits
from zenos.core.errors import UnavailableError

GONE: Final = "cannot finish the call: who answered it went away; call again"


class Pending:
    """A call that has no reply yet. place: in the marks. item: it, to be made otherwise."""

    __slots__ = ("item", "place", "slot")

    def __init__(self, place: int, slot: Slot, item: Item) -> None:
        self.place = place
        self.slot = slot
        self.item = item


class CallerEnd(End):
    """Calls of one topic that go to its only server.

    pending: by their numbers, in the order in which they were made.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pending: dict[int, Pending] = {}
        self._places = list(range(limits.DIRECT_PENDING_MAX))
        self._bytes = 0

    def takes(self, size: int) -> bool:
        """Whether a call of `size` bytes may go here."""
        return (
            not self.is_stuck
            and bool(self._places)
            and size <= limits.DIRECT_CALL_BYTES_MAX
            and self._bytes + size <= limits.DIRECT_BYTES_MAX
        )

    def call(
        self, body: Data, descriptors: tuple[int, ...], fields: dict[str, Any]
    ) -> tuple[int, Slot]:
        """Make a call; its number, and the slot of its reply. Takes the descriptors, unless it
        raises: InvalidError for what can't be sent, OSError when there may be no more."""
        kept, place, made = copied(descriptors), self._places[-1], list[Item]()
        try:
            number, _ = self.session.emit(
                "call", self.topic, body, to=place, descriptors=descriptors, into=made, **fields
            )
        except BaseException:
            close_all(kept)
            raise
        item = made[0]
        self._places.pop()
        self._bytes += len(item.frame)
        again = replace(item, descriptors=kept) if kept else item
        slot = self.session.expect(number)
        self.pending[number] = Pending(place, slot, again)
        self.used = time.monotonic()
        self.marks.want(place, number)
        self.send(item)
        return number, slot

    def withdraw(self, number: int) -> None:
        """Nobody waits for that call any more."""
        call = self.pending.get(number)
        if call is None:
            return
        self.marks.take_back(call.place, number)
        self._drop(number)
        if not (self.is_over or self.is_stuck):  # else the marks alone say so
            made: list[Item] = []
            self.session.emit("withdraw", self.topic, kind="command", to=number, into=made)
            self.send(made[0])
        self._close_if_done()

    def retire(self) -> None:
        """No call goes here any more. What isn't begun goes through the broker."""
        if self.is_over:
            return
        self.is_over = True
        self.directs.retired(self)
        for number, call in list(self.pending.items()):
            if self.marks.take_back(call.place, number):
                self._reroute(number)
        if self.session.is_connected:
            self.session.emit("indirect", self.topic, kind="command", to=self.number)
        self._close_if_done()

    def lost(self) -> None:
        """The server has gone, or is not waited for any more."""
        self.retire()
        for number, call in list(self.pending.items()):
            self._drop(number)
            headers = {"code": UnavailableError.code, "error": GONE}
            error = Envelope(verb="answer", topic=self.topic, to=number, headers=headers)
            call.slot.fill(Received(error, b"", ()))
        self.close()

    def take(self, frame: Frame) -> None:
        """See End."""
        envelope, data, descriptors = frame
        call = self.pending.get(envelope.to)
        if envelope.topic == self.topic and envelope.verb == "reply":
            received = (ReceivedDescriptors if descriptors else Received)(
                envelope, data, descriptors
            )
            if call is not None:
                self._drop(envelope.to)
                call.slot.fill(received)
                self._close_if_done()
            return
        close_all(descriptors)
        if envelope.topic != self.topic or envelope.verb != "indirect":
            raise FrameError(f"cannot take {envelope.verb!r} from a direct socket")
        if not envelope.to:
            self.retire()
        elif call is not None:  # the server has found that it was taken back, and doesn't do it
            self._reroute(envelope.to)
            self._close_if_done()

    def close(self) -> None:
        """See End. Who waits for a call still does."""
        for number in list(self.pending):
            close_all(self._remove(number).item.descriptors)
        super().close()

    def _reroute(self, number: int) -> None:
        call = self._remove(number)
        self.directs.reroute(self.topic, number, call.item)

    def _drop(self, number: int) -> None:
        """It needs no reply any more."""
        close_all(self._remove(number).item.descriptors)
        self.session.forget(number)

    def _remove(self, number: int) -> Pending:
        call = self.pending.pop(number)
        self._places.append(call.place)
        self._bytes -= len(call.item.frame)
        return call

    def _close_if_done(self) -> None:
        if self.is_over and not self.pending:
            self.close()
