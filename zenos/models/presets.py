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
from zenos.core.wording import nearest


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
def _published() -> tuple[frozenset[str], dict[str, list[str]]]:
    """Model types, and what may be set in those of presets, as transformers has them.

    Kept as data (zenos/runtime/published.py makes it), for the daemon never imports transformers.
    """
    text = resources.files("zenos.models").joinpath("architectures.json").read_text("utf-8")
    found = json.loads(text)
    return frozenset(found["model_types"]), found["settings"]


def check_arch(arch: str, settings: dict[str, Any]) -> None:
    """Raises InvalidError, with the nearest name, for what no task could build.

    Settings of model types that have no preset are known to the task alone.
    """
    types, known = _published()
    preset = PRESETS.get(arch)
    if preset is None and arch not in types:
        family, _, _ = arch.partition("-")
        sizes = [name for name in PRESETS if name.startswith(f"{family}-")]
        hint = nearest(arch[:100], [*PRESETS, *sorted(types)])
        more = f"; sizes are {', '.join(sizes)}" if sizes else ""
        raise InvalidError(f"cannot build {arch[:100]!r}: no such architecture{hint}{more}")
    names = known.get(arch if preset is None else preset.model_type)
    if names is None:
        return
    for name in settings:
        if name not in names:
            hint = nearest(name[:100], names)
            raise InvalidError(f"cannot set {name[:100]!r} of {arch}: no such setting{hint}")
