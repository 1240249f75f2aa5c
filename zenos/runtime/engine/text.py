"""From tokens to text while they come: whole characters only, and never past a stop string.

Token by token and all at once give the same text, since there is one way only: a sequence's pieces
put together are its text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"


class Pieces(Protocol):
    """Turns a sequence's tokens into text; what it gives ends in whole characters."""

    def add(self, token: int) -> str:
        """The text that this token completes."""
        ...

    def finish(self) -> str:
        """What is left at the end; a part of a character shows as U+FFFD."""
        ...


class BytePieces:
    """For tokenizers whose tokens are bytes: each in constant time.

    bytes_of: a token's bytes (none for special tokens). strip: leave out one space at the start.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], *, strip: bool = False) -> None:
        self._bytes_of = bytes_of
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that this token completes."""
        return self._stripped(self._decoder.decode(self._bytes_of(token)))

    def finish(self) -> str:
        """What is left at the end."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class WindowPieces:
    """For any other tokenizer: a window of tokens is decoded anew with each one.

    The window begins one token early, since decoders treat a text's first token differently. A
    window that stays without a whole character for WINDOW_TOKENS is given out as it is.
    """

    WINDOW_TOKENS = 16

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = not text.endswith(REPLACEMENT) and text.startswith(self._given)
        if not whole and len(self._window) < self.WINDOW_TOKENS:
            return ""
        new = text[len(self._given) :]
        self._window = [token]
        self._given = self._decode(self._window)
        return new

    def finish(self) -> str:
        """What is left at the end."""
        text = self._decode(self._window)
        self._window = []
        return text[len(self._given) :]


class TextStream:
    """One sequence's text. What could be the beginning of a stop string waits."""

    def __init__(self, pieces: Pieces, stop: Sequence[str]) -> None:
        self._pieces = pieces
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that can be given out now that this token has come."""
        return self._take(self._pieces.add(token), last=False)

    def finish(self) -> str:
        """The rest, at the end of the sequence."""
        return self._take(self._pieces.finish(), last=True)

    def _take(self, new: str, *, last: bool) -> str:
        if not self._stop:
            return new
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        waiting = 0 if last else max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - waiting :]
        return text[: len(text) - waiting]


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` and isn't all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
