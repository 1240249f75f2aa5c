"""Publishing while training: versions of the model, taken between two steps, for who serves them.

1. Between two steps the weights are copied once, into shared memory, as the safetensors file that
   they will be. Where the one before is still being written, as soon as that is done: the newest
   counts, and training never waits.
2. A thread, on a lane of its own, writes that file and registers it as the next version. What was
   published is therefore on the disk, with a number that is never given again.
3. The same memory is offered to replicas on this machine (zenos/runtime/weights.py), until the next
   version takes its place; whoever comes later, or after this process, reads the file.
4. The daemon is told, and each later daemon is told again: deployments follow.

A run that goes on from a checkpoint repeats steps: what it has published already it doesn't publish
again. At the end the last step is published, whatever its number.
"""

from __future__ import annotations

import concurrent.futures
import logging
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from zenos import __version__
from zenos.bus import segment
from zenos.bus.handle import pack
from zenos.bus.memory import Buffer, Pool, size_class
from zenos.core.errors import BusyError, StorageError, ZenosError
from zenos.core.specs import TrainSpec
from zenos.core.wire import Held, Progress, Published
from zenos.models import publishing
from zenos.models.registry import Lineage
from zenos.runtime import weights
from zenos.runtime.beside import beside
from zenos.runtime.context import WorkerContext
from zenos.runtime.train.checkpoint import State
from zenos.runtime.weights import Image, Offer
from zenos.threads import Future

log = logging.getLogger(__name__)

FILE: Final = "model.safetensors"
SEGMENTS: Final = 2  # one that is offered, one that is being written
_CLOSE_WAIT_S: Final = 30.0


