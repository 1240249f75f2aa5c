"""Publishing while training: what is published, and that training is none the worse for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from zenos import __version__
from zenos.core.errors import InvalidError, StorageError
from zenos.core.wire import Held, Progress, Published
from zenos.models import publishing
from zenos.runtime import weights as shared
from zenos.runtime.context import EXIT_SUSPENDED, WorkerContext
from zenos.runtime.train.snapshots import Snapshots
from zenos.runtime.train.trainer import Trainer

from .helpers import Bus, error, result, spec, weights

pytestmark = pytest.mark.usefixtures("one_thread")
PUBLISHING = {"publish": "live", "publish_every": 4, "steps": 10}


def steps(context: WorkerContext, name: str = "live") -> list[int]:
    """After which steps versions were published, in their order."""
    found = [v for v in context.registry.list() if v.name == name]
    return [v.metrics[publishing.STEP] for v in found if publishing.STEP in v.metrics]


def announced(bus: Bus) -> list[str]:
    said = [body for topic, body in bus.sent if topic == "published"]
    return [msgspec.msgpack.decode(body, type=Published).version for body in said]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version is on the disk before the next step, so that which ones come hangs on nothing;
    else a version that is due while another is being written is taken a step later."""
    take = Snapshots.after_step

    def after_step(self: Snapshots, state: Any) -> None:
        take(self, state)
        self._join()

    monkeypatch.setattr(Snapshots, "after_step", after_step)


