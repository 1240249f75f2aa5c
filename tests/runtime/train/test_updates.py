"""What one step does to a model's weights: the optimiser's numbers, clipping, and the precision."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zenos.core import failpoints
from zenos.core.wire import Progress
from zenos.runtime import architectures
from zenos.runtime.train import optimizer
from zenos.runtime.train.checkpoint import Checkpoints, Plan
from zenos.runtime.train.objectives import IGNORED, CausalLM, MaskedLM
from zenos.runtime.train.trainer import Trainer

from .helpers import spec

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def trainer_in(
    directory: Path, report: Callable[[Progress], None] = lambda _: None, **changes: Any
) -> Trainer:
    """A training of a very small model on random tokens."""
    settings = {"settings": SMALL, "vocab_size": 320, "sequence_length": 8, "warmup": 0, **changes}
    work = spec(Path("/x"), **settings)
    tokens = np.random.default_rng(5).integers(0, 320, 400).astype(np.uint16)
    packed: Any = SimpleNamespace(train=tokens, eval=tokens[:60])
    vocabulary: Any = None  # which causal targets don't need
    return Trainer(
        work,
        architectures.build("llama-nano", SMALL, 320, 7),
        CausalLM(work, vocabulary),
        packed,
        Checkpoints(directory),
        Plan(pack="p", tokenizer="t", data_digest="d", steps=work.steps),
        torch.device("cpu"),
        report,
        stopping=lambda: False,
    )


class Parts(torch.nn.Module):
    """One of each: a matrix, a norm's vector, a bias, and what isn't trained."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.norm = torch.nn.LayerNorm(2, bias=False)
        self.fixed = torch.nn.Linear(2, 2).requires_grad_(False)


def test_the_optimiser_does_what_adamw_s_paper_says() -> None:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2."""
    torch.manual_seed(1)
    model = Parts()
    work = spec(Path("/x"), learning_rate=0.02, weight_decay=0.3, beta1=0.8, beta2=0.9)
    stepped = optimizer.adamw(work, model)
    expected = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in (1, 2, 3):
        for name, parameter in model.named_parameters():
            if name.startswith("fixed"):
                continue
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            along = first[name] / (1 - 0.8**step)
            scale = (second[name] / (1 - 0.9**step)).sqrt() + 1e-8
            decay = 0.3 if name == "linear.weight" else 0.0  # vectors don't decay
            expected[name] -= 0.02 * (along / scale + decay * expected[name])
        stepped.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                parameter.double(), expected[name], rtol=1e-5, atol=1e-6, msg=f"{name}, {step}"
            )


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_a_large_gradient_is_cut_to_the_clip_and_a_small_one_is_left(
    tmp_path: Path, clip: float
) -> None:
    """By plain gradient descent with the rate 1 the weights move by the gradient itself."""
    trainer = trainer_in(tmp_path, clip=clip)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)  # type: ignore[assignment]
    before = {name: value.detach().clone() for name, value in trainer.weights().items()}
    with trainer.at_work():
        assert trainer.update(1.0) is not None
    moved = [(value.detach() - before[name]).flatten() for name, value in trainer.weights().items()]
    norm = float(torch.linalg.vector_norm(torch.cat(moved)))
    if clip == 1e-3:
        assert norm == pytest.approx(clip, rel=0.01)
    else:
        assert 0.01 < norm < 1000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_and_an_evaluation_are_computed_in_what_was_asked_for(
    tmp_path: Path, dtype: str
) -> None:
    trainer = trainer_in(tmp_path, dtype=dtype)
    seen: set[torch.dtype] = set()

    def look(module: torch.nn.Module, given: Any, computed: torch.Tensor) -> None:
        seen.add(computed.dtype)

    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(look)
    asked = {getattr(torch, dtype)}
    with trainer.at_work():
        assert trainer.update(1e-3) is not None
    assert seen == asked
    seen.clear()
    trainer.evaluate(2)
    assert seen == asked
    # Weights and moments stay whole: small updates would be lost in bfloat16.
    moments = optimizer.moments(trainer.model, trainer.optimizer)
    assert moments
    assert {t.dtype for t in (*trainer.weights().values(), *moments.values())} == {torch.float32}


def test_an_evaluation_is_the_mean_over_what_is_to_be_told_alone(tmp_path: Path) -> None:
    """Masked batches have different numbers of targets, and each target counts as much."""
    trainer = trainer_in(tmp_path, dtype="float32", batch_size=2, mask_probability=0.4)
    ids = {"mask_id": 4, "cls_id": None, "sep_id": None, "special_ids": lambda: [0, 1, 2, 3, 4]}
    vocabulary: Any = SimpleNamespace(size=320, **ids)
    trainer.objective = MaskedLM(trainer.spec, vocabulary)
    losses, targets, counts = [], [], set()
    with torch.no_grad():
        for number in range(0, 6, 2):
            windows = trainer.packed.eval[: 6 * 8].reshape(6, 8)[number : number + 2]
            batch = trainer.objective.batch(windows.astype(np.int64), number)
            logits = trainer.model.eval()(input_ids=torch.from_numpy(batch.inputs)).logits
            chosen = torch.from_numpy(batch.targets != IGNORED)
            told = torch.from_numpy(batch.targets)[chosen]
            losses.append(torch.nn.functional.cross_entropy(logits[chosen], told, reduction="none"))
            targets.append(told)
            counts.add(len(told))
    assert len(counts) > 1, "all batches have as many targets: this tests nothing"
    found = trainer.evaluate(6)
    assert found.targets.tolist() == torch.cat(targets).tolist()
    assert found.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_steps_go_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 2's is held until step 3 is done, which would never be otherwise."""
    reports: list[Progress] = []
    later = threading.Event()
    held: list[bool] = []
    trainer: Trainer

    def report(progress: Progress) -> None:
        reports.append(progress)
        if progress.done == 3:
            assert trainer.checkpoints.busy
            assert trainer.checkpoints.saved_step is None
            later.set()

    def passing(label: str) -> None:
        if label == "durable.write" and not held:
            held.append(later.wait(30))

    monkeypatch.setattr(failpoints, "passing", passing)
    trainer = trainer_in(tmp_path, report, steps=4, checkpoint_every=2, eval_every=100)
    trainer.run()
    assert held == [True]
    assert [p.done for p in reports if p.loss is not None] == [1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002", "step-000000004"]
