"""AdamW for a model, and its moments by name: as a checkpoint holds them."""

from __future__ import annotations

from typing import Final

import torch

from zenos.core.specs import TrainSpec

_SAVED: Final = ("step", "exp_avg", "exp_avg_sq")


def adamw(spec: TrainSpec, model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms, biases) don't."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        fused=True,
    )


def clip(model: torch.nn.Module, norm_max: float) -> float:
    """Scale the gradients so that the norm of all, which is returned, is at most `norm_max`."""
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), norm_max))


def advice(step: int) -> str:
    """What to do where a step would spoil the weights: at the first the rate has done nothing."""
    if step:
        return "lower learning_rate, or train in float32"
    return "nothing is learned yet, so look at 'settings' or the base, or train in float32"


def moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's own tensors as `MOMENT.PARAMETER`; they change with the next step."""
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    saved: dict[str, torch.Tensor],
    device: torch.device,
) -> None:
    """Take over what `moments` gave, on whatever device it was."""
    for name, parameter in model.named_parameters():
        found = {
            key: saved[f"{key}.{name}"].to(device) for key in _SAVED if f"{key}.{name}" in saved
        }
        if found:
            # AdamW keeps its step counts in float32 where it keeps the parameters' moments.
            optimizer.state[parameter] = found
