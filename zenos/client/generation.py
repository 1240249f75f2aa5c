"""OpenAI's streamed pieces, put together into chunks."""

from __future__ import annotations

from typing import Any

import msgspec

from zenos.client.sse import SseDecoder
from zenos.client.types import Chunk, TokenLogprob, Usage
from zenos.core.errors import UnavailableError, from_code

DONE = "[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str = ""
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Detail(msgspec.Struct):
    message: str
    code: str | None = None


class _Piece(msgspec.Struct):
    id: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Detail | None = None


class GenerationState:
    """What has come of one answer. `done` once the stream has said that it is whole."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.finishes: dict[int, str] = {}
        self.usage: Usage | None = None
        self.done = False
        self._begun = False
        self._decoder = SseDecoder()

    def feed(self, part: bytes) -> list[Chunk]:
        """The chunks that this part completes; raises the error that the daemon put in between."""
        self._begun = True
        chunks: list[Chunk] = []
        for event in self._decoder.feed(part):
            if event.data == DONE:
                self.done = True
                continue
            try:
                piece = msgspec.json.decode(event.data, type=_Piece)
            except msgspec.MsgspecError as error:
                raise UnavailableError(f"cannot understand the daemon's answer: {error}") from None
            if piece.error is not None:
                raise from_code(piece.error.code or "internal", piece.error.message)
            chunks.extend(self._chunks(piece))
        return chunks

    def cut(self) -> None:
        """The connection was lost; raises when a part had come, as it cannot be taken back."""
        if self._begun:
            self.ended()

    def ended(self) -> None:
        """The stream has ended; raises when it was cut."""
        if not self.done:
            raise UnavailableError(
                "cannot read the whole answer: the connection was cut; try again"
            )

    def _chunks(self, piece: _Piece) -> list[Chunk]:
        made = [self._chunk(choice) for choice in piece.choices]
        if piece.usage is not None:
            self.usage = Usage(
                prompt_tokens=piece.usage.prompt_tokens,
                completion_tokens=piece.usage.completion_tokens,
            )
            made.append(Chunk(usage=self.usage))
        return made

    def _chunk(self, choice: _Choice) -> Chunk:
        text = choice.text if choice.delta is None else choice.delta.content or ""
        self.texts[choice.index] = self.texts.get(choice.index, "") + text
        finish = choice.finish_reason
        if finish is not None:
            self.finishes[choice.index] = finish
        return Chunk(
            index=choice.index, text=text, logprobs=_logprobs(choice.logprobs), finish=finish
        )


def _logprobs(given: dict[str, Any] | None) -> list[TokenLogprob]:
    """Both of OpenAI's shapes: parallel lists, and a list of objects."""
    if not given:
        return []
    if given.get("content"):
        return [
            TokenLogprob(
                token=token["token"],
                logprob=token["logprob"],
                top={top["token"]: top["logprob"] for top in token.get("top_logprobs") or []},
            )
            for token in given["content"]
        ]
    tokens = given.get("tokens") or []
    values = given.get("token_logprobs") or []
    tops = given.get("top_logprobs") or [None] * len(tokens)
    return [
        TokenLogprob(token=token, logprob=value, top=top or {})
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]
