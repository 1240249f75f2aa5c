"""Estimates of memory: what is counted, and who is told."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from zenos.core.specs import DataSpec, DeploymentSpec, TrainSpec
from zenos.models import footprint
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
    # All workers together; each has its part of a batch.
    gang = wanted(replace(SPEC, workers=2, batch_size=16))
    assert gang == 2 * wanted(SPEC)


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
    assert footprint.serving_warning(spec, VERSION, None) == ""
    assert footprint.serving_warning(spec, VERSION, wanted) == ""
    assert "and asks for 200 MiB" in footprint.serving_warning(spec, VERSION, 200 * 2**20)
    short = footprint.serving_bytes(replace(spec, context=128), VERSION)
    assert short == wanted - cache + cache // 16
