"""Short names for architectures and sizes. Pure data: the command line lists them without torch.

A preset is a transformers model type and the fields of its config that differ from its defaults.
Sizes are counted with a vocabulary of 4,096: nano about 1 million parameters, micro 5, mini 28,
small 110.
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any, Final, NamedTuple

from zenos.core.errors import InvalidError
from zenos.core.specs import TrainSpec
from zenos.core.wording import followed, nearest


class Preset(NamedTuple):
    """A transformers model type, and settings of its config."""

    model_type: str
    settings: dict[str, Any]


class Size(NamedTuple):
    """width: of the hidden states; inner: of the feed-forward layers."""

    width: int
    layers: int
    heads: int
    inner: int


SIZES: Final = {
    "nano": Size(128, 4, 4, 384),
    "micro": Size(256, 6, 8, 704),
    "mini": Size(512, 8, 8, 1408),
    "small": Size(768, 12, 12, 2048),
}
POSITIONS: Final = 2048
# What model types call their feed-forward layers' activation.
ACTIVATIONS: Final = frozenset({"hidden_act", "hidden_activation", "activation_function"})
# No published model comes near these; beyond them even a description costs minutes.
SETTING_MAX: Final = 10_000_000
LAYERS_MAX: Final = 1_000
NUMBER_MAX: Final = 1e12  # of a setting that is no size: a base of rotary positions, an epsilon
# What the model types of presets can be trained for from scratch; t5 for nothing here.
OBJECTIVES: Final = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "masked_lm", "t5": None}
# Settings that say how long a sequence may be; GPT-2 takes both names.
ROOMS: Final = ("max_position_embeddings", "n_positions")
# Settings that count something: without it there is no model.
COUNTS: Final = frozenset(
    {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    | {"num_key_value_heads", "head_dim", "max_position_embeddings", "n_embd"}
    | {"n_layer", "n_head", "n_inner", "n_positions", "d_model", "d_kv", "d_ff", "num_layers"}
    | {"num_decoder_layers", "num_heads", "encoder_layers", "decoder_layers"}
)


def _spread(width: int) -> float:
    """Standard deviation of the first weights: transformers' default suits large widths alone.

    Nguyen and Salazar, "Transformers without Tears", 2019 (SmallInit).
    """
    return round(math.sqrt(2 / (5 * width)), 4)


def _llama(size: Size) -> Preset:
    settings = {
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "intermediate_size": size.inner,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "initializer_range": _spread(size.width),
    }
    return Preset("llama", settings)


def _gpt2(size: Size) -> Preset:
    settings = {
        "n_embd": size.width,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_inner": 4 * size.width,
        "n_positions": 1024,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "initializer_range": _spread(size.width),
    }
    return Preset("gpt2", settings)


def _bert(size: Size) -> Preset:
    settings = {
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "max_position_embeddings": 512,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": _spread(size.width),
    }
    return Preset("bert", settings)


def _t5(size: Size) -> Preset:
    settings = {
        "d_model": size.width,
        "num_layers": size.layers,
        "num_heads": size.heads,
        "d_kv": size.width // size.heads,
        "d_ff": 2 * size.width,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    return Preset("t5", settings)


PRESETS: Final[dict[str, Preset]] = {
    f"{name}-{word}": make(size)
    for name, make in (("llama", _llama), ("gpt", _gpt2), ("bert", _bert), ("t5", _t5))
    for word, size in SIZES.items()
}


@functools.cache
def _published() -> tuple[frozenset[str], dict[str, list[str]], frozenset[str]]:
    """Model types, what may be set in those of presets, and activations, as transformers has them.

    Kept as data (zenos/runtime/published.py makes it), for the daemon never imports transformers.
    """
    text = resources.files("zenos.models").joinpath("architectures.json").read_text("utf-8")
    found = json.loads(text)
    return frozenset(found["model_types"]), found["settings"], frozenset(found["activations"])


def check_arch(arch: str, settings: dict[str, Any]) -> None:
    """Raises InvalidError, with the nearest name, for what no task could build.

    Of model types that have no preset, names of settings are known to the task alone.
    """
    types, known, activations = _published()
    preset = PRESETS.get(arch)
    if preset is None and arch not in types:
        family, _, _ = arch.partition("-")
        sizes = [name for name in PRESETS if name.startswith(f"{family}-")]
        hint = nearest(arch[:100], [*PRESETS, *sorted(types)])
        wrong = f"cannot build {arch[:100]!r}: no such architecture{hint}"
        more = f"sizes are {', '.join(sizes)}"
        raise InvalidError(followed(wrong, more) if sizes else wrong)
    for name, value in settings.items():
        if name in COUNTS and value is not None:  # None means the usual, where there is one
            check_count(name, value)
        if name in ACTIVATIONS and isinstance(value, str) and value not in activations:
            hint = nearest(value[:100], sorted(activations))
            raise InvalidError(f"cannot set {name} to {shown(value)}: no such activation{hint}")
    names = known.get(arch if preset is None else preset.model_type)
    if names is None:
        return
    for name in settings:
        if name not in names:
            hint = nearest(name[:100], names)
            raise InvalidError(f"cannot set {name[:100]!r} of {arch}: no such setting{hint}")
    if preset is not None:
        _check_heads(arch, {**preset.settings, **_own(preset, settings)})


def _own(preset: Preset, settings: dict[str, Any]) -> dict[str, Any]:
    """These settings by the names that the preset gives them; what is None is left to it."""
    words = {"hidden_size": "n_embd", "num_attention_heads": "n_head"}
    alone = "num_key_value_heads"  # None here means as many as there are heads
    said = {name: value for name, value in settings.items() if value is not None or name == alone}
    return {words[n] if words.get(n) in preset.settings else n: v for n, v in said.items()}


def _check_heads(arch: str, values: dict[str, Any]) -> None:
    """Raises InvalidError where the heads don't divide the width, or those of keys the heads.

    T5's have a width of their own, and so have other names.
    """
    width, heads, name = (
        (values["n_embd"], values["n_head"], "n_embd")
        if "n_embd" in values
        else (values.get("hidden_size"), values.get("num_attention_heads"), "hidden_size")
    )
    if width is None or heads is None:
        return
    if width % heads:
        raise InvalidError(
            f"cannot build {arch}: {name} ({width}) is not a multiple of the {heads} attention "
            "heads; set another width, or other heads"
        )
    shared = values.get("num_key_value_heads") or heads
    if heads % shared:
        raise InvalidError(
            f"cannot build {arch}: {heads} attention heads are not a multiple of the {shared} "
            "heads of keys and values (num_key_value_heads)"
        )


def check_type(model_type: str | None) -> None:
    """Raises InvalidError for a config's model type that transformers doesn't have here."""
    types, _, _ = _published()
    if model_type is not None and model_type not in types:
        raise InvalidError(
            f"cannot import a model of the type {model_type[:100]!r}: transformers has none such "
            f"here{nearest(model_type[:100], sorted(types))}"
        )


def check_activation(name: str, value: Any) -> None:
    """Raises InvalidError, with the nearest, for an activation that a config of that name lacks."""
    *_, known = _published()
    if not isinstance(value, str) or value not in known:
        hint = nearest(str(value)[:100], sorted(known))
        raise InvalidError(
            f"cannot import this model: its config.json sets {name} to {shown(value)}, and "
            f"transformers has no such activation here{hint}"
        )


def check_train(spec: TrainSpec) -> None:
    """Raises InvalidError for a run from scratch that its architecture cannot do.

    Of model types that have no preset the task alone knows, as it does of a model to go on from.
    """
    if spec.arch is None:
        return
    check_arch(spec.arch, spec.settings)
    preset = PRESETS.get(spec.arch, Preset(spec.arch, {}))
    if spec.objective != OBJECTIVES.get(preset.model_type, spec.objective):
        raise InvalidError(
            f"cannot train {spec.arch} as {spec.objective}: choose an architecture of that family "
            "(llama and gpt2 for causal_lm, bert for masked_lm)"
        )
    said = {name: value for name, value in spec.settings.items() if name in ROOMS}
    said = said or {name: value for name, value in preset.settings.items() if name in ROOMS}
    rooms = [value for value in said.values() if type(value) is int]
    if rooms and spec.sequence_length > max(rooms):
        raise InvalidError(
            f"cannot train on sequences of {spec.sequence_length} tokens: the model has room for "
            f"{max(rooms)}; set {next(iter(said))} in 'settings', or a shorter "
            "sequence_length"
        )


def check_count(name: str, value: Any, own: str | None = None) -> None:
    """Raises InvalidError for a value that no setting of COUNTS can have.

    own: what the model type itself calls the setting, where that is another name.
    """
    most = LAYERS_MAX if "layer" in (own or name) else SETTING_MAX
    if not is_count(value, most):
        raise InvalidError(
            f"cannot set {name} to {shown(value)}: give a whole number from 1 to {most}"
        )


def is_count(value: Any, most: int) -> bool:
    """Whether it is a whole number from 1 to `most`."""
    return type(value) is int and 1 <= value <= most


def shown(value: Any) -> str:
    """A setting's value in a message, whatever it is."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "that"  # Python refuses to print very long numbers
    return repr(value)[:100]
