"""The tensors that a model is: to be saved, and to be put back."""

from __future__ import annotations

import torch

from zenos.core.errors import StorageError

Weights = dict[str, torch.Tensor]


def weights_of(model: torch.nn.Module) -> Weights:
    """A model's parameters, and the buffers that belong to its state; each tied tensor once."""
    parameters: Weights = dict(model.named_parameters())
    known = {id(p) for p in model.parameters()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in parameters and id(tensor) not in known:
            parameters[name] = tensor
    return parameters


def load_weights(model: torch.nn.Module, weights: Weights) -> None:
    """Copy saved tensors into a model's own, unless it has taken them over (`build`) already.

    Raises StorageError for those of another model.
    """
    own = weights_of(model)
    if own.keys() != weights.keys():
        raise StorageError("cannot resume: the checkpoint is of another model")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.data_ptr() != weights[name].data_ptr():
                tensor.copy_(weights[name])
