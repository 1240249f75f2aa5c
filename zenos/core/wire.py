"""Bodies of the messages between the daemon and its workers (see zenos/bus for the envelope).

| topic | kind | direction | body |
| --- | --- | --- | --- |
| `request` | data | daemon → worker | GenerateRequest |
| `abort` | command | daemon → worker | Abort |
| `stop` | command | daemon → worker | Stop |
| `pause` | command | daemon → worker | Pause |
| `paused` | state | worker → daemon | Pause |
| `ready` | state | worker → daemon | Ready |
| `progress` | state | worker → daemon | Progress |
| `chunk` | data | worker → daemon | Chunk |
| `published` | state | worker → daemon | Published |
| `held` | state | daemon → worker | Held |
| `weights` | state | daemon → worker | Weights |
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import msgspec

from zenos.core import limits
from zenos.core.wording import FieldError

# Of an answer: as OpenAI's clients have it. A training's and a new model's begin at 0 (specs.py).
SEED_MIN: Final = -(2**63)
SEED_MAX: Final = 2**63 - 1


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen: temperature 0 is greedy, and top_p 0;
    max_tokens None goes on to the context."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = limits.MAX_TOKENS_DEFAULT
    stop: list[str] = []
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False

    def check(self) -> None:
        """Raises FieldError for numbers that may not be used."""
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 2):
            raise _unusable("temperature", self.temperature, "from 0 to 2")
        if not (math.isfinite(self.top_p) and 0 <= self.top_p <= 1):
            raise _unusable("top_p", self.top_p, "from 0 to 1")
        if self.max_tokens is not None and not 1 <= self.max_tokens <= limits.MAX_TOKENS_MAX:
            raise _unusable("max_tokens", self.max_tokens, f"from 1 to {limits.MAX_TOKENS_MAX}")
        if not 1 <= self.n <= limits.CHOICES_MAX:
            raise _unusable("n", self.n, f"from 1 to {limits.CHOICES_MAX}")
        if self.logprobs is not None and not 0 <= self.logprobs <= limits.LOGPROBS_MAX:
            raise _unusable("logprobs", self.logprobs, f"0 to {limits.LOGPROBS_MAX}")
        most, chars = limits.STOP_STRINGS_MAX, limits.STOP_CHARS_MAX
        if len(self.stop) > most or not all(1 <= len(one) <= chars for one in self.stop):
            raise FieldError(
                f"cannot use these stop strings: at most {most}, each of 1 to {chars} characters",
                "stop",
            )
        if self.seed is not None and not SEED_MIN <= self.seed <= SEED_MAX:
            raise _unusable("seed", self.seed, f"from {SEED_MIN} to {SEED_MAX}")


def _unusable(name: str, value: float, wanted: str) -> FieldError:
    return FieldError(f"cannot use {name} {value}: {wanted}", name)


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Exactly one of prompt, tokens and messages is given.

    messages: `[{"role": …, "content": …}, …]` for the chat template. priority: higher first.
    whole: nothing of the answer is shown before all of it is there, so it may be begun again.
    """

    id: str
    prompt: str | None = None
    tokens: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    sampling: Sampling = Sampling()
    priority: int = limits.PRIORITY_NORMAL
    echo: bool = False
    whole: bool = False


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token with its natural-log probability and the likeliest alternatives.

    token: its text; of a part of a character `bytes:\\xe2…`, as OpenAI writes it. logprob: None for
    the first token of an echoed prompt, before which nothing stands. special: no part of the text.
    """

    token: str
    bytes: list[int]
    logprob: float | None
    top: list[tuple[str, list[int], float]] = []
    special: bool = False


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request's time has gone until then, in seconds.

    load_s: it waited for a replica of its model to be ready. compute_s: since it has had a slot of
    the engine. queue_s: all else since it arrived. A worker knows compute_s alone.
    """

    compute_s: float
    queue_s: float = 0.0
    load_s: float = 0.0


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer: text of choice `index`, never cut inside a character.

    finish: set on the last chunk of a choice. usage: set on the last chunk of the request, which is
    also the last finish. error and code: the request failed; the last chunk. version: of the model
    that computed it, the same for all of one request. again: what came before of this request does
    not count, it is begun again; nothing else is said then. refused: the replica is going down and
    has begun nothing of it; another is to answer. times: on the first chunk and on that with the
    usage.
    """

    request: str
    index: int = 0
    text: str = ""
    token_count: int = 0
    logprobs: list[TokenLogprob] = []
    finish: Literal["stop", "length", "cancelled"] | None = None
    usage: Usage | None = None
    error: str | None = None
    code: str | None = None
    version: str = ""
    again: bool = False
    refused: bool = False
    times: Times | None = None


class Abort(msgspec.Struct, frozen=True, kw_only=True):
    """The client went away: free the request's slots at the next step."""

    request: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """End; write a checkpoint first when `save`.

    Said before SIGTERM, which alone means to save: who is cancelled need not. grace_s: seconds
    until it is ended by force, where that is known.
    """

    save: bool = False
    grace_s: float | None = None


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Compute nothing, or go on; from the worker: that it does so, in answer to that."""

    on: bool


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A replica can answer. load_s: seconds from the worker's first line to here."""

    model: str
    context: int
    slots: int
    load_s: float
    parameters: int
    chat_template: bool = False


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A training's newest published version, registered by now."""

    version: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment was rolled back, and stays on that version whatever is published."""

    deployment: str
    version: str


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The version to serve from now on. turn: higher is later; what is not higher is old news.

    source: the training that may have it in shared memory; else it is read from the registry.
    """

    version: str
    turn: int
    source: str = ""


# The stage of a training that has done its steps and can't be published: the disk is full.
WAITS_FOR_SPACE: Final = "waits for space"


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a task is. stage: e.g. `reading`, `tokenizer`, `packing`, `training`, `saving`.

    done and total count what the stage counts (training: steps). left_s: estimated seconds.
    """

    stage: str
    done: float = 0
    total: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    left_s: float | None = None
    note: str = ""
