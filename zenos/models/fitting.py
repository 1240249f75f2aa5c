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
from zenos.models import intake, presets, safetensors, templates
from zenos.models.footprint import GATED

Shapes = Mapping[str, tuple[int, ...]]

# Model types whose tensors are called as below; others go by names of their own.
_USUAL: Final = GATED | {"gpt2", "bert"}
# Those whose embedding is made with the padding token's number.
_PADDED: Final = _USUAL - {"gpt2"}
# What may lie beside the config and has to be JSON, for transformers or for a replica.
_BESIDE: Final = ("generation_config.json", "tokenizer_config.json")
_EMBEDDING: Final = re.compile(
    r"^(model\.|transformer\.|bert\.embeddings\.|embeddings\.)?"
    r"(embed_tokens|wte|word_embeddings)\.weight$"
)
_INNER: Final = re.compile(r"\.\d+\.(mlp\.(gate|up)_proj|intermediate\.dense)\.weight$")
_OUTER: Final = re.compile(r"\.\d+\.(mlp\.down_proj|output\.dense)\.weight$")
_NORMS: Final = re.compile(
    r"(\.\d+\.(input|post_attention)_layernorm|^(model\.)?norm)\.weight$"  # as wide as the states
)
_OUTPUT: Final = re.compile(r"^lm_head\.weight$")
_HEADS: Final = re.compile(r"\.\d+\.self_attn\.(q|k|v|o)_proj\.weight$")
# Those whose heads divide the width where the config doesn't say how wide one is.
_EVEN_HEADS: Final = frozenset({"llama", "mistral", "qwen2"})
# Weights are real numbers unless a quantization packs them into integers. Buffers are called
# otherwise, such as gpt2's mask, `h.0.attn.bias`.
_WEIGHT: Final = re.compile(r"(^|\.)weight$")
_BIAS: Final = re.compile(r"(?<!\.attn)\.bias$")
_COUNT_MAX: Final = 10**9  # a model of somebody else's may be larger than what is made here
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d{1,6})\.")


class _Tokenizer(msgspec.Struct):
    model: dict[str, msgspec.Raw]


def inspect(files: Mapping[str, Path]) -> tuple[dict[str, Any], int]:
    """As `intake.inspect`; and raises InvalidError for an unknown model type, for tensors that
    don't fit the config, and for a tokenizer.json that isn't one."""
    config, parameters = intake.inspect(files)
    if not config.get("model_type"):
        raise InvalidError(
            "cannot import this model: its config.json has no model_type, which says what it is "
            "(such as llama); add it, or fetch the file again"
        )
    presets.check_type(config["model_type"])
    headers = [safetensors.check(p, n) for n, p in files.items() if n.endswith(".safetensors")]
    shapes = {name: shape for header in headers for name, shape in header.shapes.items()}
    for name in shapes:
        if not name.isprintable():
            raise InvalidError(
                f"cannot import this model: its weights have a tensor called {name[:64]!a}, which "
                "no model type has; fetch them again"
            )
    if not _is_quantized(config):
        _check_dtypes(config, {n: dtype for h in headers for n, dtype in h.unreal.items()})
    if config.get("model_type") in _USUAL:
        _check_values(config)
        if not _is_quantized(config):
            _check_embedding(config, shapes)
            _check_layers(config, shapes)
            _check_inner(config, shapes)
            _check_attention(config, shapes)
    said = {name: _object(files, name) for name in _BESIDE}
    _check_ids("config.json", config)
    _check_ids("generation_config.json", said["generation_config.json"])
    templates.check(files, said["tokenizer_config.json"])
    if "tokenizer.json" in files:
        _check_tokenizer(files["tokenizer.json"])
    return config, parameters


def _object(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    return intake.read_object(files[name], name) if name in files else {}


def _check_ids(name: str, config: Mapping[str, Any]) -> None:
    """That special tokens are numbers, and that of padding one of the vocabulary.

    The others may lie outside of it, as in small models with the usual ids: they never come.
    """
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(id_) is not int for id_ in ids):
            raise InvalidError(
                f"cannot import this model: its {name} sets {key} to {presets.shown(value)}, and "
                "it has to be a token's number; fetch it again"
            )
    size, padding = _said(config, "vocab_size"), config.get("pad_token_id")
    if config.get("model_type") not in _PADDED or size is None or not isinstance(padding, int):
        return
    if not -size <= padding < size:  # below zero it is counted from the end
        raise InvalidError(
            f"cannot import this model: its {name} sets pad_token_id to {presets.shown(padding)}, "
            f"and its vocab_size is {size}; fetch it again"
        )


