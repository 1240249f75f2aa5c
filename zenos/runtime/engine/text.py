"""From tokens to text while they come: whole characters only, and never past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"


class Tokenizer(Protocol):
    """What is needed of `tokenizers.Tokenizer`."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        ...


class TextStream:
    """One sequence's text.

    A token may be a part of a character, and decoders may write the first token of a text without
    its space. So a window of tokens is decoded again with each new one, and what it adds is given
    out once it ends in a whole character. What could be the beginning of a stop string waits.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._window: list[int] = []
        self._given = ""  # of the window's text, what has been taken over into `_held`
        self._held = ""  # decoded, and held back: it may begin a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that can be given out now that this token has come."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith(REPLACEMENT) or not text.startswith(self._given):
            return ""
        self._held += text[len(self._given) :]
        # The newest token stays as context for the next one.
        self._window = [token]
        self._given = self._tokenizer.decode(self._window)
        return self._release()

    def finish(self) -> str:
        """The rest, at the end of the sequence; a part of a character shows as a replacement."""
        text = self._tokenizer.decode(self._window)
        if text.startswith(self._given) and not self.stopped:
            self._held += text[len(self._given) :]
        self._cut_at_stop()
        return self._take(len(self._held))

    def _release(self) -> str:
        if self._cut_at_stop():
            return self._take(len(self._held))
        waiting = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        return self._take(len(self._held) - waiting)

    def _cut_at_stop(self) -> bool:
        places = [p for p in (self._held.find(stop) for stop in self._stop) if p >= 0]
        if not places:
            return False
        self._held = self._held[: min(places)]
        self.stopped = True
        return True

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
