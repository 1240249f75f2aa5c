"""The native forward pass for models of Llama's shape: RMSNorm, rotary positions, grouped-query
attention, SwiGLU (Touvron et al., "LLaMA", 2023; Ainslie et al., "GQA", 2023).

Written for many short steps: weights that meet the same input are one matrix, all tokens of a step
(running sequences and parts of prompts) go through each matrix together, and only attention is
done for each kind by itself. The rows of the running sequences are the first of the cache, so that
nothing is gathered.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zenos.runtime.engine.batch import Batch, Part
from zenos.runtime.engine.cache import RowCache
from zenos.runtime.engine.linear import Linear

SUPPORTED: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Rotary frequencies that change with the length of the text are not one table.
CHANGING_ROPE: Final = frozenset({"dynamic", "longrope"})
# Positions of attention that one more call costs as much as.
CALL_POSITIONS: Final = 96


class _Layer:
    """One layer's weights; those with the same input are put together."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _fuse([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = _fuse([attention.o_proj], dtype)
        self.gate_up = _fuse([mlp.gate_proj, mlp.up_proj], dtype)
        self.down = _fuse([mlp.down_proj], dtype)
        self.norm_in: Tensor = layer.input_layernorm.weight.to(dtype)
        self.norm_mlp: Tensor = layer.post_attention_layernorm.weight.to(dtype)
        self.norm_qk: tuple[Tensor, Tensor] | None = None
        if hasattr(attention, "q_norm"):
            self.norm_qk = (attention.q_norm.weight.to(dtype), attention.k_norm.weight.to(dtype))


def _fuse(parts: list[Any], dtype: torch.dtype) -> Linear:
    """One product for several with the same input. Its parts' own weights are let go."""
    weight = torch.cat([part.weight for part in parts]).to(dtype)
    biased = parts[0].bias is not None
    bias = torch.cat([part.bias for part in parts]).to(dtype) if biased else None
    for part in parts:
        part.weight = part.bias = None
    return Linear(weight, bias)


class _Step(NamedTuple):
    """What all layers of a step share.

    rows, positions: of each token, shape (tokens,). length: positions that the running sequences'
    common attention goes over; longer: rows that go beyond, each done by itself.
    """

    rows: Tensor
    positions: Tensor
    cos: Tensor
    sin: Tensor
    running: int
    length: int
    mask: Tensor | None
    longer: list[tuple[int, int]]
    parts: list[tuple[Part, slice, Tensor | None]]


