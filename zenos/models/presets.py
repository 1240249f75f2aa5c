"""Short names for architectures and sizes. Pure data: the command line lists them without torch.

A preset is a transformers model type and the fields of its config that differ from its defaults.
Sizes are counted with a vocabulary of 4,096: nano about 1 million parameters, micro 5, mini 28,
small 110.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, NamedTuple

import msgspec

from zenos.core.errors import InvalidError
from zenos.core.specs import TrainSpec
from zenos.core.wording import followed, nearest


class Preset(NamedTuple):
    """A transformers model type, and settings of its config."""

    model_type: str
    settings: dict[str, Any]


class Bound(NamedTuple):
    """What a number may be; above: more than `low`, and not that itself."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether it lies within; NaN doesn't."""
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"a number above {self.low:g}, and at most {self.high:g}"
        return f"a number from {self.low:g} to {self.high:g}"


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
# Numbers that are no counts, by how their names end, whatever the model type: of shares, of what is
# added below a root, of a spread. `above`: the least itself is none either.
_BOUNDS: Final = (
    (re.compile(r"(drop|dropout|dropout_(prob|rate|p)|layerdrop)$"), Bound(0, 1)),
    (re.compile(r"(^|_)(norm|rms)_(eps|epsilon)$"), Bound(0, 1, above=True)),
    (re.compile(r"(^|_)(initializer_range|initializer_factor|init_std)$"), Bound(0, 100)),
    (re.compile(r"^rope_theta$"), Bound(0, NUMBER_MAX, above=True)),
    (re.compile(r"^partial_rotary_factor$"), Bound(0, 1, above=True)),
    (re.compile(r"^(attn|final)_logit_softcapping$"), Bound(0, NUMBER_MAX, above=True)),
)
# What the model types of presets can be trained for from scratch; t5 for nothing here.
OBJECTIVES: Final = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "masked_lm", "t5": None}
_OF_FAMILY: Final = {"decoder": "causal_lm", "encoder": "masked_lm", "encoder-decoder": None}
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


class Published(msgspec.Struct, frozen=True):
    """What transformers has, kept as data, for the daemon never imports it.

    zenos/runtime/published.py makes it. families: the model types that a model can be made of. Of
    model types with presets: settings, what may be set; counts, the usual values of those that
    count something, None for what follows from others; words, other names of settings.
    """

    activations: list[str]
    model_types: list[str]
    families: dict[str, list[str]]
    settings: dict[str, list[str]]
    counts: dict[str, dict[str, int | None]]
    words: dict[str, dict[str, str]]


@functools.cache
def _published() -> Published:
    raw = resources.files("zenos.models").joinpath("architectures.json").read_bytes()
    return msgspec.json.decode(raw, type=Published)


def _family(model_type: str, settings: Mapping[str, Any]) -> str | None:
    """To which family a model type belongs; None where these settings may change that."""
    if "is_decoder" in settings or "is_encoder_decoder" in settings:
        return None
    families = _published().families.items()
    return next((family for family, types in families if model_type in types), "none")


def check_arch(arch: str, settings: dict[str, Any]) -> None:
    """Raises InvalidError, with the nearest name, for what no task could build.

    Of model types that have no preset, names of settings are known to the task alone.
    """
    known = _published()
    preset = PRESETS.get(arch)
    kind = arch if preset is None else preset.model_type
    if preset is None:
        _check_kind(arch, settings)
    if "model_type" in settings:
        raise InvalidError(
            f"cannot set 'model_type' of {arch}: the architecture is that; give another one as "
            "--arch (in a spec: 'arch')"
        )
    for name, value in settings.items():
        _check_value(kind, name, value)
    names = known.settings.get(kind)
    if names is None:
        return
    for name in settings:
        if name not in names:
            hint = nearest(name[:100], names)
            raise InvalidError(f"cannot set {name[:100]!r} of {arch}: no such setting{hint}")
    usual = {**known.counts[kind], **({} if preset is None else preset.settings)}
    said = {known.words[kind].get(name, name): value for name, value in settings.items()}
    _check_heads(arch, {**usual, **said})


def _check_kind(arch: str, settings: dict[str, Any]) -> None:
    """That there is such a model type, and that it is one of a language model."""
    known = _published()
    there = [kind for kinds in known.families.values() for kind in kinds]
    short = sorted({name.partition("-")[0] for name in PRESETS})
    all_ = (
        f"there are {', '.join(short)}, each as {', '.join(f'-{size}' for size in SIZES)}, and "
        f"{len(there)} model types of transformers, such as {', '.join(known.counts)}"
    )
    if arch not in known.model_types:
        family, _, _ = arch.partition("-")
        hint = nearest(arch[:100], [*PRESETS, *sorted(there)])
        wrong = f"cannot build {arch[:100]!r}: no such architecture{hint}"
        sizes = [name for name in PRESETS if name.startswith(f"{family}-")]
        raise InvalidError(followed(wrong, f"sizes are {', '.join(sizes)}" if sizes else all_))
    if _family(arch, settings) == "none":
        raise InvalidError(
            f"cannot build {arch!r}: it is no language model that can be made from nothing; {all_}"
        )