def _is_quantized(config: Mapping[str, Any]) -> bool:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return any(name.startswith(("quantization", "compression")) for p in parts for name in p)


def _check_dtypes(config: Mapping[str, Any], unreal: Mapping[str, str]) -> None:
    """That weights are real numbers: others are taken for such, and give nonsense."""
    for name, dtype in unreal.items():
        biased = config.get("model_type") in _USUAL and _BIAS.search(name)
        if biased or _WEIGHT.search(name):
            raise InvalidError(
                f"cannot import this model: {name[:128]} has the dtype {dtype}, and its "
                "config.json has no quantization, without which weights are floats (F32, BF16, …); "
                "fetch the weights again"
            )


def _check_values(config: Mapping[str, Any]) -> None:
    """That what is set can be meant; null is the model type's usual."""
    for name, value in config.items():
        wanted = ""
        if value is None:
            continue
        if name in presets.COUNTS:
            most = presets.LAYERS_MAX if "layer" in name else _COUNT_MAX
            wanted = "" if presets.is_count(value, most) else f"a whole number from 1 to {most}"
        elif (bound := presets.bound_of(name)) is not None:
            fits = type(value) in (int, float) and bound.holds(value)
            wanted = "" if fits else str(bound)
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
    if None in wanted:
        return
    if not any(_EMBEDDING.search(name) for name in shapes):
        raise InvalidError(
            f"cannot import this model: its weights have no embedding under a name that a "
            f"{config['model_type']} has; take them and config.json from the same model"
        )
    _check_shapes(_EMBEDDING, shapes, wanted)
    _check_shapes(_OUTPUT, shapes, wanted)
    _check_shapes(_NORMS, shapes, wanted[1:])


def _check_inner(config: Mapping[str, Any], shapes: Shapes) -> None:
    wanted = (_said(config, "intermediate_size"), _said(config, "hidden_size"))
    if None not in wanted:
        _check_shapes(_INNER, shapes, wanted)
        _check_shapes(_OUTER, shapes, wanted[::-1])


def _check_attention(config: Mapping[str, Any], shapes: Shapes) -> None:
    """That the projections have as many heads as the config, each as wide as it says."""
    width, heads = _said(config, "hidden_size"), _said(config, "num_attention_heads")
    each = _said(config, "head_dim")
    if width and heads and each is None and config["model_type"] in _EVEN_HEADS:
        each = width // heads
    if not (width and heads and each):
        return
    shared = _said(config, "num_key_value_heads")
    for name, shape in shapes.items():
        which = _HEADS.search(name)
        count = None if which is None else heads if which[1] in "qo" else shared
        if which is not None and count is not None:
            wanted = (count * each, width)
            _check_shape(name, shape, wanted[::-1] if which[1] == "o" else wanted)


def _check_shapes(which: re.Pattern[str], shapes: Shapes, wanted: tuple[int | None, ...]) -> None:
    for name, shape in shapes.items():
        if which.search(name):
            _check_shape(name, shape, wanted)


def _check_shape(name: str, shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    if shape != wanted:
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
    # The layers of these model types are alike: what one has and another lacks was renamed or lost.
    parts: dict[str, set[str]] = {}
    for name in shapes:
        if where := _LAYER.search(name):
            parts.setdefault(where[1], set()).add(name[where.end() :])
    every = set[str]().union(*parts.values())
    for layer, there in sorted(parts.items()):
        if lacking := sorted(every - there):
            raise InvalidError(
                f"cannot import this model: layer {layer} lacks {lacking[0][:64]!a}, which others "
                "have; take the weights from the same model once more"
            )


def _said(config: Mapping[str, Any], *names: str) -> int | None:
    """What the config says under one of the names; None where that is no count."""
    found = (config[name] for name in names if name in config)
    return next((value for value in found if presets.is_count(value, _COUNT_MAX)), None)


def _check_tokenizer(path: Path) -> None:
    try:
        msgspec.json.decode(path.read_bytes(), type=_Tokenizer)
    except OSError as error:
        raise InvalidError(f"cannot read tokenizer.json: {error.strerror or error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidError(
            f"cannot import this model: its tokenizer.json is none ({why}); fetch it again, or "
            "take it out of the directory"
        ) from error
