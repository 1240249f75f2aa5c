"""A replica: loads a model, says that it is ready, answers requests until it is told to stop.

Two threads. One takes messages and tokenizes, so that a long prompt doesn't hold up the steps of
others; the other steps the engine and sends what comes of it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from zenos.bus.envelope import Envelope, FrameError, body_of
from zenos.core import limits
from zenos.core.errors import ContextLengthError, InvalidError, ZenosError
from zenos.core.names import ModelRef
from zenos.core.specs import ServeSpec
from zenos.core.wire import Abort, Chunk, GenerateRequest, Progress, Ready
from zenos.models.records import context_length, family_of
from zenos.runtime import architectures, gpu, precision
from zenos.runtime.context import WorkerContext
from zenos.runtime.engine import llama
from zenos.runtime.engine.batch import Backend
from zenos.runtime.engine.chat import ChatTemplate
from zenos.runtime.engine.engine import Engine, failure
from zenos.runtime.engine.general import GeneralBackend, local_window
from zenos.runtime.engine.vocabulary import Vocabulary

log = logging.getLogger(__name__)
CONTEXT_DEFAULT: Final = 2048
FINISH_S: Final = 8.0  # told to stop, answers in flight have so long to end
IDLE_WAIT_S: Final = 0.2
STEP_BYTES: Final = 128 * limits.MIB  # what a step needs beside the cache
TRIAL_ROWS, TRIAL_CONTEXT = 2, 16  # enough to see how large a position is
PROMPT_MIN: Final = 64  # positions that a replica has, however small its limit

Incoming = tuple[GenerateRequest, list[int]] | Abort | Chunk


class Loaded:
    """A model ready to answer: engine, vocabulary, template, and what `ready` says of it.

    memory: bytes that this process may use, 0 for no limit; gpu_memory: of its GPU's. dtype: what
    it computes in. slots: sequences that it decodes together.
    """

    def __init__(
        self, directory: Path, spec: ServeSpec, memory: int = 0, gpu_memory: int = 0
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
        model: Any = architectures.load(directory, dtype).to(device)
        room = context_length(config) or CONTEXT_DEFAULT
        self.context = min(room, spec.context or room, local_window(model.config) or room)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.slots = spec.slots
        if device.type == "cuda":
            fit = _positions_on_gpu(model, self.context, dtype, gpu_memory)
            asked = spec.context is not None
            self.slots, self.context = gpu.layout(fit, self.slots, self.context, fixed=asked)
            log.info("%d sequences of at most %d tokens fit", self.slots, self.context)
        backend: Backend
        if llama.fits(model.config, self.context):
            backend = llama.LlamaBackend(model, self.slots, self.context, dtype)
        else:
            backend = GeneralBackend(model, self.slots, self.context)
        positions = _positions(memory, backend) if device.type == "cpu" else None
        self.engine = Engine(backend, self.vocabulary, self.context, positions)

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


class Intake(threading.Thread):
    """Takes messages from the bus, tokenizes, and hands over.

    All that has come is looked at before the next prompt is tokenized: an abort frees what waits
    here as well. One that comes before its request (commands go first) is remembered.
    """

    def __init__(self, context: WorkerContext, loaded: Loaded) -> None:
        super().__init__(name="intake", daemon=True)
        self._context = context
        self._loaded = loaded
        self.handed: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self.stopping = threading.Event()
        self.done = threading.Event()
        self._waiting: dict[str, GenerateRequest] = {}
        self._aborted: dict[str, None] = {}  # requests that need not be answered when they come

    def run(self) -> None:
        """Until the replica has ended; after the word to stop, requests are refused."""
        while not self.done.is_set():
            envelope = self._context.receive(0.0 if self._waiting else IDLE_WAIT_S)
            if self._context.stop_requested() is not None:
                self.stopping.set()
                self.done.wait(0.01)
            while envelope is not None:
                try:
                    self._sort(envelope)
                except FrameError as error:
                    log.warning("a message was left out: %s", error)
                envelope = self._context.receive(0.0)
            if self._waiting:
                self._request(self._waiting.pop(next(iter(self._waiting))))

    def _sort(self, envelope: Envelope) -> None:
        if envelope.topic == "request":
            request: GenerateRequest = body_of(envelope, GenerateRequest)
            if request.id not in self._aborted:
                self._waiting[request.id] = request
        elif envelope.topic == "abort":
            abort: Abort = body_of(envelope, Abort)
            if self._waiting.pop(abort.request, None) is not None:
                return
            self._aborted[abort.request] = None
            if len(self._aborted) > limits.REQUESTS_WAITING_MAX:
                del self._aborted[next(iter(self._aborted))]
            self.handed.put(abort)

    def _request(self, request: GenerateRequest) -> None:
        try:
            if self.stopping.is_set():
                raise ZenosError("cannot answer: the replica is going down")
            self.handed.put((request, self._loaded.tokenize(request)))
        except Exception as error:
            if not isinstance(error, ZenosError):
                log.exception("a request failed")
            self.handed.put(failure(request.id, error))


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
    loaded = Loaded(context.registry.path(version), spec, memory, limit)
    intake = Intake(context, loaded)
    intake.start()
    context.send(
        "state",
        "ready",
        Ready(
            model=version.ref,
            context=loaded.context,
            slots=loaded.slots,
            load_s=time.monotonic() - begun,
            parameters=loaded.parameters,
            chat_template=loaded.template.own,
        ),
    )
    context.report(Progress(stage="serving"))
    log.info("%s is ready after %.3f s", version.ref, time.monotonic() - begun)
    try:
        serve(context, loaded.engine, intake)
    finally:
        intake.done.set()
        intake.join(timeout=5)
    return 0


def serve(context: WorkerContext, engine: Engine, intake: Intake) -> None:
    """Step the engine while there is work; end when told to and done, or out of time."""
    deadline: float | None = None
    while True:
        take(context, engine, intake, wait=engine.idle)
        if intake.stopping.is_set():
            deadline = deadline or time.monotonic() + FINISH_S
            if engine.idle or time.monotonic() > deadline:
                return
        if context.channel.disconnected_s > 0:
            # Nobody is there to take the answers, and their clients have gone with the daemon.
            engine.abort_all()
        if not engine.idle:
            for chunk in engine.step():
                context.send("data", "chunk", chunk)


def take(context: WorkerContext, engine: Engine, intake: Intake, *, wait: bool) -> None:
    """Hand what has come to the engine; waits a moment for the first if there is nothing to do."""
    while True:
        try:
            item = intake.handed.get(timeout=IDLE_WAIT_S) if wait else intake.handed.get_nowait()
        except queue.Empty:
            return
        wait = False
        if isinstance(item, Abort):
            engine.abort(item.request)
        elif isinstance(item, Chunk):
            context.send("data", "chunk", item)
        else:
            request, prompt = item
            try:
                engine.submit(request, prompt)
            except ZenosError as error:
                context.send("data", "chunk", failure(request.id, error))
