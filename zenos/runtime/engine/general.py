"""The general forward pass: any decoder of transformers that takes a cache, through its own code.

Slower than a native pass, but of the same interface. The model sees a cache object whose layers are
rows of our preallocated tensors, and masks that say which positions a token sees: for models whose
layers see a window only, one mask for each kind of layer.

Not every decoder can be driven like this: some keep something else than keys and values, some count
positions from the end of the cache. So the pass is tried once against the model's own when it is
made, alone and in a batch, and a model that comes out different is refused.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from zenos.core.errors import InvalidError
from zenos.runtime.engine.batch import Batch, Part
from zenos.runtime.engine.cache import RowCache

# Lengths of the two texts that a new pass is tried with, and how far off it may be, as a share of
# the largest logit: rounding, in sums that are added up in another order.
TRIAL_TOKENS: Final = (12, 5)
TRIAL_ERROR: Final = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


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
        self._window, self._kinds = _window(model.config, context)
        count = getattr(model.config, "num_hidden_layers", None)
        if not isinstance(count, int):
            raise InvalidError(f"cannot serve a {model.config.model_type} model: unknown layers")
        self._layers = [_RowsLayer(rows, context) for _ in range(count)]
        self._cache = Cache(layers=list(self._layers))
        self._places = torch.arange(context, device=self.device)
        self._caches: list[RowCache] = []
        self._try()
        self.token_bytes = sum(
            cache.tensor.shape[1] * cache.tensor.shape[3] * cache.tensor.element_size()
            for cache in self._caches
        )

    def _try(self) -> None:
        """Compare with the model's own pass; the layers' tensors are made by that."""
        kind = self._model.config.model_type
        try:
            error = self._trial_error()
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError) as e:
            reason = " ".join(str(e).split())[:200]
            raise InvalidError(
                f"cannot serve a {kind} model: its code doesn't take our cache ({reason})"
            ) from e
        if not error <= TRIAL_ERROR.get(self.dtype, 0.1):  # NaN too
            raise InvalidError(
                f"cannot serve a {kind} model: its answers would not be those of its own code"
            )

    @torch.inference_mode()
    def _trial_error(self) -> float:
        """The largest difference to the model's own logits, as a share of the largest of those."""
        lengths = [min(length, self.context - 1) for length in TRIAL_TOKENS][: self.rows]
        texts = [[(7 * n + 3) % self.vocab_size for n in range(length)] for length in lengths]
        for row, text in enumerate(texts):
            # In two parts, as a long prompt is.
            self.forward(Batch([], [], [Part(row, text[:3], 0, 0)]))
            self._caches = [cache for layer in self._layers for cache in layer.caches]
            if text[3:-1]:
                self.forward(Batch([], [], [Part(row, text[3:-1], 3, 0)]))
        last, places = [text[-1] for text in texts], [len(text) - 1 for text in texts]
        found = self.forward(Batch(last, places, []))
        worst = 0.0
        for row, text in enumerate(texts):
            ids = torch.tensor([text], device=self.device)
            wanted = self._model(input_ids=ids, use_cache=False).logits[0, -1].float()
            off = (found[row] - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)
            worst = max(worst, float(off)) if off == off else float("nan")
            self.release(row)
        return worst

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
        logits = self._run([tokens], at.unsqueeze(0), end, max(wanted, 1))[0]
        return logits if wanted else logits[:0]

    def _decode(self, tokens: list[int], positions: list[int]) -> Tensor:
        """One token of each row 0 … n-1; logits, shape (n, vocabulary)."""
        at = torch.tensor(positions, device=self.device)
        length = max(positions) + 1
        for layer in self._layers:
            layer.rows, layer.positions, layer.length = slice(0, len(tokens)), at, length
        return self._run([[token] for token in tokens], at.unsqueeze(1), length, 1)[:, 0]

    def _masks(self, positions: Tensor, length: int) -> Tensor | dict[str, Tensor]:
        """What each token may see, added to its scores: (rows, 1, tokens, length)."""
        places, at = self._places[:length], positions.unsqueeze(1).unsqueeze(-1)
        seen = places <= at
        if self._window is None:
            return self._mask(seen)
        near = seen & (places > at - self._window)
        if not self._kinds:
            return self._mask(near)
        by_kind = {"full_attention": seen, "sliding_attention": near}
        return {kind: self._mask(by_kind[kind]) for kind in self._kinds}

    def _mask(self, allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~allowed, torch.finfo(self.dtype).min)

    def _run(self, tokens: list[list[int]], positions: Tensor, length: int, kept: int) -> Tensor:
        answer = self._model(
            input_ids=torch.tensor(tokens, device=self.device),
            attention_mask=self._masks(positions, length),
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


def _window(config: Any, context: int) -> tuple[int | None, frozenset[str]]:
    """How many tokens back a layer sees where that hides some, and the kinds of layers, if several.

    Raises InvalidError for kinds that we have no mask for.
    """
    window = getattr(config, "sliding_window", None)
    kinds = frozenset(getattr(config, "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise InvalidError(
            f"cannot serve a {config.model_type} model: it has layers of"
            f" {', '.join(sorted(kinds - {'full_attention', 'sliding_attention'}))}"
        )
    hides = isinstance(window, int) and window < context
    if not hides or kinds == {"full_attention"}:
        return None, frozenset()
    return window, kinds


def local_window(config: Any) -> int | None:
    """The window of a model whose code makes its own local masks, counted from the cache's end.

    Rows of several lengths don't share an end, so such a model is only right within its window.
    """
    kinds = getattr(config, "attention_layers", None) or ()
    size = getattr(config, "window_size", None)
    return size if "local" in kinds and isinstance(size, int) else None