def _check_value(kind: str, name: str, value: Any) -> None:
    """What can be seen of one setting's value without knowing its type."""
    known = _published()
    check_numbers(name, value)
    counts = known.counts.get(kind, {})
    own = known.words.get(kind, {}).get(name, name)
    # None means the usual, where one follows from other settings.
    if name in COUNTS and not (value is None and counts.get(own) is None):
        check_count(name, value, own)
    if name in ACTIVATIONS and isinstance(value, str) and value not in known.activations:
        hint = nearest(value[:100], known.activations)
        raise InvalidError(f"cannot set {name} to {shown(value)}: no such activation{hint}")


def _check_heads(arch: str, values: Mapping[str, Any]) -> None:
    """Raises InvalidError where the heads don't divide the width, or those of keys the heads.

    T5's have a width of their own, and so have other names.
    """
    name = "n_embd" if "n_embd" in values else "hidden_size"
    width, heads = values.get(name), values.get("n_head") or values.get("num_attention_heads")
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
    if "head_dim" in values:  # of those whose positions are rotary
        check_rotary(arch, values["head_dim"] or width // heads)


def check_rotary(arch: str, width: int) -> None:
    """Raises InvalidError for an odd number of a head's values that rotary positions turn in pairs.

    Su et al., "RoFormer", 2021.
    """
    if width % 2:
        raise InvalidError(
            f"cannot build {arch}: an attention head is {width} wide, and rotary positions take "
            "its values in pairs; set another width, or other heads"
        )


def check_type(model_type: str | None) -> None:
    """Raises InvalidError for a config's model type that transformers doesn't have here."""
    types = _published().model_types
    if model_type is not None and model_type not in types:
        raise InvalidError(
            f"cannot import a model of the type {model_type[:100]!r}: transformers has none such "
            f"here{nearest(model_type[:100], types)}"
        )


def check_activation(name: str, value: Any) -> None:
    """Raises InvalidError, with the nearest, for an activation that a config of that name lacks."""
    known = _published().activations
    if not isinstance(value, str) or value not in known:
        hint = nearest(str(value)[:100], known)
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
    family = _family(spec.arch, spec.settings) or ""
    of_family = _OF_FAMILY.get(family, spec.objective)
    if spec.objective != OBJECTIVES.get(preset.model_type, of_family):
        raise InvalidError(
            f"cannot train {spec.arch} as {spec.objective}: choose an architecture of that family "
            "(llama and gpt2 for causal_lm, bert for masked_lm)"
        )
    size = spec.settings.get("vocab_size", spec.vocab_size)
    if spec.tokenizer is None and type(size) is int and size < spec.vocab_size:
        raise InvalidError(
            f"cannot set vocab_size to {size}: the tokenizer that is trained may have "
            f"{spec.vocab_size} tokens; give --vocab-size, which is of both, instead of a setting"
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
    least = 2 if name == "vocab_size" else 1
    most = LAYERS_MAX if "layer" in (own or name) else SETTING_MAX
    if not is_count(value, most) or value < least:
        raise InvalidError(
            f"cannot set {name} to {shown(value)}: give a whole number from {least} to {most}"
        )


def check_numbers(name: str, value: Any, key: str = "") -> None:
    """Raises InvalidError for a number that no setting can have, in it or anywhere inside it.

    key: under which the value stands inside of the setting, where it does.
    """
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            check_numbers(name, inner, str(inner_key))
    elif isinstance(value, list):
        for inner in value:
            check_numbers(name, inner, key)
    elif isinstance(value, int | float):
        if not -NUMBER_MAX <= value <= NUMBER_MAX:
            raise InvalidError(f"cannot set {name} to {shown(value)}: that is no usable number")
        bound = bound_of(key or name)
        if bound is not None and not bound.holds(value):
            where = f"{key[:64]} in {name}" if key else name
            raise InvalidError(f"cannot set {where} to {shown(value)}: give {bound}")


def bound_of(name: str) -> Bound | None:
    """What a number of that name may be, where the name says it."""
    return next((bound for pattern, bound in _BOUNDS if pattern.search(name)), None)


def is_count(value: Any, most: int) -> bool:
    """Whether it is a whole number from 1 to `most`."""
    return type(value) is int and 1 <= value <= most


def shown(value: Any) -> str:
    """A setting's value in a message, whatever it is."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "that"  # Python refuses to print very long numbers
    return repr(value)[:100]