@pytest.mark.usefixtures("patient")
def test_versions_are_published_and_the_training_stays_the_same_bit_for_bit(
    run: Any, corpus: Path
) -> None:
    code, plain = run(spec(corpus, steps=10))
    assert code == 0, error(plain)
    bus = Bus()
    code, context = run(spec(corpus, **PUBLISHING), bus=bus, task="t2")
    assert code == 0, error(context)
    assert steps(context) == [4, 8, 10]
    assert announced(bus) == ["live:1", "live:2", "live:3"]
    assert weights(context, "tiny:2") == weights(plain, "tiny:1")
    last, end = (context.registry.resolve(name) for name in ("live:3", "tiny:2"))
    # Another file, of the same tensors; and it belongs to the same build as the result.
    assert last.build == end.build
    first, second = (
        load_file(context.registry.path(version) / "model.safetensors") for version in (last, end)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (last.lineage.task, last.lineage.project) == ("t2", "default")
    assert last.lineage.code_version == __version__
    assert last.lineage.data_hash == end.lineage.data_hash


@pytest.mark.usefixtures("patient")
def test_a_run_that_goes_on_publishes_no_step_twice(run: Any, corpus: Path) -> None:
    bus = Bus()

    def stop(progress: Progress) -> None:
        if progress.stage == "training" and progress.done == 9 and not progress.note:
            bus.say_stop(save=True)

    bus.on_progress = stop
    settings = {**PUBLISHING, "checkpoint_every": 2, "steps": 14, "publish_every": 3}
    code, context = run(spec(corpus, **settings), bus=bus)
    assert code == EXIT_SUSPENDED
    assert steps(context) == [3, 6, 9]
    for path in sorted(context.home.checkpoint("t1").glob("step-*"))[-1:]:
        for part in path.iterdir():
            part.unlink()  # what was saved last is lost: steps are done again
        path.rmdir()
    again = Bus()
    code, context = run(spec(corpus, **settings), generation=2, bus=again)
    assert code == 0, error(context)
    assert steps(context) == [3, 6, 9, 12, 14]
    # The newest one is said to whoever has not heard of it.
    assert announced(again) == ["live:3", "live:4", "live:5"]


@pytest.mark.usefixtures("patient")
def test_a_version_that_was_due_when_a_run_was_suspended_is_published_by_who_goes_on(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus()
    evaluate = Trainer._evaluate_if_due

    def told_while_it_evaluates(self: Trainer) -> None:
        if self.state.step == 4:
            bus.say_stop(save=True)
        evaluate(self)

    monkeypatch.setattr(Trainer, "_evaluate_if_due", told_while_it_evaluates)
    training = spec(corpus, **PUBLISHING, eval_every=4)
    code, context = run(training, bus=bus)
    assert code == EXIT_SUSPENDED, error(context)
    assert steps(context) == []
    monkeypatch.setattr(Trainer, "_evaluate_if_due", evaluate)
    code, context = run(training, generation=2)
    assert code == 0, error(context)
    assert steps(context) == [5, 8, 10]


@pytest.mark.usefixtures("patient")
def test_a_model_may_be_published_under_the_name_of_the_result(run: Any, corpus: Path) -> None:
    bus = Bus()
    code, context = run(spec(corpus, **{**PUBLISHING, "publish": "tiny"}), bus=bus)
    assert code == 0, error(context)
    assert steps(context, "tiny") == [4, 8, 10]
    assert announced(bus) == [f"tiny:{number}" for number in (1, 2, 3, 4)]
    assert context.registry.resolve("tiny").metrics["steps"] == 10
    # A kill after the end, before anybody heard of it: the result is found, not a version before.
    code, context = run(spec(corpus, **{**PUBLISHING, "publish": "tiny"}), generation=2)
    assert code == 0
    assert result(context)["model"] == "tiny:4"


@pytest.mark.usefixtures("patient")
def test_a_replica_that_gives_no_memory_back_stops_neither_training_nor_publishing(
    run: Any, corpus: Path
) -> None:
    held: list[Any] = []
    bus = Bus()

    def hold(progress: Progress) -> None:
        """Take what is offered and never let go."""
        version = announced(bus)[-1:]
        if version and progress.stage == "training" and progress.done:
            with shared.socket.socket(shared.socket.AF_UNIX) as link:
                link.connect(shared.address(place["home"], "t1"))
                shared.passing.send(link, version[0].encode(), [])
                held.append(shared.parcel.receive(link, timeout_s=30))

    place: dict[str, Any] = {}
    begin = Snapshots.__init__

    def noting(self: Snapshots, context: WorkerContext, *rest: Any) -> None:
        place["home"] = context.home
        bus.on_progress = hold
        begin(self, context, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshots, "__init__", noting)
        code, context = run(spec(corpus, **{**PUBLISHING, "publish_every": 2}), bus=bus)
    assert code == 0, error(context)
    for parcel in held:
        if parcel is not None:
            parcel.close()
    assert sum(parcel is not None for parcel in held) >= 2
    assert steps(context)[-1] == 10  # from the file alone


def test_a_full_disk_is_said_and_training_goes_on(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus()

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("cannot change the registry: No space left on device")

    code, context = run(spec(corpus, steps=2), bus=bus)  # the caches are there
    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "_publish", _failing(Snapshots._publish, full))
        code, context = run(spec(corpus, **{**PUBLISHING, "model": "n"}), bus=bus, task="t2")
    assert code == 0, error(context)
    notes = [progress.note for progress in bus.progress if progress.note]
    assert any("cannot publish live at step" in note for note in notes), notes
    assert steps(context) == []


def _failing(publish: Any, registered: Any) -> Any:
    def wrapped(self: Snapshots, *given: Any) -> None:
        registry = self._context.registry
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "publish", registered)
            publish(self, *given)

    return wrapped


def test_a_training_says_that_its_model_was_rolled_back(run: Any, corpus: Path) -> None:
    bus = Bus()

    def tell(progress: Progress) -> None:
        if progress.done == 5 and not progress.note:
            for _ in range(2):
                bus.put("held", msgspec.msgpack.encode(Held(deployment="live", version="live:1")))

    bus.on_progress = tell
    code, context = run(spec(corpus, **PUBLISHING), bus=bus)
    assert code == 0, error(context)
    notes = [progress.note for progress in bus.progress if "rolled back" in progress.note]
    assert notes == [
        "live was rolled back to live:1 and stays there; 'zenos serve live' follows again"
    ]


@pytest.mark.usefixtures("patient")
def test_a_version_says_after_which_steps_its_losses_were_measured(run: Any, corpus: Path) -> None:
    code, context = run(spec(corpus, **PUBLISHING, eval_every=3, eval_batches=1))
    assert code == 0, error(context)
    curve = {step: held_out for step, _, held_out in context.registry.resolve("tiny").curve}
    said = [v.metrics for v in context.registry.list() if v.name == "live"]
    measured = {m["published_at_step"]: m["eval_loss_at_step"] for m in said}
    assert {step: measured[step] for step in (4, 8)} == {4: 3, 8: 6}
    assert [m["eval_loss"] for m in said] == [curve[m["eval_loss_at_step"]] for m in said]
    assert all(m["train_loss_at_step"] == m["published_at_step"] for m in said)


def test_what_cannot_be_served_cannot_be_published(corpus: Path) -> None:
    with pytest.raises(InvalidError, match="cannot publish while training masked_lm"):
        spec(corpus, arch="bert", settings={}, objective="masked_lm", publish="live")
    with pytest.raises(InvalidError, match="publish_keep"):
        spec(corpus, publish="live", publish_keep=1)
