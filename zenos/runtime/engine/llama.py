"""The native forward pass for models of Llama's shape: RMSNorm, rotary positions, grouped-query
attention, SwiGLU.

Written for many short steps: weights that meet the same input are one matrix, the cache is updated
in place, and the rows of a batch are the first rows of the cache, so that nothing is gathered.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

SUPPORTED: Final = frozenset({"llama", "mistral", "qwen2"})


class LlamaBackend:
    """Prefill and decoding for one loaded model.

    The cache holds keys and values of shape (rows, key-value heads, context, head size) per layer.
    A row belongs to one sequence at a time. Rows in use are 0 … n-1.
    """

    def __init__(self, model: Any, rows: int, context: int) -> None:
        config = model.config
        self.rows, self.context = rows, context
        self.vocab_size: int = config.vocab_size
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._size: int = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._eps: float = config.rms_norm_eps
        inner = model.model
        self._embed: Tensor = inner.embed_tokens.weight
        self._norm: Tensor = inner.norm.weight
        self._head: Tensor = model.lm_head.weight
        self.device, self.dtype = self._embed.device, self._embed.dtype
        self._layers = [_Layer(layer) for layer in inner.layers]
        shape = (rows, self._kv_heads, context, self._size)
        # Not touched until used, so memory grows with what is really held.
        self._keys = [self._empty(shape) for _ in self._layers]
        self._values = [self._empty(shape) for _ in self._layers]
        positions = torch.arange(context, device=self.device).unsqueeze(0)
        cos, sin = inner.rotary_emb(self._embed[:1].unsqueeze(0), positions)
        self._cos, self._sin = cos[0].to(self.dtype), sin[0].to(self.dtype)
        self._steps = torch.arange(context, device=self.device)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def prefill(self, row: int, tokens: list[int], start: int) -> Tensor:
        """Run `tokens` at positions start … of a row; logits after the last, (vocabulary,)."""
        count, end = len(tokens), start + len(tokens)
        x = functional.embedding(torch.tensor(tokens, device=self.device), self._embed)
        cos, sin = self._cos[start:end].unsqueeze(1), self._sin[start:end].unsqueeze(1)
        mask = None
        if start:
            # Query i stands at position start + i, and sees all positions up to its own.
            mask = self._steps[:end] <= self._steps[start:end].unsqueeze(1)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            q, k, v = self._project(layer, x, count, cos, sin)
            keys[row, :, start:end] = k.transpose(0, 1)
            values[row, :, start:end] = v.transpose(0, 1)
            attended = functional.scaled_dot_product_attention(
                q.transpose(0, 1).unsqueeze(0),
                self._spread(keys[row : row + 1, :, :end]),
                self._spread(values[row : row + 1, :, :end]),
                attn_mask=mask,
                is_causal=mask is None and count > 1,
            )
            x = self._finish(layer, x, attended[0].transpose(0, 1).reshape(count, -1))
        return self._logits(x[-1:])[0]

    @torch.inference_mode()
    def decode(self, tokens: list[int], positions: list[int]) -> Tensor:
        """One step of rows 0 … n-1: their newest tokens at their positions.

        Logits, shape (n, vocabulary).
        """
        count, length = len(tokens), max(positions) + 1
        at = torch.tensor(positions, device=self.device)
        rows = self._steps[:count]
        x = functional.embedding(torch.tensor(tokens, device=self.device), self._embed)
        cos, sin = self._cos[at].unsqueeze(1), self._sin[at].unsqueeze(1)
        mask = (self._steps[:length] <= at.unsqueeze(1)).view(count, 1, 1, length)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            q, k, v = self._project(layer, x, count, cos, sin)
            keys[rows, :, at] = k
            values[rows, :, at] = v
            # The queries of one group share keys and values: they are the rows of one small matrix.
            grouped = q.view(count, self._kv_heads, -1, self._size)
            attended = functional.scaled_dot_product_attention(
                grouped, keys[:count, :, :length], values[:count, :, :length], attn_mask=mask
            )
            x = self._finish(layer, x, attended.reshape(count, -1))
        return self._logits(x)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        for cache in (*self._keys, *self._values):
            cache[target, :, :length] = cache[source, :, :length]

    def _project(
        self, layer: _Layer, x: Tensor, count: int, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values with their positions: (count, heads, head size)."""
        h = functional.rms_norm(x, x.shape[-1:], layer.norm_in, self._eps)
        qkv = functional.linear(h, layer.qkv, layer.qkv_bias)
        qkv = qkv.view(count, self._heads + 2 * self._kv_heads, self._size)
        turning = self._heads + self._kv_heads
        qk, v = qkv[:, :turning], qkv[:, turning:]
        half = self._size // 2
        turned = torch.cat((-qk[..., half:], qk[..., :half]), dim=-1)
        qk = qk * cos + turned * sin
        return qk[:, : self._heads], qk[:, self._heads :], v

    def _finish(self, layer: _Layer, x: Tensor, attended: Tensor) -> Tensor:
        x = x + functional.linear(attended, layer.out)
        h = functional.rms_norm(x, x.shape[-1:], layer.norm_mlp, self._eps)
        gate, up = functional.linear(h, layer.gate_up).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, layer.down)

    def _spread(self, cache: Tensor) -> Tensor:
        """Keys or values once for each query head."""
        return cache.repeat_interleave(self._heads // self._kv_heads, dim=1)

    def _logits(self, x: Tensor) -> Tensor:
        h = functional.rms_norm(x, x.shape[-1:], self._norm, self._eps)
        return functional.linear(h, self._head).float()


class _Layer:
    """One layer's weights, those with the same input put together."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = torch.cat([p.weight for p in projections]).contiguous()
        biased = attention.q_proj.bias is not None
        self.qkv_bias = torch.cat([p.bias for p in projections]) if biased else None
        self.out: Tensor = attention.o_proj.weight
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).contiguous()
        self.down: Tensor = mlp.down_proj.weight
        self.norm_in: Tensor = layer.input_layernorm.weight
        self.norm_mlp: Tensor = layer.post_attention_layernorm.weight


def fits(config: Any) -> bool:
    """Whether the native pass computes what this config says."""
    return (
        config.model_type in SUPPORTED
        and config.hidden_act == "silu"
        and not getattr(config, "mlp_bias", False)
        and not (config.model_type == "llama" and getattr(config, "attention_bias", False))
        and not getattr(config, "sliding_window", None)
    )
