"""Choose the next token of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zenos.core.wire import Sampling


def choose(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> list[int]:
    """One token for each row of `logits` (rows, vocabulary; float32).

    Temperature 0 is greedy. A row with a generator of its own draws from it alone, so its result
    doesn't depend on which rows stand beside it.
    """
    greedy = logits.argmax(dim=-1)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if not drawn:
        return [int(token) for token in greedy]
    temperatures = torch.tensor([samplings[row].temperature for row in drawn], device=logits.device)
    # Below 1e-4 the quotient could overflow, and the choice is greedy in all but name.
    scaled = logits[drawn] / temperatures.clamp(min=1e-4).unsqueeze(1)
    probabilities = torch.softmax(scaled, dim=-1)
    top_p = [samplings[row].top_p for row in drawn]
    if min(top_p) < 1:
        probabilities = nucleus(probabilities, torch.tensor(top_p, device=logits.device))
    tokens = [int(token) for token in greedy]
    for place, row in enumerate(drawn):
        token = torch.multinomial(probabilities[place], 1, generator=generators[row])
        tokens[row] = int(token)
    return tokens


def nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Keep the likeliest tokens of each row that together reach top_p; at least one.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019.
    """
    ordered, places = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p.unsqueeze(1), ordered, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, places, kept)