class Snapshots:
    """The versions that one training publishes. Used from the training's thread.

    model: whose weights they are; files: what else belongs to a version (the tokenizer).
    """

    def __init__(
        self,
        context: WorkerContext,
        spec: TrainSpec,
        model: torch.nn.Module,
        tensors: Mapping[str, torch.Tensor],
        files: Mapping[str, Path],
    ) -> None:
        if spec.publish is None:
            raise ValueError("nothing to publish")
        self._context, self._spec, self._name = context, spec, spec.publish
        self._tensors = tensors
        self._files = dict(files)
        self._image = Image(tensors)
        (self._layout,), size = pack(("uint8", (self._image.bytes,)))
        self._pool = Pool(SEGMENTS * (segment.HEADER_BYTES + size_class(size)))
        self._offer = Offer(weights.address(context.home, context.task.id))
        self._scratch = tempfile.TemporaryDirectory(prefix="snapshot-", dir=scratch(context))
        self._config = _write_config(model, Path(self._scratch.name))
        self._publishing: Future[None] | None = None
        self._failure = ""
        self._held: set[tuple[str, str]] = set()
        self._parent: str | None = None
        if spec.base is not None:
            self._parent = context.registry.resolve(spec.base).ref
        newest = publishing.newest_of(context.registry.list(), self._name, context.task.id)
        self._step = int(newest.metrics[publishing.STEP]) if newest is not None else 0
        self._taken = self._step
        if newest is not None:
            announce(context, newest.ref)

    def after_step(self, state: State) -> None:
        """Between two steps: publish if it is time, and say what was heard.

        It is time once a multiple of `publish_every` has been passed since the last version was
        taken, in whichever run: one that was suspended before it could makes up for it.
        """
        self._say_what_happened()
        every = self._spec.publish_every
        due = state.step > self._step and state.step // every > self._taken // every
        if due and not self._busy and self._take(state):
            self._taken = state.step

    def finish(self, state: State) -> None:
        """After the last step: publish it, unless it is already; return when that is done."""
        self._join()
        if state.step > self._step and not self._take(state):
            # All shared memory is with replicas that don't give it back: they can read the file.
            self._begin(bytearray(self._image.bytes), state)
        self._join()
        self._say_what_happened()

    def close(self) -> None:
        """Let go of everything; what is being written is finished."""
        if self._publishing is not None:
            concurrent.futures.wait([self._publishing], _CLOSE_WAIT_S)
        self._offer.close()
        self._pool.close()
        self._scratch.cleanup()

    # -- taking

    @property
    def _busy(self) -> bool:
        return self._publishing is not None and not self._publishing.done()

    def _take(self, state: State) -> bool:
        """Copy the weights and have them published; False when there is no memory for that now."""
        for _ in range(2):
            try:
                self._begin(self._pool.allocate(self._layout.bytes), state)
            except BusyError:
                # The one that was offered may be all that is in the way; it is in the registry.
                self._offer.withdraw()
            else:
                return True
        return False

    def _begin(self, target: Buffer | bytearray, state: State) -> None:
        memory = target.memory if isinstance(target, Buffer) else memoryview(target)
        self._image.write(self._tensors, memory[: self._image.bytes])
        metrics = {publishing.STEP: state.step, **_losses(state)}
        del memory
        self._publishing = beside(
            "publish",
            f"step {state.step}",
            partial(self._publish, target, state.step, state.plan.data_digest, metrics),
        )

    def _join(self) -> None:
        if self._publishing is not None:
            self._publishing.result()
            self._publishing = None

    # -- in the thread: no torch operation

    def _publish(
        self, target: Buffer | bytearray, step: int, data_hash: str, metrics: dict[str, Any]
    ) -> None:
        try:
            memory = target.memory if isinstance(target, Buffer) else memoryview(target)
            path = Path(self._scratch.name) / FILE
            with path.open("wb") as file:
                file.write(memory[: self._image.bytes])
            del memory
            version = self._context.registry.publish(
                self._name,
                {**self._files, **self._config, FILE: path},
                lineage=Lineage(
                    parent=self._parent,
                    data_hash=data_hash,
                    task=self._context.task.id,
                    code_version=__version__,
                    project=self._context.task.principal.project,
                ),
                metrics=metrics,
            )
            path.unlink()
            if isinstance(target, Buffer):
                self._offer.put(version.ref, target.lend(self._layout))
        except (OSError, ZenosError) as error:
            self._failure = f"cannot publish {self._name} at step {step}: {error}"
            log.warning("%s", self._failure)
            return
        self._step = step
        log.info("published %s at step %d", version.ref, step)
        announce(self._context, version.ref)

    # -- what is said

    def _say_what_happened(self) -> None:
        failure, self._failure = self._failure, ""
        if failure:
            self._report(f"{failure}; training goes on")
        while (envelope := self._context.receive(0.0)) is not None:
            if envelope.topic != "held":
                continue
            held = msgspec.msgpack.decode(envelope.body, type=Held)
            if (held.deployment, held.version) not in self._held:
                self._held.add((held.deployment, held.version))
                self._report(
                    f"{held.deployment} was rolled back to {held.version} and stays there; "
                    f"'zenos serve {held.deployment}' follows again"
                )

    def _report(self, note: str) -> None:
        self._context.report(Progress(stage="training", done=self._step, note=note))


def _losses(state: State) -> dict[str, Any]:
    """The newest of the loss curve, and after which steps they were measured.

    Nothing is measured for a version: that would cost the training an evaluation each time, and add
    points to its curve, by which it chooses the weights that it ends with.
    """
    trained = state.curve[-1] if state.curve else None
    held_out = next((point for point in reversed(state.curve) if point[2] is not None), None)
    return {
        "train_loss": trained[1] if trained else None,
        "train_loss_at_step": trained[0] if trained else None,
        "eval_loss": held_out[2] if held_out else None,
        publishing.EVAL_STEP: held_out[0] if held_out else None,
    }


def announce(context: WorkerContext, version: str) -> None:
    """Tell the daemon, now and whenever there is another one, what the newest version is."""
    context.send("state", "published", Published(version=version))


def scratch(context: WorkerContext) -> Path:
    """Where files are made that the registry takes over: on its own disk."""
    path = context.home.checkpoint(context.task.id)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _write_config(model: Any, directory: Path) -> dict[str, Path]:
    """config.json and what belongs to it, as `architectures.save` writes them."""
    try:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.save_pretrained(directory)
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
    except OSError as error:
        raise StorageError(f"cannot write to {directory}: {error.strerror or error}") from error
    return {path.name: path for path in directory.iterdir()}
