"""A replica: loads a model, says that it is ready, answers requests until it is told to stop.

Two threads, and the lanes of a pool. One takes messages and has prompts tokenized (intake.py), so
that a long one holds up nobody's steps; the other steps the engine and sends what comes of it.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from zenos.bus.envelope import body_of
from zenos.core import limits
from zenos.core.errors import ContextLengthError, InvalidError, ZenosError
from zenos.core.names import ModelRef
from zenos.core.specs import ServeSpec
from zenos.core.wire import Abort, Chunk, GenerateRequest, Progress, Ready, Stop, Weights
from zenos.models.records import context_length, family_of
from zenos.runtime import architectures, gpu, precision, weights
from zenos.runtime.context import WorkerContext
from zenos.runtime.engine import llama
from zenos.runtime.engine.batch import Backend
from zenos.runtime.engine.chat import ChatTemplate
from zenos.runtime.engine.engine import Engine, failure
from zenos.runtime.engine.general import GeneralBackend, local_window
from zenos.runtime.engine.generations import Generations
from zenos.runtime.engine.intake import Intake
from zenos.runtime.engine.renewal import Renewal
from zenos.runtime.engine.shown import ShownSequences
from zenos.runtime.engine.vocabulary import Vocabulary
from zenos.threads import reporting

log = logging.getLogger(__name__)
CONTEXT_DEFAULT: Final = 2048
# Told to stop, answers in flight go on until so long before the end by force.
END_S: Final = 2.0
END_SHARE: Final = 0.2  # of the whole time at most
GRACE_S: Final = limits.CANCEL_GRACE_S  # where it isn't said
IDLE_WAIT_S: Final = 0.2
STEP_BYTES: Final = 128 * limits.MIB  # what a step needs beside the cache
TRIAL_ROWS, TRIAL_CONTEXT = 2, 16  # enough to see how large a position is
PROMPT_MIN: Final = 64  # positions that a replica has, however small its limit


class Loaded:
    """A model ready to answer: engine, vocabulary, template, and what `ready` says of it.

    memory: bytes that this process may use, 0 for no limit; gpu_memory: of its GPU's. dtype: what
    it computes in. slots: sequences that it decodes together. version: of the model.
    """

    def __init__(
        self,
        directory: Path,
        spec: ServeSpec,
        memory: int = 0,
        gpu_memory: int = 0,
        version: str = "",
    ) -> None:
        config = architectures.read_config(directory)
        if family_of(config) != "decoder":
            raise InvalidError(
                f"cannot serve {spec.model}: a {config.get('model_type')} model doesn't generate "
                "text token by token; serve a decoder (llama, gpt2, …)"
            )
        self.vocabulary = Vocabulary(directory)
        self.template = ChatTemplate.read(directory)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype, note = precision.resolve(spec.dtype, device)
        if note:
            log.warning("%s", note)
        self.dtype = str(dtype).removeprefix("torch.")
        self._dtype, self._device, self._memory = dtype, device, memory
        model: Any = architectures.load(directory, dtype).to(device)
        room = context_length(config) or CONTEXT_DEFAULT
        self.context = min(room, spec.context or room, local_window(model.config) or room)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.slots = spec.slots
        self.restart = spec.on_update == "restart"
        if device.type == "cuda":
            fit = _positions_on_gpu(model, self.context, dtype, gpu_memory)
            asked = spec.context is not None
            self.slots, self.context = gpu.layout(fit, self.slots, self.context, fixed=asked)
            log.info("%d sequences of at most %d tokens fit", self.slots, self.context)
        backend = self._backend(model)
        self.engine = Engine(
            backend, self.vocabulary, self.context, self.positions(backend), version
        )
        self._room = self.engine.positions
        if self._room is not None and self._room < self.slots * self.context:
            log.info(
                "its memory holds %d tokens of all sequences together: %d of at most %d tokens at "
                "once, where it has %d slots; others wait, fewer with more --memory",
                self._room,
                self._room // self.context,
                self.context,
                self.slots,
            )

    def _backend(self, model: Any) -> Backend:
        if llama.fits(model.config, self.context):
            return llama.LlamaBackend(model, self.slots, self.context, self._dtype)
        return GeneralBackend(model, self.slots, self.context)

    def positions(self, backend: Backend) -> int | None:
        """Cache positions that the memory left has room for; None where nothing limits them."""
        return _positions(self._memory, backend) if self._device.type == "cpu" else None

    # -- other weights of the same model

    @property
    def weights_bytes(self) -> int:
        """Memory that one set of weights takes."""
        return int(self.parameters * self._dtype.itemsize)

    @property
    def has_room(self) -> bool:
        """Whether a second set of weights can be loaded beside the one there.

        While it is being loaded it is there twice: as read, and as laid out. On a GPU all that is
        left holds the cache.
        """
        if self._device.type != "cpu":
            return False
        if not self._memory:
            return True
        left = self._memory - psutil.Process().memory_info().rss
        return left >= 2 * self.weights_bytes + STEP_BYTES

    def weights_positions(self, backend: Backend) -> int:
        """Cache positions that take as much memory as a set of weights; 0 without a limit."""
        return self.weights_bytes // backend.token_bytes if self._memory else 0

    def backend(self, directory: Path, source: str, version: str) -> Backend:
        """A version's weights, ready to compute with: from the shared memory of the training at
        address `source`, or from the files in `directory`."""
        tensors = weights.ask(source, version, self._dtype) if source else None
        if tensors is not None:
            try:
                model: Any = architectures.load(directory, self._dtype, tensors)
                log.info("%s is taken from the training's memory", version)
                return self._backend(model.to(self._device))
            except InvalidError as error:
                log.warning("%s is taken from its files: %s", version, error)
        del tensors
        model = architectures.load(directory, self._dtype)
        return self._backend(model.to(self._device))

    def engine_of(self, backend: Backend, version: str) -> Engine:
        """An engine beside the one there, of the same context and room."""
        return Engine(backend, self.vocabulary, self.context, self._room, version)

    def is_slow(self, request: GenerateRequest) -> bool:
        """Whether its prompt may take long to make: the model's template once did."""
        return request.messages is not None and self.template.overran

    def tokenize(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens: given, or of the text, or of the messages through the template."""
        if request.tokens is not None:
            return request.tokens
        text = request.prompt
        if request.messages is not None:
            text = self.template.render(request.messages)
        if text is None:
            raise InvalidError("cannot answer without a prompt")
        # Megabytes that can never fit would hold up everybody's prompts while they are tokenized.
        if (
            len(text) > self.context
            and (least := self.vocabulary.least_tokens(text)) > self.context
        ):
            raise ContextLengthError(
                f"cannot fit the prompt: at least {least} tokens, the context holds {self.context};"
                " shorten it"
            )
        # An unpaired surrogate is no character, and the tokenizer would panic.
        text = text.encode("utf-8", "replace").decode("utf-8")
        # A template writes the special tokens itself.
        return self.vocabulary.encode(text, special=request.messages is None)


def _positions(memory: int, backend: Backend) -> int | None:
    """Cache positions that fit into what is left of the memory limit; None without one."""
    if not memory:
        return None
    left = memory - psutil.Process().memory_info().rss - STEP_BYTES
    return max(left // backend.token_bytes, PROMPT_MIN)


def _positions_on_gpu(model: Any, context: int, dtype: torch.dtype, limit: int) -> int:
    """Cache positions that fit beside the model, which is on the GPU already."""
    if llama.fits(model.config, context):
        each = llama.token_bytes(model.config, dtype)
    else:
        # Only the model's own pass shows what its keys look like.
        each = GeneralBackend(model, TRIAL_ROWS, min(context, TRIAL_CONTEXT)).token_bytes
    free, _ = torch.cuda.mem_get_info()
    used = torch.cuda.memory_allocated()
    unused = torch.cuda.memory_reserved() - used
    return gpu.cache_bytes(limit, used, free + unused) // each


def main(context: WorkerContext) -> int:
    """Serve until told to stop."""
    begun = time.monotonic()
    spec = context.task.spec.work
    if not isinstance(spec, ServeSpec):
        raise InvalidError("cannot serve another kind of task")
    context.report(Progress(stage="loading"))
    version = context.registry.resolve(ModelRef.parse(spec.model))
    limit = gpu.restrict(context.task)
    memory = context.task.spec.resources.memory
    loaded = Loaded(context.registry.path(version), spec, memory, limit, version.ref)
    intake = Intake(context, loaded.tokenize, loaded.is_slow)
    replica = Replica(context, loaded, intake)
    try:
        replica.catch_up()
        intake.start()
        context.send(
            "state",
            "ready",
            Ready(
                model=replica.engines.version,
                context=loaded.context,
                slots=loaded.slots,
                load_s=time.monotonic() - begun,
                parameters=loaded.parameters,
                chat_template=loaded.template.own,
            ),
        )
        log.info("%s is ready after %.3f s", replica.engines.version, time.monotonic() - begun)
        replica.serve()
    finally:
        replica.close()
        intake.done.set()
        if intake.is_alive():
            intake.join(timeout=5)
    return 0


def _finish_s(stop: Stop) -> float:
    """For how long answers in flight go on after the word to stop."""
    grace_s = GRACE_S if stop.grace_s is None else stop.grace_s
    return max(grace_s - END_S, (1 - END_SHARE) * grace_s)


class Replica:
    """Steps the engines, hands them what has come, and changes their weights between two steps."""

    def __init__(self, context: WorkerContext, loaded: Loaded, intake: Intake) -> None:
        self._context = context
        self._loaded = loaded
        self._intake = intake
        self.engines = Generations(loaded.engine, loaded.slots, restart=loaded.restart)
        del loaded.engine  # so that its weights can go
        self._renewal = Renewal(context, loaded, self.engines)
        self._said = ""  # the version that it has said it serves
        self._shown = ShownSequences(self.engines)
        reporting.watch(self._shown)

    def catch_up(self) -> None:
        """Before the first request: take the version that was published while this one loaded."""
        while (envelope := self._context.receive(0.0)) is not None:
            if envelope.topic == "weights":
                self._renewal.hear(body_of(envelope, Weights))
        while self._renewal.is_due and self._context.stop_requested() is None:
            self._renewal.turn()
            self._renewal.wait(IDLE_WAIT_S)

    def serve(self) -> None:
        """Step the engines while there is work; end when told to and done, or out of time."""
        stop, deadline = None, math.inf
        engines = self.engines
        while True:
            self._renewal.turn()
            self._say_version()
            self._take(wait=engines.idle)
            if self._intake.stop is not None:
                if self._intake.stop is not stop:  # the last word counts
                    stop = self._intake.stop
                    deadline = time.monotonic() + _finish_s(stop)
                if engines.empty or time.monotonic() > deadline:
                    return
            if self._context.channel.disconnected_s > 0:
                # Nobody is there to take the answers; their clients have gone with the daemon.
                engines.abort_all()
            if not engines.idle:
                for chunk in engines.step():
                    self._context.send("data", "chunk", chunk)

    def _say_version(self) -> None:
        """Say what it serves: its task is called by what it began with."""
        if self.engines.version != self._said:
            self._said = self.engines.version
            self._context.report(Progress(stage=f"serving {self._said}"))

    def close(self) -> None:
        """End what renews the weights."""
        self._renewal.close()
        self._shown.finished = True

    def _take(self, *, wait: bool) -> None:
        """Hand what has come to the engine; waits a moment for the first if there is nothing to
        do."""
        handed = self._intake.handed
        while True:
            try:
                item = handed.get(timeout=IDLE_WAIT_S) if wait else handed.get_nowait()
            except queue.Empty:
                return
            wait = False
            if isinstance(item, Abort):
                self.engines.abort(item.request)
            elif isinstance(item, Chunk):
                self._context.send("data", "chunk", item)
            elif isinstance(item, Weights):
                self._renewal.hear(item)
            elif isinstance(item, Stop):
                continue  # `serve` looks at the last word itself
            else:
                request = item.request
                try:
                    self.engines.submit(request, item.prompt, item.arrival)
                except ZenosError as error:
                    self._context.send("data", "chunk", failure(request.id, error))
