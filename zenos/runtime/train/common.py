"""Weights and the optimiser's moments in memory that all ranks of a gang have.

Each parameter is updated by one rank, and the others find it there: no rank does what another has
done, and nothing is sent. Between two steps all may read, so that rank 0 saves and publishes what
others have updated; who updates what is gradients.py's.
"""

from __future__ import annotations

from typing import Final

import torch

from zenos.core.errors import InvalidError
from zenos.runtime.train.gradients import trained

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_TENSORS: Final = 1 + len(_MOMENTS)  # of a parameter's shape
_ALIGNED_BYTES: Final = 64
_ITEM_BYTES: Final = 4  # float32, as Trainer has its weights on processors


class Common:
    """Takes over the weights of a model, and the state of an AdamW for it, into that memory."""

    def __init__(
        self,
        memory: torch.Tensor,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        first: bool,
    ) -> None:
        """memory: zeros, `bytes_needed` of them. first: whether this rank writes. All others have
        the same weights, need no moments, and must not do a step before that is done. InvalidError
        for a parameter that cannot lie there; then all are where they were.
        """
        _check(model)
        self._optimizer = optimizer
        self._state: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
        # Each with a storage of its own: who saves a model takes those of one for tied.
        buffer, begin = memory.numpy(), 0
        for parameter in trained(model):
            views = []
            for shape in [parameter.shape] * _TENSORS + [torch.Size()]:
                count = shape.numel()
                plain = torch.empty(0)
                if count:
                    plain = torch.frombuffer(buffer, dtype=torch.float32, count=count, offset=begin)
                views.append(plain.view(shape))
                begin += _room(shape)
            weights, *others = views
            self._state[parameter] = dict(zip((*_MOMENTS, "step"), others, strict=True))
            if first:
                weights.copy_(parameter.detach())
            parameter.data = weights
            known = optimizer.state.get(parameter)
            if not known:
                continue
            if first:
                for name, view in self._state[parameter].items():
                    view.copy_(known[name])
            optimizer.state[parameter] = self._state[parameter]

    def admit(self, parameters: list[torch.nn.Parameter]) -> None:
        """Before a step on these: whichever rank does it, all have its moments from then on."""
        for parameter in parameters:
            if not self._optimizer.state.get(parameter):
                self._optimizer.state[parameter] = self._state[parameter]


def _check(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        what = str(parameter.dtype)
        if not parameter.is_contiguous():
            what += ", not contiguous,"
        what += f" on {parameter.device}"
        if what != "torch.float32 on cpu":
            raise InvalidError(
                f"cannot share the parameter {name} between workers: it is {what}, and has to be "
                "contiguous torch.float32 on cpu; choose another backend than 'shared'"
            )


def bytes_needed(model: torch.nn.Module) -> int:
    """Of memory for all ranks together."""
    return sum(_TENSORS * _room(p.shape) + _ALIGNED_BYTES for p in trained(model))


def _room(shape: torch.Size) -> int:
    return -(-_ITEM_BYTES * shape.numel() // _ALIGNED_BYTES) * _ALIGNED_BYTES
