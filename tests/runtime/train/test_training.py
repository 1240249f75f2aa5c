"""Whole runs in this process: from files to a registered model, stopping, going on, failing."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from zenos import __version__
from zenos.core.specs import VOCAB_SIZE, DataSpec
from zenos.runtime import architectures
from zenos.runtime.context import EXIT_SUSPENDED
from zenos.runtime.train import numerics, schedule
from zenos.runtime.train.checkpoint import Checkpoints
from zenos.runtime.train.corpus import Corpus
from zenos.runtime.train.schedule import Pace
from zenos.runtime.train.trainer import Trainer

from .helpers import Bus, error, result, spec, weights, write_corpus

pytestmark = pytest.mark.usefixtures("one_thread")

NO_BASE = {"arch": None, "settings": {}, "base": "nothing", "vocab_size": VOCAB_SIZE}


def test_a_causal_model_from_files_to_the_registry(run: Any, corpus: Path) -> None:
    bus = Bus()
    code, context = run(spec(corpus, steps=150, eval_every=50), bus=bus)
    assert code == 0, error(context)
    found = result(context)
    version = context.registry.resolve("tiny")
    assert found["model"] == version.ref == "tiny:1"
    assert version.arch == "llama"
    assert version.lineage.task == "t1"
    assert version.lineage.data_hash == Corpus(DataSpec(paths=[str(corpus)])).survey().digest
    assert (version.lineage.code_version, version.lineage.parent) == (__version__, None)
    assert version.lineage.project == "default"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= version.files.keys()
    # It has learned something: more than how often which token comes.
    assert found["eval_loss"] < found["unigram_loss"] * 0.8
    assert found["bigram_loss"] < found["unigram_loss"]
    assert found["perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    assert found["bits_per_byte"] == pytest.approx(
        found["eval_loss"] / math.log(2) * found["eval_tokens"] / found["eval_bytes"]
    )
    size = sum(p.stat().st_size for p in corpus.iterdir())
    assert found["corpus_bytes"] == size
    assert found["parameters"] == version.parameters
    assert found["steps"] == 150
    assert found["tokens"] == 150 * 4 * 32
    curve = version.curve
    assert [p[0] for p in curve] == sorted({p[0] for p in curve})
    assert [p[0] for p in curve if p[2] is not None] == [50, 100, 150]
    assert curve[-1][1] < curve[0][1]
    # How many lanes there are hangs on the machine.
    stages = list(dict.fromkeys(p.stage.partition(",")[0] for p in bus.progress))
    # Whether the save is told of hangs on how long it takes.
    assert [stage for stage in stages if stage != "saving"] == [
        "reading", "tokenizer", "tokenizing", "building", "training", "evaluating", "publishing",
    ]  # fmt: skip
    last = [p for p in bus.progress if p.stage == "training"][-1]
    assert last.total == 150
    assert last.left_s is not None
    assert last.tokens_per_s
    # Nothing is left of the run but the model and the caches.
    assert not context.home.checkpoint("t1").exists()


def test_the_published_model_is_the_measured_one(run: Any, corpus: Path) -> None:
    """Loaded by transformers, the held-out loss is what the metrics say."""
    from zenos.runtime.train.packing import Packed, held_out_windows

    code, context = run(spec(corpus, steps=30))
    assert code == 0, error(context)
    version = context.registry.resolve("tiny")
    model: Any = architectures.load(context.registry.path(version), torch.float32)
    packed = Packed(next((context.home.cache / "packs").iterdir()))
    windows = torch.from_numpy(held_out_windows(packed.eval, length=33, stride=32, count_max=10**6))
    with torch.no_grad():
        logits = model(input_ids=windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.size(-1)), windows[:, 1:].reshape(-1)
    )
    assert loss.item() == pytest.approx(result(context)["eval_loss"], rel=1e-5)
    assert model.config.eos_token_id == model.config.bos_token_id == 0
    assert model.generation_config.eos_token_id == 0


def test_a_masked_model(run: Any, corpus: Path) -> None:
    work = spec(
        corpus,
        arch="bert-nano",
        settings={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        objective="masked_lm",
        steps=250,
        eval_every=125,
        eval_batches=20,
        learning_rate=5e-3,
    )
    code, context = run(work)
    assert code == 0, error(context)
    found = result(context)
    assert context.registry.resolve("tiny").family == "encoder"
    assert found["eval_loss"] < found["unigram_loss"]
    assert found["objective"] == "masked_lm"


@pytest.mark.parametrize(
    ("arch", "objective"), [("llama-nano", "causal_lm"), ("bert-nano", "masked_lm")]
)
def test_a_step_in_parts_is_the_step_at_once(
    run: Any, corpus: Path, arch: str, objective: str
) -> None:
    """Masked micro-batches have different numbers of targets, and each counts as many."""
    losses = []
    for batch_size, accumulate in ((4, 1), (1, 4)):
        work = spec(
            corpus,
            arch=arch,
            objective=objective,
            settings={},
            dtype="float32",
            steps=6,
            sequence_length=16,
            batch_size=batch_size,
            accumulate=accumulate,
            warmup=1,
        )
        code, context = run(work, task=f"parts-{accumulate}")
        assert code == 0, error(context)
        losses.append([point[1] for point in context.registry.list()[-1].curve])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arch", "objective"),
    [("bert-nano", "causal_lm"), ("llama-nano", "masked_lm"), ("t5-nano", "causal_lm")],
)
def test_architecture_and_objective_must_fit(
    run: Any, corpus: Path, arch: str, objective: str
) -> None:
    code, context = run(spec(corpus, arch=arch, settings={}, objective=objective))
    assert code == 1
    assert error(context)["code"] == "invalid"
    assert f"cannot train {arch}" in error(context)["message"]


def test_a_resume_that_would_change_the_numerics_is_refused(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=True) if p.done == 5 else None
    work = spec(corpus)
    assert run(work, bus=bus)[0] == EXIT_SUSPENDED
    torch.set_num_threads(2)
    code, context = run(work, generation=2)
    assert code == 1
    assert error(context)["code"] == "numerics"
    assert "threads was '1' and is '2'" in error(context)["message"]
    code, context = run(msgspec.structs.replace(work, inexact=True), generation=3)
    assert code == 0, error(context)


def test_publishing_once_though_killed_after_it(run: Any, corpus: Path) -> None:
    work = spec(corpus)
    code, context = run(work)
    assert code == 0
    first = result(context)
    # As after a kill between publishing and the exit: the version is there, the rest is forgotten.
    code, context = run(work, generation=2)
    assert code == 0
    assert result(context) == first
    assert len(context.registry.list()) == 1


def test_resuming_needs_the_cache_alone(run: Any, tmp_path: Path) -> None:
    own = write_corpus(tmp_path / "own")
    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=True) if p.done == 5 else None
    work = spec(own)
    assert run(work, bus=bus)[0] == EXIT_SUSPENDED
    text = (own / "00.txt").read_text()
    (own / "00.txt").write_text("changed")
    code, context = run(work, generation=2, bus=(again := Bus()))
    assert code == 0, error(context)
    assert not any(p.stage.startswith(("reading", "tokenizing")) for p in again.progress)
    assert text


def test_without_the_cache_a_changed_corpus_is_refused(run: Any, tmp_path: Path) -> None:
    import shutil

    own = write_corpus(tmp_path / "own")
    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=True) if p.done == 5 else None
    work = spec(own)
    code, context = run(work, bus=bus)
    assert code == EXIT_SUSPENDED
    shutil.rmtree(context.home.cache)
    text = (own / "00.txt").read_text()
    (own / "00.txt").write_text("changed")
    code, context = run(work, generation=2)
    assert code == 1
    assert "the corpus has changed" in error(context)["message"]
    (own / "00.txt").write_text(text)
    code, context = run(work, generation=3)
    assert code == 0, error(context)


# In a weight, in a shape, in a tensor's name, in the length of the header.
@pytest.mark.parametrize("found", [None, b'"shape":[', b'weight"', b"{"])
def test_a_damaged_checkpoint_gives_the_one_before_and_the_same_weights(
    run: Any, corpus: Path, found: bytes | None
) -> None:
    """Found while the model is already being built from it."""
    work = spec(corpus, checkpoint_every=2)
    assert run(work, task="whole")[0] == 0
    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=True) if p.done == 9 else None
    code, context = run(work, bus=bus)
    assert code == EXIT_SUSPENDED
    root = context.home.checkpoint("t1")
    newest = sorted(root.glob("step-*"))[-1]
    assert newest.name == "step-000000009"
    data = bytearray((newest / "model.safetensors").read_bytes())
    at = -5 if found is None else data.index(found) + len(found) - (2 if found == b"{" else 0)
    data[at] ^= 4
    (newest / "model.safetensors").write_bytes(data)
    code, context = run(work, generation=2, bus=(again := Bus()))
    assert code == 0, error(context)
    notes = [p.note for p in again.progress if p.note]
    assert any("step-000000009" in note for note in notes)
    whole, resumed = context.registry.list()
    assert whole.files["model.safetensors"] == resumed.files["model.safetensors"]


def test_training_goes_on_while_a_checkpoint_is_written(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    further = threading.Event()
    came: list[bool] = []
    write = Checkpoints._write

    def held(self: Checkpoints, *args: Any, **options: Any) -> None:
        came.append(further.wait(20))
        write(self, *args, **options)

    monkeypatch.setattr(Checkpoints, "_write", held)
    bus = Bus()
    bus.on_progress = lambda p: further.set() if p.stage == "training" and p.done > 5 else None
    code, context = run(spec(corpus, steps=12, checkpoint_every=4), bus=bus)
    assert code == 0, error(context)
    assert came[0], "step 6 waited for the checkpoint of step 4"


def test_best_weights_are_published_when_the_last_are_worse(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny corpus gone over many times is learned by heart: the held-out loss rises again."""
    own = write_corpus(tmp_path / "small", files=3, words=200)
    work = spec(own, steps=160, eval_every=20, learning_rate=1e-2, learning_rate_min=1e-2)
    code, context = run(work)
    assert code == 0, error(context)
    version = context.registry.resolve("tiny")
    held = {int(p[0] or 0): p[2] for p in version.curve if p[2] is not None}
    best = min(held, key=lambda s: held[s] or 0.0)
    assert best < 160
    assert version.metrics["published_step"] == best
    assert version.metrics["eval_loss"] < (held[160] or 0.0)


