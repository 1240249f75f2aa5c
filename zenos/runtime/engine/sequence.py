"""A request and its sequences: what the engine remembers of each."""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import Final

from zenos.core.wire import GenerateRequest, Times, Usage
from zenos.runtime.engine.text import TextStream
from zenos.runtime.engine.vocabulary import Vocabulary

_numbers: Final = itertools.count(1)


class Request:
    """A request with its prompt's tokens; it has `n` sequences, one for each choice.

    limit: tokens that prompt and answer may have together. computed: whether the prompt was run.
    """

    def __init__(self, request: GenerateRequest, prompt: list[int], context: int) -> None:
        sampling = request.sampling
        self.asked = request
        self.id = request.id
        self.sampling = sampling
        self.priority = request.priority
        self.prompt = prompt
        self.echo = request.echo
        self.echo_text = request.prompt
        self.is_chat = request.messages is not None
        self.limit = min(context, len(prompt) + (sampling.max_tokens or context))
        self.computed = False
        self.open = sampling.n
        self.generated = 0
        self.arrived = time.monotonic()
        self.admitted: float | None = None
        self.has_spoken = False  # a chunk of it was made

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt's own tokens are scored: logprobs of an echo."""
        return self.echo and self.sampling.logprobs is not None

    def usage(self) -> Usage:
        """Counts up to now."""
        return Usage(prompt_tokens=len(self.prompt), completion_tokens=self.generated)

    def times(self) -> Times:
        """How long it has been computed up to now."""
        now = time.monotonic()
        return Times(compute_s=now - (now if self.admitted is None else self.admitted))


class Sequence:
    """One choice of a request, on its way.

    ids: the prompt's tokens and those generated. computed: how many of them are in the cache.
    order: lower goes first: by priority, then by arrival. number: that no other one of the process
    has.
    """

    def __init__(self, request: Request, index: int, vocabulary: Vocabulary, arrival: int) -> None:
        self.number = next(_numbers)
        self.request = request
        self.index = index
        self.order = (-request.priority, arrival)
        self.ids = list(request.prompt)
        self.computed = 0
        self.row = -1
        self.text = TextStream(vocabulary.pieces(start=request.is_chat), request.sampling.stop)
        seed = request.sampling.seed
        # Choices of one seed differ, and a seed gives the same choices again.
        source = os.urandom(16) if seed is None else f"{seed}/{index}".encode()
        self.random = random.Random(source)  # noqa: S311 - for sampling, not for secrets

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - len(self.request.prompt)

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not in the cache yet."""
        return len(self.ids) - self.computed
