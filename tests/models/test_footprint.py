"""Estimates of memory: what is counted, and who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, DeploymentSpec, TrainSpec
from zenos.models import data_size, footprint
from zenos.models.presets import PRESETS
from zenos.models.records import ModelVersion

GIB = 2**30
SPEC = TrainSpec(model="m", arch="llama-mini", data=DataSpec(paths=["/x"]))
CONFIG = {"model_type": "llama", **PRESETS["llama-mini"].settings, "vocab_size": 4096}
VERSION = ModelVersion(
    name="m",
    version=1,
    created=0.0,
    family="decoder",
    arch="llama",
    parameters=28_000_000,
    bytes=112_000_000,
    files={},
    config=CONFIG,
)


@pytest.mark.parametrize(
    ("arch", "vocabulary", "parameters"),
    [("llama-nano", 512, 853_120), ("llama-micro", 4096, 5_475_584)],
)
def test_parameters_are_counted(arch: str, vocabulary: int, parameters: int) -> None:
    """As those of trained models were."""
    shape = footprint.training_shape(replace(SPEC, arch=arch, vocab_size=vocabulary), None)
    assert shape is not None
    assert shape.parameters == pytest.approx(parameters, rel=0.01)


def test_who_asks_for_too_little_is_told_how_much_it_takes() -> None:
    assert footprint.training_warning(SPEC, 4 * GIB) == ""
    said = footprint.training_warning(SPEC, GIB // 2)
    assert said == "it wants about 1.9 GiB of memory, and asks for 512 MiB"
    # Of one on GPUs, without a limit, or whose shape isn't known nothing is said.
    assert footprint.training_warning(SPEC, GIB // 2, gpus=1000) == ""
    assert footprint.training_warning(SPEC, 0) == ""
    assert footprint.training_warning(replace(SPEC, arch="mamba"), GIB // 2) == ""


def test_a_tokenizer_gets_no_more_tokens_than_the_text_that_is_there_has(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "sub").mkdir(parents=True)
    (corpus / "a.txt").write_bytes(b"x" * 400_000)
    (corpus / "sub" / "b.txt").write_bytes(b"x" * 600_000)
    (corpus / "sub" / "nowhere").symlink_to("gone")

    def warned(*paths: Path, **changes: Any) -> str:
        data = DataSpec(paths=[str(path) for path in paths])
        spec = replace(SPEC, arch="llama-nano", vocab_size=1_000_000, data=data, **changes)
        return footprint.training_warning(spec, 2 * GIB)

    for paths in ([corpus], [corpus / "**"], [corpus / "a.txt", corpus / "sub" / "*.txt"]):
        assert warned(*paths) == ""
    # Who asks for still less is told what it wants with the tokens that it will have.
    small = replace(SPEC, vocab_size=1_000_000, data=DataSpec(paths=[str(corpus)]))
    least = replace(SPEC, vocab_size=footprint.vocabulary_of(10**6))
    said = footprint.training_warning(small, GIB // 2)
    assert said == footprint.training_warning(least, GIB // 2) != ""
    # What isn't there yet may be large, and so is what is packed; a setting is of the model itself.
    assert "wants about 3" in warned(tmp_path / "later")
    assert "wants about 3" in warned(corpus, tmp_path / "later")
    (corpus / "c.parquet").write_bytes(b"PAR1")
    assert "wants about 3" in warned(corpus)
    assert "wants about 3" in warned(corpus / "a.txt", settings={"vocab_size": 1_000_000})


def test_a_corpus_of_very_many_files_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_size, "FILES_MAX", 3)
    for number in range(4):
        assert (data_size.data_bytes(DataSpec(paths=[str(tmp_path)])) or 0) == number
        (tmp_path / f"{number}.txt").write_text("x")
    assert data_size.data_bytes(DataSpec(paths=[str(tmp_path)])) is None


@pytest.mark.parametrize("pattern", ["**/*.txt", "**/*/**/x", "*/*/*/x", "."])
def test_so_many_directories_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.setattr(data_size, "FILES_MAX", 2)
    with pytest.raises(OSError, match="too much to look at"):
        list(data_size._files([str(tmp_path / pattern)]))
    assert data_size.data_bytes(DataSpec(paths=[str(tmp_path / pattern)])) is None


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 32},
        {"sequence_length": 1024},
        {"vocab_size": 64_000},
        {"settings": {"num_hidden_layers": 16}},
    ],
)
def test_more_of_anything_wants_more(change: dict[str, Any]) -> None:
    def wanted(spec: TrainSpec) -> int:
        shape = footprint.training_shape(spec, None)
        assert shape is not None
        return footprint.training_bytes(spec, shape)

    more = wanted(replace(SPEC, **change))
    assert more > 1.2 * wanted(SPEC)


@pytest.mark.parametrize(
    ("backend", "less"), [("auto", 12 + 16), ("shared", 12 + 16), ("gloo", 16)]
)
def test_workers_hold_their_part_of_a_batch_and_once_what_they_share(
    backend: str, less: int
) -> None:
    """One of them saves; weights and moments are in memory once where that is shared."""
    shape = footprint.training_shape(SPEC, None)
    assert shape is not None
    one = footprint.training_bytes(SPEC, shape)
    for workers in (2, 4):
        batch = SPEC.batch_size * workers
        gang = replace(SPEC, workers=workers, batch_size=batch, backend=backend)
        saved = (workers - 1) * less * shape.parameters
        assert footprint.training_bytes(gang, shape) == workers * one - saved


def test_a_model_that_is_gone_on_from_is_counted_as_it_is() -> None:
    tuned = replace(SPEC, arch=None, base="m")
    assert footprint.training_warning(tuned, 4 * GIB, VERSION) == ""
    large = replace(VERSION, parameters=1_000_000_000)
    assert "wants about 30" in footprint.training_warning(tuned, 4 * GIB, large)
    strange = replace(VERSION, config={"model_type": "new", "layers": "many"})
    assert footprint.training_warning(tuned, 1, strange) == ""


def test_a_replica_wants_its_weights_and_the_cache_of_one_whole_request() -> None:
    spec = DeploymentSpec(model="m")
    wanted = footprint.serving_bytes(spec, VERSION)
    assert wanted is not None
    # Keys and values: 2048 positions, 8 layers, 4 heads of 64, float32.
    cache = 2048 * 8 * 2 * 4 * 64 * 4
    assert wanted == footprint.BASE_BYTES + 8 * 28_000_000 + cache
    assert footprint.serving_warning(spec, VERSION, None, []) == ""
    assert footprint.serving_warning(spec, VERSION, wanted, []) == ""
    assert "and asks for 200 MiB" in footprint.serving_warning(spec, VERSION, 200 * 2**20, [])
    short = footprint.serving_bytes(replace(spec, context=128), VERSION)
    assert short == wanted - cache + cache // 16


def test_of_replicas_that_the_nodes_cannot_hold_it_says_how_many_they_can() -> None:
    nodes = [
        Node(name="a", capacity=Resources.of(cpu=2, memory="64GiB", gpu=2), gpus=2),
        Node(name="b", capacity=Resources.of(cpu=8, memory="64GiB")),
        Node(name="gone", capacity=Resources.of(cpu=8, memory="64GiB"), lost=1.0),
    ]

    def said(replicas: int, **more: Any) -> str:
        given = {"min_replicas": replicas, "max_replicas": 64, "memory": "1GiB", **more}
        spec = DeploymentSpec(model="m", **given)
        return footprint.serving_warning(spec, VERSION, None, nodes)

    assert said(10) == ""
    assert said(11) == "the nodes have room for about 10 of its 11 replicas at once"
    assert "about 8 of its 64" in said(64, memory="16GiB", cpu=0.5)
    assert "about 6 of its 7" in said(7, gpu=0.3, cpu=0.1)
    assert "about 2 of its 7" in said(7, gpu=1, cpu=0.1)
    assert said(0) == ""
