"""Continuous batching: sequences join and leave at any step.

A sequence is the engine's thread: it waits, by priority and then in order, for a row of the cache;
its prompt is run in chunks between the steps of the others; then it decodes with them, one token a
step, until it stops, and its row is free for the next at once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from zenos.core.errors import InvalidError, ZenosError
from zenos.core.wire import Chunk, GenerateRequest, TokenLogprob, Usage
from zenos.runtime.engine.sampling import choose
from zenos.runtime.engine.text import TextStream, Tokenizer

PREFILL_TOKENS: Final = 256  # of prompts, at most so many between two decoding steps
Finish = Literal["stop", "length", "cancelled"]


class Backend(Protocol):
    """A model's forward pass over rows of a cache; see LlamaBackend."""

    rows: int
    context: int
    vocab_size: int

    def prefill(self, row: int, tokens: list[int], start: int) -> Tensor:
        """Logits after the last of `tokens`, (vocabulary,)."""
        ...

    def decode(self, tokens: list[int], positions: list[int]) -> Tensor:
        """Logits of rows 0 … n-1, (n, vocabulary)."""
        ...

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy a row's first positions."""
        ...


class Request:
    """A request with its prompt's tokens; it has `n` sequences."""

    def __init__(self, request: GenerateRequest, prompt: list[int]) -> None:
        self.id = request.id
        self.sampling = request.sampling
        self.priority = request.priority
        self.prompt = prompt
        self.echo = request.echo
        self.arrived = time.monotonic()
        self.admitted: float | None = None
        self.open = request.sampling.n
        self.generated = 0


class Choice:
    """One choice of a request, on its way."""

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer) -> None:
        self.request = request
        self.index = index
        self.tokens: list[int] = []
        self.filled = 0  # positions of the prompt that are in the cache
        self.row = -1
        self.text = TextStream(tokenizer, request.sampling.stop)
        seed = request.sampling.seed
        self.generator: torch.Generator | None = None
        if seed is not None:
            self.generator = torch.Generator().manual_seed((seed + index) % 2**63)

    @property
    def position(self) -> int:
        """Where the newest token goes."""
        return len(self.request.prompt) + len(self.tokens) - 1


