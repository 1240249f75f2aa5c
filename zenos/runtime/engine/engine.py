"""Continuous batching: sequences join and leave at any step.

A sequence is the engine's thread. It waits, by priority and then in order, for a row of the cache;
its prompt is run in parts beside the others' decoding; then it decodes with them, one token a step,
until it stops, and its row is free for the next at once.
"""

from __future__ import annotations

import itertools
import logging
import time
from bisect import insort
from collections.abc import Callable
from typing import Any, Final, Literal

import torch
from torch import Tensor

from zenos.core.errors import BusyError, ContextLengthError, InvalidError, WorkerError, ZenosError
from zenos.core.thread_views import ThreadState
from zenos.core.wire import Chunk, GenerateRequest, TokenLogprob
from zenos.runtime.engine.batch import Backend, Batch, Part
from zenos.runtime.engine.rows import Rows
from zenos.runtime.engine.sampling import Draw, TokenLogs, choose, log_probabilities
from zenos.runtime.engine.sequence import Request, Sequence
from zenos.runtime.engine.vocabulary import Vocabulary
from zenos.threads.machine import Counts

log = logging.getLogger(__name__)

# Prompt tokens of one step: few while others decode and wait for it, more when nobody does.
PART_TOKENS: Final = 128
PART_TOKENS_ALONE: Final = 512
SEQUENCES_WAITING_MAX: Final = 8192
Finish = Literal["stop", "length"]
QUEUED: Final[ThreadState] = "queued"
PREFILL: Final[ThreadState] = "prefill"
RUNNING: Final[ThreadState] = "running"


