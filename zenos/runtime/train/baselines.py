"""What a model has to beat: a unigram and a bigram model over the same held-out tokens."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zenos.runtime.train.packing import Tokens

# Counts are taken over at most this many training tokens, spread evenly.
TOKENS_MAX: Final = 2**26
_CHUNK: Final = 2**22
DISCOUNT: Final = 0.75


class Baselines:
    """Counts of training tokens and pairs.

    tokens: shape (count,); size: of the vocabulary. The unigram model adds one to each count. The
    bigram model is interpolated absolute discounting over it (Ney, Essen and Kneser, 1994):

        P(b | a) = max(n(ab) - D, 0) / n(a) + D · kinds(a) / n(a) · P(b)

    with kinds(a) the number of different tokens seen after a; P(b) where a was never seen.
    """

    def __init__(self, tokens: np.ndarray[Any, Any], size: int) -> None:
        self._size = size
        counts = np.zeros(size, dtype=np.int64)
        codes = np.zeros(0, dtype=np.int64)
        pair_counts = np.zeros(0, dtype=np.int64)
        for chunk in _spread(tokens):
            part = np.asarray(chunk, dtype=np.int64)
            counts += np.bincount(part, minlength=size)
            found, times = np.unique(part[:-1] * size + part[1:], return_counts=True)
            codes, pair_counts = _merge(codes, pair_counts, found, times)
        self._unigram = (counts + 1) / (counts.sum() + size)
        self._codes, self._pair_counts = codes, pair_counts
        first = codes // size
        self._after = np.bincount(first, weights=pair_counts, minlength=size)
        self._kinds = np.bincount(first, minlength=size)

    def unigram(self, targets: Tokens) -> float:
        """Mean loss in nats of the unigram model, over targets of shape (count,)."""
        return float(-np.log(self._unigram[targets]).mean())

    def bigram(self, before: Tokens, targets: Tokens) -> float:
        """Mean loss in nats of the bigram model, over pairs of shape (count,) each."""
        codes = before * self._size + targets
        counts = np.zeros(len(codes))
        if len(self._codes):
            at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
            counts = np.where(self._codes[at] == codes, self._pair_counts[at], 0)
        after = self._after[before]
        seen = np.maximum(after, 1)
        spare = np.where(after > 0, DISCOUNT * self._kinds[before] / seen, 1.0)
        chance = np.maximum(counts - DISCOUNT, 0) / seen + spare * self._unigram[targets]
        return float(-np.log(chance).mean())


def _spread(tokens: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """All tokens in chunks, or, of more than TOKENS_MAX, chunks spread evenly.

    Neighbouring chunks share a token, so that no pair is left out between them.
    """
    starts = np.arange(0, max(1, len(tokens) - 1), _CHUNK)
    most = TOKENS_MAX // _CHUNK
    if len(starts) > most:
        starts = starts[np.arange(most) * len(starts) // most]
    return [tokens[start : start + _CHUNK + 1] for start in starts]


def _merge(a: Tokens, a_counts: Tokens, b: Tokens, b_counts: Tokens) -> tuple[Tokens, Tokens]:
    codes, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    merged = np.bincount(places, weights=np.concatenate([a_counts, b_counts]))
    return codes, merged.astype(np.int64)