def test_the_best_weights_outlive_a_resume(run: Any, tmp_path: Path) -> None:
    """Saved after the best evaluation and gone on from there: they are in the checkpoint."""
    own = write_corpus(tmp_path / "small", files=3, words=200)
    work = spec(own, steps=80, eval_every=20, learning_rate=1e-2, learning_rate_min=1e-2)
    code, context = run(work, task="whole")
    assert code == 0, error(context)
    best = context.registry.resolve("tiny:1").metrics["published_step"]
    assert best < 80, "the last weights were the best: this tests nothing"
    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=True) if p.done == best + 5 else None
    assert run(work, bus=bus)[0] == EXIT_SUSPENDED
    code, context = run(work, generation=2)
    assert code == 0, error(context)
    whole, resumed = context.registry.list()
    assert resumed.metrics["published_step"] == best
    assert resumed.files["model.safetensors"] == whole.files["model.safetensors"]


def test_accumulation_and_a_budget_of_time(run: Any, corpus: Path) -> None:
    work = spec(corpus, steps=None, epochs=500.0, time_budget_s=2.0, accumulate=2, eval_every=1000)
    code, context = run(work, bus=(bus := Bus()))
    assert code == 0, error(context)
    found = result(context)
    assert 0 < found["steps"] < 20_000
    assert found["trained_s"] < 2.0 * 1.6
    assert found["tokens"] == found["steps"] * 2 * 4 * 32
    assert any("fit the time budget" in p.note for p in bus.progress)