class LlamaBackend:
    """A model's forward pass; see Backend. Takes the model's weights over and leaves it empty."""

    def __init__(self, model: Any, rows: int, context: int, dtype: torch.dtype) -> None:
        config = model.config
        self.rows, self.context = rows, context
        self.vocab_size: int = config.vocab_size
        self.dtype = dtype
        inner = model.model
        self.device: torch.device = inner.embed_tokens.weight.device
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._size = _head_size(config)
        self._eps: float = config.rms_norm_eps
        positions = torch.arange(context, device=self.device)
        self._places = positions
        with torch.inference_mode():
            self._cos, self._sin = self._rotations(inner, positions)
            self._embed: Tensor = inner.embed_tokens.weight.detach().to(dtype)
            self._norm: Tensor = inner.norm.weight.detach().to(dtype)
            self._head = Linear(model.lm_head.weight.detach().to(dtype), model.lm_head.bias)
            self._layers = [_Layer(layer, dtype) for layer in inner.layers]
        shape = (rows, 2 * self._kv_heads, context, self._size)
        self._caches = [RowCache(shape, dtype, self.device) for _ in self._layers]
        self.token_bytes = token_bytes(config, dtype)

    def _rotations(self, inner: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, shape (context, 1, head size).

        x·cos + swap(x)·sin turns a vector whose halves pair up; the sign of the swapped half is in
        the sines.
        """
        example = torch.zeros(1, dtype=torch.float32, device=self.device)
        cos, sin = inner.rotary_emb(example, positions.unsqueeze(0))
        cos, sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1).clone()
        sin[..., : self._size // 2].neg_()
        return cos.to(self.dtype), sin.to(self.dtype)

    # -- one step

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32, (running + wanted positions, vocabulary)."""
        step, tokens, kept = self._plan(batch)
        x = functional.embedding(tokens, self._embed)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            q = self._project(layer, x, cache, step)
            x = layer.out.onto(self._attend(q, cache, step), x)
            h = functional.rms_norm(x, x.shape[-1:], layer.norm_mlp, self._eps)
            gate, up = layer.gate_up(h).chunk(2, dim=-1)
            x = layer.down.onto(functional.silu(gate).mul_(up), x)
        if kept is not None:
            x = x[kept]
        return self._head(functional.rms_norm(x, x.shape[-1:], self._norm, self._eps)).float()

    def _plan(self, batch: Batch) -> tuple[_Step, Tensor, Tensor | None]:
        """What the layers share, the tokens, and whose logits are wanted (None: all)."""
        running = len(batch.tokens)
        tokens, positions, rows = list(batch.tokens), list(batch.positions), list(range(running))
        kept = list(range(running))
        parts: list[tuple[Part, slice, Tensor | None]] = []
        for part in batch.parts:
            begin, count, end = len(tokens), len(part.tokens), part.start + len(part.tokens)
            tokens += part.tokens
            positions += range(part.start, end)
            rows += [part.row] * count
            kept += range(len(tokens) - part.wanted, len(tokens))
            mask = None
            if part.start and count > 1:
                # Query i stands at position start + i and sees all positions up to its own.
                mask = self._places[:end] <= self._places[part.start : end].unsqueeze(1)
            parts.append((part, slice(begin, begin + count), mask))
        at = torch.tensor(positions, device=self.device)
        length, longer = split_lengths([p + 1 for p in batch.positions])
        mask = None
        if running and min(batch.positions) + 1 < length:
            mask = torch.zeros(running, length, dtype=self.dtype, device=self.device)
            mask.masked_fill_(self._places[:length] > at[:running].unsqueeze(1), -torch.inf)
            mask = mask.view(running, 1, 1, length)
        step = _Step(
            rows=torch.tensor(rows, device=self.device),
            positions=at,
            cos=self._cos[at],
            sin=self._sin[at],
            running=running,
            length=length,
            mask=mask,
            longer=longer,
            parts=parts,
        )
        chosen = None
        if len(kept) != len(tokens):  # perhaps none: of none torch would not make whole numbers
            chosen = torch.tensor(kept, dtype=torch.long, device=self.device)
        return step, torch.tensor(tokens, device=self.device), chosen

    def _project(self, layer: _Layer, x: Tensor, cache: RowCache, step: _Step) -> Tensor:
        """Queries, shape (tokens, heads, head size); keys and values go into the cache."""
        h = functional.rms_norm(x, x.shape[-1:], layer.norm_in, self._eps)
        qkv = layer.qkv(h).view(len(h), -1, self._size)
        turning = qkv[:, : self._heads + self._kv_heads]
        if layer.norm_qk is not None:
            normed = (turning[:, : self._heads], turning[:, self._heads :])
            for part, weight in zip(normed, layer.norm_qk, strict=True):
                part.copy_(functional.rms_norm(part, part.shape[-1:], weight, self._eps))
        swapped = turning.roll(self._size // 2, dims=-1)
        turning.mul_(step.cos).addcmul_(swapped, step.sin)
        cache.tensor[step.rows, :, step.positions] = qkv[:, self._heads :]
        return qkv[:, : self._heads]

    def _attend(self, q: Tensor, cache: RowCache, step: _Step) -> Tensor:
        """Attention of all tokens, shape (tokens, heads · head size)."""
        n = step.running
        pieces: list[Tensor] = []
        if n:
            attended = _attention_of_one(
                q[:n],
                cache.keys[:n, :, : step.length],
                cache.values[:n, :, : step.length],
                step.mask,
            )
            for row, length in step.longer:
                attended[row : row + 1] = _attention_of_one(
                    q[row : row + 1],
                    cache.keys[row : row + 1, :, :length],
                    cache.values[row : row + 1, :, :length],
                    None,
                )
            pieces.append(attended)
        for part, place, mask in step.parts:
            end = part.start + len(part.tokens)
            attended = _attention(
                q[place].transpose(0, 1).unsqueeze(0),
                cache.keys[part.row : part.row + 1, :, :end],
                cache.values[part.row : part.row + 1, :, :end],
                mask,
                is_causal=part.start == 0 and end > 1,
            )
            pieces.append(attended[0].transpose(0, 1).reshape(end - part.start, -1))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    # -- rows

    def exchange(self, first: int, second: int, first_length: int, second_length: int) -> None:
        """Swap the first positions of two rows."""
        for cache in self._caches:
            cache.exchange(first, second, first_length, second_length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        for cache in self._caches:
            cache.copy(source, target, length)

    def release(self, row: int) -> None:
        """Give a row's memory back to the system."""
        for cache in self._caches:
            cache.release(row)


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Cache memory (bytes) that one position takes, in all layers."""
    each = 2 * config.num_key_value_heads * _head_size(config) * dtype.itemsize
    return int(each * config.num_hidden_layers)


def _head_size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool = False
) -> Tensor:
    """q: (n, heads, queries, size); k, v: (n, key-value heads, positions, size)."""
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _attention_of_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one token of each sequence, shape (n, heads · size).

    q: (n, heads, size); k, v: (n, key-value heads, positions, size). Heads that share keys see the
    same positions, so they go as the queries of one head: their keys are read once, and a CPU's
    kernel, which is made for many queries, is 5 times faster in bfloat16 (2 queries, 96 positions).
    It is 2.4 times faster even for two equal queries than for one.
    """
    n, heads, size = q.shape
    q = q.view(n, k.shape[1], heads // k.shape[1], size)
    alone = q.shape[2] == 1 and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    attended = _attention(q.expand(-1, -1, 2, -1) if alone else q, k, v, mask)
    return (attended[:, :, :1] if alone else attended).reshape(n, heads * size)


def split_lengths(lengths: list[int]) -> tuple[int, list[tuple[int, int]]]:
    """How far the common attention goes, and (row, length) of those that are done by themselves.

    Common attention costs rows times its length, so one long sequence among short ones would make
    all of them long. Each that is taken out costs its own length and CALL_POSITIONS; the cheapest
    split takes out the k longest for some k.
    """
    if not lengths:
        return 0, []
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    best, best_cost, apart = 0, float("inf"), 0
    for k, row in enumerate(order):
        cost = len(lengths) * lengths[row] + apart
        if cost < best_cost:
            best, best_cost = k, cost
        apart += lengths[row] + CALL_POSITIONS
    return lengths[order[best]], [(row, lengths[row]) for row in order[:best]]


def fits(config: Any, context: int) -> bool:
    """Whether the native pass computes what this config says, for texts up to `context`."""
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    return (
        config.model_type in SUPPORTED
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") not in CHANGING_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        # A window as wide as the context hides nothing.
        and (window is None or window >= context)
        and kinds <= {"full_attention", "sliding_attention"}
    )
