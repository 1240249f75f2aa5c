"""Short names for architectures and sizes. Pure data: the command line lists them without torch.

A preset is a transformers model type and the fields of its config that differ from its defaults.
Sizes are counted with a vocabulary of 4,096: nano about 1 million parameters, micro 5, mini 28,
small 110.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, Final, NamedTuple

from zenos.core.errors import InvalidError


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


def check_arch(arch: str) -> None:
    """Raises InvalidError for what is likely a misspelt short name; says nothing of model types."""
    if arch not in PRESETS:
        close = difflib.get_close_matches(arch, PRESETS, n=1, cutoff=0.75)
        if close:
            raise InvalidError(
                f"cannot build {arch!r}: no such architecture; did you mean {close[0]!r}?"
            )
