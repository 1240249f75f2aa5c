"""The loop: steps, evaluation, checkpoints. It reads as prose from `run` downwards."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from zenos.core.errors import InvalidError, StorageError
from zenos.core.specs import TrainSpec
from zenos.core.wire import Progress
from zenos.core.wording import counted
from zenos.runtime import allocator, precision
from zenos.runtime.train import numerics, optimizer, schedule
from zenos.runtime.train.checkpoint import Checkpoint, Checkpoints, Plan, State
from zenos.runtime.train.gang import Gang
from zenos.runtime.train.inputs import Inputs
from zenos.runtime.train.objectives import IGNORED, Objective, mean_loss
from zenos.runtime.train.packing import Packed, Samples, Tokens, held_out_windows
from zenos.runtime.train.parameters import Weights, load_weights, weights_of
from zenos.runtime.train.shown import ShownSteps
from zenos.runtime.train.speed import Speed

log = logging.getLogger(__name__)

CURVE_POINTS: Final = 200
SHARD_STRIDE: Final = 2**61 - 1  # between the seeds of two shards
Part = tuple[torch.Tensor, torch.Tensor, float]  # inputs, targets, weight


class Suspended(Exception):  # noqa: N818 - not an error: the way out of wherever the run is
    """Told to stop; everything up to `step` is saved.

    saved: whether that is all; not so where the last checkpoint could not be written.
    """

    def __init__(self, step: int, *, saved: bool = True) -> None:
        super().__init__(step)
        self.step = step
        self.saved = saved


class HeldOut(NamedTuple):
    """loss: nats per token. targets, before: the tokens it was taken over, shape (count,)."""

    loss: float
    targets: Tokens
    before: Tokens


class Trainer:
    """One training run: model, optimiser, data and where it stands.

    report: hears Progress. stopping: whether to save and leave at the next step boundary; it may
    take long, while the run is paused. clock: seconds, without those in which it was paused. gang:
    the processes that do each step together, where there are several; see ranks.py for the others.
    """

    def __init__(
        self,
        spec: TrainSpec,
        model: torch.nn.Module,
        objective: Objective,
        packed: Packed,
        checkpoints: Checkpoints,
        plan: Plan,
        device: torch.device,
        report: Callable[[Progress], None],
        stopping: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
        gang: Gang | None = None,
    ) -> None:
        self.spec = spec
        self.gang = gang
        self.model = model.to(device)
        self.objective = objective
        self.packed = packed
        self.checkpoints = checkpoints
        self.device = device
        self.report = report
        self.stopping = stopping
        self.clock = clock
        self.after_step: Callable[[State], None] | None = None  # called between two steps
        self.samples = Samples(
            packed.train, length=objective.length, stride=objective.stride, seed=spec.seed
        )
        self.wanted = schedule.steps_wanted(spec, self.samples.per_epoch)
        self.loss: Callable[..., torch.Tensor] = mean_loss
        self.dtype, note = precision.resolve(spec.dtype, device)
        if note:
            self._warn("building", note)
        if spec.compile:
            self._compile()
        self.optimizer = optimizer.adamw(spec, self.model)
        self.state = State(
            step=0,
            plan=plan,
            fingerprint=numerics.fingerprint(
                device, self.dtype, self.loss is not mean_loss, spec.workers, spec.backend
            ),
        )
        self.best: Weights | None = None
        self.pace = schedule.Pace(spec)
        self._speed = Speed()
        self._save_due = False
        self._inputs = Inputs(self._micro_batches)

    # -- the run

    def begin(self) -> None:
        """Fix the number of steps where it doesn't hang on the speed of the first ones."""
        if self.state.plan.steps is None and self.spec.time_budget_s is None:
            self.state.plan.steps = self.wanted
            self.checkpoints.write_plan(self.state.plan)

    def run(self) -> None:
        """Train to the last step, and save there. Raises Suspended when told to stop."""
        with self.at_work():
            self._run()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While steps are done: they are shown, and their batches are made ahead."""
        rank = self.gang.rank if self.gang is not None else 0
        shown = ShownSteps(rank, lambda: (self.state.step, self.state.plan.last))
        allocator.keep_freed()
        try:
            yield
        finally:
            allocator.give_back()
            shown.finished = True
            self._inputs.close()

    def _run(self) -> None:
        self.model.train()
        if self.state.evaluating:
            self._evaluate_if_due()
            self._save_if_due()
        while not self._finished():
            if self.stopping():
                self.suspend()
            began = self.clock()
            loss = self._step()
            if loss is None:
                continue
            took_s = self.clock() - began
            self._account(loss, took_s)
            self._plan_steps(took_s)
            self._evaluate_if_due()
            self._save_if_due()
            self._tell(loss)
            self.checkpoints.tidy()
            if self.after_step is not None:
                self.after_step(self.state)
        self._save_and_wait("the last step")

    def _finished(self) -> bool:
        state = self.state
        if state.plan.last is not None and state.step >= state.plan.last:
            return True
        if not self.pace.is_over(state.step, state.trained_s):
            return False
        state.plan.cut = state.step
        self._say(f"ended at step {state.step} of {state.plan.last}: the time budget is over")
        if not state.curve or state.curve[-1][0] != state.step:
            self._add_point(None)
        self._evaluate_if_due()
        return True

    def _step(self) -> float | None:
        """One optimiser step over `accumulate` micro-batches; the mean loss in nats.

        None when it was told to stop on the way: then nothing has changed.
        """
        rate = self._next_rate()
        if self.gang is not None:
            self.gang.tell_step(rate)
        return self.update(rate)

    def _next_rate(self) -> float:
        plan, step = self.state.plan, self.state.step
        return schedule.learning_rate(self.spec, step, plan.steps, plan.planned_at, plan.fit)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self, rate: float) -> float | None:
        """The step with that learning rate, as each process of a gang does it."""
        spec, step, gang = self.spec, self.state.step, self.gang
        self._set_rate(rate)
        batches = self._inputs.take(step, self.state.plan.last)
        means = [0.0] * (len(gang.own) if gang is not None else 1)
        for micro, parts in enumerate(batches):
            if micro and (gang.dropped(self.stopping) if gang is not None else self.stopping()):
                # What is half done is thrown away, and done again by whoever goes on.
                self.optimizer.zero_grad(set_to_none=True)
                if gang is not None:
                    gang.drop()
                return None
            for number, part in enumerate(parts):
                if gang is not None and (micro, number) == (len(batches) - 1, len(parts) - 1):
                    gang.arm()
                means[number] += self._pass(micro, number, part)
                if gang is not None and len(parts) > 1:
                    gang.put(number)
        mean = gang.sum_up(means) if gang is not None else means[0]
        norm = gang.clip(spec.clip) if gang is not None else optimizer.clip(self.model, spec.clip)
        for what, value in (("loss", mean), ("gradient's norm", norm)):
            if not math.isfinite(value):  # before it gets into the weights
                raise InvalidError(
                    f"cannot go on: the {what} is {value} at step {step}; {optimizer.advice(step)}"
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if gang is not None:
            gang.meet()
        return mean

    def _pass(self, micro: int, number: int, part: Part) -> float:
        """Forward and backward over one shard of a micro-batch; its share of the loss."""
        inputs, targets, weight = part
        # All randomness (dropout) is a function of the seed and the number of micro-batch and
        # shard: nothing to save, and the same wherever it is computed.
        seed = self.spec.seed * 1_000_003 + self.state.step * self.spec.accumulate + micro
        shard = self.gang.own[number] if self.gang is not None else 0
        torch.manual_seed((seed + shard * SHARD_STRIDE) % 2**63)
        if not weight:
            return 0.0
        with self._autocast():
            loss = self.loss(self.model, inputs.to(self.device), targets.to(self.device))
        torch.autograd.backward(loss * weight if weight != 1 else loss)
        return loss.item() * weight

    def weights(self) -> Weights:
        """The model's own tensors by name, each tied one once; they change with the next step."""
        return weights_of(self.model)

    def _micro_batches(self, step: int) -> list[list[Part]]:
        """What is computed of each micro-batch: of a gang this process's shards, else all of it.

        Masked micro-batches have different numbers of targets; weighted by its share of the step's
        a step is the same whether its sequences come at once or in parts, or to several processes.
        Parts without a target have weight 0. Made on a lane, ahead.
        """
        size, gang = self.spec.batch_size, self.gang
        cuts = [slice(size)] if gang is None else [gang.rows(size, shard) for shard in gang.own]
        batches = []
        for micro in range(self.spec.accumulate):
            first = (step * self.spec.accumulate + micro) * size
            batches.append(self._tensors(self.samples.take(first, size), first))
        counted = [batch.targets != IGNORED for _, _, batch in batches]
        total = sum(int(one.sum()) for one in counted)
        return [
            [(inputs[rows], targets[rows], int(one[rows].sum()) / total) for rows in cuts]
            for (inputs, targets, _), one in zip(batches, counted, strict=True)
            if one.any()
        ]

    def _tensors(self, windows: Tokens, first: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        batch = self.objective.batch(windows, first)
        inputs = torch.from_numpy(np.ascontiguousarray(batch.inputs))
        targets = torch.from_numpy(np.ascontiguousarray(batch.targets))
        return inputs, targets, batch

    def _autocast(self) -> Any:
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _account(self, loss: float, took_s: float) -> None:
        state = self.state
        state.step += 1
        state.trained_s += took_s
        state.window.append(loss)
        tokens = self.spec.batch_size * self.spec.accumulate * self.spec.sequence_length
        self._speed.add(tokens, took_s)
        every = max(1, (state.plan.steps or 1) // CURVE_POINTS)
        if state.step % every == 0 or state.step == state.plan.last:
            self._add_point(None)

    def _add_point(self, eval_loss: float | None) -> None:
        """A point on the loss curve: the mean training loss since the last one."""
        state = self.state
        if state.window:
            mean = sum(state.window) / len(state.window)
            state.curve.append((state.step, mean, eval_loss))
            state.window.clear()
        elif state.curve and state.curve[-1][0] == state.step:
            step, mean, _ = state.curve[-1]
            state.curve[-1] = (step, mean, eval_loss)

    # -- how many steps

    def _plan_steps(self, took_s: float) -> None:
        """Turn a time budget into steps once the speed is known, and remember that for good."""
        plan = self.state.plan
        if plan.steps is not None:
            self._fit_again()
            return
        self.pace.step_took(took_s)
        plan.steps = self.pace.plan(self.wanted, self.state.step, self.state.trained_s)
        if plan.steps is not None:
            plan.planned_at = self.state.step
            self.checkpoints.write_plan(plan)
            why = " to fit the time budget"
            if plan.steps == self.spec.steps_min < self.wanted:
                why = ", the fewest that are wanted, however long they take"
            self._say(f"{counted(plan.steps, 'step')}{why}")

    def _fit_again(self) -> None:
        """Fewer steps where the machine has become slower than planned, or again more of them."""
        state = self.state
        fit = self.pace.fit_again(state.plan, state.step, state.trained_s)
        if fit is not None:
            state.plan.fit = fit
            self._save_due = True  # a resume goes on with the same schedule
            self._say(f"{fit.steps} of {state.plan.steps} planned steps fit the time budget")

    # -- evaluation

    def _evaluate_if_due(self) -> None:
        state, spec = self.state, self.spec
        last = state.step == state.plan.last
        if len(self.packed.eval) == 0 or not (state.step % spec.eval_every == 0 or last):
            return
        began = self.clock()
        state.evaluating = True
        loss = self.evaluate(spec.eval_batches * spec.batch_size, self._leave_if_told).loss
        state.evaluating = False
        state.trained_s += self.clock() - began
        if math.isnan(loss):
            return
        self._add_point(loss)
        if state.best_loss is None or loss < state.best_loss:
            state.best_step, state.best_loss = state.step, loss
            # New tensors each time: the ones before may be on their way to the disk.
            self.best = {n: p.detach().clone() for n, p in weights_of(self.model).items()}

    def _leave_if_told(self) -> None:
        """Whoever goes on evaluates anew: nothing hangs on how far this one has come."""
        if self.stopping():
            self.suspend()

    @torch.no_grad()
    def evaluate(self, windows_max: int, check: Callable[[], None] | None = None) -> HeldOut:
        """Loss over at most `windows_max` windows spread evenly over the held-out tokens.

        NaN where there are not enough tokens for one window. check: called before each batch.
        """
        self.model.eval()
        total, targets_seen, before_seen = 0.0, [], []
        for inputs, targets, batch in self._held_out(windows_max):
            if check is not None:
                check()
            with self._autocast():
                loss = mean_loss(self.model, inputs.to(self.device), targets.to(self.device))
            counted = batch.targets != IGNORED
            total += loss.item() * int(counted.sum())
            targets_seen.append(batch.targets[counted])
            before_seen.append(batch.before[counted])
        self.model.train()
        if not targets_seen:
            return HeldOut(math.nan, np.zeros(0, np.int64), np.zeros(0, np.int64))
        seen = np.concatenate(targets_seen)
        return HeldOut(total / len(seen), seen, np.concatenate(before_seen))

    def _held_out(self, windows_max: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any]]:
        windows = held_out_windows(
            self.packed.eval,
            length=self.objective.length,
            stride=self.objective.stride,
            count_max=windows_max,
        )
        size = self.spec.batch_size
        for first in range(0, len(windows), size):
            yield self._tensors(windows[first : first + size], first)

    # -- checkpoints

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises RefusedError when that would change the numerics."""
        state = checkpoint.state
        note = numerics.check_same(
            state.fingerprint, self.state.fingerprint, inexact=self.spec.inexact
        )
        model, moments = checkpoint.tensors("model"), checkpoint.tensors("optimizer")
        if model is None or moments is None:
            raise StorageError(f"cannot resume from {checkpoint.directory}: a part is missing")
        load_weights(self.model, model)
        optimizer.load_moments(self.model, self.optimizer, moments, self.device)
        best = checkpoint.tensors("best")
        if best is not None:
            self.best = {name: tensor.to(self.device) for name, tensor in best.items()}
        elif state.best_step is not None:
            self.best = {n: p.detach().clone() for n, p in weights_of(self.model).items()}
        checkpoint.let_go()
        state.fingerprint = self.state.fingerprint
        self.state = state
        self._set_rate(self._next_rate())  # which is told, before the first step uses it
        self._say(note or f"resumed at step {state.step}")

    def _begin_save(self, *, copy: bool = True, sync: bool = True) -> None:
        best = self.best if self.state.best_step not in (None, self.state.step) else None
        moments = optimizer.moments(self.model, self.optimizer)
        weights = weights_of(self.model)
        self.checkpoints.begin(self.state, weights, moments, best, copy=copy, sync=sync)

    def _save_if_due(self) -> None:
        """Begin a checkpoint; where one is being written still, as soon as that is done."""
        failure = self.checkpoints.failure()
        if failure is not None:
            self._say(self._failed(failure))
        planned_now = self.state.plan.planned_at == self.state.step
        if self.state.step % self.spec.checkpoint_every == 0 or planned_now:
            self._save_due = True
        if self._save_due and not self.checkpoints.busy:
            self._save_due = False
            self._begin_save()

    def _save_and_wait(self, when: str, *, sync: bool = True) -> bool:
        """Save now; whether that worked. A failure is told, and the one before stays."""
        failure = self.checkpoints.wait()
        if failure is not None:
            self._say(self._failed(failure))
        if self.checkpoints.saved_step == self.state.step:
            return True
        self.report(Progress(stage="saving", done=self.state.step, note=f"at {when}"))
        self._begin_save(copy=False, sync=sync)
        failure = self.checkpoints.wait()
        if failure is not None:
            self._say(self._failed(failure))
        return failure is None

    def suspend(self) -> None:
        """Save and leave. Raises Suspended with the step that a resume will go on from."""
        saved = not self.state.step or self._save_and_wait("being told to stop", sync=False)
        raise Suspended(self.checkpoints.saved_step or 0, saved=saved)

    def _failed(self, failure: OSError) -> str:
        last = self.checkpoints.saved_step
        kept = f"the one of step {last} is intact" if last else "there is none before it"
        return (
            f"cannot write a checkpoint to {self.checkpoints.root}: "
            f"{failure.strerror or failure}; {kept}; training goes on; free some space"
        )

    # -- progress

    def _say(self, note: str) -> None:
        log.info("%s", note)
        self.report(self._progress(None, note))

    def _tell(self, loss: float) -> None:
        self.report(self._progress(loss, ""))

    def _progress(self, loss: float | None, note: str) -> Progress:
        state, plan = self.state, self.state.plan
        each_s = state.trained_s / state.step if state.step else None
        left_s = (plan.last - state.step) * each_s if plan.last and each_s else None
        if plan.steps is None and self.spec.time_budget_s is not None:
            left_s = max(0.0, self.spec.time_budget_s - state.trained_s)
        eval_loss = next((e for _, _, e in reversed(state.curve[-500:]) if e is not None), None)
        return Progress(
            stage="training",
            done=state.step,
            total=plan.last,
            loss=loss,
            eval_loss=eval_loss,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            tokens_per_s=self._speed.now,
            left_s=left_s,
            note=note,
        )

    @property
    def tokens_per_s(self) -> float | None:
        """Mean over this process's steps."""
        return self._speed.mean

    def _compile(self) -> None:
        # The stage until the first step has ended: the model itself is compiled in that one.
        self.report(Progress(stage="compiling", note="minutes, where nothing was compiled before"))
        self.loss, note = numerics.try_compile(mean_loss)
        if note:
            self._warn("compiling", note)

    def _warn(self, stage: str, note: str) -> None:
        log.warning("%s", note)
        self.report(Progress(stage=stage, note=note))