class Engine:
    """One model, its cache, and the sequences that share them. Not for several threads at once."""

    def __init__(
        self,
        backend: Backend,
        vocabulary: Vocabulary,
        context: int | None = None,
        budget: int | None = None,
        version: str = "",
    ) -> None:
        """context: tokens of prompt and answer; budget: positions of all rows together.

        version: of the model, which all chunks name.
        """
        self._backend = backend
        self._vocabulary = vocabulary
        self._rows = Rows(backend, budget)
        self._vocab_size = backend.vocab_size
        self.version = version
        self.paused = False  # no request is begun any more
        self.context = min(context or backend.context, backend.context, self._rows.budget)
        self._waiting: list[Sequence] = []
        self._filling: list[Sequence] = []
        self._running: list[Sequence] = []  # of row 0 … n-1, in this order
        self._arrivals = itertools.count()
        self.counts = Counts()  # of sequences; its heir goes on counting

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._filling or self._running)

    @property
    def rows_used(self) -> int:
        """Rows of the cache that a sequence holds."""
        return self._rows.used

    @property
    def tokens_reused(self) -> int:
        """Prompt tokens that did not have to be computed, since the start."""
        return self._rows.reused

    @property
    def drained(self) -> bool:
        """Whether nothing is left of what was begun."""
        begun = any(sequence.request.admitted is not None for sequence in self._waiting)
        return not (begun or self._filling or self._running)

    def sequences(self) -> dict[int, tuple[Sequence, ThreadState]]:
        """What each one does, by its number, those that run first. From any thread.

        They go from waiting to running: read in this order none is missed, and the later word is
        the truer one.
        """
        found: dict[int, tuple[Sequence, ThreadState]] = {}
        waiting = list(self._waiting)
        filling = list(self._filling)
        running = list(self._running)
        for sequences, state in ((running, RUNNING), (filling, PREFILL), (waiting, QUEUED)):
            for sequence in sequences:
                found.setdefault(sequence.number, (sequence, state))
        return found

    @property
    def positions(self) -> int:
        """Cache positions that all rows together may take."""
        return self._rows.budget

    def limit(self, rows: int, positions: int) -> None:
        """Take no more than so many rows and cache positions from now on."""
        self._rows.most, self._rows.budget = rows, positions

    def claims(self) -> tuple[int, int]:
        """Rows and cache positions of what was begun. What ended ones held is given back."""
        self._rows.release_free()
        waiting = [s.request.limit for s in self._waiting if s.request.admitted is not None]
        return self._rows.used + len(waiting), self._rows.touched + sum(waiting)

    def hand_over(self, heir: Engine) -> None:
        """Give what was not begun to another engine. Choices of one request stay together."""
        moved = [s for s in self._waiting if s.request.admitted is None]
        self._waiting = [s for s in self._waiting if s.request.admitted is not None]
        heir._arrivals, heir.counts = self._arrivals, self.counts
        for sequence in moved:
            insort(heir._waiting, sequence, key=lambda s: s.order)

    def unload(self) -> None:
        """Let go of weights and cache. Only when it is drained and paused; `load` comes next."""
        del self._backend, self._rows

    def load(self, backend: Backend, budget: int | None, version: str) -> None:
        """Go on with other weights and an empty cache."""
        room = None if budget is None else max(budget, self.context)
        self._backend, self._rows = backend, Rows(backend, room)
        self.version, self.paused = version, False

    def check(self, prompt: list[int]) -> None:
        """InvalidError for a prompt that can never be answered."""
        if not prompt:
            raise InvalidError("cannot continue an empty prompt: give at least one token")
        if len(prompt) >= self.context:
            raise ContextLengthError(
                f"cannot fit the prompt: {len(prompt)} tokens, the context holds {self.context} "
                "with at least one for the answer; shorten it"
            )
        if min(prompt) < 0 or max(prompt) >= self._vocab_size:
            raise InvalidError(
                f"cannot use these tokens: they must be from 0 to {self._vocab_size - 1}"
            )

    def submit(
        self, request: GenerateRequest, prompt: list[int], arrival: int | None = None
    ) -> None:
        """Queue a request. InvalidError when it can never be answered, BusyError when too many.

        arrival: where the order of coming isn't that of submitting; all of an engine, or none.
        """
        request.sampling.check()
        self.check(prompt)
        if len(self._waiting) + request.sampling.n > SEQUENCES_WAITING_MAX:
            raise BusyError
        self._queue(request, prompt, next(self._arrivals) if arrival is None else arrival)
        self.counts.submitted += request.sampling.n

    def _queue(self, request: GenerateRequest, prompt: list[int], arrival: int) -> None:
        record = Request(request, prompt, self.context)
        for index in range(request.sampling.n):
            sequence = Sequence(record, index, self._vocabulary, arrival)
            insort(self._waiting, sequence, key=lambda s: s.order)

    def begin_again(self, chosen: Callable[[GenerateRequest], bool]) -> list[str]:
        """Put requests that were begun back to their places among those that wait; which."""
        everything = [*self._running, *self._filling, *self._waiting]
        begun = {
            s.request.id: s
            for s in everything
            if s.request.admitted is not None and chosen(s.request.asked)
        }
        self.counts.retried += self._drop(lambda sequence: sequence.request.id in begun)
        for sequence in begun.values():
            self._queue(sequence.request.asked, sequence.request.prompt, sequence.order[1])
        return list(begun)

    def abort(self, request_id: str) -> None:
        """Forget a request: its rows are free before the next step."""
        self.counts.cancelled += self._drop(lambda sequence: sequence.request.id == request_id)

    def abort_all(self) -> list[str]:
        """Forget everything; the requests that were not finished."""
        everything = [*self._running, *self._filling, *self._waiting]
        self.counts.cancelled += self._drop(lambda _: True)
        return list(dict.fromkeys(sequence.request.id for sequence in everything))

    def step(self) -> list[Chunk]:
        """Admit, run a part of the prompts, decode one token of every running sequence."""
        chunks: list[Chunk] = []
        self._admit(chunks)
        if not (self._running or self._filling):
            return chunks
        parts = self._parts()
        running = list(self._running)
        filled = [sequence for sequence, _ in parts]
        try:
            logits = self._backend.forward(
                Batch(
                    [sequence.ids[-1] for sequence in running],
                    [len(sequence.ids) - 1 for sequence in running],
                    [part for _, part in parts],
                )
            )
            choosing, logits = self._advance(running, parts, logits, chunks)
            tokens = choose(logits, [_draw(sequence) for sequence in choosing])
            logs = self._logs(choosing, tokens, logits)
        except Exception as error:
            # A step that fails ends the prompts that were new in it; without any, all that ran.
            log.exception("a step failed")
            chunks += self._fail(filled or running, error)
            return chunks
        for sequence, token in zip(choosing, tokens, strict=True):
            if sequence.row < 0:
                continue  # it went with another choice of its request, which has just failed
            try:
                chunk = self._take(sequence, token, logs.get(id(sequence)))
            except Exception as error:
                if not isinstance(error, ZenosError):
                    log.exception("a sequence failed")
                chunks += self._fail([sequence], error)
            else:
                chunks += [chunk] if chunk is not None else []
        return chunks

    # -- admission and prompts

    def _admit(self, chunks: list[Chunk]) -> None:
        """Give rows to those that wait, in order, until there is none left.

        A request's further choices wait for the first one's prompt, to take it over.
        """
        kept: list[Sequence] = []
        for place, sequence in enumerate(self._waiting):
            request = sequence.request
            if self.paused and request.admitted is None:
                kept.append(sequence)
                continue
            if sequence.index and not (request.computed or request.wants_prompt_logprobs):
                kept.append(sequence)
                continue
            if not self._rows.take(sequence, reuse=not request.wants_prompt_logprobs):
                kept += self._waiting[place:]
                break
            if request.admitted is None:
                request.admitted = time.monotonic()
            insort(self._filling, sequence, key=lambda s: s.order)
            if request.echo:
                text = request.echo_text
                text = self._vocabulary.decode(request.prompt) if text is None else text
                chunks.append(self._chunk(sequence, text=text))
        self._waiting = kept

    def _parts(self) -> list[tuple[Sequence, Part]]:
        """What of the prompts this step computes, first come first."""
        budget = PART_TOKENS if self._running else PART_TOKENS_ALONE
        parts: list[tuple[Sequence, Part]] = []
        for sequence in self._filling:
            if budget <= 0:
                break
            tokens = sequence.ids[sequence.computed : sequence.computed + budget]
            budget -= len(tokens)
            wanted = 1 if len(tokens) == sequence.left else 0
            if sequence.request.wants_prompt_logprobs:
                wanted = len(tokens)
            parts.append((sequence, Part(sequence.row, tokens, sequence.computed, wanted)))
        return parts

    def _advance(
        self,
        running: list[Sequence],
        parts: list[tuple[Sequence, Part]],
        logits: Tensor,
        chunks: list[Chunk],
    ) -> tuple[list[Sequence], Tensor]:
        """What was computed is in the cache: those that choose a token now, and their logits."""
        for sequence in running:
            sequence.computed = len(sequence.ids)
        # All of them before any is moved: a move takes along what counts as computed.
        for sequence, part in parts:
            sequence.computed += len(part.tokens)
        choosing, kept = list(running), list(range(len(running)))
        at = len(running)
        for sequence, part in parts:
            at += part.wanted
            if sequence.request.wants_prompt_logprobs:
                chunks += self._prompt_logs(sequence, part, logits[at - part.wanted : at])
            if sequence.left == 0:
                self._filling.remove(sequence)
                self._rows.place(sequence, len(self._running))
                self._running.append(sequence)
                sequence.request.computed = True
                choosing.append(sequence)
                kept.append(at - 1)
        return choosing, logits if len(kept) == len(logits) else logits[kept]

    def _prompt_logs(self, sequence: Sequence, part: Part, logits: Tensor) -> list[Chunk]:
        """Log probabilities of a prompt's tokens: each position's logits score the next token.

        The very first has nothing before it, and is given none.
        """
        count = sequence.request.sampling.logprobs or 0
        scored = sequence.ids[part.start + 1 : part.start + 1 + len(part.tokens)]
        found = []
        if part.start == 0:
            found.append(self._token_logprob(part.tokens[0], None))
        if scored:
            logs = log_probabilities(logits[: len(scored)], scored, [count] * len(scored))
            found += [self._token_logprob(*each) for each in zip(scored, logs, strict=True)]
        return [self._chunk(sequence, logprobs=found)]

    def _chunk(self, sequence: Sequence, **said: Any) -> Chunk:
        request = sequence.request
        telling = not request.has_spoken or said.get("usage") is not None
        request.has_spoken = True
        return Chunk(
            request=request.id,
            index=sequence.index,
            version=self.version,
            times=request.times() if telling else None,
            **said,
        )

    # -- tokens

    def _logs(
        self, choosing: list[Sequence], tokens: list[int], logits: Tensor
    ) -> dict[int, TokenLogs]:
        """For the sequences that asked for it, by their identity."""
        asked = [
            (place, sequence, sequence.request.sampling.logprobs)
            for place, sequence in enumerate(choosing)
            if sequence.request.sampling.logprobs is not None and tokens[place] >= 0
        ]
        if not asked:
            return {}
        places = [place for place, _, _ in asked]
        counts = [count or 0 for _, _, count in asked]
        found = log_probabilities(logits[places], [tokens[p] for p in places], counts)
        return {id(each[1]): logs for each, logs in zip(asked, found, strict=True)}

    def _take(self, sequence: Sequence, token: int, logs: TokenLogs | None) -> Chunk | None:
        """Add a token to its sequence; the chunk to send, if there is anything to say."""
        if token < 0:
            raise WorkerError("cannot go on: the model computed something that is not a number")
        request = sequence.request
        ended = token in self._vocabulary.end_ids and not request.sampling.ignore_eos
        sequence.ids.append(token)
        request.generated += 1
        text = "" if ended else sequence.text.add(token)
        finish: Finish | None = None
        if ended or sequence.text.stopped:
            finish = "stop"
        elif len(sequence.ids) >= request.limit:
            finish = "length"
        if finish is not None and not sequence.text.stopped:
            text += sequence.text.finish()
            finish = "stop" if sequence.text.stopped else finish
        logprobs = [] if logs is None or ended else [self._token_logprob(token, logs)]
        usage = None
        if finish is not None:
            self._leave(sequence)
            self.counts.succeeded += 1
            request.open -= 1
            usage = request.usage() if request.open == 0 else None
        return self._chunk(
            sequence,
            text=text,
            token_count=1,
            logprobs=logprobs,
            finish=finish,
            usage=usage,
        )

    def _token_logprob(self, token: int, logs: TokenLogs | None) -> TokenLogprob:
        def shown(id_: int) -> tuple[str, list[int]]:
            raw = self._vocabulary.bytes_of(id_)
            try:
                return raw.decode(), list(raw)
            except UnicodeDecodeError:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), list(raw)

        text, raw = shown(token)
        return TokenLogprob(
            token=text,
            bytes=raw,
            logprob=None if logs is None else logs.chosen,
            top=[] if logs is None else [(*shown(other), value) for other, value in logs.top],
            special=self._vocabulary.is_special(token),
        )

    # -- the end of sequences

    def _leave(self, sequence: Sequence) -> None:
        """Free a running sequence's row: the last moves into it, so that rows stay 0 … n-1."""
        place = sequence.row
        last = self._running.pop()
        if last is not sequence:
            self._rows.place(last, place)
            self._running[place] = last
        self._rows.give_back(sequence)

    def _drop(self, chosen: Callable[[Sequence], bool]) -> int:
        """Forget these sequences; how many they were."""
        waiting = len(self._waiting)
        self._waiting = [s for s in self._waiting if not chosen(s)]
        filling = [s for s in self._filling if chosen(s)]
        for sequence in filling:
            self._filling.remove(sequence)
            self._rows.give_back(sequence)
        running = [s for s in self._running if chosen(s)]
        for sequence in running:
            self._leave(sequence)
        return waiting - len(self._waiting) + len(filling) + len(running)

    def _fail(self, sequences: list[Sequence], error: Exception) -> list[Chunk]:
        """Give up the requests of these sequences: the last chunk of each."""
        ids = dict.fromkeys(sequence.request.id for sequence in sequences)
        self.counts.failed += self._drop(lambda sequence: sequence.request.id in ids)
        return [failure(request_id, error) for request_id in ids]


def _draw(sequence: Sequence) -> Draw:
    sampling = sequence.request.sampling
    return Draw(sampling.temperature, sampling.top_p, sequence.random.random())


def failure(request_id: str, error: Exception) -> Chunk:
    """The last chunk of a request that failed."""
    if isinstance(error, ZenosError):
        return Chunk(request=request_id, error=error.message, code=error.code)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Chunk(
            request=request_id,
            error="cannot answer: the replica has no memory left for this request",
            code="unavailable",
        )
    return Chunk(
        request=request_id, error="cannot answer: an internal error of the engine", code="internal"
    )
