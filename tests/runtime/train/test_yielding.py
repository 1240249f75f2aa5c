"""A training pauses at any step, goes on, saves and ends, and ends in the same bytes."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zenos.bus.envelope import Envelope
from zenos.core import limits
from zenos.core.wire import Pause, Progress
from zenos.runtime import context as context_module
from zenos.runtime.context import EXIT_SUSPENDED, WorkerContext
from zenos.runtime.train import main as main_module
from zenos.runtime.train.checkpoint import Checkpoints

from .helpers import Bus, error, result, spec, weights

pytestmark = pytest.mark.usefixtures("one_thread")
RESUME = "resume"


class Daemon(Bus):
    """Says what `plan` has for a step, its other words to one that has paused, then `resume`."""

    def __init__(self, plan: dict[int, tuple[str, ...]]) -> None:
        super().__init__()
        self.plan = dict(plan)
        self.then: list[str] = []
        self.paused = self.waited = 0
        self.on_progress = self.at_step

    def at_step(self, progress: Progress) -> None:
        words = self.plan.pop(int(progress.done), ()) if progress.stage == "training" else ()
        if words:
            self.then = list(words[1:])
            self.say(words[0])

    def say(self, word: str) -> None:
        if word in ("save", "end"):
            self.say_stop(save=word == "save")
        elif word in ("pause", RESUME):
            self.put("pause", msgspec.msgpack.encode(Pause(on=word == "pause")))
        elif word == "away":
            self.disconnected_s = limits.ORPHAN_WAIT_S + 1

    def receive(self, timeout_s: float | None) -> Envelope | None:
        self.waited += 1
        assert self.waited < 10_000, "it waits for what nobody says"
        return super().receive(timeout_s)

    def send(self, kind: Any, topic: str, body: bytes, **more: Any) -> bool:
        if topic == "paused" and msgspec.msgpack.decode(body, type=Pause).on:
            self.paused += 1
            self.say(self.then.pop(0) if self.then else RESUME)
        return super().send(kind, topic, body, **more)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is there still after the run."""
    monkeypatch.setattr(Checkpoints, "remove", lambda _: None)


def last_state(context: WorkerContext) -> dict[str, Any]:
    """Digests of the last checkpoint's tensors (weights, optimiser), its step and loss curve."""
    found, _ = Checkpoints(context.home.checkpoint(context.task.id)).latest()
    assert found is not None
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found.directory.glob("*.safetensors")
    }
    assert len(files) >= 2
    return {**files, "step": found.state.step, "curve": found.state.curve}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "batch_size": 2, "eval_every": 3}])
def test_any_number_of_interruptions_at_any_steps_ends_in_the_same_bytes(
    run: Any, corpus: Path, kept: None, seed: int, changes: dict[str, Any]
) -> None:
    work = spec(corpus, steps=16, checkpoint_every=1000, **changes)
    code, context = run(work, task="whole")
    assert code == 0, error(context)
    expected = (weights(context), last_state(context))

    source = random.Random(seed)  # noqa: S311 - a plan, no secret
    suspensions = sorted(source.sample(range(1, 16), 4))
    for generation, step in enumerate([*suspensions, 0], 1):
        plan = {number: ("pause",) for number in range(1, 16) if source.random() < 0.4}
        if step:  # every other one is suspended while it is paused
            plan[step] = ("pause", "save") if generation % 2 else ("save",)
        code, context = run(work, bus=Daemon(plan), generation=generation)
        if step:
            assert code == EXIT_SUSPENDED, (seed, plan)
            said = result(context)
            assert said == {"suspended": True, "step": step, "saved": True}, (seed, plan)
    assert code == 0, error(context)
    assert (weights(context), last_state(context)) == expected, (seed, suspensions)
    whole, resumed = context.registry.list()
    assert whole.curve == resumed.curve


@pytest.mark.parametrize(
    ("word", "saved"), [("save", True), ("end", False), ("away", True)], ids=str
)
def test_who_is_paused_hears_that_it_is_to_end_and_that_its_daemon_is_gone(
    run: Any, corpus: Path, word: str, saved: bool
) -> None:
    daemon = Daemon({5: ("pause", word)})
    code, context = run(spec(corpus, checkpoint_every=1000), bus=daemon)
    assert code == EXIT_SUSPENDED
    assert result(context) == {"suspended": True, "step": 5 if saved else 0, "saved": saved}
    assert daemon.paused == 1


def test_asked_again_while_it_is_paused_it_says_again_that_it_is(run: Any, corpus: Path) -> None:
    daemon = Daemon({5: ("pause", "pause", "pause", RESUME)})
    code, context = run(spec(corpus), bus=daemon)
    assert code == 0, error(context)
    assert daemon.paused == 3


def test_it_pauses_while_it_reads_its_corpus(run: Any, corpus: Path) -> None:
    daemon = Daemon({})
    daemon.on_progress = lambda p: daemon.say("pause") if p.stage.startswith("reading") else None
    code, context = run(spec(corpus, vocab_size=321), bus=daemon)
    assert code == 0, error(context)
    assert daemon.paused >= 1


def test_paused_time_counts_for_no_budget(
    run: Any, corpus: Path, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """A clock that leaps by a thousand seconds while the run is paused."""

        ahead_s = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.ahead_s

        def perf_counter(self) -> float:
            return time.perf_counter() + self.ahead_s

    clock = Clock()

    class Slow(Daemon):
        polls = 0

        def poll(self) -> list[Envelope]:
            """Every third look finds the word: at steps' ends, between micro-batches, held out."""
            self.polls += 1
            if self.polls % 3 == 0:
                self.say("pause")
            return super().poll()

        def receive(self, timeout_s: float | None) -> Envelope | None:
            clock.ahead_s += 1000.0
            return super().receive(timeout_s)

    monkeypatch.setattr(context_module, "time", clock)
    monkeypatch.setattr(main_module, "time", clock)
    daemon = Slow({})
    work = spec(corpus, steps=12, accumulate=2, time_budget_s=500.0)
    code, context = run(work, bus=daemon)
    assert code == 0, error(context)
    assert daemon.paused >= 8
    assert last_state(context)["step"] == 12
    found, _ = Checkpoints(context.home.checkpoint("t1")).latest()
    assert found is not None
    assert found.state.trained_s < 500