class Engine:
    """One model, its cache, and the sequences that share them. Not for several threads at once."""

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, end_tokens: Iterable[int], context: int
    ) -> None:
        self._backend = backend
        self._tokenizer = tokenizer
        self._end_tokens = frozenset(end_tokens)
        self._context = min(context, backend.context)
        self._waiting: list[tuple[int, int, Choice]] = []
        self._filling: list[Choice] = []
        self._running: list[Choice] = []  # of row 0 … n-1, in this order
        self._order = itertools.count()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._filling or self._running)

    @property
    def in_use(self) -> int:
        """Rows of the cache that hold a sequence."""
        return len(self._filling) + len(self._running)

    def submit(self, request: GenerateRequest, prompt: list[int]) -> None:
        """Queue a request. InvalidError when it can never be answered."""
        request.sampling.check()
        if not prompt:
            raise InvalidError("cannot continue an empty prompt: give at least one token")
        if len(prompt) >= self._context:
            raise InvalidError(
                f"cannot fit the prompt: it has {len(prompt)} tokens, the context holds "
                f"{self._context} with at least one for the answer"
            )
        if min(prompt) < 0 or max(prompt) >= self._backend.vocab_size:
            raise InvalidError(
                f"cannot use these tokens: they must be from 0 to {self._backend.vocab_size - 1}"
            )
        record = Request(request, prompt)
        for index in range(request.sampling.n):
            sequence = Choice(record, index, self._tokenizer)
            self._waiting.append((-request.priority, next(self._order), sequence))
        self._waiting.sort(key=lambda item: item[:2])

    def abort(self, request_id: str) -> None:
        """Forget a request: its rows are free before the next step."""
        self._waiting = [w for w in self._waiting if w[2].request.id != request_id]
        self._filling = [s for s in self._filling if s.request.id != request_id]
        for sequence in [s for s in self._running if s.request.id == request_id]:
            self._leave(sequence)

    def abort_all(self) -> None:
        """Forget everything."""
        self._waiting, self._filling, self._running = [], [], []

    def fail_all(self) -> list[Chunk]:
        """Give up everything, after an error that concerns all: the last chunk of each request."""
        sequences = [*self._running, *self._filling, *(w[2] for w in self._waiting)]
        ids = sorted({sequence.request.id for sequence in sequences})
        self._waiting, self._filling, self._running = [], [], []
        return [failure(request_id, RuntimeError()) for request_id in ids]

    def step(self) -> list[Chunk]:
        """One step: admit, run a part of a prompt, decode one token of every running sequence."""
        chunks: list[Chunk] = []
        self._admit(chunks)
        self._fill(chunks)
        if self._running:
            chunks += self._decode()
        return chunks

    # -- admission and prompts

    def _admit(self, chunks: list[Chunk]) -> None:
        while self._waiting and self.in_use < self._backend.rows:
            _, _, sequence = self._waiting.pop(0)
            request = sequence.request
            if request.admitted is None:
                request.admitted = time.monotonic()
            if request.echo:
                text = self._tokenizer.decode(request.prompt)
                chunks.append(Chunk(request=request.id, index=sequence.index, text=text))
            self._filling.append(sequence)

    def _fill(self, chunks: list[Chunk]) -> None:
        """Run prompts for at most PREFILL_TOKENS; sequences whose prompt is done start decoding."""
        budget = PREFILL_TOKENS
        while self._filling and budget > 0:
            sequence = self._filling[0]
            prompt = sequence.request.prompt
            # The row behind the running ones; theirs must stay the first.
            row = len(self._running)
            if sequence.filled and sequence.row != row:
                self._backend.copy_row(sequence.row, row, sequence.filled)
            sequence.row = row
            part = prompt[sequence.filled : sequence.filled + budget]
            logits = self._backend.prefill(row, part, sequence.filled)
            sequence.filled += len(part)
            budget -= len(part)
            if sequence.filled < len(prompt):
                return
            self._filling.pop(0)
            self._start(sequence, logits, chunks)

    def _start(self, sequence: Choice, logits: Tensor, chunks: list[Chunk]) -> None:
        """The prompt is in the cache: this sequence, and others of its request, choose a token."""
        request = sequence.request
        siblings = [s for s in self._filling if s.request is request and s.filled == 0]
        for each in [sequence, *siblings]:
            if each is not sequence:
                self._filling.remove(each)
                each.row = len(self._running)
                self._backend.copy_row(sequence.row, each.row, len(request.prompt))
                each.filled = len(request.prompt)
            self._running.append(each)
        # Choose after all have their rows: one that ends at once gives its row to the last.
        for each in [sequence, *siblings]:
            token = choose(logits.unsqueeze(0), [request.sampling], [each.generator])[0]
            chunk = self._take(each, token, logits)
            if chunk is not None:
                chunks.append(chunk)

    # -- decoding

    def _decode(self) -> list[Chunk]:
        running = list(self._running)
        logits = self._backend.decode(
            [s.tokens[-1] for s in running], [s.position for s in running]
        )
        samplings = [s.request.sampling for s in running]
        tokens = choose(logits, samplings, [s.generator for s in running])
        taken = [
            self._take(sequence, token, row)
            for sequence, token, row in zip(running, tokens, logits, strict=True)
        ]
        return [chunk for chunk in taken if chunk is not None]

    def _take(self, sequence: Choice, token: int, logits: Tensor) -> Chunk | None:
        """Add a token to its sequence; the chunk to send, if there is anything to say."""
        request, sampling = sequence.request, sequence.request.sampling
        sequence.tokens.append(token)
        request.generated += 1
        ended = token in self._end_tokens and not sampling.ignore_eos
        text = "" if ended else sequence.text.add(token)
        finish: Finish | None = None
        if ended or sequence.text.stopped:
            finish = "stop"
        elif len(sequence.tokens) >= (sampling.max_tokens or self._context) or (
            len(request.prompt) + len(sequence.tokens) >= self._context
        ):
            finish = "length"
        if ended or finish == "length":
            text += sequence.text.finish()
            finish = "stop" if sequence.text.stopped else finish
        logprobs = []
        if sampling.logprobs is not None and not ended:
            logprobs = [self._logprob(token, logits, sampling.logprobs)]
        usage = None
        if finish is not None:
            self._leave(sequence)
            request.open -= 1
            usage = self._usage(request) if request.open == 0 else None
        elif not text and not logprobs:
            return None
        return Chunk(
            request=request.id,
            index=sequence.index,
            text=text,
            token_count=1,
            logprobs=logprobs,
            finish=finish,
            usage=usage,
        )

    def _leave(self, sequence: Choice) -> None:
        """Free a row: the last running sequence moves into it, so that rows stay 0 … n-1."""
        place = self._running.index(sequence)
        last = self._running.pop()
        if last is not sequence:
            self._backend.copy_row(last.row, place, last.position + 1)
            last.row = place
            self._running[place] = last

    def _usage(self, request: Request) -> Usage:
        now = time.monotonic()
        admitted = request.admitted if request.admitted is not None else now
        return Usage(
            prompt_tokens=len(request.prompt),
            completion_tokens=request.generated,
            queue_s=admitted - request.arrived,
            compute_s=now - admitted,
        )

    def _logprob(self, token: int, logits: Tensor, count: int) -> TokenLogprob:
        logs = torch.log_softmax(logits, dim=-1)
        top: list[tuple[str, list[int], float]] = []
        if count:
            values, places = logs.topk(min(count, len(logs)))
            for value, place in zip(values.tolist(), places.tolist(), strict=True):
                text = self._tokenizer.decode([place], skip_special_tokens=False)
                top.append((text, list(text.encode()), value))
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return TokenLogprob(
            token=text, bytes=list(text.encode()), logprob=float(logs[token]), top=top
        )


def failure(request_id: str, error: Exception) -> Chunk:
    """The last chunk of a request that failed."""
    if isinstance(error, ZenosError):
        return Chunk(request=request_id, error=error.message, code=error.code)
    return Chunk(
        request=request_id, error="cannot answer: an internal error of the engine", code="internal"
    )
