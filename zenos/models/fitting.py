"""Whether the files of an imported model belong together, as far as that is seen without torch.

What isn't seen here is told by whoever loads it. Models made here are not looked at: they fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from zenos.core.errors import InvalidError
from zenos.models import intake, presets, safetensors
from zenos.models.footprint import GATED

Shapes = Mapping[str, tuple[int, ...]]

# Model types whose tensors are called as below; others go by names of their own.
_USUAL: Final = GATED | {"gpt2", "bert"}
_EMBEDDING: Final = re.compile(
    r"^(model\.|transformer\.|bert\.embeddings\.|embeddings\.)?"
    r"(embed_tokens|wte|word_embeddings)\.weight$"
)
_INNER: Final = re.compile(r"\.\d+\.(mlp\.(gate|up)_proj|intermediate\.dense)\.weight$")
# Numbers that a config sets, besides those that count something.
_NUMBERS: Final = frozenset({"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta"})
_COUNT_MAX: Final = 10**9  # a model of somebody else's may be larger than what is made here
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d{1,6})\.")


class _Tokenizer(msgspec.Struct):
    model: dict[str, msgspec.Raw]


def inspect(files: Mapping[str, Path]) -> tuple[dict[str, Any], int]:
    """As `intake.inspect`; and raises InvalidError for an unknown model type, for tensors that
    don't fit the config, and for a tokenizer.json that isn't one."""
    config, parameters = intake.inspect(files)
    presets.check_type(config.get("model_type"))
    headers = [safetensors.check(p, n) for n, p in files.items() if n.endswith(".safetensors")]
    shapes = {name: shape for header in headers for name, shape in header.shapes.items()}
    if config.get("model_type") in _USUAL:
        _check_values(config)
        if not any(name.startswith("quantization") for name in config):
            _check_embedding(config, shapes)
            _check_layers(config, shapes)
            _check_inner(config, shapes)
    if "tokenizer.json" in files:
        _check_tokenizer(files["tokenizer.json"])
    return config, parameters


def _check_values(config: Mapping[str, Any]) -> None:
    """That what is set can be meant; null is the model type's usual."""
    for name, value in config.items():
        wanted = ""
        if value is None:
            continue
        if name in presets.COUNTS:
            most = presets.LAYERS_MAX if "layer" in name else _COUNT_MAX
            wanted = "" if presets.is_count(value, most) else f"a whole number from 1 to {most}"
        elif name in _NUMBERS:
            number = type(value) in (int, float) and 0 <= value <= presets.NUMBER_MAX
            wanted = "" if number else f"a number from 0 to {presets.NUMBER_MAX:g}"
        elif name in presets.ACTIVATIONS:
            presets.check_activation(name, value)
        if wanted:
            raise InvalidError(
                f"cannot import this model: its config.json sets {name} to {presets.shown(value)}, "
                f"and it has to be {wanted}; fetch it again"
            )
    heads = _said(config, "num_attention_heads", "n_head")
    width = _said(config, "hidden_size", "n_embd")
    if heads and width and width % heads and config.get("head_dim") is None:
        raise InvalidError(
            f"cannot import this model: its config.json divides hidden states of {width} among "
            f"{heads} attention heads, which doesn't come out even; fetch it again"
        )


def _check_embedding(config: Mapping[str, Any], shapes: Shapes) -> None:
    wanted = (config.get("vocab_size"), _said(config, "hidden_size", "n_embd"))
    if None not in wanted:
        _check_shapes(_EMBEDDING, shapes, wanted)


def _check_inner(config: Mapping[str, Any], shapes: Shapes) -> None:
    wanted = (_said(config, "intermediate_size"), _said(config, "hidden_size"))
    if None not in wanted:
        _check_shapes(_INNER, shapes, wanted)


def _check_shapes(which: re.Pattern[str], shapes: Shapes, wanted: tuple[int | None, ...]) -> None:
    for name, shape in shapes.items():
        if which.search(name) and shape != wanted:
            raise InvalidError(
                f"cannot import this model: {name} has the shape {list(shape)}, and by its "
                f"config.json it would be {presets.shown(list(wanted))}; take both from the same "
                "model"
            )


def _check_layers(config: Mapping[str, Any], shapes: Iterable[str]) -> None:
    wanted = _said(config, "num_hidden_layers", "n_layer")
    found = {int(layer) for name in shapes for layer in _LAYER.findall(name)}
    if found and wanted is not None and found != set(range(min(wanted, 10**6))):
        raise InvalidError(
            f"cannot import this model: it has weights for {len(found)} of its layers, and by its "
            f"config.json it has {wanted}; take both from the same model"
        )


def _said(config: Mapping[str, Any], *names: str) -> int | None:
    """What the config says under one of the names; None where that is no count."""
    found = (config[name] for name in names if name in config)
    return next((value for value in found if presets.is_count(value, 10**7)), None)


def _check_tokenizer(path: Path) -> None:
    try:
        msgspec.json.decode(path.read_bytes(), type=_Tokenizer)
    except OSError as error:
        raise InvalidError(f"cannot read tokenizer.json: {error.strerror or error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidError(
            f"cannot import this model: its tokenizer.json is none ({error}); fetch it again, or "
            "take it out of the directory"
        ) from error
