"""Answers in OpenAI's shapes, put together from the engine's chunks."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from zenos.core.wire import Chunk, Times, TokenLogprob, Usage

Finish = Literal["stop", "length", "content_filter", "tool_calls"]


class UsageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of a whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Natural-log probabilities, parallel lists; text_offset counts characters.

    Null for the first token of an echoed prompt, before which nothing stands.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One completion, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /v1/completions, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer | None = None
    system_fingerprint: str | None = None


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token that was chosen, and the likeliest alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Natural-log probabilities of an answer's tokens."""

    content: list[ChatTokenLogprob]
    refusal: list[ChatTokenLogprob] | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer
    system_fingerprint: str | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of what the model says; the role comes once, first."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Each event of a chat's stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageAnswer | None = None
    system_fingerprint: str | None = None


class Offset:
    """Where in the text the next token begins, in characters; tokens may be parts of one."""

    def __init__(self) -> None:
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, token: TokenLogprob) -> int:
        """Where this one begins: a part of a character where that character does."""
        began = self._at
        if not token.special:
            self._at += len(self._decoder.decode(bytes(token.bytes)))
        return began


class Gathering:
    """Chunks of one request on their way to an answer: the state that pieces need."""

    def __init__(self, id_: str, model: str, *, choices_each: int, logprobs: bool) -> None:
        self.id = id_
        self.model = model
        self.created = int(time.time())
        self._choices_each = choices_each
        self._logprobs = logprobs
        self._offsets: dict[int, Offset] = {}
        self._begun: set[int] = set()
        self._usages: list[Usage] = []
        self.begun_again = False
        self._version_of: dict[str, str] = {}  # by request: one for each prompt
        self._times_of: dict[str, Times] = {}
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[TokenLogprob]] = {}
        self._finishes: dict[int, Finish] = {}

    def index(self, prompt: int, chunk: Chunk) -> int:
        """The number of the choice among those of all prompts."""
        return prompt * self._choices_each + chunk.index

    def count(self, chunk: Chunk) -> None:
        """Take over what a chunk says of its request: the version, at the end the token counts."""
        if chunk.usage is not None:
            self._usages.append(chunk.usage)
        if chunk.version:
            self._version_of[chunk.request] = chunk.version
        if chunk.times is not None:
            self._times_of[chunk.request] = chunk.times

    @property
    def versions(self) -> list[str]:
        """Which versions of the model have answered: one, unless prompts met a change."""
        return list(dict.fromkeys(self._version_of.values()))

    @property
    def times(self) -> Times | None:
        """Where the time has gone: of several prompts, each the longest of any."""
        return longest(self._times_of.values())

    @property
    def usage(self) -> UsageAnswer:
        """Token counts of all prompts together."""
        prompt = sum(usage.prompt_tokens for usage in self._usages)
        completion = sum(usage.completion_tokens for usage in self._usages)
        return UsageAnswer(
            prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
        )

    # -- in pieces

    def completion_piece(self, prompt: int, chunk: Chunk) -> Completion | None:
        """The event for a chunk; None where it has nothing for the client."""
        self.count(chunk)
        if not (chunk.text or chunk.logprobs or chunk.finish):
            return None
        index = self.index(prompt, chunk)
        choice = CompletionChoice(
            index=index,
            text=chunk.text,
            logprobs=self._completion_logprobs(index, chunk.logprobs),
            finish_reason=finish_of(chunk),
        )
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[choice],
            system_fingerprint=chunk.version or None,
        )

    def chat_pieces(self, chunk: Chunk) -> list[ChatChunk]:
        """The events for a chunk."""
        self.count(chunk)
        pieces = []
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            pieces.append(self._chat_chunk(chunk, Delta(role="assistant", content="")))
        if chunk.text or chunk.logprobs:
            made = self._chat_chunk(
                chunk, Delta(content=chunk.text), self._chat_logprobs(chunk.logprobs)
            )
            pieces.append(made)
        if chunk.finish is not None:
            pieces.append(self._chat_chunk(chunk, Delta(), None, finish_of(chunk)))
        return pieces

    def usage_piece(self, *, chat: bool) -> Completion | ChatChunk:
        """The last event, with the token counts and no choice."""
        kind = ChatChunk if chat else Completion
        return kind(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[],
            usage=self.usage,
            system_fingerprint=self._fingerprint,
        )

    def _chat_chunk(
        self,
        chunk: Chunk,
        delta: Delta,
        logprobs: ChatLogprobs | None = None,
        finish: Finish | None = None,
    ) -> ChatChunk:
        choice = ChatChunkChoice(
            index=chunk.index, delta=delta, logprobs=logprobs, finish_reason=finish
        )
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[choice],
            system_fingerprint=chunk.version or None,
        )

    @property
    def _fingerprint(self) -> str | None:
        """The versions that answered: one, unless the prompts of one call met a change."""
        return ", ".join(self.versions) or None

    # -- at once

    def add(self, prompt: int, chunk: Chunk) -> None:
        """Keep a chunk for the whole answer, or forget what came of its prompt before."""
        if chunk.again:
            self.begun_again = True
            for kept in (self._texts, self._tokens, self._finishes, self._offsets):
                for index in [i for i in kept if i // self._choices_each == prompt]:
                    kept.pop(index)
            return
        self.count(chunk)
        index = self.index(prompt, chunk)
        self._texts.setdefault(index, []).append(chunk.text)
        self._tokens.setdefault(index, []).extend(chunk.logprobs)
        finish = finish_of(chunk)
        if finish is not None:
            self._finishes[index] = finish

    def completion(self) -> Completion:
        """The whole answer."""
        choices = [
            CompletionChoice(
                index=index,
                text="".join(self._texts[index]),
                logprobs=self._completion_logprobs(index, self._tokens[index]),
                finish_reason=self._finishes.get(index, "stop"),
            )
            for index in sorted(self._texts)
        ]
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.usage,
            system_fingerprint=self._fingerprint,
        )

    def chat(self) -> Chat:
        """The whole answer."""
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessage(content="".join(self._texts[index])),
                logprobs=self._chat_logprobs(self._tokens[index]),
                finish_reason=self._finishes.get(index, "stop"),
            )
            for index in sorted(self._texts)
        ]
        return Chat(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.usage,
            system_fingerprint=self._fingerprint,
        )

    # -- logprobs

    def _completion_logprobs(
        self, index: int, tokens: Sequence[TokenLogprob]
    ) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        offset = self._offsets.setdefault(index, Offset())
        return CompletionLogprobs(
            tokens=[token.token for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[
                None if token.logprob is None else {text: value for text, _, value in token.top}
                for token in tokens
            ],
            text_offset=[offset.of(token) for token in tokens],
        )

    def _chat_logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        content = [
            ChatTokenLogprob(
                token=token.token,
                logprob=token.logprob or 0.0,  # a chat echoes no prompt: it is never None
                bytes=token.bytes,
                top_logprobs=[
                    TopLogprob(token=text, logprob=value, bytes=raw)
                    for text, raw, value in token.top
                ],
            )
            for token in tokens
        ]
        return ChatLogprobs(content=content)


def longest(times: Iterable[Times]) -> Times | None:
    """Each time the longest of any of these; None of none."""
    those = list(times)
    if not those:
        return None
    return Times(
        queue_s=max(one.queue_s for one in those),
        load_s=max(one.load_s for one in those),
        compute_s=max(one.compute_s for one in those),
    )


def finish_of(chunk: Chunk) -> Finish | None:
    """OpenAI's word for how a choice ended."""
    return "stop" if chunk.finish == "cancelled" else chunk.finish


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A model, as OpenAI's clients list them. created: seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "zenos"


class ModelListAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """All models that can be asked."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
