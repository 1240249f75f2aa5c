"""Answers of models as they are made: OpenAI's streamed pieces, put together into chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from zenos.client import transport
from zenos.client.calls import Call
from zenos.client.decoding import decode
from zenos.client.sse import SseDecoder
from zenos.client.types import Chunk, TokenLogprob, Usage
from zenos.core.errors import UnavailableError
from zenos.core.wording import from_answer

if TYPE_CHECKING:
    from zenos.client.aio import AsyncClient
    from zenos.client.sync import Client

DONE = "[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Alternative(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct):
    token: str
    logprob: float | None = None
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(msgspec.Struct):
    """Both of OpenAI's shapes: a list of objects, of a chat, and parallel lists."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str = ""
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Detail(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


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
            piece = decode(event.data, _Piece)
            if piece.error is not None:
                code = piece.error.code or "internal"
                raise from_answer(code, piece.error.message, piece.error.param)
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


def _logprobs(given: _Logprobs | None) -> list[TokenLogprob]:
    if given is None:
        return []
    if given.content:
        return [
            TokenLogprob(
                token=token.token,
                logprob=token.logprob,
                top={top.token: top.logprob for top in token.top_logprobs or []},
            )
            for token in given.content
        ]
    tokens, values = given.tokens or [], given.token_logprobs or []
    tops = given.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        raise UnavailableError("cannot understand the daemon's answer: its logprobs don't match")
    return [
        TokenLogprob(token=token, logprob=value, top=top or {})
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


class Generation:
    """An answer as it is made: an iterator of chunks. Closing it frees the engine's slot."""

    def __init__(self, client: Client, call: Call[bytes]) -> None:
        self._state = GenerationState()
        self._chunks = self._read(client, call)

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say that nobody wants the rest."""
        self._chunks.close()

    def text(self, index: int = 0) -> str:
        """The whole text of one choice; waits for it."""
        for _ in self._chunks:
            pass
        return self._state.texts.get(index, "")

    def so_far(self, index: int = 0) -> str:
        """The text of one choice as far as it has come."""
        return self._state.texts.get(index, "")

    @property
    def usage(self) -> Usage | None:
        """Token counts, once the answer is whole."""
        return self._state.usage

    def finish(self, index: int = 0) -> str | None:
        """How a choice ended (`stop`, `length`); None before."""
        return self._state.finishes.get(index)

    def _read(self, client: Client, call: Call[bytes]) -> Generator[Chunk]:
        transport.check_open(client.http)
        attempts = transport.Attempts(call, client.address, client.retry_s)
        while True:
            try:
                with client.http.stream(
                    call.method, call.path, **transport.request_options(call)
                ) as response:
                    if response.is_success:
                        for part in response.iter_bytes():
                            yield from self._state.feed(part)
                        self._state.ended()
                        return
                    response.read()
                    attempts.answered(response)
            except transport.HTTP_ERRORS as error:
                self._state.cut()
                attempts.failed(error)
            client.wait_before_retry(attempts.pause_s or 0)


class AsyncGeneration:
    """An answer as it is made: an iterator of chunks. Closing it frees the engine's slot."""

    def __init__(self, client: AsyncClient, call: Call[bytes]) -> None:
        self._state = GenerationState()
        self._chunks = self._read(client, call)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Say that nobody wants the rest."""
        await self._chunks.aclose()

    async def text(self, index: int = 0) -> str:
        """The whole text of one choice; waits for it."""
        async for _ in self._chunks:
            pass
        return self._state.texts.get(index, "")

    def so_far(self, index: int = 0) -> str:
        """The text of one choice as far as it has come."""
        return self._state.texts.get(index, "")

    @property
    def usage(self) -> Usage | None:
        """Token counts, once the answer is whole."""
        return self._state.usage

    def finish(self, index: int = 0) -> str | None:
        """How a choice ended (`stop`, `length`); None before."""
        return self._state.finishes.get(index)

    async def _read(self, client: AsyncClient, call: Call[bytes]) -> AsyncGenerator[Chunk]:
        transport.check_open(client.http)
        attempts = transport.Attempts(call, client.address, client.retry_s)
        while True:
            try:
                async with client.http.stream(
                    call.method, call.path, **transport.request_options(call)
                ) as response:
                    if response.is_success:
                        async for part in response.aiter_bytes():
                            for chunk in self._state.feed(part):
                                yield chunk
                        self._state.ended()
                        return
                    await response.aread()
                    attempts.answered(response)
            except transport.HTTP_ERRORS as error:
                self._state.cut()
                attempts.failed(error)
            await client.wait_before_retry(attempts.pause_s or 0)
