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


class _RowsLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values: (rows, heads, context, head size), made at the first use."""

    is_sliding = False

    def __init__(self, rows: int, context: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shape = (rows, context)
        self.rows = slice(0, 0)
        self.positions: Tensor | None = None  # (count,) of each row's one token, or None: a prefill
        self.span = (0, 0)
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, now that the model shows what its keys look like."""
        rows, context = self._shape
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (rows, states.shape[1], context, states.shape[3])
            setattr(self, name, torch.zeros(shape, dtype=states.dtype, device=states.device))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what is new; all that the rows hold, up to the longest."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = self._store(self.keys, key_states)
        return keys, self._store(self.values, value_states)

    def _store(self, cache: Any, states: Tensor) -> Tensor:
        if self.positions is None:
            start, end = self.span
            cache[self.rows, :, start:end] = states
        else:
            cache[torch.arange(len(self.positions)), :, self.positions] = states[:, :, 0]
        held: Tensor = cache[self.rows, :, : self.length]
        return held

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        cache: Any
        for cache in (self.keys, self.values):
            cache[target, :, :length] = cache[source, :, :length]

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
    """Prefill and decoding through the model's own forward. Same interface as LlamaBackend."""

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
        self._steps = torch.arange(context, device=self.device)

    @torch.inference_mode()
    def prefill(self, row: int, tokens: list[int], start: int) -> Tensor:
        """Run `tokens` at positions start … of a row; logits after the last, (vocabulary,)."""
        end = start + len(tokens)
        for layer in self._layers:
            layer.rows, layer.positions = slice(row, row + 1), None
            layer.span, layer.length = (start, end), end
        at = self._steps[start:end]
        return self._forward([tokens], at.unsqueeze(0), self._steps[:end] <= at.unsqueeze(1))[0]

    @torch.inference_mode()
    def decode(self, tokens: list[int], positions: list[int]) -> Tensor:
        """One step of rows 0 … n-1; logits, shape (n, vocabulary)."""
        at = torch.tensor(positions, device=self.device)
        length = max(positions) + 1
        for layer in self._layers:
            layer.rows, layer.positions, layer.length = slice(0, len(tokens)), at, length
        allowed = (self._steps[:length] <= at.unsqueeze(1)).view(len(tokens), 1, 1, length)
        return self._forward([[token] for token in tokens], at.unsqueeze(1), allowed)

    def _forward(self, tokens: list[list[int]], positions: Tensor, allowed: Tensor) -> Tensor:
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
            logits_to_keep=1,
        )
        logits: Tensor = answer.logits[:, -1].float()
        return logits

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        for layer in self._layers:
            layer.copy_row(source, target, length)
