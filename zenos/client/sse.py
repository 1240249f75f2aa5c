"""Server-sent events, decoded piece by piece (https://html.spec.whatwg.org/#server-sent-events)."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from zenos.core import limits
from zenos.core.errors import UnavailableError

EVENT_CHARS_MAX = limits.BODY_BYTES_MAX


class ServerEvent(NamedTuple):
    """One event: its type (`message` by default), its data, and the last id seen so far."""

    type: str
    data: str
    id: str


class SseDecoder:
    """Bytes in, events out; a piece may end anywhere, also inside a character or a line end."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line = ""
        self._after_return = False
        self._at_start = True
        self._type = ""
        self._data: list[str] = []
        self._size = 0
        self.last_id = ""

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that this piece completes."""
        text = self._text.decode(piece)
        if self._at_start and text:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        # A line ends with \r\n, \n or \r; the first may be cut in two.
        if self._after_return and text:
            text = text.removeprefix("\n")
            self._after_return = False
        self._after_return = self._after_return or text.endswith("\r")
        lines = (self._line + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        self._line = lines.pop()
        found = [event for line in lines if (event := self._take(line)) is not None]
        if self._size + len(self._line) > EVENT_CHARS_MAX:
            raise UnavailableError("cannot read the daemon's stream: an event in it has no end")
        return found

    def _take(self, line: str) -> ServerEvent | None:
        if not line:
            event = None
            if self._data:
                event = ServerEvent(self._type or "message", "\n".join(self._data), self.last_id)
            self._type, self._data, self._size = "", [], 0
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._size += len(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self.last_id = value
            case _:
                pass  # comments (heartbeats) and fields that nobody knows
        return None