def test_of_steps_that_do_not_fit_the_budget_it_is_told(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where the machine is so slow that no more than those fit.
    monkeypatch.setattr(Pace, "plan", lambda self, *_: self._spec.steps_min)
    work = spec(corpus, steps=None, epochs=500.0, time_budget_s=600.0, steps_min=6)
    code, context = run(work, bus=(bus := Bus()))
    assert code == 0, error(context)
    assert result(context)["steps"] == 6
    notes = [p.note for p in bus.progress]
    assert "6 steps, the fewest that are wanted, however long they take" in notes
    assert not any("to fit the time budget" in note for note in notes)


def test_a_run_that_is_cut_is_measured_and_says_so(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule.Pace, "is_over", lambda self, done, used_s: done >= 37)
    monkeypatch.setattr(schedule, "_MEASURE_S", 0.0)
    work = spec(corpus, steps=None, epochs=500.0, time_budget_s=60.0, eval_every=1000)
    code, context = run(work)
    assert code == 0, error(context)
    found = result(context)
    assert found["steps"] == found["published_step"] == 37
    assert found["planned_steps"] > 37
    assert found["note"] == "ended early: the time budget was over"
    assert found["eval_loss"] > 0
    (version,) = context.registry.list()
    assert version.curve[-1][0] == 37
    assert version.curve[-1][2] is not None


def test_a_planned_budget_stays_over_a_resume(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that becomes slow meanwhile would end it early.
    monkeypatch.setattr(schedule, "OVERRUN", math.inf)
    monkeypatch.setattr(schedule, "_LATE", math.inf)
    bus = Bus()

    def stop_later(progress: Any) -> None:
        if progress.stage == "training" and progress.total and progress.done > progress.total / 2:
            bus.say_stop(save=True)

    bus.on_progress = stop_later
    work = spec(corpus, steps=None, epochs=500.0, time_budget_s=2.0, eval_every=1000)
    code, context = run(work, bus=bus)
    assert code == EXIT_SUSPENDED
    checkpoint, _ = Checkpoints(context.home.checkpoint("t1")).latest()
    assert checkpoint is not None
    planned = checkpoint.state.plan.steps
    code, context = run(work, generation=2)
    assert code == 0, error(context)
    assert result(context)["steps"] == planned


def test_going_on_from_a_registered_model(run: Any, corpus: Path, tmp_path: Path) -> None:
    code, context = run(spec(corpus, steps=60))
    assert code == 0, error(context)
    first = result(context)
    more = {"model": "more", "arch": None, "base": "tiny", "settings": {}, "vocab_size": VOCAB_SIZE}
    work = spec(corpus, **more, steps=60, warmup=1)
    code, context = run(work, task="t2")
    assert code == 0, error(context)
    version = context.registry.resolve("more")
    assert version.lineage.parent == "tiny:1"
    assert (
        version.files["tokenizer.json"] == context.registry.resolve("tiny").files["tokenizer.json"]
    )
    assert result(context)["eval_loss"] < first["eval_loss"]


def test_advice_about_sequences_that_are_too_long_can_be_followed(run: Any, corpus: Path) -> None:
    short = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32}
    code, context = run(spec(corpus, steps=2, settings=short))
    assert code == 0, error(context)
    base = {"arch": None, "base": "tiny", "settings": {}, "vocab_size": VOCAB_SIZE}
    code, context = run(spec(corpus, **base, sequence_length=64), task="t2")
    assert code == 1
    said = error(context)["message"]
    assert said.endswith("tiny has room for 32; give a sequence_length of at most 32")
    code, context = run(spec(corpus, **base, steps=2), task="t3")
    assert code == 0, error(context)
    code, context = run(spec(corpus, settings=short, sequence_length=64), task="t4")
    assert "or set max_position_embeddings in 'settings'" in error(context)["message"]


def test_a_first_step_without_a_loss_is_not_blamed_on_the_rate(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    code, context = run(spec(corpus))
    assert code == 1
    said = error(context)["message"]
    assert "is nan at step 0; nothing is learned yet" in said
    assert "learning_rate" not in said


def test_a_training_that_is_compiled_says_so(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "try_compile", lambda function: (function, ""))
    bus = Bus()
    code, context = run(spec(corpus, steps=2, compile=True), bus=bus)
    assert code == 0, error(context)
    stages = [p.stage for p in bus.progress]
    assert stages[stages.index("building") + 1] == "compiling"
    assert stages[stages.index("compiling") + 1] == "training"


def test_where_nothing_compiles_it_trains_eagerly_and_says_so(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("no g++ anywhere")

    code, context = run(spec(corpus, steps=3), task="eager")
    assert code == 0, error(context)
    monkeypatch.setattr(torch, "compile", broken)
    code, context = run(spec(corpus, steps=3, compile=True), bus=(bus := Bus()))
    assert code == 0, error(context)
    notes = [p.note for p in bus.progress]
    assert "training without compilation: no working C++ compiler (no g++ anywhere)" in notes
    eager, fallen_back = context.registry.list()
    assert eager.files["model.safetensors"] == fallen_back.files["model.safetensors"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_would_spoil_the_weights_ends_the_run_before_it(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    norms = iter([1.0] * 7 + [bad])
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
    code, context = run(spec(corpus, checkpoint_every=2))
    assert code == 1
    said = error(context)["message"]
    assert f"cannot go on: the gradient's norm is {bad} at step 7; lower learning_rate" in said
    assert context.registry.list() == []
    checkpoint = Checkpoints(context.home.checkpoint("t1")).latest()[0]
    assert checkpoint is not None
    saved = load_file(checkpoint.directory / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_told_to_stop_between_micro_batches_the_step_is_done_again(run: Any, corpus: Path) -> None:
    work = spec(corpus, accumulate=3, steps=6, checkpoint_every=1000)
    code, context = run(work, task="whole")
    assert code == 0, error(context)
    whole = weights(context)
    bus = Bus()
    original = Trainer._micro_batches

    def stopped_in_the_middle(self: Trainer, step: int) -> Iterator[Any]:
        for number, batch in enumerate(original(self, step)):
            if (step, number) == (4, 1):
                bus.say_stop(save=True)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_micro_batches", stopped_in_the_middle)
        code, context = run(work, bus=bus)
    assert code == EXIT_SUSPENDED
    assert result(context) == {"suspended": True, "step": 4, "saved": True}
    code, context = run(work, generation=2)
    assert code == 0, error(context)
    assert weights(context) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "lama-nano"}, "llama-nano"),
        ({"settings": {"hiden_size": 64}}, "hidden_size"),
        ({"sequence_length": 9000}, "cannot"),
        (NO_BASE, "cannot find the model 'nothing'"),
        ({"tokenizer": "nothing:3", "vocab_size": VOCAB_SIZE}, "cannot find the model 'nothing'"),
    ],
)
def test_bad_specifications(run: Any, corpus: Path, changes: dict[str, Any], message: str) -> None:
    code, context = run(spec(corpus, **changes))
    assert code == 1
    assert error(context)["message"].startswith("cannot ")
    assert message in error(context)["message"]


def test_a_corpus_without_held_out_text(run: Any, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("word " * 300)
    code, context = run(spec(tmp_path / "one.txt"))
    assert code == 0, error(context)
    assert "nothing was held out" in result(context)["note"]


def test_two_runs_with_one_seed_are_the_same_and_with_another_not(run: Any, corpus: Path) -> None:
    found = []
    for task, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, context = run(spec(corpus, seed=seed, model=f"m{task}"), task=task)
        assert code == 0, error(context)
        found.append(weights(context, f"m{task}"))
    assert found[0] == found[1] != found[2]


def test_bfloat16_and_dropout_are_bit_exact_over_a_resume(run: Any, corpus: Path) -> None:
    work = spec(
        corpus,
        arch="gpt-nano",
        settings={
            "n_embd": 32,
            "n_layer": 2,
            "resid_pdrop": 0.1,
            "attn_pdrop": 0.1,
            "n_head": 2,
            "n_inner": 64,
        },
        dtype="bfloat16",
    )
    assert run(work, task="whole")[0] == 0
    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=True) if p.done == 6 else None
    assert run(work, bus=bus)[0] == EXIT_SUSPENDED
    code, context = run(work, generation=2)
    assert code == 0, error(context)
    whole, resumed = context.registry.list()
    assert whole.files["model.safetensors"] == resumed.files["model.safetensors"]
