"""What a model is trained to do. A new objective is a class here and a name in TrainSpec.

An objective turns windows of tokens into inputs and targets, and a model's logits into a loss. All
its randomness is a pure function of the seed and the number of the first sample.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional

from zenos.core.errors import InvalidError
from zenos.core.specs import TrainSpec
from zenos.runtime.train.packing import Tokens
from zenos.runtime.train.tokenizer import Vocabulary

IGNORED: Final = -100
# Of the chosen tokens, the share that is masked, and that is replaced at random (Devlin et al.,
# "BERT", 2018); the rest stay as they are.
_MASKED: Final = 0.8
_REPLACED: Final = 0.1


class Batch(NamedTuple):
    """inputs, targets: int64, shape (sequences, tokens); a target of IGNORED has no loss.

    before: the token that stands before each target, same shape: what a bigram model sees.
    """

    inputs: Tokens
    targets: Tokens
    before: Tokens


class Objective(Protocol):
    """length, stride: of the windows that `batch` takes (see packing.Samples)."""

    length: int
    stride: int

    def batch(self, windows: Tokens, first: int) -> Batch:
        """Inputs and targets of the samples number first … of shape (sequences, length)."""
        ...


class CausalLM:
    """Predict each next token."""

    def __init__(self, spec: TrainSpec, vocabulary: Vocabulary) -> None:
        self.length = spec.sequence_length + 1
        self.stride = spec.sequence_length

    def batch(self, windows: Tokens, first: int) -> Batch:
        """Inputs are all tokens but the last, targets all but the first."""
        return Batch(windows[:, :-1], windows[:, 1:], windows[:, :-1])


class MaskedLM:
    """Predict tokens that were hidden, from both sides.

    Raises InvalidError when the tokenizer has no mask token.
    """

    def __init__(self, spec: TrainSpec, vocabulary: Vocabulary) -> None:
        if vocabulary.mask_id is None:
            raise InvalidError(
                "cannot train a masked language model: its tokenizer has no mask token; "
                "leave out 'tokenizer' to have one made"
            )
        self._mask = vocabulary.mask_id
        self._special = np.asarray(vocabulary.special_ids(), dtype=np.int64)
        self._ordinary = np.setdiff1d(np.arange(vocabulary.size), self._special)
        self._cls, self._sep = vocabulary.cls_id, vocabulary.sep_id
        self._probability = spec.mask_probability
        self._seed = spec.seed
        framed = self._cls is not None and self._sep is not None
        self.length = self.stride = spec.sequence_length - (2 if framed else 0)
        self._framed = framed

    def batch(self, windows: Tokens, first: int) -> Batch:
        """Hide tokens: at least one in each sequence that has an ordinary one."""
        chosen = np.empty(windows.shape, dtype=bool)
        inputs = windows.copy()
        for row, window in enumerate(windows):
            generator = np.random.Generator(np.random.Philox(key=[self._seed, first + row]))
            draws = generator.random((3, len(window)))
            ordinary = ~np.isin(window, self._special)
            draws[0][~ordinary] = 2.0
            picked = draws[0] < max(self._probability, draws[0].min())
            picked |= draws[0] == draws[0].min()
            picked &= ordinary
            chosen[row] = picked
            random = generator.choice(self._ordinary, len(window))
            inputs[row] = np.where(picked & (draws[1] < _MASKED), self._mask, inputs[row])
            swap = picked & (draws[1] >= _MASKED) & (draws[1] < _MASKED + _REPLACED)
            inputs[row] = np.where(swap, random, inputs[row])
        targets = np.where(chosen, windows, IGNORED)
        before = np.roll(windows, 1, axis=1)
        if not self._framed:
            return Batch(inputs, targets, before)
        return Batch(
            self._frame(inputs, self._cls, self._sep),
            self._frame(targets, IGNORED, IGNORED),
            self._frame(before, self._cls, self._sep),
        )

    @staticmethod
    def _frame(tokens: Tokens, begin: int | None, end: int | None) -> Tokens:
        return np.pad(tokens, ((0, 0), (1, 1)), constant_values=((0, 0), (begin, end)))  # type: ignore[arg-type]


def objective_for(spec: TrainSpec, vocabulary: Vocabulary) -> Objective:
    """The objective that the specification names."""
    known: dict[str, type[CausalLM] | type[MaskedLM]] = {
        "causal_lm": CausalLM,
        "masked_lm": MaskedLM,
    }
    return known[spec.objective](spec, vocabulary)


def mean_loss(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over targets, in nats; a scalar. Logits are taken in float32."""
    logits = model(input_ids=inputs).logits
    return functional.cross_entropy(
        logits.float().view(-1, logits.size(-1)), targets.reshape(-1), ignore_index=IGNORED
    )
