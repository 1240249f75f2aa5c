"""Architectures and settings are checked when they are submitted, without transformers."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from zenos.core.errors import InvalidError
from zenos.core.specs import ARCHITECTURES, MODEL_TYPES, DataSpec, TrainSpec
from zenos.models.presets import OBJECTIVES, PRESETS, check_arch, check_train


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
    check_arch("gpt-nano", {"hidden_size": 9, "num_attention_heads": 3})
    check_arch("t5-nano", {"d_model": 9})  # whose heads need not divide its width
    check_arch("llama-nano", {"num_key_value_heads": None, "hidden_act": "silu"})
    check_arch(
        "llama-nano", {"num_key_value_heads": None, "num_attention_heads": 3, "hidden_size": 18}
    )
    check_arch("gpt-nano", {"n_inner": None})
    check_arch("llama", {"hidden_size": 64, "head_dim": None})
    check_arch("mistral", {"only_the_task_knows": 1, "hidden_size": 255})
    check_arch("whisper", {"is_encoder_decoder": False})  # its decoder alone is one of text


@pytest.mark.parametrize(
    ("arch", "settings", "says"),
    [
        ("llama-nano", {"model_type": "gpt2"}, "is that; give another one as --arch (in a spec"),
        ("mistral", {"model_type": "gpt2"}, "the architecture is that; give another one as"),
        ("llama-nnao", {}, "did you mean 'llama-nano'"),
        ("llama-huge", {}, "izes are llama-nano, llama-micro, llama-mini, llama-small"),
        ("lamma", {}, "did you mean 'llama'"),
        ("zzz", {}, "no such architecture; there are bert, gpt, llama, t5, each as -nano, -micro"),
        ("resnet", {}, "it is no language model that can be made from nothing; there are bert, "),
        ("clip", {}, "such as bert, gpt2, llama, t5"),
        ("nougat", {}, "it is no language model"),  # its own usual settings fail
        ("llama", {"hidden_size": 255}, "hidden_size (255) is not a multiple of the 32 attention"),
        ("gpt2", {"hidden_size": 255}, "n_embd (255) is not a multiple of the 12 attention heads"),
        ("bert", {"num_attention_heads": 5}, "hidden_size (768) is not a multiple of the 5"),
        ("llama-nano", {"hidden_size": 12}, "an attention head is 3 wide, and rotary positions"),
        ("llama-nano", {"head_dim": 7}, "an attention head is 7 wide"),
        ("llama-nano", {"hidden_size": None}, "cannot set hidden_size to None"),
        ("gpt-nano", {"hidden_size": None}, "cannot set hidden_size to None"),
        ("llama-nano", {"vocab_size": 1}, "give a whole number from 2 to"),
        ("llama-nano", {"hidden_size": float("nan")}, "cannot set hidden_size to nan: "),
        ("llama-nano", {"rms_norm_eps": float("inf")}, "cannot set rms_norm_eps to inf: "),
        (
            "llama-nano",
            {"rms_norm_eps": -1},
            "cannot set rms_norm_eps to -1: give a number above",
        ),
        (
            "llama-nano",
            {"rms_norm_eps": 0.0},
            "set rms_norm_eps to 0.0: give a number above 0",
        ),
        ("bert-nano", {"layer_norm_eps": 1e9}, "cannot set layer_norm_eps to 1000000000.0: give"),
        ("gpt-nano", {"layer_norm_epsilon": -1e-5}, "give a number above 0, and at most 1"),
        ("llama-nano", {"attention_dropout": 2}, "to 2: give a number from 0 to 1"),
        ("gpt-nano", {"resid_pdrop": -0.1}, "to -0.1: give a number from 0 to 1"),
        ("bert", {"attention_probs_dropout_prob": 1.5}, "to 1.5: give a number from 0 to 1"),
        ("mistral", {"attention_dropout": 2}, "to 2: give a number from 0 to 1"),
        ("llama-nano", {"initializer_range": -0.5}, "to -0.5: give a number from 0 to 100"),
        (
            "llama-nano",
            {"rope_parameters": {"rope_theta": -1.0}},
            "cannot set rope_theta in rope_parameters to -1.0: give a number above 0",
        ),
        ("mistral", {"x": {"y": [1, float("-inf")]}}, "cannot set x to -inf: that is no usable"),
        ("llama-nano", {"hiden_size": 64}, "did you mean 'hidden_size'"),
        ("bert", {"num_hiden_layers": 2}, "did you mean 'num_hidden_layers'"),
        ("llama-nano", {"hidden_size": -3}, "cannot set hidden_size to -3: give a whole number"),
        ("llama-nano", {"hidden_size": 0}, "from 1 to 10000000"),
        ("gpt-nano", {"n_layer": 10**6}, "from 1 to 1000"),
        ("t5-nano", {"d_kv": 0.5}, "cannot set d_kv to 0.5"),
        ("mistral", {"num_attention_heads": "4"}, "cannot set num_attention_heads to '4'"),
        (
            "llama-nano",
            {"hidden_size": 255},
            "hidden_size (255) is not a multiple of the 4 attention",
        ),
        (
            "gpt-nano",
            {"hidden_size": 255},
            "n_embd (255) is not a multiple of the 4 attention heads",
        ),
        ("bert-nano", {"num_attention_heads": 5}, "is not a multiple of the 5 attention heads"),
        ("llama-nano", {"num_key_value_heads": 3}, "4 attention heads are not a multiple of the 3"),
        ("llama-nano", {"hidden_act": "sillu"}, "no such activation; did you mean 'silu'"),
        ("bert-nano", {"vocab_size": True}, "cannot set vocab_size to True"),
    ],
)
def test_what_nothing_could_build_is_refused_with_the_nearest(
    arch: str, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        check_arch(arch, settings)
    assert says in caught.value.message


def test_the_names_that_are_completed_are_those_of_presets() -> None:
    assert tuple(PRESETS) == ARCHITECTURES
    assert {preset.model_type for preset in PRESETS.values()} == set(MODEL_TYPES) == set(OBJECTIVES)


def training(arch: str, objective: str = "causal_lm", length: int = 256, **settings: int) -> None:
    check_train(
        TrainSpec(
            model="m",
            data=DataSpec(paths=["/x"]),
            arch=arch,
            objective=objective,  # type: ignore[arg-type]
            sequence_length=length,
            settings=settings,
        )
    )


@pytest.mark.parametrize(
    ("arch", "objective"),
    [
        ("llama-nano", "masked_lm"),
        ("gpt2", "masked_lm"),
        ("bert-nano", "causal_lm"),
        ("t5-nano", "causal_lm"),
        ("t5", "masked_lm"),
        ("mistral", "masked_lm"),
        ("roberta", "causal_lm"),
        ("bart", "causal_lm"),
    ],
)
def test_an_architecture_of_another_objective_is_refused(arch: str, objective: str) -> None:
    with pytest.raises(InvalidError, match=f"cannot train {arch} as {objective}"):
        training(arch, objective)


def test_what_only_the_task_knows_of_an_architecture_passes() -> None:
    training("mistral", "causal_lm", 100_000)
    training("roberta", "causal_lm", is_decoder=True)
    training("llama", "causal_lm", 100_000)
    training("bert-nano", "masked_lm", 512)


@pytest.mark.parametrize(
    ("arch", "length", "settings"),
    [
        ("llama-nano", 2049, {}),
        ("llama", 65, {"max_position_embeddings": 64}),
        ("gpt-nano", 1025, {}),
        ("gpt-nano", 257, {"max_position_embeddings": 256}),
    ],
)
def test_sequences_longer_than_the_architecture_has_room_for_are_refused(
    arch: str, length: int, settings: dict[str, int]
) -> None:
    training(arch, length=length - 1, **settings)
    with pytest.raises(InvalidError, match=f"the model has room for {length - 1}"):
        training(arch, length=length, **settings)


def test_a_model_may_not_have_fewer_tokens_than_its_tokenizer_may_get() -> None:
    for arch in ("llama-nano", "llama", "mistral"):
        with pytest.raises(InvalidError, match="cannot set vocab_size to 4095: the tokenizer"):
            training(arch, vocab_size=4095)
        training(arch, vocab_size=4096)
