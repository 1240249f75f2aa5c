"""The general pass computes what transformers' own code does, or refuses the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from zenos.core.errors import InvalidError
from zenos.runtime.engine.batch import Batch, Part
from zenos.runtime.engine.general import GeneralBackend, local_window

CONTEXT, WINDOW, LENGTH = 64, 8, 40
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": WINDOW}
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "opt": ("opt", {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": ("gpt_neox", SHAPE),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT}),
    "mistral with a window": ("mistral", {**GROUPED, "sliding_window": WINDOW}),
    "phi3 with a window": ("phi3", {**SHAPE, "sliding_window": WINDOW, "pad_token_id": 0}),
    "qwen2 with a window": (
        "qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
}
NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": WINDOW,
    "max_position_embeddings": CONTEXT,
}
REFUSED = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**SHAPE, "alibi": True},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "gpt_neo": NEO,
}


def model(kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=64, **settings)
    made = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    # As they are made, small weights hide what attention does.
    for parameter in made.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def text(length: int) -> list[int]:
    return [(7 * n + 5) % 64 for n in range(length)]


@torch.inference_mode()
def own(made: Any, tokens: list[int]) -> torch.Tensor:
    """The logits after these tokens, by the model's own code."""
    logits: torch.Tensor = made(torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return logits


def compare(made: Any, context: int, long: int) -> None:
    """A long prompt in parts, a short one beside it; then a token of each, together."""
    backend = GeneralBackend(made, 4, context)
    for row, length in enumerate((long, 10)):
        tokens = text(length)
        backend.forward(Batch([], [], [Part(row, tokens[: length // 2], 0, 0)]))
        backend.forward(Batch([], [], [Part(row, tokens[length // 2 : -1], length // 2, 0)]))
    found = backend.forward(Batch([text(long)[-1], text(10)[-1]], [long - 1, 9], []))
    for row, length in enumerate((long, 10)):
        torch.testing.assert_close(found[row], own(made, text(length)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SERVED)
def test_it_computes_what_the_model_s_own_code_does(name: str) -> None:
    compare(model(*SERVED[name]), CONTEXT, LENGTH)


def test_a_local_model_is_right_within_its_window() -> None:
    settings = {**NEO, "window_size": 16}
    made = model("gpt_neo", settings)
    assert local_window(made.config) == 16
    compare(made, 16, 15)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_come_out_wrong_is_refused(kind: str) -> None:
    with pytest.raises(InvalidError, match=f"cannot serve a {kind} model: "):
        GeneralBackend(model(kind, REFUSED[kind]), 4, CONTEXT)


def test_a_pass_that_computes_nonsense_is_refused() -> None:
    made = model("gpt2", SERVED["gpt2"][1])
    with torch.no_grad():
        made.transformer.h[0].attn.c_attn.weight.fill_(float("nan"))
    with pytest.raises(InvalidError, match="its answers would not be those of its own code"):
        GeneralBackend(made, 4, CONTEXT)
