"""Architectures and settings are checked when they are submitted, without transformers."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from zenos.core.errors import InvalidError
from zenos.models.presets import PRESETS, check_arch


def test_what_is_published_is_what_transformers_has() -> None:
    from zenos.runtime.published import published

    text = resources.files("zenos.models").joinpath("architectures.json").read_text("utf-8")
    assert json.loads(text) == published()


@pytest.mark.parametrize("arch", PRESETS)
def test_what_a_preset_sets_may_be_set(arch: str) -> None:
    # T5's first token of an answer is the preset's alone: its config doesn't list it.
    settings = {k: v for k, v in PRESETS[arch].settings.items() if k != "decoder_start_token_id"}
    check_arch(arch, {**settings, "vocab_size": 4096})


def test_other_words_for_a_setting_and_other_model_types_pass() -> None:
    check_arch("gpt-nano", {"hidden_size": 64})
    check_arch("mistral", {"only_the_task_knows": 1})


@pytest.mark.parametrize(
    ("arch", "settings", "says"),
    [
        ("llama-nnao", {}, "did you mean 'llama-nano'"),
        ("llama-huge", {}, "sizes are llama-nano, llama-micro, llama-mini, llama-small"),
        ("lamma", {}, "did you mean 'llama'"),
        ("llama-nano", {"hiden_size": 64}, "did you mean 'hidden_size'"),
        ("bert", {"num_hiden_layers": 2}, "did you mean 'num_hidden_layers'"),
    ],
)
def test_what_nothing_could_build_is_refused_with_the_nearest(
    arch: str, settings: dict[str, int], says: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        check_arch(arch, settings)
    assert says in caught.value.message
