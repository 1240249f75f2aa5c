"""The general forward pass: any decoder of transformers that takes a cache, through its own code.

Slower than a native pass, but of the same interface. The model sees a cache object whose layers are
rows of our preallocated tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from zenos.core.errors import InvalidError
from zenos.runtime.engine.batch import Batch
from zenos.runtime.engine.cache import RowCache


class _RowsLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values: (rows, heads, context, head size), made at the first use."""

    is_sliding = False

    def __init__(self, rows: int, context: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shape = (rows, context)
        self.caches: list[RowCache] = []
        self.rows = slice(0, 0)
        self.positions: Tensor | None = None  # (count,) of each row's one token, or None: a prompt
        self.span = (0, 0)
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, now that the model shows what its keys look like."""
        rows, context = self._shape
        for states in (key_states, value_states):
            shape = (rows, states.shape[1], context, states.shape[3])
            self.caches.append(RowCache(shape, states.dtype, states.device))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what is new; all that the rows hold, up to the longest."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.caches
        return self._store(keys.tensor, key_states), self._store(values.tensor, value_states)

    def _store(self, cache: Tensor, states: Tensor) -> Tensor:
        if self.positions is None:
            start, end = self.span
            cache[self.rows, :, start:end] = states
        else:
            rows = torch.arange(len(self.positions), device=cache.device)
            cache[rows, :, self.positions] = states[:, :, 0]
        return cache[self.rows, :, : self.length]

    def get_mask_sizes(self, *args: Any) -> tuple[int, int]:
        """Length and offset of the keys: unused, since masks are given."""
        return self.length, 0

    def get_seq_length(self) -> int:
        """Tokens before this call."""
        return self.span[0] if self.positions is None else self.length - 1

    def get_max_length(self) -> int:
        """The context."""
        return self._shape[1]


class GeneralBackend:
    """Prompts and decoding through the model's own forward; see Backend."""

    def __init__(self, model: Any, rows: int, context: int) -> None:
        self.rows, self.context = rows, context
        self.vocab_size: int = model.config.vocab_size
        self._model = model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        count = getattr(model.config, "num_hidden_layers", None)
        if not isinstance(count, int):
            raise InvalidError(f"cannot serve a {model.config.model_type} model: unknown layers")
        self._layers = [_RowsLayer(rows, context) for _ in range(count)]
        self._cache = Cache(layers=list(self._layers))
        self._places = torch.arange(context, device=self.device)
        # A token that is written over by the first prompt: the model shows what it keeps.
        self._prompt(0, [0], 0, 1)
        self._caches = [cache for layer in self._layers for cache in layer.caches]
        self.token_bytes = sum(
            cache.tensor.shape[1] * cache.tensor.shape[3] * cache.tensor.element_size()
            for cache in self._caches
        )

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32, (running + wanted positions, vocabulary)."""
        pieces = [self._decode(batch.tokens, batch.positions)] if batch.tokens else []
        pieces += [self._prompt(p.row, p.tokens, p.start, p.wanted) for p in batch.parts]
        return torch.cat(pieces)

    @torch.inference_mode()
    def _prompt(self, row: int, tokens: list[int], start: int, wanted: int) -> Tensor:
        """Run `tokens` at positions start … of a row; logits of the last `wanted`."""
        end = start + len(tokens)
        for layer in self._layers:
            layer.rows, layer.positions = slice(row, row + 1), None
            layer.span, layer.length = (start, end), end
        at = self._places[start:end]
        allowed = self._places[:end] <= at.unsqueeze(1)
        logits = self._run([tokens], at.unsqueeze(0), allowed, max(wanted, 1))[0]
        return logits if wanted else logits[:0]

    def _decode(self, tokens: list[int], positions: list[int]) -> Tensor:
        """One token of each row 0 … n-1; logits, shape (n, vocabulary)."""
        at = torch.tensor(positions, device=self.device)
        length = max(positions) + 1
        for layer in self._layers:
            layer.rows, layer.positions, layer.length = slice(0, len(tokens)), at, length
        allowed = self._places[:length] <= at.unsqueeze(1)
        return self._run([[token] for token in tokens], at.unsqueeze(1), allowed, 1)[:, 0]

    def _run(
        self, tokens: list[list[int]], positions: Tensor, allowed: Tensor, kept: int
    ) -> Tensor:
        allowed = allowed.view(len(tokens), 1, -1, allowed.shape[-1])
        lowest = torch.finfo(self.dtype).min
        mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(~allowed, lowest)
        answer = self._model(
            input_ids=torch.tensor(tokens, device=self.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: Tensor = answer.logits[:, -kept:].float()
        return logits

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
