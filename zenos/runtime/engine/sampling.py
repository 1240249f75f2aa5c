"""Choose the next token of each row, all rows at once.

Each sequence has a source of random numbers of its own and takes one number for each token, so what
it draws doesn't depend on which sequences stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

# Below this the quotient could overflow, and the choice is greedy in all but name.
TEMPERATURE_MIN: Final = 1e-4
# The nucleus is looked for among so many tokens first: sorting a whole vocabulary is slow.
NUCLEUS_TOKENS: Final = 256


class Draw(NamedTuple):
    """How one row chooses. uniform: its random number in [0, 1), unused where greedy."""

    temperature: float
    top_p: float
    uniform: float


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each row of `logits`, shape (rows, vocabulary), float32.

    -1 for a row whose logits are not numbers. Temperature 0 is greedy; ties go to the lower token.
    """
    values, greedy = logits.max(dim=-1)
    tokens: list[int] = greedy.tolist()
    for row, value in enumerate(values.tolist()):
        if not abs(value) < float("inf"):  # NaN too
            tokens[row] = -1
    drawn = [i for i, draw in enumerate(draws) if draw.temperature > 0 and tokens[i] >= 0]
    if drawn:
        rows = logits if len(drawn) == len(draws) else logits[drawn]
        for row, token in zip(drawn, _draw(rows, [draws[row] for row in drawn]), strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Tokens by the inverse of the distribution function at each row's random number."""
    temperatures = [max(draw.temperature, TEMPERATURE_MIN) for draw in draws]
    if any(temperature != 1 for temperature in temperatures):
        logits = logits / _column(temperatures, logits)
    probabilities = torch.softmax(logits, dim=-1)
    uniforms = _column([draw.uniform for draw in draws], logits)
    cut = [i for i, draw in enumerate(draws) if draw.top_p < 1]
    tokens: list[int] = _invert(probabilities, uniforms).tolist()
    if cut:
        top_p = _column([draws[row].top_p for row in cut], logits)
        for row, token in zip(cut, _nucleus(probabilities[cut], uniforms[cut], top_p), strict=True):
            tokens[row] = token
    return tokens


def _nucleus(probabilities: Tensor, uniforms: Tensor, top_p: Tensor) -> list[int]:
    """Draw among the likeliest tokens that together reach top_p; at least one.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019.
    """
    vocabulary = probabilities.shape[-1]
    ordered, places = probabilities.topk(min(NUCLEUS_TOKENS, vocabulary), dim=-1)
    if bool((ordered.sum(dim=-1, keepdim=True) < top_p).any()):
        ordered, places = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p, ordered, 0.0)
    kept[:, 0] = ordered[:, 0]
    found: list[int] = places.gather(1, _invert(kept, uniforms).unsqueeze(1)).squeeze(1).tolist()
    return found


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first index at which the running sum exceeds its share `uniforms` of the whole."""
    sums = weights.cumsum(dim=-1)
    wanted = uniforms * sums[:, -1:]
    found = torch.searchsorted(sums, wanted, right=True).squeeze(1)
    # Rounding can lead to the very end, where the weights may be zero.
    last = (sums < sums[:, -1:]).sum(dim=-1)
    return torch.minimum(found, last)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


class TokenLogs(NamedTuple):
    """Natural logarithms of probabilities: of the token, and of the likeliest (token, log)."""

    chosen: float
    top: list[tuple[int, float]]


def log_probabilities(
    logits: Tensor, tokens: Sequence[int], counts: Sequence[int]
) -> list[TokenLogs]:
    """For each row of `logits` (rows, vocabulary), those of its token and of its `counts` best.

    Of the model's own distribution: temperature and top_p don't change them.
    """
    logs = torch.log_softmax(logits, dim=-1)
    chosen = logs.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)).squeeze(1)
    most = min(max(counts), logits.shape[-1])
    values, places = logs.topk(most, dim=-1) if most else (logs[:, :0], logs[:, :0])
    return [
        TokenLogs(log, list(zip(map(int, ids[:count]), best[:count], strict=True)))
        for log, ids, best, count in zip(
            chosen.tolist(), places.tolist(), values.tolist(), counts, strict=True
        )
    ]
