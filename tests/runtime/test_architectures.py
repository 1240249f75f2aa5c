"""Models by name: built, saved, loaded; what cannot be built is refused with the reason."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zenos.core.errors import InvalidError, StorageError, ZenosError
from zenos.models.presets import PRESETS, SIZES
from zenos.models.records import context_length, family_of
from zenos.runtime import architectures
from zenos.runtime.train.parameters import load_weights, weights_of

NANO = ["llama-nano", "gpt-nano", "bert-nano", "t5-nano"]
VOCABULARY = 256
SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(arch: str, changes: dict[str, Any] | None = None, seed: int = 0) -> Any:
    return architectures.build(arch, {**SMALL, **(changes or {})}, VOCABULARY, seed)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(12).reshape(2, 6)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, **more).logits
    return found


def same(one: Any, other: Any) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# -- building


@pytest.mark.parametrize("arch", NANO)
def test_a_seed_gives_the_same_weights_each_time(arch: str) -> None:
    torch.manual_seed(5)
    first = build(arch, seed=3)
    following = torch.rand(1).item()
    torch.manual_seed(5)
    assert torch.rand(1).item() == following, "the caller's generator was disturbed"
    assert same(first, build(arch, seed=3))
    assert not same(first, build(arch, seed=4))


@pytest.mark.parametrize("arch", NANO)
def test_a_built_model_computes_in_float32(arch: str) -> None:
    model = build(arch)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.is_meta for parameter in model.parameters())
    found = logits(model)
    assert found.shape == (2, 6, VOCABULARY)
    assert found.isfinite().all()
    # Untrained, it knows next to nothing of what comes.
    chances = found.softmax(-1)
    entropy = -(chances * chances.log()).sum(-1)
    assert entropy.mean() > 0.8 * math.log(VOCABULARY)


@pytest.mark.parametrize(
    ("arch", "family", "model_type"),
    [
        ("llama-nano", "decoder", "llama"),
        ("gpt-nano", "decoder", "gpt2"),
        ("bert-nano", "encoder", "bert"),
        ("t5-nano", "encoder-decoder", "t5"),
    ],
)
def test_a_preset_is_of_its_family(arch: str, family: str, model_type: str) -> None:
    config = architectures.configure(arch, {}, VOCABULARY)
    assert (family_of(config.to_dict()), config.model_type) == (family, model_type)


@pytest.mark.parametrize(("size", "millions"), [("nano", 1), ("micro", 5), ("mini", 28)])
def test_presets_have_about_the_sizes_they_name(size: str, millions: float) -> None:
    for family in ("llama", "gpt", "bert", "t5"):
        config = architectures.configure(f"{family}-{size}", {}, 4096)
        with torch.device("meta"):
            kind: Any = architectures.CLASSES[family_of(config.to_dict())]
            model = kind.from_config(config)
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert millions / 2 < count < millions * 2, f"{family}-{size} has {count} millions"
    assert len(PRESETS) == 4 * len(SIZES)


@pytest.mark.parametrize("arch", NANO)
def test_settings_replace_the_preset_s_under_the_common_names(arch: str) -> None:
    """`hidden_size` works everywhere, though gpt2 calls it n_embd, and t5 d_model."""
    wanted = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build(arch, wanted)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (96, 1, 2)
    assert model.get_input_embeddings().weight.shape == (VOCABULARY, 96)
    depth = {len(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList)}
    assert max(depth) <= 3, "more layers than were asked for"  # a block of t5 has 3 parts
    logits(model)


def test_a_model_type_works_without_a_preset() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 32, "num_key_value_heads": 1}
    model: Any = architectures.build("qwen2", {**small, **more}, VOCABULARY, 0)
    assert model.config.model_type == "qwen2"
    assert logits(model).shape == (2, 6, VOCABULARY)


def test_what_follows_from_other_settings_may_be_left_to_them() -> None:
    llama = architectures.configure("llama-nano", {"num_key_value_heads": None}, VOCABULARY)
    assert llama.num_key_value_heads == llama.num_attention_heads
    gpt = build("gpt-nano", {"n_inner": None})
    assert gpt.transformer.h[0].mlp.c_fc.weight.shape == (64, 4 * 64)


@pytest.mark.parametrize("arch", ["llama-nano", "mistral", "qwen2"])
def test_heads_that_rotary_positions_cannot_turn_are_refused(arch: str) -> None:
    settings = {"hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(InvalidError, match="an attention head is 3 wide"):
        architectures.configure(arch, settings, VOCABULARY)


def test_a_model_may_have_room_for_more_tokens_than_there_are() -> None:
    model = build("llama-nano", {"vocab_size": VOCABULARY + 64, "eos_token_id": VOCABULARY})
    assert model.get_input_embeddings().num_embeddings == VOCABULARY + 64


def test_a_whole_number_will_do_for_a_fraction() -> None:
    config = architectures.configure("llama-nano", {"attention_dropout": 0, "rms_norm_eps": 1}, 64)
    assert (config.attention_dropout, config.rms_norm_eps) == (0.0, 1.0)


@pytest.mark.parametrize("arch", NANO)
def test_special_tokens_lie_in_the_vocabulary(arch: str) -> None:
    """gpt2's usual end is token 50,256, which a small vocabulary doesn't have."""
    for size in (2, VOCABULARY, 60_000):
        config = architectures.configure(arch, {}, size).to_dict()
        found = {n: v for n, v in config.items() if n.endswith("_token_id") and v is not None}
        assert all(0 <= value < size for value in found.values()), found
    assert architectures.configure("gpt-nano", {}, 60_000).eos_token_id == 50_256


# -- refusals


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("lama-nano", "did you mean 'llama-nano'"),
        ("gpt-nanoo", "did you mean 'gpt-nano'"),
        ("gpt22", "did you mean 'gpt2'"),
        ("", "no such architecture"),
        ("../../etc", "no such architecture"),
        ("x" * 10_000, "no such architecture"),
        ("clip", "a clip model: it is no language model"),
        ("whisper", "whisper"),
        ("resnet", "a resnet model: it is no language model"),
        ("nougat", "Unrecognized model type"),
    ],
)
def test_unknown_architectures(arch: str, reason: str) -> None:
    with pytest.raises(InvalidError, match=reason) as raised:
        architectures.build(arch, {}, VOCABULARY, 0)
    assert str(raised.value).startswith("cannot build")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hiden_size", "; did you mean 'hidden_size'?"),
        ("num_layer", "; did you mean"),
        ("zzzzzz", ": no such setting"),
        ("x" * 10_000, ": no such setting"),
        ("model_type", ": no such setting"),
        ("auto_map", ": no such setting"),
        ("quantization_config", ": no such setting"),
        ("dtype", ": no such setting"),
        ("__class__", ": no such setting"),
    ],
)
@pytest.mark.parametrize("arch", NANO)
def test_unknown_settings(arch: str, name: str, hint: str) -> None:
    with pytest.raises(InvalidError) as raised:
        architectures.build(arch, {name: 8}, VOCABULARY, 0)
    message = str(raised.value)
    assert message.startswith(f"cannot set '{name[:20]}")
    assert hint in message
    assert len(message) < 300


COUNTED = ["hidden_size", "num_hidden_layers", "num_attention_heads"]
NO_COUNTS = [
    0, -1, -64, 10_000_001, 2**31, 2**63, 10**400, -(10**400), 64.0, 64.5, math.nan, math.inf,
    True, False, "64", "", [64], {"a": 1}, None,
]  # fmt: skip


@pytest.mark.parametrize("value", NO_COUNTS, ids=lambda value: str(type(value)))
@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("arch", NANO)
def test_values_that_count_nothing(arch: str, name: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=f"cannot set {name} to .*: give a whole number from 1"):
        architectures.build(arch, {name: value}, VOCABULARY, 0)


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        ("llama-nano", {"num_hidden_layers": 1_001}, "from 1 to 1000"),
        ("llama-nano", {"hidden_size": 100}, "even"),
        ("llama-nano", {"num_attention_heads": 3}, "not a multiple"),
        ("llama-nano", {"hidden_size": 255}, r"settings: The hidden size \(255\) is not a"),
        ("llama-nano", {"hidden_act": "nosuch"}, "settings: transformers has no 'nosuch' here"),
        ("llama-nano", {"attention_dropout": "x"}, r"any type in \(int, float, NoneType\)\.$"),
        ("llama-nano", {"num_key_value_heads": 3}, "4 attention heads are not a multiple of the 3"),
        ("llama-nano", {"num_key_value_heads": 8}, "4 attention heads are not a multiple of the 8"),
        ("gpt-nano", {"num_attention_heads": 3}, "divisible"),
        ("gpt-nano", {"n_positions": 0}, "cannot set n_positions to 0"),
        ("bert-nano", {"num_attention_heads": 5}, "not a multiple"),
        ("bert-nano", {"max_position_embeddings": 0}, "cannot set max_position_embeddings to 0"),
        ("t5-nano", {"d_kv": 0}, "cannot set d_kv to 0"),
        ("t5-nano", {"num_decoder_layers": -2}, "cannot set num_decoder_layers to -2"),
        ("llama-nano", {"hidden_act": 3}, "cannot build llama-nano with these settings"),
        ("llama-nano", {"is_encoder_decoder": True}, "no encoder-decoder of that type"),
        ("llama-nano", {"initializer_range": -0.5}, "cannot set initializer_range to -0.5"),
        ("gpt-nano", {"initializer_range": -0.5}, "cannot set initializer_range to -0.5"),
        ("gpt-nano", {"resid_pdrop": 1.5}, "cannot set resid_pdrop to 1.5: give a number"),
        ("gpt-nano", {"resid_pdrop": "half"}, "cannot build gpt-nano with these settings"),
        ("t5-nano", {"dropout_rate": math.nan}, "cannot set dropout_rate to nan"),
        ("llama-nano", {"rms_norm_eps": math.inf}, "cannot set rms_norm_eps to inf"),
        ("llama-nano", {"rope_parameters": {"rope_theta": math.nan}}, "cannot set rope_parameters"),
        ("llama-nano", {"use_cache": 10**400}, "cannot set use_cache to that"),
        ("llama-nano", {"eos_token_id": 256}, "the vocabulary has 256 tokens"),
        ("bert-nano", {"pad_token_id": -7}, "the vocabulary has 256 tokens"),
        ("llama-nano", {"vocab_size": 200}, "cannot set vocab_size to 200: the vocabulary has 256"),
    ],
)  # fmt: skip
def test_values_that_contradict(arch: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidError, match=reason):
        build(arch, changes)


@pytest.mark.parametrize("arch", NANO)
def test_a_model_larger_than_the_machine_is_refused_before_it_is_made(arch: str) -> None:
    with pytest.raises(InvalidError, match=r"its weights take .*iB, this machine has .*smaller"):
        build(arch, {"hidden_size": 4_000_000, "num_hidden_layers": 24})


@settings(max_examples=60, deadline=None)
@given(
    arch=st.sampled_from(NANO),
    changes=st.dictionaries(
        st.sampled_from([*COUNTED, "num_key_value_heads", "initializer_range", "pad_token_id"]),
        st.integers(-2, 9) | st.floats(width=16) | st.none() | st.booleans() | st.text(max_size=2),
        max_size=3,
    ),
)
def test_any_settings_are_refused_or_compute(arch: str, changes: dict[str, Any]) -> None:
    try:
        model = build(arch, changes)
    except ZenosError as error:
        assert str(error).startswith("cannot ")  # noqa: PT017
    else:
        assert logits(model).shape == (2, 6, VOCABULARY)


# -- saving and loading


@pytest.mark.parametrize("arch", NANO)
def test_what_is_saved_loads_equal(arch: str, tmp_path: Path) -> None:
    model = build(arch)
    architectures.save(model, tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert "README.md" not in {path.name for path in tmp_path.iterdir()}
    config = architectures.read_config(tmp_path)
    assert config["architectures"] == [type(model).__name__]
    loaded: Any = architectures.load(tmp_path, torch.float32)
    assert same(model, loaded)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(logits(loaded), logits(model))
    kind = architectures.CLASSES[family_of(config)]
    theirs = kind.from_pretrained(tmp_path)  # and transformers itself opens it
    assert torch.equal(logits(theirs), logits(model))


@pytest.mark.parametrize("arch", NANO)
def test_a_model_takes_over_the_weights_of_a_checkpoint(arch: str, tmp_path: Path) -> None:
    saved = build(arch, seed=1)
    weights = {name: tensor.detach().clone() for name, tensor in weights_of(saved).items()}
    restored = architectures.restore(arch, SMALL, VOCABULARY, weights)
    assert restored is not None
    # As they are: nothing is copied, but for a small one that some models tie in their own way.
    own = weights_of(restored)
    assert own.keys() == weights.keys()
    copied = [name for name in own if own[name].data_ptr() != weights[name].data_ptr()]
    assert set(copied) <= {"cls.predictions.bias"}
    load_weights(restored, weights)
    assert all(torch.equal(own[name], weights[name]) for name in own)
    assert all(parameter.requires_grad for parameter in restored.parameters())
    # And all that is no weight is as in the model that was saved.
    for mine, theirs in zip(restored.named_buffers(), saved.named_buffers(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])
    for model, name in ((saved, "saved"), (restored, "restored")):
        architectures.save(model, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "restored").iterdir())
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (
            tmp_path / "restored" / name
        ).read_bytes()


def test_weights_of_another_model_are_not_taken_over() -> None:
    weights = weights_of(build("llama-nano"))
    assert architectures.restore("llama-nano", SMALL, 2 * VOCABULARY, weights) is None
    assert architectures.restore("gpt-nano", SMALL, VOCABULARY, weights) is None
    weights.popitem()
    assert architectures.restore("llama-nano", SMALL, VOCABULARY, weights) is None


def test_the_dtype_is_what_was_asked_for(tmp_path: Path) -> None:
    architectures.save(build("llama-nano").to(torch.bfloat16), tmp_path)
    assert architectures.read_config(tmp_path)["dtype"] == "bfloat16"
    for dtype in (torch.bfloat16, torch.float32):
        loaded = architectures.load(tmp_path, dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_the_context_length_is_the_config_s() -> None:
    lengths = [
        context_length(architectures.configure(arch, {}, 64).to_dict())
        for arch in ("llama-nano", "gpt-nano", "bert-nano")
    ]
    assert lengths == [2048, 1024, 512]
    assert context_length({}) is None
    assert context_length({"n_positions": "many"}) is None


def change(**values: Any) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_bytes())
        (directory / "config.json").write_text(json.dumps({**config, **values}))

    return apply


def cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def drop(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["model.norm.weight"]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def only_a_pickle(directory: Path) -> None:
    path = directory / "model.safetensors"
    torch.save(safetensors.torch.load_file(path), directory / "pytorch_model.bin")
    path.unlink()


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def text(content: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / "config.json").write_text(content)

    return apply


DAMAGE = [
    (change(hidden_size=128), InvalidError, "don't have the shapes"),
    (change(vocab_size=100), InvalidError, "don't have the shapes"),
    (change(hidden_size="wide"), InvalidError, "hidden_size"),
    (change(hidden_size=10**9, head_dim=8), InvalidError, "don't have the shapes"),
    (change(num_hidden_layers=3), InvalidError, "its weights lack model.layers.2"),
    (change(num_hidden_layers=10**9), InvalidError, "sets num_hidden_layers to 1000000000"),
    (change(num_hidden_layers=-1), InvalidError, "sets num_hidden_layers to -1"),
    (change(model_type="nosuch"), InvalidError, "nosuch"),
    (change(model_type="clip"), InvalidError, "a clip model: it is no language model"),
    (change(rope_parameters={"rope_type": "nosuch"}), InvalidError, "nosuch"),
    (change(hidden_act="nosuch"), InvalidError, "names 'nosuch', which transformers"),
    (change(quantization_config={"quant_method": "gptq"}), InvalidError, "cannot load the model"),
    (text("{"), InvalidError, "cannot read config.json"),
    (text("[]"), InvalidError, "it is no object"),
    (text("{}"), InvalidError, "model_type"),
    (no_config, StorageError, "cannot read config.json: No such file"),
    (cut, InvalidError, "truncated or damaged"),
    (drop, InvalidError, "its weights lack model.norm.weight"),
    (only_a_pickle, StorageError, "no file named model.safetensors"),
]


@pytest.mark.parametrize(("damage", "kind", "reason"), DAMAGE)
def test_a_directory_that_doesn_t_fit_together(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[ZenosError], reason: str
) -> None:
    architectures.save(build("llama-nano"), tmp_path)
    damage(tmp_path)
    with pytest.raises(kind) as raised:
        architectures.load(tmp_path, torch.float32)
    assert reason in str(raised.value)
    assert str(raised.value).startswith("cannot ")
    assert len(str(raised.value)) < 600


def test_code_that_comes_with_a_model_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architectures.save(build("llama-nano"), tmp_path)
    marker = tmp_path / "it-ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    answers = io.StringIO("y\n" * 9)  # nobody is asked either
    monkeypatch.setattr(sys, "stdin", answers)
    change(model_type="evil", auto_map=names)(tmp_path)
    with pytest.raises(InvalidError, match="such code is never run"):
        architectures.load(tmp_path, torch.float32)
    change(model_type="llama", auto_map=names)(tmp_path)
    architectures.load(tmp_path, torch.float32)  # the known class; its own is left alone
    assert not marker.exists()
    assert answers.tell() == 0
